// The end of sampling: one block a row. Each filter, and the draw itself, is a place in the ranking of the tokens (descending logit, equal
// ones by lower id): the k-th token, the first at which the cumulated mass reaches a part of the whole, and so on. The histogram says in
// which bin the place is; only the tokens of that bin (or of all bins up to it, when those are few) are collected, sorted and looked at.
// A bin of too many tokens (equal logits, mostly) is cut by the bits of the logits until few are left, or only equal ones: among these the
// place follows from their number.
#include "core/philox.h"
#include "cuda/sample.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kList = 4096;    // tokens that are sorted at once
constexpr int kFew = 1024;     // or that are worth listing from the top, for later steps to use
constexpr int kFineBins = 2048;
constexpr int kShownSlices = 8;  // whose histograms are read at once

struct Shared {
  uint32_t count[kBins];  // cumulated over the bins
  uint64_t mass[kBins];
  uint64_t list[kList];       // (rank key, id), sorted; or the counts of fine bins
  uint64_t list_mass[kList];  // cumulated; or the masses of fine bins
  uint64_t totals[kWarps];
  Edge edges[kBinsOfOctave];
  uint32_t number, low, high;
  float threshold, least, most;
  int used[kShownSlices];
  Row row;
};

// a[i] = a[0] + … + a[i], by the whole block.
template <class U>
__device__ void cumulate(U* a, int n, uint64_t* totals) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, run = (n + kThreads - 1) / kThreads;
  const int begin = min(n, static_cast<int>(threadIdx.x) * run), end = min(n, begin + run);
  U own = 0;
  for (int i = begin; i < end; i++) own += a[i];
  U sum = own;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const U left = __shfl_up_sync(0xffffffffu, sum, d);
    if (lane >= d) sum += left;
  }
  __syncthreads();
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  U before = sum - own;
  for (int w = 0; w < warp; w++) before += static_cast<U>(totals[w]);
  for (int i = begin; i < end; i++) a[i] = before += a[i];
  __syncthreads();
}

__device__ void sort(uint64_t* a, int n) {  // n: a power of two
  for (int size = 2; size <= n; size <<= 1)
    for (int step = size >> 1; step > 0; step >>= 1) {
      for (int i = threadIdx.x; i < n / 2; i += kThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t x = a[low], y = a[high];
        if ((x > y) == ((low & size) == 0)) {
          a[low] = y;
          a[high] = x;
        }
      }
      __syncthreads();
    }
}

// The first i in [0, n) with found(i), which is false, …, false, true, …; n if there is none.
template <class F>
__device__ __forceinline__ int first_where(int n, F found) {
  int low = 0, high = n;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (found(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

// A place in the ranking: the first token with which so many tokens, or so much mass, are together.
struct Place {
  uint32_t tokens;  // if not 0
  double mass;
  bool more;  // the mass must be exceeded, not only reached
  __device__ bool met(uint32_t count, uint64_t sum) const {
    if (tokens) return count >= tokens;
    return more ? static_cast<double>(sum) > mass : static_cast<double>(sum) >= mass;
  }
};
// The tokens up to and with a place.
struct Found {
  uint32_t tokens;
  uint64_t mass;
  int id;
};

template <class T>
struct Ranking {
  Shared& s;
  const T* row;
  int cols;
  Weights weights;
  int list_first = 0, list_last = -1, listed = 0;  // bins in the list

  __device__ uint32_t count_before(int bin) const { return bin > 0 ? s.count[bin - 1] : 0; }
  __device__ uint64_t mass_before(int bin) const { return bin > 0 ? s.mass[bin - 1] : 0; }

  // Sorts the tokens that wanted(x) into the list; there are at most kList.
  template <class F>
  __device__ void collect(F wanted) {
    __syncthreads();
    if (threadIdx.x == 0) s.number = 0;
    __syncthreads();
    visit(row, 0, cols, [&](int64_t i, float x) {
      if (!wanted(x)) return;
      const uint32_t at = atomicAdd(&s.number, 1u);
      if (at < kList) s.list[at] = static_cast<uint64_t>(rank_key(x)) << 32 | static_cast<uint32_t>(i);
    });
    __syncthreads();
    listed = min(static_cast<int>(s.number), kList);
    int n = 2;
    while (n < listed) n *= 2;
    for (int i = listed + threadIdx.x; i < n; i += kThreads) s.list[i] = ~uint64_t{0};
    __syncthreads();
    sort(s.list, n);
    for (int i = threadIdx.x; i < listed; i += kThreads) s.list_mass[i] = weights.mass_of(logit_of(static_cast<uint32_t>(s.list[i] >> 32)));
    __syncthreads();
    cumulate(s.list_mass, listed, s.totals);
  }
  // The rank key at which bin `bin` > 0 begins, found by a warp: five bits of it at a time.
  __device__ uint32_t first_key(int bin) const {
    const uint32_t lane = threadIdx.x & 31, largest = rank_key(weights.largest);
    uint32_t key = 0;  // the last one before the bin
    for (int shift = 27; shift >= -3; shift -= 5) {
      const uint32_t at = shift >= 0 ? key + (lane << shift) : key + lane;
      const bool before = (shift >= 0 || lane < 4) && (at <= largest || weights.bin(logit_of(at)) < bin);
      const uint32_t steps = __popc(__ballot_sync(0xffffffffu, before)) - 1;
      key += shift >= 0 ? steps << shift : steps;
    }
    return key + 1;
  }
  // The bins [first, last] as an interval of logits (least, most].
  __device__ void bound(int first, int last) {
    __syncthreads();
    if (threadIdx.x < 64) {
      const bool upper = threadIdx.x < 32;
      const int bin = upper ? first : last + 1;
      const uint32_t key = bin > 0 ? first_key(bin) : 0;
      const float x = bin == 0 ? INFINITY : key >= rank_key(-INFINITY) ? -INFINITY : logit_of(key);
      if ((threadIdx.x & 31) == 0) (upper ? s.most : s.least) = x;
    }
    __syncthreads();
  }
  __device__ void collect_bins(int first, int last) {
    bound(first, last);
    const float least = s.least, most = s.most;
    collect([&](float x) { return x > least && x <= most; });
    list_first = first;
    list_last = last;
  }
  __device__ Found in_list(const Place& p, uint32_t tokens, uint64_t mass) const {
    int i = first_where(listed, [&](int j) { return p.met(tokens + j + 1, mass + s.list_mass[j]); });
    i = min(i, listed - 1);
    return {tokens + i + 1, mass + s.list_mass[i], static_cast<int>(static_cast<uint32_t>(s.list[i]))};
  }

  __device__ Found find(const Place& p, bool last) {
    const int bin = min(first_where(kBins, [&](int b) { return p.met(s.count[b], s.mass[b]); }), kBins - 1);
    if (bin < list_first || bin > list_last) {
      if (s.count[bin] <= (last ? kFew / 8 : kFew)) collect_bins(0, bin);
      else if (s.count[bin] - count_before(bin) <= kList) collect_bins(bin, bin);
      else return in_crowd(p, bin);
    }
    return in_list(p, count_before(list_first), mass_before(list_first));
  }

  // A place in a bin of too many tokens.
  __device__ Found in_crowd(const Place& p, int bin) {
    list_last = -1;  // its memory is used here
    bound(bin, bin);
    const float least = s.least, most = s.most;
    uint32_t tokens = count_before(bin), inside = s.count[bin] - tokens;
    uint64_t mass = mass_before(bin);
    __syncthreads();
    if (threadIdx.x == 0) {
      s.low = 0xffffffffu;
      s.high = 0;
    }
    __syncthreads();
    uint32_t low = 0xffffffffu, high = 0;
    visit(row, 0, cols, [&](int64_t, float x) {
      if (!(x > least && x <= most)) return;
      low = min(low, rank_key(x));
      high = max(high, rank_key(x));
    });
    low = __reduce_min_sync(0xffffffffu, low);
    high = __reduce_max_sync(0xffffffffu, high);
    if ((threadIdx.x & 31) == 0) {
      atomicMin(&s.low, low);
      atomicMax(&s.high, high);
    }
    __syncthreads();
    low = s.low;
    high = s.high;
    while (low < high) {  // the place is among the keys low … high: `inside` tokens, after `tokens` with `mass`
      if (inside <= kList) {
        collect([&](float x) {
          const uint32_t key = rank_key(x);
          return key >= low && key <= high;
        });
        return in_list(p, tokens, mass);
      }
      int shift = 0;
      while ((high - low) >> shift >= kFineBins) shift++;
      // Tokens, and their mantissas beyond the bin's edge in two halves, since all may fall into one fine bin.
      uint32_t *fine_count = reinterpret_cast<uint32_t*>(s.list), *fine_low = fine_count + kFineBins, *fine_high = fine_low + kFineBins;
      __syncthreads();
      for (int i = threadIdx.x; i < 3 * kFineBins; i += kThreads) fine_count[i] = 0;
      __syncthreads();
      visit(row, 0, cols, [&](int64_t, float x) {
        if (!(x > least && x <= most)) return;
        const uint32_t key = rank_key(x);
        if (key < low || key > high) return;
        const uint32_t i = (key - low) >> shift;
        int same;
        const uint32_t above = weights.excess(weights.depth(x), same);
        atomicAdd(&fine_count[i], 1u);
        atomicAdd(&fine_low[i], above & 0xff);
        atomicAdd(&fine_high[i], above >> 8);
      });
      __syncthreads();
      for (int i = threadIdx.x; i < kFineBins; i += kThreads)
        s.list_mass[i] = weights.mass(fine_count[i] * static_cast<uint64_t>(weights.edge(bin)) + fine_low[i] + (static_cast<uint64_t>(fine_high[i]) << 8),
                                      bin / kBinsOfOctave);
      __syncthreads();
      cumulate(fine_count, kFineBins, s.totals);
      cumulate(s.list_mass, kFineBins, s.totals);
      const int last = static_cast<int>((high - low) >> shift);
      const int i = min(first_where(last + 1, [&](int j) { return p.met(tokens + fine_count[j], mass + s.list_mass[j]); }), last);
      const uint32_t skipped = i > 0 ? fine_count[i - 1] : 0;
      inside = fine_count[i] - skipped;
      mass += i > 0 ? s.list_mass[i - 1] : 0;
      tokens += skipped;
      low += static_cast<uint32_t>(i) << shift;
      high = min(high, low + ((1u << shift) - 1));
    }
    const uint64_t each = weights.mass_of(logit_of(low));
    int i = first_where(static_cast<int>(inside), [&](int j) { return p.met(tokens + j + 1, mass + (j + 1) * each); });
    i = min(i, static_cast<int>(inside) - 1);
    return {tokens + i + 1, mass + (i + 1) * each, nth(low, i)};
  }

  // Id of the n-th token (from 0) with this rank key. Warps count stretches of the row.
  __device__ int nth(uint32_t key, int n) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, stretch = (cols + kThreads - 1) / kThreads * 32;
    const int begin = min(cols, warp * stretch), end = min(cols, begin + stretch);
    const auto matches = [&](int at) { return __ballot_sync(0xffffffffu, at + lane < end && rank_key(to_float(row[at + lane])) == key); };
    uint32_t own = 0;
    for (int at = begin; at < end; at += 32) own += __popc(matches(at));
    __syncthreads();
    if (lane == 0) s.totals[warp] = own;
    __syncthreads();
    uint32_t before = 0;
    for (int w = 0; w < warp; w++) before += static_cast<uint32_t>(s.totals[w]);
    const uint32_t wanted = static_cast<uint32_t>(n);
    if (wanted >= before && wanted < before + own)
      for (int at = begin; at < end; at += 32) {
        uint32_t bits = matches(at);
        const uint32_t some = __popc(bits);
        if (wanted < before + some) {
          for (uint32_t i = before; i < wanted; i++) bits &= bits - 1;
          if (lane == 0) s.number = static_cast<uint32_t>(at) + __ffs(bits) - 1;
          break;
        }
        before += some;
      }
    __syncthreads();
    return static_cast<int>(s.number);
  }

  // Of the first `kept` tokens those with weight >= least; the first one stays in any case.
  __device__ Found at_least(float least, float heat, const Found& kept) {
    __syncthreads();
    if (threadIdx.x == 0) {  // the lowest logit of that weight: a guess, and its neighbours
      const auto enough = [&](float x) { return exp((static_cast<double>(x) - weights.largest) / heat) >= least; };
      float x = static_cast<float>(fmax(-3.4e38, fmin(3.4e38, weights.largest + heat * log(static_cast<double>(least)))));
      for (int i = 0; i < 4 && enough(x); i++) x = nextafterf(x, -INFINITY);
      for (int i = 0; i < 8 && !enough(x); i++) x = nextafterf(x, INFINITY);
      s.threshold = x;
    }
    __syncthreads();
    const uint32_t key = rank_key(s.threshold);
    if (list_first == 0 && static_cast<int>(kept.tokens) <= listed && list_last >= 0) {
      int n = first_where(listed, [&](int i) { return static_cast<uint32_t>(s.list[i] >> 32) > key; });
      n = min(max(n, 1), static_cast<int>(kept.tokens));
      return {static_cast<uint32_t>(n), s.list_mass[n - 1], 0};
    }
    const float threshold = s.threshold;
    const int bin = min(weights.bin(threshold), kBins - 1);
    bound(bin, bin);
    const float most = s.most;
    uint64_t mass = 0;
    uint32_t tokens = 0;
    visit(row, 0, cols, [&](int64_t, float x) {
      if (!(x >= threshold && x <= most)) return;
      tokens++;
      mass += weights.mass_of(x);
    });
    tokens = __reduce_add_sync(0xffffffffu, tokens);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) mass += __shfl_xor_sync(0xffffffffu, mass, d);
    if (threadIdx.x == 0) s.number = 0;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
      atomicAdd(&s.number, tokens);
      s.totals[threadIdx.x >> 5] = mass;
    }
    __syncthreads();
    tokens = s.number + count_before(bin);
    mass = mass_before(bin);
    for (int w = 0; w < kWarps; w++) mass += s.totals[w];
    __syncthreads();
    if (tokens >= kept.tokens) return kept;
    if (tokens == 0) return {1, weights.mass_of(weights.largest), 0};
    return {tokens, mass, 0};
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) draw(const SampleArgs a) {
  follow();
  extern __shared__ __align__(16) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int64_t b = blockIdx.x;
  const T* row = static_cast<const T*>(a.logits) + b * a.cols;
  const float* p = a.params + b * param_count;
  const float heat = p[temperature];
  if (threadIdx.x < 32) {
    const Row r = row_of(a.peaks + b * a.peak_slices, a.peak_slices);
    if (threadIdx.x == 0) s.row = r;
  }
  __syncthreads();
  const float largest = s.row.largest;
  const auto finish = [&](int id) {
    if (threadIdx.x != 0) return;
    a.ids[b] = id;
    a.logprob[b] = static_cast<float>(static_cast<double>(to_float(row[id])) - largest - log(s.row.sum));
  };
  if (s.row.wrong || largest == -INFINITY) {
    if (threadIdx.x == 0) {
      raise(a.fault, s.row.wrong ? a.bad_logit : a.no_logit);
      a.ids[b] = 0;
      a.logprob[b] = 0.f;
    }
    return;
  }
  if (heat <= 0.f) return finish(s.row.best);

  const Weights weights(largest, heat, a.lift, s.edges);
  const Histogram* bins = a.histograms + b * a.slices;
  fill_edges(s.edges);
  if (threadIdx.x < kShownSlices) s.used[threadIdx.x] = threadIdx.x < a.slices ? bins[threadIdx.x].used : 0;
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    uint32_t count = 0;
    uint64_t excess = 0;
#pragma unroll
    for (int j = 0; j < kShownSlices; j++) {
      if (i >= s.used[j]) continue;
      count += bins[j].count[i];
      excess += bins[j].excess[i];
    }
    for (int j = kShownSlices; j < a.slices; j++) {
      if (i >= bins[j].used) continue;
      count += bins[j].count[i];
      excess += bins[j].excess[i];
    }
    s.count[i] = count;
    s.mass[i] = weights.mass(count * static_cast<uint64_t>(weights.edge(i)) + excess, i / kBinsOfOctave);
  }
  __syncthreads();
  cumulate(s.count, kBins, s.totals);
  cumulate(s.mass, kBins, s.totals);

  Ranking<T> ranking{s, row, static_cast<int>(a.cols), weights};
  Found kept{s.count[kBins - 1], s.mass[kBins - 1], 0};
  if (kept.tokens == 0) return finish(s.row.best);
  const uint64_t seed = static_cast<uint32_t>(a.seeds[2 * b]) | static_cast<uint64_t>(static_cast<uint32_t>(a.seeds[2 * b + 1])) << 32;
  const double u = philox_uniform(philox(seed, static_cast<uint32_t>(a.steps[b]), 0).word[0]);
#pragma unroll 1
  for (int step = 0; step < 4; step++) {  // top-k, top-p, min-p, draw
    if (step == 2) {
      if (p[min_p] > 0.f) kept = ranking.at_least(p[min_p], heat, kept);
      continue;
    }
    Place place{0, 0., false};
    const double mass = static_cast<double>(kept.mass);
    if (step == 0) {
      if (!(p[top_k] >= 1.f && p[top_k] < static_cast<float>(kept.tokens))) continue;
      place.tokens = static_cast<uint32_t>(p[top_k]);
    } else if (step == 1) {
      if (!(p[top_p] < 1.f)) continue;
      place.mass = p[top_p] * mass;
    } else {
      place.mass = u * mass;
      place.more = true;
    }
    const Found f = ranking.find(place, step == 3);
    if (step == 3) return finish(f.id);
    if (f.tokens < kept.tokens) kept = f;
  }
}

}  // namespace

const char* draw_tokens(Context& ctx, const SampleArgs& a, DType type, int64_t rows) {
  return dispatch(type, [&](auto t) -> const char* {
    using T = decltype(t);
    const cudaError_t e = cudaFuncSetAttribute(draw<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    if (e != cudaSuccess) return cudaGetErrorString(e);
    launch(ctx, draw<T>, static_cast<unsigned>(rows), kThreads, sizeof(Shared), a);
    return launched();
  });
}

}  // namespace llm::cuda
