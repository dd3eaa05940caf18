// The pair forms: two consecutive bf16 values of k in each 32-bit lane, multiplied and added by vdpbf16ps.
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: false positives inside the intrinsics' own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "gemm_kernels.h"

namespace llm::cpu {
namespace {

#include "gemm_simd512.inc"

constexpr int kNr = 2 * kLanes;

GEMM_INLINE V dot_pairs(V a, V b, V c) {
  return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

template <int kRows, int kVectors>
void micro_tile(int64_t pairs, const float* a, const float* b, float* acc, bool start) {
  V c[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) c[r][v] = start ? zero() : load(acc + r * kNr + v * kLanes);
  }
  for (int64_t k = 0; k < pairs; ++k) {
    V x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V s = splat(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) c[r][v] = dot_pairs(s, x[v], c[r][v]);
    }
    a += kRows;
    b += kVectors * kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(acc + r * kNr + v * kLanes, c[r][v]);
  }
}

using MicroFn = void (*)(int64_t, const float*, const float*, float*, bool);

void micro_pair(int rows, bool half, int64_t pairs, const float* a, const float* b, float* acc, bool start) {
  static constexpr MicroFn kTable[2][14] = {
      {micro_tile<1, 2>, micro_tile<2, 2>, micro_tile<3, 2>, micro_tile<4, 2>, micro_tile<5, 2>, micro_tile<6, 2>, micro_tile<7, 2>,
       micro_tile<8, 2>, micro_tile<9, 2>, micro_tile<10, 2>, micro_tile<11, 2>, micro_tile<12, 2>, micro_tile<13, 2>, micro_tile<14, 2>},
      {micro_tile<1, 1>, micro_tile<2, 1>, micro_tile<3, 1>, micro_tile<4, 1>, micro_tile<5, 1>, micro_tile<6, 1>, micro_tile<7, 1>,
       micro_tile<8, 1>, micro_tile<9, 1>, micro_tile<10, 1>, micro_tile<11, 1>, micro_tile<12, 1>, micro_tile<13, 1>, micro_tile<14, 1>}};
  kTable[half ? 1 : 0][rows - 1](pairs, a, b, acc, start);
}

// Rows contiguous along k: pairs are 32-bit words already; transpose words.
void pack_pair_rows(const char* src, int64_t row_bytes, int count, int width, int64_t kc, float* dst) {
  const int64_t pairs = (kc + 1) / 2;
  for (int r0 = 0; r0 < width; r0 += kLanes) {
    const int lanes = width - r0 < kLanes ? width - r0 : kLanes;
    const char* row[kLanes];
    for (int r = 0; r < kLanes; ++r) row[r] = src + (r0 + r < count ? r0 + r : count - 1) * row_bytes;
    for (int64_t p0 = 0; p0 < pairs; p0 += kLanes) {
      V t[kLanes];
      float* out = dst + p0 * width + r0;
      const int64_t left = kc - 2 * p0;
      if (left >= 2 * kLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) t[r] = _mm512_loadu_ps(row[r] + p0 * 4);
      } else {
        const __mmask32 have = static_cast<__mmask32>((1ull << left) - 1);
        for (int r = 0; r < kLanes; ++r) t[r] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(have, row[r] + p0 * 4));
      }
      transpose(t);
      const int rows = pairs - p0 < kLanes ? static_cast<int>(pairs - p0) : kLanes;
      alignas(64) float column[kLanes * kLanes];
      if (rows == kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) store_part(out + j * width, t[j], lanes);
      } else {
        for (int j = 0; j < kLanes; ++j) store(column + j * kLanes, t[j]);
        for (int j = 0; j < rows; ++j) {
          for (int r = 0; r < lanes; ++r) out[j * width + r] = column[j * kLanes + r];
        }
      }
    }
  }
}

void pack_pair_columns(const char* src, int64_t row_bytes, int count, int width, int64_t kc, float* dst) {
  for (int r0 = 0; r0 < width; r0 += kLanes) {
    const int lanes = width - r0 < kLanes ? width - r0 : kLanes;
    int have = count - r0 < lanes ? count - r0 : lanes;
    if (have < 0) have = 0;
    const __mmask16 mask = lanes_mask(have);
    const char* from = src + static_cast<int64_t>(r0) * 2;
    float* out = dst + r0;
    for (int64_t k = 0; k < kc; k += 2) {
      const __m512i lo = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + k * row_bytes));
      __m512i hi = _mm512_setzero_si512();
      if (k + 1 < kc) hi = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + (k + 1) * row_bytes));
      store_part(out + k / 2 * width, _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16))), lanes);
    }
  }
}

void pack_pair(Dt, bool k_contiguous, const void* src, int64_t ld, int count, int width, int64_t kc, float* dst) {
  const char* p = static_cast<const char*>(src);
  if (k_contiguous) pack_pair_rows(p, ld * 2, count, width, kc, dst);
  else pack_pair_columns(p, ld * 2, count, width, kc, dst);
}

}  // namespace

void register_gemm_avx512bf16(GemmKernels* t) {
  Panels& p = t->bf16_dot;
  p.mr = 14;
  p.nr = kNr;
  p.k_per_word = 2;
  p.depth = 512;
  p.pack_a = p.pack_b = pack_pair;
  p.micro = micro_pair;
}

}  // namespace llm::cpu
