// y = x w^T and dx = dy w for a frozen weight of e4m3 codes with a scale a row; x and dy are encoded here, row by row.
//
// Hopper's tensor cores multiply codes themselves: cuBLASLt (12.9 and later) takes a scale for each row of both operands, both with k along
// the rows. For dx that takes a transposed copy of the weight's codes, made here: keeping it would cost the memory that the
// codes save. Where there is no such product, codes become 16-bit floats, which hold them exactly, and the scales follow in f32: the same
// numbers but for the order of sums.
#include "cuda/fp8/fp8.h"
#include "cuda/gemm/paths.h"
#include "cuda/movement.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

constexpr int64_t kMostSums = int64_t{32} << 20;  // f32 sums in scratch memory at a time

__global__ void ones_kernel(float* to, int64_t n) {
  follow();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) to[i] = 1.f;
}

__global__ void __launch_bounds__(kEachThreads) values_kernel(const uint8_t* q, bf16* to, int64_t n) {
  follow();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kEachThreads) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * kEachThreads)
    to[i] = from_float<bf16>(fp8_value(q[i]));
}

template <class T>
__global__ void __launch_bounds__(kEachThreads) scale_kernel(const float* sums, const float* rows, const float* columns, const T* bias, T* y, int64_t n, int64_t cols) {
  follow();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kEachThreads) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * kEachThreads) {
    const int64_t r = i / cols, c = i - r * cols;
    const float scaled = sums[i] * (rows[r] * columns[c]);
    y[i] = from_float<T>(bias ? scaled + to_float(bias[c]) : scaled);
  }
}

const char* values_of(Context& ctx, const uint8_t* q, int64_t n, const void** to) {
  bf16* values = ctx.scratch_of<bf16>(static_cast<size_t>(n));
  *to = values;
  if (n == 0) return nullptr;
  launch(ctx, values_kernel, static_cast<unsigned>(grid_for(ctx, n, kEachThreads)), kEachThreads, 0, q, values, n);
  return launched();
}

// The product of codes `g` in 16-bit floats, a piece of the rows at a time.
const char* by_values(Context& ctx, const Gemm& g) {
  Gemm plain = g;
  plain.bias = nullptr;
  plain.scale_a = plain.scale_b = nullptr;
  plain.dtype_a = plain.dtype_b = DType::bf16;
  plain.dtype_c = DType::f32;
  const void* a = nullptr;
  const char* error = values_of(ctx, static_cast<const uint8_t*>(g.a), g.m * g.k, &a);
  if (!error) error = values_of(ctx, static_cast<const uint8_t*>(g.b), g.n * g.k, &plain.b);
  const int64_t most = kMostSums / g.n < 1 ? 1 : kMostSums / g.n, rows = most < g.m ? most : g.m;
  float* sums = ctx.scratch_of<float>(static_cast<size_t>(rows * g.n));
  plain.c = sums;
  plain.workspace = ctx.scratch(gemm_workspace_bytes(ctx));
  plain.workspace_bytes = gemm_workspace_bytes(ctx);
  for (int64_t first = 0; first < g.m && !error; first += rows) {
    plain.m = rows < g.m - first ? rows : g.m - first;
    plain.a = static_cast<const bf16*>(a) + first * g.k;
    error = gemm(ctx, plain);
    if (error) break;
    error = dispatch(g.dtype_c, [&](auto t) {
      using T = decltype(t);
      launch(ctx, scale_kernel<T>, static_cast<unsigned>(grid_for(ctx, plain.m * g.n, kEachThreads)), kEachThreads, 0, sums, g.scale_a + first, g.scale_b,
             static_cast<const T*>(g.bias), static_cast<T*>(g.c) + first * g.n, plain.m * g.n, g.n);
      return launched();
    });
  }
  return error;
}

// y [m, n] = rows of x (times `factor`) encoded, times b [n, k] as codes with scales.
const char* product(Context& ctx, const View& x, const float* factor, const uint8_t* b, const float* scale_b, const View* bias, const View& y) {
  Gemm g;
  g.m = x.shape[0];
  g.k = x.shape[1];
  g.n = y.shape[1];
  if (g.m == 0 || g.n == 0) return nullptr;
  uint8_t* a = ctx.scratch_of<uint8_t>(static_cast<size_t>(g.m * g.k));
  float* scale_a = ctx.scratch_of<float>(static_cast<size_t>(g.m));
  if (const char* error = encode_fp8(ctx, x.data, x.dtype, x.stride[0], g.m, g.k, factor, a, scale_a)) return error;
  g.a = a;
  g.lda = g.k;
  g.b = b;
  g.ldb = g.k;
  g.trans_b = true;
  g.dtype_a = g.dtype_b = DType::u8;
  g.c = y.data;
  g.ldc = g.n;
  g.dtype_c = y.dtype;
  if (bias) {
    g.bias = bias->data;
    g.dtype_bias = bias->dtype;
  }
  g.scale_a = scale_a;
  g.scale_b = scale_b;
  const bool aligned = g.k % 16 == 0 && g.n % 16 == 0 && aligned16(b) && aligned16(y.data) && aligned16(g.bias) && aligned16(scale_b);
  const char* error = nullptr;
  if (ctx.arch >= 89 && aligned && y.dtype != DType::f32 && library_present() && library_gemm(ctx, g, &error)) return error;
  return by_values(ctx, g);
}

}  // namespace

const char* linear_fp8(Context& ctx, const KernelArgs& k) {
  return product(ctx, k.in[0], nullptr, data_of<uint8_t>(k.in[1]), data_of<float>(k.in[2]), k.n_in > 3 && present(k.in[3]) ? &k.in[3] : nullptr, k.out[0]);
}

const char* linear_fp8_bwd(Context& ctx, const KernelArgs& k) {
  const int64_t n = k.in[1].shape[0], cols = k.in[1].shape[1];
  if (k.in[0].shape[0] == 0 || cols == 0) return nullptr;
  Transposition t{};
  t.from = k.in[1].data;
  t.rows = n;
  t.cols = cols;
  t.from_row = cols;
  t.to_col = n;
  uint8_t* turned = ctx.scratch_of<uint8_t>(static_cast<size_t>(n * cols));
  float* ones = ctx.scratch_of<float>(static_cast<size_t>(cols));
  t.to = reinterpret_cast<char*>(turned);
  if (const char* error = transpose_tiles(ctx, t, 1)) return error;
  launch(ctx, ones_kernel, static_cast<unsigned>(grid_for(ctx, cols, 256)), 256, 0, ones, cols);
  return product(ctx, k.in[0], data_of<float>(k.in[2]), turned, ones, nullptr, k.out[0]);
}

}  // namespace llm::cuda
