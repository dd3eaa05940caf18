// bf16 x bf16 by the tile unit: eight registers of 16 rows x 64 bytes; TDPBF16PS multiplies 16 x 32 by 32 x 16 and adds to 16 x 16 floats.
// Panels are stored tile by tile, so that every tile is 1 KiB of consecutive memory:
//   A  [step of 32 k][16 rows each][16 rows][32 k]
//   B  [step of 32 k][16 columns each][16 pairs of k][16 columns][2]
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: false positives inside the intrinsics' own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "gemm_kernels.h"

namespace llm::cpu {
namespace {

#include "gemm_simd512.inc"

constexpr int kSide = 16;                    // rows, columns and words of a tile
constexpr int kTile = kSide * kSide;         // 32-bit words of a tile
constexpr int kMr = 2 * kSide, kNr = 2 * kSide;
constexpr int64_t kAccStride = kNr * 4;      // bytes between rows of the accumulators

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// Tile state belongs to a thread. Released at the end, so that the system need not save 8 KiB at every switch.
void begin() {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
}
void end() { _tile_release(); }

// Accumulators 0 (rows 0, columns 0), 1 (1, 0), 2 (0, 1), 3 (1, 1); A in 4 and 5, B in 6 and 7. The loop is written out, aligned: as
// compilers place it, it runs at full speed or at a quarter of it by the accident of its address.
template <int kRows, int kColumns>
GEMM_INLINE void multiply(int64_t steps, const float* a, const float* b) {
#define AMX_LOOP(body)                                                                                                    \
  __asm__ volatile(".p2align 6\n1:\n" body "add %[sa], %[a]\nadd %[sb], %[b]\ndec %[n]\njnz 1b\n"                         \
                   : [n] "+r"(steps), [a] "+r"(a), [b] "+r"(b)                                                            \
                   : [row] "r"(int64_t{64}), [sa] "i"(kRows * kTile * 4), [sb] "i"(kColumns * kTile * 4)                  \
                   : "memory", "cc")
#define AMX_A(tile, offset) "tileloadd " #offset "(%[a],%[row],1), %%tmm" #tile "\n"
#define AMX_B(tile, offset) "tileloadd " #offset "(%[b],%[row],1), %%tmm" #tile "\n"
#define AMX_DOT(c, a, b) "tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c "\n"
  if constexpr (kRows == 2 && kColumns == 2) {
    AMX_LOOP(AMX_A(4, 0) AMX_B(6, 0) AMX_DOT(0, 4, 6) AMX_A(5, 1024) AMX_DOT(1, 5, 6) AMX_B(7, 1024) AMX_DOT(2, 4, 7) AMX_DOT(3, 5, 7));
  } else if constexpr (kRows == 2) {
    AMX_LOOP(AMX_A(4, 0) AMX_B(6, 0) AMX_DOT(0, 4, 6) AMX_A(5, 1024) AMX_DOT(1, 5, 6));
  } else if constexpr (kColumns == 2) {
    AMX_LOOP(AMX_A(4, 0) AMX_B(6, 0) AMX_DOT(0, 4, 6) AMX_B(7, 1024) AMX_DOT(2, 4, 7));
  } else {
    AMX_LOOP(AMX_A(4, 0) AMX_B(6, 0) AMX_DOT(0, 4, 6));
  }
#undef AMX_LOOP
#undef AMX_A
#undef AMX_B
#undef AMX_DOT
}

template <int kRows, int kColumns>
void micro_tile(int64_t words, const float* a, const float* b, float* acc, bool start) {
  float* below = acc + kSide * kNr;
  if (start) {
    _tile_zero(0);
    if constexpr (kRows == 2) _tile_zero(1);
    if constexpr (kColumns == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, acc, kAccStride);
    if constexpr (kRows == 2) _tile_loadd(1, below, kAccStride);
    if constexpr (kColumns == 2) _tile_loadd(2, acc + kSide, kAccStride);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, below + kSide, kAccStride);
  }
  multiply<kRows, kColumns>(words / kSide, a, b);
  _tile_stored(0, acc, kAccStride);
  if constexpr (kRows == 2) _tile_stored(1, below, kAccStride);
  if constexpr (kColumns == 2) _tile_stored(2, acc + kSide, kAccStride);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, below + kSide, kAccStride);
}

void micro(int rows, bool half, int64_t words, const float* a, const float* b, float* acc, bool start) {
  const auto run = rows > kSide ? (half ? micro_tile<2, 1> : micro_tile<2, 2>) : (half ? micro_tile<1, 1> : micro_tile<1, 2>);
  run(words, a, b, acc, start);
}

// Sixteen words of each of 16 rows that are contiguous along k: the form of A.
GEMM_INLINE void load_rows(V (&t)[16], const char* src, int64_t row_bytes, int count, int64_t left) {
  const __mmask32 have = left >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << left) - 1);
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    t[r] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(have, src + (r < count ? r : count - 1) * row_bytes));
  }
}

// Sixteen words, of two consecutive k each, of 16 rows that are contiguous across: the form of B.
GEMM_INLINE void load_columns(V (&t)[16], const char* src, int64_t row_bytes, int count, int64_t left) {
  const __mmask16 mask = lanes_mask(count);
#pragma GCC unroll 16
  for (int p = 0; p < kSide; ++p) {
    const char* row = src + 2 * p * row_bytes;
    __m512i lo = _mm512_setzero_si512(), hi = lo;
    if (2 * p < left) lo = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    if (2 * p + 1 < left) hi = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + row_bytes));
    t[p] = _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
  }
}

template <bool kContiguous, bool kTransposed>
void pack_tiles(const char* src, int64_t row_bytes, int count, int width, int64_t kc, float* dst) {
  for (int64_t k = 0; k < kc; k += 2 * kSide) {
    for (int r = 0; r < width; r += kSide, dst += kTile) {
      if (r >= count) continue;
      V t[16];
      const int have = count - r < kSide ? count - r : kSide;
      if constexpr (kContiguous) load_rows(t, src + r * row_bytes + k * 2, row_bytes, have, kc - k);
      else load_columns(t, src + r * 2 + k * row_bytes, row_bytes, have, kc - k);
      if constexpr (kTransposed) transpose(t);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store(dst + i * kSide, t[i]);
    }
  }
}

void pack_a(Dt, bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst) {
  const char* p = static_cast<const char*>(src);
  if (k_contiguous) pack_tiles<true, false>(p, ld * 2, count, width, kc, dst);
  else pack_tiles<false, true>(p, ld * 2, count, width, kc, dst);
}

void pack_b(Dt, bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst) {
  const char* p = static_cast<const char*>(src);
  if (k_contiguous) pack_tiles<true, true>(p, ld * 2, count, width, kc, dst);
  else pack_tiles<false, false>(p, ld * 2, count, width, kc, dst);
}

}  // namespace

void register_gemm_amx(GemmKernels* t) {
  Panels& p = t->bf16_tile;
  p.mr = kMr;
  p.nr = kNr;
  p.row_step = kSide;
  p.k_per_word = 2;
  p.word_step = kSide;
  p.depth = 512;  // an A panel takes most of L1
  p.pack_a = pack_a;
  p.pack_b = pack_b;
  p.micro = micro;
  p.begin = begin;
  p.end = end;
}

}  // namespace llm::cpu
