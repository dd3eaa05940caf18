// Layers and optimizer steps on the device against the CPU's reference kernels, over dtypes, odd shapes, strided rows and bad ids; every
// case runs twice and must give the same bits. Then their speed against a plain copy.
//   nvcc -std=c++20 -O3 -I native … layers_test.cu ../{norm,norm_bwd,embedding_bwd,layers,optim}.cu ../../cpu/ref/{layers,optim}.cpp ../../core/threadpool.cpp
//   layers_test [check [largest number of elements] | bench [part of a name]]
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
#include "cuda/tables.h"

using namespace llm;

namespace {

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}

// Device memory handed out from one block; reset by the tests.
struct Pool {
  char* base = nullptr;
  size_t size, used = 0;
  explicit Pool(size_t bytes) : size(bytes) { check(cudaMalloc(&base, bytes), "cudaMalloc"); }
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
Pool* scratch_pool;

std::mt19937 random_bits(7);
std::normal_distribution<float> normal;

float load(const void* p, DType t, int64_t i) {
  if (t == DType::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return t == DType::bf16 ? bf16_to_f32(h) : f16_to_f32(h);
}
void store(void* p, DType t, int64_t i, float v) {
  if (t == DType::f32) static_cast<float*>(p)[i] = v;
  else static_cast<uint16_t*>(p)[i] = t == DType::bf16 ? f32_to_bf16(v) : f32_to_f16(v);
}

// A tensor on the host with its twin on the device. `padding` elements lie between rows of dim 0, `offset` elements before the first.
struct Tensor {
  std::vector<char> host;
  View view;  // on the host
  int64_t span = 0, offset = 0;

  Tensor(DType dtype, std::vector<int64_t> shape, int64_t padding = 0, int64_t offset = 0) : offset(offset) {
    view.dtype = dtype;
    view.ndim = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (int d = view.ndim - 1; d >= 0; d--) {
      view.shape[d] = shape[d];
      view.stride[d] = d == 0 ? stride + padding : stride;
      stride *= shape[d];
    }
    span = view.ndim == 0 ? 1 : view.shape[0] * view.stride[0];
    host.assign((span + offset) * dtype_bytes(dtype), static_cast<char>(0xfe));
    view.data = host.data() + offset * dtype_bytes(dtype);
  }
  Tensor& fill(const std::function<float(int64_t)>& f) {
    for (int64_t i = 0; i < span; i++) {
      if (view.dtype == DType::i32) reinterpret_cast<int32_t*>(view.data)[i] = static_cast<int32_t>(f(i));
      else store(view.data, view.dtype, i, f(i));
    }
    return *this;
  }
  Tensor& noise(float scale = 1) {
    return fill([&](int64_t) { return scale * normal(random_bits); });
  }
  Tensor& positive() {
    return fill([&](int64_t) { return 0.1f + std::fabs(normal(random_bits)); });
  }
  Tensor& integers(int64_t limit) {
    return fill([&](int64_t) { return static_cast<float>(random_bits() % limit); });
  }
};

struct Run {
  std::vector<std::vector<char>> data;  // bytes of all tensors afterwards
  int fault = 0;
};

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
  for (int i = 0; i < cuda::cuda_layers_count; i++)
    if (cuda::cuda_layers[i].op == op) return cuda::cuda_layers[i].kernel;
  for (int i = 0; i < cuda::cuda_optim_count; i++)
    if (cuda::cuda_optim[i].op == op) return cuda::cuda_optim[i].kernel;
  std::exit(2);
}

const char* reference(int op, const KernelArgs& k) {
  for (int i = 0; i < ref_layers_count; i++)
    if (ref_layers[i].op == op) return ref_layers[i].kernel(k);
  for (int i = 0; i < ref_optim_count; i++)
    if (ref_optim[i].op == op) return ref_optim[i].kernel(k);
  std::exit(2);
}

// Runs on the device: tensors are uploaded as they are, bytes come back.
Run on_device(int op, std::vector<Tensor*> in, std::vector<Tensor*> out, std::vector<double> attr) {
  static Pool pool(size_t{1} << 30);
  pool.used = 0;
  scratch_pool->used = 0;
  check(cudaMemset(scratch_pool->base, 0xff, 16 << 20), "poison");
  std::vector<View> views;
  std::vector<void*> at;
  std::vector<Tensor*> all = in;
  all.insert(all.end(), out.begin(), out.end());
  for (Tensor* t : all) {
    views.emplace_back();
    at.push_back(nullptr);
    if (!t) continue;
    views.back() = t->view;
    at.back() = pool.take(t->host.size() + 64);
    check(cudaMemcpy(at.back(), t->host.data(), t->host.size(), cudaMemcpyHostToDevice), "upload");
    views.back().data = static_cast<char*>(at.back()) + t->offset * dtype_bytes(t->view.dtype);
  }
  cuda::Context ctx = context(op);
  KernelArgs k{views.data(), static_cast<int>(in.size()), views.data() + in.size(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  const char* error = kernel_of(op)(ctx, k);
  if (error) std::printf("%s: %s\n", kOps[op].name, error);
  check(cudaStreamSynchronize(ctx.stream), kOps[op].name);
  Run r;
  for (size_t i = 0; i < all.size(); i++) {
    r.data.emplace_back(all[i] ? all[i]->host.size() : 0);
    if (all[i]) check(cudaMemcpy(r.data.back().data(), at[i], r.data.back().size(), cudaMemcpyDeviceToHost), "download");
  }
  check(cudaMemcpy(&r.fault, ctx.fault_word, 4, cudaMemcpyDeviceToHost), "fault");
  check(cudaMemset(ctx.fault_word, 0, 4), "fault");
  return r;
}

int failures = 0, cases = 0;
int64_t largest = INT64_MAX;  // elements of a case

// Largest |got - want| / (|want| + rms(want)) over all tensors; the reference works on the host's copies in place.
void compare(const std::string& name, int op, std::vector<Tensor*> in, std::vector<Tensor*> out, std::vector<double> attr, double f32_limit) {
  std::vector<View> views;
  std::vector<Tensor*> all = in;
  all.insert(all.end(), out.begin(), out.end());
  int64_t elements = 0;
  for (Tensor* t : all) elements += t ? t->span : 0;
  if (elements > largest) return;
  const Run first = on_device(op, in, out, attr), second = on_device(op, in, out, attr);
  for (Tensor* t : all) views.push_back(t ? t->view : View{});
  const KernelArgs k{views.data(), static_cast<int>(in.size()), views.data() + in.size(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  const char* error = reference(op, k);
  cases++;
  std::string text;
  if (error) text += std::string(" reference: ") + error;
  if (first.fault != 0) text += " fault " + std::to_string(first.fault);
  for (size_t i = 0; i < all.size(); i++) {
    if (!all[i]) continue;
    const Tensor& t = *all[i];
    if (first.data[i] != second.data[i]) text += " tensor " + std::to_string(i) + " differs between runs;";
    if (std::memcmp(first.data[i].data(), t.host.data(), t.host.size()) == 0) continue;
    if (t.view.dtype == DType::i32) {
      text += " integers changed;";
      continue;
    }
    double squares = 0, worst = 0;
    int64_t different = 0, where = -1;
    const char* got = first.data[i].data() + t.offset * dtype_bytes(t.view.dtype);
    for (int64_t j = 0; j < t.span; j++) {
      const double w = load(t.view.data, t.view.dtype, j);
      if (std::isfinite(w)) squares += w * w;
    }
    const double rms = std::sqrt(squares / std::max<int64_t>(1, t.span));
    for (int64_t j = 0; j < t.span; j++) {
      const double w = load(t.view.data, t.view.dtype, j), g = load(got, t.view.dtype, j);
      if (g == w || (std::isnan(g) && std::isnan(w))) continue;
      different++;
      const double e = std::isfinite(g) && std::isfinite(w) ? std::fabs(g - w) / (std::fabs(w) + rms) : INFINITY;
      if (e > worst) worst = e, where = j;
    }
    const double limit = t.view.dtype == DType::f32 ? f32_limit : f32_limit == 0 ? 0 : t.view.dtype == DType::bf16 ? std::ldexp(1, -7) : std::ldexp(1, -10);
    // 16-bit results are mostly the same bits; a different rounding is rare.
    const bool many = t.view.dtype != DType::f32 && different > 4 + t.span / 100;
    if (worst > limit || many)
      text += " tensor " + std::to_string(i) + ": error " + std::to_string(worst) + " at " + std::to_string(where) + ", " + std::to_string(different) + " of " +
              std::to_string(t.span) + " differ, got " + (where < 0 ? "" : std::to_string(load(got, t.view.dtype, where)) + " expected " + std::to_string(load(t.view.data, t.view.dtype, where))) + ";";
  }
  if (text.empty()) return;
  if (failures++ < 40) std::printf("FAIL %s %s:%s\n", kOps[op].name, name.c_str(), text.c_str());
}

void expect(bool ok, const char* what) {
  cases++;
  if (ok) return;
  failures++;
  std::printf("FAIL %s\n", what);
}

std::string text(const char* format, auto... x) {
  char s[200];
  std::snprintf(s, sizeof s, format, x...);
  return s;
}

const DType floats[] = {DType::f32, DType::bf16, DType::f16};
constexpr double kSum = 1.0 / (1 << 18), kFew = 1.0 / (1 << 20);

void check_norms() {
  struct Shape {
    int64_t rows, heads, cols, padding, offset;
  };
  const Shape shapes[] = {{1, 0, 1, 0, 0},      {5, 0, 7, 0, 0},       {3, 0, 64, 0, 0},     {9, 0, 129, 0, 0},   {70, 0, 513, 3, 0},  {0, 0, 64, 0, 0},
                          {300, 0, 3584, 0, 0}, {257, 0, 1536, 8, 0},  {33, 0, 8192, 0, 0},  {40, 0, 896, 0, 1},  {100, 4, 128, 256, 0}, {77, 3, 64, 64, 0},
                          {50, 28, 128, 0, 0},  {19, 2, 8, 16, 0},     {6, 0, 5001, 0, 0},   {7, 0, 16384, 0, 0}, {5, 0, 20000, 0, 0}, {5, 0, 40000, 8, 0},
                          {3000, 0, 24, 0, 0},  {600, 0, 1024, 64, 0}, {520, 0, 520, 0, 0},  {1, 0, 3584, 0, 0},  {513, 0, 32, 0, 0},  {64, 0, 12288, 0, 0},
                          {90, 0, 257, 0, 0},   {2, 3, 6, 5, 0},       {300, 0, 7168, 0, 0}};
  for (DType t : floats)
    for (const Shape& s : shapes) {
      const bool heads = s.heads > 0;
      const std::vector<int64_t> shape = heads ? std::vector<int64_t>{s.rows, s.heads, s.cols} : std::vector<int64_t>{s.rows, s.cols};
      const int64_t rows = s.rows * (heads ? s.heads : 1);
      const std::string name = text("%s %ldx%ldx%ld + %ld", dtype_name(t), s.rows, s.heads, s.cols, s.padding);
      Tensor x(t, shape, s.padding, s.offset), dense(t, shape), weight(t, {s.cols}), dy(t, shape), dsum(t, shape);
      x.noise(), dense.noise(), weight.noise(), dy.noise(), dsum.noise();
      {
        Tensor y(t, shape), rstd(DType::f32, {rows});
        compare(name, op_rms_norm, {&x, &weight}, {&y, &rstd}, {1e-5}, kFew);
      }
      {
        Tensor y(t, shape), sum(t, shape), rstd(DType::f32, {rows}), residual(t, shape, 0, s.offset);
        residual.noise();
        compare(name, op_add_rms_norm, {&dense, &residual, &weight}, {&y, &sum, &rstd}, {1e-6}, kFew);
      }
      for (int need : {0, 1})
        for (int with_sum : {0, 1}) {
          Tensor dx(t, shape), dweight(DType::f32, {need ? s.cols : 1}), rstd(DType::f32, {rows});
          rstd.positive();
          compare(name + (need ? " dweight" : "") + (with_sum ? " dsum" : ""), op_rms_norm_bwd, {&dy, &x, &weight, &rstd, with_sum ? &dsum : nullptr},
                  {&dx, &dweight}, {double(need)}, kSum);
        }
    }
}

void check_embedding() {
  for (DType t : floats)
    for (int64_t cols : {9, 64, 3584}) {
      Tensor ids(DType::i32, {50}), weight(t, {70, cols}), y(t, {50, cols});
      ids.integers(70), weight.noise();
      compare(text("%s %ld", dtype_name(t), cols), op_embedding, {&ids, &weight}, {&y}, {}, 0);
    }
  Tensor ids(DType::i32, {3}), weight(DType::bf16, {4, 8}), y(DType::bf16, {3, 8});
  ids.fill([](int64_t i) { return i == 1 ? 4 : i == 2 ? -1 : 3; }), weight.noise();
  const Run r = on_device(op_embedding, {&ids, &weight}, {&y}, {});
  expect(r.fault == (op_embedding << 8 | int(cuda::Fault::token_id)), "embedding: a bad id is a fault");
  expect(std::memcmp(r.data[2].data(), weight.host.data() + 48, 16) == 0 && std::string(r.data[2].data() + 16, 32) == std::string(32, '\0'),
         "embedding: a bad id gives zeros");
  struct Shape {
    int64_t tokens, vocabulary, cols;
    double skew;  // ids = vocabulary * uniform^skew
  };
  const Shape shapes[] = {{6, 4, 5, 1},      {1, 9, 8, 1},      {0, 9, 8, 1},      {3000, 500, 40, 1}, {5000, 152064, 24, 9}, {4000, 3, 264, 1},
                          {1025, 1, 16, 1},  {70, 10, 7, 1},    {33, 1, 24, 1},    {32, 1, 24, 1},     {64, 1, 24, 1},        {2050, 40, 9, 2},
                          {700, 1500, 3584, 6}, {300000, 1000, 8, 3}, {263000, 4, 1, 1}};
  for (DType a : floats)
    for (DType b : floats)
      for (const Shape& s : shapes) {
        if (s.tokens > 100000 && (a != DType::bf16 || b == DType::f16)) continue;
        Tensor dy(a, {s.tokens, s.cols}), ids(DType::i32, {s.tokens}), dweight(b, {s.vocabulary, s.cols});
        dy.noise(), dweight.noise();
        ids.fill([&](int64_t) { return float(int64_t(s.vocabulary * std::pow((random_bits() % 65536) / 65536.0, s.skew))); });
        compare(text("%s into %s, %ld ids of %ld, %ld wide", dtype_name(a), dtype_name(b), s.tokens, s.vocabulary, s.cols), op_embedding_bwd,
                {&dy, &ids, &dweight}, {}, {}, 0);
      }
  // Bad ids: the others are added all the same.
  Tensor dy(DType::bf16, {500, 16}), bad(DType::i32, {500}), good(DType::i32, {500}), dweight(DType::f32, {30, 16});
  dy.noise(), good.integers(30), dweight.noise();
  Tensor dense = dweight, less = dy;
  dense.view.data = dense.host.data(), less.view.data = less.host.data();
  for (int64_t i = 0; i < 500; i++) {
    int32_t id = reinterpret_cast<int32_t*>(good.view.data)[i];
    if (i % 7 == 3) {
      for (int c = 0; c < 16; c++) store(less.view.data, DType::bf16, i * 16 + c, 0);
      id = i % 2 ? -1 - int32_t(i) : 30 + int32_t(i);
    }
    reinterpret_cast<int32_t*>(bad.view.data)[i] = id;
  }
  const Run with_bad = on_device(op_embedding_bwd, {&dy, &bad, &dweight}, {}, {}), clean = on_device(op_embedding_bwd, {&less, &good, &dense}, {}, {});
  expect(with_bad.fault == (op_embedding_bwd << 8 | int(cuda::Fault::token_id)) && clean.fault == 0, "embedding_bwd: bad ids are a fault");
  expect(with_bad.data[2] == clean.data[2], "embedding_bwd: bad ids are left out");
}

void check_rope() {
  struct Shape {
    int64_t tokens, heads, width, padding, half, offset;
  };
  const Shape shapes[] = {{5, 3, 8, 0, 4, 0},       {3, 2, 8, 10, 4, 0},  {0, 3, 2, 0, 1, 0},     {17, 4, 64, 0, 32, 0},     {200, 28, 128, 1024, 64, 0},
                          {64, 4, 128, 3584, 64, 0}, {9, 2, 20, 0, 10, 0}, {11, 3, 64, 64, 16, 0}, {11, 3, 24, 5, 6, 0},     {1, 28, 128, 0, 64, 0},
                          {31, 5, 64, 0, 32, 1}};
  for (DType t : floats)
    for (const Shape& s : shapes)
      for (int inverse : {0, 1}) {
        Tensor x(t, {s.tokens, s.heads, s.width}, s.padding, s.offset), c(DType::f32, {40, s.half}), sine(DType::f32, {40, s.half}),
            positions(DType::i32, {s.tokens}), y(t, {s.tokens, s.heads, s.width});
        x.noise(), c.noise(0.5f), sine.noise(0.5f), positions.integers(40);
        compare(text("%s %ldx%ldx%ld + %ld, %ld", dtype_name(t), s.tokens, s.heads, s.width, s.padding, s.half), op_rope, {&x, &c, &sine, &positions}, {&y},
                {double(inverse)}, kFew);
      }
  Tensor x(DType::bf16, {2, 1, 16}), c(DType::f32, {3, 8}), s(DType::f32, {3, 8}), positions(DType::i32, {2}), y(DType::bf16, {2, 1, 16});
  x.noise(), c.noise(), s.noise(), positions.fill([](int64_t i) { return i == 0 ? 3.0f : 1.0f; });
  const Run r = on_device(op_rope, {&x, &c, &s, &positions}, {&y}, {0});
  expect(r.fault == (op_rope << 8 | int(cuda::Fault::position)), "rope: a bad position is a fault");
  expect(std::string(r.data[4].data(), 32) == std::string(32, '\0'), "rope: a bad position gives zeros");
}

void check_swiglu() {
  struct Shape {
    int64_t rows, cols, padding, offset;
  };
  const Shape shapes[] = {{3, 1, 0, 0}, {5, 17, 0, 0}, {2, 128, 0, 0}, {0, 2, 0, 0}, {3, 7, 5, 0}, {40, 513, 0, 0}, {65, 18944, 0, 0}, {33, 4096, 64, 0}, {9, 64, 0, 1}, {20, 8960, 8, 0}};
  for (DType t : floats)
    for (const Shape& s : shapes) {
      const std::string name = text("%s %ldx%ld + %ld", dtype_name(t), s.rows, s.cols, s.padding);
      Tensor x(t, {s.rows, 2 * s.cols}, s.padding, s.offset), y(t, {s.rows, s.cols}), dy(t, {s.rows, s.cols}), dx(t, {s.rows, 2 * s.cols});
      x.noise(4), dy.noise();
      compare(name, op_swiglu, {&x}, {&y}, {}, kFew);
      compare(name, op_swiglu_bwd, {&dy, &x}, {&dx}, {}, kFew);
    }
}

void check_optim() {
  for (int count : {0, 1, 4, 255, 256, 257, 700}) {
    std::vector<Tensor> list;
    for (int i = 0; i < count; i++) {
      const int64_t n = i % 5 == 3 ? 0 : i % 50 == 1 ? 65536 * (1 + i % 3) + i % 4 : 1 + random_bits() % 3000;
      list.emplace_back(DType::f32, std::vector<int64_t>{n}, 0, i % 3 == 0 ? 1 : 0);
      list.back().noise(0.01f * float(1 + i % 7));
    }
    std::vector<Tensor*> in;
    for (Tensor& t : list) t.view.data = t.host.data() + 4 * t.offset, in.push_back(&t);
    Tensor norm(DType::f32, {1});
    compare(text("%d tensors", count), op_global_norm, in, {&norm}, {}, kSum);
  }
  for (float norm : {3.0f, 0.5f, 0.0f, INFINITY, NAN})
    for (double max_norm : {1.0, 0.0})
      for (double scale : {1.0, 0.25}) {
        Tensor n(DType::f32, {1}), limits(DType::f32, {2}), c(DType::f32, {1});
        n.fill([&](int64_t) { return norm; });
        limits.fill([&](int64_t i) { return i == 0 ? max_norm : scale; });
        compare(text("%g %g %g", norm, max_norm, scale), op_clip_coefficient, {&n, &limits}, {&c}, {}, kFew);
      }
  const float hyper_adam[][7] = {{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 1 - 0.729f, 1 - 0.857375f}, {1e-4f, 0.9f, 0.999f, 1e-8f, 1e-3f, 0.1f, 0.001f}};
  const float hyper_sgd[] = {0.1f, 0.9f, 0.01f};
  for (DType t : floats)
    for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{33}, int64_t{33001}, int64_t{300002}})
      for (int64_t offset : {0, 1})
        for (int with_master = t == DType::f32 ? 0 : 1; with_master < 2; with_master++)
          for (float coefficient : {0.5f, NAN}) {
            if (n > 1000 && coefficient != 0.5f) continue;
            const std::string name = text("%s %ld from %ld, master %d, coefficient %g", dtype_name(t), n, offset, with_master, coefficient);
            Tensor c(DType::f32, {1});
            c.fill([&](int64_t) { return coefficient; });
            for (int variant = 0; variant < 4; variant++) {
              Tensor p(t, {n}, 0, offset), g(DType::f32, {n}), m(DType::f32, {n}), v(DType::f32, {n}), master(DType::f32, {n}, 0, offset);
              p.noise(), g.noise(), m.noise(), v.positive(), master.noise();
              Tensor* w = with_master ? &master : nullptr;
              Tensor hyper(DType::f32, {variant < 2 ? 7 : 3});
              hyper.fill([&](int64_t i) { return variant < 2 ? hyper_adam[variant][i] : hyper_sgd[i]; });
              if (variant < 2) compare(name, op_adamw, {&hyper, &c, &p, &g, &m, &v, w}, {}, {}, kFew / 2);
              else compare(name, op_sgd, {&hyper, &c, &p, &g, variant == 2 ? &m : nullptr, w}, {}, {}, kFew / 2);
            }
          }
}

// ---- speed -----------------------------------------------------------------------------------------------------------------------

__global__ void copy_packs(const uint4* from, uint4* to, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i];
}

double copy_rate;  // bytes per second, read and written

// Median microseconds of f() over repeated runs in a graph of `inner` calls, so that launch gaps are those of a training step.
double time_of(const std::function<void()>& f, int inner = 10) {
  const cudaStream_t stream = context(0).stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  f();
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < inner; i++) f();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  std::vector<float> times;
  for (int i = 0; i < 7; i++) {
    cudaEventRecord(a, stream);
    cudaGraphLaunch(exec, stream);
    cudaEventRecord(b, stream);
    check(cudaEventSynchronize(b), "bench");
    float ms;
    cudaEventElapsedTime(&ms, a, b);
    times.push_back(ms * 1000 / inner);
  }
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaEventDestroy(a), cudaEventDestroy(b);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void report(const char* name, double us, double bytes) {
  std::printf("%-54s %9.1f us  %5.2f TB/s  %5.1f %% of copy\n", name, us, bytes / us * 1e-6, 100 * bytes / us * 1e6 / copy_rate);
}

Pool* bench_pool;
std::string wanted;  // part of the names of the benches to run

View device(DType t, std::vector<int64_t> shape, int64_t stride = 0) {
  View v;
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  int64_t n = 1;
  for (int d = v.ndim - 1; d >= 0; d--) v.shape[d] = shape[d], v.stride[d] = n, n *= shape[d];
  if (stride) v.stride[0] = stride, n = shape[0] * stride;
  v.data = static_cast<char*>(bench_pool->take(n * dtype_bytes(t)));
  check(cudaMemset(v.data, 0, n * dtype_bytes(t)), "zero");
  return v;
}

void bench_op(const char* name, int op, std::vector<View> in, std::vector<View> out, std::vector<double> attr, double bytes) {
  cuda::Context ctx = context(op);
  const KernelArgs k{in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
  const auto run = [&] {
    scratch_pool->used = 0;
    if (const char* e = kernel_of(op)(ctx, k)) std::printf("%s\n", e);
  };
  if (std::strstr(name, wanted.c_str())) report(name, time_of(run), bytes);
  bench_pool->used = 0;
}

void upload(const View& v, const std::vector<int32_t>& x) { check(cudaMemcpy(v.data, x.data(), 4 * x.size(), cudaMemcpyHostToDevice), "upload"); }

void bench() {
  Pool pool(size_t{14} << 30);
  bench_pool = &pool;
  const cudaStream_t stream = context(0).stream;
  for (int64_t mib : {64, 512, 2048}) {
    const int64_t n = mib << 16;
    const uint4* from = static_cast<uint4*>(pool.take(n * 16));
    uint4* to = static_cast<uint4*>(pool.take(n * 16));
    const double us = time_of([&] { copy_packs<<<static_cast<unsigned>(n / 256), 256, 0, stream>>>(from, to, n); }, 4);
    copy_rate = 32.0 * n / us * 1e6;
    std::printf("copy of %ld MiB: %.1f us, %.2f TB/s\n", mib, us, copy_rate * 1e-12);
    pool.used = 0;
  }
  const DType b = DType::bf16, f = DType::f32, i = DType::i32;
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{8192, 3584}, {16384, 1536}, {8192, 8192}, {16, 3584}}) {
    const double n = double(rows) * cols * 2;
    bench_op(text("rms_norm [%ld, %ld]", rows, cols).c_str(), op_rms_norm, {device(b, {rows, cols}), device(b, {cols})}, {device(b, {rows, cols}), device(f, {rows})}, {1e-6}, 2 * n);
    bench_op(text("add_rms_norm [%ld, %ld]", rows, cols).c_str(), op_add_rms_norm, {device(b, {rows, cols}), device(b, {rows, cols}), device(b, {cols})},
             {device(b, {rows, cols}), device(b, {rows, cols}), device(f, {rows})}, {1e-6}, 4 * n);
    for (int need : {0, 1})
      for (int with : {0, 1})
        bench_op(text("rms_norm_bwd [%ld, %ld]%s%s", rows, cols, need ? " dweight" : "", with ? " dsum" : "").c_str(), op_rms_norm_bwd,
                 {device(b, {rows, cols}), device(b, {rows, cols}), device(b, {cols}), device(f, {rows}), with ? device(b, {rows, cols}) : View{}},
                 {device(b, {rows, cols}), device(f, {need ? cols : 1})}, {double(need)}, (3 + with) * n);
  }
  bench_op("rms_norm heads [8192, 28, 128] of qkv", op_rms_norm, {device(b, {8192, 28, 128}, 4608), device(b, {128})}, {device(b, {8192, 28, 128}), device(f, {8192 * 28})}, {1e-6}, 4.0 * 8192 * 3584);
  for (int need : {0, 1})
    bench_op(text("rms_norm_bwd heads [8192, 28, 128]%s", need ? " dweight" : "").c_str(), op_rms_norm_bwd,
             {device(b, {8192, 28, 128}), device(b, {8192, 28, 128}, 4608), device(b, {128}), device(f, {8192 * 28}), View{}},
             {device(b, {8192, 28, 128}), device(f, {need ? 128 : 1})}, {double(need)}, 6.0 * 8192 * 3584);
  for (int64_t heads : {28, 4}) {
    std::vector<int32_t> order(8192);
    for (int j = 0; j < 8192; j++) order[j] = j % 2048;
    View positions = device(i, {8192});
    upload(positions, order);
    bench_op(text("rope [8192, %ld, 128] of qkv", heads).c_str(), op_rope, {device(b, {8192, heads, 128}, 4608), device(f, {2048, 64}), device(f, {2048, 64}), positions},
             {device(b, {8192, heads, 128})}, {0}, 4.0 * 8192 * heads * 128);
  }
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{8192, 18944}, {16384, 8960}}) {
    const double n = double(rows) * cols * 2;
    bench_op(text("swiglu [%ld, 2 x %ld]", rows, cols).c_str(), op_swiglu, {device(b, {rows, 2 * cols})}, {device(b, {rows, cols})}, {}, 3 * n);
    bench_op(text("swiglu_bwd [%ld, 2 x %ld]", rows, cols).c_str(), op_swiglu_bwd, {device(b, {rows, cols}), device(b, {rows, 2 * cols})}, {device(b, {rows, 2 * cols})}, {}, 5 * n);
  }
  // Token ids as in text: the frequency of a token falls with its rank; and one id for all.
  for (int64_t tokens : {8192, 16384}) {
    std::vector<int32_t> ids(tokens), same(tokens, 11);
    for (int32_t& id : ids) id = static_cast<int32_t>(std::pow(152064.0, (random_bits() % 1000000) / 1e6)) * 7919LL % 152064;
    std::vector<int32_t> sorted = ids;
    std::sort(sorted.begin(), sorted.end());
    const double distinct = double(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
    View at = device(i, {tokens});
    upload(at, ids);
    bench_op(text("embedding %ld", tokens).c_str(), op_embedding, {at, device(b, {152064, 3584})}, {device(b, {tokens, 3584})}, {}, 2.0 * tokens * 7168);
    for (DType w : {b, f})
      for (int one : {0, 1}) {
        at = device(i, {tokens});
        upload(at, one ? same : ids);
        bench_op(text("embedding_bwd %ld into %s, %g distinct", tokens, dtype_name(w), one ? 1 : distinct).c_str(), op_embedding_bwd,
                 {device(b, {tokens, 3584}), at, device(w, {152064, 3584})}, {}, {}, tokens * 7168.0 + (one ? 1 : distinct) * 2 * 3584 * dtype_bytes(w));
      }
  }
  for (int64_t n : {int64_t{64} * 3584, int64_t{18944} * 3584, int64_t{152064} * 1536}) {
    const auto adam = [&](DType t, bool master, double bytes) {
      bench_op(text("adamw %ld %s%s", n, dtype_name(t), master ? " and master" : "").c_str(), op_adamw,
               {device(f, {7}), device(f, {1}), device(t, {n}), device(f, {n}), device(f, {n}), device(f, {n}), master ? device(f, {n}) : View{}}, {}, {}, bytes * n);
    };
    adam(f, false, 28), adam(b, true, 30);
    bench_op(text("global_norm %ld", n).c_str(), op_global_norm, {device(f, {n})}, {device(f, {1})}, {}, 4.0 * n);
  }
  std::vector<View> lora;
  for (int j = 0; j < 392; j++) lora.push_back(device(f, {64, 3584}));
  bench_op("global_norm of 392 x [64, 3584]", op_global_norm, lora, {device(f, {1})}, {}, 392 * 64 * 3584 * 4.0);
  bench_op("clip_coefficient", op_clip_coefficient, {device(f, {1}), device(f, {2})}, {device(f, {1})}, {}, 16);
}

}  // namespace

void* llm::cuda::Context::scratch(size_t bytes) { return scratch_pool->take(bytes); }

int main(int argc, char** argv) {
  Pool pool(size_t{512} << 20);
  scratch_pool = &pool;
  const std::string what = argc > 1 ? argv[1] : "";
  if (argc > 2 && what == "check") largest = std::atoll(argv[2]);
  if (argc > 2 && what == "bench") wanted = argv[2];
  if (what != "bench") {
    check_norms(), check_embedding(), check_rope(), check_swiglu(), check_optim();
    std::printf("%d cases, %d failures\n", cases, failures);
  }
  if (what != "check") bench();
  return failures != 0;
}
