#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: false positives inside the intrinsics' own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "qgemm_kernels.h"

namespace llm::cpu {
namespace {

#define QGEMM_INLINE static inline __attribute__((always_inline))

constexpr int kMostRows = 8;
constexpr int kMagic = 0x4b000000;  // 2^23: an integer below 2^23 or-ed into it is the float 2^23 + integer, exactly

template <Dt kScale>
QGEMM_INLINE __m512 load_scale(const void* p, int64_t group) {
  if constexpr (kScale == Dt::f32) return _mm512_loadu_ps(static_cast<const float*>(p) + group * kPanelRows);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p) + group * kPanelRows)));
}

QGEMM_INLINE __m512 load_zero(const uint8_t* zeros, int64_t group) {
  const __m128i z = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + group * kPanelRows));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(z));
}

// Few rows of x wait for memory alone, and the hardware looks ahead only within a page. Panels follow one another, so looking past the
// end of one is right, and past the end of all harmless.
QGEMM_INLINE void look_ahead(const uint8_t* w) {
  constexpr uintptr_t kDistance = 4096;
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(w) + kDistance), _MM_HINT_T0);
}

// ---- exact -----------------------------------------------------------------------------------------------------------------

// q << kShift sits in bits kShift.. of each lane of v: ((q - zero) << kShift) as a float, exact; less = 2^23 + zero * 2^kShift.
template <int kBits, int kShift>
QGEMM_INLINE __m512 weight(__m512i v, __m512 less) {
  const __m512i mask = _mm512_set1_epi32(((1 << kBits) - 1) << kShift);
  return _mm512_sub_ps(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(v, mask, _mm512_set1_epi32(kMagic), 0xea)), less);
}

template <int kRows>
QGEMM_INLINE void accumulate(__m512 (&acc)[kRows], __m512 w, const float* x) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) acc[m] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[m]), acc[m]);
}

// What is constant in a group of k: the scale, and 2^23 + zero * 2^shift for each shift.
struct Group {
  __m512 scale, z0, z4, z8, z12, z16;
};

template <int kBits, Dt kScale>
QGEMM_INLINE Group load_group(const QTask& t, int64_t group) {
  const __m512 z = kBits == 8 ? _mm512_set1_ps(128.0f) : (t.zeros != nullptr ? load_zero(t.zeros, group) : _mm512_set1_ps(8.0f));
  const __m512 magic = _mm512_set1_ps(8388608.0f);
  return {load_scale<kScale>(t.scales, group),
          _mm512_add_ps(z, magic),
          _mm512_fmadd_ps(z, _mm512_set1_ps(16.0f), magic),
          _mm512_fmadd_ps(z, _mm512_set1_ps(256.0f), magic),
          _mm512_fmadd_ps(z, _mm512_set1_ps(4096.0f), magic),
          _mm512_fmadd_ps(z, _mm512_set1_ps(65536.0f), magic)};
}

// One 64-byte vector of weights: 8 values of k in 4 bits, 4 in 8 bits.
template <int kRows, int kBits>
QGEMM_INLINE void accumulate_vector(__m512 (&acc)[kRows], const uint8_t* w, const float* x, const Group& g) {
  const __m512i v = _mm512_loadu_si512(w);
  if constexpr (kRows <= 2) look_ahead(w);
  if constexpr (kBits == 4) {
    const __m512i up = _mm512_srli_epi32(v, 12);
    accumulate<kRows>(acc, weight<4, 0>(v, g.z0), x);
    accumulate<kRows>(acc, weight<4, 4>(v, g.z4), x + 4 * kRows);
    accumulate<kRows>(acc, weight<4, 8>(v, g.z8), x + 1 * kRows);
    accumulate<kRows>(acc, weight<4, 12>(v, g.z12), x + 5 * kRows);
    accumulate<kRows>(acc, weight<4, 16>(v, g.z16), x + 2 * kRows);
    accumulate<kRows>(acc, weight<4, 8>(up, g.z8), x + 6 * kRows);
    accumulate<kRows>(acc, weight<4, 12>(up, g.z12), x + 3 * kRows);
    accumulate<kRows>(acc, weight<4, 16>(up, g.z16), x + 7 * kRows);
  } else {
    const __m512i up = _mm512_srli_epi32(v, 16);
    accumulate<kRows>(acc, weight<8, 0>(v, g.z0), x);
    accumulate<kRows>(acc, weight<8, 8>(v, g.z8), x + 1 * kRows);
    accumulate<kRows>(acc, weight<8, 0>(up, g.z0), x + 2 * kRows);
    accumulate<kRows>(acc, weight<8, 8>(up, g.z8), x + 3 * kRows);
  }
}

template <int kRows, int kBits, Dt kScale>
void exact_panel(const QTask& t) {
  constexpr int kBytes = kBits * 64, kStep = 32 / kBits;  // of a block; values of k in a vector
  __m512 y[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) y[m] = _mm512_setzero_ps();
  const uint8_t* w = t.weights;
  const float* x = t.x;
  int64_t b = 0;
  if constexpr (kRows <= 2) {
    // One row is one chain of dependent additions a block: two blocks side by side hide its latency. The order of each sum is kept.
    Group first = {}, second = {};
    int64_t first_group = -1, second_group = -1, group = 0, used = 0;
    for (; b + 2 <= t.blocks; b += 2) {
      if (first_group != group) first = load_group<kBits, kScale>(t, first_group = group);
      if (++used == t.group_blocks) used = 0, ++group;
      if (second_group != group) second = load_group<kBits, kScale>(t, second_group = group);
      if (++used == t.group_blocks) used = 0, ++group;
      __m512 acc[kRows], next[kRows];
#pragma GCC unroll 2
      for (int m = 0; m < kRows; ++m) acc[m] = next[m] = _mm512_setzero_ps();
#pragma GCC unroll 1
      for (int i = 0; i < kBytes / 64; ++i) {
        accumulate_vector<kRows, kBits>(acc, w, x, first);
        accumulate_vector<kRows, kBits>(next, w + kBytes, x + kBlock * kRows, second);
        w += 64;
        x += kStep * kRows;
      }
#pragma GCC unroll 2
      for (int m = 0; m < kRows; ++m) y[m] = _mm512_fmadd_ps(next[m], second.scale, _mm512_fmadd_ps(acc[m], first.scale, y[m]));
      w += kBytes;
      x += kBlock * kRows;
    }
  }
  while (b < t.blocks) {
    const int64_t group = b / t.group_blocks;
    const int64_t limit = (group + 1) * t.group_blocks, end = limit < t.blocks ? limit : t.blocks;
    const Group g = load_group<kBits, kScale>(t, group);
    for (; b < end; ++b) {
      __m512 acc[kRows];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m] = _mm512_setzero_ps();
#pragma GCC unroll 1
      for (int i = 0; i < kBytes / 64; ++i) {
        accumulate_vector<kRows, kBits>(acc, w, x, g);
        w += 64;
        x += kStep * kRows;
      }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) y[m] = _mm512_fmadd_ps(acc[m], g.scale, y[m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) _mm512_storeu_ps(t.out + m * kPanelRows, y[m]);
}

// ---- int8 ------------------------------------------------------------------------------------------------------------------

template <int kRows>
QGEMM_INLINE void dot4(__m512i (&acc)[kRows], __m512i w, const int8_t* x) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    int four;
    __builtin_memcpy(&four, x + 4 * m, 4);
    acc[m] = _mm512_dpbusd_epi32(acc[m], w, _mm512_set1_epi32(four));
  }
}

template <int kRows, int kBits, Dt kScale>
void int8_panel(const QTask& t) {
  constexpr int kBytes = kBits * 64;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 y[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) y[m] = _mm512_setzero_ps();
  const uint8_t* w = t.weights;
  const int8_t* x = t.xq;
  for (int64_t b0 = 0, group = 0; b0 < t.blocks; b0 += t.group_blocks, ++group) {
    const int64_t b1 = b0 + t.group_blocks < t.blocks ? b0 + t.group_blocks : t.blocks;
    __m512 part[kRows];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) part[m] = _mm512_setzero_ps();
    for (int64_t b = b0; b < b1; ++b) {
      __m512i acc[kRows];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m] = _mm512_set1_epi32(t.x_offset[b * kRows + m]);
#pragma GCC unroll 8
      for (int i = 0; i < kBytes / 64; ++i) {
        const __m512i v = _mm512_loadu_si512(w + i * 64);
        if constexpr (kRows <= 2) look_ahead(w + i * 64);
        if constexpr (kBits == 4) {
          dot4<kRows>(acc, _mm512_and_si512(v, low), x + i * 8 * kRows);
          dot4<kRows>(acc, _mm512_and_si512(_mm512_srli_epi16(v, 4), low), x + (i * 8 + 4) * kRows);
        } else {
          dot4<kRows>(acc, v, x + i * 4 * kRows);
        }
      }
      w += kBytes;
      x += kBlock * kRows;
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        part[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), _mm512_set1_ps(t.x_scale[b * kRows + m]), part[m]);
      }
    }
    const __m512 scale = load_scale<kScale>(t.scales, group);
    if (kBits == 4 && t.zeros != nullptr) {  // x_offset took 8 for the zero: the rest of it
      const __m512 z = _mm512_sub_ps(load_zero(t.zeros, group), _mm512_set1_ps(8.0f));
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) part[m] = _mm512_fnmadd_ps(z, _mm512_set1_ps(t.x_group[group * kRows + m]), part[m]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) y[m] = _mm512_fmadd_ps(part[m], scale, y[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) _mm512_storeu_ps(t.out + m * kPanelRows, y[m]);
}

#include "qgemm_dispatch.inc"

// ---- preparation of x ------------------------------------------------------------------------------------------------------

void quantize(const float* x, int64_t blocks, int64_t group_blocks, int rows, int row, int offset, int8_t* xq, float* x_scale,
              int32_t* x_offset, float* x_group) {
  float group_sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const __m512 v0 = _mm512_loadu_ps(x + b * kBlock), v1 = _mm512_loadu_ps(x + b * kBlock + 16);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v0), _mm512_abs_ps(v1)));
    const bool nan = _mm512_cmp_ps_mask(v0, v1, _CMP_UNORD_Q) != 0;
    const float scale = nan ? __builtin_nanf("") : most / 127.0f;
    const float ratio = 127.0f / most;
    const float inverse = scale > 0 && ratio < __builtin_inff() ? ratio : 0.0f;  // most = inf: ratio = 0
    const __m512 s = _mm512_set1_ps(inverse);
    const __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(v0, s)), q1 = _mm512_cvtps_epi32(_mm512_mul_ps(v1, s));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    alignas(32) int8_t bytes[kBlock];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtsepi32_epi8(q0));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + 16), _mm512_cvtsepi32_epi8(q1));
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
  const __m512 four = _mm512_setr_ps(1, 0x1p-8f, 0x1p-16f, 0x1p-12f, 0x1p-4f, 0x1p-12f, 0x1p-8f, 0x1p-16f, 1, 0x1p-8f, 0x1p-16f, 0x1p-12f,
                                     0x1p-4f, 0x1p-12f, 0x1p-8f, 0x1p-16f);
  const __m512 eight = _mm512_setr_ps(1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f, 1, 0x1p-8f);
  const __m512 factor = bits == 4 ? four : eight;
  for (int64_t i = 0; i < blocks * kBlock; i += 16) _mm512_storeu_ps(x + i, _mm512_mul_ps(factor, _mm512_loadu_ps(x + i)));
}

}  // namespace

void register_qgemm_avx512(QKernels* t) {
  t->rows = kMostRows;
  t->exact = exact;
  t->int8 = int8;
  t->quantize = quantize;
  t->prescale = prescale;
}

}  // namespace llm::cpu
