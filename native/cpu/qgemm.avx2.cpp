#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: false positives inside the intrinsics' own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "qgemm_kernels.h"

namespace llm::cpu {
namespace {

#define QGEMM_INLINE static inline __attribute__((always_inline))
#define QGEMM_FOUR_ROWS

// A panel of 16 rows is two halves of 8 lanes: every 64-byte vector of the layout is two 32-byte ones.
constexpr int kMostRows = 4;
constexpr int kMagic = 0x4b000000;  // 2^23: an integer below 2^23 or-ed into it is the float 2^23 + integer, exactly

template <Dt kScale>
QGEMM_INLINE __m256 load_scale(const void* p, int64_t group, int half) {
  const int64_t at = group * kPanelRows + half * 8;
  if constexpr (kScale == Dt::f32) return _mm256_loadu_ps(static_cast<const float*>(p) + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at)));
}

QGEMM_INLINE __m256 load_zero(const uint8_t* zeros, int64_t group, int half) {
  const __m128i z = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + group * kPanelRows + half * 8));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(z));
}

QGEMM_INLINE __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// ---- exact -----------------------------------------------------------------------------------------------------------------

template <int kBits, int kShift>
QGEMM_INLINE __m256 weight(__m256i v, __m256 less) {
  const __m256i q = _mm256_and_si256(v, _mm256_set1_epi32(((1 << kBits) - 1) << kShift));
  return _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(q, _mm256_set1_epi32(kMagic))), less);
}

template <int kRows>
QGEMM_INLINE void accumulate(__m256 (&acc)[kRows], __m256 w, const float* x) {
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) acc[m] = _mm256_fmadd_ps(w, _mm256_set1_ps(x[m]), acc[m]);
}

// What is constant in a group of k for half a panel: the scale, and 2^23 + zero * 2^shift for each shift.
struct Group {
  __m256 scale, z0, z4, z8, z12, z16;
};

template <int kBits, Dt kScale>
QGEMM_INLINE Group load_group(const QTask& t, int64_t group, int half) {
  const __m256 z = kBits == 8 ? _mm256_set1_ps(128.0f) : (t.zeros != nullptr ? load_zero(t.zeros, group, half) : _mm256_set1_ps(8.0f));
  const __m256 magic = _mm256_set1_ps(8388608.0f);
  return {load_scale<kScale>(t.scales, group, half),
          _mm256_add_ps(z, magic),
          _mm256_fmadd_ps(z, _mm256_set1_ps(16.0f), magic),
          _mm256_fmadd_ps(z, _mm256_set1_ps(256.0f), magic),
          _mm256_fmadd_ps(z, _mm256_set1_ps(4096.0f), magic),
          _mm256_fmadd_ps(z, _mm256_set1_ps(65536.0f), magic)};
}

// 32 bytes of weights: 8 values of k in 4 bits, 4 in 8 bits, for 8 rows.
template <int kRows, int kBits>
QGEMM_INLINE void accumulate_vector(__m256 (&acc)[kRows], const uint8_t* w, const float* x, const Group& g) {
  const __m256i v = load_bytes(w);
  if constexpr (kBits == 4) {
    const __m256i up = _mm256_srli_epi32(v, 12);
    accumulate<kRows>(acc, weight<4, 0>(v, g.z0), x);
    accumulate<kRows>(acc, weight<4, 4>(v, g.z4), x + 4 * kRows);
    accumulate<kRows>(acc, weight<4, 8>(v, g.z8), x + 1 * kRows);
    accumulate<kRows>(acc, weight<4, 12>(v, g.z12), x + 5 * kRows);
    accumulate<kRows>(acc, weight<4, 16>(v, g.z16), x + 2 * kRows);
    accumulate<kRows>(acc, weight<4, 8>(up, g.z8), x + 6 * kRows);
    accumulate<kRows>(acc, weight<4, 12>(up, g.z12), x + 3 * kRows);
    accumulate<kRows>(acc, weight<4, 16>(up, g.z16), x + 7 * kRows);
  } else {
    const __m256i up = _mm256_srli_epi32(v, 16);
    accumulate<kRows>(acc, weight<8, 0>(v, g.z0), x);
    accumulate<kRows>(acc, weight<8, 8>(v, g.z8), x + 1 * kRows);
    accumulate<kRows>(acc, weight<8, 0>(up, g.z0), x + 2 * kRows);
    accumulate<kRows>(acc, weight<8, 8>(up, g.z8), x + 3 * kRows);
  }
}

template <int kRows, int kBits, Dt kScale>
void exact_panel(const QTask& t) {
  constexpr int kBytes = kBits * 64, kStep = 32 / kBits;  // of a block; values of k in a vector
  __m256 lower[kRows], upper[kRows];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) lower[m] = upper[m] = _mm256_setzero_ps();
  const uint8_t* w = t.weights;
  const float* x = t.x;
  for (int64_t b = 0, group = 0; b < t.blocks; ++group) {
    const int64_t end = b + t.group_blocks < t.blocks ? b + t.group_blocks : t.blocks;
    const Group low = load_group<kBits, kScale>(t, group, 0), high = load_group<kBits, kScale>(t, group, 1);
    for (; b < end; ++b) {
      // The halves side by side: one row is one chain of dependent additions a block, two hide its latency.
      __m256 acc[kRows], next[kRows];
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) acc[m] = next[m] = _mm256_setzero_ps();
#pragma GCC unroll 1
      for (int i = 0; i < kBytes / 64; ++i) {
        accumulate_vector<kRows, kBits>(acc, w, x, low);
        accumulate_vector<kRows, kBits>(next, w + 32, x, high);
        w += 64;
        x += kStep * kRows;
      }
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        lower[m] = _mm256_fmadd_ps(acc[m], low.scale, lower[m]);
        upper[m] = _mm256_fmadd_ps(next[m], high.scale, upper[m]);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
    _mm256_storeu_ps(t.out + m * kPanelRows, lower[m]);
    _mm256_storeu_ps(t.out + m * kPanelRows + 8, upper[m]);
  }
}

// ---- int8 ------------------------------------------------------------------------------------------------------------------

QGEMM_INLINE __m256i splat4(const int8_t* x) {
  int four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// 4 bits: u8 (0..15) times i8, two products in 16 bits at most 3810: a whole block of 8 such pairs fits (30480).
template <int kRows>
QGEMM_INLINE void dot_nibbles(__m256i (&acc)[kRows], const uint8_t* w, const int8_t* x) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i pairs[kRows];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) pairs[m] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i v = load_bytes(w + i * 64);
    const __m256i lo = _mm256_and_si256(v, low), hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(lo, splat4(x + (i * 8 * kRows) + 4 * m)));
      pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(hi, splat4(x + (i * 8 + 4) * kRows + 4 * m)));
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(pairs[m], _mm256_set1_epi16(1)));
}

// 8 bits: |w| (at most 128) times x with the sign of w; two products in 16 bits are at most 32512.
template <int kRows>
QGEMM_INLINE void dot_bytes(__m256i (&acc)[kRows], const uint8_t* w, const int8_t* x) {
#pragma GCC unroll 2
  for (int i = 0; i < 8; ++i) {
    const __m256i v = _mm256_xor_si256(load_bytes(w + i * 64), _mm256_set1_epi8(-128));
    const __m256i magnitude = _mm256_abs_epi8(v);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const __m256i pair = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(splat4(x + i * 4 * kRows + 4 * m), v));
      acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(pair, _mm256_set1_epi16(1)));
    }
  }
}

template <int kRows, int kBits, Dt kScale>
void int8_panel(const QTask& t) {
  constexpr int kBytes = kBits * 64;
  alignas(32) float y[2][kRows][8] = {};
  const uint8_t* w = t.weights;
  const int8_t* x = t.xq;
  for (int64_t b0 = 0, group = 0; b0 < t.blocks; b0 += t.group_blocks, ++group) {
    const int64_t b1 = b0 + t.group_blocks < t.blocks ? b0 + t.group_blocks : t.blocks;
    for (int half = 0; half < 2; ++half) {
      __m256 part[kRows];
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) part[m] = _mm256_setzero_ps();
      for (int64_t b = b0; b < b1; ++b) {
        __m256i acc[kRows];
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) acc[m] = kBits == 4 ? _mm256_set1_epi32(t.x_offset[b * kRows + m]) : _mm256_setzero_si256();
        const uint8_t* from = w + (b - b0) * kBytes + half * 32;
        const int8_t* with = x + (b - b0) * kBlock * kRows;
        if constexpr (kBits == 4) dot_nibbles<kRows>(acc, from, with);
        else dot_bytes<kRows>(acc, from, with);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          part[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m]), _mm256_set1_ps(t.x_scale[b * kRows + m]), part[m]);
        }
      }
      const __m256 scale = load_scale<kScale>(t.scales, group, half);
      if (kBits == 4 && t.zeros != nullptr) {  // x_offset took 8 for the zero: the rest of it
        const __m256 z = _mm256_sub_ps(load_zero(t.zeros, group, half), _mm256_set1_ps(8.0f));
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) part[m] = _mm256_fnmadd_ps(z, _mm256_set1_ps(t.x_group[group * kRows + m]), part[m]);
      }
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) _mm256_store_ps(y[half][m], _mm256_fmadd_ps(part[m], scale, _mm256_load_ps(y[half][m])));
    }
    w += (b1 - b0) * kBytes;
    x += (b1 - b0) * kBlock * kRows;
  }
  for (int m = 0; m < kRows; ++m) {
    _mm256_storeu_ps(t.out + m * kPanelRows, _mm256_load_ps(y[0][m]));
    _mm256_storeu_ps(t.out + m * kPanelRows + 8, _mm256_load_ps(y[1][m]));
  }
}

#include "qgemm_dispatch.inc"

// ---- preparation of x ------------------------------------------------------------------------------------------------------

void quantize(const float* x, int64_t blocks, int64_t group_blocks, int rows, int row, int offset, int8_t* xq, float* x_scale,
              int32_t* x_offset, float* x_group) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  float group_sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    __m256 v[4];
    __m256 top = _mm256_setzero_ps(), unordered = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + b * kBlock + 8 * i);
      top = _mm256_max_ps(top, _mm256_and_ps(v[i], magnitude));
      unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v[i], v[i], _CMP_UNORD_Q));
    }
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    const __m128 two = _mm_max_ps(half, _mm_movehl_ps(half, half));
    const float most = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    const bool nan = _mm256_movemask_ps(unordered) != 0;
    const float scale = nan ? __builtin_nanf("") : most / 127.0f;
    const float ratio = 127.0f / most;
    const float inverse = scale > 0 && ratio < __builtin_inff() ? ratio : 0.0f;  // most = inf: ratio = 0
    __m256i q[4], total = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
      total = _mm256_add_epi32(total, q[i]);
    }
    const __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    const __m128i sum2 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4e));
    const int sum = _mm_cvtsi128_si32(_mm_add_epi32(sum2, _mm_shuffle_epi32(sum2, 0xb1)));
    // packs works within 128-bit lanes: the words of the result are 0 4 1 5 2 6 3 7 of the block
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    alignas(32) int8_t bytes[kBlock];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), ordered);
    int8_t* to = xq + (b * 8 * rows + row) * 4;
    for (int i = 0; i < 8; ++i) __builtin_memcpy(to + i * rows * 4, bytes + 4 * i, 4);
    x_scale[b * rows + row] = scale;
    x_offset[b * rows + row] = static_cast<int32_t>(0u - static_cast<uint32_t>(offset) * static_cast<uint32_t>(sum));
    if (x_group != nullptr) {
      if (b % group_blocks == 0) group_sum = 0;
      group_sum += scale * static_cast<float>(sum);
      x_group[b / group_blocks * rows + row] = group_sum;
    }
  }
}

void prescale(int bits, int64_t blocks, float* x) {
  const __m256 four = _mm256_setr_ps(1, 0x1p-8f, 0x1p-16f, 0x1p-12f, 0x1p-4f, 0x1p-12f, 0x1p-8f, 0x1p-16f);
  const __m256 eight = _mm256_setr_ps(1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f);
  const __m256 factor = bits == 4 ? four : eight;
  for (int64_t i = 0; i < blocks * kBlock; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(factor, _mm256_loadu_ps(x + i)));
}

}  // namespace

void register_qgemm_avx2(QKernels* t) {
  t->rows = kMostRows;
  t->exact = exact;
  t->int8 = int8;
  t->quantize = quantize;
  t->prescale = prescale;
}

}  // namespace llm::cpu
