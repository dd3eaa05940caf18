// The packed weight that repack_w4 and repack_q8 write and linear_w4 and linear_q8 read. It never needs more bytes than the canonical form,
// which is the least that packed_w4_bytes and packed_q8_bytes give.
//
// Tiled, where n is a multiple of 16 and k and the group of a unit's width (any group of k or more is one group): three arrays,
//   units   [n / 16][k / width][32 lanes][16 bytes]; a unit is 16 rows by 64 (W4) or 32 (Q8) columns, one 16-byte load of a warp.
//           Lane l holds rows g = l / 4 and g + 8, and of each block of 32 columns the 8 from 8 (l % 4) on: A fragments of two mma.m16n8k16
//           whose columns are permuted alike in B, so that a lane's part of x is 16 contiguous bytes.
//           W4: word 2 h + r = row g + 8 r, block h; its nibbles 0 .. 7 are columns 0 2 4 6 1 3 5 7, so that (word >> 4 s) & 0x000f000f
//               are columns 2 s and 2 s + 1.
//           Q8: word 2 r + t = row g + 8 r, columns 4 t .. 4 t + 3 in the order 0 2 1 3: (word >> 8 s) & 0x00ff00ff are 2 s and 2 s + 1.
//   scales  f32 [n / 16][groups][16 rows], row g beside row g + 8
//   zeros   u8 likewise (W4)
// Otherwise plain: scales [n, groups], zeros [n, groups], q [n, k / 2 or k], as in the canonical form (the wider elements first).
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

struct Packed {
  int bits;
  int64_t n, k, group, groups;
  bool tiled;
  const uint8_t* q;
  const float* scales;
  const uint8_t* zeros;  // W4

  int64_t width() const { return bits == 4 ? 64 : 32; }
  // Why it cannot be read here, or null: tiles are read 16 bytes at a time, plain scales 4.
  const char* misplaced() const {
    const auto at = reinterpret_cast<uintptr_t>(tiled ? static_cast<const void*>(q) : scales);
    return at % (tiled ? 16 : 4) == 0 ? nullptr : "a packed weight on a 16-byte boundary expected";
  }
  // `count` rows from row `first` on; both multiples of 16 unless it is the end.
  Packed rows(int64_t first, int64_t count) const {
    Packed p = *this;
    p.n = count;
    p.q += first * k * bits / 8;
    p.scales += first * groups;
    if (bits == 4) p.zeros += first * groups;
    return p;
  }
};

inline Packed packed_of(int bits, int64_t n, int64_t k, int64_t group, const void* base) {
  Packed p{bits, n, k, group, ceil_div(k, group), false, nullptr, nullptr, nullptr};
  p.tiled = n % 16 == 0 && k % p.width() == 0 && (p.groups == 1 || group % 32 == 0);
  const uint8_t* at = static_cast<const uint8_t*>(base);
  if (p.tiled) {
    p.q = at;
    p.scales = reinterpret_cast<const float*>(at + n * k * bits / 8);
    p.zeros = at + n * k * bits / 8 + n * p.groups * 4;
  } else {
    p.scales = reinterpret_cast<const float*>(at);
    p.zeros = at + n * p.groups * 4;
    p.q = p.zeros + (bits == 4 ? n * p.groups : 0);
  }
  return p;
}

// Row g + 8 r of a tile's scales or zeros is at 2 g + r.
__device__ inline int tile_row_at(int row) { return 2 * (row & 7) + (row >> 3); }

// One weight of a plain buffer.
__device__ inline float plain_weight(const Packed& p, int64_t row, int64_t col) {
  const int64_t g = row * p.groups + col / p.group, i = row * p.k + col;
  if (p.bits == 8) return static_cast<float>(static_cast<int8_t>(p.q[i])) * p.scales[g];
  return static_cast<float>((p.q[i >> 1] >> (4 * (i & 1)) & 15) - p.zeros[g]) * p.scales[g];
}

// out [n, k] dense = the weights in f32, bf16 or f16. quant_pack.cu
const char* unpack(Context& ctx, const Packed& p, void* out, DType dtype);

}  // namespace llm::cuda
