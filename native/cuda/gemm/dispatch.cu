// Chooses who computes a product, and brings the operands into a form that the chosen kernel takes.
#include <cstdlib>

#include "cuda/gemm/paths.h"

namespace llm::cuda {
namespace {

// op(x) in f32 or with padded rows, dense in scratch memory.
const char* copy_operand(Context& ctx, const void** x, int64_t* ld, DType* dtype, DType to, int64_t rows, int64_t cols) {
  const int64_t width = 16 / static_cast<int64_t>(dtype_bytes(to)), padded = ceil_div(cols, width) * width;
  void* copy = ctx.scratch(static_cast<size_t>(rows * padded) * dtype_bytes(to));
  const char* error = convert(ctx, *x, *dtype, *ld, copy, to, padded, rows, cols);
  *x = copy;
  *ld = padded;
  *dtype = to;
  return error;
}
const char* copy_a(Context& ctx, Gemm& g, DType to) { return copy_operand(ctx, &g.a, &g.lda, &g.dtype_a, to, rows_a(g), cols_a(g)); }
const char* copy_b(Context& ctx, Gemm& g, DType to) { return copy_operand(ctx, &g.b, &g.ldb, &g.dtype_b, to, rows_b(g), cols_b(g)); }

// The library writes the operands' dtype or f32, with a bias of the result's dtype. Its kernels for odd addresses round a 16-bit result
// before they add the bias, so those are not asked to.
bool library_writes(const Gemm& g) {
  if (g.dtype_c == DType::f32) return true;
  if (g.dtype_c != g.dtype_a) return false;
  if (!g.bias) return true;
  return g.dtype_bias == g.dtype_c && rows_aligned16(g.a, g.lda, g.dtype_a) && rows_aligned16(g.b, g.ldb, g.dtype_b) && rows_aligned16(g.c, g.ldc, g.dtype_c);
}

bool through_library(Context& ctx, Gemm g, const char** error) {
  *error = nullptr;
  if (!library_present()) return false;
  // Rows that repeat or overlap (an expanded view) are legal here, not there.
  if (g.lda < cols_a(g)) *error = copy_a(ctx, g, g.dtype_a);
  if (!*error && g.ldb < cols_b(g)) *error = copy_b(ctx, g, g.dtype_b);
  if (*error) return true;
  if (library_writes(g)) {
    if (g.bias && (g.dtype_bias != g.dtype_c || !aligned16(g.bias))) {
      void* bias = ctx.scratch(static_cast<size_t>(g.n) * dtype_bytes(g.dtype_c));
      *error = convert(ctx, g.bias, g.dtype_bias, g.n, bias, g.dtype_c, g.n, 1, g.n);
      if (*error) return true;
      g.bias = bias;
      g.dtype_bias = g.dtype_c;
    }
    return library_gemm(ctx, g, error);
  }
  float* sums = ctx.scratch_of<float>(static_cast<size_t>(g.m * g.n));
  Gemm plain = g;
  plain.c = sums;
  plain.ldc = g.n;
  plain.dtype_c = DType::f32;
  plain.bias = nullptr;
  plain.alpha = 1;
  plain.beta = 0;
  if (!library_gemm(ctx, plain, error)) return false;
  if (!*error) *error = finish(ctx, g, sums);
  return true;
}

// Nine to sixteen rows are many enough for the library to be as fast, and it splits k where the weight has few rows.
bool better_by_library(const Gemm& g) { return g.m > 8 && g.n * g.k > (8 << 20) && library_present(); }

}  // namespace

const char* gemm(Context& ctx, const Gemm& given) {
  if (given.m == 0 || given.n == 0) return nullptr;
  if (given.k == 0) return finish(ctx, given, nullptr);
  Gemm g = given;
  // The distance of a single row means nothing and may be anything.
  if (rows_a(g) == 1) g.lda = cols_a(g);
  if (rows_b(g) == 1) g.ldb = cols_b(g);
  if (g.m == 1) g.ldc = g.n;
  if (can_gemv(g) && !better_by_library(g)) return gemv(ctx, g);
  if (can_update(g)) return update_gemm(ctx, g);

  if (g.dtype_a != g.dtype_b) {
    if (g.dtype_a != DType::f32)
      if (const char* error = copy_a(ctx, g, DType::f32)) return error;
    if (g.dtype_b != DType::f32)
      if (const char* error = copy_b(ctx, g, DType::f32)) return error;
  }
  const char* error;
  if (through_library(ctx, g, &error)) return error;
  if (g.dtype_a == DType::f32) return simt_gemm(ctx, g);
  if (!rows_aligned16(g.a, g.lda, g.dtype_a))
    if ((error = copy_a(ctx, g, g.dtype_a))) return error;
  if (!rows_aligned16(g.b, g.ldb, g.dtype_b))
    if ((error = copy_b(ctx, g, g.dtype_b))) return error;
  return mma_gemm(ctx, g);
}

}  // namespace llm::cuda
