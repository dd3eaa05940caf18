// Tiles of 16-bit operands in shared memory, 128 along m or n and `depth` (32 or 64) along k: how they are laid out, brought in by
// cp.async and read as fragments of mma. A tile keeps the operand as stored: [128][depth] when k is contiguous, [depth][128] when m or n
// is; ldmatrix (with .trans for the second form) turns both into fragments. 16-byte pieces are swizzled within 128-byte lines so that the
// eight rows of an ldmatrix lie in different banks.
#pragma once
#include "cuda/ptx.cuh"

namespace llm::cuda {

constexpr int kTile = 128;

// Byte offset of 16-byte piece `piece` of row `row`.
template <int depth, bool depth_contiguous>
__device__ inline uint32_t piece_at(int row, int piece) {
  static_assert(depth == 32 || depth == 64);
  if constexpr (!depth_contiguous) return row * 256 + ((piece ^ (row & 7)) << 4);
  if constexpr (depth == 64) return row * 128 + ((piece ^ (row & 7)) << 4);
  return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4);  // two rows a line
}

// How many bytes of a piece exist when `elements` are left in its row.
__device__ inline int piece_bytes(int64_t elements) { return elements <= 0 ? 0 : elements >= 8 ? 16 : static_cast<int>(elements) * 2; }

// Starts the copy of the tile at (first, deep) of an operand whose long side has `length` elements and whose depth is k. What lies outside
// becomes zero. All `threads` of the block call it.
template <class T, int depth, bool depth_contiguous, int threads>
__device__ inline void fetch_tile(uint32_t tile, const T* x, int64_t ld, int64_t first, int64_t length, int64_t deep, int64_t k) {
  constexpr int pieces = depth_contiguous ? depth / 8 : kTile / 8, hop = threads / pieces;
  const int row = threadIdx.x / pieces, piece = threadIdx.x % pieces;
  const int64_t r = row + (depth_contiguous ? first : deep), c = piece * 8 + (depth_contiguous ? deep : first);
  const int bytes = piece_bytes((depth_contiguous ? k : length) - c);
  const int left = static_cast<int>(min((depth_contiguous ? length : k) - r, static_cast<int64_t>(kTile)));
  const T* from = x + r * ld + c;
#pragma unroll
  for (int i = 0; i < kTile * depth / 8 / threads; i++) {
    const int valid = i * hop < left ? bytes : 0;
    ptx::cp_async16(tile + piece_at<depth, depth_contiguous>(row + i * hop, piece), valid ? from : x, valid);
    from += hop * ld;
  }
}

// The fragment of A: 16 rows from `row` on, elements 16 * inner … + 15 along k.
template <int depth, bool depth_contiguous>
__device__ inline void fragment_a(uint32_t (&f)[4], uint32_t tile, int row, int inner) {
  const int lane = threadIdx.x & 31, eight = lane >> 3;
  if constexpr (depth_contiguous)
    ptx::ldmatrix4(f, tile + piece_at<depth, true>(row + (lane & 15), inner * 2 + (lane >> 4)));
  else
    ptx::ldmatrix4_trans(f, tile + piece_at<depth, false>(inner * 16 + (eight >> 1) * 8 + (lane & 7), (row >> 3) + (eight & 1)));
}

// Two fragments of B: 8 columns from `col` on in f[0], f[1] and the next 8 in f[2], f[3].
template <int depth, bool depth_contiguous>
__device__ inline void fragment_b(uint32_t (&f)[4], uint32_t tile, int col, int inner) {
  const int lane = threadIdx.x & 31, eight = lane >> 3;
  if constexpr (depth_contiguous)
    ptx::ldmatrix4(f, tile + piece_at<depth, true>(col + (eight >> 1) * 8 + (lane & 7), inner * 2 + (eight & 1)));
  else
    ptx::ldmatrix4_trans(f, tile + piece_at<depth, false>(inner * 16 + (eight & 1) * 8 + (lane & 7), (col >> 3) + (eight >> 1)));
}

}  // namespace llm::cuda
