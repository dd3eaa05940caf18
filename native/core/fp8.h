// e4m3, the 8-bit float of weights and activations: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, codes 0x7f and 0xff are
// NaN, the largest number is 448 (Micikevicius et al. 2022, arXiv:2209.05433). `static` for the reason given in half.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace llm {

constexpr float kFp8Largest = 448.0f;
// Taken as the largest value of a row that has none larger, so that a row of zeros has a scale that can be inverted.
constexpr float kFp8Smallest = 1e-30f;

static inline float fp8_to_f32(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  uint32_t u;
  if ((code & 0x7f) == 0x7f) {
    u = 0x7fc00000u;
  } else if (exponent != 0) {
    u = static_cast<uint32_t>(exponent + 120) << 23 | static_cast<uint32_t>(mantissa) << 20;
  } else {
    const float small = static_cast<float>(mantissa) * 0.001953125f;  // 2^-9
    std::memcpy(&u, &small, 4);
  }
  u |= sign;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Nearest, halves to even; what is larger than 448 becomes 448. NaN is 0x7f.
static inline uint8_t f32_to_fp8(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint8_t sign = static_cast<uint8_t>(u >> 24 & 0x80);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return 0x7f;
  if (u >= 0x43e00000u) return sign | 0x7e;
  if (u < 0x3c800000u) {  // below 2^-6: let the FPU round at 2^-9
    float a, magic = 16384.0f;
    std::memcpy(&a, &u, 4);
    a += magic;
    uint32_t rounded, m;
    std::memcpy(&rounded, &a, 4);
    std::memcpy(&m, &magic, 4);
    return static_cast<uint8_t>(sign | (rounded - m));
  }
  return static_cast<uint8_t>(sign | ((u + 0x7ffffu + (u >> 20 & 1) - (120u << 23)) >> 20));
}

// Codes of `cols` values value(c), and their scale.
template <class Value, class Store>
static inline float encode_fp8_row(int64_t cols, const Value& value, const Store& store) {
  float amax = kFp8Smallest;
  for (int64_t c = 0; c < cols; c++) {
    const float a = std::fabs(value(c));
    if (a > amax) amax = a;
  }
  const float inverse = kFp8Largest / amax;
  for (int64_t c = 0; c < cols; c++) store(c, f32_to_fp8(value(c) * inverse));
  return amax / kFp8Largest;
}

}  // namespace llm
