// bf16 and f16 conversions in portable C++ (round to nearest even). `static` on purpose: every translation unit keeps its own
// copy, so that a copy compiled for AVX-512 is never picked on an older machine.
#pragma once
#include <cstdint>
#include <cstring>

namespace llm {

static inline float bf16_to_f32(uint16_t h) {
  uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

static inline uint16_t f32_to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023, u;
  if (exp == 31) {
    u = sign | 0x7f800000u | (man << 13);
  } else if (exp != 0) {
    u = sign | ((exp + 112) << 23) | (man << 13);
  } else {  // zero or subnormal: man * 2^-24, exact in f32
    float f = static_cast<float>(man) * 5.9604644775390625e-8f;
    std::memcpy(&u, &f, 4);
    u |= sign;
  }
  float out;
  std::memcpy(&out, &u, 4);
  return out;
}

static inline uint16_t f32_to_f16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  u &= 0x7fffffffu;
  if (u >= 0x47800000u) return sign | (u > 0x7f800000u ? 0x7e00 : 0x7c00);  // NaN, or overflow to infinity
  if (u < 0x38800000u) {                                                     // subnormal or zero: let the FPU round at 2^-24
    float a, magic = 0.5f;
    std::memcpy(&a, &u, 4);
    a += magic;
    uint32_t r, m;
    std::memcpy(&r, &a, 4);
    std::memcpy(&m, &magic, 4);
    return sign | static_cast<uint16_t>(r - m);
  }
  const uint32_t rounded = u + 0xfff + ((u >> 13) & 1) - (112u << 23);
  return sign | static_cast<uint16_t>(rounded >> 13);
}

}  // namespace llm
