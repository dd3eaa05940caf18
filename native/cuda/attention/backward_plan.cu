// Before the passes of the attention gradient: block 0 lists the tiles of all sequences, the other blocks compute delta = sum do o.
#include "cuda/attention/backward.h"
#include "cuda/attention/backward_ptx.cuh"

namespace llm::cuda::gradient {
namespace {

constexpr int kThreads = 512;
constexpr int kBins = 1024;
constexpr int kNear = 1000;  // boundaries of so many sequences are kept in shared memory

// Token ranges that tiles cover: what lies before the sequences, the sequences, what lies behind them. Broken boundaries: one range
// with nothing on the other side.
struct Segments {
  const Problem& p;
  const int *cu_q, *cu_k;  // in shared memory when they fit
  bool valid;
  __device__ int count() const { return valid ? p.sequences + 2 : 1; }
  __device__ int at(const int* cu, int64_t tokens, int i) const {  // where segment i begins; i == count(): the end
    if (i == 0) return 0;
    if (i == count()) return static_cast<int>(tokens);
    return cu[i - 1];
  }
  __device__ bool is_sequence(int s) const { return valid && s > 0 && s <= p.sequences; }
};

// Sum of x over the threads before this one; total of all. `shared`: 33 ints.
__device__ int scan(int x, int* shared, int& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int sum = x;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const int other = __shfl_up_sync(0xffffffffu, sum, o);
    if (lane >= o) sum += other;
  }
  __syncthreads();
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const int mine = lane < kThreads / 32 ? shared[lane] : 0;
    int s = mine;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const int other = __shfl_up_sync(0xffffffffu, s, o);
      if (lane >= o) s += other;
    }
    shared[lane] = s - mine;
    if (lane == 31) shared[32] = s;
  }
  __syncthreads();
  total = shared[32];
  return shared[warp] + sum - x;
}

// bases[s] = number of segment s's first tile, for s = 0 … count.
__device__ void tile_bases(const Segments& seg, const int* cu, int64_t tokens, int rows, int* bases, int* shared) {
  int before = 0;
  for (int s0 = 0; s0 < seg.count(); s0 += kThreads) {
    const int s = s0 + static_cast<int>(threadIdx.x);
    const int n = s < seg.count() ? (seg.at(cu, tokens, s + 1) - seg.at(cu, tokens, s) + rows - 1) / rows : 0;
    int total;
    const int base = scan(n, shared, total);
    if (s < seg.count()) bases[s] = before + base;
    before += total;
  }
  if (threadIdx.x == 0) bases[seg.count()] = before;
  __syncthreads();
}

// Tile number i of one side, from the segments' bases.
template <bool kKeys>
__device__ Tile tile_at(const Segments& seg, const int* bases, const int* key_bases, int rows, int i) {
  const Problem& p = seg.p;
  int low = 0, high = seg.count() - 1;  // the last segment whose base is <= i and that is not empty
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (bases[middle] <= i) low = middle;
    else high = middle - 1;
  }
  const int s = low;
  Tile t{};
  t.q_begin = seg.at(seg.cu_q, p.queries, s);
  t.q_count = seg.at(seg.cu_q, p.queries, s + 1) - t.q_begin;
  t.k_begin = seg.at(seg.cu_k, p.keys, s);
  t.k_count = seg.at(seg.cu_k, p.keys, s + 1) - t.k_begin;
  if (!seg.is_sequence(s)) (kKeys ? t.q_count : t.k_count) = 0;
  t.row = (i - bases[s]) * rows;
  t.rows = min(rows, (kKeys ? t.k_count : t.q_count) - t.row);
  t.first_key_tile = key_bases[s];
  return t;
}

// `blocks` in all per head, `longest` of one key tile.
__device__ void divide(const Problem& p, const Limits& limits, int tiles, int blocks, int longest, Division& d) {
  const int group = p.heads / p.key_heads;
  d.key_tiles = tiles;
  d.blocks_per_head = blocks;
  const int64_t groups = blocks == 0 ? p.key_heads : limits.spill_blocks / (static_cast<int64_t>(blocks) * group);
  d.spill = groups > 0;
  d.rounds = groups > 0 ? (p.key_heads + static_cast<int>(min(groups, static_cast<int64_t>(p.key_heads))) - 1) /
                              static_cast<int>(min(groups, static_cast<int64_t>(p.key_heads)))
                        : 1;
  d.groups = (p.key_heads + d.rounds - 1) / d.rounds;
  // Longest tiles first fill the card well when there are many tiles of falling length, or none is long beside an even share.
  const float share = static_cast<float>(blocks) * d.groups / limits.sms;
  const int items = max(tiles, 1) * d.groups;
  d.splits = 1;
  if (d.spill && longest > 0.6f * share && !(p.causal && longest <= 1.03f * share && items >= 1.9f * limits.sms)) {
    const int wanted = static_cast<int>(ceilf(longest / (0.4f * share))), most = min(limits.parts / items, longest * group / 2);
    d.splits = max(1, min(wanted, most));
  }
}

// Writes the tiles of one side, most work first (by counting sort: the order within a bin does not matter to results).
template <bool kKeys>
__device__ void list_tiles(const Segments& seg, const Plan& plan, const int* bases, const int* key_bases, int rows, const Limits& limits,
                           int* shared, int* bins) {
  const Problem& p = seg.p;
  const int n = bases[seg.count()];
  const int64_t most = max(static_cast<int64_t>(1), kKeys ? p.queries : p.keys);
  const auto work = [&](const Tile& t) {
    const Range r = kKeys ? queries_of(p, t) : keys_of(p, t);
    return r;
  };
  const auto bin_of = [&](const Range& r) { return static_cast<int>(kBins - 1 - (static_cast<int64_t>(r.end - r.begin) * (kBins - 1)) / most); };
  for (int b = threadIdx.x; b < kBins; b += kThreads) bins[b] = 0;
  __syncthreads();
  int spilled = 0, longest = 0;
  for (int i0 = 0; i0 < n; i0 += kThreads) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    int blocks = 0;
    if (i < n) {
      const Range r = work(tile_at<kKeys>(seg, bases, key_bases, rows, i));
      atomicAdd(&bins[bin_of(r)], 1);
      if (r.end > r.begin) blocks = (r.end - 1) / limits.spill_rows - r.begin / limits.spill_rows + 1;
    }
    if constexpr (kKeys) {
      int total;
      const int base = scan(blocks, shared, total);
      if (i < n) plan.spill_of[i] = spilled + base;
      spilled += total;
      longest = max(longest, blocks);
    }
  }
  __syncthreads();
  int before = 0;
  for (int b0 = 0; b0 < kBins; b0 += kThreads) {
    const int mine = bins[b0 + threadIdx.x];
    int total;
    const int base = scan(mine, shared, total);
    bins[b0 + threadIdx.x] = before + base;
    before += total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kThreads) {
    Tile t = tile_at<kKeys>(seg, bases, key_bases, rows, i);
    if constexpr (kKeys) t.spill = plan.spill_of[i];
    (kKeys ? plan.key_tiles : plan.query_tiles)[atomicAdd(&bins[bin_of(work(t))], 1)] = t;
  }
  if constexpr (kKeys) {
    if (threadIdx.x == 0) shared[0] = 0;
    __syncthreads();
    atomicMax(&shared[0], longest);
    __syncthreads();
    if (threadIdx.x == 0) divide(p, limits, n, spilled, shared[0], *plan.division);
    for (int i = threadIdx.x; i <= 2 * p.key_heads; i += kThreads) plan.taken[i] = 0;
  } else if (threadIdx.x == 0) {
    plan.division->query_tiles = n;
  }
  __syncthreads();
}

__device__ void list_all(const Problem& p, const Plan& plan, int* bases, int key_rows, int query_rows, const Limits& limits,
                         int* fault_word, int fault) {
  __shared__ int shared[33];
  __shared__ int bins[kBins];
  __shared__ int near[4 * (kNear + 3)];
  const int *cu_q = p.cu_q, *cu_k = p.cu_k, apart = p.sequences + 3;
  int *key_bases = bases, *query_bases = bases + apart;
  if (p.sequences <= kNear) {
    for (int b = threadIdx.x; b <= p.sequences; b += kThreads) near[b] = p.cu_q[b], near[apart + b] = p.cu_k[b];
    cu_q = near, cu_k = near + apart, key_bases = near + 2 * apart, query_bases = near + 3 * apart;
    __syncthreads();
  }
  bool bad = cu_q[0] < 0 || cu_k[0] < 0 || cu_q[p.sequences] > p.queries || cu_k[p.sequences] > p.keys;
  for (int b = threadIdx.x; b < p.sequences; b += kThreads) bad |= cu_q[b] > cu_q[b + 1] || cu_k[b] > cu_k[b + 1];
  bad = __syncthreads_or(bad);
  if (bad && threadIdx.x == 0) raise(fault_word, fault);
  const Segments seg{p, cu_q, cu_k, !bad};
  tile_bases(seg, cu_k, p.keys, key_rows, key_bases, shared);
  tile_bases(seg, cu_q, p.queries, query_rows, query_bases, shared);
  list_tiles<true>(seg, plan, key_bases, key_bases, key_rows, limits, shared, bins);
  list_tiles<false>(seg, plan, query_bases, key_bases, query_rows, limits, shared, bins);
}

// One (token, head) pair per `kLanes` lanes, kPack elements a load, two pairs at a time.
template <class T, int kPack, int kLanes>
__device__ void deltas(const Problem& p, const Plan& plan, float lse_factor, int64_t block, int64_t blocks) {
  constexpr int kPairs = 2;
  const int64_t pairs = p.queries * p.heads, apart = blocks * (kThreads / kLanes);
  const int lane = threadIdx.x % kLanes;
  for (int64_t first = block * (kThreads / kLanes) + threadIdx.x / kLanes; first - threadIdx.x / kLanes < pairs; first += kPairs * apart) {
    float sum[kPairs] = {};
    if constexpr (kPack == 1) {
#pragma unroll
      for (int i = 0; i < kPairs; i++) {
        const int64_t at = (first + i * apart) * p.width;
        if (first + i * apart < pairs)
          for (int c = lane; c < p.width; c += kLanes)
            sum[i] += to_float(static_cast<const T*>(p.grad)[at + c]) * to_float(static_cast<const T*>(p.o)[at + c]);
      }
    } else {
      for (int c = lane * kPack; c < p.width; c += kLanes * kPack) {
        Pack<T> a[kPairs], b[kPairs];
#pragma unroll
        for (int i = 0; i < kPairs; i++) {
          const int64_t at = min(first + i * apart, pairs - 1) * p.width + c;
          a[i] = load_pack(static_cast<const T*>(p.grad) + at);
          b[i] = load_pack(static_cast<const T*>(p.o) + at);
        }
#pragma unroll
        for (int i = 0; i < kPairs; i++)
#pragma unroll
          for (int e = 0; e < kPack; e++) sum[i] += to_float(a[i].v[e]) * to_float(b[i].v[e]);
      }
    }
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
#pragma unroll
      for (int d = kLanes / 2; d > 0; d >>= 1) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], d);
      const int64_t pair = first + i * apart;
      if (pair >= pairs || lane != 0) continue;
      const int64_t token = pair / p.heads, at = (pair - token * p.heads) * p.queries + token;
      const float lse = p.lse[at];
      plan.stats[at] = make_float2(lse == -INFINITY ? INFINITY : lse * lse_factor, sum[i]);
    }
  }
}

template <class T, int kPack, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) plan_kernel(Problem p, Plan plan, int* bases, int key_rows, int query_rows, Limits limits,
                                                           float lse_factor, int* fault_word, int fault) {
  release_dependents();
  if (blockIdx.x == 0) list_all(p, plan, bases, key_rows, query_rows, limits, fault_word, fault);
  else deltas<T, kPack, kLanes>(p, plan, lse_factor, blockIdx.x - 1, gridDim.x - 1);
}

}  // namespace

const char* make_plan(Context& ctx, const Problem& p, int key_rows, int query_rows, float lse_factor, const Limits& limits, Plan& plan) {
  plan.most_key_tiles = static_cast<int>(ceil_div(p.keys, key_rows)) + p.sequences + 2;
  plan.most_query_tiles = static_cast<int>(ceil_div(p.queries, query_rows)) + p.sequences + 2;
  plan.division = ctx.scratch_of<Division>(1);
  plan.key_tiles = ctx.scratch_of<Tile>(static_cast<size_t>(plan.most_key_tiles));
  plan.query_tiles = ctx.scratch_of<Tile>(static_cast<size_t>(plan.most_query_tiles));
  plan.spill_of = ctx.scratch_of<int>(static_cast<size_t>(plan.most_key_tiles));
  plan.taken = ctx.scratch_of<int>(2 * static_cast<size_t>(p.key_heads) + 1);
  plan.stats = ctx.scratch_of<float2>(static_cast<size_t>(p.queries * p.heads) + 1);
  int* bases = ctx.scratch_of<int>(2 * (static_cast<size_t>(p.sequences) + 3));
  return dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int pack = Pack<T>::n;
    const int fault = ctx.code(Fault::boundaries);
    const auto launch = [&](auto kernel, int lanes) {
      const int blocks = 1 + grid_for(ctx, p.queries * p.heads, 2 * kThreads / lanes, 2);
      kernel<<<blocks, kThreads, 0, ctx.stream>>>(p, plan, bases, key_rows, query_rows, limits, lse_factor, ctx.fault_word, fault);
      return launched();
    };
    const bool packed = p.width % pack == 0 && aligned16(p.grad) && aligned16(p.o);
    if (!packed) return launch(plan_kernel<T, 1, 32>, 32);
    if (p.width / pack <= 8) return launch(plan_kernel<T, pack, 8>, 8);
    if (p.width / pack <= 16) return launch(plan_kernel<T, pack, 16>, 16);
    return launch(plan_kernel<T, pack, 32>, 32);
  });
}

}  // namespace llm::cuda::gradient
