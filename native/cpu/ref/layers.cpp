// Reference kernels: embedding, RMS norm, rotary embedding, SwiGLU and their gradients.
#include <atomic>

#include "cpu/ref/ref.h"

namespace llm {
namespace {

const char* const kBadToken = "token id outside the embedding table";

const char* embedding(const KernelArgs& k) {
  const int32_t* ids = data_of<int32_t>(k.in[0]);
  const View &weight = k.in[1], &y = k.out[0];
  const int64_t n = view_numel(k.in[0]), limit = weight.shape[0];
  const int64_t bytes = weight.shape[1] * static_cast<int64_t>(dtype_bytes(weight.dtype));
  for (int64_t t = 0; t < n; t++) {
    if (ids[t] < 0 || ids[t] >= limit) return kBadToken;
    if (bytes != 0) std::memcpy(y.data + t * bytes, weight.data + ids[t] * bytes, static_cast<size_t>(bytes));
  }
  return nullptr;
}

const char* embedding_bwd(const KernelArgs& k) {
  const View &dy = k.in[0], &dweight = k.in[2];
  const int32_t* ids = data_of<int32_t>(k.in[1]);
  const int64_t n = view_numel(k.in[1]), limit = dweight.shape[0], cols = dweight.shape[1];
  for (int64_t t = 0; t < n; t++)
    if (ids[t] < 0 || ids[t] >= limit) return kBadToken;
  for (int64_t t = 0; t < n; t++)
    for (int64_t c = 0; c < cols; c++) {
      const int64_t at = ids[t] * cols + c;
      const float sum = load_element(dweight.data, dweight.dtype, at) + load_element(dy.data, dy.dtype, t * cols + c);
      store_element(dweight.data, dweight.dtype, at, sum);
    }
  return nullptr;
}

// One row: y = x * rstd * weight; gives rstd.
template <class Get>
float norm_row(Get get, const View& weight, const Rows& y, int64_t r, double eps) {
  double squares = 0;
  for (int64_t c = 0; c < y.cols; c++) {
    const double v = get(c);
    squares += v * v;
  }
  const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(y.cols) + eps);
  for (int64_t c = 0; c < y.cols; c++)
    y.set(r, c, static_cast<float>(get(c) * rstd * load_element(weight.data, weight.dtype, c)));
  return static_cast<float>(rstd);
}

const char* rms_norm(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]), y = rows_of(k.out[0]);
  float* rstd = data_of<float>(k.out[1]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      rstd[r] = norm_row([&](int64_t c) { return x.get(r, c); }, k.in[1], y, r, k.attr[0]);
  });
  return nullptr;
}

// The norm is taken of the sum as it is stored (rounded to its dtype), so that the gradient sees the same numbers.
const char* add_rms_norm(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]), residual = rows_of(k.in[1]), y = rows_of(k.out[0]), sum = rows_of(k.out[1]);
  float* rstd = data_of<float>(k.out[2]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      for (int64_t c = 0; c < x.cols; c++) sum.set(r, c, x.get(r, c) + residual.get(r, c));
      rstd[r] = norm_row([&](int64_t c) { return sum.get(r, c); }, k.in[2], y, r, k.attr[0]);
    }
  });
  return nullptr;
}

// With n = x * rstd and g = dy * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum over rows of dy * n.
const char* rms_norm_bwd(const KernelArgs& k) {
  const Rows dy = rows_of(k.in[0]), x = rows_of(k.in[1]), dx = rows_of(k.out[0]);
  const View& weight = k.in[2];
  const float* rstd = data_of<float>(k.in[3]);
  const bool has_dsum = k.n_in > 4 && present(k.in[4]);
  const Rows dsum = has_dsum ? rows_of(k.in[4]) : dx;
  float* dweight = data_of<float>(k.out[1]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      double mean = 0;
      for (int64_t c = 0; c < x.cols; c++)
        mean += static_cast<double>(dy.get(r, c)) * load_element(weight.data, weight.dtype, c) * x.get(r, c) * rstd[r];
      mean /= static_cast<double>(x.cols);
      for (int64_t c = 0; c < x.cols; c++) {
        const double g = static_cast<double>(dy.get(r, c)) * load_element(weight.data, weight.dtype, c);
        double d = rstd[r] * (g - static_cast<double>(x.get(r, c)) * rstd[r] * mean);
        if (has_dsum) d += dsum.get(r, c);
        dx.set(r, c, static_cast<float>(d));
      }
    }
  });
  if (k.attr[0] == 0) {
    dweight[0] = 0;
    return nullptr;
  }
  parallel_rows(x.cols, row_grain(x.rows), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      double total = 0;
      for (int64_t r = 0; r < x.rows; r++) total += static_cast<double>(dy.get(r, c)) * x.get(r, c) * rstd[r];
      dweight[c] = static_cast<float>(total);
    }
  });
  return nullptr;
}

// Element i of the first half turns with element i of the second. A table narrower than D/2 turns the first columns only.
const char* rope(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const float *cosines = data_of<float>(k.in[1]), *sines = data_of<float>(k.in[2]);
  const int32_t* positions = data_of<int32_t>(k.in[3]);
  const int64_t tokens = x.shape[0], heads = x.shape[1], width = x.shape[2];
  const int64_t limit = k.in[1].shape[0], half = k.in[1].shape[1];
  const float sign = k.attr[0] != 0 ? -1.0f : 1.0f;
  std::atomic<bool> bad{false};
  parallel_rows(tokens, row_grain(heads * width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      if (positions[t] < 0 || positions[t] >= limit) {
        bad = true;
        return;
      }
      for (int64_t h = 0; h < heads; h++) {
        const int64_t from = t * x.stride[0] + h * width, to = (t * heads + h) * width;
        for (int64_t i = 0; i < half; i++) {
          const double c = cosines[positions[t] * half + i], s = sign * sines[positions[t] * half + i];
          const double a = load_element(x.data, x.dtype, from + i), b = load_element(x.data, x.dtype, from + half + i);
          store_element(y.data, y.dtype, to + i, static_cast<float>(a * c - b * s));
          store_element(y.data, y.dtype, to + half + i, static_cast<float>(b * c + a * s));
        }
        for (int64_t i = 2 * half; i < width; i++)
          store_element(y.data, y.dtype, to + i, load_element(x.data, x.dtype, from + i));
      }
    }
  });
  return bad ? "position outside the cos/sin table" : nullptr;
}

const char* swiglu(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]), y = rows_of(k.out[0]);
  parallel_rows(y.rows, row_grain(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < y.cols; c++) {
        const double gate = x.get(r, c), up = x.get(r, y.cols + c);
        y.set(r, c, static_cast<float>(gate / (1.0 + std::exp(-gate)) * up));
      }
  });
  return nullptr;
}

const char* swiglu_bwd(const KernelArgs& k) {
  const Rows dy = rows_of(k.in[0]), x = rows_of(k.in[1]), dx = rows_of(k.out[0]);
  parallel_rows(dy.rows, row_grain(dy.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t c = 0; c < dy.cols; c++) {
        const double gate = x.get(r, c), up = x.get(r, dy.cols + c), d = dy.get(r, c);
        const double s = 1.0 / (1.0 + std::exp(-gate));
        dx.set(r, c, static_cast<float>(d * up * s * (1.0 + gate * (1.0 - s))));
        dx.set(r, dy.cols + c, static_cast<float>(d * gate * s));
      }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_layers[] = {
    {op_embedding, embedding},       {op_embedding_bwd, embedding_bwd}, {op_rms_norm, rms_norm}, {op_add_rms_norm, add_rms_norm},
    {op_rms_norm_bwd, rms_norm_bwd}, {op_rope, rope},                   {op_swiglu, swiglu},     {op_swiglu_bwd, swiglu_bwd},
};
const int ref_layers_count = sizeof(ref_layers) / sizeof(ref_layers[0]);

}  // namespace llm
