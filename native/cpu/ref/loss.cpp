// Reference kernels: losses over rows of logits. A row with label -100 or weight 0 has no loss and no gradient. -inf logits are
// impossible tokens; a row of nothing else has an infinite loss and a zero gradient.
#include <algorithm>
#include <atomic>

#include "cpu/ref/ref.h"

namespace llm {
namespace {

constexpr int32_t kIgnored = -100;
const char* const kBadLabel = "label outside the vocabulary";
constexpr double kDoubleInf = std::numeric_limits<double>::infinity();

bool valid_labels(const int32_t* labels, int64_t n, int64_t limit) {
  for (int64_t t = 0; t < n; t++)
    if (labels[t] != kIgnored && (labels[t] < 0 || labels[t] >= limit)) return false;
  return true;
}

// log(sum(exp(x / temperature))) over the first `cols` elements of a row; -inf when all are.
double log_sum_exp(const Rows& x, int64_t r, int64_t cols, double temperature) {
  double largest = -kDoubleInf, total = 0;
  for (int64_t c = 0; c < cols; c++) largest = std::max(largest, x.get(r, c) / temperature);
  if (largest == -kDoubleInf) return largest;
  for (int64_t c = 0; c < cols; c++) total += std::exp(x.get(r, c) / temperature - largest);
  return largest + std::log(total);
}

double probability(double logit, double lse) { return logit == -kDoubleInf ? 0.0 : std::exp(logit - lse); }

const char* cross_entropy_rows(const KernelArgs& k, bool in_place) {
  const Rows x = rows_of(k.in[0]);
  const int32_t* labels = data_of<int32_t>(k.in[1]);
  const float* weights = k.n_in > 2 && present(k.in[2]) ? data_of<float>(k.in[2]) : nullptr;
  float* nll = data_of<float>(k.out[0]);
  if (!valid_labels(labels, x.rows, x.cols)) return kBadLabel;
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const double w = weights ? weights[r] : 1.0;
      if (labels[r] == kIgnored || w == 0) {
        nll[r] = 0;
        for (int64_t c = 0; in_place && c < x.cols; c++) x.set(r, c, 0);
        continue;
      }
      const double lse = log_sum_exp(x, r, x.cols, 1), label = x.get(r, labels[r]);
      nll[r] = static_cast<float>(label == -kDoubleInf ? w * kDoubleInf : w * (lse - label));
      for (int64_t c = 0; in_place && c < x.cols; c++) {
        const double p = probability(x.get(r, c), lse);
        x.set(r, c, lse == -kDoubleInf ? 0.0f : static_cast<float>(w * (p - (c == labels[r] ? 1.0 : 0.0))));
      }
    }
  });
  return nullptr;
}

const char* cross_entropy(const KernelArgs& k) { return cross_entropy_rows(k, false); }
const char* cross_entropy_inplace(const KernelArgs& k) { return cross_entropy_rows(k, true); }

// q, p: student and teacher over the vocabulary they share, at temperature T; s: the student over its whole vocabulary at 1.
// Forward KL = sum p log(p / q), d/dz = (q - p) / T. Reverse KL = sum q log(q / p), d/dz = q (log(q / p) - KL) / T.
// kl = w T^2 KL and ce = w CE are returned unblended; the gradient is w (alpha T^2 dKL + (1 - alpha) (s - onehot)).
const char* distill_inplace(const KernelArgs& k) {
  const Rows student = rows_of(k.in[0]), teacher = rows_of(k.in[1]);
  const int32_t* labels = data_of<int32_t>(k.in[2]);
  const float* weights = k.n_in > 3 && present(k.in[3]) ? data_of<float>(k.in[3]) : nullptr;
  const double temperature = k.attr[0], alpha = k.attr[1];
  const bool reverse = k.attr[2] != 0, hard = k.attr[3] != 0;
  float *kl = data_of<float>(k.out[0]), *ce = data_of<float>(k.out[1]);
  const int64_t common = std::min(student.cols, teacher.cols);
  if (!hard && !valid_labels(labels, student.rows, student.cols)) return kBadLabel;
  parallel_rows(student.rows, row_grain(student.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const double w = weights ? weights[r] : 1.0;
      kl[r] = ce[r] = 0;
      if (labels[r] == kIgnored || w == 0) {
        for (int64_t c = 0; c < student.cols; c++) student.set(r, c, 0);
        continue;
      }
      int64_t label = labels[r];
      if (hard) {
        label = 0;
        for (int64_t c = 1; c < common; c++)
          if (teacher.get(r, c) > teacher.get(r, label)) label = c;
      }
      const double lse = log_sum_exp(student, r, student.cols, 1), lse_q = log_sum_exp(student, r, common, temperature);
      const double lse_p = log_sum_exp(teacher, r, common, temperature);
      double divergence = 0;
      for (int64_t c = 0; c < common; c++) {
        const double zs = student.get(r, c) / temperature, zt = teacher.get(r, c) / temperature;
        const double q = probability(zs, lse_q), p = probability(zt, lse_p);
        const double log_ratio = (zt - lse_p) - (zs - lse_q);  // log(p / q)
        if (reverse ? q > 0 : p > 0) divergence += reverse ? -q * log_ratio : p * log_ratio;
      }
      const double label_logit = student.get(r, label);
      kl[r] = static_cast<float>(w * temperature * temperature * divergence);
      ce[r] = static_cast<float>(label_logit == -kDoubleInf ? w * kDoubleInf : w * (lse - label_logit));
      for (int64_t c = 0; c < student.cols; c++) {
        const double z = student.get(r, c), s = probability(z, lse);
        double d = 0;
        if (c < common) {
          const double zs = z / temperature, zt = teacher.get(r, c) / temperature;
          const double q = probability(zs, lse_q), p = probability(zt, lse_p);
          if (!reverse) {
            d = q - p;
          } else if (q > 0) {
            d = q * ((zs - lse_q) - (zt - lse_p) - divergence);
          }
        }
        const double g = w * (alpha * temperature * d + (1 - alpha) * (s - (c == label ? 1.0 : 0.0)));
        student.set(r, c, static_cast<float>(g));
      }
    }
  });
  return nullptr;
}

const char* token_logprobs(const KernelArgs& k) {
  const Rows x = rows_of(k.in[0]);
  const int32_t* ids = data_of<int32_t>(k.in[1]);
  float* logprob = data_of<float>(k.out[0]);
  int32_t* greedy = data_of<int32_t>(k.out[1]);
  if (!valid_labels(ids, x.rows, x.cols)) return "token id outside the vocabulary";
  parallel_rows(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      logprob[r] = 0;
      greedy[r] = 0;
      if (ids[r] == kIgnored) continue;
      int64_t best = 0;
      for (int64_t c = 1; c < x.cols; c++)
        if (x.get(r, c) > x.get(r, best)) best = c;
      const double logit = x.get(r, ids[r]);
      logprob[r] = static_cast<float>(logit == -kDoubleInf ? logit : logit - log_sum_exp(x, r, x.cols, 1));
      greedy[r] = best == ids[r];
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_loss[] = {
    {op_cross_entropy, cross_entropy},
    {op_cross_entropy_inplace, cross_entropy_inplace},
    {op_distill_inplace, distill_inplace},
    {op_token_logprobs, token_logprobs},
};
const int ref_loss_count = sizeof(ref_loss) / sizeof(ref_loss[0]);

}  // namespace llm
