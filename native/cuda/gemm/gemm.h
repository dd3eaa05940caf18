// Dense matrix products on the device, for the matmul ops and for every other kernel that needs one.
//
//     C = alpha * op(A) op(B) + beta * C + bias        op(X) = X or X^T
//
// Row-major matrices with leading dimensions; op(A) is [m, k], op(B) is [k, n], bias is [n] and added to every row. Sums are f32 whatever
// the dtypes; the result is rounded once. beta = 0 never reads C; C must not overlap A, B or the bias. Any of m, n, k may be 0.
//
// Who computes (dispatch.cu): few rows against a weight [n, k] = gemv.cu, which streams the weight; small k = update.cu, which streams C;
// the rest cuBLASLt (library.cu) with the fastest of its algorithms per shape, or mma.cu and simt.cu where the library is missing. Operands
// of different dtypes, and results that the library cannot write, pass through f32 scratch memory (convert.cu).
//
// The same arguments give the same bits: one algorithm a shape, no atomics.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t lda = 0;  // elements between rows as stored
  bool trans_a = false;
  DType dtype_a = DType::f32;
  const void* b = nullptr;
  int64_t ldb = 0;
  bool trans_b = false;
  DType dtype_b = DType::f32;
  void* c = nullptr;
  int64_t ldc = 0;
  DType dtype_c = DType::f32;
  const void* bias = nullptr;
  DType dtype_bias = DType::f32;
  float alpha = 1, beta = 0;
  // Operands of dtype u8 are e4m3 codes: f32 scales of the rows of op(A), [m], and of the columns of op(B), [n]. For library_gemm only.
  const float *scale_a = nullptr, *scale_b = nullptr;
  // 256-byte aligned memory that the library may use, for callers with many products in one command; without it each takes its own scratch.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

// The most that a product asks for.
inline size_t gemm_workspace_bytes(const Context& ctx) { return static_cast<size_t>(ctx.arch >= 90 ? 64 : 32) << 20; }

// Launches on ctx.stream; nullptr or why not. The first call with a large new shape outside of a capture times the library's algorithms.
const char* gemm(Context& ctx, const Gemm& g);

}  // namespace llm::cuda
