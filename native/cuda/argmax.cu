// argmax of rows: a warp for a short row, a block for a longer one, several blocks for each of a few long rows (the last one to finish
// compares their results). One launch.
#include <algorithm>

#include "cuda/rank.cuh"
#include "cuda/reduce.h"

namespace llm::cuda {
namespace {

__device__ unsigned arrived[kMostGroups];

// Elements from `begin` on that the walk's thread visits, kAhead packs at a time. Without numbers, or with -inf alone: column 0.
template <int kAhead, class T, bool kWide>
__device__ inline uint64_t thread_best(const Walk<T, kWide>& walk, int64_t begin) {
  constexpr int V = Pack<T>::n;
  float best = -INFINITY;
  int64_t col = 0;
  for (int64_t at = begin; at < walk.end; at += kAhead * walk.step()) {
    Few<T, V> q[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) q[u] = walk.load(at + u * walk.step());
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      float top = q[u].get(0);
#pragma unroll
      for (int j = 1; j < V; j++) top = fmaxf(top, q[u].get(j));
      if (!(top > best)) continue;
      best = top;
#pragma unroll
      for (int j = V - 1; j >= 0; j--)
        if (q[u].get(j) == top) col = walk.column(at + u * walk.step(), j);
    }
  }
  return rank_of(best, col);
}

__device__ inline uint64_t warp_best(uint64_t best) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(best), o);
    best = other > best ? other : best;
  }
  return best;
}
// The first warp gets the result.
__device__ inline uint64_t block_best(uint64_t best, uint64_t* shared) {
  const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  best = warp_best(best);
  __syncthreads();
  if (lane == 0) shared[threadIdx.x >> 5] = best;
  __syncthreads();
  return warp_best(lane < warps ? shared[lane] : 0);
}

template <class T, bool kWide>
__global__ void __launch_bounds__(512, 2) argmax_block(const T* x, int64_t cols, int splits, int64_t chunk, uint64_t* parts, int32_t* y) {
  __shared__ uint64_t shared[32];
  const int64_t row = blockIdx.x / splits, begin = blockIdx.x % splits * chunk;
  const Walk<T, kWide> walk{x + row * cols, min(cols, begin + chunk), static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  uint64_t best = block_best(thread_best<kWide ? 4 : 2>(walk, begin), shared);
  if (splits > 1) {
    if (threadIdx.x == 0) parts[blockIdx.x] = best;
    if (!last_of(arrived + row, splits)) return;
    best = 0;
    for (int i = threadIdx.x; i < splits; i += blockDim.x) {
      const uint64_t other = __ldcg(parts + row * splits + i);
      best = other > best ? other : best;
    }
    best = block_best(best, shared);
  }
  if (threadIdx.x == 0) y[row] = static_cast<int32_t>(column_of(best));
}

constexpr int kShort = 1024, kRowsPerBlock = 4;

template <class T, bool kWide, int kAhead>
__global__ void __launch_bounds__(kRowsPerBlock * 32) argmax_warp(const T* x, int64_t rows, int cols, int32_t* y) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  const Walk<T, kWide> walk{x + row * cols, cols, static_cast<int>(threadIdx.x & 31), 32};
  const uint64_t best = warp_best(thread_best<kAhead>(walk, 0));
  if ((threadIdx.x & 31) == 0) y[row] = static_cast<int32_t>(column_of(best));
}

template <class T, bool kWide>
const char* launch(Context& ctx, const T* x, int64_t rows, int64_t cols, int32_t* y) {
  if (cols <= kShort) {
    const auto blocks = static_cast<unsigned>(ceil_div(rows, kRowsPerBlock));
    if (cols <= 32 * Pack<T>::n) argmax_warp<T, kWide, 1><<<blocks, kRowsPerBlock * 32, 0, ctx.stream>>>(x, rows, static_cast<int>(cols), y);
    else argmax_warp<T, kWide, 4><<<blocks, kRowsPerBlock * 32, 0, ctx.stream>>>(x, rows, static_cast<int>(cols), y);
    return launched();
  }
  const Split split = split_rows(ctx, rows, cols, 4096, 128 * 8, 4);
  const int64_t bytes = split.chunk * static_cast<int64_t>(sizeof(T));  // 64 a thread and round
  const int threads = bytes <= 8192 ? 128 : bytes <= 32768 || split.splits > 1 ? 256 : 512;
  uint64_t* parts = split.splits == 1 ? nullptr : ctx.scratch_of<uint64_t>(static_cast<size_t>(rows * split.splits));
  argmax_block<T, kWide><<<static_cast<unsigned>(rows * split.splits), static_cast<unsigned>(threads), 0, ctx.stream>>>(x, cols, split.splits,
                                                                                                                     split.chunk, parts, y);
  return launched();
}

}  // namespace

const char* argmax(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  const int64_t rows = x.shape[0], cols = x.shape[1];
  int32_t* y = data_of<int32_t>(k.out[0]);
  if (rows == 0) return nullptr;
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* p = data_of<const T>(x);
    return aligned16(p) && cols % Pack<T>::n == 0 ? launch<T, true>(ctx, p, rows, cols, y) : launch<T, false>(ctx, p, rows, cols, y);
  });
}

}  // namespace llm::cuda
