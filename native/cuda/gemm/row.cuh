// One row of x against a weight w [n, k] that is streamed once, in one 16-bit dtype: the products of decoding a single sequence, and what a
// decoder does right before and right after them, so that a step is a chain of few kernels.
//
//     x = rms_norm(x + residual)       or x as it is
//     y = x w^T + bias
//     gated = silu(first half of y) * second half, or added = y + other
//
// Everything is rounded where the single ops round it and written out as they do, to the same bits.
//
// The time is that of reading w, so a lane starts all loads of a step before it uses the first, and those of the next step before the sums
// of this one go out. Where no earlier command can write w (settled), the first step's loads start before the wait for the kernel before, so
// that memory does not idle while one kernel ends and the next begins. A row is shared by `split` warps; their sums meet in a fixed order.
#pragma once
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/row.h"
#include "cuda/norm.cuh"
#include "cuda/ptx.cuh"

namespace llm::cuda {

constexpr int kRowWarps = 8, kRowThreads = 32 * kRowWarps;

struct RowShape {
  int split;          // warps that share a row
  int rows_of_block;  // neighbours; of each half where y is gated
};

// The normed row, in shared memory, as norm.cu computes it with the same threads. One block writes the norm's outputs.
template <class T>
__device__ inline void norm_row(const RowProduct& p, T* to) {
  const T* x = static_cast<const T*>(p.x);
  constexpr int N = Pack<T>::n;
  const int packs = p.k / N;
  __shared__ float shared[2 * kMaxWarps];
  Group group(p.lanes, shared);
  const T *residual = static_cast<const T*>(p.residual), *weight = static_cast<const T*>(p.norm);
  const bool mine = group.index == 0, writer = mine && blockIdx.x == 0;
  Pack<T> v[kRowPacks], other[kRowPacks], w[kRowPacks];
#pragma unroll
  for (int j = 0; j < kRowPacks; j++) {
    const int i = group.lane + j * p.lanes;
    if (!mine || i >= packs) continue;
    v[j] = load_pack(x + i * N);
    if (residual) other[j] = load_pack(residual + i * N);
    w[j] = load_pack(weight + i * N);
  }
  float squares[1] = {};
#pragma unroll
  for (int j = 0; j < kRowPacks; j++) {
    const int i = group.lane + j * p.lanes;
    if (!mine || i >= packs) continue;
    if (residual) {
      float sum[N];
#pragma unroll
      for (int e = 0; e < N; e++) sum[e] = to_float(v[j].v[e]) + to_float(other[j].v[e]);
      round_to(v[j].v, sum);
      if (writer) store_pack(static_cast<T*>(p.sum) + i * N, v[j]);
    }
#pragma unroll
    for (int e = 0; e < N; e++) squares[0] = fmaf(to_float(v[j].v[e]), to_float(v[j].v[e]), squares[0]);
  }
  group.sum(squares);
  const float rstd = rstd_of(squares[0], p.k, p.eps);
  if (writer && group.lane == 0) *p.rstd = rstd;
#pragma unroll
  for (int j = 0; j < kRowPacks; j++) {
    const int i = group.lane + j * p.lanes;
    if (!mine || i >= packs) continue;
    float y[N];
#pragma unroll
    for (int e = 0; e < N; e++) y[e] = to_float(v[j].v[e]) * rstd * to_float(w[j].v[e]);
    round_to(v[j].v, y);
    store_pack(to + i * N, v[j]);
    if (writer) store_pack(static_cast<T*>(p.normed) + i * N, v[j]);
  }
  __syncthreads();
}

// A row's sum (and, gated, that of its partner in the second half) on its way out.
template <class T, bool Gate>
__device__ inline void finish_row(const RowProduct& p, int row, float sum, float partner) {
  if constexpr (Gate) {
    const int half = p.n / 2;
    T* y = static_cast<T*>(p.e.c);
    const T gate = from_float<T>(finished(p.e, y, row, sum)), up = from_float<T>(finished(p.e, y, row + half, partner));
    y[row] = gate;
    y[row + half] = up;
    const float g = to_float(gate);
    static_cast<T*>(p.gated)[row] = from_float<T>(g * sigmoid<T>(g) * to_float(up));
  } else {
    with_result(p.e, [&](auto c) { finish_one<decltype(c)>(p.e, 0, row, sum); });
    if (p.added) static_cast<T*>(p.added)[row] = from_float<T>(to_float(static_cast<const T*>(p.e.c)[row]) + to_float(static_cast<const T*>(p.other)[row]));
  }
}

template <class T, int rows, int ahead, bool Norm, bool Gate>
__global__ void __launch_bounds__(kRowThreads, 3) row_kernel(const RowProduct p, const RowShape shape) {
  extern __shared__ uint4 normed[];
  __shared__ float part[2][kRowWarps][rows];
  constexpr int R = Gate ? rows / 2 : rows, N = 8;
  release_dependents();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, slice = warp % shape.split, group = warp / shape.split, groups = kRowWarps / shape.split;
  const int n = Gate ? p.n / 2 : p.n, begin = blockIdx.x * shape.rows_of_block, end = min(n, begin + shape.rows_of_block);
  const int step = shape.split * 32 * N, start = (slice * 32 + lane) * N;

  // The rows of this warp are `base + group * R` and its neighbours; what comes next of them starts at k.
  int base = begin, k = start;
  uint4 v[ahead][rows];
  const auto load = [&] {
    if (base >= end) return;
#pragma unroll
    for (int r = 0; r < rows; r++) {
      const int row = min(base + group * R + r % R, end - 1) + r / R * n;
      const T* from = static_cast<const T*>(p.w) + row * p.ldw + k;
#pragma unroll
      for (int a = 0; a < ahead; a++)
        if (k + a * step < p.k) v[a][r] = ptx::stream16(from + a * step);
    }
  };
  if (p.settled) load();
  wait_for_previous();
  if (!p.settled) load();
  const T* x = static_cast<const T*>(p.x);
  if constexpr (Norm) {
    norm_row(p, reinterpret_cast<T*>(normed));
    x = reinterpret_cast<const T*>(normed);
  }

  int turn = 0;
  float sum[rows] = {};
  while (base < end) {
#pragma unroll
    for (int a = 0; a < ahead; a++) {
      if (k + a * step >= p.k) break;
      const Pack<T> px = load_pack(x + k + a * step);
      float fx[N];
#pragma unroll
      for (int i = 0; i < N; i++) fx[i] = to_float(px.v[i]);
#pragma unroll
      for (int r = 0; r < rows; r++)
#pragma unroll
        for (int i = 0; i < N; i++) sum[r] = fmaf(to_float(reinterpret_cast<const T*>(&v[a][r])[i]), fx[i], sum[r]);
    }
    const int done = base;
    k += step * ahead;
    const bool last = k - start >= p.k;
    if (last) {
      base += groups * R;
      k = start;
    }
    load();
    if (!last) continue;

#pragma unroll
    for (int r = 0; r < rows; r++) sum[r] = warp_sum(sum[r]);
    if (shape.split == 1) {
      float own = 0, partner = 0;
#pragma unroll
      for (int r = 0; r < R; r++)
        if (lane == r) own = sum[r], partner = sum[(r + R) % rows];
      const int row = done + group * R + lane;
      if (lane < R && row < end) finish_row<T, Gate>(p, row, own, partner);
    } else {
      if (lane == 0)
#pragma unroll
        for (int r = 0; r < rows; r++) part[turn][warp][r] = sum[r];
      __syncthreads();
      const int i = threadIdx.x, row = done + i;
      if (i < groups * R && row < end) {
        float own = 0, partner = 0;
        for (int s = 0; s < shape.split; s++) {
          own += part[turn][i / R * shape.split + s][i % R];
          if (Gate) partner += part[turn][i / R * shape.split + s][(i % R + R) % rows];
        }
        finish_row<T, Gate>(p, row, own, partner);
      }
      turn ^= 1;  // so that one barrier a step is enough
    }
#pragma unroll
    for (int r = 0; r < rows; r++) sum[r] = 0;
  }
}

}  // namespace llm::cuda
