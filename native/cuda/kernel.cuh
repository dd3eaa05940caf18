// What every kernel file includes: the contract of a kernel and the few building blocks that all of them share.
//
// A kernel is a host function that launches work on ctx.stream and returns at once:
//     const char* scale(Context& ctx, const KernelArgs& k);
// It returns nullptr, or a static text when it cannot run; shapes and dtypes were checked before by the op's shape rule (ops/rules.cpp).
// It may be captured into a graph: no allocation, no synchronization, no host reads of device memory. Results must be the same bits in
// every run (no float atomics whose order matters). Empty shapes are legal and launch nothing. Views marked * in ops.def may have any
// stride on dim 0 only; all others are dense. Bad ids in the data do not stop anything: the kernel skips them and raises a fault.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/plugin.h"
#include "gen/ops.h"

namespace llm::cuda {

// Errors that only the data can show. Texts in faults.cpp, worded as on the CPU.
enum class Fault : int {
  none,
  token_id,         // token id outside the vocabulary
  row_index,        // row index outside the tensor
  slot,             // slot outside the cache
  kv_length,        // kv length beyond the block table
  block_entry,      // block table entry outside the cache
  history_length,   // history length outside the history
  history_token,    // history token outside the vocabulary
  boundaries,       // sequence boundaries must rise from 0 to the number of tokens
  position,         // position outside the rotary table
  logit,            // a logit is NaN or +inf
  no_logit,         // no token has a finite logit
  count
};

struct Context {
  cudaStream_t stream;
  int op;              // the op that runs
  int sms;             // multiprocessors
  int arch;            // 80, 86, 89, 90, 100 …
  int shared_bytes;    // most shared memory of a block (opt-in)
  int64_t l2_bytes;
  int* fault_word;     // device memory
  bool serial;         // no kernel begins before the one before has ended (LLM_CUDA_SERIAL=1, for tools that look for races)
  const PluginCommand* captured;  // all commands of the graph that is being captured, or null
  int captured_count;

  // Whether a kernel may read v before wait_for_previous(): it is known that none of the commands that may still run then writes it.
  bool settled(const View& v) const;

  // Device memory for this command alone, 256-byte aligned; several calls give several blocks. Contents are undefined. Its address is the
  // same in every replay of a graph. Throws when the card is full (run() turns that into the command's error).
  void* scratch(size_t bytes);
  template <class T>
  T* scratch_of(size_t n) {
    return static_cast<T*>(scratch(n * sizeof(T)));
  }
  // What device code hands to raise().
  int code(Fault f) const { return (op << 8) | static_cast<int>(f); }
};

using CudaKernel = const char* (*)(Context&, const KernelArgs&);
struct CudaEntry {
  int op;
  CudaKernel kernel;
};
// A family's table: extern in tables.h, defined at the end of its file as
//   const CudaEntry cuda_elementwise[] = {{op_add, add}, …};  const int cuda_elementwise_count = sizeof …;

// First fault since the host last asked wins.
__device__ inline void raise(int* fault_word, int code) { atomicCAS(fault_word, 0, code); }

// nullptr, or the text of the launch's error.
inline const char* launched() {
  const cudaError_t e = cudaGetLastError();
  return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

// Programmatic dependent launch, for the short kernels of decoding: a kernel started with launch() may take its place on the card while the
// one before still runs. Its first statement is follow(): it lets the next kernel do the same and waits until everything before it has
// finished and can be seen. Pointers of such a kernel must not be __restrict__: the compiler may move reads of them above the wait.
// Kernels that can do something useful in between call its two halves themselves. Without that kind of launch both do nothing.
__device__ __forceinline__ void release_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void follow() {
  release_dependents();
  wait_for_previous();
}
template <class... P, class... A>
inline void launch(const Context& ctx, void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, A&&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = !ctx.serial;
  cudaLaunchConfig_t c{};
  c.gridDim = grid;
  c.blockDim = threads;
  c.dynamicSmemBytes = shared;
  c.stream = ctx.stream;
  c.attrs = &early;
  c.numAttrs = ctx.arch >= 90 ? 1 : 0;
  cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...);
}

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline f16 from_float<f16>(float x) { return __float2half_rn(x); }

// 16 bytes of T: one load or store instruction. The address must be 16-byte aligned.
template <class T>
struct alignas(16) Pack {
  static constexpr int n = 16 / sizeof(T);
  T v[n];
};
template <class T>
__device__ inline Pack<T> load_pack(const T* p) {
  Pack<T> r;
  *reinterpret_cast<uint4*>(&r) = *reinterpret_cast<const uint4*>(p);
  return r;
}
template <class T>
__device__ inline void store_pack(T* p, const Pack<T>& r) {
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&r);
}
inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

template <class T>
inline T* data_of(const View& v) {
  return reinterpret_cast<T*>(v.data);
}
inline bool present(const View& v) { return v.ndim >= 0; }
// Whether the elements lie side by side.
inline bool is_one_piece(const View& v) {
  int64_t inner = 1;
  for (int i = 1; i < v.ndim; i++) inner *= v.shape[i];
  return v.ndim < 1 || v.shape[0] <= 1 || v.stride[0] == inner;
}
// From the first byte to the last.
struct Bytes {
  const char *begin, *end;
};
inline Bytes bytes_of(const View& v) {
  int64_t last = view_numel(v) - 1;
  if (last < 0) return {v.data, v.data};
  if (!is_one_piece(v)) last += (v.shape[0] - 1) * (v.stride[0] - view_numel(v) / v.shape[0]);
  return {v.data, v.data + (last + 1) * static_cast<int64_t>(dtype_bytes(v.dtype))};
}
// Rows and columns of a tensor seen as [all but the last dim, last dim].
inline int64_t last_dim(const View& v) { return v.ndim == 0 ? 1 : v.shape[v.ndim - 1]; }

// Calls f(T{}) with the element type: dispatch(v.dtype, [&](auto t) { using T = decltype(t); … return launched(); }).
template <class F>
inline const char* dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: return "floating-point elements expected";
  }
}

// Sums (or maxima) over the warp and over the block, in a fixed order; every thread gets the result. `shared` holds 32 floats; blocks of
// whole warps. A second call with the same `shared` needs no barrier of its own.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}
template <class Reduce>
__device__ inline float block_reduce(float x, float neutral, float* shared, Reduce reduce) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  x = reduce(x);
  __syncthreads();
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return reduce(lane < warps ? shared[lane] : neutral);
}
__device__ inline float block_sum(float x, float* shared) {
  return block_reduce(x, 0.f, shared, [](float v) { return warp_sum(v); });
}
__device__ inline float block_max(float x, float* shared) {
  return block_reduce(x, -INFINITY, shared, [](float v) { return warp_max(v); });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// A grid for a loop that strides over n pieces of `per_block`: enough blocks to fill the card, never more than there is work.
inline int grid_for(const Context& ctx, int64_t n, int64_t per_block, int blocks_per_sm = 8) {
  const int64_t want = ceil_div(n, per_block), most = static_cast<int64_t>(ctx.sms) * blocks_per_sm;
  return static_cast<int>(want < most ? want : most);
}

}  // namespace llm::cuda
