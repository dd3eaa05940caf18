// i8 codes of a cache as f16 numbers, which hold them exactly: the bits 0x6400 | (code + 128) are 1152 + code.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

constexpr uint32_t kCodeBias = 0x80808080u, kCodeHigh = 0x64646464u, kCodeOffset = 0x64806480u;

__device__ __forceinline__ uint32_t minus_code_offset(uint32_t x) {
  uint32_t y;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(kCodeOffset));
  return y;
}

// Four neighbouring codes -> two registers.
__device__ __forceinline__ void widen_codes(uint32_t codes, uint32_t& low, uint32_t& high) {
  const uint32_t x = codes ^ kCodeBias;
  low = minus_code_offset(__byte_perm(x, kCodeHigh, 0x4140));
  high = minus_code_offset(__byte_perm(x, kCodeHigh, 0x4342));
}

// Four codes of one key and four of another -> pairs (of the first, of the other).
__device__ __forceinline__ void pair_codes(uint32_t first, uint32_t other, uint32_t (&pairs)[4]) {
  const uint32_t x = first ^ kCodeBias, y = other ^ kCodeBias, low = __byte_perm(x, y, 0x5140), high = __byte_perm(x, y, 0x7362);
  pairs[0] = minus_code_offset(__byte_perm(low, kCodeHigh, 0x4140));
  pairs[1] = minus_code_offset(__byte_perm(low, kCodeHigh, 0x4342));
  pairs[2] = minus_code_offset(__byte_perm(high, kCodeHigh, 0x4140));
  pairs[3] = minus_code_offset(__byte_perm(high, kCodeHigh, 0x4342));
}

// A row of queries as f16: divided by the power of two of its largest element. factor: what to multiply results by.
struct QueryScale {
  float factor, inverse;
};
__device__ __forceinline__ QueryScale query_scale(float largest) {
  const int exponent = min(max(static_cast<int>(__float_as_uint(largest) >> 23), 1), 253);
  return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}

// Two 16-bit elements of T as floats.
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t x) {
  if constexpr (std::is_same_v<T, bf16>) return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
  else return __half22float2(*reinterpret_cast<const __half2*>(&x));
}

}  // namespace llm::cuda
