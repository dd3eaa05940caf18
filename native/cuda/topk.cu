// topk of rows. The candidates of a row gather in a buffer of shared memory; elements that cannot be among the k best are passed over,
// which are nearly all of them once a bar is known. The first bar is the k-th largest of the threads' own maxima over the row's beginning
// (k elements reach it); later a selection among the candidates raises it. What is left is sorted. A few long rows are shared out among
// several blocks that hand their candidates to the last of them. Which slot a candidate gets is left to chance, which candidates there
// are is not, and ranks (rank.cuh) are unique: the result is the same in every run.
#include <algorithm>

#include "cuda/rank.cuh"
#include "cuda/reduce.h"

namespace llm::cuda {
namespace {

// Of a row that several blocks share: blocks that are done, and candidates that they handed on. Zero before and after.
__device__ unsigned arrived[kMostGroups], handed_on[kMostGroups];

constexpr int kThreads = 256;
constexpr int kBuffer = 4096;  // candidates
constexpr int kAhead = 4;      // packs a thread has on the way
constexpr int kMostK = 1024;
constexpr int kTile = 8 * kThreads;  // most elements of one pack a thread
static_assert(kBuffer - kTile >= kMostK, "after a selection a tile must fit");

struct Selection {
  uint64_t item[kBuffer];
  unsigned long long any, all;
  unsigned histogram[256];
  unsigned count, bin, need, inside, bar;
};

// Adds an item of some lanes of a warp, whose 32 lanes all call it; those beyond the buffer are lost. True when the lane's item lies at
// `limit` or beyond.
__device__ inline bool append(Selection& s, bool take, uint64_t item, unsigned limit) {
  const unsigned lanes = __ballot_sync(0xffffffffu, take);
  if (lanes == 0) return false;
  const int lane = threadIdx.x & 31, leader = __ffs(static_cast<int>(lanes)) - 1;
  unsigned at = 0;
  if (lane == leader) at = atomicAdd(&s.count, static_cast<unsigned>(__popc(lanes)));
  at = __shfl_sync(0xffffffffu, at, leader) + static_cast<unsigned>(__popc(lanes & ((1u << lane) - 1u)));
  if (take && at < kBuffer) s.item[at] = item;
  return take && at >= limit;
}

// Sorts the first n items, best first; those up to the next power of two become 0. The block is in step before and after.
__device__ inline void sort_items(uint64_t* item, int n) {
  int m = 1;
  while (m < n) m *= 2;
  const int tid = static_cast<int>(threadIdx.x);
  if (m <= kThreads) {  // an item a thread; partners within a warp meet in registers
    uint64_t mine = tid < n ? item[tid] : 0;
    for (int size = 2; size <= m; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        uint64_t other;
        if (stride < 32) {
          other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(mine), stride);
        } else {
          __syncthreads();
          item[tid] = mine;
          __syncthreads();
          other = item[tid ^ stride];
        }
        const bool larger = ((tid & stride) == 0) == ((tid & size) == 0);  // which of the two this thread keeps
        mine = (other > mine) == larger ? other : mine;
      }
    }
    __syncthreads();
    item[tid] = mine;
    __syncthreads();
    return;
  }
  for (int i = n + tid; i < m; i += kThreads) item[i] = 0;
  __syncthreads();
  for (int size = 2; size <= m; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int t = tid; t < m / 2; t += kThreads) {
        const int low = 2 * t - (t & (stride - 1)), high = low + stride;
        const uint64_t a = item[low], b = item[high];
        if ((a < b) == ((low & size) == 0)) item[low] = b, item[high] = a;
      }
      __syncthreads();
    }
  }
}

__device__ inline uint64_t warp_or(uint64_t v) {
  return static_cast<uint64_t>(__reduce_or_sync(0xffffffffu, static_cast<uint32_t>(v >> 32))) << 32 |
         __reduce_or_sync(0xffffffffu, static_cast<uint32_t>(v));
}

// Shrinks the more than k items to the k best. Returns a number that all of them reach and no other item did. The block is in step before
// and after.
__device__ inline uint64_t keep_best(Selection& s, int k) {
  const int n = static_cast<int>(s.count), tid = static_cast<int>(threadIdx.x);
  if (n <= kThreads) {
    sort_items(s.item, n);
    if (tid == 0) s.count = static_cast<unsigned>(k);
    __syncthreads();
    return s.item[k - 1];
  }
  // Only bits in which items differ decide.
  if (tid == 0) s.any = 0, s.all = ~uint64_t{0};
  __syncthreads();
  {
    uint64_t any = 0, all = ~uint64_t{0};
    for (int i = tid; i < n; i += kThreads) any |= s.item[i], all &= s.item[i];
    any = warp_or(any);
    all = ~warp_or(~all);
    if ((tid & 31) == 0) {
      atomicOr(&s.any, static_cast<unsigned long long>(any));
      atomicAnd(&s.all, static_cast<unsigned long long>(all));
    }
  }
  __syncthreads();
  const uint64_t common = s.all;
  uint64_t open = s.any & ~common, mask = 0, prefix = 0;
  unsigned need = static_cast<unsigned>(k);
  // From the top, eight bits at a time: the bin in which the k-th best lies, until all of the bin is wanted.
  for (;;) {
    const int top = 63 - __clzll(static_cast<long long>(open)), shift = top < 7 ? 0 : top - 7;
    prefix |= common & ~mask & ~((uint64_t{2} << top) - 1);
    mask = ~((uint64_t{2} << top) - 1);
    s.histogram[tid] = 0;
    __syncthreads();
    for (int i = tid; i < n; i += kThreads) {
      const uint64_t v = s.item[i];
      if ((v & mask) == prefix) atomicAdd(&s.histogram[(v >> shift) & 255], 1u);
    }
    __syncthreads();
    if (tid < 32) {  // lane l: the bins 255 - 8 l … 248 - 8 l
      unsigned own = 0, count[8];
#pragma unroll
      for (int j = 0; j < 8; j++) own += count[j] = s.histogram[255 - 8 * tid - j];
      unsigned above = own;
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        const unsigned v = __shfl_up_sync(0xffffffffu, above, o);
        if (tid >= o) above += v;
      }
      above -= own;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        if (above < need && need <= above + count[j]) {
          s.bin = static_cast<unsigned>(255 - 8 * tid - j);
          s.need = need - above;
          s.inside = count[j];
        }
        above += count[j];
      }
    }
    __syncthreads();
    mask = ~uint64_t{0} << shift;
    prefix = (prefix & ~(uint64_t{255} << shift)) | static_cast<uint64_t>(s.bin) << shift;
    open &= ~mask;
    need = s.need;
    if (s.inside == need || open == 0) break;
  }
  __syncthreads();
  if (tid == 0) s.count = 0;
  // Those to keep move to the front, 256 at a time: no further than what has been read.
#pragma unroll 1
  for (int i = tid; i - tid < n; i += kThreads) {
    const uint64_t v = i < n ? s.item[i] : 0;
    __syncthreads();
    append(s, i < n && v >= prefix, v, kBuffer);
  }
  __syncthreads();
  return prefix;
}

// The k-th largest of the threads' orders (k at most the number of threads): k elements at least are that large.
__device__ inline uint32_t bar_of(Selection& s, uint32_t order, int k) {
  uint32_t* all = s.histogram;
  all[threadIdx.x] = order;
  if (threadIdx.x == 0) s.bar = 0;
  __syncthreads();
  int reached = 0;  // by this thread's order
#pragma unroll 8
  for (int i = 0; i < kThreads; i += 4) {
    const uint4 other = *reinterpret_cast<const uint4*>(all + i);
    reached += (other.x >= order) + (other.y >= order) + (other.z >= order) + (other.w >= order);
  }
  const uint32_t best = __reduce_max_sync(0xffffffffu, reached >= k ? order : 0u);
  if ((threadIdx.x & 31) == 0) atomicMax(&s.bar, best);
  __syncthreads();
  return s.bar;
}

// Gathers candidates from [begin, walk.end) of a row, whose columns rise: the k best are among them.
template <class T, bool kWide>
__device__ inline void gather(Selection& s, const Walk<T, kWide>& walk, int64_t begin, int k) {
  constexpr int V = Pack<T>::n;
  const int64_t step = walk.step();
  uint32_t least = 0;  // order of candidates
  float bar;           // its value, or NaN, which no comparison passes over
  const auto raise = [&](uint32_t order) {
    least = order;
    bar = value_of(order);
  };
  raise(0);
  // Adds the thread's elements from the group of packs at `at` that are named by the bits of `mask`: V a pack.
  const auto add = [&](unsigned mask, int64_t at, unsigned limit) {
    bool over = false;
    while (__any_sync(0xffffffffu, mask != 0)) {
      uint64_t rank = 0;
      if (mask != 0) {
        const int bit = __ffs(static_cast<int>(mask)) - 1;
        const int64_t col = walk.column(at + bit / V * step, bit % V);
        if (col < walk.end) rank = rank_of(to_float(walk.row[col]), col);
        mask &= mask - 1;
      }
      over |= append(s, rank != 0 && order_in(rank) >= least, rank, limit);
    }
    return over;
  };
  for (int64_t at = begin; at < walk.end; at += kAhead * step) {
    Few<T, V> q[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) q[u] = walk.load(at + u * step);
    if (at == begin && k <= kThreads) {
      uint32_t order = 0;
#pragma unroll
      for (int u = 0; u < kAhead; u++)
#pragma unroll
        for (int j = 0; j < V; j++)
          if (walk.column(at + u * step, j) < walk.end) order = max(order, order_of(q[u].get(j)));
      raise(bar_of(s, order, k));
    }
    unsigned mask = 0;
#pragma unroll
    for (int u = 0; u < kAhead; u++)
#pragma unroll
      for (int j = 0; j < V; j++) mask |= !(q[u].get(j) < bar) ? 1u << (u * V + j) : 0u;
    if (!__syncthreads_or(mask != 0)) continue;
    const unsigned before = s.count;
    __syncthreads();  // nobody adds before all have read
    const bool over = __syncthreads_or(add(mask, at, kBuffer));
    if (over) {
      if (threadIdx.x == 0) s.count = before;
      __syncthreads();
    }
    // Too many at once: from the start again, pack by pack.
#pragma unroll 1
    for (int round = over ? -1 : kAhead; round <= kAhead; round++) {
      bool select;
      if (round < 0) select = static_cast<int>(before) > k;
      else if (round < kAhead) select = __syncthreads_or(add(mask & ((1u << V) - 1u) << (round * V), at, kBuffer - kTile));
      else select = s.count >= static_cast<unsigned>(2 * k + 64);
      // An element as large as the k-th best comes too late: its column is higher.
      if (select) raise(order_in(keep_best(s, k)) + 1);
    }
  }
}

// The same from a list of ranks in any order.
__device__ inline void gather_ranks(Selection& s, const uint64_t* list, int n, int k) {
  constexpr int kEach = kTile / kThreads;
  uint64_t floor = 1;
  for (int at = 0; at < n; at += kTile) {
    uint64_t v[kEach];
#pragma unroll
    for (int j = 0; j < kEach; j++) {
      const int i = at + j * kThreads + static_cast<int>(threadIdx.x);
      v[j] = i < n ? __ldcg(list + i) : 0;
    }
    if (at == 0 && k <= kThreads) {
      uint32_t order = 0;
#pragma unroll
      for (int j = 0; j < kEach; j++) order = max(order, order_in(v[j]));
      floor = max(static_cast<uint64_t>(bar_of(s, order, k)) << 32, floor);
    }
    bool full = false;
#pragma unroll
    for (int j = 0; j < kEach; j++) full |= append(s, v[j] >= floor, v[j], kBuffer - kTile);
    if (__syncthreads_or(full)) floor = keep_best(s, k);
  }
}

// Blocks of a shared row put their candidates into its list of splits * slots ranks.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, 4)
    topk_kernel(const T* x, int64_t cols, int k, int splits, int64_t chunk, int slots, uint64_t* lists, float* values, int32_t* indices) {
  __shared__ alignas(16) Selection s;
  __shared__ unsigned place;
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x / splits, begin = blockIdx.x % splits * chunk;
  const Walk<T, kWide> walk{x + row * cols, min(cols, begin + chunk), tid, kThreads};
  if (tid == 0) s.count = 0;
  __syncthreads();
  gather(s, walk, begin, k);
  if (splits > 1) {
    if (static_cast<int>(s.count) > slots) keep_best(s, k);
    uint64_t* list = lists + row * splits * slots;
    if (tid == 0) place = atomicAdd(handed_on + row, s.count);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < s.count; i += kThreads) list[place + i] = s.item[i];
    if (!last_of(arrived + row, splits)) return;
    if (tid == 0) {
      place = atomicExch(handed_on + row, 0u);
      s.count = 0;
    }
    __syncthreads();
    gather_ranks(s, list, static_cast<int>(place), k);
  }
  if (static_cast<int>(s.count) > k && s.count > kThreads) keep_best(s, k);
  const int n = static_cast<int>(s.count);
  sort_items(s.item, n);
  for (int i = tid; i < k; i += kThreads) {
    const bool found = i < n;
    const uint32_t col = found ? column_of(s.item[i]) : 0;
    values[row * k + i] = found ? to_float(walk.row[col]) : -INFINITY;
    indices[row * k + i] = found ? static_cast<int32_t>(col) : -1;
  }
}

// ---- short rows, small k: a warp each that takes the largest k times ---------------------------------------------------------

constexpr int kShort = 256, kShortK = 32, kRowsPerBlock = 4;

template <class T>
__global__ void __launch_bounds__(kRowsPerBlock * 32) topk_warp(const T* x, int64_t rows, int cols, int k, float* values, int32_t* indices) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const T* from = x + row * cols;
  uint32_t left[kShort / 32];  // 1 + order, 0 = none or taken
#pragma unroll
  for (int j = 0; j < kShort / 32; j++) left[j] = lane + 32 * j < cols ? order_of(to_float(from[lane + 32 * j])) + 1 : 0;
  int mine = -1;  // column of the lane's result
  for (int i = 0; i < k; i++) {
    uint32_t best = left[0];
#pragma unroll
    for (int j = 1; j < kShort / 32; j++) best = max(best, left[j]);
    best = __reduce_max_sync(0xffffffffu, best);
    if (best == 0) break;
    unsigned col = 0xffffffffu;
#pragma unroll
    for (int j = kShort / 32 - 1; j >= 0; j--)
      if (left[j] == best) col = static_cast<unsigned>(lane + 32 * j);
    col = __reduce_min_sync(0xffffffffu, col);
#pragma unroll
    for (int j = 0; j < kShort / 32; j++)
      if (static_cast<unsigned>(lane + 32 * j) == col) left[j] = 0;
    if (lane == i) mine = static_cast<int>(col);
  }
  if (lane >= k) return;
  values[row * k + lane] = mine < 0 ? -INFINITY : to_float(from[mine]);
  indices[row * k + lane] = mine;
}

template <class T, bool kWide>
const char* launch(Context& ctx, const T* x, int64_t rows, int64_t cols, int k, float* values, int32_t* indices) {
  const Split split = split_rows(ctx, rows, cols, std::max(4096, 4 * k), kThreads * Pack<T>::n, 4);
  const int slots = std::max(k, 128);
  uint64_t* lists = split.splits == 1 ? nullptr : ctx.scratch_of<uint64_t>(static_cast<size_t>(rows * split.splits * slots));
  topk_kernel<T, kWide><<<static_cast<unsigned>(rows * split.splits), kThreads, 0, ctx.stream>>>(x, cols, k, split.splits, split.chunk, slots, lists,
                                                                                                  values, indices);
  return launched();
}

}  // namespace

const char* topk(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  const int64_t rows = x.shape[0], cols = x.shape[1];
  const int wanted = static_cast<int>(k.attr[0]);
  float* values = data_of<float>(k.out[0]);
  int32_t* indices = data_of<int32_t>(k.out[1]);
  if (rows == 0) return nullptr;
  return dispatch(x.dtype, [&](auto t) -> const char* {
    using T = decltype(t);
    const T* p = data_of<const T>(x);
    if (cols <= kShort && wanted <= kShortK) {
      topk_warp<<<static_cast<unsigned>(ceil_div(rows, kRowsPerBlock)), kRowsPerBlock * 32, 0, ctx.stream>>>(p, rows, static_cast<int>(cols), wanted,
                                                                                                           values, indices);
      return launched();
    }
    return aligned16(p) && cols % Pack<T>::n == 0 ? launch<T, true>(ctx, p, rows, cols, wanted, values, indices)
                                                  : launch<T, false>(ctx, p, rows, cols, wanted, values, indices);
  });
}

}  // namespace llm::cuda
