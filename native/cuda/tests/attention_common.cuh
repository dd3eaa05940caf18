// What the attention test programs share: cases, their tensors on the device, a hand-made context, timing.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/kernel.cuh"

namespace llm::cuda {

enum class Way { chosen, generic, mma, hopper };
inline const char* way_name(Way w) {
  constexpr const char* names[] = {"chosen", "generic", "mma", "hopper"};
  return names[static_cast<int>(w)];
}

struct AttentionCase {
  int heads, key_heads, width;
  std::vector<int> queries, keys;  // of each sequence
  bool causal = true;
  int window = 0;
  int padding = 0;         // elements between rows of q, k, v
  int outside_q = 0, outside_k = 0;  // tokens before and after the sequences; the keys and values there are NaN
  double scale = 0;

  AttentionCase(int h, int k, int d) : heads(h), key_heads(k), width(d), scale(1.0 / std::sqrt(static_cast<double>(d))) {}
  void add(int q, int k) {
    queries.push_back(q);
    keys.push_back(k);
  }
  int sequences() const { return static_cast<int>(queries.size()); }
  std::string text() const {
    std::string s = "H" + std::to_string(heads) + "/" + std::to_string(key_heads) + " D" + std::to_string(width) + (causal ? " causal" : "");
    if (window) s += " window " + std::to_string(window);
    if (padding) s += " strided";
    if (outside_q || outside_k) s += " outside";
    for (int i = 0; i < sequences() && i < 8; i++) s += " " + std::to_string(queries[i]) + ":" + std::to_string(keys[i]);
    return s;
  }
};

inline std::vector<AttentionCase> attention_cases(int width) {
  std::vector<AttentionCase> all;
  const auto make = [&](int heads, int key_heads, std::vector<std::pair<int, int>> lengths, bool causal, int window = 0, int padding = 0, int outside = 0) {
    AttentionCase c(heads, key_heads, width);
    for (auto [q, k] : lengths) c.add(q, k);
    c.causal = causal;
    c.window = window;
    c.padding = padding;
    c.outside_q = c.outside_k = outside;
    all.push_back(c);
  };
  for (int n : {1, 63, 64, 65, 127, 129, 200, 1000}) make(4, 4, {{n, n}}, true);
  for (int n : {1, 65, 200, 1000}) make(4, 1, {{n, n}}, false);
  make(7, 1, {{129, 129}, {1, 1}, {0, 0}, {64, 64}, {300, 300}, {127, 127}}, true);
  make(28, 4, {{200, 200}, {65, 65}, {513, 513}}, true, 0, 64);
  make(4, 4, {{1, 1000}, {17, 333}, {64, 65}, {100, 511}}, true);             // fewer queries than keys
  make(4, 2, {{333, 17}, {65, 64}, {200, 0}, {0, 50}, {300, 129}}, true);     // more queries than keys: some see none
  make(4, 2, {{333, 17}, {65, 64}, {200, 0}, {1, 3}}, false, 0, 16);
  make(4, 1, {{1000, 1000}, {129, 700}}, true, 1);
  make(4, 1, {{1000, 1000}, {129, 700}}, true, 100, 8);
  make(2, 1, {{1000, 1000}, {300, 200}}, true, 257);
  make(2, 2, {{700, 700}, {129, 400}}, false, 130);
  make(7, 1, {{100, 100}, {200, 230}, {3, 131}}, true, 0, 24, 37);
  AttentionCase many(2, 1, width);
  for (int i = 0; i < 100; i++) many.add(i % 7 * 5, i % 7 * 5 + i % 3 * 40);
  all.push_back(many);
  return all;
}

// The tensors of a case, filled with noise in [-1, 1] (times 2 for q, so that the softmax has peaks).
__device__ inline float noise(uint64_t i, uint64_t seed) {
  uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<float>(static_cast<double>(x >> 11) * 0x1p-52 - 1.0);
}
template <class T>
__global__ void fill_noise(T* to, int64_t n, uint64_t seed, float factor) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    to[i] = from_float<T>(factor * noise(static_cast<uint64_t>(i), seed));
}

template <class T>
std::vector<T> download(const T* from, int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  cudaMemcpy(v.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost);
  return v;
}
template <class T>
std::vector<double> to_double(const std::vector<T>& v) {
  std::vector<double> r(v.size());
  for (size_t i = 0; i < v.size(); i++) r[i] = static_cast<double>(static_cast<float>(v[i]));
  return r;
}

template <class T>
constexpr DType dtype_of() {
  return std::is_same_v<T, float> ? DType::f32 : std::is_same_v<T, bf16> ? DType::bf16 : DType::f16;
}

inline View view_of(void* data, DType dtype, std::vector<int64_t> shape, int64_t row_stride = 0) {
  View v;
  v.data = static_cast<char*>(data);
  v.dtype = dtype;
  v.ndim = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) {
    v.shape[i] = shape[i];
    v.stride[i] = stride;
    stride *= shape[i];
  }
  if (row_stride) v.stride[0] = row_stride;
  return v;
}

template <class T>
struct Problem {
  const AttentionCase c;
  int64_t tokens = 0, key_tokens = 0, most_keys = 0, q_stride, k_stride, v_stride;
  T *q, *k, *v, *o;
  float* lse;
  int *cu_q, *cu_k;
  View in[5], out[2];
  double attr[3];
  std::vector<void*> owned;

  explicit Problem(const AttentionCase& of) : c(of) {
    std::vector<int> at_q{c.outside_q}, at_k{c.outside_k};
    for (int i = 0; i < c.sequences(); i++) {
      at_q.push_back(at_q.back() + c.queries[i]);
      at_k.push_back(at_k.back() + c.keys[i]);
      most_keys = std::max<int64_t>(most_keys, c.keys[i]);
    }
    tokens = at_q.back() + c.outside_q;
    key_tokens = at_k.back() + c.outside_k;
    q_stride = c.heads * c.width + c.padding;
    k_stride = c.key_heads * c.width + 2 * c.padding;
    v_stride = c.key_heads * c.width + c.padding;
    q = take<T>(tokens * q_stride);
    k = take<T>(key_tokens * k_stride);
    v = take<T>(key_tokens * v_stride);
    o = take<T>(tokens * c.heads * c.width);
    lse = take<float>(tokens * c.heads);
    cu_q = take<int>(at_q.size());
    cu_k = take<int>(at_k.size());
    cudaMemcpy(cu_q, at_q.data(), at_q.size() * 4, cudaMemcpyHostToDevice);
    cudaMemcpy(cu_k, at_k.data(), at_k.size() * 4, cudaMemcpyHostToDevice);
    fill_noise<<<256, 256>>>(q, tokens * q_stride, 1, 4.f);
    fill_noise<<<256, 256>>>(k, key_tokens * k_stride, 2, 1.f);
    fill_noise<<<256, 256>>>(v, key_tokens * v_stride, 3, 1.f);
    if (c.outside_k) {
      for (T* x : {k, v}) {
        const int64_t stride = x == k ? k_stride : v_stride;
        cudaMemset(x, 0xff, c.outside_k * stride * sizeof(T));
        cudaMemset(x + at_k.back() * stride, 0xff, c.outside_k * stride * sizeof(T));
      }
    }
    constexpr DType type = dtype_of<T>();
    in[0] = view_of(q, type, {tokens, c.heads, c.width}, q_stride);
    in[1] = view_of(k, type, {key_tokens, c.key_heads, c.width}, k_stride);
    in[2] = view_of(v, type, {key_tokens, c.key_heads, c.width}, v_stride);
    in[3] = view_of(cu_q, DType::i32, {c.sequences() + 1});
    in[4] = view_of(cu_k, DType::i32, {c.sequences() + 1});
    out[0] = view_of(o, type, {tokens, c.heads, c.width});
    out[1] = view_of(lse, DType::f32, {c.heads, tokens});
    attr[0] = c.scale;
    attr[1] = c.causal;
    attr[2] = c.window;
  }
  ~Problem() {
    for (void* p : owned) cudaFree(p);
  }
  Problem(const Problem&) = delete;
  KernelArgs forward_args() { return KernelArgs{in, 5, out, 2, attr, 3}; }

  template <class U>
  U* take(int64_t n) {
    void* p = nullptr;
    if (cudaMalloc(&p, n * sizeof(U) + 16) != cudaSuccess) std::printf("out of memory\n"), std::exit(1);
    owned.push_back(p);
    return static_cast<U*>(p);
  }
};

inline Context test_context() {
  cudaDeviceProp d;
  if (cudaGetDeviceProperties(&d, 0) != cudaSuccess) std::printf("no device\n"), std::exit(1);
  Context ctx{};
  ctx.stream = nullptr;
  ctx.op = op_attention;
  ctx.sms = d.multiProcessorCount;
  ctx.arch = d.major * 10 + d.minor;
  ctx.shared_bytes = static_cast<int>(d.sharedMemPerBlockOptin);
  ctx.l2_bytes = d.l2CacheSize;
  cudaMalloc(&ctx.fault_word, 4);
  cudaMemset(ctx.fault_word, 0, 4);
  std::printf("%s, %d SMs, L2 %d MiB\n", d.name, ctx.sms, d.l2CacheSize >> 20);
  return ctx;
}

template <class F>
float median_us(F&& launch, int rounds = 7, int calls = 5) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  for (int i = 0; i < 3; i++) launch();
  std::vector<float> us;
  for (int r = 0; r < rounds; r++) {
    cudaEventRecord(begin);
    for (int i = 0; i < calls; i++) launch();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    us.push_back(ms * 1000 / calls);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

}  // namespace llm::cuda
