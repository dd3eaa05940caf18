// How a decode step's work is spread: a fixed grid of workers, each with an equal share of all keys, whatever the lengths.
//
// A unit is one query token; an item is a piece of its heads that one block computes together; keys come in steps. The steps of all units
// form one line, cut into equal shares; for each share there is one block an item, so that blocks which read the same or neighbouring
// memory do it at the same time. A share is a chain of segments (unit, keys). A segment with all keys of its unit gives the output; the
// others leave partial results (a maximum, a sum and sums of values), which combine_partials() folds in the order of the keys. Lengths are
// read on the device, so a captured graph follows them.
//
// Of a share's segments at most one lacks the first keys of its unit (its first) and at most one has those but lacks the last (its last).
// So share c owns two places for partial results: 2 c for the former, 2 c + 1 for the latter.
#pragma once
#include "cuda/paged.cuh"

namespace llm::cuda {

constexpr int kUnitsPerLaunch = 4096;  // their prefix sums lie in shared memory

struct PagedWork {
  int first_unit, units;  // tokens if by_token, else sequences, of which those with a single query count
  int items, rows;        // items of a unit; heads of an item
  int step, least;        // keys of a step; steps of a share at least
  float* o;               // [2 shares, items, rows, width]
  float2* ml;             // [2 shares, items, rows]: maximum (log2), sum
  int* plan;              // shares, then the prefix sums of the units' steps
};

struct Unit {
  int token, sequence;  // token -1: nothing to compute here. sequence -1: a token outside all of them.
  KeyRange keys;
};

__device__ inline Unit unit_of(const PagedArgs& a, int u) {
  int b = u, begin = 0, end = 0, length = 0;
  if (u < a.sequences) {
    begin = a.cu[u];
    end = a.cu[u + 1];
    length = a.lengths[u];
  }
  if (!a.by_token) {
    if (end - begin != 1) return {-1, b, {0, 0}};
  } else if (u >= a.sequences || begin != u || end != u + 1) {
    int low = -1, high = a.sequences;  // the last b with cu[b] <= u
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (a.cu[middle] <= u) low = middle;
      else high = middle;
    }
    b = low;
    if (b < 0) return {u, -1, {0, 0}};
    end = a.cu[b + 1];
    length = a.lengths[b];
    if (u >= end) return {u, -1, {0, 0}};
  }
  const int token = a.by_token ? u : begin, keys = keys_of(a, length);
  return {token, b, visible_keys(keys - (end - token), keys, a.window)};
}

// The shares of `total` steps differ by at most one.
struct PagedShares {
  unsigned count, each, longer;  // the first `longer` have one step more than `each`
  __device__ PagedShares(unsigned total, unsigned n) : count(n), each(n == 0 ? 0 : total / n), longer(total - each * n) {}
  __device__ unsigned begin(unsigned c) const { return c * each + min(c, longer); }
  __device__ unsigned share_of(unsigned at) const {
    const unsigned split = longer * (each + 1);
    return at < split ? at / (each + 1) : longer + (at - split) / each;
  }
};

struct Segment {
  Unit unit;
  int item, begin, end;  // keys [begin, end)
  bool whole;      // all that the unit sees
  int place;       // of the partial result: row `place * rows` of PagedWork::o and PagedWork::ml
};

// Calls body(segment) for each segment of this block, with all threads; the segment lies in shared memory. prefix: units + 1 ints of
// shared memory. Also writes zeros for units without keys.
template <class Body>
__device__ inline void work_on(const PagedArgs& a, const PagedWork& w, int* prefix, Body body) {
  __shared__ int shared[32];
  __shared__ Segment segment;
  __shared__ unsigned next, limit;  // the place on the line; where this share ends. Not in registers: the body needs them all.
  bool wrong = boundaries_wrong(a);
  block_prefix(
      w.units,
      [&](int i) {
        const KeyRange keys = unit_of(a, w.first_unit + i).keys;
        return (keys.last - keys.first + w.step - 1) / w.step;
      },
      prefix, shared);
  wrong = __syncthreads_or(wrong);
  const unsigned total = wrong ? 0 : prefix[w.units], own = blockIdx.x / w.items;
  const PagedShares shares(total, min(gridDim.x / w.items, (total + w.least - 1) / w.least));
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i <= w.units; i += blockDim.x) w.plan[1 + i] = wrong ? 0 : prefix[i];
    if (threadIdx.x == 0) w.plan[0] = static_cast<int>(shares.count);
  }
  const int64_t row_words = static_cast<int64_t>(a.heads) * a.width * (a.type == DType::f32 ? 2 : 1);  // of 16 bits
  for (int i = blockIdx.x; i < w.units; i += gridDim.x) {
    if (!wrong && prefix[i + 1] != prefix[i]) continue;
    // Without sound boundaries nobody knows whose a token is: this kernel clears all if its units are tokens, else paged_prefill does.
    const int token = wrong ? (a.by_token ? w.first_unit + i : -1) : unit_of(a, w.first_unit + i).token;
    if (token < 0) continue;
    uint16_t* row = reinterpret_cast<uint16_t*>(a.o) + token * row_words;
    for (int64_t e = threadIdx.x; e < row_words; e += blockDim.x) row[e] = 0;
  }
  if (own >= shares.count) return;
  if (threadIdx.x == 0) {
    next = shares.begin(own);
    limit = shares.begin(own + 1);
  }
  __syncthreads();
  while (next < limit) {
    const unsigned at = next;
    const int u = find_in_prefix(prefix, w.units, static_cast<int>(at)), steps = prefix[u + 1] - prefix[u];
    const int first = static_cast<int>(at) - prefix[u], last = min(steps, first + static_cast<int>(limit - at));
    __syncthreads();
    if (threadIdx.x == 0) {
      Segment& s = segment;
      s.unit = unit_of(a, w.first_unit + u);
      s.begin = s.unit.keys.first + first * w.step;
      s.end = last == steps ? s.unit.keys.last : s.unit.keys.first + last * w.step;
      s.whole = first == 0 && last == steps;
      s.item = blockIdx.x % w.items;
      s.place = (2 * static_cast<int>(blockIdx.x / w.items) + (first == 0 ? 1 : 0)) * w.items + s.item;
      next = at + static_cast<unsigned>(last - first);
    }
    __syncthreads();
    body(segment);
    __syncthreads();
  }
}

// Folds partial results into outputs. After work_on(), with the same arguments.
const char* combine_partials(Context& ctx, const PagedArgs& a, const PagedWork& w);

// Fills in the scratch space of `w` and runs launch(blocks, w) and combine_partials for all units, about `per_sm` blocks a multiprocessor.
template <class Launch>
inline const char* run_work(Context& ctx, const PagedArgs& a, PagedWork w, int per_sm, Launch launch) {
  const int64_t all = a.by_token ? a.tokens : a.sequences;
  const int64_t steps = ceil_div(static_cast<int64_t>(a.columns) * a.block, w.step);  // of one unit, at most
  if (steps > INT32_MAX / w.items) return "a block table of fewer tokens expected";
  int64_t most_units = all < kUnitsPerLaunch ? all : kUnitsPerLaunch;
  if (most_units * steps > INT32_MAX) most_units = INT32_MAX / steps;
  int64_t shares = ceil_div(most_units * steps, w.least);
  const int64_t room = static_cast<int64_t>(ctx.sms) * per_sm / w.items;
  if (shares > room) shares = room;
  if (shares < 1) shares = 1;  // somebody has to write the zeros
  const size_t rows = 2 * static_cast<size_t>(shares) * w.items * w.rows;
  w.o = ctx.scratch_of<float>(rows * a.width);
  w.ml = ctx.scratch_of<float2>(rows);
  w.plan = ctx.scratch_of<int>(static_cast<size_t>(most_units) + 2);
  for (int64_t at = 0; at < all; at += most_units) {
    w.first_unit = static_cast<int>(at);
    w.units = static_cast<int>(all - at < most_units ? all - at : most_units);
    if (const char* why = launch(static_cast<unsigned>(shares * w.items), w)) return why;
    if (shares > 1)
      if (const char* why = combine_partials(ctx, a, w)) return why;
  }
  return nullptr;
}

}  // namespace llm::cuda
