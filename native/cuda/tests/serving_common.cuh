// What the standalone checks of the serving kernels share: a context by hand, device buffers, timing of a replayed graph.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/tables.h"

#define CHECK(x)                                                                \
  if (const cudaError_t e_ = (x)) {                                             \
    std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); \
    std::exit(1);                                                               \
  }

namespace llm::cuda {

// Scratch: blocks by order of request, kept and grown.
inline std::vector<std::pair<void*, size_t>> scratch_blocks;
inline size_t scratch_next = 0;
void* Context::scratch(size_t bytes) {
  if (scratch_next == scratch_blocks.size()) scratch_blocks.push_back({nullptr, 0});
  auto& [p, size] = scratch_blocks[scratch_next++];
  if (size < bytes) {
    if (p) cudaFree(p);
    size = bytes + 256;
    CHECK(cudaMalloc(&p, size));
    CHECK(cudaMemset(p, 0xff, size));
  }
  return p;
}
bool Context::settled(const View&) const { return false; }

}  // namespace llm::cuda

namespace {
using namespace llm;
using namespace llm::cuda;

Context make_context() {
  Context c{};
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  CHECK(cudaStreamCreate(&c.stream));
  c.sms = p.multiProcessorCount;
  c.arch = p.major * 10 + p.minor;
  c.shared_bytes = static_cast<int>(p.sharedMemPerBlockOptin);
  c.l2_bytes = p.l2CacheSize;
  CHECK(cudaMalloc(&c.fault_word, 4));
  CHECK(cudaMemset(c.fault_word, 0, 4));
  return c;
}

struct Buffer {
  void* p = nullptr;
  size_t bytes = 0;
  explicit Buffer(size_t n = 0) : bytes(n) {
    if (n) CHECK(cudaMalloc(&p, n));
  }
  template <class T>
  explicit Buffer(const std::vector<T>& v) : Buffer(v.size() * sizeof(T)) {
    if (bytes) CHECK(cudaMemcpy(p, v.data(), bytes, cudaMemcpyHostToDevice));
  }
  Buffer(Buffer&& o) noexcept : p(o.p), bytes(o.bytes) { o.p = nullptr; }
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(p, o.p);
    std::swap(bytes, o.bytes);
    return *this;
  }
  ~Buffer() {
    if (p) cudaFree(p);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> v(bytes / sizeof(T));
    if (bytes) CHECK(cudaMemcpy(v.data(), p, bytes, cudaMemcpyDeviceToHost));
    return v;
  }
};

View view(const Buffer& b, DType t, std::vector<int64_t> shape, int64_t row_stride = -1) {
  View v;
  v.data = static_cast<char*>(b.p);
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) {
    v.shape[i] = shape[i];
    v.stride[i] = stride;
    stride *= shape[i];
  }
  if (row_stride >= 0) v.stride[0] = row_stride;
  return v;
}

CudaKernel kernel_of(const CudaEntry* table, int count, int op) {
  for (int i = 0; i < count; i++)
    if (table[i].op == op) return table[i].kernel;
  std::printf("no kernel for op %d\n", op);
  std::exit(1);
}

void run_op(Context& ctx, CudaKernel kernel, int op, std::vector<View> in, std::vector<View> out, std::vector<double> attr = {}) {
  ctx.op = op;
  scratch_next = 0;
  const KernelArgs k{in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  if (const char* why = kernel(ctx, k)) {
    std::printf("op %d: %s\n", op, why);
    std::exit(1);
  }
}

bool once = false;  // run each timed call once and print no time: for a profiler

// Microseconds of one call in a replayed graph of `calls` calls; call i gets i. Run once before: nothing may be allocated in a capture.
float time_graph(Context& ctx, int calls, const std::function<void(int)>& call) {
  call(0);
  CHECK(cudaStreamSynchronize(ctx.stream));
  if (once) return 0;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeRelaxed));
  for (int i = 0; i < calls; i++) call(i);
  CHECK(cudaStreamEndCapture(ctx.stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CHECK(cudaGraphLaunch(exec, ctx.stream));
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  float best = 1e30f;
  for (int r = 0; r < 3; r++) {
    float ms;
    CHECK(cudaEventRecord(a, ctx.stream));
    CHECK(cudaGraphLaunch(exec, ctx.stream));
    CHECK(cudaEventRecord(b, ctx.stream));
    CHECK(cudaEventSynchronize(b));
    CHECK(cudaEventElapsedTime(&ms, a, b));
    best = std::fmin(best, ms * 1000 / calls);
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaEventDestroy(a));
  CHECK(cudaEventDestroy(b));
  return best;
}

int take_fault(Context& ctx) {
  int f;
  CHECK(cudaStreamSynchronize(ctx.stream));
  CHECK(cudaMemcpy(&f, ctx.fault_word, 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemset(ctx.fault_word, 0, 4));
  return f & 255;
}

// Random bits of an index: the same numbers on the host and the device.
__host__ __device__ inline uint32_t mix(uint64_t i, uint32_t seed) {
  uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 16);
}
// About standard normal (a sum of uniform numbers).
__host__ __device__ inline float noise(uint64_t i, uint32_t seed) {
  const uint32_t a = mix(i, seed), b = mix(i, seed ^ 0x5bd1e995u);
  return ((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) * (1.7320508f / 65536) - 3.4641016f;
}

}  // namespace
