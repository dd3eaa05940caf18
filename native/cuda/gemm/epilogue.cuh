// The last step of a product: alpha * sum + beta * c + bias, rounded once to the dtype of c. The dtype of c is a template argument where
// it matters for speed; that of the bias is looked at per element.
#pragma once
#include "cuda/gemm/gemm.h"

namespace llm::cuda {

struct Epilogue {
  void* c;
  int64_t ldc;
  DType dtype_c;
  const void* bias;
  DType dtype_bias;
  float alpha, beta;
  bool quads;  // four neighbours of a row, from a multiple of 4 on, can be stored at once
};

inline Epilogue epilogue_of(const Gemm& g) {
  const bool quads = g.ldc % 4 == 0 && reinterpret_cast<uintptr_t>(g.c) % (4 * dtype_bytes(g.dtype_c)) == 0;
  return {g.c, g.ldc, g.dtype_c, g.bias, g.dtype_bias, g.alpha, g.beta, quads};
}

__device__ inline float load_any(const void* p, DType t, int64_t i) {
  switch (t) {
    case DType::bf16: return to_float(static_cast<const bf16*>(p)[i]);
    case DType::f16: return to_float(static_cast<const f16*>(p)[i]);
    default: return static_cast<const float*>(p)[i];
  }
}

template <class C>
__device__ inline float finished(const Epilogue& e, const C* c, int64_t col, float sum) {
  float v = e.alpha * sum;
  if (e.beta != 0.f) v += e.beta * to_float(*c);
  if (e.bias) v += load_any(e.bias, e.dtype_bias, col);
  return v;
}
template <class C>
__device__ inline void finish_one(const Epilogue& e, int64_t row, int64_t col, float sum) {
  C* c = static_cast<C*>(e.c) + row * e.ldc + col;
  *c = from_float<C>(finished(e, c, col, sum));
}

// Device-side dispatch on the dtype of c: with_result(e, [&](auto t) { using C = decltype(t); … }).
template <class F>
__device__ inline void with_result(const Epilogue& e, F&& f) {
  if (e.dtype_c == DType::bf16)
    f(bf16{});
  else if (e.dtype_c == DType::f16)
    f(f16{});
  else
    f(float{});
}

constexpr int kStagedTile = 128, kStagedRow = kStagedTile + 4;  // the padding spreads a column over the banks
constexpr int kStagedBytes = kStagedTile * kStagedRow * static_cast<int>(sizeof(float));

// Writes the 128x128 tile of C at (first_m, first_n) whose sums lie in shared memory [128][kStagedRow]; all threads of the block.
__device__ inline void finish_tile(const Epilogue& e, const float* tile, int64_t first_m, int64_t first_n, int64_t m, int64_t n) {
  with_result(e, [&](auto t) {
    using C = decltype(t);
    struct alignas(4 * sizeof(C)) Quad {
      C v[4];
    };
    for (int i = threadIdx.x; i < kStagedTile * kStagedTile / 4; i += blockDim.x) {
      const int r = i / (kStagedTile / 4), q = i % (kStagedTile / 4) * 4;
      const int64_t row = first_m + r, col = first_n + q;
      if (row >= m || col >= n) continue;
      const float4 sums = *reinterpret_cast<const float4*>(tile + r * kStagedRow + q);
      const float sum[4] = {sums.x, sums.y, sums.z, sums.w};
      C* c = static_cast<C*>(e.c) + row * e.ldc + col;
      if (e.quads && col + 3 < n) {
        Quad old, quad;
        if (e.beta != 0.f) old = *reinterpret_cast<const Quad*>(c);
#pragma unroll
        for (int j = 0; j < 4; j++) quad.v[j] = from_float<C>(finished(e, old.v + j, col + j, sum[j]));
        *reinterpret_cast<Quad*>(c) = quad;
      } else {
        for (int j = 0; j < 4 && col + j < n; j++) c[j] = from_float<C>(finished(e, c + j, col + j, sum[j]));
      }
    }
  });
}

}  // namespace llm::cuda
