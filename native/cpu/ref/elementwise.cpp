// Reference kernels: elementwise arithmetic, movement, reductions, softmax and top-k.
#include <algorithm>

#include "cpu/ref/ref.h"

namespace llm {
namespace {

constexpr int64_t kGrain = 16384;

// y = f(a, b) where b has a's shape, or one element, or the length of a's last dim.
template <class F>
const char* binary(const KernelArgs& k, F f) {
  const View &a = k.in[0], &b = k.in[1], &y = k.out[0];
  const int64_t n = view_numel(a), m = view_numel(b);
  parallel_rows(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      store_element(y.data, y.dtype, i, f(load_element(a.data, a.dtype, i), load_element(b.data, b.dtype, m == n ? i : i % m)));
  });
  return nullptr;
}

template <class F>
const char* unary(const KernelArgs& k, F f) {
  const View &x = k.in[0], &y = k.out[0];
  parallel_rows(view_numel(x), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) store_element(y.data, y.dtype, i, f(load_element(x.data, x.dtype, i)));
  });
  return nullptr;
}

const char* add(const KernelArgs& k) {
  return binary(k, [](float a, float b) { return a + b; });
}
const char* sub(const KernelArgs& k) {
  return binary(k, [](float a, float b) { return a - b; });
}
const char* mul(const KernelArgs& k) {
  return binary(k, [](float a, float b) { return a * b; });
}

const char* scale(const KernelArgs& k) {
  const float factor = static_cast<float>(k.attr[0]);
  return unary(k, [factor](float x) { return factor * x; });
}

const char* mul_scalar_tensor(const KernelArgs& k) {
  const float s = data_of<float>(k.in[1])[0];
  return unary(k, [s](float x) { return x * s; });
}

const char* cast(const KernelArgs& k) {
  return unary(k, [](float x) { return x; });
}

const char* axpy(const KernelArgs& k) {
  const View &y = k.in[0], &x = k.in[1];
  const float alpha = static_cast<float>(k.attr[0]);
  if (view_numel(y) == 0) return nullptr;
  Pieces py, px;
  common_pieces(y, x, py, px);
  for (int64_t p = 0; p < py.count; p++)
    for (int64_t i = 0; i < py.length; i++) {
      const int64_t at = p * py.stride + i;
      const float sum = load_element(y.data, y.dtype, at) + alpha * load_element(x.data, x.dtype, p * px.stride + i);
      store_element(y.data, y.dtype, at, sum);
    }
  return nullptr;
}

const char* fill(const KernelArgs& k) {
  const View& x = k.in[0];
  const int64_t n = view_numel(x);
  const double value = k.attr[0];
  if (x.dtype == DType::i64) {
    std::fill_n(data_of<int64_t>(x), n, static_cast<int64_t>(value));
  } else if (x.dtype == DType::i32) {
    std::fill_n(data_of<int32_t>(x), n, static_cast<int32_t>(value));
  } else {
    for (int64_t i = 0; i < n; i++) store_element(x.data, x.dtype, i, static_cast<float>(value));
  }
  return nullptr;
}

const char* copy(const KernelArgs& k) {
  const View &dst = k.in[0], &src = k.in[1];
  if (view_numel(dst) == 0) return nullptr;
  Pieces pd, ps;
  common_pieces(dst, src, pd, ps);
  if (dst.dtype == src.dtype) {
    const int64_t size = static_cast<int64_t>(dtype_bytes(dst.dtype));
    for (int64_t p = 0; p < pd.count; p++)
      std::memmove(dst.data + p * pd.stride * size, src.data + p * ps.stride * size, static_cast<size_t>(pd.length * size));
    return nullptr;
  }
  for (int64_t p = 0; p < pd.count; p++)
    for (int64_t i = 0; i < pd.length; i++)
      store_element(dst.data, dst.dtype, p * pd.stride + i, load_element(src.data, src.dtype, p * ps.stride + i));
  return nullptr;
}

// Any strides: the last resort that makes a view dense.
const char* contiguous(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const size_t size = dtype_bytes(x.dtype);
  const int64_t n = view_numel(x);
  int64_t index[kMaxDims] = {};
  for (int64_t i = 0; i < n; i++) {
    int64_t at = 0;
    for (int d = 0; d < x.ndim; d++) at += index[d] * x.stride[d];
    std::memcpy(y.data + i * static_cast<int64_t>(size), x.data + at * static_cast<int64_t>(size), size);
    for (int d = x.ndim - 1; d >= 0 && ++index[d] == x.shape[d]; d--) index[d] = 0;
  }
  return nullptr;
}

const char* transpose(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const int64_t rows = x.shape[0], cols = x.shape[1], size = static_cast<int64_t>(dtype_bytes(x.dtype));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++)
      std::memcpy(y.data + (c * rows + r) * size, x.data + (r * x.stride[0] + c) * size, static_cast<size_t>(size));
  return nullptr;
}

const char* concat_rows(const KernelArgs& k) {
  char* to = k.out[0].data;
  for (int i = 0; i < k.n_in; i++) {
    const size_t bytes = static_cast<size_t>(view_numel(k.in[i])) * dtype_bytes(k.in[i].dtype);
    if (bytes != 0) std::memcpy(to, k.in[i].data, bytes);
    to += bytes;
  }
  return nullptr;
}

const char* concat_cols(const KernelArgs& k) {
  const View& y = k.out[0];
  const int64_t size = static_cast<int64_t>(dtype_bytes(y.dtype)), width = y.shape[1];
  int64_t offset = 0;
  for (int i = 0; i < k.n_in; i++) {
    const View& x = k.in[i];
    const int64_t cols = x.shape[1];
    for (int64_t r = 0; r < x.shape[0] && cols > 0; r++)
      std::memcpy(y.data + (r * width + offset) * size, x.data + r * x.stride[0] * size, static_cast<size_t>(cols * size));
    offset += cols;
  }
  return nullptr;
}

const char* gather_rows(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const int32_t* rows = data_of<int32_t>(k.in[1]);
  const int64_t m = view_numel(k.in[1]), limit = x.shape[0];
  const int64_t bytes = limit == 0 ? 0 : view_numel(x) / limit * static_cast<int64_t>(dtype_bytes(x.dtype));
  for (int64_t i = 0; i < m; i++) {
    if (rows[i] < 0 || rows[i] >= limit) return "row index outside the tensor";
    if (bytes != 0) std::memcpy(y.data + i * bytes, x.data + rows[i] * bytes, static_cast<size_t>(bytes));
  }
  return nullptr;
}

const char* sum(const KernelArgs& k) {
  const View& x = k.in[0];
  double total = 0;
  const int64_t n = view_numel(x);
  for (int64_t i = 0; i < n; i++) total += load_element(x.data, x.dtype, i);
  data_of<float>(k.out[0])[0] = static_cast<float>(total);
  return nullptr;
}

// One result a column: start, then step(state, element) down the rows, then end(state).
template <class Step, class End>
const char* columns(const KernelArgs& k, Step step, End end) {
  const Rows x = rows_of(k.in[0]);
  float* y = data_of<float>(k.out[0]);
  parallel_rows(x.cols, row_grain(x.rows), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      double state = 0;
      for (int64_t r = 0; r < x.rows; r++) step(state, x.get(r, c));
      y[c] = static_cast<float>(end(state, x.rows));
    }
  });
  return nullptr;
}

const char* sum_rows(const KernelArgs& k) {
  return columns(k, [](double& s, float v) { s += v; }, [](double s, int64_t) { return s; });
}

const char* mean_abs_cols(const KernelArgs& k) {  // no rows: 0
  return columns(k, [](double& s, float v) { s += std::fabs(v); }, [](double s, int64_t rows) { return rows == 0 ? 0.0 : s / static_cast<double>(rows); });
}

const char* max_abs_cols(const KernelArgs& k) {  // a NaN stays; no rows: 0
  return columns(
      k,
      [](double& s, float v) {
        const double a = std::fabs(v);
        if (a > s || a != a) s = a;
      },
      [](double s, int64_t) { return s; });
}

const char* mse(const KernelArgs& k) {
  const View &a = k.in[0], &b = k.in[1];
  const int64_t n = view_numel(a);
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    const double d = static_cast<double>(load_element(a.data, a.dtype, i)) - load_element(b.data, b.dtype, i);
    total += d * d;
  }
  data_of<float>(k.out[0])[0] = static_cast<float>(n == 0 ? 0.0 : total / static_cast<double>(n));
  return nullptr;
}

const char* mul_cols(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const float* s = data_of<float>(k.in[1]);
  const int64_t n = view_numel(x), cols = view_numel(k.in[1]);
  const bool invert = k.attr[0] != 0;
  parallel_rows(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float v = load_element(x.data, x.dtype, i), by = s[i % cols];
      store_element(y.data, y.dtype, i, invert ? v / by : v * by);
    }
  });
  return nullptr;
}

const char* silu(const KernelArgs& k) {
  return unary(k, [](float x) { return static_cast<float>(x / (1.0 + std::exp(-static_cast<double>(x)))); });
}

const char* silu_bwd(const KernelArgs& k) {
  const View &dy = k.in[0], &x = k.in[1], &dx = k.out[0];
  parallel_rows(view_numel(x), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const double v = load_element(x.data, x.dtype, i), s = 1.0 / (1.0 + std::exp(-v));
      store_element(dx.data, dx.dtype, i, static_cast<float>(load_element(dy.data, dy.dtype, i) * s * (1.0 + v * (1.0 - s))));
    }
  });
  return nullptr;
}

// Softmax of a row of -inf is zero everywhere; its log is -inf.
template <bool kLog>
const char* softmax_rows(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]), y = rows_of(k.out[0]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      float largest = -kInf;
      for (int64_t c = 0; c < x.cols; c++) largest = std::max(largest, x.get(r, c));
      if (largest == -kInf) {
        for (int64_t c = 0; c < x.cols; c++) y.set(r, c, kLog ? -kInf : 0.0f);
        continue;
      }
      double total = 0;
      for (int64_t c = 0; c < x.cols; c++) total += std::exp(static_cast<double>(x.get(r, c)) - largest);
      const double log_total = std::log(total);
      for (int64_t c = 0; c < x.cols; c++) {
        const double d = static_cast<double>(x.get(r, c)) - largest;
        y.set(r, c, static_cast<float>(kLog ? d - log_total : std::exp(d) / total));
      }
    }
  });
  return nullptr;
}

const char* argmax(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]);
  int32_t* y = data_of<int32_t>(k.out[0]);
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      int64_t best = 0;
      for (int64_t c = 1; c < x.cols; c++)
        if (x.get(r, c) > x.get(r, best)) best = c;
      y[r] = static_cast<int32_t>(best);
    }
  });
  return nullptr;
}

const char* topk(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]);
  float* values = data_of<float>(k.out[0]);
  int32_t* indices = data_of<int32_t>(k.out[1]);
  const int64_t wanted = static_cast<int64_t>(k.attr[0]), found = std::min(wanted, x.cols);
  std::vector<float> row(static_cast<size_t>(x.cols));
  std::vector<int32_t> order(static_cast<size_t>(x.cols));
  for (int64_t r = 0; r < x.rows; r++) {
    for (int64_t c = 0; c < x.cols; c++) {
      row[static_cast<size_t>(c)] = x.get(r, c);
      order[static_cast<size_t>(c)] = static_cast<int32_t>(c);
    }
    const float* v = row.data();  // NaN sorts last, so that the order is total
    const auto before = [v](int32_t a, int32_t b) {
      const bool na = v[a] != v[a], nb = v[b] != v[b];
      if (na != nb) return nb;
      if (!na && v[a] != v[b]) return v[a] > v[b];
      return a < b;
    };
    if (found < x.cols) std::nth_element(order.begin(), order.begin() + found, order.end(), before);
    std::sort(order.begin(), order.begin() + found, before);
    for (int64_t j = 0; j < wanted; j++) {
      values[r * wanted + j] = j < found ? v[order[static_cast<size_t>(j)]] : -kInf;
      indices[r * wanted + j] = j < found ? order[static_cast<size_t>(j)] : -1;
    }
  }
  return nullptr;
}

}  // namespace

const KernelEntry ref_elementwise[] = {
    {op_add, add},
    {op_sub, sub},
    {op_mul, mul},
    {op_scale, scale},
    {op_axpy, axpy},
    {op_mul_scalar_tensor, mul_scalar_tensor},
    {op_fill, fill},
    {op_copy, copy},
    {op_cast, cast},
    {op_contiguous, contiguous},
    {op_transpose, transpose},
    {op_concat_rows, concat_rows},
    {op_concat_cols, concat_cols},
    {op_gather_rows, gather_rows},
    {op_sum, sum},
    {op_sum_rows, sum_rows},
    {op_mean_abs_cols, mean_abs_cols},
    {op_max_abs_cols, max_abs_cols},
    {op_mse, mse},
    {op_mul_cols, mul_cols},
    {op_silu, silu},
    {op_silu_bwd, silu_bwd},
    {op_softmax, softmax_rows<false>},
    {op_log_softmax, softmax_rows<true>},
    {op_argmax, argmax},
    {op_topk, topk},
};
const int ref_elementwise_count = sizeof(ref_elementwise) / sizeof(ref_elementwise[0]);

}  // namespace llm
