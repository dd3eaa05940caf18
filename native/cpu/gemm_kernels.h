// The table that each instruction set fills in for gemm.cpp and qgemm.cpp. Plain pointers and numbers only: this header is
// seen by translation units built for newer machines, so nothing here may produce code.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace llm::cpu {

/// Panels: `pack` gathers up to mr rows of op(A), or nr columns of op(B), as dst[k][width]; `micro` multiplies one panel of
/// each into an accumulator tile [rows][nr]. The "pair" forms hold two consecutive bf16 values of k in each 32-bit element.
struct GemmKernels {
  int mr;      // most rows of A a micro-kernel takes (1..mr all exist)
  int nr;      // columns of a full B panel; a panel of at most nr/2 columns is nr/2 wide
  int lanes;   // floats in a vector

  /// Gathers a panel as f32. src points at its element (0, 0). k_contiguous: element (r, k) is at r*ld + k, else at k*ld + r.
  /// Writes dst[k*width + r] for r < width; lanes between count and width get unspecified finite-or-not padding.
  void (*pack)(Dt type, bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst);
  /// acc[r*nr + c] (+)= sum_k a[k*rows + r] * b[k*width + c]; width = nr, or nr/2 when half. start: acc is not read.
  void (*micro)(int rows, bool half, int64_t kc, const float* a, const float* b, float* acc, bool start);

  /// The same over bf16 pairs; null where there is no such instruction. kc counts single elements; an odd end is padded with 0.
  void (*pack_pair)(bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst);
  void (*micro_pair)(int rows, bool half, int64_t pairs, const float* a, const float* b, float* acc, bool start);

  /// c[r*ldc + j] = alpha*acc[r*ld_acc + j] + bias[j] + beta*c, for rows x cols; bias may be null.
  void (*epilogue)(int rows, int cols, const float* acc, int64_t ld_acc, void* c, int64_t ldc, Dt type, float alpha, float beta,
                   const float* bias);

  /// Widens n elements to f32.
  void (*widen)(Dt type, const void* src, int64_t n, float* dst);

  /// out[i*ld_out + j] = sum_k x[i*ldx + k] * b[j*ldb + k], i < rows, j < cols. x is f32, zero-padded to whole vectors;
  /// acc is scratch of rows*cols*lanes floats.
  void (*dot)(Dt type, int rows, int cols, int64_t k, const float* x, int64_t ldx, const void* b, int64_t ldb, float* acc, float* out,
              int64_t ld_out);
  /// out[i*ld_out + j] = sum_k x[i*ldx + k] * b[k*ldb + j]; out is overwritten; columns stay in L1 (cols <= 1024).
  void (*axpy)(Dt type, int rows, int cols, int64_t k, const float* x, int64_t ldx, const void* b, int64_t ldb, float* out,
               int64_t ld_out);
};

void register_gemm_avx2(GemmKernels* table);
void register_gemm_avx512(GemmKernels* table);
void register_gemm_avx512bf16(GemmKernels* table);  // adds the pair forms to what register_gemm_avx512 set

/// The table of an instruction set; null for Isa::scalar.
const GemmKernels* gemm_kernels();

/// The reference: accumulates in double, any machine.
void gemm_reference(const GemmArgs& args);

}  // namespace llm::cpu
