// What qgemm.cpp and the instruction-set files share: the packed layout and the table of kernels. Plain data only (see gemm_kernels.h).
//
// Packed layout. Rows of W go in panels of 16 (missing rows: zero scale), k in blocks of 32 (missing k: q with x = 0), and
// three arrays follow one another, each 64-byte aligned:
//   weights  [panel][block][vector][16 rows x 4 bytes]; a 64-byte vector holds for each row
//            4 bits: 8 values of k, byte i = k+i in the low nibble and k+4+i in the high one; 4 vectors a block
//            8 bits: 4 values of k as q + 128; 8 vectors a block
//   scales   [panel][group][16 rows] of scale_type
//   zeros    [panel][group][16 rows] u8, when has_zeros
#pragma once

#include <cstdint>

#include "qgemm.h"

namespace llm::cpu {

constexpr int kPanelRows = 16;
constexpr int kBlock = 32;

/// A panel of W and a group of rows of x, prepared. Pointers of W are those of the panel, x those of the group of `rows` rows.
struct QTask {
  int bits;
  Dt scale_type;
  int64_t blocks;           // of 32 along k
  int64_t group_blocks;     // blocks of a full group
  const uint8_t* weights;
  const void* scales;
  const uint8_t* zeros;     // or null: 8 for 4 bits, 128 for 8 bits
  int rows;                 // rows of x, 1..QKernels::rows
  const float* x;           // exact: [block*32][rows], times 2^-s where the kernel takes the nibble s bits up
  const int8_t* xq;         // int8: [block*8][rows][4]
  const float* x_scale;     // int8: [block][rows]
  const int32_t* x_offset;  // int8: [block][rows], -(8 or 128) * sum of xq
  const float* x_group;     // int8 with zeros: [group][rows], sum of x_scale * sum of xq over the group
  float* out;               // [rows][16]
};

struct QKernels {
  int rows;  // most rows of x a kernel takes (1..rows all exist)
  void (*exact)(const QTask& task);
  void (*int8)(const QTask& task);
  /// x f32 [blocks*32] -> quantized, stored with a stride of `rows` in the layouts of QTask (row `row` of the group).
  void (*quantize)(const float* x, int64_t blocks, int64_t group_blocks, int rows, int row, int offset, int8_t* xq, float* x_scale,
                   int32_t* x_offset, float* x_group);
  /// x[i] *= factor of position i % 32 (see QTask::x), for 4 or 8 bits.
  void (*prescale)(int bits, int64_t blocks, float* x);
};

void register_qgemm_avx2(QKernels* table);
void register_qgemm_avx512(QKernels* table);
void register_qgemm_reference(QKernels* table);

}  // namespace llm::cpu
