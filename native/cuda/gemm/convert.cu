// Helpers around a product: operands in another dtype (mixed products run in f32, which holds every 16-bit value), padded rows for kernels
// that want 16-byte borders, and results that the library cannot write itself.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/paths.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kPerThread = 4, kPerBlock = kThreads * kPerThread;

// x = piece of a row, y strides over rows.
dim3 grid_of(const Context& ctx, int64_t rows, int64_t cols) {
  const int64_t pieces = ceil_div(cols, kPerBlock), most = ctx.sms * 16;
  int64_t y = ceil_div(most, pieces);
  if (y > rows) y = rows;
  if (y > 65535) y = 65535;
  return dim3(static_cast<unsigned>(pieces), static_cast<unsigned>(y < 1 ? 1 : y));
}

template <class S, class D>
__global__ void convert_kernel(const S* src, int64_t ld_src, D* dst, int64_t ld_dst, int64_t rows, int64_t cols) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
#pragma unroll
    for (int i = 0; i < kPerThread; i++) {
      const int64_t c = first + i * kThreads;
      if (c < ld_dst) dst[r * ld_dst + c] = from_float<D>(c < cols ? to_float(src[r * ld_src + c]) : 0.f);
    }
  }
}

template <class C>
__global__ void finish_kernel(Epilogue e, const float* sums, int64_t rows, int64_t cols) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
#pragma unroll
    for (int i = 0; i < kPerThread; i++) {
      const int64_t c = first + i * kThreads;
      if (c < cols) finish_one<C>(e, r, c, sums ? sums[r * cols + c] : 0.f);
    }
  }
}

}  // namespace

const char* convert(Context& ctx, const void* src, DType from, int64_t ld_src, void* dst, DType to, int64_t ld_dst, int64_t rows, int64_t cols) {
  if (rows == 0 || cols == 0) return nullptr;
  return dispatch(from, [&](auto s) {
    return dispatch(to, [&](auto d) {
      using S = decltype(s);
      using D = decltype(d);
      convert_kernel<S, D><<<grid_of(ctx, rows, ld_dst), kThreads, 0, ctx.stream>>>(static_cast<const S*>(src), ld_src, static_cast<D*>(dst), ld_dst, rows, cols);
      return launched();
    });
  });
}

const char* finish(Context& ctx, const Gemm& g, const float* sums) {
  if (g.m == 0 || g.n == 0) return nullptr;
  return dispatch(g.dtype_c, [&](auto t) {
    using C = decltype(t);
    finish_kernel<C><<<grid_of(ctx, g.m, g.n), kThreads, 0, ctx.stream>>>(epilogue_of(g), sums, g.m, g.n);
    return launched();
  });
}

}  // namespace llm::cuda
