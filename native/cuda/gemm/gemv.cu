// Few rows of x against a weight [n, k] that is streamed once: the products of decoding. Chooses the kernel of gemv.cuh, or row.cuh, and its
// shape.
#include "cuda/gemm/gemv.cuh"
#include "cuda/gemm/paths.h"
#include "cuda/gemm/row.h"

namespace llm::cuda {
namespace {

constexpr int64_t kMostRows = 16, kMostDotRows = 4;

// All blocks of a small weight should run at once, since a second, half-empty wave costs as much as a full one. The numbers of rows and
// warps below are the fastest of those measured on an H200, in units of multiprocessors.

template <class W, class X, int tokens>
const char* dot(Context& ctx, GemvArgs p) {
  constexpr int per_load = 16 / sizeof(W);
  if (p.k <= 8 * per_load * 2) {  // a quarter of a warp covers the row of a LoRA factor
    p.split = 1;
    return launch_dot<W, X, tokens, 2, 8, 1>(ctx, p);
  }
  p.split = p.n <= ctx.sms * 16 ? 8 : p.n <= ctx.sms * 96 ? 4 : tokens == 1 ? 8 : 2;
  while (p.split > 1 && (p.split / 2) * 32 * per_load >= p.k) p.split /= 2;
  if constexpr (tokens == 1)
    return launch_dot<W, X, 1, 4, 32, 1>(ctx, p);
  else
    return launch_dot<W, X, tokens, 2, 32, 2>(ctx, p);
}

template <class W>
const char* dot_floats(Context& ctx, GemvArgs p, bool aligned) {
  if (!aligned) {
    p.split = p.n <= ctx.sms * 32 ? 8 : 2;
    return launch_dot<W, float, kMostDotRows, 2, 32, 4, 1>(ctx, p);
  }
  return p.m == 1 ? dot<W, float, 1>(ctx, p) : dot<W, float, kMostDotRows>(ctx, p);
}

template <class T, int halves>
const char* mma_rows(Context& ctx, const GemvArgs& p) {
  if (p.k <= 128) return launch_mma_rows<T, halves, 4, 1, 2>(ctx, p);
  if (p.n <= ctx.sms * 16) return launch_mma_rows<T, halves, 1, 4, 16>(ctx, p);
  if constexpr (halves == 1) {
    if (p.n <= ctx.sms * 32) return launch_mma_rows<T, 1, 1, 2, 16>(ctx, p);
    return launch_mma_rows<T, 1, 2, 1, 16>(ctx, p);
  } else {
    if (p.n <= ctx.sms * 32) return launch_mma_rows<T, 2, 2, 1, 16>(ctx, p);
    if (p.n <= ctx.sms * 64) return launch_mma_rows<T, 2, 2, 2, 8>(ctx, p);
    return launch_mma_rows<T, 2, 4, 2, 8>(ctx, p);
  }
}

template <class T>
const char* one_dtype(Context& ctx, const GemvArgs& p) {
  if (p.m == 1) return dot<T, T, 1>(ctx, p);
  return p.m <= 8 ? mma_rows<T, 1>(ctx, p) : mma_rows<T, 2>(ctx, p);
}

// Rows of the weight in whole 16-byte pieces.
bool in_pieces(const Gemm& g) { return g.k * dtype_bytes(g.dtype_b) % 16 == 0 && rows_aligned16(g.b, g.ldb, g.dtype_b); }
// x can be used as it is: 16 bits like the weight. Else it becomes f32.
bool in_one_dtype(const Gemm& g) { return g.dtype_a == g.dtype_b && g.dtype_b != DType::f32 && in_pieces(g) && rows_aligned16(g.a, g.lda, g.dtype_a); }

}  // namespace

bool can_gemv(const Gemm& g) {
  if (g.trans_a || !g.trans_b || g.k >= INT32_MAX / 4) return false;
  return g.m <= kMostDotRows || (g.m <= kMostRows && in_one_dtype(g));
}

const char* gemv(Context& ctx, const Gemm& g) {
  GemvArgs p{g.b, g.a, g.ldb, g.lda, g.n, static_cast<int>(g.k), static_cast<int>(g.m), 1, epilogue_of(g)};
  if (g.m == 1 && in_one_dtype(g)) {
    RowProduct row{};
    row.w = g.b;
    row.x = g.a;
    row.ldw = g.ldb;
    row.n = static_cast<int>(g.n);
    row.k = static_cast<int>(g.k);
    row.e = p.e;
    if (g.n <= INT32_MAX && can_row_product(ctx, g.dtype_b, row)) return row_product(ctx, g.dtype_b, row);
  }
  if (in_one_dtype(g)) return g.dtype_b == DType::bf16 ? one_dtype<bf16>(ctx, p) : one_dtype<f16>(ctx, p);
  if (g.dtype_a != DType::f32 || !rows_aligned16(g.a, g.lda, DType::f32)) {  // x is small
    p.ldx = ceil_div(g.k, 4) * 4;
    float* x = ctx.scratch_of<float>(static_cast<size_t>(g.m * p.ldx));
    if (const char* error = convert(ctx, g.a, g.dtype_a, g.lda, x, DType::f32, p.ldx, g.m, g.k)) return error;
    p.x = x;
  }
  return dispatch(g.dtype_b, [&](auto t) { return dot_floats<decltype(t)>(ctx, p, in_pieces(g)); });
}

}  // namespace llm::cuda
