// Attention forward for any dtype and any width, in f32 on the ordinary units. A block takes 32 rows of one head and up to 128 columns of
// o; keys pass through shared memory 32 at a time: scores from 32-column pieces of q and k, the running softmax by 8 threads a row, then
// the product with 32 x 128 values. Wider heads repeat the scores per 128 columns.
#include <algorithm>

#include "cuda/attention/forward.h"

namespace llm::cuda {
namespace {

constexpr int kRows = 32, kKeys = 32, kPiece = 32, kColumns = 128, kThreads = 256;

template <class T>
struct Generic {
  const T *q, *k, *v;
  T* o;
  float* lse;
  int64_t q_stride, k_stride, v_stride;  // between tokens
  Packed p;
  int heads, group, together, width;
  float scale;
};

template <class T>
__global__ void __launch_bounds__(kThreads) forward_generic_kernel(const Generic<T> a) {
  __shared__ float qs[kRows][kPiece + 1], ks[kKeys][kPiece + 1], ps[kRows][kKeys + 1], vs[kKeys][kColumns], factors[kRows], inverse[kRows];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  if (blockIdx.x == 0 && blockIdx.y == 0 && warp == 0) check_boundaries(a.p);
  WorkCursor cursor;
  Work w;
  if (!find_work(a.p, kRows, a.heads, a.together, blockIdx.x, cursor, w)) return;
  const Stretch s = w.s;
  const int row0 = w.tile * kRows, rows = min(kRows, s.queries - row0), column0 = blockIdx.y * kColumns;
  const T* q = a.q + (s.q_begin + row0) * a.q_stride + static_cast<int64_t>(w.head) * a.width;
  const T* k = a.k + s.k_begin * a.k_stride + static_cast<int64_t>(w.head / a.group) * a.width;
  const T* v = a.v + s.k_begin * a.v_stride + static_cast<int64_t>(w.head / a.group) * a.width;

  // Scores: rows 2 (thread / 16) + {0, 1}, keys thread % 16 + {0, 16}. Softmax: row thread / 8. Output: rows 4 warp + …, columns lane + 32 ….
  const int score_row = 2 * (thread / 16), score_key = thread % 16, softmax_row = thread / 8;
  float top = -INFINITY, sum = 0.f, acc[4][4] = {};
  const int begin = first_key(a.p, s, row0) / kKeys * kKeys, end = last_key(a.p, s, row0 + rows - 1);
  for (int key0 = begin; key0 < end; key0 += kKeys) {
    float dot[2][2] = {};
    for (int d0 = 0; d0 < a.width; d0 += kPiece) {
      __syncthreads();
      for (int i = warp; i < kRows; i += kThreads / 32) {
        const int d = d0 + lane;
        qs[i][lane] = i < rows && d < a.width ? to_float(q[i * a.q_stride + d]) : 0.f;
        ks[i][lane] = key0 + i < s.keys && d < a.width ? to_float(k[(key0 + i) * a.k_stride + d]) : 0.f;
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kPiece; d++) {
        const float q0 = qs[score_row][d], q1 = qs[score_row + 1][d], k0 = ks[score_key][d], k1 = ks[score_key + 16][d];
        dot[0][0] = fmaf(q0, k0, dot[0][0]);
        dot[0][1] = fmaf(q0, k1, dot[0][1]);
        dot[1][0] = fmaf(q1, k0, dot[1][0]);
        dot[1][1] = fmaf(q1, k1, dot[1][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int first = first_key(a.p, s, row0 + score_row + i), last = last_key(a.p, s, row0 + score_row + i);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int key = key0 + score_key + 16 * j;
        ps[score_row + i][score_key + 16 * j] = key >= first && key < last ? dot[i][j] * a.scale : -INFINITY;
      }
    }
    for (int i = warp; i < kKeys; i += kThreads / 32)
#pragma unroll
      for (int c = lane; c < kColumns; c += 32) {
        const int d = column0 + c;
        vs[i][c] = key0 + i < s.keys && d < a.width ? to_float(v[(key0 + i) * a.v_stride + d]) : 0.f;
      }
    __syncthreads();

    float x[4], largest = top;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[j] = ps[softmax_row][thread % 8 + 8 * j];
      largest = fmaxf(largest, x[j]);
    }
#pragma unroll
    for (int o = 1; o < 8; o <<= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, o));
    const float base = largest == -INFINITY ? 0.f : largest, factor = expf(top - base);
    top = largest;
    sum *= factor;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[j] = expf(x[j] - base);
      sum += x[j];
      ps[softmax_row][thread % 8 + 8 * j] = x[j];
    }
    if (thread % 8 == 0) factors[softmax_row] = factor;
    __syncthreads();

#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[i][c] *= factors[4 * warp + i];
#pragma unroll 8
    for (int j = 0; j < kKeys; j++) {
      float value[4];
#pragma unroll
      for (int c = 0; c < 4; c++) value[c] = vs[j][lane + 32 * c];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float p = ps[4 * warp + i][j];
#pragma unroll
        for (int c = 0; c < 4; c++) acc[i][c] = fmaf(p, value[c], acc[i][c]);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int o = 1; o < 8; o <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (thread % 8 == 0) {
    inverse[softmax_row] = sum == 0.f ? 0.f : 1.f / sum;
    if (softmax_row < rows && blockIdx.y == 0)
      a.lse[static_cast<int64_t>(w.head) * a.p.queries + s.q_begin + row0 + softmax_row] = sum == 0.f ? -INFINITY : top + logf(sum);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = 4 * warp + i;
    if (row >= rows) break;
    T* to = a.o + (static_cast<int64_t>(s.q_begin + row0 + row) * a.heads + w.head) * a.width;
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int d = column0 + lane + 32 * c;
      if (d < a.width) to[d] = from_float<T>(acc[i][c] * inverse[row]);
    }
  }
}

}  // namespace

const char* forward_generic(Context& ctx, const Forward& f) {
  const int64_t blocks = f.packed.most_tiles(kRows) * f.heads, columns = std::max<int64_t>(1, ceil_div(f.q.shape[2], kColumns));
  if (blocks >= int64_t{1} << 30 || columns > 65535) return "fewer tokens, heads or columns expected";
  return dispatch(f.q.dtype, [&](auto t) {
    using T = decltype(t);
    Generic<T> a;
    a.q = data_of<T>(f.q);
    a.k = data_of<T>(f.k);
    a.v = data_of<T>(f.v);
    a.o = reinterpret_cast<T*>(f.o);
    a.lse = f.lse;
    a.q_stride = f.q.stride[0];
    a.k_stride = f.k.stride[0];
    a.v_stride = f.v.stride[0];
    a.p = f.packed;
    a.heads = f.heads;
    a.group = f.group;
    a.together = f.together;
    a.width = static_cast<int>(f.q.shape[2]);
    a.scale = static_cast<float>(f.scale);
    forward_generic_kernel<T><<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)), kThreads, 0, ctx.stream>>>(a);
    return launched();
  });
}

}  // namespace llm::cuda
