// Standalone check of attention_bwd: results against sums in double precision, untouched memory behind the outputs, the same bits twice,
// then timings. Build it with native/cuda/attention/backward*.cu; arguments: "check", "time", "two" (timings of two sizes) or "all", then the level (80: mma.sync, 90: wgmma).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention/attention.h"

using namespace llm;
using namespace llm::cuda;

#define CHECK(x)                                                                                    \
  if (const cudaError_t e = (x)) {                                                                  \
    std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e));                   \
    std::exit(1);                                                                                   \
  }

namespace {

// Scratch: blocks by order of request, kept and grown.
std::vector<std::pair<void*, size_t>> blocks;
size_t next_block = 0;
size_t scratch_bytes() {
  size_t n = 0;
  for (size_t i = 0; i < next_block; i++) n += blocks[i].second;
  return n;
}

struct Case {
  std::string note;
  std::vector<int> q, k;
  int heads, key_heads, width;
  DType dtype;
  bool causal = true;
  int window = 0, padding = 0, before = 0, after = 0;  // tokens outside the sequences
};

struct Shape {
  int64_t tq, tk, qs, ks;
  int heads, key_heads, width, sequences;
  double scale;
  bool causal;
  int64_t window;
};

__device__ int sequence_of(const int* cu, int n, int64_t t) {
  for (int b = 0; b < n; b++)
    if (t >= cu[b] && t < cu[b + 1]) return b;
  return -1;
}
__device__ void keys_seen(const Shape& s, const int* cu_q, const int* cu_k, int64_t t, int& b, int64_t& first, int64_t& last) {
  b = sequence_of(cu_q, s.sequences, t);
  first = last = 0;
  if (b < 0) return;
  const int64_t keys = cu_k[b + 1] - cu_k[b], at = t - cu_q[b] + keys - (cu_q[b + 1] - cu_q[b]);
  last = s.causal ? min(keys, at + 1) : keys;
  first = s.window > 0 ? max(static_cast<int64_t>(0), at - s.window + 1) : 0;
  if (last < first) last = first;
}

__device__ double block_total(double x, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < blockDim.x; i++) sum += shared[i];
  return sum;
}

// Block (token, head): p and ds of all keys of the sequence (rows of `most` doubles), o, lse and dq.
template <class T>
__global__ void reference_rows(Shape s, const T* grad, const T* q, const T* k, const T* v, T* o, float* lse, const int* cu_q, const int* cu_k,
                               double* p, double* ds, double* dq, int64_t most) {
  __shared__ double shared[128];
  const int64_t t = blockIdx.x;
  const int h = blockIdx.y, kh = h / (s.heads / s.key_heads), D = s.width;
  int b;
  int64_t first, last;
  keys_seen(s, cu_q, cu_k, t, b, first, last);
  double* prow = p + (h * s.tq + t) * most;
  double* drow = ds + (h * s.tq + t) * most;
  for (int64_t j = threadIdx.x; j < most; j += blockDim.x) prow[j] = drow[j] = 0;
  const int64_t base = b < 0 ? 0 : cu_k[b];
  const T* qrow = q + t * s.qs + h * D;
  const T* grow = grad + (t * s.heads + h) * D;
  double total = 0;
  __syncthreads();
  for (int64_t j = first + threadIdx.x; j < last; j += blockDim.x) {
    double x = 0;
    for (int d = 0; d < D; d++) x += static_cast<double>(to_float(qrow[d])) * to_float(k[(base + j) * s.ks + kh * D + d]);
    prow[j] = x * s.scale;
    total += exp(x * s.scale);
  }
  total = block_total(total, shared);
  const float rounded = last > first ? static_cast<float>(log(total)) : -INFINITY;
  if (threadIdx.x == 0) lse[h * s.tq + t] = rounded;
  double part = 0;
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    double x = 0;
    for (int64_t j = first; j < last; j++) x += exp(prow[j]) / total * to_float(v[(base + j) * s.ks + kh * D + d]);
    const T stored = from_float<T>(static_cast<float>(x));
    o[(t * s.heads + h) * D + d] = stored;
    part += static_cast<double>(to_float(stored)) * to_float(grow[d]);
  }
  const double delta = block_total(part, shared);
  for (int64_t j = first + threadIdx.x; j < last; j += blockDim.x) {
    double x = 0;
    for (int d = 0; d < D; d++) x += static_cast<double>(to_float(grow[d])) * to_float(v[(base + j) * s.ks + kh * D + d]);
    prow[j] = exp(prow[j] - rounded);
    drow[j] = prow[j] * (x - delta) * s.scale;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    double x = 0;
    for (int64_t j = first; j < last; j++) x += drow[j] * to_float(k[(base + j) * s.ks + kh * D + d]);
    dq[(t * s.heads + h) * D + d] = x;
  }
}

template <class T>
__global__ void reference_keys(Shape s, const T* grad, const T* q, const int* cu_q, const int* cu_k, const double* p, const double* ds,
                               double* dk, double* dv, int64_t most) {
  const int64_t t = blockIdx.x;
  const int kh = blockIdx.y, group = s.heads / s.key_heads, D = s.width;
  const int b = sequence_of(cu_k, s.sequences, t);
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    double x = 0, y = 0;
    if (b >= 0)
      for (int h = kh * group; h < (kh + 1) * group; h++)
        for (int64_t i = cu_q[b]; i < cu_q[b + 1]; i++) {
          const int64_t at = (h * s.tq + i) * most + t - cu_k[b];
          x += ds[at] * to_float(q[i * s.qs + h * D + d]);
          y += p[at] * to_float(grad[(i * s.heads + h) * D + d]);
        }
    dk[(t * s.key_heads + kh) * D + d] = x;
    dv[(t * s.key_heads + kh) * D + d] = y;
  }
}

template <class T>
T* device(size_t n) {
  void* p;
  CHECK(cudaMalloc(&p, n * sizeof(T) + 256));
  return static_cast<T*>(p);
}

// Normal numbers: pieces of one pool, repeated.
template <class T>
T* noise(size_t n, std::mt19937& random) {
  static std::vector<T> pool;
  if (pool.empty()) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < (1 << 20) + 7; i++) {
      if constexpr (sizeof(T) == 4) pool.push_back(normal(random));
      else if constexpr (std::is_same_v<T, bf16>) pool.push_back(__float2bfloat16(normal(random)));
      else pool.push_back(__float2half(normal(random)));
    }
  }
  T* p = device<T>(n);
  size_t from = random() % pool.size();
  for (size_t at = 0; at < n; from = 0) {
    const size_t piece = std::min(n - at, pool.size() - from);
    CHECK(cudaMemcpy(p + at, pool.data() + from, piece * sizeof(T), cudaMemcpyHostToDevice));
    at += piece;
  }
  return p;
}

View view(void* data, DType dtype, std::vector<int64_t> shape, int64_t stride0 = 0) {
  View v;
  v.data = static_cast<char*>(data), v.dtype = dtype, v.ndim = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) v.shape[i] = shape[static_cast<size_t>(i)], v.stride[i] = stride, stride *= v.shape[i];
  if (stride0) v.stride[0] = stride0;
  return v;
}

// A case's tensors on the device.
template <class T>
struct Tensors {
  Shape s;
  T *grad, *q, *k, *v, *o, *out[3];
  float* lse;
  int *cu_q, *cu_k;
  View in[8], results[3];
  double attr[3];
  size_t n_out[3];
  std::vector<void*> all;

  Tensors(const Case& c, std::mt19937& random) {
    std::vector<int> cuq{c.before}, cuk{c.before};
    for (int n : c.q) cuq.push_back(cuq.back() + n);
    for (int n : c.k) cuk.push_back(cuk.back() + n);
    const int D = c.width;
    s = {cuq.back() + c.after, cuk.back() + c.after, c.heads * D + c.padding, c.key_heads * D + c.padding, c.heads, c.key_heads, D,
         static_cast<int>(c.q.size()), 1 / std::sqrt(static_cast<double>(D)), c.causal, c.window};
    grad = noise<T>(static_cast<size_t>(s.tq * c.heads * D), random);
    q = noise<T>(static_cast<size_t>(s.tq * s.qs), random);
    k = noise<T>(static_cast<size_t>(s.tk * s.ks), random);
    v = noise<T>(static_cast<size_t>(s.tk * s.ks), random);
    o = noise<T>(static_cast<size_t>(s.tq * c.heads * D), random);
    lse = device<float>(static_cast<size_t>(c.heads * s.tq));
    cu_q = device<int>(cuq.size()), cu_k = device<int>(cuk.size());
    CHECK(cudaMemcpy(cu_q, cuq.data(), cuq.size() * 4, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(cu_k, cuk.data(), cuk.size() * 4, cudaMemcpyHostToDevice));
    n_out[0] = static_cast<size_t>(s.tq * c.heads * D), n_out[1] = n_out[2] = static_cast<size_t>(s.tk * c.key_heads * D);
    for (int i = 0; i < 3; i++) out[i] = device<T>(n_out[i]);
    const int64_t B = static_cast<int64_t>(cuq.size());
    in[0] = view(grad, c.dtype, {s.tq, c.heads, D}), in[1] = view(q, c.dtype, {s.tq, c.heads, D}, s.qs);
    in[2] = view(k, c.dtype, {s.tk, c.key_heads, D}, s.ks), in[3] = view(v, c.dtype, {s.tk, c.key_heads, D}, s.ks);
    in[4] = view(o, c.dtype, {s.tq, c.heads, D}), in[5] = view(lse, DType::f32, {c.heads, s.tq});
    in[6] = view(cu_q, DType::i32, {B}), in[7] = view(cu_k, DType::i32, {B});
    results[0] = view(out[0], c.dtype, {s.tq, c.heads, D});
    for (int i = 1; i < 3; i++) results[i] = view(out[i], c.dtype, {s.tk, c.key_heads, D});
    attr[0] = s.scale, attr[1] = c.causal, attr[2] = c.window;
    all = {grad, q, k, v, o, lse, cu_q, cu_k, out[0], out[1], out[2]};
  }
  ~Tensors() {
    for (void* p : all) cudaFree(p);
  }
  KernelArgs args() { return {in, 8, results, 3, attr, 3}; }
};

int faults(const Context& ctx) {
  int word;
  CHECK(cudaMemcpy(&word, ctx.fault_word, 4, cudaMemcpyDeviceToHost));
  return word;
}

bool run(Context& ctx, const KernelArgs& args) {
  next_block = 0;
  const char* e = attention_backward(ctx, args);
  const cudaError_t c = cudaDeviceSynchronize();
  if (e || c) std::printf("  FAILED: %s %s\n", e ? e : "", cudaGetErrorString(c));
  if (c) std::exit(1);
  return !e;
}

float number(float x) { return x; }
float number(bf16 x) { return __bfloat162float(x); }
float number(f16 x) { return __half2float(x); }

template <class T>
bool check(Context& ctx, const Case& c, const std::vector<int>& levels) {
  std::mt19937 random(7);
  Tensors<T> x(c, random);
  int64_t most = 1;
  for (int n : c.k) most = std::max<int64_t>(most, n);
  double *p = device<double>(static_cast<size_t>(x.s.heads * x.s.tq * most)), *ds = device<double>(static_cast<size_t>(x.s.heads * x.s.tq * most));
  double* want[3];
  for (int i = 0; i < 3; i++) want[i] = device<double>(x.n_out[i]);
  if (x.s.tq > 0)
    reference_rows<T><<<dim3(static_cast<unsigned>(x.s.tq), static_cast<unsigned>(x.s.heads)), 128>>>(x.s, x.grad, x.q, x.k, x.v, x.o, x.lse, x.cu_q, x.cu_k, p,
                                                                                                        ds, want[0], most);
  if (x.s.tk > 0)
    reference_keys<T><<<dim3(static_cast<unsigned>(x.s.tk), static_cast<unsigned>(x.s.key_heads)), 128>>>(x.s, x.grad, x.q, x.cu_q, x.cu_k, p, ds, want[1],
                                                                                                            want[2], most);
  CHECK(cudaDeviceSynchronize());
  const double tolerance = sizeof(T) == 4 ? 1.0 / (1 << 15) : std::is_same_v<T, bf16> ? 1.0 / (1 << 7) : 1.0 / (1 << 10);
  bool ok = true;
  for (int level : levels) {
    ctx.arch = level;
    std::vector<T> first[3];
    double worst[3] = {}, norm_error[3] = {}, norm[3] = {};
    bool same = true, guarded = true;
    for (int round = 0; round < 2; round++) {
      for (int i = 0; i < 3; i++) CHECK(cudaMemset(x.out[i], 0xff, x.n_out[i] * sizeof(T) + 256));
      for (auto& b : blocks) CHECK(cudaMemset(b.first, round ? 0xff : 0x3c, b.second));
      ok &= run(ctx, x.args());
      for (int i = 0; i < 3; i++) {
        std::vector<T> got(x.n_out[i] + 256 / sizeof(T));
        CHECK(cudaMemcpy(got.data(), x.out[i], got.size() * sizeof(T), cudaMemcpyDeviceToHost));
        const auto* tail = reinterpret_cast<const unsigned char*>(got.data() + x.n_out[i]);
        for (int b = 0; b < 256; b++) guarded &= tail[b] == 0xff;
        if (round == 1) {
          same &= std::memcmp(got.data(), first[i].data(), got.size() * sizeof(T)) == 0;
          continue;
        }
        std::vector<double> expected(x.n_out[i]);
        CHECK(cudaMemcpy(expected.data(), want[i], x.n_out[i] * 8, cudaMemcpyDeviceToHost));
        for (size_t e = 0; e < x.n_out[i]; e++) {
          const double difference = std::abs(number(got[e]) - expected[e]), error = difference / std::max(1.0, std::abs(expected[e]));
          if (!(error <= worst[i])) worst[i] = std::isnan(error) ? 1e9 : error;
          norm_error[i] += difference * difference, norm[i] += expected[e] * expected[e];
        }
        first[i] = std::move(got);
      }
    }
    const double relative = std::sqrt(std::max({norm_error[0] / (norm[0] + 1e-30), norm_error[1] / (norm[1] + 1e-30), norm_error[2] / (norm[2] + 1e-30)}));
    const bool good = same && guarded && std::max({worst[0], worst[1], worst[2]}) <= 4 * tolerance && faults(ctx) == 0;
    ok &= good;
    std::printf("%s %-34s %s d%-3d level %d: dq %.1e dk %.1e dv %.1e norm %.1e (unit %.1e)%s%s\n", good ? "ok  " : "BAD ", c.note.c_str(),
                dtype_name(c.dtype), c.width, level, worst[0], worst[1], worst[2], relative, tolerance, same ? "" : " NOT REPEATABLE",
                guarded ? "" : " WROTE BEHIND THE OUTPUT");
  }
  for (double* d : {p, ds, want[0], want[1], want[2]}) cudaFree(d);
  return ok;
}

// Two levels against each other, for sizes beyond the reference: the largest difference over the size of the result, root of mean squares.
bool compare(Context& ctx, const Case& c, int level_a, int level_b) {
  std::mt19937 random(5);
  Tensors<bf16> x(c, random);
  std::vector<float> lse(static_cast<size_t>(x.s.heads * x.s.tq), 8.f);
  CHECK(cudaMemcpy(x.lse, lse.data(), lse.size() * 4, cudaMemcpyHostToDevice));
  std::vector<bf16> got[2][3];
  for (int side = 0; side < 2; side++) {
    ctx.arch = side ? level_b : level_a;
    for (int i = 0; i < 3; i++) CHECK(cudaMemset(x.out[i], 0xff, x.n_out[i] * 2));
    for (auto& b : blocks) CHECK(cudaMemset(b.first, 0xff, b.second));
    if (!run(ctx, x.args())) return false;
    for (int i = 0; i < 3; i++) {
      got[side][i].resize(x.n_out[i]);
      CHECK(cudaMemcpy(got[side][i].data(), x.out[i], x.n_out[i] * 2, cudaMemcpyDeviceToHost));
    }
  }
  double error[3];
  bool ok = true;
  for (int i = 0; i < 3; i++) {
    double difference = 0, size = 0;
    for (size_t e = 0; e < x.n_out[i]; e++) {
      const double a = number(got[0][i][e]), b = number(got[1][i][e]);
      difference += (a - b) * (a - b), size += a * a;
    }
    error[i] = std::sqrt(difference / size);
    ok &= error[i] < 1e-2;
  }
  std::printf("%s %s d%d, level %d against %d: dq %.1e dk %.1e dv %.1e, scratch %.0f MB\n", ok ? "ok  " : "BAD ", c.note.c_str(), c.width, level_a, level_b,
              error[0], error[1], error[2], static_cast<double>(scratch_bytes()) / 1e6);
  return ok;
}

double flops(const Case& c) {
  double pairs = 0;
  for (size_t b = 0; b < c.q.size(); b++) pairs += static_cast<double>(c.q[b]) * c.k[b] / (c.causal ? 2 : 1);
  return 10.0 * pairs * c.width * c.heads;
}

void time(Context& ctx, const Case& c, const std::vector<int>& levels) {
  std::mt19937 random(3);
  Tensors<bf16> x(c, random);
  CHECK(cudaMemset(x.lse, 0, static_cast<size_t>(x.s.heads * x.s.tq) * 4));
  std::vector<float> lse(static_cast<size_t>(x.s.heads * x.s.tq), 8.f);
  CHECK(cudaMemcpy(x.lse, lse.data(), lse.size() * 4, cudaMemcpyHostToDevice));
  for (int level : levels) {
    ctx.arch = level;
    if (!run(ctx, x.args())) continue;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    float best = 1e9f, sum = 0;
    const int rounds = 5, per = 4;
    for (int r = 0; r < rounds; r++) {
      cudaEventRecord(begin, ctx.stream);
      for (int i = 0; i < per; i++) next_block = 0, attention_backward(ctx, x.args());
      cudaEventRecord(end, ctx.stream);
      CHECK(cudaEventSynchronize(end));
      float ms;
      cudaEventElapsedTime(&ms, begin, end);
      best = std::min(best, ms / per), sum += ms / per;
    }
    std::printf("time %-24s d%d level %d: best %.3f ms, mean %.3f ms, %.0f TFLOP/s, scratch %.0f MB\n", c.note.c_str(), c.width, level, best,
                sum / rounds, flops(c) / best / 1e9, static_cast<double>(scratch_bytes()) / 1e6);
  }
}

std::vector<int> times(int n, int length) { return std::vector<int>(static_cast<size_t>(n), length); }

}  // namespace

void* Context::scratch(size_t bytes) {
  if (next_block == blocks.size()) blocks.push_back({nullptr, 0});
  auto& b = blocks[next_block++];
  if (b.second < bytes) {
    cudaDeviceSynchronize();
    cudaFree(b.first);
    CHECK(cudaMalloc(&b.first, bytes));
    b.second = bytes;
  }
  return b.first;
}

int main(int argc, char** argv) {
  cudaDeviceProp device_properties;
  CHECK(cudaGetDeviceProperties(&device_properties, 0));
  Context ctx{};
  CHECK(cudaStreamCreate(&ctx.stream));
  ctx.op = 40, ctx.sms = device_properties.multiProcessorCount, ctx.shared_bytes = static_cast<int>(device_properties.sharedMemPerBlockOptin);
  ctx.l2_bytes = device_properties.l2CacheSize;
  CHECK(cudaMalloc(&ctx.fault_word, 4));
  CHECK(cudaMemset(ctx.fault_word, 0, 4));
  const int native_level = device_properties.major * 10 + device_properties.minor;
  std::vector<int> fast{80};
  if (native_level >= 90) fast.push_back(90);
  const std::string mode = argc > 1 ? argv[1] : "all";
  if (argc > 2) fast = {std::atoi(argv[2])};

  if (mode == "check" || mode == "all") {
    bool ok = true;
    const std::vector<int> lengths{1, 63, 64, 65, 127, 129, 200, 700};
    const std::vector<int> other{5, 64, 1, 130, 127, 60, 333, 700};
    std::vector<Case> cases;
    for (DType t : {DType::bf16, DType::f16}) {
      for (int D : {128, 64}) {
        cases.push_back({"lengths, group 1", lengths, lengths, 2, 2, D, t});
        cases.push_back({"lengths, group 4", lengths, lengths, 4, 1, D, t});
        cases.push_back({"lengths, group 7, strided", lengths, lengths, 14, 2, D, t, true, 0, 64});
        cases.push_back({"cu_q != cu_k", lengths, other, 4, 2, D, t});
        cases.push_back({"not causal, cu_q != cu_k", other, lengths, 4, 2, D, t, false});
        cases.push_back({"window 100", lengths, lengths, 4, 2, D, t, true, 100});
        cases.push_back({"window 33, cu_q != cu_k", other, lengths, 4, 2, D, t, true, 33});
        cases.push_back({"window 70, not causal", lengths, other, 2, 1, D, t, false, 70});
        cases.push_back({"tokens outside, empty sequences", {0, 70, 0, 200, 0}, {3, 70, 9, 0, 0}, 4, 2, D, t, true, 0, 0, 5, 150});
        cases.push_back({"one token", {1}, {1}, 2, 1, D, t});
        cases.push_back({"row stride of 8 bytes", {90}, {90}, 2, 1, D, t, true, 0, 4});
      }
      cases.push_back({"odd width", {40, 70}, {40, 70}, 4, 2, 5, t});
      cases.push_back({"wide", {40, 70}, {33, 80}, 4, 2, 200, t});
    }
    for (int D : fast[0] == 80 ? std::vector<int>{128, 64, 5, 256} : std::vector<int>{}) {
      cases.push_back({"lengths, group 4", lengths, lengths, 4, 1, D, DType::f32});
      cases.push_back({"cu_q != cu_k, strided", lengths, other, 4, 2, D, DType::f32, true, 0, 7});
      cases.push_back({"window 33", other, lengths, 4, 2, D, DType::f32, true, 33});
      cases.push_back({"tokens outside, empty sequences", {0, 70, 0, 200, 0}, {3, 70, 9, 0, 0}, 4, 2, D, DType::f32, true, 0, 0, 5, 150});
    }
    for (const Case& c : cases) {
      if (c.dtype == DType::f32) ok &= check<float>(ctx, c, {70});
      else if (c.dtype == DType::bf16) ok &= check<bf16>(ctx, c, fast);
      else ok &= check<f16>(ctx, c, fast);
    }
    ok &= check<bf16>(ctx, {"lengths, group 4, generic", lengths, other, 4, 1, 64, DType::bf16}, {70});

    // Broken boundaries: a fault, zeros, no crash.
    std::mt19937 random(1);
    Tensors<bf16> x({"broken", {50, 50}, {50, 50}, 2, 1, 64, DType::bf16}, random);
    const int broken[3] = {0, 70, 40};
    CHECK(cudaMemcpy(x.cu_q, broken, 12, cudaMemcpyHostToDevice));
    for (int level : fast) {
      ctx.arch = level;
      CHECK(cudaMemset(x.out[0], 0xff, x.n_out[0] * 2));
      CHECK(cudaMemset(ctx.fault_word, 0, 4));
      ok &= run(ctx, x.args());
      std::vector<unsigned short> got(x.n_out[0]);
      CHECK(cudaMemcpy(got.data(), x.out[0], got.size() * 2, cudaMemcpyDeviceToHost));
      bool zero = true;
      for (auto g : got) zero &= g == 0;
      const bool good = zero && faults(ctx) == ctx.code(Fault::boundaries);
      ok &= good;
      std::printf("%s broken boundaries, level %d\n", good ? "ok  " : "BAD ", level);
    }
    if (fast.back() >= 90) {
      ok &= compare(ctx, {"1 x 16384, 12/2", {16384}, {16384}, 12, 2, 128, DType::bf16}, 80, 90);
      ok &= compare(ctx, {"1 x 32768, 6/1", {32768}, {32768}, 6, 1, 128, DType::bf16}, 80, 90);
      ok &= compare(ctx, {"1 x 4096, 28/4", {4096}, {4096}, 28, 4, 64, DType::bf16}, 80, 90);
      ok &= compare(ctx, {"3 x 800 and 10000, 7/1", {800, 800, 10000, 800}, {800, 900, 10000, 700}, 7, 1, 128, DType::bf16}, 80, 90);
    }
    std::printf(ok ? "ALL OK\n" : "SOME BAD\n");
  }
  if (mode == "two") {
    time(ctx, {"4 x 2048, 28/4", times(4, 2048), times(4, 2048), 28, 4, 128, DType::bf16}, fast);
    time(ctx, {"1 x 8192, 28/4", times(1, 8192), times(1, 8192), 28, 4, 128, DType::bf16}, fast);
  } else if (mode != "check") {
    time(ctx, {"4 x 2048, 28/4", times(4, 2048), times(4, 2048), 28, 4, 128, DType::bf16}, fast);
    time(ctx, {"1 x 8192, 28/4", times(1, 8192), times(1, 8192), 28, 4, 128, DType::bf16}, fast);
    time(ctx, {"8 x 2048, 12/2", times(8, 2048), times(8, 2048), 12, 2, 128, DType::bf16}, fast);
    time(ctx, {"4 x 2048, 32/8", times(4, 2048), times(4, 2048), 32, 8, 64, DType::bf16}, fast);
    time(ctx, {"1 x 8192 full, 28/4", times(1, 8192), times(1, 8192), 28, 4, 128, DType::bf16, false}, fast);
    time(ctx, {"16 x 512, 28/4", times(16, 512), times(16, 512), 28, 4, 128, DType::bf16}, fast);
    time(ctx, {"1 x 32768, 12/2", times(1, 32768), times(1, 32768), 12, 2, 128, DType::bf16}, fast);
    time(ctx, {"1 x 16384, 28/4", times(1, 16384), times(1, 16384), 28, 4, 128, DType::bf16}, fast);
    time(ctx, {"1 x 1024, 28/4", times(1, 1024), times(1, 1024), 28, 4, 128, DType::bf16}, fast);
  }
  return 0;
}
