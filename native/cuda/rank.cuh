// The order of elements in argmax and topk, and how a block walks over a row.
#pragma once
#include "cuda/vector.cuh"

namespace llm::cuda {

// An unsigned integer that rises with v; NaN lowest, -0 = +0.
__device__ inline uint32_t order_of(float v) {
  if (v != v) return 0;
  const uint32_t u = __float_as_uint(v + 0.f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ inline float value_of(uint32_t order) { return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order); }

// Larger = better: the larger value, or of equal ones the lower column. No two elements of a row have one rank, and none has rank 0.
__device__ inline uint64_t rank_of(float v, int64_t col) {
  return static_cast<uint64_t>(order_of(v)) << 32 | ~static_cast<uint32_t>(col);
}
__device__ inline uint32_t column_of(uint64_t rank) { return ~static_cast<uint32_t>(rank); }
__device__ inline uint32_t order_in(uint64_t rank) { return static_cast<uint32_t>(rank >> 32); }

// Steps of V elements for each of `threads` threads: neighbours (kWide), or `threads` apart where rows have any alignment.
template <class T, bool kWide>
struct Walk {
  static constexpr int V = Pack<T>::n;
  const T* row;
  int64_t end;
  int thread, threads;

  __device__ int step() const { return threads * V; }
  __device__ int64_t column(int64_t at, int j) const { return kWide ? at + thread * V + j : at + j * threads + thread; }
  // Past the end: -inf.
  __device__ Few<T, V> load(int64_t at) const {
    Few<T, V> q;
    if constexpr (kWide) {
      if (column(at, 0) < end) return Few<T, V>::load(row + column(at, 0));
#pragma unroll
      for (int j = 0; j < V; j++) q.put(j, from_float<T>(-INFINITY));
    } else {
#pragma unroll
      for (int j = 0; j < V; j++) q.put(j, column(at, j) < end ? row[column(at, j)] : from_float<T>(-INFINITY));
    }
    return q;
  }
};

}  // namespace llm::cuda
