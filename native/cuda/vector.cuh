// Loops over elements: V neighbouring elements a thread and step, in f32 registers between memory and arithmetic. A step moves 16 bytes
// of the narrowest operand (32 of a wider one), and a thread has several steps' loads on the way before it stores the first result.
#pragma once
#include <type_traits>

#include "cuda/kernel.cuh"

namespace llm::cuda {

constexpr int kEachThreads = 256;

// Elements in 16 bytes of the narrowest of the (floating-point) types.
template <class... T>
constexpr int kWidth = ((sizeof(T) == 2) || ...) ? 8 : 4;

// V neighbouring elements, moved in pieces of at most 16 bytes; the address is aligned to the smaller of the whole and 16 bytes. Two
// elements of 16 bits stay together in a register until they are asked for.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Few {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * V, kWords = kBytes / 4;
  static_assert(kBytes % 16 == 0 || kBytes == 8);
  uint32_t word[kWords];

  __device__ static Few load(const T* p) {
    Few r;
    if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(r.word) = *reinterpret_cast<const uint2*>(p);
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 16; i++) *reinterpret_cast<uint4*>(r.word + 4 * i) = reinterpret_cast<const uint4*>(p)[i];
    }
    return r;
  }
  __device__ void store(T* p) const {
    if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(word);
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 16; i++) reinterpret_cast<uint4*>(p)[i] = *reinterpret_cast<const uint4*>(word + 4 * i);
    }
  }
  __device__ float get(int j) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[j]);
    } else {
      const uint32_t w = word[j / 2];
      if constexpr (std::is_same_v<T, bf16>) return __uint_as_float(j % 2 ? w & 0xffff0000u : w << 16);
      else return __half2float(__ushort_as_half(static_cast<unsigned short>(j % 2 ? w >> 16 : w)));
    }
  }
  // Element j, for elements one by one in rising order.
  __device__ void put(int j, T x) {
    if constexpr (sizeof(T) == 4) {
      word[j] = __float_as_uint(x);
    } else {
      uint32_t bits;
      if constexpr (std::is_same_v<T, bf16>) bits = __bfloat16_as_ushort(x);
      else bits = __half_as_ushort(x);
      word[j / 2] = j % 2 ? word[j / 2] | bits << 16 : bits;
    }
  }
  __device__ static Few of(const float (&v)[V]) {
    Few r;
#pragma unroll
    for (int i = 0; i < kWords; i++) {
      if constexpr (sizeof(T) == 4) {
        r.word[i] = __float_as_uint(v[i]);
      } else if constexpr (std::is_same_v<T, bf16>) {
        const __nv_bfloat162 two = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        r.word[i] = *reinterpret_cast<const uint32_t*>(&two);
      } else {
        const __half2 two = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
        r.word[i] = *reinterpret_cast<const uint32_t*>(&two);
      }
    }
    return r;
  }
};
template <class T>
struct Few<T, 1> {
  static constexpr int kBytes = static_cast<int>(sizeof(T));
  T x;

  __device__ static Few load(const T* p) { return {*p}; }
  __device__ void store(T* p) const { *p = x; }
  __device__ float get(int) const { return to_float(x); }
  __device__ static Few of(const float (&v)[1]) { return {from_float<T>(v[0])}; }
};

template <int V, class T>
__device__ inline void load_floats(const T* p, float (&v)[V]) {
  const Few<T, V> q = Few<T, V>::load(p);
#pragma unroll
  for (int j = 0; j < V; j++) v[j] = q.get(j);
}
template <int V, class T>
__device__ inline void store_floats(T* p, const float (&v)[V]) {
  Few<T, V>::of(v).store(p);
}

// 2^x in one instruction: relative error 2^-22, 0 below 2^-126.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

// i = quotient * d + remainder for 0 <= i < limit, by a multiplication where the limit allows it (Granlund, Montgomery 1994): for
// l = ceil(log2 d) and m = floor(2^32 (2^l - d) / d) + 1, i / d = (high half of i m + i) >> l while i < 2^31.
struct Divider {
  int64_t d;
  uint32_t m, l;
  bool small;

  Divider() = default;
  Divider(int64_t divisor, int64_t limit) : d(divisor), m(0), l(0), small(limit <= int64_t{1} << 31 && divisor <= int64_t{1} << 30) {
    if (!small || d < 1) return;
    while (int64_t{1} << l < d) l++;
    m = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << l) - static_cast<uint64_t>(d)) / static_cast<uint64_t>(d) + 1);
  }
  __device__ void operator()(int64_t i, int64_t& quotient, int64_t& remainder) const {
    if (small) {
      const uint32_t n = static_cast<uint32_t>(i), q = (__umulhi(n, m) + n) >> l;
      quotient = q;
      remainder = n - q * static_cast<uint32_t>(d);
    } else {
      quotient = i / d;
      remainder = i - quotient * d;
    }
  }
};

// Runs op on elements [0, n): op.load<V>(i, registers) for all steps of the thread, then op.store<V>(i, registers). i is a multiple of V.
template <int V, int U, class Op>
__global__ void __launch_bounds__(kEachThreads) each_kernel(int64_t n, const Op op) {
  follow();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (U * kEachThreads) + threadIdx.x) * V;
  typename Op::template Registers<V> r[U];
#pragma unroll
  for (int u = 0; u < U; u++) {
    const int64_t i = first + u * (kEachThreads * V);
    if (i + V <= n) op.template load<V>(i, r[u]);
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    const int64_t i = first + u * (kEachThreads * V);
    if (i + V <= n) {
      op.template store<V>(i, r[u]);
    } else if constexpr (V > 1) {
#pragma unroll 1
      for (int64_t j = i; j < n; j++) {
        typename Op::template Registers<1> one;
        op.template load<1>(j, one);
        op.template store<1>(j, one);
      }
    }
  }
}

// V elements a step when `aligned`: every operand's address is a multiple of 16 bytes (or of V elements, if those are fewer bytes) and no
// step crosses the end of a row. Else one element a step.
template <int V, int U = 2, class Op>
const char* each(Context& ctx, int64_t n, bool aligned, const Op& op) {
  if (n == 0) return nullptr;
  if (aligned) {
    launch(ctx, each_kernel<V, U, Op>, static_cast<unsigned>(ceil_div(n, V * U * kEachThreads)), kEachThreads, 0, n, op);
  } else {
    constexpr int kSteps = U < 4 ? 4 : U;
    launch(ctx, each_kernel<1, kSteps, Op>, static_cast<unsigned>(ceil_div(n, kSteps * kEachThreads)), kEachThreads, 0, n, op);
  }
  return launched();
}

// Two views whose first dim may be strided, cut alike into rows of `inner` dense elements; one row when both are dense.
struct RowPair {
  int64_t rows, inner, stride_a, stride_b;
};
inline RowPair row_pair(const View& a, const View& b) {
  const int64_t n = view_numel(a), rows = a.ndim < 1 || n == 0 ? 1 : a.shape[0], inner = n / rows;
  if (rows == 1 || (a.stride[0] == inner && b.stride[0] == inner)) return RowPair{1, n, n, n};
  return RowPair{rows, inner, a.stride[0], b.stride[0]};
}

}  // namespace llm::cuda
