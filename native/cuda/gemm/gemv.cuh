// Kernels that stream a weight w [n, k] once for a few rows of x [m, k]: y = x w^T. Used by gemv.cu, which chooses among them.
//
// The time is that of reading w, so all that matters is to have enough of it on the way: each lane starts several 16-byte loads before
// it uses the first. x is small, is read again and again, and stays in the L1 cache, past which w is streamed.
//
// dot_kernel, any dtypes: `lanes` lanes run along `rows` rows of w at once and multiply in f32; `split` warps share the k of a row in turns.
// mma_rows_kernel, 16-bit operands of one dtype: 16 rows of x (zeros past the last) times 8 rows of w on tensor cores. A product does not care in which order k runs,
// as long as it is the same for both operands: every lane loads 8 neighbours of k, which two mma take as their own.
// Both end with sums over lanes and warps in a fixed order.
#pragma once
#include "cuda/gemm/epilogue.cuh"
#include "cuda/ptx.cuh"

namespace llm::cuda {

struct GemvArgs {
  const void *w, *x;
  int64_t ldw, ldx, n;
  int k, m;   // m rows of x, at most the kernel's
  int split;  // warps that share a row (dot_kernel)
  Epilogue e;
};

constexpr int kGemvWarps = 8, kGemvThreads = 32 * kGemvWarps;

// What a lane loads of w at once: 16 bytes, or one element where rows of w do not start on 16-byte borders.
template <class W, int n>
struct Load {
  static_assert(n * sizeof(W) == 16);
  uint4 v;
  __device__ void zero() { v = {0, 0, 0, 0}; }
  __device__ void from(const W* w) { v = ptx::stream16(w); }
  __device__ void widen(float (&to)[n]) const {
    const W* w = reinterpret_cast<const W*>(&v);
#pragma unroll
    for (int i = 0; i < n; i++) to[i] = to_float(w[i]);
  }
};
template <class W>
struct Load<W, 1> {
  float v;
  __device__ void zero() { v = 0; }
  __device__ void from(const W* w) { v = to_float(*w); }
  __device__ void widen(float (&to)[1]) const { to[0] = v; }
};

// n elements of x.
template <class X, int n>
__device__ inline void load_floats(const X* x, float (&to)[n]) {
  constexpr int per = n == 1 ? 1 : 16 / sizeof(X);
#pragma unroll
  for (int i = 0; i < n / per; i++) {
    Load<X, per> load;
    if constexpr (n == 1)
      load.from(x);
    else
      load.v = reinterpret_cast<const uint4*>(x)[i];
    float part[per];
    load.widen(part);
#pragma unroll
    for (int j = 0; j < per; j++) to[i * per + j] = part[j];
  }
}

template <class W, class X, int tokens, int rows, int lanes, int ahead, int per_load>
__global__ __launch_bounds__(kGemvThreads) void dot_kernel(const GemvArgs p) {
  follow();
  constexpr int rows_of_warp = 32 / lanes * rows;
  __shared__ float part[kGemvWarps][rows_of_warp][tokens];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, slice = warp % p.split;
  const int rows_of_block = kGemvWarps / p.split * rows_of_warp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows_of_block, mine = first + warp / p.split * rows_of_warp + lane / lanes * rows;

  const W* w[rows];
  const X* x[tokens];
#pragma unroll
  for (int r = 0; r < rows; r++) w[r] = static_cast<const W*>(p.w) + min(mine + r, p.n - 1) * p.ldw;
#pragma unroll
  for (int t = 0; t < tokens; t++) x[t] = static_cast<const X*>(p.x) + min(t, p.m - 1) * p.ldx;

  float sum[rows][tokens] = {};
  const int step = p.split * lanes * per_load;
  for (int k = (slice * lanes + lane % lanes) * per_load; k < p.k; k += step * ahead) {
    Load<W, per_load> v[ahead][rows];
#pragma unroll
    for (int a = 0; a < ahead; a++)
#pragma unroll
      for (int r = 0; r < rows; r++)
        if (k + a * step < p.k)
          v[a][r].from(w[r] + k + a * step);
        else
          v[a][r].zero();
#pragma unroll
    for (int a = 0; a < ahead; a++) {
      if (k + a * step >= p.k) break;
      float fw[rows][per_load];
#pragma unroll
      for (int r = 0; r < rows; r++) v[a][r].widen(fw[r]);
#pragma unroll
      for (int t = 0; t < tokens; t++) {
        float fx[per_load];
        load_floats(x[t] + k + a * step, fx);
#pragma unroll
        for (int r = 0; r < rows; r++)
#pragma unroll
          for (int i = 0; i < per_load; i++) sum[r][t] = fmaf(fw[r][i], fx[i], sum[r][t]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < rows; r++)
#pragma unroll
    for (int t = 0; t < tokens; t++) {
#pragma unroll
      for (int o = lanes / 2; o > 0; o >>= 1) sum[r][t] += __shfl_xor_sync(0xffffffffu, sum[r][t], o);
      if (lane % lanes == 0) part[warp][lane / lanes * rows + r][t] = sum[r][t];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < rows_of_block * p.m; i += kGemvThreads) {
    const int row = i % rows_of_block, token = i / rows_of_block, from = row / rows_of_warp * p.split;
    if (first + row >= p.n) continue;
    float total = 0;
    for (int s = 0; s < p.split; s++) total += part[from + s][row % rows_of_warp][token];
    with_result(p.e, [&](auto t) { finish_one<decltype(t)>(p.e, token, first + row, total); });
  }
}

// halves: 1 for up to 8 rows of x, 2 for up to 16; tiles: groups of 8 rows of w. All warps of a block share its rows.
template <class T, int halves, int tiles, int ahead, int warps>
__global__ __launch_bounds__(32 * warps) void mma_rows_kernel(const GemvArgs p) {
  follow();
  constexpr int rows = tiles * 8, tokens = halves * 8;
  __shared__ float part[warps][tokens][rows + 4];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows;

  const T* w[tiles];   // row g of each group
  const T* x[halves];  // row g of each half; null past the last
#pragma unroll
  for (int i = 0; i < tiles; i++) w[i] = static_cast<const T*>(p.w) + min(first + i * 8 + g, p.n - 1) * p.ldw;
#pragma unroll
  for (int i = 0; i < halves; i++) x[i] = i * 8 + g < p.m ? static_cast<const T*>(p.x) + (i * 8 + g) * p.ldx : nullptr;

  constexpr uint4 zeros{0, 0, 0, 0};
  float sum[tiles][4] = {};
  constexpr int step = warps * 32;
  for (int k = warp * 32 + t * 8; k - t * 8 < p.k; k += step * ahead) {
    uint4 vw[ahead][tiles];
#pragma unroll
    for (int a = 0; a < ahead; a++)
#pragma unroll
      for (int i = 0; i < tiles; i++) vw[a][i] = k + a * step < p.k ? ptx::stream16(w[i] + k + a * step) : zeros;
#pragma unroll
    for (int a = 0; a < ahead; a++) {
      uint4 vx[2] = {zeros, zeros};
#pragma unroll
      for (int i = 0; i < halves; i++)
        if (x[i] && k + a * step < p.k) vx[i] = *reinterpret_cast<const uint4*>(x[i] + k + a * step);
      const uint32_t low[4] = {vx[0].x, vx[1].x, vx[0].y, vx[1].y}, high[4] = {vx[0].z, vx[1].z, vx[0].w, vx[1].w};
#pragma unroll
      for (int i = 0; i < tiles; i++) {
        ptx::mma16816<T>(sum[i], low, vw[a][i].x, vw[a][i].y);
        ptx::mma16816<T>(sum[i], high, vw[a][i].z, vw[a][i].w);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < tiles; i++)
#pragma unroll
    for (int v = 0; v < halves * 2; v++) part[warp][g + (v >> 1) * 8][i * 8 + t * 2 + (v & 1)] = sum[i][v];
  __syncthreads();
  for (int i = threadIdx.x; i < rows * p.m; i += 32 * warps) {
    const int row = i % rows, token = i / rows;
    if (first + row >= p.n) continue;
    float total = 0;
#pragma unroll
    for (int s = 0; s < warps; s++) total += part[s][token][row];
    with_result(p.e, [&](auto c) { finish_one<decltype(c)>(p.e, token, first + row, total); });
  }
}

template <class W, class X, int tokens, int rows, int lanes, int ahead, int per_load = 16 / sizeof(W)>
const char* launch_dot(Context& ctx, const GemvArgs& p) {
  const int rows_of_block = kGemvWarps / p.split * (32 / lanes) * rows;
  launch(ctx, dot_kernel<W, X, tokens, rows, lanes, ahead, per_load>, static_cast<unsigned>(ceil_div(p.n, rows_of_block)), kGemvThreads, 0, p);
  return launched();
}

template <class T, int halves, int tiles, int ahead, int warps>
const char* launch_mma_rows(Context& ctx, const GemvArgs& p) {
  launch(ctx, mma_rows_kernel<T, halves, tiles, ahead, warps>, static_cast<unsigned>(ceil_div(p.n, tiles * 8)), 32 * warps, 0, p);
  return launched();
}

}  // namespace llm::cuda
