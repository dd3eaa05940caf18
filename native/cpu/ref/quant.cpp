// Reference kernels: weight quantization. Groups run along the in features; the last one may be shorter.
#include <algorithm>

#include "cpu/nf4.h"
#include "cpu/ref/ref.h"

namespace llm {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Asymmetric parameters of one group from its extremes.
void asymmetric(float low, float high, float& scale, float& zero) {
  scale = std::max(high - low, 1e-5f) / 15.0f;
  zero = std::min(15.0f, std::max(0.0f, -std::nearbyint(low / scale)));
}

float w4_code(float w, float scale, float zero) { return std::min(15.0f, std::max(0.0f, std::nearbyint(w / scale) + zero)); }

const char* quantize_w4(const KernelArgs& k) {
  const Rows w = rows_of(k.in[0]);
  const int64_t group = static_cast<int64_t>(k.attr[0]), groups = ceil_div(w.cols, group);
  const bool symmetric = k.attr[1] != 0;
  uint8_t *q = data_of<uint8_t>(k.out[0]), *zeros = data_of<uint8_t>(k.out[2]);
  float* scales = data_of<float>(k.out[1]);
  parallel_rows(w.rows, row_grain(w.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      if (w.cols > 0) std::memset(q + r * (w.cols / 2), 0, static_cast<size_t>(w.cols / 2));
      for (int64_t g = 0; g < groups; g++) {
        const int64_t first = g * group, last = std::min(w.cols, first + group);
        float low = kInf, high = -kInf, absmax = 0, scale, zero = 8;
        for (int64_t c = first; c < last; c++) {
          const float v = w.get(r, c);
          low = std::min(low, v);
          high = std::max(high, v);
          absmax = std::max(absmax, std::fabs(v));
        }
        if (symmetric) {
          scale = absmax == 0 ? 1e-5f : absmax / 7.0f;
        } else {
          asymmetric(low, high, scale, zero);
        }
        scales[r * groups + g] = scale;
        zeros[r * groups + g] = static_cast<uint8_t>(zero);
        for (int64_t c = first; c < last; c++) {
          const int code = static_cast<int>(w4_code(w.get(r, c), scale, zero));
          q[r * (w.cols / 2) + c / 2] |= static_cast<uint8_t>(code << (c % 2 * 4));
        }
      }
    }
  });
  return nullptr;
}

// Canonical W4: row r, column c as f32.
struct W4 {
  const uint8_t* q;
  const float* scales;
  const uint8_t* zeros;
  int64_t cols, group, groups;
  float get(int64_t r, int64_t c) const {
    const int64_t g = r * groups + c / group;
    const int code = q[r * (cols / 2) + c / 2] >> (c % 2 * 4) & 15;
    return static_cast<float>(code - zeros[g]) * scales[g];
  }
};

const char* dequantize_w4(const KernelArgs& k) {
  const View& y = k.out[0];
  const int64_t rows = y.shape[0], cols = y.shape[1], group = static_cast<int64_t>(k.attr[0]);
  const W4 w{data_of<uint8_t>(k.in[0]), data_of<float>(k.in[1]), data_of<uint8_t>(k.in[2]), cols, group, ceil_div(cols, group)};
  parallel_rows(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < cols; c++) store_element(y.data, y.dtype, r * cols + c, w.get(r, c));
  });
  return nullptr;
}

const char* quantize_q8(const KernelArgs& k) {
  const Rows w = rows_of(k.in[0]);
  const int64_t group = static_cast<int64_t>(k.attr[0]), groups = ceil_div(w.cols, group);
  int8_t* q = data_of<int8_t>(k.out[0]);
  float* scales = data_of<float>(k.out[1]);
  parallel_rows(w.rows, row_grain(w.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t g = 0; g < groups; g++) {
        const int64_t first = g * group, last = std::min(w.cols, first + group);
        float absmax = 0;
        for (int64_t c = first; c < last; c++) absmax = std::max(absmax, std::fabs(w.get(r, c)));
        const float scale = absmax == 0 ? 1e-5f : absmax / 127.0f;
        scales[r * groups + g] = scale;
        for (int64_t c = first; c < last; c++)
          q[r * w.cols + c] = static_cast<int8_t>(std::max(-127.0f, std::min(127.0f, std::nearbyint(w.get(r, c) / scale))));
      }
  });
  return nullptr;
}

const char* dequantize_q8(const KernelArgs& k) {
  const View& y = k.out[0];
  const int64_t rows = y.shape[0], cols = y.shape[1], group = static_cast<int64_t>(k.attr[0]), groups = ceil_div(cols, group);
  const int8_t* q = data_of<int8_t>(k.in[0]);
  const float* scales = data_of<float>(k.in[1]);
  parallel_rows(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < cols; c++)
        store_element(y.data, y.dtype, r * cols + c, static_cast<float>(q[r * cols + c]) * scales[r * groups + c / group]);
  });
  return nullptr;
}

const char* quantize_nf4(const KernelArgs& k) {
  const View& x = k.in[0];
  const int64_t n = view_numel(x), block = static_cast<int64_t>(k.attr[0]);
  uint8_t* q = data_of<uint8_t>(k.out[0]);
  float* absmax = data_of<float>(k.out[1]);
  const auto code = [&](int64_t i) { return nf4_code(load_element(x.data, x.dtype, i) * (1.0f / absmax[i / block])); };
  for (int64_t b = 0; b < ceil_div(n, block); b++) {
    float largest = 0;
    for (int64_t i = b * block; i < std::min(n, (b + 1) * block); i++)
      largest = std::max(largest, std::fabs(load_element(x.data, x.dtype, i)));
    absmax[b] = largest;
  }
  for (int64_t i = 0; i < n / 2; i++) q[i] = static_cast<uint8_t>(code(2 * i) << 4 | code(2 * i + 1));
  return nullptr;
}

const char* dequantize_nf4(const KernelArgs& k) {
  const View& y = k.out[0];
  const uint8_t* q = data_of<uint8_t>(k.in[0]);
  const float* absmax = data_of<float>(k.in[1]);
  const int64_t block = static_cast<int64_t>(k.attr[0]);
  parallel_rows(view_numel(y), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int code = i % 2 ? q[i / 2] & 15 : q[i / 2] >> 4;
      store_element(y.data, y.dtype, i, kNf4Table[code] * absmax[i / block]);
    }
  });
  return nullptr;
}

// AWQ's clip search: for i in 0 .. grid * shrink - 1, clip the group symmetrically at absmax (1 - i / grid), quantize it
// (asymmetric, 15 steps), and keep the clip with the smallest mean over the rows of x of (x_g . (q - w)_g)^2; the first wins ties.
const char* awq_clip_search(const KernelArgs& k) {
  const Rows w = rows_of(k.in[0]), x = rows_of(k.in[1]);
  const int64_t group = static_cast<int64_t>(k.attr[0]), groups = ceil_div(w.cols, group);
  const double grid = k.attr[1];
  const int64_t steps = std::max<int64_t>(1, static_cast<int64_t>(grid * k.attr[2]));
  float* max_val = data_of<float>(k.out[0]);
  parallel_rows(w.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> error(static_cast<size_t>(group));
    for (int64_t r = begin; r < end; r++)
      for (int64_t g = 0; g < groups; g++) {
        const int64_t first = g * group, last = std::min(w.cols, first + group);
        float absmax = 0;
        for (int64_t c = first; c < last; c++) absmax = std::max(absmax, std::fabs(w.get(r, c)));
        double best = std::numeric_limits<double>::infinity();
        max_val[r * groups + g] = absmax;
        for (int64_t i = 0; i < steps; i++) {
          const float clip = static_cast<float>(absmax * (1.0 - static_cast<double>(i) / grid));
          float low = kInf, high = -kInf, scale, zero;
          for (int64_t c = first; c < last; c++) {
            const float v = std::max(-clip, std::min(clip, w.get(r, c)));
            low = std::min(low, v);
            high = std::max(high, v);
          }
          asymmetric(low, high, scale, zero);
          for (int64_t c = first; c < last; c++) {
            const float v = std::max(-clip, std::min(clip, w.get(r, c)));
            error[static_cast<size_t>(c - first)] = (w4_code(v, scale, zero) - zero) * scale - w.get(r, c);
          }
          double total = 0;
          for (int64_t s = 0; s < x.rows; s++) {
            double d = 0;
            for (int64_t c = first; c < last; c++) d += x.get(s, c) * error[static_cast<size_t>(c - first)];
            total += d * d;
          }
          if (total < best) {
            best = total;
            max_val[r * groups + g] = clip;
          }
        }
      }
  });
  return nullptr;
}

// The reference's packed layout: q, scales, zeros, one after another.
const char* repack(const KernelArgs& k) {
  char* to = k.out[0].data;
  for (int i = 0; i < k.n_in; i++) {
    const size_t bytes = static_cast<size_t>(view_numel(k.in[i])) * dtype_bytes(k.in[i].dtype);
    if (bytes != 0) std::memcpy(to, k.in[i].data, bytes);
    to += bytes;
  }
  return nullptr;
}

constexpr int64_t kActivationBlock = 32;  // values of x that share a scale in mode 1

// The part of x[r] in [first, last) times w's codes: exact, or with x as int8 (scale absmax / 127, half to even).
template <class Code>
double block_product(const Rows& x, int64_t r, int64_t o, int64_t first, int64_t last, bool int8, Code code) {
  float absmax = 0;
  for (int64_t c = first; int8 && c < last; c++) absmax = std::max(absmax, std::fabs(x.get(r, c)));
  const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
  double total = 0;
  for (int64_t c = first; c < last; c++) {
    const float v = x.get(r, c);
    total += (int8 ? static_cast<double>(std::nearbyint(v * inverse)) : static_cast<double>(v)) * code(o, c);
  }
  return int8 ? total * (absmax / 127.0f) : total;
}

// y[r, o] = bias[o] + sum over groups of scale(o, g) * sum_c x[r, c] * code(o, c).
template <class Code, class Scale>
const char* linear(const KernelArgs& k, Code code, Scale scale) {
  const Rows x = rows_of(k.in[0]), y = rows_of(k.out[0]);
  const View* bias = k.n_in > 2 && present(k.in[2]) ? &k.in[2] : nullptr;
  const int64_t n = static_cast<int64_t>(k.attr[0]), cols = static_cast<int64_t>(k.attr[1]), group = static_cast<int64_t>(k.attr[2]);
  const bool int8 = k.attr[3] != 0;
  parallel_rows(x.rows * n, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t r = i / n, o = i % n;
      double total = bias ? load_element(bias->data, bias->dtype, o) : 0;
      for (int64_t g = 0; g * group < cols; g++) {
        const int64_t last = std::min(cols, (g + 1) * group);
        double part = 0;
        for (int64_t c = g * group; c < last; c += kActivationBlock)
          part += block_product(x, r, o, c, std::min(last, c + kActivationBlock), int8, code);
        total += part * scale(o, g);
      }
      y.set(r, o, static_cast<float>(total));
    }
  });
  return nullptr;
}

const char* linear_w4(const KernelArgs& k) {
  const int64_t n = static_cast<int64_t>(k.attr[0]), cols = static_cast<int64_t>(k.attr[1]), group = static_cast<int64_t>(k.attr[2]);
  const int64_t groups = ceil_div(cols, group);
  const uint8_t* q = data_of<uint8_t>(k.in[1]);
  const char* scales = reinterpret_cast<const char*>(q) + n * (cols / 2);  // perhaps not aligned
  const uint8_t* zeros = q + n * (cols / 2) + n * groups * 4;
  return linear(
      k,
      [=](int64_t o, int64_t c) { return (q[o * (cols / 2) + c / 2] >> (c % 2 * 4) & 15) - zeros[o * groups + c / group]; },
      [=](int64_t o, int64_t g) {
        float s;
        std::memcpy(&s, scales + 4 * (o * groups + g), 4);
        return s;
      });
}

const char* linear_q8(const KernelArgs& k) {
  const int64_t n = static_cast<int64_t>(k.attr[0]), cols = static_cast<int64_t>(k.attr[1]), group = static_cast<int64_t>(k.attr[2]);
  const int64_t groups = ceil_div(cols, group);
  const int8_t* q = data_of<int8_t>(k.in[1]);
  const char* scales = reinterpret_cast<const char*>(q) + n * cols;
  return linear(
      k, [=](int64_t o, int64_t c) { return static_cast<int>(q[o * cols + c]); },
      [=](int64_t o, int64_t g) {
        float s;
        std::memcpy(&s, scales + 4 * (o * groups + g), 4);
        return s;
      });
}

}  // namespace

const KernelEntry ref_quant[] = {
    {op_quantize_w4, quantize_w4},   {op_dequantize_w4, dequantize_w4},   {op_repack_w4, repack},
    {op_linear_w4, linear_w4},       {op_quantize_q8, quantize_q8},       {op_dequantize_q8, dequantize_q8},
    {op_repack_q8, repack},          {op_linear_q8, linear_q8},           {op_quantize_nf4, quantize_nf4},
    {op_dequantize_nf4, dequantize_nf4}, {op_awq_clip_search, awq_clip_search},
};
const int ref_quant_count = sizeof(ref_quant) / sizeof(ref_quant[0]);

}  // namespace llm
