// Dense matrix multiplication on the CPU: C = alpha * op(A) * op(B) + beta * C + bias.
//
// Row-major matrices with leading dimensions; op(X) = X or X^T. A is [m,k] (stored [k,m] when trans_a), B is [k,n] (stored
// [n,k] when trans_b: the weight of a linear layer), C is [m,n], bias is [n] and added to every row.
//
// Numbers: products accumulate in f32 (in f64 with the scalar variant); alpha, bias and beta are applied to the finished sum,
// which is then rounded once to c_type (round to nearest even, NaN kept). beta == 0 never reads C. bf16 and f16 operands are
// widened exactly, except where the bf16 dot instruction or the tile unit is used (bf16 x bf16 on machines where it is fast): they
// add products in pairs and flush subnormals.
//
// Determinism: the order of every sum over k depends on (m, n, k), the operand types and the instruction set only: never on the
// number of threads, on pointers or on leading dimensions. Few rows (m <= 16 with trans_b, m <= 8 without) stream B, unpacked: a
// row of C does not depend on m there. Otherwise (n > 8 or trans_a) each element of C is one chain of fused multiply-adds in the
// order of k (of pairs of k with the bf16 dot instruction, of 32 k with the tile unit), so it depends on neither m nor n; from
// k = 32768 on there is one such chain for each slice of 8192 k, and the slices are added in order.
#pragma once

#include <cstdint>

namespace llm::cpu {

enum class Dt : uint8_t { f32, f16, bf16 };

struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;  // any may be 0; k == 0 gives beta * C + bias
  const void* a = nullptr;
  int64_t lda = 0;  // elements between rows as stored
  bool trans_a = false;
  const void* b = nullptr;
  int64_t ldb = 0;
  bool trans_b = false;
  void* c = nullptr;
  int64_t ldc = 0;
  Dt a_type = Dt::f32, b_type = Dt::f32, c_type = Dt::f32;
  float alpha = 1, beta = 0;
  const void* bias = nullptr;  // n elements of bias_type, or null
  Dt bias_type = Dt::f32;
};

/// Runs on the pool of core/threadpool.h with the kernels of active_isa(). C must not overlap A, B or bias.
/// @throws std::bad_alloc when the packing buffers (at most about 64 MiB + 2 MiB a thread) cannot be had.
void gemm(const GemmArgs& args);

}  // namespace llm::cpu
