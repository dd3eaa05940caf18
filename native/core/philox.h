// Random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Counter-based, so element i
// of a stream is the same on every device and for every partition. The same header compiles for CUDA.
//   key      = (seed low 32 bits, seed high 32 bits)
//   counter  = (block low, block high, stream low, stream high), block = i / 4
//   element i takes word i % 4 of its block
//   uniform  = (word >> 8) * 2^-24, in [0, 1)
//   normal   = Box-Muller over the words (2j, 2j + 1) of a block, in double: u1 = (word[2j] + 1) * 2^-32 in (0, 1],
//              u2 = word[2j + 1] * 2^-32, radius = sqrt(-2 ln u1); the even element is radius cos(2 pi u2), the odd one
//              radius sin(2 pi u2), each rounded to f32 once. Libraries differ by an ulp of double at most.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define LLM_PHILOX_FN static __host__ __device__ inline
#else
#define LLM_PHILOX_FN static inline
#endif

namespace llm {

struct PhiloxBlock {
  uint32_t word[4];
};

LLM_PHILOX_FN PhiloxBlock philox(uint64_t seed, uint64_t block, uint64_t stream) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

LLM_PHILOX_FN float philox_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 5.9604644775390625e-8f; }

// The two normals of the words (a, b), standard deviation 1.
LLM_PHILOX_FN void philox_normal(uint32_t a, uint32_t b, float* even, float* odd) {
  const double u1 = (static_cast<double>(a) + 1.0) * 2.3283064365386962890625e-10;
  const double angle = 6.283185307179586476925286766559 * (static_cast<double>(b) * 2.3283064365386962890625e-10);
  const double radius = sqrt(-2.0 * log(u1));
  *even = static_cast<float>(radius * cos(angle));
  *odd = static_cast<float>(radius * sin(angle));
}

// A seed or stream arrives as an f64 attribute: whole numbers up to 2^53.
LLM_PHILOX_FN uint64_t philox_key(double value) { return static_cast<uint64_t>(static_cast<int64_t>(value)); }

}  // namespace llm
