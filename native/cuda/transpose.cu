// Transposition through shared memory. A tile is 32 or 64 words by as many words of 4 bytes (8 for 8-byte elements) of E elements each:
// neighbouring threads read neighbouring words of a row, and write neighbouring words of a column. For elements of 2 and 1 bytes a thread turns
// blocks of E x E elements in registers between the two; where addresses or sizes are no multiple of E it moves single elements.
#include "cuda/movement.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

// Strides count words of E elements.
struct Tiles {
  int64_t rows, cols;  // elements
  int64_t from_row, to_col;
  Divider tiles, tiles_across;  // of one matrix
  int batch_dims;
  Divider batch[kMaxDims];
  int64_t from_batch[kMaxDims], to_batch[kMaxDims];
};

// E words, word i holding elements (i, 0..E-1), become E words whose word j holds elements (0..E-1, j).
__device__ inline void turn(uint32_t (&w)[2]) {
  const uint32_t a = w[0], b = w[1];
  w[0] = __byte_perm(a, b, 0x5410);
  w[1] = __byte_perm(a, b, 0x7632);
}
__device__ inline void turn(uint32_t (&w)[4]) {
  const uint32_t a = __byte_perm(w[0], w[1], 0x5140), b = __byte_perm(w[2], w[3], 0x5140);  // a0 b0 a1 b1
  const uint32_t c = __byte_perm(w[0], w[1], 0x7362), d = __byte_perm(w[2], w[3], 0x7362);  // a2 b2 a3 b3
  w[0] = __byte_perm(a, b, 0x5410);
  w[1] = __byte_perm(a, b, 0x7632);
  w[2] = __byte_perm(c, d, 0x5410);
  w[3] = __byte_perm(c, d, 0x7632);
}
template <class W>
__device__ inline void turn(W (&)[1]) {}

template <class W, int E, int kSide>
__global__ void __launch_bounds__(kThreads) transpose_kernel(const W* from, W* to, const __grid_constant__ Tiles t) {
  // The word w of row r lies at r * (kSide + 1) + r / 32 + w: lanes that read every E-th row meet different banks.
  __shared__ W tile[kSide * E * (kSide + 1) + kSide * E / 32];
  const auto at = [](int r, int w) { return r * (kSide + 1) + r / 32 + w; };
  constexpr int kStep = kThreads / kSide;
  const int lane = static_cast<int>(threadIdx.x) % kSide, group = static_cast<int>(threadIdx.x) / kSide;
  int64_t matrix, index, down, across;
  t.tiles(blockIdx.x, matrix, index);
  t.tiles_across(index, down, across);
  for (int d = 0; d < t.batch_dims; d++) {
    int64_t next, i;
    t.batch[d](matrix, next, i);
    from += i * t.from_batch[d];
    to += i * t.to_batch[d];
    matrix = next;
  }
  const int64_t row0 = down * (kSide * E), word0 = across * kSide;
  {
    const int64_t word = word0 + lane;
    W v[kSide * E / kStep];
#pragma unroll
    for (int i = 0; i < kSide * E / kStep; i++) {
      const int64_t row = row0 + group + i * kStep;
      if (row < t.rows && word * E < t.cols) v[i] = from[row * t.from_row + word];
    }
#pragma unroll
    for (int i = 0; i < kSide * E / kStep; i++) tile[at(group + i * kStep, lane)] = v[i];
  }
  __syncthreads();
  const int64_t row = row0 + lane * E;  // first of the E rows that form one word of y
  if (row >= t.rows) return;
#pragma unroll 8
  for (int i = 0; i < kSide / kStep; i++) {
    const int w = group + i * kStep;
    const int64_t col = (word0 + w) * E;
    if (col >= t.cols) break;
    W v[E];
#pragma unroll
    for (int j = 0; j < E; j++) v[j] = tile[at(lane * E + j, w)];
    turn(v);
#pragma unroll
    for (int j = 0; j < E; j++) to[(col + j) * t.to_col + row / E] = v[j];
  }
}

template <class W, int E, int kSide>
const char* launch(Context& ctx, const Transposition& x) {
  Tiles t{};
  t.rows = x.rows;
  t.cols = x.cols;
  t.from_row = x.from_row / E;
  t.to_col = x.to_col / E;
  int64_t blocks = 1;
  for (int d = 0; d < x.batch_dims; d++) blocks *= x.batch[d];
  const int64_t across = ceil_div(x.cols, kSide * E), tiles = across * ceil_div(x.rows, kSide * E);
  blocks *= tiles;
  t.tiles_across = Divider(across, tiles);
  t.tiles = Divider(tiles, blocks);
  t.batch_dims = x.batch_dims;
  for (int d = 0; d < x.batch_dims; d++) {
    t.batch[d] = Divider(x.batch[d], blocks);
    t.from_batch[d] = x.from_batch[d] / E;
    t.to_batch[d] = x.to_batch[d] / E;
  }
  transpose_kernel<W, E, kSide><<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(reinterpret_cast<const W*>(x.from),
                                                                                            reinterpret_cast<W*>(x.to), t);
  return launched();
}

// Large tiles make longer runs of memory, small ones more blocks.
template <class W, int E>
const char* transpose_as(Context& ctx, const Transposition& x) {
  int64_t tiles = ceil_div(x.cols, 64 * E) * ceil_div(x.rows, 64 * E);
  for (int d = 0; d < x.batch_dims; d++) tiles *= x.batch[d];
  if constexpr (E <= 2 && sizeof(W) <= 4)
    if (tiles >= 4 * static_cast<int64_t>(ctx.sms)) return launch<W, E, 64>(ctx, x);
  return launch<W, E, 32>(ctx, x);
}

// All that must be a multiple of E elements for words of 4 bytes.
bool in_words(const Transposition& t, int64_t e) {
  int64_t bits = t.rows | t.cols | t.from_row | t.to_col;
  for (int d = 0; d < t.batch_dims; d++) bits |= t.from_batch[d] | t.to_batch[d];
  const uintptr_t address = reinterpret_cast<uintptr_t>(t.from) | reinterpret_cast<uintptr_t>(t.to);
  return bits % e == 0 && address % 4 == 0;
}

}  // namespace

const char* transpose_tiles(Context& ctx, const Transposition& t, int64_t size) {
  int64_t n = t.rows * t.cols;
  for (int d = 0; d < t.batch_dims; d++) n *= t.batch[d];
  if (n == 0) return nullptr;
  switch (size) {
    case 1: return in_words(t, 4) ? transpose_as<uint32_t, 4>(ctx, t) : transpose_as<uint8_t, 1>(ctx, t);
    case 2: return in_words(t, 2) ? transpose_as<uint32_t, 2>(ctx, t) : transpose_as<uint16_t, 1>(ctx, t);
    case 4: return transpose_as<uint32_t, 1>(ctx, t);
    default: return transpose_as<uint2, 1>(ctx, t);
  }
}

}  // namespace llm::cuda
