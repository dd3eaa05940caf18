// Sums over all elements (sum, mse) and over the rows of a matrix (sum_rows, mean_abs_cols, max_abs_cols). Both cut the work into parts
// whose number depends on the shape and the card alone, and add the parts in order: the same bits in every run. One launch each.
#include "cuda/reduce.h"

#include <algorithm>

#include "cuda/tables.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;
__device__ unsigned arrived[kMostGroups];

// ---- one number: f32 over the elements of a step, double over steps and threads ----------------------------------------------

template <class T>
struct Elements {
  const T* x;
  template <int V>
  __device__ float operator()(int64_t i) const {
    float v[V], s = 0;
    load_floats(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) s += v[j];
    return s;
  }
};

template <class A, class B>
struct SquaredDifferences {
  const A* a;
  const B* b;
  template <int V>
  __device__ float operator()(int64_t i) const {
    float v[V], w[V], s = 0;
    load_floats(a + i, v);
    load_floats(b + i, w);
#pragma unroll
    for (int j = 0; j < V; j++) s = fmaf(v[j] - w[j], v[j] - w[j], s);
    return s;
  }
};

// Every thread of the first warp gets the sum over the block.
__device__ inline double block_total(double x, double* shared) {
  const auto warp_total = [](double v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
  };
  x = warp_total(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_total(threadIdx.x % 32 < kThreads / 32 ? shared[threadIdx.x % 32] : 0.0);
}

template <int V, class Terms>
__global__ void __launch_bounds__(kThreads) total_kernel(int64_t n, double divisor, double* parts, float* y, const Terms terms) {
  __shared__ double shared[32];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, steps = n / V;
  double total = 0;
  constexpr int kAhead = 8;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < steps; i += kAhead * step) {
    float s[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) s[u] = i + u * step < steps ? terms.template operator()<V>((i + u * step) * V) : 0.f;
#pragma unroll
    for (int u = 0; u < kAhead; u++) total += s[u];
  }
  if (blockIdx.x == 0 && steps * V + threadIdx.x < n) total += terms.template operator()<1>(steps * V + threadIdx.x);  // fewer than V
  total = block_total(total, shared);
  if (gridDim.x == 1) {
    if (threadIdx.x == 0) *y = static_cast<float>(total / divisor);
    return;
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
  if (!last_of(arrived, gridDim.x)) return;
  total = 0;
  for (unsigned p = threadIdx.x; p < gridDim.x; p += kThreads) total += __ldcg(parts + p);
  total = block_total(total, shared);
  if (threadIdx.x == 0) *y = static_cast<float>(total / divisor);
}

template <int V, class Terms>
const char* total_as(Context& ctx, int64_t n, bool aligned, double divisor, float* y, const Terms& terms) {
  const int64_t want = ceil_div(n, (aligned ? V : 1) * kThreads * 2);
  const int blocks = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(want, static_cast<int64_t>(ctx.sms) * 4)));
  double* parts = blocks == 1 ? nullptr : ctx.scratch_of<double>(static_cast<size_t>(blocks));
  if (aligned) total_kernel<V><<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(n, divisor, parts, y, terms);
  else total_kernel<1><<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(n, divisor, parts, y, terms);
  return launched();
}

const char* sum(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    return total_as<kWidth<T>>(ctx, view_numel(x), aligned16(x.data), 1.0, data_of<float>(k.out[0]), Elements<T>{data_of<T>(x)});
  });
}

const char* mse(Context& ctx, const KernelArgs& k) {
  const View &a = k.in[0], &b = k.in[1];
  const int64_t n = view_numel(a);
  return dispatch(a.dtype, [&](auto s) {
    return dispatch(b.dtype, [&](auto t) {
      using A = decltype(s);
      using B = decltype(t);
      return total_as<kWidth<A, B>>(ctx, n, aligned16(a.data) && aligned16(b.data), static_cast<double>(std::max<int64_t>(n, 1)),
                                    data_of<float>(k.out[0]), SquaredDifferences<A, B>{data_of<A>(a), data_of<B>(b)});
    });
  });
}

// ---- one number a column -----------------------------------------------------------------------------------------------------

enum class Fold { sum, mean_abs, max_abs };

template <Fold kFold>
__device__ inline float fold(float state, float v) {
  if constexpr (kFold == Fold::sum) return state + v;
  else if constexpr (kFold == Fold::mean_abs) return state + fabsf(v);
  // As integers, the sizes of floats are in order and NaN is the largest of all: it stays.
  else return __uint_as_float(max(__float_as_uint(state), __float_as_uint(fabsf(v))));
}
template <Fold kFold>
__device__ inline float merge(float a, float b) {
  if constexpr (kFold == Fold::max_abs) return fold<kFold>(a, b);
  else return a + b;
}

// A block takes `wide` steps of V columns, and every (256 / wide)-th of the rows of its part. x: [rows, cols], rows `stride` apart.
template <int V, Fold kFold, class T>
__global__ void __launch_bounds__(kThreads, 4)
    columns_kernel(const T* x, int64_t rows, int64_t cols, int64_t stride, int wide, int64_t part_rows, float factor, float* parts, float* y) {
  __shared__ float shared[kThreads * V];
  const int tx = static_cast<int>(threadIdx.x) % wide, ty = static_cast<int>(threadIdx.x) / wide, tall = kThreads / wide;
  const int64_t first_col = static_cast<int64_t>(blockIdx.x) * wide * V, col = first_col + tx * V;
  const int64_t begin = blockIdx.y * part_rows, end = min(rows, begin + part_rows);
  float state[V];
#pragma unroll
  for (int j = 0; j < V; j++) state[j] = 0;
  if (col < cols) {
    constexpr int kAhead = 4;
    const T* p = x + (begin + ty) * stride + col;
    const int64_t step = tall * stride;
    for (int64_t r = begin + ty; r < end; r += kAhead * tall, p += kAhead * step) {
      Few<T, V> q[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (r + u * tall < end) q[u] = Few<T, V>::load(p + u * step);
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (r + u * tall < end)
#pragma unroll
          for (int j = 0; j < V; j++) state[j] = fold<kFold>(state[j], q[u].get(j));
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) shared[(ty * V + j) * wide + tx] = state[j];  // lanes side by side
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < wide * V; c += kThreads) {
    const int64_t at = first_col + (c % wide) * V + c / wide;
    if (at >= cols) continue;
    float s = shared[c];
    for (int i = 1; i < tall; i++) s = merge<kFold>(s, shared[i * V * wide + c]);
    if (gridDim.y == 1) y[at] = s * factor;
    else parts[blockIdx.y * cols + at] = s;
  }
  if (gridDim.y == 1 || !last_of(arrived + blockIdx.x, gridDim.y)) return;
  // As many threads as the columns need in fours, and groups of them side by side over the parts.
  constexpr int L = V < 4 ? V : 4;
  const int across = wide * V / L, groups = kThreads / across, mine = static_cast<int>(threadIdx.x) % across, group = static_cast<int>(threadIdx.x) / across;
  const int64_t at = first_col + mine * L;
  float s[L];
#pragma unroll
  for (int j = 0; j < L; j++) s[j] = 0;
  if (at < cols) {
#pragma unroll 8
    for (unsigned i = static_cast<unsigned>(group); i < gridDim.y; i += static_cast<unsigned>(groups)) {
      float v[L];
      if constexpr (L == 4) *reinterpret_cast<float4*>(v) = __ldcg(reinterpret_cast<const float4*>(parts + i * cols + at));
      else v[0] = __ldcg(parts + i * cols + at);
#pragma unroll
      for (int j = 0; j < L; j++) s[j] = merge<kFold>(s[j], v[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < L; j++) shared[(group * L + j) * across + mine] = s[j];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < across * L; c += kThreads) {
    const int64_t to = first_col + (c % across) * L + c / across;
    if (to >= cols) continue;
    float total = shared[c];
    for (int i = 1; i < groups; i++) total = merge<kFold>(total, shared[i * L * across + c]);
    y[to] = total * factor;
  }
}

template <int V, Fold kFold, class T>
const char* columns_launch(Context& ctx, const View& v, float* y) {
  const int64_t rows = v.shape[0], cols = v.shape[1], steps = ceil_div(cols, V);
  int wide = 1;
  while (wide < 32 && wide < steps) wide *= 2;
  const int64_t across = ceil_div(steps, wide), tall = kThreads / wide;
  // Parts of the rows: as many blocks as the card holds at once (no second round for a few), at least eight rows a thread.
  int64_t parts = std::min(static_cast<int64_t>(ctx.sms) * 4 / across, ceil_div(rows, tall * 8));
  if (across > kMostGroups || parts < 1) parts = 1;
  const int64_t part_rows = std::max<int64_t>(1, ceil_div(rows, parts));
  parts = std::max<int64_t>(1, ceil_div(rows, part_rows));
  float* scratch = parts == 1 ? nullptr : ctx.scratch_of<float>(static_cast<size_t>(parts * cols));
  const float factor = kFold == Fold::mean_abs && rows > 0 ? 1.f / static_cast<float>(rows) : 1.f;
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(parts));
  columns_kernel<V, kFold><<<grid, kThreads, 0, ctx.stream>>>(data_of<const T>(v), rows, cols, v.stride[0], wide, part_rows, factor, scratch, y);
  return launched();
}

template <Fold kFold>
const char* columns(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  float* y = data_of<float>(k.out[0]);
  if (x.shape[1] == 0) return nullptr;
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kWidth<T>;
    const bool aligned = aligned16(x.data) && x.shape[1] % V == 0 && (x.shape[0] < 2 || x.stride[0] % V == 0);
    return aligned ? columns_launch<V, kFold, T>(ctx, x, y) : columns_launch<1, kFold, T>(ctx, x, y);
  });
}

}  // namespace

const CudaEntry cuda_reduce[] = {
    {op_sum, sum},
    {op_sum_rows, columns<Fold::sum>},
    {op_mean_abs_cols, columns<Fold::mean_abs>},
    {op_max_abs_cols, columns<Fold::max_abs>},
    {op_mse, mse},
    {op_softmax, softmax},
    {op_log_softmax, log_softmax},
    {op_argmax, argmax},
    {op_topk, topk},
};
const int cuda_reduce_count = sizeof(cuda_reduce) / sizeof(cuda_reduce[0]);

}  // namespace llm::cuda
