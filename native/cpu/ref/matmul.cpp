// Reference kernels: matrix products, every element a sum in double.
#include "cpu/ref/ref.h"

namespace llm {
namespace {

// op(m): element (r, c) of a row-strided matrix, or of its transpose.
struct Operand {
  const View& v;
  bool transposed;
  int64_t rows() const { return v.shape[transposed ? 1 : 0]; }
  int64_t cols() const { return v.shape[transposed ? 0 : 1]; }
  float get(int64_t r, int64_t c) const {
    return load_element(v.data, v.dtype, transposed ? c * v.stride[0] + r : r * v.stride[0] + c);
  }
};

double dot(const Operand& a, const Operand& b, int64_t row, int64_t col, int64_t depth) {
  double total = 0;
  for (int64_t i = 0; i < depth; i++) total += static_cast<double>(a.get(row, i)) * b.get(i, col);
  return total;
}

const char* matmul(const KernelArgs& k) {
  const Operand a{k.in[0], k.attr[0] != 0}, b{k.in[1], k.attr[1] != 0};
  const View* bias = k.n_in > 2 && present(k.in[2]) ? &k.in[2] : nullptr;
  const View& y = k.out[0];
  const int64_t rows = a.rows(), depth = a.cols(), cols = b.cols();
  parallel_rows(rows * cols, row_grain(depth), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t c = i % cols;
      double v = dot(a, b, i / cols, c, depth);
      if (bias) v += load_element(bias->data, bias->dtype, c);
      store_element(y.data, y.dtype, i, static_cast<float>(v));
    }
  });
  return nullptr;
}

const char* matmul_acc(const KernelArgs& k) {
  const View& c = k.in[0];
  const Operand a{k.in[1], k.attr[0] != 0}, b{k.in[2], k.attr[1] != 0};
  const double alpha = k.attr[2], beta = k.attr[3];
  const int64_t rows = a.rows(), depth = a.cols(), cols = b.cols();
  parallel_rows(rows * cols, row_grain(depth), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t at = i / cols * c.stride[0] + i % cols;
      double v = alpha * dot(a, b, i / cols, i % cols, depth);
      if (beta != 0) v += beta * load_element(c.data, c.dtype, at);  // beta 0 does not read c
      store_element(c.data, c.dtype, at, static_cast<float>(v));
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_matmul[] = {{op_matmul, matmul}, {op_matmul_acc, matmul_acc}};
const int ref_matmul_count = sizeof(ref_matmul) / sizeof(ref_matmul[0]);

}  // namespace llm
