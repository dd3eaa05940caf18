// Rows to e4m3 codes with a scale each, and back. Rows of whole steps that are not too long stay in the block's registers between finding their
// largest value and writing their codes, so that memory is read and written once; other rows are read twice.
#include "core/fp8.h"

#include "cuda/fp8/fp8.h"
#include "cuda/tables.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

constexpr int kMostThreads = 640;  // of a block
// Elements of a thread's step. Without factors its codes are one store of 16 bytes; with them neighbouring threads read neighbouring factors.
template <bool scaled>
constexpr int kStep = scaled ? 4 : 16;

__device__ inline uint32_t codes_of(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// What is read once must not drive the factors out of the L1 cache, which every row reads again.
template <class T, int V>
__device__ inline Few<T, V> load_once(const T* p) {
  Few<T, V> v;
  if constexpr (Few<T, V>::kBytes == 8) {
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(p));
  } else {
#pragma unroll
    for (int i = 0; i < Few<T, V>::kWords; i += 4)
      asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.word[i]), "=r"(v.word[i + 1]), "=r"(v.word[i + 2]), "=r"(v.word[i + 3])
                   : "l"(reinterpret_cast<const char*>(p) + 4 * i));
  }
  return v;
}

template <class T, int V, bool scaled>
__device__ inline void floats_of(const Few<T, V>& raw, const float* factor, float (&v)[V]) {
#pragma unroll
  for (int j = 0; j < V; j++) v[j] = raw.get(j);
  if constexpr (scaled) {
    const float4 f = *reinterpret_cast<const float4*>(factor);
    v[0] *= f.x, v[1] *= f.y, v[2] *= f.z, v[3] *= f.w;
  }
}

// A block a row; thread t has the steps t, t + blockDim, … of which S cover the row.
template <class T, int S, bool scaled>
__global__ void __launch_bounds__(kMostThreads) encode_kernel(const T* x, int64_t ld, int cols, const float* factor, uint8_t* q, float* scales) {
  constexpr int V = kStep<scaled>;
  __shared__ float shared[32];
  follow();
  const int64_t row = blockIdx.x;
  x += row * ld;
  q += row * cols;
  const int first = static_cast<int>(threadIdx.x) * V, stride = static_cast<int>(blockDim.x) * V;
  Few<T, V> raw[S];
#pragma unroll
  for (int s = 0; s < S; s++)
    if (first + s * stride < cols) raw[s] = load_once<T, V>(x + first + s * stride);
  float amax = kFp8Smallest;
#pragma unroll
  for (int s = 0; s < S; s++) {
    const int c = first + s * stride;
    if (c >= cols) continue;
    float v[V];
    floats_of<T, V, scaled>(raw[s], factor + c, v);
#pragma unroll
    for (int j = 0; j < V; j++) amax = fmaxf(amax, fabsf(v[j]));
  }
  amax = block_max(amax, shared);
  const float inverse = __fdiv_rn(kFp8Largest, amax);
  if (threadIdx.x == 0) scales[row] = __fdiv_rn(amax, kFp8Largest);
#pragma unroll
  for (int s = 0; s < S; s++) {
    const int c = first + s * stride;
    if (c >= cols) continue;
    float v[V];
    floats_of<T, V, scaled>(raw[s], factor + c, v);
    uint32_t word[V / 4];
#pragma unroll
    for (int j = 0; j < V; j += 4) word[j / 4] = codes_of(v[j] * inverse, v[j + 1] * inverse, v[j + 2] * inverse, v[j + 3] * inverse);
    if constexpr (V == 4) *reinterpret_cast<uint32_t*>(q + c) = word[0];
    else *reinterpret_cast<uint4*>(q + c) = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// Long rows of 16-bit values times factors: a block a multiprocessor keeps the factors in shared memory, and has its next row on the way
// while it encodes one. 4 S elements a thread.
constexpr int kLongThreads = 1024;
template <class T, int S>
__global__ void __launch_bounds__(kLongThreads, 1) encode_long_kernel(const T* x, int64_t ld, int64_t rows, int cols, const float* factor, uint8_t* q, float* scales) {
  extern __shared__ __align__(16) float factors[];
  __shared__ float shared[32];
  follow();
  const int first = static_cast<int>(threadIdx.x) * 4;
  constexpr int stride = kLongThreads * 4;
  Few<T, 4> raw[S], next[S];
  const auto fetch = [&](int64_t row) {
#pragma unroll
    for (int s = 0; s < S; s++)
      if (first + s * stride < cols) next[s] = load_once<T, 4>(x + row * ld + first + s * stride);
  };
  if (blockIdx.x < rows) fetch(blockIdx.x);
  for (int c = first; c < cols; c += stride) *reinterpret_cast<float4*>(factors + c) = *reinterpret_cast<const float4*>(factor + c);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
#pragma unroll
    for (int s = 0; s < S; s++) raw[s] = next[s];
    if (row + gridDim.x < rows) fetch(row + gridDim.x);
    // A thread reads the factors that it wrote itself.
    float amax = kFp8Smallest, v[4];
#pragma unroll
    for (int s = 0; s < S; s++) {
      if (first + s * stride >= cols) continue;
      floats_of<T, 4, true>(raw[s], factors + first + s * stride, v);
#pragma unroll
      for (int j = 0; j < 4; j++) amax = fmaxf(amax, fabsf(v[j]));
    }
    amax = block_max(amax, shared);
    const float inverse = __fdiv_rn(kFp8Largest, amax);
    if (threadIdx.x == 0) scales[row] = __fdiv_rn(amax, kFp8Largest);
#pragma unroll
    for (int s = 0; s < S; s++) {
      if (first + s * stride >= cols) continue;
      floats_of<T, 4, true>(raw[s], factors + first + s * stride, v);
      *reinterpret_cast<uint32_t*>(q + row * cols + first + s * stride) = codes_of(v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) encode_any_kernel(const T* x, int64_t ld, int64_t cols, const float* factor, uint8_t* q, float* scales) {
  __shared__ float shared[32];
  follow();
  const int64_t row = blockIdx.x;
  const auto value = [&](int64_t c) { return to_float(x[row * ld + c]) * (factor ? factor[c] : 1.f); };
  float amax = kFp8Smallest;
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) amax = fmaxf(amax, fabsf(value(c)));
  amax = block_max(amax, shared);
  const float inverse = __fdiv_rn(kFp8Largest, amax);
  if (threadIdx.x == 0) scales[row] = __fdiv_rn(amax, kFp8Largest);
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) q[row * cols + c] = __nv_cvt_float_to_fp8(value(c) * inverse, __NV_SATFINITE, __NV_E4M3);
}

// V codes of one row a thread and step.
template <class T, int V>
__global__ void __launch_bounds__(kEachThreads) decode_kernel(const uint8_t* q, const float* scales, T* w, int64_t pieces, int64_t cols) {
  follow();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kEachThreads) + threadIdx.x; i < pieces; i += static_cast<int64_t>(gridDim.x) * kEachThreads) {
    const float scale = scales[i * V / cols];
    alignas(16) uint8_t codes[V];
    if constexpr (V == 16) *reinterpret_cast<uint4*>(codes) = reinterpret_cast<const uint4*>(q)[i];
    else codes[0] = q[i];
    float v[V];
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = fp8_value(codes[j]) * scale;
    store_floats<V>(w + i * V, v);
  }
}

}  // namespace

const char* encode_fp8(Context& ctx, const void* x, DType dtype, int64_t ld, int64_t rows, int64_t cols, const float* factor, uint8_t* q, float* scales) {
  if (rows == 0) return nullptr;
  return dispatch(dtype, [&](auto t) -> const char* {
    using T = decltype(t);
    const T* from = static_cast<const T*>(x);
    const dim3 grid(static_cast<unsigned>(rows));
    const auto run = [&](auto with_factors, auto elements) {
      constexpr bool scaled = decltype(with_factors)::value;
      constexpr int S = decltype(elements)::value / kStep<scaled>;
      launch(ctx, encode_kernel<T, S, scaled>, grid, static_cast<unsigned>(ceil_div(cols, 32 * decltype(elements)::value) * 32), 0, from, ld,
             static_cast<int>(cols), factor, q, scales);
      return launched();
    };
    const auto by_length = [&](auto with_factors) {
      if (cols <= 160 * 32) return run(with_factors, std::integral_constant<int, 32>{});
      return run(with_factors, std::integral_constant<int, 64>{});
    };
    const bool whole = cols % 16 == 0 && cols > 0 && cols <= kMostThreads * 64 && aligned16(from) && ld * static_cast<int64_t>(sizeof(T)) % 16 == 0;
    const auto run_long = [&](auto steps) -> const char* {
      auto kernel = encode_long_kernel<T, decltype(steps)::value>;
      static const cudaError_t sized = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLongThreads * 4 * decltype(steps)::value * 4);
      if (sized != cudaSuccess) return cudaGetErrorString(sized);
      const int64_t blocks = rows < ctx.sms ? rows : ctx.sms;
      launch(ctx, kernel, dim3(static_cast<unsigned>(blocks)), kLongThreads, static_cast<size_t>(cols) * 4, from, ld, rows, static_cast<int>(cols), factor, q, scales);
      return launched();
    };
    if constexpr (sizeof(T) == 2)
      if (whole && factor && aligned16(q) && aligned16(factor) && cols > kLongThreads * 8 && cols <= kLongThreads * 40 && kLongThreads * 160 + 256 <= ctx.shared_bytes)
        return cols <= kLongThreads * 20 ? run_long(std::integral_constant<int, 5>{}) : run_long(std::integral_constant<int, 10>{});
    if (whole && aligned16(q) && aligned16(factor)) return factor ? by_length(std::true_type{}) : by_length(std::false_type{});
    launch(ctx, encode_any_kernel<T>, grid, 256, 0, from, ld, cols, factor, q, scales);
    return launched();
  });
}

const char* quantize_fp8(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  return encode_fp8(ctx, x.data, x.dtype, x.stride[0], x.shape[0], x.shape[1], nullptr, data_of<uint8_t>(k.out[0]), data_of<float>(k.out[1]));
}

const char* dequantize_fp8(Context& ctx, const KernelArgs& k) {
  const View& w = k.out[0];
  const int64_t n = view_numel(w), cols = w.shape[1];
  if (n == 0) return nullptr;
  const uint8_t* q = data_of<uint8_t>(k.in[0]);
  const float* scales = data_of<float>(k.in[1]);
  return dispatch(w.dtype, [&](auto t) {
    using T = decltype(t);
    T* to = data_of<T>(w);
    if (cols % 16 == 0 && aligned16(q) && aligned16(to))
      launch(ctx, decode_kernel<T, 16>, static_cast<unsigned>(grid_for(ctx, n / 16, kEachThreads)), kEachThreads, 0, q, scales, to, n / 16, cols);
    else launch(ctx, decode_kernel<T, 1>, static_cast<unsigned>(grid_for(ctx, n, kEachThreads)), kEachThreads, 0, q, scales, to, n, cols);
    return launched();
  });
}

const CudaEntry cuda_fp8[] = {{op_quantize_fp8, quantize_fp8}, {op_dequantize_fp8, dequantize_fp8}, {op_linear_fp8, linear_fp8}, {op_linear_fp8_bwd, linear_fp8_bwd}};
const int cuda_fp8_count = sizeof(cuda_fp8) / sizeof(cuda_fp8[0]);

}  // namespace llm::cuda
