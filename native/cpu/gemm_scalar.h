// Conversions of one element, for the baseline translation units (not for instruction-set files: these are inline functions).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace llm::cpu {

inline int64_t element_bytes(Dt type) { return type == Dt::f32 ? 4 : 2; }

inline float bf16_to_f32(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline uint16_t f32_to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t u;
  if (exponent == 0) {
    const float f = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -f : f;
  }
  if (exponent == 31) u = sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0);
  else u = sign | (exponent + 112) << 23 | mantissa << 13;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline uint16_t f32_to_f16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                             // subnormal: a multiple of 2^-24
    float value;
    std::memcpy(&value, &magnitude, 4);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::lrintf(std::ldexp(value, 24))));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float load_element(Dt type, const void* p, int64_t i) {
  if (type == Dt::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return type == Dt::bf16 ? bf16_to_f32(h) : f16_to_f32(h);
}

inline void store_element(Dt type, void* p, int64_t i, float value) {
  if (type == Dt::f32) static_cast<float*>(p)[i] = value;
  else static_cast<uint16_t*>(p)[i] = type == Dt::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
}

}  // namespace llm::cpu
