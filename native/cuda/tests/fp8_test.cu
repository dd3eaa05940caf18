// Standalone test and bench of native/cuda/fp8 and of cuBLASLt's products of e4m3 codes (needs a GPU of sm_90).
//     fp8_test encode     rows to codes: every code and scale against core/fp8.h on the host, and the share of copy bandwidth
//     fp8_test products   products of Qwen2.5-7B's shapes with 8,192 tokens: codes with accurate and fast accumulation, bf16; rates, and
//                         errors against sums in double of the same codes
//   nvcc -std=c++20 -O3 -arch=sm_90a -I native … fp8_test.cu ../fp8/*.cu ../gemm/*.cu ../gemm/tuned.cpp ../transpose.cu ../lib/*.cpp
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/fp8.h"
#include "core/half.h"
#include "cuda/fp8/fp8.h"
#include "cuda/lib/cublaslt.h"
#include "cuda/movement.h"

namespace llm::cuda {
void* Context::scratch(size_t) { throw 1; }  // what is tested here takes none
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

constexpr int64_t kTokens = 8192, kMost = 37888;
constexpr size_t kWorkspace = size_t{64} << 20;
Context ctx{};
cudaEvent_t begin_event, end_event;

template <class T>
T* device(int64_t n) {
  void* p = nullptr;
  CUDA(cudaMalloc(&p, static_cast<size_t>(n) * sizeof(T)));
  return static_cast<T*>(p);
}
template <class T>
std::vector<T> host(const T* from, int64_t n) {
  std::vector<T> to(static_cast<size_t>(n));
  CUDA(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return to;
}

// Normal noise; rows of seven sizes, and where wanted outliers as activations have them.
__global__ void fill(bf16* p, int64_t rows, int64_t cols, float scale, uint32_t seed, bool outliers) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rows * cols; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
    for (int round = 0; round < 2; round++) h ^= h >> 32, h *= 0xd6e8feb86659fd93ull;
    h ^= h >> 32;
    const float u = static_cast<float>((h & 0xffffff) + 1) / 16777217.f, angle = static_cast<float>(h >> 24 & 0xffffff) / 16777216.f;
    float v = sqrtf(-2 * logf(u)) * cosf(6.2831853f * angle) * scale * (1 + 0.5f * static_cast<float>(i / cols % 7));
    if (outliers && i % cols % 1000 == 3) v *= 20;
    p[i] = __float2bfloat16_rn(v);
  }
}
float value_of(bf16 x) {
  uint16_t bits;
  memcpy(&bits, &x, 2);
  return bf16_to_f32(bits);
}

template <class F>
float milliseconds(F f, int runs) {
  f();
  CUDA(cudaDeviceSynchronize());
  cudaEventRecord(begin_event);
  for (int i = 0; i < runs; i++) f();
  cudaEventRecord(end_event);
  CUDA(cudaEventSynchronize(end_event));
  float ms;
  cudaEventElapsedTime(&ms, begin_event, end_event);
  return ms / static_cast<float>(runs);
}

void encode_rows() {
  bf16* x = device<bf16>(kTokens * kMost);
  uint8_t* q = device<uint8_t>(kTokens * kMost);
  float *scales = device<float>(kTokens), *factor = device<float>(kMost);
  std::vector<float> factors(kMost);
  for (int64_t c = 0; c < kMost; c++) factors[c] = 0.001f * static_cast<float>(1 + c % 13);
  CUDA(cudaMemcpy(factor, factors.data(), kMost * 4, cudaMemcpyHostToDevice));
  for (int64_t cols : {3584, 4608, 18944, 37888})
    for (const float* f : {static_cast<float*>(nullptr), factor}) {
      fill<<<1024, 256>>>(x, kTokens, cols, 1, 1, true);
      const float ms = milliseconds([&] { encode_fp8(ctx, x, DType::bf16, cols, kTokens, cols, f, q, scales); }, 20);
      int64_t wrong = 0;
      for (int64_t r : {int64_t{0}, int64_t{77}, kTokens - 1}) {
        const auto row = host(x + r * cols, cols);
        const auto codes = host(q + r * cols, cols);
        const float scale = encode_fp8_row(
            cols, [&](int64_t c) { return value_of(row[c]) * (f ? factors[c] : 1.f); }, [&](int64_t c, uint8_t code) { wrong += code != codes[c]; });
        wrong += scale != host(scales + r, 1)[0];
      }
      printf("encode %5ld%s: %.4f ms, %.2f TB/s, wrong %ld\n", cols, f ? " with factors" : "", ms, static_cast<double>(kTokens * cols * 3) / ms * 1e-9, wrong);
    }
}

struct Way {
  const char* name;
  bool codes, fast;
};

// y [T, N] = x [T, K] w [N, K]^T; the library thinks in columns, see gemm/library.cu.
struct Product {
  const lt::Functions& fn;
  lt::Handle handle;
  lt::Desc desc = nullptr;
  lt::Layout w = nullptr, x = nullptr, y = nullptr;
  lt::Candidate found[8];
  int count = 0;

  Product(const lt::Functions& f, lt::Handle h, const Way& way, int64_t n, int64_t k, const float* scale_w, const float* scale_x) : fn(f), handle(h) {
    auto set = [&](lt::DescAttribute what, auto value) { fn.desc_set(desc, what, &value, sizeof value); };
    fn.desc_create(&desc, lt::kCompute32F, CUDA_R_32F);
    set(lt::kDescTransA, lt::kOpT);
    if (way.codes) {
      set(lt::kDescScaleModeA, lt::kScaleOuterVector);
      set(lt::kDescScaleModeB, lt::kScaleOuterVector);
      set(lt::kDescScalePointerA, scale_w);
      set(lt::kDescScalePointerB, scale_x);
      set(lt::kDescFastAccumulation, static_cast<int8_t>(way.fast));
    }
    const cudaDataType_t type = way.codes ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    fn.layout_create(&w, type, k, n, k);
    fn.layout_create(&x, type, k, kTokens, k);
    fn.layout_create(&y, CUDA_R_16BF, n, kTokens, n);
    lt::Preference preference = nullptr;
    fn.preference_create(&preference);
    const uint64_t bytes = kWorkspace;
    fn.preference_set(preference, lt::kPrefWorkspace, &bytes, sizeof bytes);
    fn.preference_set(preference, lt::kPrefReduction, &lt::kReductionF32, sizeof lt::kReductionF32);
    if (fn.heuristic(handle, desc, w, x, y, y, preference, 8, found, &count) != lt::kSuccess) count = 0;
    fn.preference_destroy(preference);
  }
  bool run(int i, const void* from_x, const void* from_w, void* to, void* workspace) const {
    const float one = 1, zero = 0;
    return fn.matmul(handle, desc, &one, from_w, w, from_x, x, &zero, to, y, to, y, &found[i].algo, workspace, kWorkspace, ctx.stream) == lt::kSuccess;
  }
};

void products() {
  const CublasLtLibrary& library = cublaslt_library();
  printf("%s\n", library.report.c_str());
  lt::Handle handle;
  if (!library.usable || library.fn.create(&handle) != lt::kSuccess) return;
  bf16 *x = device<bf16>(kTokens * kMost), *w = device<bf16>(kMost * 3584), *y = device<bf16>(kTokens * kMost);
  uint8_t *xq = device<uint8_t>(kTokens * kMost), *wq = device<uint8_t>(kMost * 3584), *turned = device<uint8_t>(kMost * 3584);
  float *scale_x = device<float>(kTokens), *scale_w = device<float>(kMost);
  void* workspace = device<char>(kWorkspace);
  const int64_t shapes[][2] = {{4608, 3584}, {3584, 3584}, {37888, 3584}, {3584, 18944}, {3584, 4608}, {3584, 37888}, {18944, 3584}};
  for (const auto& [n, k] : shapes) {
    fill<<<1024, 256>>>(x, kTokens, k, 1, 1, true);
    fill<<<1024, 256>>>(w, n, k, 0.02f, 2, false);
    encode_fp8(ctx, x, DType::bf16, k, kTokens, k, nullptr, xq, scale_x);
    encode_fp8(ctx, w, DType::bf16, k, n, k, nullptr, wq, scale_w);
    Transposition t{};
    t.from = reinterpret_cast<const char*>(wq);
    t.to = reinterpret_cast<char*>(turned);
    t.rows = n, t.cols = k, t.from_row = k, t.to_col = n;
    const float turning = milliseconds([&] { transpose_tiles(ctx, t, 1); }, 20);
    printf("N %ld K %ld: transposing the codes %.4f ms, %.2f TB/s\n", n, k, turning, 2.0 * static_cast<double>(n * k) / turning * 1e-9);
    const auto rows = host(scale_x, kTokens), columns = host(scale_w, n);
    for (const Way way : {Way{"codes", true, false}, Way{"codes, fast", true, true}, Way{"bf16", false, false}}) {
      const Product p(library.fn, handle, way, n, k, scale_w, scale_x);
      const void *from_x = way.codes ? static_cast<void*>(xq) : x, *from_w = way.codes ? static_cast<void*>(wq) : w;
      int best = -1;
      float least = 1e9f;
      for (int i = 0; i < p.count; i++) {
        if (!p.run(i, from_x, from_w, y, workspace)) continue;
        const float ms = milliseconds([&] { p.run(i, from_x, from_w, y, workspace); }, 3);
        if (ms < least) least = ms, best = i;
      }
      if (best < 0) {
        printf("  %-12s nothing\n", way.name);
        continue;
      }
      const float ms = milliseconds([&] { p.run(best, from_x, from_w, y, workspace); }, std::max(8, static_cast<int>(40 / least)));
      double error = 0, size = 0;
      for (int64_t s = 0; s < 60; s++) {
        const int64_t r = (s * 1237 + 5) % kTokens, c = (s * 7919 + 3) % n;
        double sum = 0;
        if (way.codes) {
          const auto a = host(xq + r * k, k), b = host(wq + c * k, k);
          for (int64_t i = 0; i < k; i++) sum += static_cast<double>(fp8_to_f32(a[i])) * fp8_to_f32(b[i]);
          sum *= static_cast<double>(rows[r]) * columns[c];
        } else {
          const auto a = host(x + r * k, k), b = host(w + c * k, k);
          for (int64_t i = 0; i < k; i++) sum += static_cast<double>(value_of(a[i])) * value_of(b[i]);
        }
        const double got = value_of(host(y + r * n + c, 1)[0]);
        error += (got - sum) * (got - sum);
        size += sum * sum;
      }
      printf("  %-12s %.4f ms, %5.0f TFLOP/s, error %.2e of the rms\n", way.name, ms, 2e-9 * static_cast<double>(kTokens * n * k) / ms, std::sqrt(error / size));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  ctx.sms = 132;
  ctx.arch = 90;
  ctx.shared_bytes = 227 << 10;
  CUDA(cudaEventCreate(&begin_event));
  CUDA(cudaEventCreate(&end_event));
  if (strcmp(what, "products") != 0) encode_rows();
  if (strcmp(what, "encode") != 0) products();
}
