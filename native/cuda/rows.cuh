// Tensors seen as rows over their last dim, and short runs of elements that move as one access.
#pragma once
#include <type_traits>

#include "cuda/kernel.cuh"

namespace llm::cuda {

// Row r starts at (r / inner) * stride + (r % inner) * cols: only the first dim may be strided.
struct RowView {
  int64_t rows, cols, inner, stride;

  __device__ int64_t start(int64_t r) const {
    if (inner == 1) return r * stride;
    if (r <= UINT32_MAX) {  // a 32-bit division is several times cheaper
      const uint32_t q = static_cast<uint32_t>(r) / static_cast<uint32_t>(inner);
      return q * stride + static_cast<int64_t>(static_cast<uint32_t>(r) - q * static_cast<uint32_t>(inner)) * cols;
    }
    return (r / inner) * stride + (r % inner) * cols;
  }
};

// Dense tensors become [rows, cols] with inner = 1.
inline RowView row_view(const View& v) {
  const int64_t cols = last_dim(v);
  int64_t rows = 1, inner = 1;
  for (int i = 0; i + 1 < v.ndim; i++) rows *= v.shape[i];
  for (int i = 1; i + 1 < v.ndim; i++) inner *= v.shape[i];
  if (v.ndim < 2 || v.shape[0] <= 1 || v.stride[0] == inner * cols) return RowView{rows, cols, 1, cols};
  return RowView{rows, cols, inner, v.stride[0]};
}

// Whether every row can be read 16 bytes at a time.
inline bool packs_fit(const void* data, DType dtype, const RowView& r) {
  const int64_t n = 16 / static_cast<int64_t>(dtype_bytes(dtype));
  return aligned16(data) && r.cols % n == 0 && r.stride % n == 0;
}

// V elements of T, moved in pieces of at most 16 bytes. The address must be aligned to the smaller of 16 bytes and the whole.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Span {
  T v[V];

  // What moves at a time.
  static constexpr int bytes = static_cast<int>(sizeof(T)) * V, pieces = bytes < 16 ? 1 : bytes / 16;
  using Piece = std::conditional_t<bytes >= 16, uint4, std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, std::conditional_t<bytes == 2, uint16_t, uint8_t>>>>;

  __device__ static Span load(const T* p) {
    Span s;
#pragma unroll
    for (int i = 0; i < pieces; i++) reinterpret_cast<Piece*>(&s)[i] = reinterpret_cast<const Piece*>(p)[i];
    return s;
  }
  __device__ void store(T* p) const {
#pragma unroll
    for (int i = 0; i < pieces; i++) reinterpret_cast<Piece*>(p)[i] = reinterpret_cast<const Piece*>(this)[i];
  }
};

// to = x, rounded. Two 16-bit elements are converted by one instruction, which is faster than either alone.
template <class T, int n>
__device__ inline void round_to(T (&to)[n], const float (&x)[n]) {
  if constexpr (sizeof(T) == 2 && n % 2 == 0) {
#pragma unroll
    for (int i = 0; i < n; i += 2) {
      if constexpr (std::is_same_v<T, bf16>) *reinterpret_cast<__nv_bfloat162*>(&to[i]) = __floats2bfloat162_rn(x[i], x[i + 1]);
      else *reinterpret_cast<__half2*>(&to[i]) = __floats2half2_rn(x[i], x[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; i++) to[i] = from_float<T>(x[i]);
  }
}

// 1 / (1 + exp(-x)); the fast instructions are good to about 2^-20, which 16-bit results do not show.
template <class T>
__device__ inline float sigmoid(float x) {
  if constexpr (sizeof(T) == 4) return 1.0f / (1.0f + expf(-x));
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// A copy of 16 bytes to shared memory that goes on while the thread works. Both addresses are aligned to 16 bytes.
__device__ inline void copy_async(void* shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(from) : "memory");
}
// Closes a group of copies; waits until at most `Left` groups of this thread are on their way.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

}  // namespace llm::cuda
