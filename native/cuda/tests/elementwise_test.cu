// Standalone check of the tables cuda_elementwise, cuda_reduce and cuda_random against the CPU's scalar reference kernels, on odd, strided,
// misaligned and empty shapes, with poisoned memory around and behind everything; then timings. Build it with
//     nvcc -std=c++20 -O3 --expt-relaxed-constexpr --extended-lambda -arch=sm_90a -Inative -o test native/cuda/tests/elementwise_test.cu
//         native/cuda/{elementwise,movement,transpose,reduce,softmax,argmax,topk,random}.cu native/cpu/ref/{elementwise,random}.cpp native/core/threadpool.cpp
// Arguments: "check", "time" or "all".
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/half.h"
#include "cpu/kernels.h"
#include "cuda/tables.h"

using namespace llm;
using namespace llm::cuda;

#define CHECK(x)                                                                  \
  if (const cudaError_t e = (x)) {                                                \
    std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e)); \
    std::exit(1);                                                                 \
  }

namespace {

constexpr size_t kScratch = size_t{256} << 20;
char* scratch_base = nullptr;
size_t scratch_used = 0;
Context context{};
int failures = 0, runs = 0;

constexpr DType f32 = DType::f32, f16 = DType::f16, bf16_ = DType::bf16, i32 = DType::i32;
const DType floats[] = {f32, bf16_, f16};

enum class Values { normal, wide, special, ties, hopeless, integers, rows, rising };

struct Spec {
  DType dtype;
  std::vector<int64_t> shape;
  Values values = Values::normal;
  int64_t padding = 0;  // elements between rows of the first dim
  int64_t shift = 0;    // elements before the first: 0 = aligned
  std::vector<int64_t> strides = {};  // instead of rows with padding
};

uint64_t random_state = 1;
double uniform() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(random_state >> 11) * 0x1p-53;
}
double normal() {  // one of a table of normals: quick to make
  static const std::vector<float> table = [] {
    std::vector<float> t(65537);
    for (float& v : t) v = static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()));
    return t;
  }();
  return table[static_cast<size_t>(uniform() * 65537)];
}

void set(char* p, DType t, int64_t i, double v) {
  switch (t) {
    case DType::f32: reinterpret_cast<float*>(p)[i] = static_cast<float>(v); break;
    case DType::f16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_f16(static_cast<float>(v)); break;
    case DType::bf16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_bf16(static_cast<float>(v)); break;
    case DType::i32: reinterpret_cast<int32_t*>(p)[i] = static_cast<int32_t>(v); break;
    case DType::i64: reinterpret_cast<int64_t*>(p)[i] = static_cast<int64_t>(v); break;
    default: p[i] = static_cast<char>(static_cast<int>(v));
  }
}
double get(const char* p, DType t, int64_t i) {
  switch (t) {
    case DType::f32: return reinterpret_cast<const float*>(p)[i];
    case DType::f16: return f16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::bf16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::i32: return reinterpret_cast<const int32_t*>(p)[i];
    case DType::i64: return static_cast<double>(reinterpret_cast<const int64_t*>(p)[i]);
    case DType::i8: return reinterpret_cast<const int8_t*>(p)[i];
    case DType::u8: return reinterpret_cast<const uint8_t*>(p)[i];
  }
  return 0;
}

// Memory of one operand on both sides, with 64 elements of poison before (plus the shift) and behind.
struct Operand {
  Spec spec;
  View host, device;
  std::vector<char> memory;
  char* card = nullptr;
  int64_t elements = 0, first = 0;

  explicit Operand(const Spec& s, bool result) : spec(s) {
    View v;
    v.dtype = s.dtype;
    v.ndim = static_cast<int>(s.shape.size());
    int64_t stride = 1, span = 1;
    for (int d = v.ndim - 1; d >= 0; d--) {
      v.shape[d] = s.shape[static_cast<size_t>(d)];
      v.stride[d] = d == 0 ? stride + s.padding : stride;
      if (!s.strides.empty()) v.stride[d] = s.strides[static_cast<size_t>(d)];
      stride *= v.shape[d];
      span += std::max<int64_t>(0, v.shape[d] - 1) * v.stride[d];
    }
    const int64_t size = static_cast<int64_t>(dtype_bytes(s.dtype));
    first = 64 + s.shift;
    elements = first + span + 64;
    memory.assign(static_cast<size_t>(elements * size), 0x5a);
    for (int64_t i = first; !result && i < first + span; i++) set(memory.data(), s.dtype, i, value(i));
    CHECK(cudaMalloc(&card, memory.size()));
    CHECK(cudaMemcpy(card, memory.data(), memory.size(), cudaMemcpyHostToDevice));
    host = device = v;
    host.data = memory.data() + first * size;
    device.data = card + first * size;
  }
  Operand(const Operand&) = delete;
  ~Operand() { cudaFree(card); }

  double value(int64_t i) const {
    static const double special[] = {0, -0.0, 1, -1, 0.1, 65504, 65519, 65520, -70000, 3.3895314e38, 3.4e38, 1e-45, 6e-8, 2.98e-8, 6.1e-5, 1.00390625,
                                     1.01171875, 1.00048828125, 1.00146484375, INFINITY, -INFINITY, NAN};
    switch (spec.values) {
      case Values::normal: return normal();
      case Values::wide: return 20 * normal();
      case Values::special: return special[static_cast<size_t>(i) % std::size(special)];
      case Values::ties: return std::floor(4 * uniform()) - 2;
      case Values::hopeless: return uniform() < 0.5 ? -INFINITY : NAN;
      case Values::integers: return std::floor(100 * uniform());
      case Values::rising: return static_cast<double>(i);
      case Values::rows: return std::floor(5 * uniform());
    }
    return 0;
  }
};

template <class Entry>
auto kernel_of(const Entry* table, int count, int op) -> decltype(table->kernel) {
  for (int i = 0; i < count; i++)
    if (table[i].op == op) return table[i].kernel;
  return nullptr;
}
CudaKernel cuda_kernel(int op) {
  CudaKernel k = kernel_of(cuda_elementwise, cuda_elementwise_count, op);
  if (!k) k = kernel_of(cuda_reduce, cuda_reduce_count, op);
  return k ? k : kernel_of(cuda_random, cuda_random_count, op);
}
Kernel reference(int op) {
  const Kernel k = kernel_of(ref_elementwise, ref_elementwise_count, op);
  return k ? k : kernel_of(ref_random, ref_random_count, op);
}

// Largest |got - want| / (|want| + rms); poison and integers must match in every bit.
double difference(const Operand& o, const std::vector<char>& got, double limit, int64_t& where) {
  double squares = 0, worst = 0;
  int64_t finite = 0;
  const char* want = o.memory.data();
  for (int64_t i = 0; i < o.elements; i++) {
    const double w = get(want, o.spec.dtype, i);
    if (i >= o.first && i < o.elements - 64 && std::isfinite(w)) squares += w * w, finite++;
  }
  const double rms = std::sqrt(squares / static_cast<double>(std::max<int64_t>(finite, 1)));
  const int64_t size = static_cast<int64_t>(dtype_bytes(o.spec.dtype));
  for (int64_t i = 0; i < o.elements; i++) {
    if (std::memcmp(want + i * size, got.data() + i * size, static_cast<size_t>(size)) == 0) continue;
    const double w = get(want, o.spec.dtype, i), g = get(got.data(), o.spec.dtype, i);
    if (i >= o.first && i < o.elements - 64 && (w == g || (std::isnan(w) && std::isnan(g)))) continue;
    double e = std::fabs(g - w) / (std::fabs(w) + rms);
    if (!std::isfinite(e) || i < o.first || i >= o.elements - 64 || !is_float(o.spec.dtype) || limit == 0) e = INFINITY;
    if (e > worst) worst = e, where = i - o.first;
  }
  return worst;
}

struct Limits {
  double f32, bf16, f16;
};
const Limits exact{0, 0, 0}, arithmetic{0x1p-22, 0x1p-8, 0x1p-11}, transcendental{0x1p-20, 0x1p-8, 0x1p-11}, summation{0x1p-18, 0x1p-8, 0x1p-11};
// Among many results some lie at the middle of two neighbours, and small ones in f16 are below its normal range.
const Limits probabilities{0x1p-20, 0x1p-7, 0x1p-9};

void check(const char* note, int op, const std::vector<Spec>& in, const std::vector<Spec>& out, const std::vector<double>& attr, const Limits& limits,
           bool fault = false) {
  std::vector<std::unique_ptr<Operand>> all;
  random_state = static_cast<uint64_t>(op) * 977 + 1;
  for (const Spec& s : in) all.push_back(std::make_unique<Operand>(s, false));
  for (const Spec& s : out) all.push_back(std::make_unique<Operand>(s, true));
  std::vector<View> host, device;
  for (const auto& o : all) host.push_back(o->host), device.push_back(o->device);
  const int n_in = static_cast<int>(in.size()), n_out = static_cast<int>(out.size());
  std::vector<char> first_time;
  std::string text;
  for (int time = 0; time < 2; time++) {
    for (const auto& o : all) CHECK(cudaMemcpy(o->card, o->memory.data(), o->memory.size(), cudaMemcpyHostToDevice));
    CHECK(cudaMemset(scratch_base, 0xff, 1 << 20));
    CHECK(cudaDeviceSynchronize());  // copies and kernels are on streams that do not wait for each other
    scratch_used = 0;
    const KernelArgs k{device.data(), n_in, device.data() + n_in, n_out, attr.data(), static_cast<int>(attr.size())};
    const char* e = cuda_kernel(op)(context, k);
    if (e) text = e;
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
      std::printf("FAIL %s %s: %s\n", kOps[op].name, note, cudaGetErrorString(error));
      std::exit(1);
    }
    std::vector<char> bits;
    for (const auto& o : all) {
      std::vector<char> got(o->memory.size());
      CHECK(cudaMemcpy(got.data(), o->card, got.size(), cudaMemcpyDeviceToHost));
      bits.insert(bits.end(), got.begin(), got.end());
    }
    if (time == 0) first_time = bits;
    else if (bits != first_time) text += " other bits in the second run";
  }
  int code = 0;
  CHECK(cudaMemcpy(&code, context.fault_word, 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemset(context.fault_word, 0, 4));
  if ((code != 0) != fault) text += fault ? " no fault raised" : " a fault was raised";
  if (!fault) {
    const KernelArgs k{host.data(), n_in, host.data() + n_in, n_out, attr.data(), static_cast<int>(attr.size())};
    const char* e = reference(op)(k);
    if (e) text += std::string(" reference: ") + e;
    size_t at = 0;
    for (size_t i = 0; i < all.size(); i++) {
      Operand& o = *all[i];
      const std::vector<char> got(first_time.begin() + static_cast<std::ptrdiff_t>(at), first_time.begin() + static_cast<std::ptrdiff_t>(at + o.memory.size()));
      at += o.memory.size();
      const double limit = o.spec.dtype == f32 ? limits.f32 : o.spec.dtype == f16 ? limits.f16 : limits.bf16;
      int64_t where = -1;
      const double error = difference(o, got, limit, where);
      if (error > limit) {
        const int64_t j = where + o.first;
        text += " operand " + std::to_string(i) + "[" + std::to_string(where) + "] = " + std::to_string(get(got.data(), o.spec.dtype, j)) + ", expected " +
                std::to_string(get(o.memory.data(), o.spec.dtype, j)) + " (error " + std::to_string(error) + ")";
      }
    }
  }
  runs++;
  if (text.empty()) return;
  failures++;
  if (failures > 40) return;
  std::string shapes;
  for (const auto& o : all) {
    shapes += std::string(" ") + dtype_name(o->spec.dtype) + "[";
    for (int64_t s : o->spec.shape) shapes += std::to_string(s) + ",";
    shapes += "]p" + std::to_string(o->spec.padding) + "s" + std::to_string(o->spec.shift);
  }
  std::printf("FAIL %s %s%s:%s\n", kOps[op].name, note, shapes.c_str(), text.c_str());
}

void check_elementwise() {
  for (DType t : floats) {
    for (int op : {op_add, op_sub, op_mul}) {
      for (int64_t shift : {0, 1}) {
        for (int64_t n : {1, 7, 64, 1003, 100000}) check("same", op, {{t, {n}, Values::normal, 0, shift}, {t, {n}}}, {{t, {n}}}, {}, arithmetic);
        for (int64_t c : {1, 7, 8, 24, 517, 3584}) {
          check("row", op, {{t, {3, 5, c}, Values::normal, 0, shift}, {t, {c}}}, {{t, {3, 5, c}}}, {}, arithmetic);
          check("row", op, {{t, {33, c}}, {t, {c}, Values::normal, 0, shift}}, {{t, {33, c}}}, {}, arithmetic);
          check("one", op, {{t, {9, c}}, {t, {1}, Values::normal, 0, shift}}, {{t, {9, c}}}, {}, arithmetic);
        }
      }
      check("empty", op, {{t, {0, 4}}, {t, {4}}}, {{t, {0, 4}}}, {}, arithmetic);
    }
    for (int64_t n : {0, 1, 5, 8, 1031, 65537}) {
      for (int64_t shift : {0, 1}) {
        check("", op_scale, {{t, {n}, Values::normal, 0, shift}}, {{t, {n}}}, {-0.3}, arithmetic);
        check("", op_mul_scalar_tensor, {{t, {n}, Values::normal, 0, shift}, {f32, {1}}}, {{t, {n}}}, {}, arithmetic);
        check("", op_silu, {{t, {n}, Values::wide, 0, shift}}, {{t, {n}}}, {}, transcendental);
        check("", op_silu_bwd, {{t, {n}}, {t, {n}, Values::wide, 0, shift}}, {{t, {n}}}, {}, transcendental);
        for (DType u : floats) {
          check("", op_cast, {{t, {n}, Values::special, 0, shift}}, {{u, {n}}}, {static_cast<double>(u)}, exact);
          check("", op_axpy, {{t, {n}, Values::normal, 0, shift}, {u, {n}}}, {}, {0.7}, arithmetic);
          check("", op_copy, {{t, {n}, Values::normal, 0, shift}, {u, {n}, Values::special}}, {}, {}, exact);
        }
      }
    }
    for (DType u : floats)
      for (int64_t c : {5, 8, 64})
        for (int64_t pad : {0, 3, 8}) {
          check("strided", op_axpy, {{t, {9, 2, c}, Values::normal, pad}, {u, {9, 2, c}, Values::normal, 16}}, {}, {-2}, arithmetic);
          check("strided", op_copy, {{t, {9, 2, c}, Values::normal, pad}, {u, {9, 2, c}, Values::normal, 8}}, {}, {}, exact);
        }
    for (double invert : {0.0, 1.0})
      for (int64_t c : {1, 5, 40, 3584})
        check("", op_mul_cols, {{t, {2, 7, c}}, {f32, {c}, Values::wide}}, {{t, {2, 7, c}}}, {invert}, arithmetic);
  }
}

void check_movement() {
  for (DType t : {f32, bf16_, DType::i8, DType::u8, i32, DType::i64}) {
    const Values v = is_float(t) ? Values::special : Values::integers;
    for (int64_t n : {0, 1, 3, 17, 4099, 100003})
      for (int64_t shift : {0, 1, 3}) check("", op_fill, {{t, {n}, v, 0, shift}}, {}, {7}, exact);
    for (int64_t c : {1, 4, 16, 33, 257})
      for (int64_t pad : {0, 1, 16}) {
        check("strided", op_copy, {{t, {13, c}, v, pad}, {t, {13, c}, v, 32}}, {}, {}, exact);
        check("rows", op_contiguous, {{t, {13, 2, c}, v, pad}}, {{t, {13, 2, c}}}, {}, exact);
        check("turned", op_contiguous, {{t, {c, 13, 3}, v, 0, 0, {1, 3 * c + pad, c}}}, {{t, {c, 13, 3}}}, {}, exact);
        check("heads", op_contiguous, {{t, {5, 3, 7, c}, v, 0, 0, {c, 5 * c, 15 * c + pad, 1}}}, {{t, {5, 3, 7, c}}}, {}, exact);
        check("no dense dim", op_contiguous, {{t, {5, 7, c}, v, 0, pad, {2 * c * 7, 2 * c, 2}}}, {{t, {5, 7, c}}}, {}, exact);
        check("repeated", op_contiguous, {{t, {3, 5, c}, v, 0, pad, {0, c, 1}}}, {{t, {3, 5, c}}}, {}, exact);
        check("", op_transpose, {{t, {37, c}, v, pad}}, {{t, {c, 37}}}, {}, exact);
        check("", op_transpose, {{t, {132, 4 * c}, v, pad}}, {{t, {4 * c, 132}}}, {}, exact);
        check("", op_concat_cols, {{t, {5, c}, v, pad}, {t, {5, 16}, v, 0, pad}, {t, {5, 0}}, {t, {5, 2 * c}, v}}, {{t, {5, 3 * c + 16}}}, {}, exact);
        check("", op_concat_rows, {{t, {5, c}, v, 0, pad}, {t, {0, c}}, {t, {1000, c}, v}}, {{t, {1005, c}}}, {}, exact);
        check("", op_gather_rows, {{t, {5, 2, c}, v, 0, pad}, {i32, {77}, Values::rows}}, {{t, {77, 2, c}}}, {}, exact);
      }
    check("six dims", op_contiguous, {{t, {2, 3, 2, 4, 3, 2}, v, 0, 0, {1, 2, 6, 12, 48, 150}}}, {{t, {2, 3, 2, 4, 3, 2}}}, {}, exact);
    check("six dims", op_contiguous, {{t, {2, 3, 2, 4, 3, 32}, v, 0, 0, {32, 64, 192, 384, 1536, 1}}}, {{t, {2, 3, 2, 4, 3, 32}}}, {}, exact);
    std::vector<Spec> many;
    for (int i = 0; i < 53; i++) many.push_back({t, {3, i % 7}, v, 0, i % 2});
    check("many", op_concat_cols, many, {{t, {3, 156}}}, {}, exact);
    check("empty", op_transpose, {{t, {0, 4}}}, {{t, {4, 0}}}, {}, exact);
    check("empty", op_gather_rows, {{t, {5, 7}}, {i32, {0}}}, {{t, {0, 7}}}, {}, exact);
  }
  check("outside", op_gather_rows, {{f32, {2, 7}}, {i32, {50}, Values::rows}}, {{f32, {50, 7}}}, {}, exact, true);
  check("a number", op_contiguous, {{f32, {}}}, {{f32, {}}}, {}, exact);
}

void check_reduce() {
  for (DType t : floats) {
    for (int64_t n : {0, 1, 5, 1017, 4096, 1000003})
      for (int64_t shift : {0, 1}) {
        check("", op_sum, {{t, {n}, Values::integers, 0, shift}}, {{f32, {1}}}, {}, summation);
        for (DType u : floats) check("", op_mse, {{t, {n}, Values::normal, 0, shift}, {u, {n}}}, {{f32, {1}}}, {}, summation);
      }
    for (int op : {op_sum_rows, op_mean_abs_cols, op_max_abs_cols})
      for (int64_t r : {0, 1, 9, 300, 2000})
        for (int64_t c : {1, 5, 8, 129, 264, 1024})
          for (int64_t pad : {0, 3, 8}) check("", op, {{t, {r, c}, Values::normal, pad}}, {{f32, {c}}}, {}, summation);
    for (int op : {op_softmax, op_log_softmax}) {
      const DType u = op == op_softmax ? t : f32;
      for (Values v : {Values::normal, Values::wide, Values::ties})
        for (int64_t c : {1, 2, 31, 33, 256, 1000, 1024, 1025, 4096, 8191, 8192, 10000, 32000, 151936})
          for (int64_t r : {0, 1, 3, 140})
            for (int64_t shift : {0, 1}) {
              if (r * c > 2000000 || (r * c > 200000 && v != Values::wide)) continue;
              check("", op, {{t, {r, c}, v, 0, shift}}, {{u, {r, c}}}, {}, probabilities);
            }
      check("many", op, {{t, {300, 30008}, Values::wide}}, {{u, {300, 30008}}}, {}, probabilities);
      check("", op, {{t, {3, 70, 17}, Values::wide}}, {{u, {3, 70, 17}}}, {}, probabilities);
      check("half -inf", op, {{t, {3, 5000}, Values::special}}, {{u, {3, 5000}}}, {}, probabilities);
    }
    check("shared", op_softmax, {{t, {140, 152064}, Values::wide}}, {{t, {140, 152064}}}, {}, probabilities);
    check("streamed", op_softmax, {{t, {540, 66000}, Values::wide}}, {{t, {540, 66000}}}, {}, probabilities);
    check("streamed", op_log_softmax, {{t, {540, 66000 / 4}, Values::wide}}, {{f32, {540, 66000 / 4}}}, {}, probabilities);
    check("odd", op_softmax, {{t, {540, 9001}, Values::wide}}, {{t, {540, 9001}}}, {}, probabilities);
  }
}

void check_choice() {
  for (DType t : floats)
    for (Values v : {Values::normal, Values::ties, Values::special, Values::rising})
      for (int64_t c : {0, 1, 3, 64, 300, 1025, 6001, 8192, 50000, 152064})
        for (int64_t r : {1, 5, 150}) {
          if (r * c > 400000 && c != 50000) continue;
          for (int64_t shift : {0, 1}) {
            if (v != Values::special) check("", op_argmax, {{t, {r, c}, v, 0, shift}}, {{i32, {r}}}, {}, exact);
            for (double k : {1, 7, 50, 256, 300, 1024}) {
              if (c > 2000 && k != 50 && k != 1024) continue;
              if (r * c > 400000 && (k != 50 || shift)) continue;
              const int64_t n = static_cast<int64_t>(k);
              check("", op_topk, {{t, {r, c}, v, 0, shift}}, {{f32, {r, n}}, {i32, {r, n}}}, {k}, exact);
            }
          }
        }
  for (DType t : floats) {
    check("nothing", op_topk, {{t, {3, 9000}, Values::hopeless}}, {{f32, {3, 40}}, {i32, {3, 40}}}, {40}, exact);
    check("many", op_topk, {{t, {300, 8000}}}, {{f32, {300, 64}}, {i32, {300, 64}}}, {64}, exact);
    check("many", op_argmax, {{t, {1500, 8000}}}, {{i32, {1500}}}, {}, exact);
  }
}

void check_random() {
  for (DType t : floats)
    for (int64_t n : {0, 1, 3, 4, 7, 8, 1003, 200000})
      for (int64_t shift : {0, 1}) {
        check("", op_fill_normal, {{t, {n}, Values::normal, 0, shift}}, {}, {0.5, 2, 0x1p40 + 5, 0x1p33 + 1}, {0x1p-23, 0x1p-8, 0x1p-11});
        check("", op_fill_uniform, {{t, {n}, Values::normal, 0, shift}}, {}, {-2, 3, 7, 0}, arithmetic);
        check("unit", op_fill_uniform, {{t, {n}, Values::normal, 0, shift}}, {}, {0, 1, 123456789, 42}, exact);
        check("", op_dropout, {{t, {n}, Values::normal, 0, shift}}, {{t, {n}}}, {0.3, 11, 3}, exact);
        check("none", op_dropout, {{t, {n}, Values::normal, 0, shift}}, {{t, {n}}}, {0, 11, 3}, exact);
      }
}

// ---- timings -----------------------------------------------------------------------------------------------------------------

double copy_rate = 0;  // bytes/s, read + written
char* room = nullptr;
constexpr int64_t kRoom = int64_t{10} << 30;

// Median time of a call over sets of operands that do not fit in the cache together (`sets` > 1) or of one set. In a graph of 20 calls.
double seconds(int op, const std::vector<Spec>& in, const std::vector<Spec>& out, const std::vector<double>& attr, int sets) {
  int64_t used = 0;
  std::vector<std::vector<View>> views;
  for (int s = 0; s < sets; s++) {
    std::vector<View> list;
    for (const auto* specs : {&in, &out})
      for (const Spec& spec : *specs) {
        View v;
        v.dtype = spec.dtype;
        v.ndim = static_cast<int>(spec.shape.size());
        int64_t stride = 1;
        for (int d = v.ndim - 1; d >= 0; d--) {
          v.shape[d] = spec.shape[static_cast<size_t>(d)];
          v.stride[d] = d == 0 ? stride + spec.padding : stride;
          stride = v.stride[d] * v.shape[d];
        }
        for (size_t d = 0; d < spec.strides.size(); d++) v.stride[d] = spec.strides[d];
        v.data = room + used;
        used += (stride * static_cast<int64_t>(dtype_bytes(v.dtype)) + 4096) / 256 * 256;
        if (used > kRoom) {
          std::printf("no room\n");
          return 1;
        }
        scratch_used = 0;
        if (is_float(v.dtype) && spec.strides.empty()) {
          const double a[4] = {0, 4, 1, static_cast<double>(list.size())};
          View dense = v;
          if (spec.padding) dense.ndim = 1, dense.shape[0] = stride;
          const KernelArgs k{&dense, 1, nullptr, 0, a, 4};
          cuda_kernel(op_fill_normal)(context, k);
        } else {
          cudaMemset(v.data, 0, static_cast<size_t>(stride) * dtype_bytes(v.dtype));
        }
        list.push_back(v);
      }
    views.push_back(list);
  }
  constexpr int kCalls = 20;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kCalls; i++) {
    std::vector<View>& v = views[static_cast<size_t>(i % sets)];
    const int n_in = static_cast<int>(in.size());
    const KernelArgs k{v.data(), n_in, v.data() + n_in, static_cast<int>(out.size()), attr.data(), static_cast<int>(attr.size())};
    scratch_used = 0;
    if (const char* e = cuda_kernel(op)(context, k)) std::printf("%s: %s\n", kOps[op].name, e);
  }
  CHECK(cudaStreamEndCapture(context.stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  cudaEventCreate(&a);
  cudaEventCreate(&b);
  std::vector<float> times;
  for (int i = 0; i < 6; i++) {
    cudaEventRecord(a, context.stream);
    cudaGraphLaunch(exec, context.stream);
    cudaEventRecord(b, context.stream);
    CHECK(cudaEventSynchronize(b));
    float ms;
    cudaEventElapsedTime(&ms, a, b);
    times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / kCalls;
}

int64_t bytes_of(const Spec& s) {
  int64_t n = static_cast<int64_t>(dtype_bytes(s.dtype));
  for (int64_t d : s.shape) n *= d;
  return n;
}

// extra: bytes beyond one visit of every operand.
void time_big(const char* note, int op, const std::vector<Spec>& in, const std::vector<Spec>& out, const std::vector<double>& attr, int64_t extra = 0) {
  int64_t bytes = extra;
  for (const Spec& s : in) bytes += bytes_of(s);
  for (const Spec& s : out) bytes += bytes_of(s);
  const double t = seconds(op, in, out, attr, bytes > int64_t{1500} << 20 ? 1 : 3), rate = static_cast<double>(bytes) / t;
  std::printf("%-18s %-34s %9.1f us %7.0f GB/s %4.0f %%\n", kOps[op].name, note, t * 1e6, rate * 1e-9, 100 * rate / copy_rate);
}
void time_small(const char* note, int op, const std::vector<Spec>& in, const std::vector<Spec>& out, const std::vector<double>& attr) {
  std::printf("%-18s %-34s %9.2f us\n", kOps[op].name, note, seconds(op, in, out, attr, 1) * 1e6);
}

void time_all() {
  CHECK(cudaMalloc(&room, kRoom));
  {
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    const int64_t n = int64_t{2} << 30;
    float ms = 0;
    for (int i = 0; i < 4; i++) {
      cudaEventRecord(a, context.stream);
      cudaMemcpyAsync(room + n, room, static_cast<size_t>(n), cudaMemcpyDeviceToDevice, context.stream);
      cudaEventRecord(b, context.stream);
      cudaEventSynchronize(b);
      cudaEventElapsedTime(&ms, a, b);
    }
    copy_rate = 2.0 * static_cast<double>(n) / (ms * 1e-3);
    std::printf("copy of 2 GiB: %.0f GB/s\n", copy_rate * 1e-9);
    cudaEventRecord(a, context.stream);
    cudaMemsetAsync(room, 0, static_cast<size_t>(n), context.stream);
    cudaEventRecord(b, context.stream);
    cudaEventSynchronize(b);
    cudaEventElapsedTime(&ms, a, b);
    std::printf("memset of 2 GiB: %.0f GB/s\n", static_cast<double>(n) / (ms * 1e-3) * 1e-9);
  }
  const DType b = bf16_;
  const std::vector<int64_t> x = {8192, 3584};
  const int64_t xb = 8192 * 3584 * 2;
  time_big("bf16 [8192,3584]", op_copy, {{b, x}, {b, x}}, {}, {});
  time_big("bf16 [8192,3584]", op_add, {{b, x}, {b, x}}, {{b, x}}, {});
  time_big("f32 [8192,3584]", op_add, {{f32, x}, {f32, x}}, {{f32, x}}, {});
  time_big("bf16 + [3584]", op_add, {{b, x}, {b, {3584}}}, {{b, x}}, {});
  time_big("bf16 [8192,3583] + row", op_add, {{b, {8192, 3583}}, {b, {3583}}}, {{b, {8192, 3583}}}, {});
  time_big("bf16 [8192,3584]", op_scale, {{b, x}}, {{b, x}}, {2});
  time_big("bf16 += bf16", op_axpy, {{b, x}, {b, x}}, {}, {0.5}, xb);
  time_big("f32 += bf16", op_axpy, {{f32, x}, {b, x}}, {}, {0.5}, 2 * xb);
  time_big("bf16 strided", op_axpy, {{b, x, Values::normal, 3584}, {b, x, Values::normal, 64}}, {}, {0.5}, xb);
  time_big("f32 to bf16", op_cast, {{f32, x}}, {{b, x}}, {static_cast<double>(b)});
  time_big("bf16 to f32", op_cast, {{b, x}}, {{f32, x}}, {static_cast<double>(f32)});
  time_big("bf16", op_silu, {{b, x}}, {{b, x}}, {});
  time_big("f32", op_silu, {{f32, x}}, {{f32, x}}, {});
  time_big("bf16", op_silu_bwd, {{b, x}, {b, x}}, {{b, x}}, {});
  time_big("bf16", op_mul_cols, {{b, x}, {f32, {3584}}}, {{b, x}}, {0});
  time_big("bf16", op_dropout, {{b, x}}, {{b, x}}, {0.1, 1, 2});
  time_big("f32", op_dropout, {{f32, x}}, {{f32, x}}, {0.1, 1, 2});
  time_big("bf16", op_fill, {{b, x}}, {}, {1});
  time_big("bf16", op_fill_normal, {{b, x}}, {}, {0, 1, 1, 1});
  time_big("bf16", op_fill_uniform, {{b, x}}, {}, {0, 1, 1, 1});
  time_big("bf16 columns of [8192,10752]", op_contiguous, {{b, x, Values::normal, 7168}}, {{b, x}}, {});
  time_big("bf16 [T,28,128] to [28,T,128]", op_contiguous, {{b, {28, 8192, 128}, Values::normal, 0, 0, {128, 3584, 1}}}, {{b, {28, 8192, 128}}}, {});
  time_big("bf16", op_transpose, {{b, x}}, {{b, {3584, 8192}}}, {});
  time_big("bf16 [8192,3583]", op_transpose, {{b, {8192, 3583}}}, {{b, {3583, 8192}}}, {});
  time_big("f32", op_transpose, {{f32, x}}, {{f32, {3584, 8192}}}, {});
  time_big("u8", op_transpose, {{DType::u8, x}}, {{DType::u8, {3584, 8192}}}, {});
  time_big("bf16 3584 + 512 + 512", op_concat_cols, {{b, x}, {b, {8192, 512}}, {b, {8192, 512}}}, {{b, {8192, 4608}}}, {});
  time_big("bf16 two", op_concat_rows, {{b, x}, {b, x}}, {{b, {16384, 3584}}}, {});
  time_big("bf16", op_gather_rows, {{b, x}, {i32, {8192}}}, {{b, x}}, {}, -xb);
  time_big("bf16", op_sum, {{b, x}}, {{f32, {1}}}, {});
  time_big("f32", op_mse, {{f32, x}, {f32, x}}, {{f32, {1}}}, {});
  time_big("bf16", op_sum_rows, {{b, x}}, {{f32, {3584}}}, {});
  time_big("f32 [8192,64]", op_sum_rows, {{f32, {8192, 64}}}, {{f32, {64}}}, {});
  time_big("bf16", op_max_abs_cols, {{b, x}}, {{f32, {3584}}}, {});
  for (DType t : {b, f32}) {
    const char* name = t == b ? "bf16" : "f32";
    for (const auto& [r, c] : {std::pair<int64_t, int64_t>{262144, 128}, {16384, 1024}, {8192, 4096}, {2048, 32000}, {140, 152064}, {2048, 152064}}) {
      const std::string note = std::string(name) + " [" + std::to_string(r) + "," + std::to_string(c) + "]";
      time_big(note.c_str(), op_softmax, {{t, {r, c}}}, {{t, {r, c}}}, {});
      time_big(note.c_str(), op_log_softmax, {{t, {r, c}}}, {{f32, {r, c}}}, {});
      time_big(note.c_str(), op_argmax, {{t, {r, c}}}, {{i32, {r}}}, {});
      time_big((note + " k 8").c_str(), op_topk, {{t, {r, c}}}, {{f32, {r, 8}}, {i32, {r, 8}}}, {8});
      time_big((note + " k 64").c_str(), op_topk, {{t, {r, c}}}, {{f32, {r, 64}}, {i32, {r, 64}}}, {64});
      if (c > 1000) time_big((note + " k 1024").c_str(), op_topk, {{t, {r, c}}}, {{f32, {r, 1024}}, {i32, {r, 1024}}}, {1024});
    }
  }
  time_small("bf16 [1,3584]", op_add, {{b, {1, 3584}}, {b, {1, 3584}}}, {{b, {1, 3584}}}, {});
  time_small("bf16 [64,3584]", op_add, {{b, {64, 3584}}, {b, {64, 3584}}}, {{b, {64, 3584}}}, {});
  time_small("bf16 [1,3584]", op_copy, {{b, {1, 3584}}, {b, {1, 3584}}}, {}, {});
  time_small("bf16 [1,3584]", op_gather_rows, {{b, {8, 3584}}, {i32, {1}}}, {{b, {1, 3584}}}, {});
  time_small("f32 [4096]", op_sum, {{f32, {4096}}}, {{f32, {1}}}, {});
  time_small("f32 [1000000]", op_sum, {{f32, {1000000}}}, {{f32, {1}}}, {});
  time_small("bf16 [8192,128] k 8", op_topk, {{b, {8192, 128}}}, {{f32, {8192, 8}}, {i32, {8192, 8}}}, {8});
  for (int64_t r : {1, 4, 32})
    for (DType t : {b, f32}) {
      const std::string note = std::string(t == b ? "bf16" : "f32") + " [" + std::to_string(r) + ",152064]";
      time_small(note.c_str(), op_argmax, {{t, {r, 152064}}}, {{i32, {r}}}, {});
      time_small(note.c_str(), op_softmax, {{t, {r, 152064}}}, {{t, {r, 152064}}}, {});
      time_small(note.c_str(), op_log_softmax, {{t, {r, 152064}}}, {{f32, {r, 152064}}}, {});
      for (int64_t k : {1, 20, 64, 256, 1024})
        time_small((note + " k " + std::to_string(k)).c_str(), op_topk, {{t, {r, 152064}}}, {{f32, {r, k}}, {i32, {r, k}}}, {static_cast<double>(k)});
    }
}

}  // namespace

void* Context::scratch(size_t bytes) {
  void* p = scratch_base + scratch_used;
  scratch_used += (bytes + 255) / 256 * 256;
  if (scratch_used > kScratch) std::printf("scratch is too small\n"), std::exit(1);
  return p;
}

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  std::printf("%s, %d SMs\n", p.name, p.multiProcessorCount);
  CHECK(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
  context.sms = p.multiProcessorCount;
  context.arch = p.major * 10 + p.minor;
  context.shared_bytes = static_cast<int>(p.sharedMemPerBlockOptin);
  context.l2_bytes = p.l2CacheSize;
  CHECK(cudaMalloc(&context.fault_word, 4));
  CHECK(cudaMemset(context.fault_word, 0, 4));
  CHECK(cudaMalloc(&scratch_base, kScratch));
  if (what != "time") {
    const std::pair<const char*, void (*)()> parts[] = {
        {"elementwise", check_elementwise}, {"movement", check_movement}, {"reduce", check_reduce}, {"choice", check_choice}, {"random", check_random}};
    for (const auto& [name, part] : parts) {
      const int before = runs, failed = failures;
      part();
      std::printf("%s: %d of %d failed\n", name, failures - failed, runs - before);
      std::fflush(stdout);
    }
  }
  if (what != "check") time_all();
  return failures != 0;
}
