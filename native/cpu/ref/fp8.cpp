// Reference kernels: rows in 8-bit floating point and products of them.
#include "core/fp8.h"

#include "cpu/ref/ref.h"

namespace llm {
namespace {

// Rows as the values of their codes, with a scale each.
struct Encoded {
  std::vector<float> values, scales;
};

template <class Factor>
Encoded encode(const Rows& x, const Factor& factor) {
  Encoded e{std::vector<float>(static_cast<size_t>(x.rows * x.cols)), std::vector<float>(static_cast<size_t>(x.rows))};
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      e.scales[static_cast<size_t>(r)] = encode_fp8_row(
          x.cols, [&](int64_t c) { return x.get(r, c) * factor(c); },
          [&](int64_t c, uint8_t code) { e.values[static_cast<size_t>(r * x.cols + c)] = fp8_to_f32(code); });
  });
  return e;
}

const char* quantize_fp8(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]);
  uint8_t* q = data_of<uint8_t>(k.out[0]);
  float* scale = data_of<float>(k.out[1]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      scale[r] = encode_fp8_row(
          x.cols, [&](int64_t c) { return x.get(r, c); }, [&](int64_t c, uint8_t code) { q[r * x.cols + c] = code; });
  });
  return nullptr;
}

const char* dequantize_fp8(const KernelArgs& k) {
  const Rows y = rows_of(k.out[0]);
  const uint8_t* q = data_of<uint8_t>(k.in[0]);
  const float* scale = data_of<float>(k.in[1]);
  parallel_rows(y.rows, row_grain(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < y.cols; c++) y.set(r, c, fp8_to_f32(q[r * y.cols + c]) * scale[r]);
  });
  return nullptr;
}

const char* linear_fp8(const KernelArgs& k) {
  const Rows y = rows_of(k.out[0]);
  const Encoded x = encode(rows_of(k.in[0]), [](int64_t) { return 1.0f; });
  const int64_t cols = k.in[1].shape[1];
  const uint8_t* q = data_of<uint8_t>(k.in[1]);
  const float* scale = data_of<float>(k.in[2]);
  const View* bias = k.n_in > 3 && present(k.in[3]) ? &k.in[3] : nullptr;
  parallel_rows(y.rows * y.cols, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t r = i / y.cols, n = i % y.cols;
      double sum = 0;
      for (int64_t c = 0; c < cols; c++) sum += static_cast<double>(x.values[static_cast<size_t>(r * cols + c)]) * fp8_to_f32(q[n * cols + c]);
      sum *= static_cast<double>(x.scales[static_cast<size_t>(r)]) * scale[n];
      y.set(r, n, static_cast<float>(sum + (bias ? load_element(bias->data, bias->dtype, n) : 0)));
    }
  });
  return nullptr;
}

const char* linear_fp8_bwd(const KernelArgs& k) {
  const Rows dx = rows_of(k.out[0]);
  const int64_t n = k.in[1].shape[0];
  const uint8_t* q = data_of<uint8_t>(k.in[1]);
  const float* scale = data_of<float>(k.in[2]);
  const Encoded dy = encode(rows_of(k.in[0]), [&](int64_t c) { return scale[c]; });
  parallel_rows(dx.rows * dx.cols, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t r = i / dx.cols, c = i % dx.cols;
      double sum = 0;
      for (int64_t o = 0; o < n; o++) sum += static_cast<double>(dy.values[static_cast<size_t>(r * n + o)]) * fp8_to_f32(q[o * dx.cols + c]);
      dx.set(r, c, static_cast<float>(sum * dy.scales[static_cast<size_t>(r)]));
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_fp8[] = {
    {op_quantize_fp8, quantize_fp8}, {op_dequantize_fp8, dequantize_fp8}, {op_linear_fp8, linear_fp8}, {op_linear_fp8_bwd, linear_fp8_bwd}};
const int ref_fp8_count = sizeof(ref_fp8) / sizeof(ref_fp8[0]);

}  // namespace llm
