// Products in 8-bit floating point over cpu/gemm.h, for every instruction set but the scalar one: the processor has no such product, so
// codes become the f32 values that they stand for, and the scales come after.
#include "core/fp8.h"

#include <vector>

#include "core/half.h"
#include "core/threadpool.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "gen/ops.h"

namespace llm {
namespace {

struct Values {  // of the codes
  float of[256];
  Values() {
    for (int i = 0; i < 256; i++) of[i] = fp8_to_f32(static_cast<uint8_t>(i));
  }
};
const Values& values() {
  static const Values v;
  return v;
}

constexpr int64_t kGrain = 16;  // rows

float load(const View& v, int64_t i) {
  if (v.dtype == DType::f32) return reinterpret_cast<const float*>(v.data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(v.data)[i];
  return v.dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}
void store(const View& v, int64_t i, float x) {
  if (v.dtype == DType::f32) reinterpret_cast<float*>(v.data)[i] = x;
  else reinterpret_cast<uint16_t*>(v.data)[i] = v.dtype == DType::bf16 ? f32_to_bf16(x) : f32_to_f16(x);
}

// The rows of x [T, C] times `factor` (or null) as values of codes, and their scales.
void encode(const View& x, const float* factor, std::vector<float>& to, std::vector<float>& scales) {
  const int64_t rows = x.shape[0], cols = x.shape[1];
  to.resize(static_cast<size_t>(rows * cols));
  scales.resize(static_cast<size_t>(rows));
  const float* of = values().of;
  cpu::parallel_for(rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t at = r * x.stride[0];
      float* row = to.data() + r * cols;
      scales[static_cast<size_t>(r)] = encode_fp8_row(
          cols, [&](int64_t c) { return load(x, at + c) * (factor ? factor[c] : 1.0f); }, [&](int64_t c, uint8_t code) { row[c] = of[code]; });
    }
  });
}

// y = row scale * (x op(q)) * column scale (or null) + bias (or null).
const char* product(const View& x, const float* factor, const View& q, bool trans, const float* columns, const View* bias, const View& y) {
  const int64_t rows = y.shape[0], cols = y.shape[1];
  std::vector<float> codes, scales, weight(static_cast<size_t>(q.shape[0] * q.shape[1])), sums(static_cast<size_t>(rows * cols));
  encode(x, factor, codes, scales);
  const float* of = values().of;
  cpu::parallel_for(q.shape[0], kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * q.shape[1]; i < end * q.shape[1]; i++) weight[static_cast<size_t>(i)] = of[reinterpret_cast<const uint8_t*>(q.data)[i]];
  });
  cpu::GemmArgs g;
  g.m = rows;
  g.n = cols;
  g.k = x.shape[1];
  g.a = codes.data();
  g.lda = g.k;
  g.b = weight.data();
  g.ldb = q.shape[1];
  g.trans_b = trans;
  g.c = sums.data();
  g.ldc = cols;
  cpu::gemm(g);
  cpu::parallel_for(rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < cols; c++) {
        const int64_t i = r * cols + c;
        const float scaled = sums[static_cast<size_t>(i)] * (columns ? scales[static_cast<size_t>(r)] * columns[c] : scales[static_cast<size_t>(r)]);
        store(y, i, bias ? scaled + load(*bias, c) : scaled);
      }
  });
  return nullptr;
}

const char* linear_fp8(const KernelArgs& k) {
  const bool bias = k.n_in > 3 && k.in[3].data != nullptr;
  return product(k.in[0], nullptr, k.in[1], true, reinterpret_cast<const float*>(k.in[2].data), bias ? &k.in[3] : nullptr, k.out[0]);
}

const char* linear_fp8_bwd(const KernelArgs& k) {
  return product(k.in[0], reinterpret_cast<const float*>(k.in[2].data), k.in[1], false, nullptr, nullptr, k.out[0]);
}

}  // namespace

const KernelEntry fast_fp8[] = {{op_linear_fp8, linear_fp8}, {op_linear_fp8_bwd, linear_fp8_bwd}};
const int fast_fp8_count = sizeof(fast_fp8) / sizeof(fast_fp8[0]);

}  // namespace llm
