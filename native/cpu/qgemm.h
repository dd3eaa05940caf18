// Weight-only quantized matrix multiplication on the CPU: y = x * W^T + bias with W [n,k] in 4 or 8 bits.
//
// Canonical forms (k contiguous in every row; one scale a group of `group` values of k, the last group may be shorter):
//   W4  q u8 [n, k/2], two values a byte, the lower k in the low nibble, k even; scales [n, groups]; zeros u8 [n, groups] (0..15)
//       or null (symmetric: 8).   w = (q - zero) * scale
//   W8  q i8 [n, k]; scales [n, groups].   w = q * scale
// repack_* turns them once into an opaque buffer that is the same for every instruction set; gemm_* reads only that.
//
// Modes
//   exact  weights are widened and multiplied in f32: the result differs from f64 arithmetic on the dequantized weights by f32
//          rounding only (the integers q - zero and their product with x are exact up to the fused multiply-add).
//   int8   x is quantized, each row by blocks of 32 along k (symmetric, scale = absmax / 127, round to nearest even), products
//          add up exactly in integers within a block: about 0.4 % relative error of a block's absmax, as llama.cpp's Q8 or
//          onnxruntime's accuracy level 4. Rows with a NaN or an infinity give NaN or infinity.
//
// Determinism: for a given mode and instruction set a row of y depends on that row of x and on W only: not on m, on the other
// rows, on the number of threads or on the row's position (batch invariance, for every m). Sums of a block of 32 are formed
// first, blocks are added in the order of k.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm.h"

namespace llm::cpu {

enum class QMode : uint8_t { exact, int8 };

/// What a packed weight is. Two with equal fields have the same layout.
struct QWeight {
  int64_t n = 0, k = 0;
  int64_t group = 128;         // a positive multiple of 32; group >= k is one scale a row
  int bits = 4;                // 4 or 8
  Dt scale_type = Dt::f16;     // f16 or f32
  bool has_zeros = false;      // W4 only
};

struct QGemmArgs {
  int64_t m = 0;
  const void* x = nullptr;     // [m, k] of x_type
  int64_t ldx = 0;
  Dt x_type = Dt::f32;
  const void* packed = nullptr;  // from repack_w4 / repack_q8, 64-byte aligned
  void* y = nullptr;           // [m, n] of y_type
  int64_t ldy = 0;
  Dt y_type = Dt::f32;
  const void* bias = nullptr;  // [n] of bias_type, or null
  Dt bias_type = Dt::f32;
  QMode mode = QMode::exact;
};

/// Null, or why the description is not supported (a static string: which field, what was expected).
const char* qweight_error(const QWeight& w);

/// Bytes of the packed buffer, a multiple of 64. The buffer must be 64-byte aligned; on huge pages (MADV_HUGEPAGE) it streams faster.
size_t packed_bytes(const QWeight& w);

/// Packs a canonical weight. Runs on the thread pool. Call qweight_error first: a wrong description is undefined behaviour here.
void repack_w4(const QWeight& w, const uint8_t* q, const void* scales, const uint8_t* zeros, void* packed);
void repack_q8(const QWeight& w, const int8_t* q, const void* scales, void* packed);

/// y = x * W^T + bias for w.bits == 4, or 8. m, n or k may be 0 (k == 0 gives the bias).
/// @throws std::bad_alloc
void gemm_w4(const QWeight& w, const QGemmArgs& args);
void gemm_q8(const QWeight& w, const QGemmArgs& args);

/// out[i - row0, :] = row i of W for row0 <= i < row1, as out_type (the product (q - zero) * scale rounded to f32, then to out_type).
void dequantize_rows(const QWeight& w, const void* packed, int64_t row0, int64_t row1, void* out, int64_t ldo, Dt out_type);

}  // namespace llm::cpu
