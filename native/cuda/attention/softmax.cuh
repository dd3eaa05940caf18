// The running softmax on scores in the layout of a tensor core's sums (see mma16816 and wgmma in ptx.cuh): a thread holds pieces of two
// rows, s[4 j], s[4 j + 1] of the upper and s[4 j + 2], s[4 j + 3] of the lower, columns 8 j + 2 (lane % 4) + {0, 1}; the four lanes of a
// quad hold a row together.
#pragma once
#include "cuda/ptx.cuh"

namespace llm::cuda {

struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY};  // largest score of the row so far
  float sum[2] = {0.f, 0.f};              // this thread's share of sum 2^(c (s - top))
};

// Columns outside [first, last) of each row become -inf. first and last count from the tile's column 2 (lane % 4).
template <int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], const int (&first)[2], const int (&last)[2]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int column = 8 * (i / 4) + (i & 1), r = (i >> 1) & 1;
    if (column < first[r] || column >= last[r]) s[i] = -INFINITY;
  }
}

// Columns from `last` on become -inf.
template <int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], const int (&last)[2]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    if (8 * (i / 4) + (i & 1) >= last[(i >> 1) & 1]) s[i] = -INFINITY;
}

// Turns scores into 2^(c (s - top)) with the new top, and says by what earlier sums and outputs must be multiplied. `may_be_empty`: rows
// may have seen no key so far.
template <bool may_be_empty, int N>
__device__ __forceinline__ void advance_softmax(float (&s)[N], RunningSoftmax& x, float (&factor)[2], float c) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float top = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
    for (int j = 4; j < N; j += 4) top = fmaxf(top, fmaxf(s[j + 2 * r], s[j + 2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    top = fmaxf(top, x.top[r]);
    const float base = (may_be_empty && top == -INFINITY ? 0.f : top) * c;
    factor[r] = ptx::exp2_fast(x.top[r] * c - base);
    x.top[r] = top;
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      s[j + 2 * r] = ptx::exp2_fast(fmaf(s[j + 2 * r], c, -base));
      s[j + 2 * r + 1] = ptx::exp2_fast(fmaf(s[j + 2 * r + 1], c, -base));
      sum += s[j + 2 * r] + s[j + 2 * r + 1];
    }
    x.sum[r] = x.sum[r] * factor[r] + sum;
  }
}

// The probabilities, rounded, as the left operand of the next product: a[i] covers columns 16 i … 16 i + 15.
template <class T, int N>
__device__ __forceinline__ void pack_scores(const float (&s)[N], uint32_t (&a)[N / 8][4]) {
#pragma unroll
  for (int i = 0; i < N / 8; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) a[i][e] = ptx::pack2<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
}

// Ends the rows: 1 / sum over the quad, and the log-sum-exp of the scaled scores.
__device__ __forceinline__ void finish_softmax(const RunningSoftmax& x, float scale, float (&inverse)[2], float (&lse)[2]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float sum = x.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    inverse[r] = sum == 0.f ? 0.f : 1.f / sum;
    lse[r] = sum == 0.f ? -INFINITY : x.top[r] * scale + logf(sum);
  }
}

// Writes a row piece of o, rounded: the quad's lanes trade registers so that each stores 16 bytes. `row` is where this thread's upper
// (r = 0) or lower (r = 1) row begins; columns >= width are left out (width: a multiple of 8, N of 16). Called by whole warps.
template <class T, int N>
__device__ __forceinline__ void store_row(T* row, const float (&o)[N], int r, float factor, int width, bool inside) {
  const int lane = threadIdx.x & 3;
#pragma unroll
  for (int i = 0; i < N; i += 16) {  // 32 columns
    uint32_t x[4];
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = ptx::pack2<T>(o[i + 4 * j + 2 * r] * factor, o[i + 4 * j + 2 * r + 1] * factor);
    // A 4 x 4 transpose: first inside pairs of lanes, then between the pairs.
    const bool odd = lane & 1, upper = lane & 2;
    const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? x[0] : x[1], 1), b = __shfl_xor_sync(0xffffffffu, odd ? x[2] : x[3], 1);
    if (odd) {
      x[0] = a;
      x[2] = b;
    } else {
      x[1] = a;
      x[3] = b;
    }
    const uint32_t c = __shfl_xor_sync(0xffffffffu, upper ? x[0] : x[2], 2), d = __shfl_xor_sync(0xffffffffu, upper ? x[1] : x[3], 2);
    const uint4 out = upper ? make_uint4(c, d, x[2], x[3]) : make_uint4(x[0], x[1], c, d);
    const int column = 2 * i + 8 * lane;
    if (inside && column < width) *reinterpret_cast<uint4*>(row + column) = out;
  }
}

}  // namespace llm::cuda
