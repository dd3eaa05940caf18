// Standalone test and bench of native/cuda/gemm (needs a GPU).
//     gemm_test check [n]  (every n-th of) all paths against sums in double: dtypes, transposes, odd and strided shapes, alpha, beta, bias, bits of a second run
//     gemm_test time       shapes of training: TFLOP/s
//     gemm_test rows       few rows against a weight: GB/s
// LLM_CUDA_CUBLASLT=0 sends everything through our own kernels.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/gemm/paths.h"
#include "cuda/lib/cublaslt.h"
#include "cuda/tables.h"

namespace llm::cuda {
static char* arena = nullptr;
static size_t arena_used = 0, arena_bytes = 0;
void* Context::scratch(size_t bytes) {
  void* p = arena + arena_used;
  arena_used += (bytes + 255) / 256 * 256;
  if (arena_used > arena_bytes) throw 1;
  return p;
}
}  // namespace llm::cuda

using namespace llm;
using namespace llm::cuda;

namespace {

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  printf("%s: %s\n", what, cudaGetErrorString(e));
  exit(1);
}
#define CUDA(x) check(x, #x)

Context ctx{};

__device__ float noise(uint64_t i, uint32_t seed) {
  uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
  h ^= h >> 32, h *= 0xd6e8feb86659fd93ull, h ^= h >> 32;
  return static_cast<float>(static_cast<int64_t>(h & 0xffffff) - 0x800000) / 0x800000 * 1.7f;
}
template <class T>
__global__ void fill_kernel(T* p, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    p[i] = from_float<T>(noise(i, seed));
}
void fill(void* p, DType t, int64_t n, uint32_t seed) {
  dispatch(t, [&](auto e) {
    using T = decltype(e);
    fill_kernel<T><<<1024, 256, 0, ctx.stream>>>(static_cast<T*>(p), n, seed);
    return launched();
  });
}

__device__ double at(const void* p, DType t, int64_t i) {
  return t == DType::f32 ? static_cast<const float*>(p)[i] : t == DType::bf16 ? to_float(static_cast<const bf16*>(p)[i]) : to_float(static_cast<const f16*>(p)[i]);
}
__global__ void reference_kernel(Gemm g, const void* old, double* to) {
  const int64_t n = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, m = blockIdx.y;
  if (n >= g.n) return;
  double sum = 0;
  for (int64_t k = 0; k < g.k; k++)
    sum += at(g.a, g.dtype_a, g.trans_a ? k * g.lda + m : m * g.lda + k) * at(g.b, g.dtype_b, g.trans_b ? n * g.ldb + k : k * g.ldb + n);
  double v = g.alpha * sum;
  if (g.beta != 0) v += g.beta * at(old, g.dtype_c, m * g.ldc + n);
  if (g.bias) v += at(g.bias, g.dtype_bias, n);
  to[m * g.n + n] = v;
}

struct Buffer {
  void* p = nullptr;
  explicit Buffer(size_t bytes) { CUDA(cudaMalloc(&p, bytes + 256)); }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(p); }
};

const char* run(const Gemm& g) {
  arena_used = 0;
  return gemm(ctx, g);
}

int failures = 0, cases = 0, seen = 0, every = 1;

double host_value(const std::vector<char>& bytes, DType t, int64_t i) {
  if (t == DType::f32) return reinterpret_cast<const float*>(bytes.data())[i];
  if (t == DType::bf16) return __bfloat162float(reinterpret_cast<const bf16*>(bytes.data())[i]);
  return __half2float(reinterpret_cast<const f16*>(bytes.data())[i]);
}

struct Case {
  int64_t m, n, k;
  bool trans_a, trans_b;
  DType a, b, c;
  int bias = -1;  // dtype
  float alpha = 1, beta = 0;
  int64_t pad_a = 0, pad_b = 0, pad_c = 0, offset = 0;  // offset: elements before each matrix
};

void check_case(const Case& t) {
  if (seen++ % every) return;
  cases++;
  Gemm g;
  g.m = t.m, g.n = t.n, g.k = t.k, g.trans_a = t.trans_a, g.trans_b = t.trans_b, g.dtype_a = t.a, g.dtype_b = t.b, g.dtype_c = t.c;
  g.alpha = t.alpha, g.beta = t.beta;
  g.lda = cols_a(g) + t.pad_a, g.ldb = cols_b(g) + t.pad_b, g.ldc = g.n + t.pad_c;
  const int64_t na = rows_a(g) * g.lda + t.offset, nb = rows_b(g) * g.ldb + t.offset, nc = g.m * g.ldc + t.offset;
  Buffer a(na * dtype_bytes(t.a)), b(nb * dtype_bytes(t.b)), c(nc * dtype_bytes(t.c)), bias(g.n * 4 + 16), want(g.m * g.n * 8 + 8);
  fill(a.p, t.a, na, 1), fill(b.p, t.b, nb, 2);
  auto shifted = [&](void* p, DType d) { return static_cast<char*>(p) + t.offset * dtype_bytes(d); };
  g.a = shifted(a.p, t.a), g.b = shifted(b.p, t.b), g.c = shifted(c.p, t.c);
  if (t.bias >= 0) g.dtype_bias = static_cast<DType>(t.bias), g.bias = shifted(bias.p, g.dtype_bias), fill(bias.p, g.dtype_bias, g.n + t.offset, 3);

  auto poison = [&] {
    CUDA(cudaMemsetAsync(c.p, 0xff, nc * dtype_bytes(t.c), ctx.stream));  // NaN in all dtypes
    if (t.beta != 0) fill(c.p, t.c, nc, 4);
  };
  std::vector<char> before(nc * dtype_bytes(t.c)), got(before.size()), again(before.size());
  std::vector<double> expected(g.m * g.n);
  poison();
  CUDA(cudaMemcpyAsync(before.data(), c.p, before.size(), cudaMemcpyDeviceToHost, ctx.stream));
  if (g.m && g.n) reference_kernel<<<dim3(ceil_div(g.n, 128), g.m), 128, 0, ctx.stream>>>(g, g.c, static_cast<double*>(want.p));
  CUDA(cudaMemcpyAsync(expected.data(), want.p, expected.size() * 8, cudaMemcpyDeviceToHost, ctx.stream));
  const char* error = nullptr;
  for (int pass = 0; pass < 2 && !error; pass++) {
    poison();
    error = run(g);
    CUDA(cudaMemcpyAsync((pass ? again : got).data(), c.p, got.size(), cudaMemcpyDeviceToHost, ctx.stream));
    CUDA(cudaStreamSynchronize(ctx.stream));
  }

  double squares = 0, worst = 0;
  for (double v : expected) squares += v * v;
  const double rms = expected.empty() ? 0 : std::sqrt(squares / expected.size());
  bool touched = false;
  const size_t size = dtype_bytes(t.c);
  for (int64_t i = 0; i < nc && !error; i++) {
    const int64_t j = i - t.offset, row = j / g.ldc, col = j % g.ldc;
    if (j < 0 || col >= g.n) {
      touched |= memcmp(&before[i * size], &got[i * size], size) != 0;
      continue;
    }
    const double v = expected[row * g.n + col], e = std::fabs(host_value(got, t.c, i) - v) / (std::fabs(v) + rms + 1e-30);
    if (!(e <= worst)) worst = std::isnan(e) ? 1e30 : e;
  }
  // Tensor cores cut the low bits of sums that they hold in f32, so 16-bit operands err more than f32 ones.
  const double accepted = t.c == DType::f32 ? std::ldexp(1, t.a == DType::f32 || t.b == DType::f32 ? -18 : -16) : t.c == DType::bf16 ? std::ldexp(1, -8) : std::ldexp(1, -11);
  const bool same = got == again;
  if (!error && worst <= accepted && same && !touched) return;
  failures++;
  if (failures <= 40)
    printf("FAIL %ldx%ldx%ld ta%d tb%d %s*%s->%s bias %d alpha %g beta %g pads %ld %ld %ld offset %ld: error %.3g%s%s %s\n", long(t.m), long(t.n), long(t.k), t.trans_a,
           t.trans_b, dtype_name(t.a), dtype_name(t.b), dtype_name(t.c), t.bias, t.alpha, t.beta, long(t.pad_a), long(t.pad_b), long(t.pad_c), long(t.offset), worst,
           same ? "" : ", other bits in the second run", touched ? ", wrote outside" : "", error ? error : "");
}

void check_all() {
  constexpr DType floats[] = {DType::f32, DType::bf16, DType::f16};
  const int64_t shapes[][3] = {{3, 7, 5}, {1, 17, 33}, {37, 41, 65}, {1, 65, 1024}, {67, 131, 259}, {16, 40, 96}, {17, 24, 64}, {130, 264, 192}, {5, 8, 4099}, {129, 130, 1000}};
  for (DType t : floats)
    for (bool ta : {false, true})
      for (bool tb : {false, true})
        for (auto [m, n, k] : shapes) {
          check_case({m, n, k, ta, tb, t, t, t});
          check_case({m, n, k, ta, tb, t, t, DType::f32, -1, 0.5f, 1});
          check_case({m, n, k, ta, tb, t, t, t, static_cast<int>(t), 1, 0, 3, 5, 0});
          check_case({m, n, k, ta, tb, t, t, t, -1, -1, 0.25f, 8, 16, 8});
          check_case({m, n, k, ta, tb, t, t, t, -1, 2, 1, 1, 4, 2, 1});
        }
  for (DType a : floats)
    for (DType b : floats)
      for (DType c : floats)
        for (int bias : {-1, 0, 1, 2})
          for (auto [m, n, k] : {std::array<int64_t, 3>{40, 48, 72}, {2, 48, 72}, {12, 51, 136}, {33, 20, 7}}) {
            check_case({m, n, k, false, true, a, b, c, bias});
            check_case({m, n, k, true, false, a, b, c, bias, 0.5f, -1, 0, 0, 4});
          }
  for (DType t : floats)
    for (int64_t m = 1; m <= 18; m++)
      for (auto [n, k] : {std::pair<int64_t, int64_t>{100, 512}, {9, 40}, {300, 64}, {65, 1544}, {1, 8}})
        check_case({m, n, k, false, true, t, t, t, static_cast<int>(DType::f32), 1, m % 2 ? 1.f : 0.f, 8, 16, 1});
  for (DType t : floats)
    for (auto [m, n, k] : {std::array<int64_t, 3>{0, 4, 5}, {3, 0, 5}, {3, 4, 0}, {2, 4, 0}}) {
      check_case({m, n, k, false, true, t, t, t, static_cast<int>(t)});
      check_case({m, n, k, false, false, t, t, DType::f32, -1, 1, 0.5f});
    }
  for (DType t : {DType::bf16, DType::f16})
    for (bool tb : {false, true})
      for (int64_t k : {8, 16, 24, 64, 72, 128})
        for (auto [m, n] : {std::pair<int64_t, int64_t>{200, 264}, {128, 128}, {257, 1000}}) {
          check_case({m, n, k, false, tb, t, t, t, -1, 0.5f, 1, 8, 16, 8});
          check_case({m, n, k, false, tb, t, t, t, -1, 1, 0});
        }
  // Large enough to be timed, with C that must keep its value.
  for (DType t : {DType::bf16, DType::f16})
    for (bool ta : {false, true})
      for (bool tb : {false, true}) {
        check_case({1024, 520, 512, ta, tb, t, t, t, static_cast<int>(t)});
        check_case({1000, 64, 3584, ta, tb, t, t, DType::f32, -1, 1, 1});
        check_case({64, 1536, 2048, ta, tb, t, t, DType::f32, -1, 1, 1});
      }
  check_case({600, 520, 512, false, true, DType::f32, DType::f32, DType::f32, -1, 1, 1});
  printf("%d of %d cases failed\n", failures, cases);
}

// Microseconds of one call, from a graph of `calls` of them (call i may use other buffers).
float measure(int calls, const std::function<const char*(int)>& call) {
  const char* error = call(0);  // chooses algorithms outside of the capture
  CUDA(cudaStreamSynchronize(ctx.stream));
  if (error) return printf("(%s) ", error), NAN;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CUDA(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; i++)
    if (const char* e = call(i)) printf("(%s) ", e);
  CUDA(cudaStreamEndCapture(ctx.stream, &graph));
  CUDA(cudaGraphInstantiate(&ready, graph, 0));
  cudaEvent_t begin, end;
  CUDA(cudaEventCreate(&begin));
  CUDA(cudaEventCreate(&end));
  float best = 1e30f;
  for (int pass = 0; pass < 4; pass++) {
    float ms;
    CUDA(cudaEventRecord(begin, ctx.stream));
    CUDA(cudaGraphLaunch(ready, ctx.stream));
    CUDA(cudaEventRecord(end, ctx.stream));
    CUDA(cudaEventSynchronize(end));
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (pass && ms < best) best = ms;
  }
  cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaEventDestroy(begin), cudaEventDestroy(end);
  return best * 1000 / calls;
}

Gemm shape(int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b, DType ab, DType c, float beta = 0) {
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.trans_a = trans_a, g.trans_b = trans_b, g.dtype_a = g.dtype_b = ab, g.dtype_c = c, g.beta = beta;
  g.lda = cols_a(g), g.ldb = cols_b(g), g.ldc = n;
  return g;
}

void time_one(const char* what, Gemm g) {
  Buffer a(rows_a(g) * g.lda * dtype_bytes(g.dtype_a)), b(rows_b(g) * g.ldb * dtype_bytes(g.dtype_b)), c(g.m * g.ldc * dtype_bytes(g.dtype_c));
  fill(a.p, g.dtype_a, rows_a(g) * g.lda, 1), fill(b.p, g.dtype_b, rows_b(g) * g.ldb, 2), fill(c.p, g.dtype_c, g.m * g.ldc, 3);
  g.a = a.p, g.b = b.p, g.c = c.p;
  const double flop = 2.0 * g.m * g.n * g.k;
  const double bytes = (double(g.m) * g.k + double(g.n) * g.k) * dtype_bytes(g.dtype_a) + double(g.m) * g.n * dtype_bytes(g.dtype_c) * (g.beta != 0 ? 2 : 1);
  const float us = measure(flop > 1e12 ? 3 : 10, [&](int) { return run(g); });
  printf("%-34s %6ldx%6ldx%6ld %c%c %4s->%4s%s %9.1f us %7.1f TFLOP/s %6.0f GB/s\n", what, long(g.m), long(g.n), long(g.k), g.trans_a ? 't' : 'n', g.trans_b ? 't' : 'n',
         dtype_name(g.dtype_a), dtype_name(g.dtype_c), g.beta != 0 ? " +" : "  ", us, flop / us / 1e6, bytes / us / 1e3);
  fflush(stdout);
}

void time_all(bool few) {
  constexpr DType h = DType::bf16, f = DType::f32;
  const int64_t t = 8192;
  time_one("7B qkv", shape(t, 4608, 3584, false, true, h, h));
  time_one("7B gate, up", shape(t, 37888, 3584, false, true, h, h));
  if (few) {
    time_one("7B qkv dX", shape(t, 3584, 4608, false, false, h, h));
    time_one("7B qkv dW", shape(4608, 3584, t, true, false, h, f));
    time_one("f32", shape(4096, 4096, 4096, false, true, f, f));
    return;
  }
  time_one("7B o", shape(t, 3584, 3584, false, true, h, h));
  time_one("7B down", shape(t, 3584, 18944, false, true, h, h));
  time_one("7B lm_head", shape(2048, 152064, 3584, false, true, h, h));
  time_one("7B qkv dX", shape(t, 3584, 4608, false, false, h, h));
  time_one("7B o dX", shape(t, 3584, 3584, false, false, h, h));
  time_one("7B gate, up dX", shape(t, 3584, 37888, false, false, h, h));
  time_one("7B down dX", shape(t, 18944, 3584, false, false, h, h));
  time_one("7B lm_head dX", shape(2048, 3584, 152064, false, false, h, h));
  time_one("1.5B qkv", shape(16384, 2048, 1536, false, true, h, h));
  time_one("1.5B gate, up", shape(16384, 17920, 1536, false, true, h, h));
  time_one("1.5B down", shape(16384, 1536, 8960, false, true, h, h));
  time_one("1.5B gate, up dW", shape(17920, 1536, 16384, true, false, h, f));
  time_one("1.5B down dW, added", shape(1536, 8960, 16384, true, false, h, f, 1));
  time_one("LoRA x A^T", shape(t, 64, 3584, false, true, h, h));
  time_one("LoRA x A^T (down)", shape(t, 64, 18944, false, true, h, h));
  time_one("LoRA + B^T qkv", shape(t, 4608, 64, false, true, h, h, 1));
  time_one("LoRA + B^T o", shape(t, 3584, 64, false, true, h, h, 1));
  time_one("LoRA + B^T gate, up", shape(t, 37888, 64, false, true, h, h, 1));
  time_one("LoRA dy B", shape(t, 64, 4608, false, false, h, h));
  time_one("LoRA dy B (gate, up)", shape(t, 64, 37888, false, false, h, h));
  time_one("LoRA dx + A", shape(t, 3584, 64, false, false, h, h, 1));
  time_one("LoRA dA", shape(64, 3584, t, true, false, h, f));
  time_one("LoRA dA, added", shape(64, 3584, t, true, false, h, f, 1));
  time_one("LoRA dA (down)", shape(64, 18944, t, true, false, h, f));
  time_one("LoRA dB", shape(4608, 64, t, true, false, h, f));
  time_one("LoRA dB (gate, up)", shape(37888, 64, t, true, false, h, f));
  time_one("f32", shape(4096, 4096, 4096, false, true, f, f));
}

void time_rows() {
  const int64_t shapes[][2] = {{3584, 3584}, {4608, 3584}, {37888, 3584}, {3584, 18944}, {152064, 3584}, {1536, 1536}, {2048, 1536}, {17920, 1536}, {1536, 8960}, {64, 3584}, {3584, 64}, {37888, 64}};
  const size_t most = static_cast<size_t>(152064) * 3584 * 2;
  Buffer w(most), x(17 * 18944 * 4), y(static_cast<size_t>(17) * 152064 * 4);
  struct Row {
    int64_t m;
    DType w, c;
    float beta;
  };
  printf("%-22s", "GB/s (us)");
  for (auto [n, k] : shapes) printf(" %6ldx%-7ld", long(n), long(k));
  printf("\n");
  for (Row r : {Row{1, DType::bf16, DType::bf16, 0}, {1, DType::bf16, DType::f32, 0}, {1, DType::bf16, DType::bf16, 1}, {1, DType::f32, DType::f32, 0}, {2, DType::bf16, DType::bf16, 0}, {4, DType::bf16, DType::bf16, 0},
                {8, DType::bf16, DType::bf16, 0}, {16, DType::bf16, DType::bf16, 0}, {17, DType::bf16, DType::bf16, 0}}) {
    const size_t size = dtype_bytes(r.w);
    fill(w.p, r.w, most / size, 1), fill(x.p, r.w, 17 * 18944, 2), fill(y.p, r.c, 17 * 152064, 3);
    printf("m %-2ld %4s->%4s beta %g ", long(r.m), dtype_name(r.w), dtype_name(r.c), r.beta);
    for (auto [n, k] : shapes) {
      const size_t each = n * k * size, buffers = most / each;
      if (buffers < 1) {
        printf(" %14s", "-");
        continue;
      }
      Gemm g = shape(r.m, n, k, false, true, r.w, r.c, r.beta);
      g.a = x.p, g.c = y.p, g.b = w.p;
      const float us = measure(buffers == 1 ? 3 : 24, [&](int i) {
        Gemm other = g;
        other.b = static_cast<char*>(w.p) + each * (i % buffers);
        return run(other);
      });
      printf(" %6.0f (%5.1f)", each / us / 1e3, us);
    }
    printf("\n");
    fflush(stdout);
  }
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "check";
  if (count > 2) every = atoi(words[2]);
  cudaDeviceProp properties;
  CUDA(cudaGetDeviceProperties(&properties, 0));
  ctx.sms = properties.multiProcessorCount;
  ctx.arch = properties.major * 10 + properties.minor;
  ctx.shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  ctx.l2_bytes = properties.l2CacheSize;
  CUDA(cudaStreamCreate(&ctx.stream));
  CUDA(cudaMalloc(reinterpret_cast<void**>(&ctx.fault_word), 4));
  arena_bytes = static_cast<size_t>(4) << 30;
  CUDA(cudaMalloc(reinterpret_cast<void**>(&arena), arena_bytes));
  printf("%s, %s\n", properties.name, cublaslt_library().report.c_str());
  if (what == "check") check_all();
  if (what == "time") time_all(!cublaslt_library().usable);
  if (what == "rows") time_rows();
  CUDA(cudaDeviceSynchronize());
  return failures ? 1 : 0;
}
