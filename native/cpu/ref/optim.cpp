// Reference kernels: gradient norm and optimizer steps, in PyTorch's order of operations.
#include "cpu/ref/ref.h"

namespace llm {
namespace {

const char* global_norm(const KernelArgs& k) {
  double total = 0;
  for (int i = 0; i < k.n_in; i++) {
    const float* g = data_of<float>(k.in[i]);
    const int64_t n = view_numel(k.in[i]);
    for (int64_t j = 0; j < n; j++) total += static_cast<double>(g[j]) * g[j];
  }
  data_of<float>(k.out[0])[0] = static_cast<float>(std::sqrt(total));
  return nullptr;
}

const char* clip_coefficient(const KernelArgs& k) {
  const double norm = data_of<float>(k.in[0])[0], max_norm = data_of<float>(k.in[1])[0], scale = data_of<float>(k.in[1])[1];
  const double ratio = max_norm / (scale * norm + 1e-6);
  // A norm that is not a number stays one.
  data_of<float>(k.out[0])[0] = static_cast<float>(max_norm == 0 || ratio > 1 ? scale : scale * ratio);
  return nullptr;
}

// Weight decay first: p *= 1 - lr wd. Then m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
// p -= (lr / c1) m / (sqrt(v) / sqrt(c2) + eps), with c1 = 1 - b1^t and c2 = 1 - b2^t.
const char* adamw(const KernelArgs& k) {
  const float* hyper = data_of<float>(k.in[0]);
  const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3], decay = hyper[4];
  const double step = lr / hyper[5], root = std::sqrt(static_cast<double>(hyper[6]));
  const double coefficient = data_of<float>(k.in[1])[0];
  const View& p = k.in[2];
  const float* g = data_of<float>(k.in[3]);
  float *m = data_of<float>(k.in[4]), *v = data_of<float>(k.in[5]);
  float* master = k.n_in > 6 && present(k.in[6]) ? data_of<float>(k.in[6]) : nullptr;
  parallel_rows(view_numel(p), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const double gradient = coefficient * g[i];
      double w = master ? master[i] : load_element(p.data, p.dtype, i);
      w *= 1 - lr * decay;
      m[i] = static_cast<float>(beta1 * m[i] + (1 - beta1) * gradient);
      v[i] = static_cast<float>(beta2 * v[i] + (1 - beta2) * gradient * gradient);
      w -= step * m[i] / (std::sqrt(static_cast<double>(v[i])) / root + eps);
      if (master) master[i] = static_cast<float>(w);
      store_element(p.data, p.dtype, i, static_cast<float>(w));
    }
  });
  return nullptr;
}

// g += wd p; m = momentum m + g (when there is momentum); p -= lr m.
const char* sgd(const KernelArgs& k) {
  const float* hyper = data_of<float>(k.in[0]);
  const double lr = hyper[0], momentum = hyper[1], decay = hyper[2], coefficient = data_of<float>(k.in[1])[0];
  const View& p = k.in[2];
  const float* g = data_of<float>(k.in[3]);
  float* m = k.n_in > 4 && present(k.in[4]) ? data_of<float>(k.in[4]) : nullptr;
  float* master = k.n_in > 5 && present(k.in[5]) ? data_of<float>(k.in[5]) : nullptr;
  parallel_rows(view_numel(p), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      double w = master ? master[i] : load_element(p.data, p.dtype, i);
      double d = coefficient * g[i] + decay * w;
      if (m) {
        m[i] = static_cast<float>(momentum * m[i] + d);
        d = m[i];
      }
      w -= lr * d;
      if (master) master[i] = static_cast<float>(w);
      store_element(p.data, p.dtype, i, static_cast<float>(w));
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_optim[] = {{op_global_norm, global_norm}, {op_clip_coefficient, clip_coefficient}, {op_adamw, adamw}, {op_sgd, sgd}};
const int ref_optim_count = sizeof(ref_optim) / sizeof(ref_optim[0]);

}  // namespace llm
