// Rows of logits: a running softmax, and how a block walks over a row with 16-byte accesses whatever the row's alignment.
#pragma once
#include <cfloat>
#include <cmath>

#include "cuda/kernel.cuh"

namespace llm::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// 2^x in one instruction (relative error 2^-22; 0 below 2^-126).
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x * factor for a factor that is not a float: high is below it and rest the rest, never 0, so that -inf stays -inf.
struct Factor {
  float high, rest;
  static Factor of(double f) {
    float high = static_cast<float>(f);
    if (static_cast<double>(high) >= f) high = std::nextafter(high, 0.f);
    return Factor{high, static_cast<float>(f - static_cast<double>(high))};
  }
  __device__ float times(float x) const { return fmaf(x, high, x * rest); }
};

// Maximum m and sum of 2^power(x - m) of the values seen so far. m starts finite so that -inf (an impossible token) adds 0 without special
// cases; a sum of 0 means that there was nothing else.
struct RunningSoftmax {
  float m = -FLT_MAX, s = 0;

  // `most` is the largest of x.
  template <int N, class Power>
  __device__ void add(const float (&x)[N], float most, const Power& power) {
    const float old = m;
    m = fmaxf(m, most);
    float a = s * exp2_fast(power(old - m)), b = 0;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      a += exp2_fast(power(x[i] - m));
      if (i + 1 < N) b += exp2_fast(power(x[i + 1] - m));
    }
    s = a + b;
  }

  // Of all threads of the block.
  template <class Power>
  __device__ RunningSoftmax over_block(float* shared, const Power& power) const {
    RunningSoftmax all;
    all.m = block_max(m, shared);
    all.s = block_sum(s * exp2_fast(power(m - all.m)), shared);
    return all;
  }
};

template <int N>
__device__ inline float largest(const float (&x)[N]) {
  float most = x[0];
#pragma unroll
  for (int i = 1; i < N; i++) most = fmaxf(most, x[i]);
  return most;
}

// The part of a row that block `rank` of `ranks` works on: single elements [begin, body), `packs` of 16 bytes from column `body` on, and single
// elements [tail, end). Only the ends of a row have single elements. Columns fit an int: labels do.
struct RowPart {
  int begin, body, packs, tail, end;
};
template <class T>
__device__ inline RowPart row_part(const T* row, int cols, int rank, int ranks) {
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) & 15) / static_cast<int>(sizeof(T));
  const int head = min(past == 0 ? 0 : Pack<T>::n - past, cols), all = (cols - head) / Pack<T>::n, share = (all + ranks - 1) / ranks;
  const int first = min(rank * share, all), packs = min(share, all - first), body = head + first * Pack<T>::n, tail = body + packs * Pack<T>::n;
  return RowPart{rank == 0 ? 0 : body, body, packs, tail, rank == ranks - 1 ? cols : tail};
}

// 16 bytes that this kernel reads or writes for the last time: they leave the cache first.
template <class T>
__device__ inline Pack<T> load_pack_last(const T* p) {
  Pack<T> r;
  *reinterpret_cast<uint4*>(&r) = __ldcs(reinterpret_cast<const uint4*>(p));
  return r;
}
template <class T>
__device__ inline void store_pack_last(T* p, const Pack<T>& r) {
  __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&r));
}

// Eight neighbouring elements from column c on as f32; those at `cols` and beyond are -inf. `wide`: rows start on 16-byte boundaries.
template <class T>
__device__ inline void load_eight(const T* row, int64_t c, int64_t cols, bool wide, float (&x)[8]) {
  if (wide && c + 8 <= cols) {
#pragma unroll
    for (int i = 0; i < 8; i += Pack<T>::n) {
      const Pack<T> p = load_pack(row + c + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::n; j++) x[i + j] = to_float(p.v[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = c + i < cols ? to_float(row[c + i]) : -INFINITY;
  }
}
template <class T>
__device__ inline void store_eight(T* row, int64_t c, int64_t cols, bool wide, const float (&x)[8]) {
  if (wide && c + 8 <= cols) {
#pragma unroll
    for (int i = 0; i < 8; i += Pack<T>::n) {
      Pack<T> p;
#pragma unroll
      for (int j = 0; j < Pack<T>::n; j++) p.v[j] = from_float<T>(x[i + j]);
      store_pack(row + c + i, p);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (c + i < cols) row[c + i] = from_float<T>(x[i]);
  }
}

}  // namespace llm::cuda
