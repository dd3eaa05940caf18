// Losses, quantizers and packed linears on the device against the CPU's reference kernels: dtypes, odd shapes, strided and unaligned rows,
// special values. Every case runs twice and must give the same bits and leave the memory around its tensors alone. Then speed against a
// plain copy, each op over buffers that together exceed the L2 cache, in a CUDA graph.
//   nvcc -std=c++20 -O3 -I native … quant_test.cu ../{loss,loss_distill,quant*}.cu ../../cpu/ref/{loss,quant}.cpp ../../core/threadpool.cpp
//   quant_test [check,losses,quantizers,linears,awq]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "cpu/kernels.h"
#include "cuda/gemm/gemm.h"
#include "cuda/tables.h"

using namespace llm;

namespace {

constexpr float kInf = INFINITY;
const DType f32 = DType::f32, f16 = DType::f16, bf16 = DType::bf16, i32 = DType::i32, u8 = DType::u8, i8 = DType::i8;
const DType floats[] = {f32, bf16, f16};

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}

template <class... A>
std::string text(const char* format, A... a) {
  char buffer[256];
  std::snprintf(buffer, sizeof buffer, format, a...);
  return buffer;
}

// Device memory handed out from one block.
struct Pool {
  char* base = nullptr;
  size_t size = 0, used = 0;
  void reserve(size_t bytes) {
    size = bytes;
    check(cudaMalloc(&base, bytes), "cudaMalloc");
  }
  void* take(size_t bytes) {
    void* p = base + used;
    used += (bytes + 255) / 256 * 256;
    if (used > size) {
      std::printf("pool exhausted\n");
      std::exit(1);
    }
    return p;
  }
};
Pool scratch_pool, tensor_pool;

std::mt19937 random_bits(7);
std::normal_distribution<float> normal;

constexpr size_t kGuard = 64;
constexpr char kPoison = static_cast<char>(0xfe);

// A tensor on the host with its twin on the device. `padding` elements lie between rows of dim 0, `offset` elements before the first.
struct Tensor {
  std::vector<char> host;
  View view;  // on the host
  int64_t offset = 0;
  char* device = nullptr;

  Tensor() = default;
  Tensor(DType dtype, std::vector<int64_t> shape, int64_t padding = 0, int64_t offset = 0) : offset(offset) {
    view.dtype = dtype;
    view.ndim = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (int d = view.ndim - 1; d >= 0; d--) {
      view.shape[d] = shape[d];
      view.stride[d] = d == 0 && view.ndim > 1 ? stride + padding : stride;
      stride *= shape[d];
    }
    host.assign(static_cast<size_t>(view.shape[0] * view.stride[0] + offset) * dtype_bytes(dtype) + kGuard, kPoison);
  }
  bool there() const { return !host.empty(); }
  char* at(std::vector<char>& bytes) const { return bytes.data() + static_cast<size_t>(offset) * dtype_bytes(view.dtype); }
  View on_host(std::vector<char>& bytes) const {
    View v = view;
    if (there()) v.data = at(bytes);
    return v;
  }
  void upload() {
    if (!there()) return;
    device = static_cast<char*>(tensor_pool.take(host.size()));
    check(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice), "upload");
  }
  View on_device() const {
    View v = view;
    if (there()) v.data = device + static_cast<size_t>(offset) * dtype_bytes(view.dtype);
    return v;
  }
  std::vector<char> download() const {
    std::vector<char> bytes(host.size());
    if (there()) check(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost), "download");
    return bytes;
  }
  // Elements in memory order, padding included.
  Tensor& fill(const std::function<float(int64_t)>& f) {
    char* p = at(host);
    for (int64_t i = 0; i < view.shape[0] * view.stride[0]; i++) {
      const float v = f(i);
      switch (view.dtype) {
        case DType::f32: reinterpret_cast<float*>(p)[i] = v; break;
        case DType::f16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_f16(v); break;
        case DType::bf16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_bf16(v); break;
        case DType::i32: reinterpret_cast<int32_t*>(p)[i] = static_cast<int32_t>(v); break;
        case DType::i8: reinterpret_cast<int8_t*>(p)[i] = static_cast<int8_t>(v); break;
        default: reinterpret_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(v);
      }
    }
    return *this;
  }
  Tensor& noise(float scale = 1) {
    return fill([&](int64_t) { return scale * normal(random_bits); });
  }
  Tensor& integers(int from, int to) {
    return fill([&](int64_t) { return static_cast<float>(from + static_cast<int>(random_bits() % static_cast<unsigned>(to - from + 1))); });
  }
};

double value(DType t, const char* p, int64_t i) {
  switch (t) {
    case DType::f32: return reinterpret_cast<const float*>(p)[i];
    case DType::f16: return f16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::bf16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::i32: return reinterpret_cast<const int32_t*>(p)[i];
    case DType::i8: return reinterpret_cast<const int8_t*>(p)[i];
    default: return reinterpret_cast<const uint8_t*>(p)[i];
  }
}

cuda::Context context(int op) {
  static cudaDeviceProp prop = [] {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, 0), "device");
    return p;
  }();
  static int* fault = [] {
    int* p;
    check(cudaMalloc(&p, 4), "cudaMalloc");
    check(cudaMemset(p, 0, 4), "cudaMemset");
    return p;
  }();
  static cudaStream_t stream = [] {
    cudaStream_t s;
    check(cudaStreamCreate(&s), "stream");
    return s;
  }();
  return {stream, op, prop.multiProcessorCount, prop.major * 10 + prop.minor, static_cast<int>(prop.sharedMemPerBlockOptin), prop.l2CacheSize, fault};
}

cuda::CudaKernel kernel_of(int op) {
  for (int i = 0; i < cuda::cuda_loss_count; i++)
    if (cuda::cuda_loss[i].op == op) return cuda::cuda_loss[i].kernel;
  for (int i = 0; i < cuda::cuda_quant_count; i++)
    if (cuda::cuda_quant[i].op == op) return cuda::cuda_quant[i].kernel;
  std::exit(2);
}
Kernel reference_of(int op) {
  for (int i = 0; i < ref_loss_count; i++)
    if (ref_loss[i].op == op) return ref_loss[i].kernel;
  for (int i = 0; i < ref_quant_count; i++)
    if (ref_quant[i].op == op) return ref_quant[i].kernel;
  std::exit(2);
}

void launch(int op, const std::vector<View>& in, std::vector<View> out, const std::vector<double>& attr) {
  cuda::Context ctx = context(op);
  const KernelArgs k{in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  if (const char* error = kernel_of(op)(ctx, k)) {
    std::printf("%s: %s\n", kOps[op].name, error);
    std::exit(1);
  }
}
int take_fault() {
  cuda::Context ctx = context(0);
  int fault;
  check(cudaMemcpy(&fault, ctx.fault_word, 4, cudaMemcpyDeviceToHost), "fault");
  check(cudaMemset(ctx.fault_word, 0, 4), "fault");
  return fault;
}

int failures = 0, cases = 0;
void fail(const std::string& name, const std::string& why) {
  if (failures++ < 40) std::printf("FAIL %s: %s\n", name.c_str(), why.c_str());
}

struct Limits {
  double f32, bf16, f16;
};
const Limits exact{0, 0, 0}, logs{0x1p-19, 0x1p-8, 0x1p-11}, product{0x1p-17, 0x1p-8, 0x1p-11}, arithmetic{0x1p-22, 0x1p-8, 0x1p-11};

// Largest |got - want| / (|want| + rms(want)); integers, padding and guards must be equal.
void judge(const std::string& name, const Tensor& t, const std::vector<char>& got, const std::vector<char>& want, const Limits& limits) {
  if (!t.there()) return;
  const double limit = t.view.dtype == f32 ? limits.f32 : t.view.dtype == bf16 ? limits.bf16 : t.view.dtype == f16 ? limits.f16 : 0;
  if (limit == 0) {
    if (got == want) return;
    size_t i = 0;
    while (got[i] == want[i]) i++;
    const int64_t e = static_cast<int64_t>(i / dtype_bytes(t.view.dtype));
    return fail(name, text("%s element %ld differs: %g, expected %g", dtype_name(t.view.dtype), e - t.offset, value(t.view.dtype, got.data(), e),
                           value(t.view.dtype, want.data(), e)));
  }
  const int64_t n = static_cast<int64_t>((got.size() - kGuard) / dtype_bytes(t.view.dtype));
  if (std::memcmp(got.data() + got.size() - kGuard, want.data() + want.size() - kGuard, kGuard) != 0) fail(name, "wrote behind the end");
  double squares = 0, worst = 0;
  int64_t finite = 0, where = 0;
  for (int64_t i = t.offset; i < n; i++) {
    const double w = value(t.view.dtype, want.data(), i);
    if (!std::isfinite(w) || std::fabs(w) > 1e30) continue;
    squares += w * w;
    finite++;
  }
  const double rms = std::sqrt(squares / std::max<double>(1, static_cast<double>(finite))), least = t.view.dtype == f16 ? 0x1p-24 : 0;
  for (int64_t i = 0; i < n; i++) {
    const double g = value(t.view.dtype, got.data(), i), w = value(t.view.dtype, want.data(), i);
    if (g == w || (std::isnan(g) && std::isnan(w))) continue;
    const double error = std::isfinite(g) && std::isfinite(w) ? std::max(0.0, std::fabs(g - w) - least) / (std::fabs(w) + rms) : kInf;
    if (error > worst) worst = error, where = i;
  }
  if (worst > limit)
    fail(name, text("%s element %ld = %.9g, expected %.9g: error %.2e > %.2e", dtype_name(t.view.dtype), where - t.offset,
                    value(t.view.dtype, got.data(), where), value(t.view.dtype, want.data(), where), worst, limit));
}

// Runs op on the device twice and once on the host, and compares what all tensors hold afterwards.
void compare(const std::string& note, int op, std::vector<Tensor> in, std::vector<Tensor> out, const std::vector<double>& attr, const Limits& limits) {
  const std::string name = text("%s %s", kOps[op].name, note.c_str());
  cases++;
  std::vector<std::vector<char>> got[2];
  std::vector<Tensor*> all;
  for (Tensor& t : in) all.push_back(&t);
  for (Tensor& t : out) all.push_back(&t);
  for (auto& results : got) {
    tensor_pool.used = scratch_pool.used = 0;
    check(cudaMemset(scratch_pool.base, 0xff, 8 << 20), "poison");
    std::vector<View> views;
    for (Tensor* t : all) {
      t->upload();
      views.push_back(t->on_device());
    }
    launch(op, {views.begin(), views.begin() + static_cast<long>(in.size())}, {views.begin() + static_cast<long>(in.size()), views.end()}, attr);
    check(cudaStreamSynchronize(context(op).stream), name.c_str());
    for (Tensor* t : all) results.push_back(t->download());
  }
  if (got[0] != got[1]) fail(name, "two runs differ");
  if (const int fault = take_fault()) fail(name, text("fault %x", fault));
  std::vector<std::vector<char>> host;
  std::vector<View> views;
  for (Tensor* t : all) host.push_back(t->host);
  for (size_t i = 0; i < all.size(); i++) views.push_back(all[i]->on_host(host[i]));
  const KernelArgs k{views.data(), static_cast<int>(in.size()), views.data() + in.size(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  if (const char* error = reference_of(op)(k)) fail(name, error);
  for (size_t i = 0; i < all.size(); i++) judge(name, *all[i], got[0][i], host[i], limits);
}

Tensor labels_for(int64_t rows, int64_t vocabulary) {
  return Tensor(i32, {rows}).fill([&](int64_t i) {
    return i % 5 == 2 ? -100.f : i % 5 == 3 ? static_cast<float>(vocabulary - 1) : static_cast<float>(random_bits() % static_cast<unsigned>(vocabulary));
  });
}
Tensor weights_for(int64_t rows) {
  return Tensor(f32, {rows}).fill([](int64_t i) { return i % 4 == 1 ? 0.f : 0.25f * static_cast<float>(i % 7 + 1); });
}

void check_losses() {
  const std::pair<int64_t, int64_t> shapes[] = {{5, 33}, {3, 7}, {1, 1}, {12, 4001}, {7, 50257}, {3, 152064}, {6, 8192}, {0, 4}, {200, 1000}, {3, 57344}};
  for (DType t : floats)
    for (const auto& [rows, cols] : shapes)
      for (int op : {op_cross_entropy, op_cross_entropy_inplace, op_token_logprobs})
        for (int kind = 0; kind < 3; kind++) {  // plain; weights and an unaligned base; impossible tokens
          Tensor x(t, {rows, cols}, 0, kind == 1 ? 3 : 0);
          x.fill([&](int64_t i) { return kind == 2 && (i % 3 == 0 || i / std::max<int64_t>(1, cols) == 2) ? -kInf : 3 * normal(random_bits); });
          std::vector<Tensor> in{x, labels_for(rows, cols)}, out{Tensor(f32, {rows})};
          if (op == op_token_logprobs) {
            // Ties, and ids that are the argmax.
            if (kind == 0) in[0].fill([&](int64_t i) { return static_cast<float>(random_bits() % 7 + (i % 11 == 0)); });
            out.emplace_back(i32, std::vector<int64_t>{rows});
          } else {
            in.push_back(kind == 1 ? weights_for(rows) : Tensor());
          }
          compare(text("%s [%ld, %ld] kind %d", dtype_name(t), rows, cols, kind), op, in, out, {}, logs);
        }
  // Bad labels: a fault, zeros, and the other rows as ever.
  for (DType t : floats) {
    for (int op : {op_cross_entropy, op_cross_entropy_inplace, op_token_logprobs}) {
      tensor_pool.used = 0;
      Tensor x = Tensor(t, {3, 100}).noise(), ids = Tensor(i32, {3}).fill([](int64_t i) { return i == 0 ? 100.f : i == 1 ? -1.f : 5.f; });
      Tensor a(f32, {3}), b(i32, {3});
      for (Tensor* p : {&x, &ids, &a, &b}) p->upload();
      std::vector<View> in{x.on_device(), ids.on_device()}, out{a.on_device()};
      if (op == op_token_logprobs) out.push_back(b.on_device());
      launch(op, in, out, {});
      cases++;
      const std::string name = text("%s bad labels %s", kOps[op].name, dtype_name(t));
      if ((take_fault() & 255) != static_cast<int>(cuda::Fault::token_id)) fail(name, "expected the token_id fault");
      const std::vector<char> got = a.download(), row = x.download();
      const double first = value(f32, got.data(), 0), second = value(f32, got.data(), 1), third = value(f32, got.data(), 2);
      if (first != 0 || second != 0 || !(std::fabs(third) > 0.5 && std::fabs(third) < 20)) fail(name, text("%g %g %g", first, second, third));
      if (op == op_cross_entropy_inplace && (value(t, row.data(), 0) != 0 || value(t, row.data(), 199) != 0)) fail(name, "rows are not zero");
    }
  }
}

void check_distill() {
  struct Shape {
    int64_t rows, cols, teacher;
  };
  for (DType s : floats)
    for (DType t : floats)
      for (const Shape& shape : {Shape{4, 9, 9}, Shape{4, 9, 12}, Shape{4, 9, 7}, Shape{3, 4001, 4096}, Shape{3, 4096, 4000}, Shape{2, 32064, 32000}, Shape{0, 5, 5}})
        for (int kind : {0, 1})
          for (int hard : {0, 1})
            for (int impossible : {0, 1}) {
              if (impossible && shape.cols != shape.teacher) continue;
              const auto logits = [&](DType d, int64_t cols) {
                return Tensor(d, {shape.rows, cols}).fill([&](int64_t i) { return impossible && i % 9 == 4 ? -kInf : 2 * normal(random_bits); });
              };
              Tensor labels = labels_for(shape.rows, std::min<int64_t>(3, shape.cols));
              compare(text("%s %s [%ld, %ld | %ld] kind %d hard %d%s", dtype_name(s), dtype_name(t), shape.rows, shape.cols, shape.teacher, kind, hard,
                           impossible ? " -inf" : ""),
                      op_distill_inplace, {logits(s, shape.cols), logits(t, shape.teacher), labels, impossible ? Tensor() : weights_for(shape.rows)},
                      {Tensor(f32, {shape.rows}), Tensor(f32, {shape.rows})}, {kind == 0 ? 2.0 : 0.7, hard ? 0.5 : 0.9, double(kind), double(hard)}, logs);
            }
}

void check_quantizers() {
  struct Shape {
    int64_t rows, cols, group;
  };
  const Shape shapes[] = {{3, 16, 8},   {5, 34, 16},   {2, 128, 128},  {1, 2, 2},      {0, 8, 4},    {4, 130, 64},  {7, 4096, 128}, {16, 512, 32},
                          {3, 96, 96},  {33, 1024, 256}, {2, 1024, 512}, {4, 34, 3},   {9, 72, 8},   {3, 6, 100},   {64, 18944, 64}};
  for (DType t : floats)
    for (const Shape& s : shapes) {
      const int64_t groups = (s.cols + s.group - 1) / s.group;
      const std::string name = text("%s [%ld, %ld] group %ld", dtype_name(t), s.rows, s.cols, s.group);
      for (int special : {0, 1}) {
        const auto weight = [&](int64_t rows, int64_t cols) {
          return Tensor(t, {rows, cols}).fill([&](int64_t i) {
            if (special && i / 16 % 4 == 1) return 0.f;
            if (special && i / 16 % 4 == 2) return 1e-40f * static_cast<float>(i % 5 - 2);
            if (special && i % 37 == 0) return 60.f;
            return special ? 0.5f * static_cast<float>(static_cast<int>(random_bits() % 9) - 4) : 0.1f * normal(random_bits);
          });
        };
        for (int symmetric : {0, 1})
          compare(name, op_quantize_w4, {weight(s.rows, s.cols)}, {Tensor(u8, {s.rows, s.cols / 2}), Tensor(f32, {s.rows, groups}), Tensor(u8, {s.rows, groups})},
                  {double(s.group), double(symmetric)}, exact);
        compare(name, op_quantize_q8, {weight(s.rows, s.cols - special)}, {Tensor(i8, {s.rows, s.cols - special}), Tensor(f32, {s.rows, (s.cols - special + s.group - 1) / s.group})},
                {double(s.group)}, exact);
        const int64_t n = s.rows * s.cols, blocks = (n + s.group - 1) / s.group;
        compare(name, op_quantize_nf4, {weight(1, n)}, {Tensor(u8, {n / 2}), Tensor(f32, {blocks})}, {double(s.group)}, exact);
      }
      const auto positive = [](Tensor x) { return x.fill([](int64_t) { return 0.01f + std::fabs(normal(random_bits)); }); };
      compare(name, op_dequantize_w4, {Tensor(u8, {s.rows, s.cols / 2}).integers(0, 255), positive(Tensor(f32, {s.rows, groups})), Tensor(u8, {s.rows, groups}).integers(0, 15)},
              {Tensor(t, {s.rows, s.cols})}, {double(s.group), double(static_cast<int>(t))}, exact);
      compare(name, op_dequantize_q8, {Tensor(i8, {s.rows, s.cols}).integers(-127, 127), positive(Tensor(f32, {s.rows, groups}))}, {Tensor(t, {s.rows, s.cols})},
              {double(s.group), double(static_cast<int>(t))}, exact);
      const int64_t n = s.rows * s.cols;
      compare(name, op_dequantize_nf4, {Tensor(u8, {n / 2}).integers(0, 255), positive(Tensor(f32, {(n + s.group - 1) / s.group}))}, {Tensor(t, {s.rows, s.cols})},
              {double(s.group), double(static_cast<int>(t)), double(s.rows), double(s.cols)}, exact);
    }
  // Every f32 near an NF4 threshold, and NaN: against the CPU's comparisons.
  Tensor edges = Tensor(f32, {1, 64 * 1024}).fill([&](int64_t i) {
    if (i % 64 == 0) return 1.f;
    if (i == 65) return NAN;
    static const float table[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
                                    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                                    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    const int at = static_cast<int>(i % 15);
    const float middle = static_cast<float>((static_cast<double>(table[at]) + table[at + 1]) * 0.5);
    return i % 2 == 0 ? middle + static_cast<float>(static_cast<int>(random_bits() % 7) - 3) * 0x1p-25f : static_cast<float>(random_bits() % 20001) * 1e-4f - 1.f;
  });
  compare("thresholds", op_quantize_nf4, {edges}, {Tensor(u8, {32 * 1024}), Tensor(f32, {1024})}, {64}, exact);
}

// repack and linear on the device, in the fewest bytes that a packed weight may have; the reference's own packed form on the host.
void linear_case(int bits, DType t, int mode, int64_t m, int64_t k, int64_t n, int64_t group, int64_t padding, int64_t offset, int with_bias) {
  const std::string name = text("linear %d bits %s mode %d [%ld, %ld] x [%ld, %ld] group %ld padding %ld", bits, dtype_name(t), mode, m, k, n, k, group, padding);
  cases++;
  const int64_t groups = (k + group - 1) / group, bytes = n * (bits == 4 ? k / 2 + groups * 5 : k + groups * 4);
  Tensor q = bits == 4 ? Tensor(u8, {n, k / 2}).integers(0, 255) : Tensor(i8, {n, k}).integers(-127, 127);
  Tensor scales = Tensor(f32, {n, groups}).fill([](int64_t) { return 0.01f + 0.02f * std::fabs(normal(random_bits)); });
  Tensor zeros = bits == 4 ? Tensor(u8, {n, groups}).integers(0, 15) : Tensor();
  Tensor packed(u8, {bytes}), x = Tensor(t, {m, k}, padding, offset).noise(), y(t, {m, n});
  Tensor bias = with_bias == 0 ? Tensor() : Tensor(with_bias == 1 ? t : f32, {n}).noise();
  const int repack = bits == 4 ? op_repack_w4 : op_repack_q8, linear = bits == 4 ? op_linear_w4 : op_linear_q8;
  const std::vector<double> attr{double(n), double(k), double(group), double(mode)};
  std::vector<char> got[2];
  for (auto& result : got) {
    tensor_pool.used = scratch_pool.used = 0;
    check(cudaMemset(scratch_pool.base, 0xff, 16 << 20), "poison");
    for (Tensor* p : {&q, &scales, &zeros, &packed, &x, &y, &bias}) p->upload();
    std::vector<View> in{q.on_device(), scales.on_device()};
    if (bits == 4) in.push_back(zeros.on_device());
    launch(repack, in, {packed.on_device()}, {double(group)});
    launch(linear, {x.on_device(), packed.on_device(), bias.on_device()}, {y.on_device()}, attr);
    check(cudaStreamSynchronize(context(linear).stream), name.c_str());
    result = y.download();
    const std::vector<char> around = packed.download();
    for (size_t i = static_cast<size_t>(bytes); i < around.size(); i++)
      if (around[i] != kPoison) return fail(name, "repack wrote behind the end");
  }
  if (got[0] != got[1]) fail(name, "two runs differ");
  std::vector<char> want = y.host;
  std::vector<View> in{q.on_host(q.host), scales.on_host(scales.host)}, out{packed.on_host(packed.host)};
  if (bits == 4) in.push_back(zeros.on_host(zeros.host));
  const double g = static_cast<double>(group);
  reference_of(repack)({in.data(), static_cast<int>(in.size()), out.data(), 1, &g, 1});
  in = {x.on_host(x.host), packed.on_host(packed.host), bias.on_host(bias.host)};
  out = {y.on_host(want)};
  reference_of(linear)({in.data(), 3, out.data(), 1, attr.data(), 4});
  Limits limits = product;
  if (m > 32) limits = {product.f32, 2 * product.bf16, 2 * product.f16};  // weights may be rounded to x's dtype
  if (mode == 1) limits = {limits.f32 + 0x1p-8, limits.bf16 + 0x1p-8, limits.f16 + 0x1p-8};
  judge(name, y, got[0], want, limits);
}

void check_linears() {
  struct Shape {
    int64_t m, k, n, group;
  };
  const Shape shapes[] = {{1, 64, 9, 32},    {3, 34, 5, 16},     {5, 256, 33, 128},  {2, 20, 3, 64},     {17, 128, 65, 32},  {0, 32, 4, 32},   {1, 64, 16, 64},
                          {8, 512, 64, 128}, {9, 512, 64, 128},  {16, 1024, 48, 32}, {33, 288 * 2, 32, 96}, {64, 2048, 64, 128}, {65, 512, 64, 128}, {7, 3584, 128, 128},
                          {1, 18944, 32, 64}, {3, 896, 64, 2000}, {40, 130, 7, 64},  {2, 0, 16, 32},     {13, 1536, 16, 64}};
  for (int bits : {4, 8})
    for (DType t : floats)
      for (int mode : {0, 1})
        for (const Shape& s : shapes)
          for (int kind = 0; kind < 3; kind++) linear_case(bits, t, mode, s.m, s.k, s.n, s.group, kind == 0 ? 0 : kind == 1 ? 6 : 8, kind == 2 ? 1 : 0, kind);
}

void check_awq() {
  struct Shape {
    int64_t rows, cols, samples, group;
    double grid, shrink;
  };
  for (const Shape& s : {Shape{3, 16, 5, 8, 20, 0.5}, Shape{2, 20, 3, 16, 20, 0.5}, Shape{1, 4, 1, 4, 10, 0.5}, Shape{13, 256, 130, 128, 20, 0.5}, Shape{3, 96, 300, 64, 100, 0.9},
                         Shape{70, 64, 16, 32, 10, 0.1}, Shape{2, 40, 0, 16, 20, 0.5}}) {
    const int64_t groups = (s.cols + s.group - 1) / s.group;
    Tensor w = Tensor(f32, {s.rows, s.cols}).fill([&](int64_t i) { return s.rows > 1 && i < s.group ? 0.f : 0.3f * normal(random_bits); });
    compare(text("[%ld, %ld] samples %ld group %ld", s.rows, s.cols, s.samples, s.group), op_awq_clip_search, {w, Tensor(f32, {s.samples, s.cols}, 3).noise()},
            {Tensor(f32, {s.rows, groups})}, {double(s.group), s.grid, s.shrink}, arithmetic);
  }
}

// ---- speed ----

double copy_speed = 1;

// Seconds a call: `calls` in a graph, replayed.
double seconds(const std::function<void(int)>& call, int calls, int replays = 5) {
  cuda::Context ctx = context(0);
  scratch_pool.used = 0;
  for (int i = 0; i < std::min(2, calls); i++) call(i);
  check(cudaStreamSynchronize(ctx.stream), "warm up");
  check(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; i++) {
    scratch_pool.used = 0;
    call(i);
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamEndCapture(ctx.stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  cudaGraphLaunch(exec, ctx.stream);
  double best = 1e9;
  for (int i = 0; i < replays; i++) {
    cudaEventRecord(begin, ctx.stream);
    cudaGraphLaunch(exec, ctx.stream);
    cudaEventRecord(end, ctx.stream);
    check(cudaEventSynchronize(end), "run");
    float ms;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::min(best, ms / 1e3 / calls);
  }
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
  return best;
}
void report(const std::string& name, double s, double bytes) {
  std::printf("%-58s %9.2f us %7.2f TB/s %5.1f %% of copy\n", name.c_str(), s * 1e6, bytes / s / 1e12, 100 * bytes / s / copy_speed);
}

View device_view(DType t, std::vector<int64_t> shape) {
  View v;
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int d = v.ndim - 1; d >= 0; d--) v.shape[d] = shape[d], v.stride[d] = stride, stride *= shape[d];
  v.data = static_cast<char*>(tensor_pool.take(static_cast<size_t>(stride) * dtype_bytes(t)));
  return v;
}

void bench_linear(int bits, DType t, int mode, int64_t m, int64_t n, int64_t k, int64_t group = 128) {
  tensor_pool.used = 0;
  const int64_t bytes = n * (bits == 4 ? k / 2 + k / group * 5 : k + k / group * 4);
  const int copies = static_cast<int>(std::max<int64_t>(2, (int64_t{256} << 20) / bytes));
  std::vector<View> packed;
  for (int i = 0; i < copies; i++) packed.push_back(device_view(u8, {bytes}));
  const View x = device_view(t, {m, k}), y = device_view(t, {m, n});
  const double s = seconds(
      [&](int i) {
        launch(bits == 4 ? op_linear_w4 : op_linear_q8, {x, packed[static_cast<size_t>(i % copies)], View{}}, {y}, {double(n), double(k), double(group), double(mode)});
      },
      copies);
  report(text("linear %d bits %s mode %d m %ld [%ld, %ld]", bits, dtype_name(t), mode, m, n, k), s, static_cast<double>(bytes));
}

__global__ void copy(uint4* to, const uint4* from, int64_t n) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) to[i] = from[i];
}
__global__ void fill_noise(uint32_t* p, int64_t n, bool is_f32) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u;
    h ^= h >> 15, h *= 2246822519u, h ^= h >> 13;
    const float x = (static_cast<float>(h & 0xffff) - 32768.f) * (4.f / 32768.f), y = (static_cast<float>(h >> 16) - 32768.f) * (4.f / 32768.f);
    const __nv_bfloat162 two(__float2bfloat16(x), __float2bfloat16(y));
    p[i] = is_f32 ? __float_as_uint(x) : *reinterpret_cast<const uint32_t*>(&two);
  }
}
// Memory full of numbers in -4 .. 4 (as f16: up to 3); copies of it are labels too, so those are set where they matter.
void noise(bool is_f32) { fill_noise<<<1024, 256, 0, context(0).stream>>>(reinterpret_cast<uint32_t*>(tensor_pool.base), static_cast<int64_t>(tensor_pool.size / 4), is_f32); }
View zero_labels(int64_t rows) {
  View v = device_view(i32, {rows});
  check(cudaMemsetAsync(v.data, 0, static_cast<size_t>(rows) * 4, context(0).stream), "labels");
  return v;
}

void bench_copy() {
  for (int i = 0; i < 20; i++) noise(false);  // the clocks rise
  const int64_t big = int64_t{1} << 30;
  copy_speed = 2.0 * big / seconds([&](int) { copy<<<context(0).sms * 8, 512, 0, context(0).stream>>>(reinterpret_cast<uint4*>(tensor_pool.base + big), reinterpret_cast<uint4*>(tensor_pool.base), big / 16); }, 2);
  std::printf("%d multiprocessors, copy %.2f TB/s\n", context(0).sms, copy_speed / 1e12);
}

void bench_losses() {
  for (DType t : {bf16, f32})
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{2048, 152064}, {4096, 32000}, {8, 152064}, {1024, 50257}}) {
      tensor_pool.used = 0;
      noise(t == f32);
      const View x = device_view(t, {rows, cols}), labels = zero_labels(rows), out = device_view(f32, {rows}), greedy = device_view(i32, {rows});
      const double n = static_cast<double>(rows * cols) * dtype_bytes(t);
      const std::string shape = text("%s [%ld, %ld]", dtype_name(t), rows, cols);
      report("cross_entropy " + shape, seconds([&](int) { launch(op_cross_entropy, {x, labels, View{}}, {out}, {}); }, 3), n);
      report("token_logprobs " + shape, seconds([&](int) { launch(op_token_logprobs, {x, labels}, {out, greedy}, {}); }, 3), n);
      report("cross_entropy_inplace (2 reads, 1 write) " + shape, seconds([&](int) { launch(op_cross_entropy_inplace, {x, labels, View{}}, {out}, {}); }, 3), 3 * n);
    }
  for (int kind : {0, 1}) {
    tensor_pool.used = 0;
    noise(false);
    const View s = device_view(bf16, {1024, 152064}), t = device_view(bf16, {1024, 152064}), labels = zero_labels(1024), kl = device_view(f32, {1024}), ce = device_view(f32, {1024});
    report(text("distill kind %d [1024, 152064] (4 or 6 reads, 1 write)", kind), seconds([&](int) { launch(op_distill_inplace, {s, t, labels, View{}}, {kl, ce}, {2, 0.5, double(kind), 0}); }, 2),
           (kind ? 7.0 : 5.0) * 1024 * 152064 * 2);
  }
}

void bench_quantizers() {
  const int64_t rows = 18944, cols = 3584, n = rows * cols;
  for (DType t : floats) {
    tensor_pool.used = 0;
    noise(t == f32);
    const View w = device_view(t, {rows, cols}), q4 = device_view(u8, {n / 2}), q8 = device_view(i8, {n}), scales = device_view(f32, {n / 64}), zeros = device_view(u8, {n / 64});
    View q4_rows = q4, q8_rows = q8, groups = scales, group_zeros = zeros;
    const double wide = static_cast<double>(n) * dtype_bytes(t), codes = 0.5 * static_cast<double>(n), code = static_cast<double>(static_cast<int>(t));
    const auto both = [&](const char* name, int quantize, std::vector<View> in, std::vector<View> out, std::vector<double> attr, double bytes) {
      report(text("%s %s", name, dtype_name(t)), seconds([&](int) { launch(quantize, in, out, attr); }, 4), bytes);
    };
    both("quantize_nf4 [18944, 3584]", op_quantize_nf4, {w}, {q4, scales}, {64}, wide + codes + codes / 8);
    both("dequantize_nf4", op_dequantize_nf4, {q4, scales}, {w}, {64, code, double(rows), double(cols)}, wide + codes + codes / 8);
    both("quantize_w4", op_quantize_w4, {w}, {q4_rows, groups, group_zeros}, {128, 0}, wide + codes);
    both("dequantize_w4", op_dequantize_w4, {q4_rows, groups, group_zeros}, {w}, {128, code}, wide + codes);
    both("quantize_q8", op_quantize_q8, {w}, {q8_rows, groups}, {128}, wide + 2 * codes);
    both("dequantize_q8", op_dequantize_q8, {q8_rows, groups}, {w}, {128, code}, wide + 2 * codes);
  }
}

void bench_linears() {
  noise(false);
  for (int bits : {4, 8})
    for (const auto& [n_out, n_in] : {std::pair<int64_t, int64_t>{4096, 4096}, {512, 3584}, {3584, 3584}, {3584, 18944}, {18944, 3584}, {1536, 8960}, {152064, 3584}})
      bench_linear(bits, bf16, 0, 1, n_out, n_in);
  for (int bits : {4, 8})
    for (int64_t m : {2, 8, 16, 32, 64}) bench_linear(bits, bf16, 0, m, 18944, 3584);
  for (int64_t m : {1, 8, 16}) bench_linear(4, f16, 0, m, 4096, 4096);
  for (int64_t m : {1, 8, 16}) bench_linear(4, bf16, 0, m, 4096, 18944, 32);
  for (int64_t m : {1, 16}) bench_linear(4, f32, 0, m, 18944, 3584);
  for (int64_t m : {1, 16}) bench_linear(4, bf16, 1, m, 18944, 3584);
}

void bench_awq() {
  tensor_pool.used = 0;
  noise(true);
  const View w = device_view(f32, {4096, 4096}), x = device_view(f32, {512, 4096}), best = device_view(f32, {4096, 32});
  std::printf("awq_clip_search [4096, 4096] 512 samples: %.2f ms\n", 1e3 * seconds([&](int) { launch(op_awq_clip_search, {w, x}, {best}, {128, 20, 0.5}); }, 1, 2));
}

// A plain dense product in place of the real one, which has tests of its own.
template <class T>
__global__ void plain_gemm(cuda::Gemm g) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < g.m * g.n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t r = i / g.n, c = i % g.n;
    float sum = 0;
    for (int64_t k = 0; k < g.k; k++) sum += cuda::to_float(static_cast<const T*>(g.a)[r * g.lda + k]) * cuda::to_float(static_cast<const T*>(g.b)[c * g.ldb + k]);
    if (g.bias != nullptr) {
      sum += g.dtype_bias == DType::f32    ? static_cast<const float*>(g.bias)[c]
             : g.dtype_bias == DType::bf16 ? cuda::to_float(static_cast<const __nv_bfloat16*>(g.bias)[c])
                                           : cuda::to_float(static_cast<const __half*>(g.bias)[c]);
    }
    static_cast<T*>(g.c)[r * g.ldc + c] = cuda::from_float<T>(sum);
  }
}

}  // namespace

void* llm::cuda::Context::scratch(size_t bytes) { return scratch_pool.take(bytes); }

const char* llm::cuda::gemm(Context& ctx, const Gemm& g) {
  return dispatch(g.dtype_c, [&](auto t) {
    plain_gemm<decltype(t)><<<256, 256, 0, ctx.stream>>>(g);
    return launched();
  });
}

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const auto wants = [&](const char* part) { return what == "all" || what.find(part) != std::string::npos; };
  scratch_pool.reserve(size_t{1} << 30);
  tensor_pool.reserve(size_t{5} << 30);
  if (wants("check")) {
    for (const auto& part : {check_losses, check_distill, check_quantizers, check_linears, check_awq}) {
      const int before = failures, first = cases;
      part();
      std::printf("%d cases, %d failures\n", cases - first, failures - before);
    }
  }
  if (what != "check") bench_copy();
  if (wants("losses")) bench_losses();
  if (wants("quantizers")) bench_quantizers();
  if (wants("linears")) bench_linears();
  if (wants("awq")) bench_awq();
  return failures != 0;
}
