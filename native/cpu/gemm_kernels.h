// The table that each instruction set fills in for gemm.cpp and qgemm.cpp. Plain pointers and numbers only: this header is
// seen by translation units built for newer machines, so nothing here may produce code.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace llm::cpu {

/// One way to multiply packed panels: a panel of A holds up to `mr` rows of op(A), one of B `nr` columns of op(B) (half as many when
/// that is enough), both for a block of k. Widths and depths in memory are rounded up to the steps; what is between is padding.
struct Panels {
  int mr = 0, nr = 0;
  int row_step = 1;    // rows of a panel of A in memory are a multiple of this
  int k_per_word = 1;  // values of k in a 32-bit word
  int word_step = 1;   // words along k are a multiple of this; padding there is zero
  int64_t depth = 0;   // most k of a block

  /// Gathers a panel. src points at its element (0, 0). k_contiguous: element (r, k) is at r*ld + k, else at k*ld + r.
  /// Lanes between count and width get unspecified finite-or-not padding.
  using Pack = void (*)(Dt type, bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst);
  Pack pack_a = nullptr, pack_b = nullptr;
  /// acc[r*nr + c] (+)= sum_k a[k][r] * b[k][c] for `rows` rows (rounded up to row_step) and nr columns, nr/2 when half.
  /// start: acc is not read.
  void (*micro)(int rows, bool half, int64_t words, const float* a, const float* b, float* acc, bool start) = nullptr;
  /// Around every group of calls of micro on a thread; null where there is nothing to do.
  void (*begin)() = nullptr, (*end)() = nullptr;
};

struct GemmKernels {
  int lanes;        // floats in a vector
  Panels f32;       // any types, widened to f32
  Panels bf16_dot;  // bf16 x bf16 by the vector dot instruction; micro is null where there is none
  Panels bf16_tile; // bf16 x bf16 by the tile unit; micro is null where there is none

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
void register_gemm_avx512bf16(GemmKernels* table);  // adds bf16_dot to what register_gemm_avx512 set
void register_gemm_amx(GemmKernels* table);         // adds bf16_tile

/// The table of an instruction set; null for Isa::scalar.
const GemmKernels* gemm_kernels();

/// The reference: accumulates in double, any machine.
void gemm_reference(const GemmArgs& args);

}  // namespace llm::cpu
