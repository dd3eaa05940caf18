// Reference kernels: attention over packed sequences, and its gradient. Letters: T tokens, H query heads, K key/value heads, D width.
#include "cpu/ref/attention.h"

#include <algorithm>

namespace llm {
namespace {

// x[t, h, d] with strided tokens.
struct Heads {
  const View& v;
  float get(int64_t t, int64_t h, int64_t d) const { return load_element(v.data, v.dtype, t * v.stride[0] + h * v.shape[2] + d); }
};

const char* attention(const KernelArgs& k) {
  const Heads q{k.in[0]}, key{k.in[1]}, value{k.in[2]};
  const int32_t *cu_q = data_of<int32_t>(k.in[3]), *cu_k = data_of<int32_t>(k.in[4]);
  const int64_t sequences = k.in[3].shape[0] - 1, tokens = q.v.shape[0], heads = q.v.shape[1], width = q.v.shape[2];
  const int64_t group = heads / key.v.shape[1];
  if (!valid_boundaries(cu_q, sequences, tokens) || !valid_boundaries(cu_k, sequences, key.v.shape[0])) return kBadBoundaries;
  const double scale = k.attr[0];
  const bool causal = k.attr[1] != 0;
  const int64_t window = static_cast<int64_t>(k.attr[2]);
  const View& o = k.out[0];
  float* lse = data_of<float>(k.out[1]);
  parallel_rows(tokens, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scores, row;
    for (int64_t t = begin; t < end; t++) {
      const int64_t b = sequence_of(cu_q, sequences, t);
      int64_t first = 0, last = 0;
      if (b >= 0) {
        const int64_t keys = cu_k[b + 1] - cu_k[b];
        visible_keys(t - cu_q[b] + keys - (cu_q[b + 1] - cu_q[b]), keys, causal, window, first, last);
      }
      const int64_t base = b < 0 ? 0 : cu_k[b];
      for (int64_t h = 0; h < heads; h++) {
        const double l = attend([&](int64_t d) { return q.get(t, h, d); },
                                [&](int64_t j, int64_t d) { return key.get(base + j, h / group, d); },
                                [&](int64_t j, int64_t d) { return value.get(base + j, h / group, d); }, first, last, width, scale,
                                scores, row);
        lse[h * tokens + t] = static_cast<float>(l);
        for (int64_t d = 0; d < width; d++)
          store_element(o.data, o.dtype, (t * heads + h) * width + d, static_cast<float>(row[static_cast<size_t>(d)]));
      }
    }
  });
  return nullptr;
}

void zero(const View& v) {
  const size_t bytes = static_cast<size_t>(view_numel(v)) * dtype_bytes(v.dtype);
  if (bytes != 0) std::memset(v.data, 0, bytes);
}

// With p = exp(scale q.k - lse) and delta = do.o: dv = sum p do, ds = p (do.v - delta) scale, dq = sum ds k, dk = sum ds q.
const char* attention_bwd(const KernelArgs& k) {
  const Heads grad{k.in[0]}, q{k.in[1]}, key{k.in[2]}, value{k.in[3]}, o{k.in[4]};
  const float* lse = data_of<float>(k.in[5]);
  const int32_t *cu_q = data_of<int32_t>(k.in[6]), *cu_k = data_of<int32_t>(k.in[7]);
  const int64_t sequences = k.in[6].shape[0] - 1, tokens = q.v.shape[0], heads = q.v.shape[1], width = q.v.shape[2];
  const int64_t key_heads = key.v.shape[1], group = heads / key_heads;
  if (!valid_boundaries(cu_q, sequences, tokens) || !valid_boundaries(cu_k, sequences, key.v.shape[0])) return kBadBoundaries;
  const double scale = k.attr[0];
  const bool causal = k.attr[1] != 0;
  const int64_t window = static_cast<int64_t>(k.attr[2]);
  const View &dq = k.out[0], &dk = k.out[1], &dv = k.out[2];
  zero(dq);
  zero(dk);
  zero(dv);
  parallel_rows(sequences * key_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> row, key_sum, value_sum;
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / key_heads, kh = task % key_heads;
      const int64_t queries = cu_q[b + 1] - cu_q[b], keys = cu_k[b + 1] - cu_k[b];
      row.resize(static_cast<size_t>(width));
      key_sum.assign(static_cast<size_t>(keys * width), 0.0);
      value_sum.assign(static_cast<size_t>(keys * width), 0.0);
      for (int64_t i = 0; i < queries; i++) {
        const int64_t t = cu_q[b] + i;
        int64_t first, last;
        visible_keys(i + keys - queries, keys, causal, window, first, last);
        for (int64_t h = kh * group; h < (kh + 1) * group; h++) {
          double delta = 0;
          for (int64_t d = 0; d < width; d++) delta += static_cast<double>(grad.get(t, h, d)) * o.get(t, h, d);
          std::fill(row.begin(), row.end(), 0.0);
          for (int64_t j = first; j < last; j++) {
            double s = 0, dp = 0;
            for (int64_t d = 0; d < width; d++) {
              s += static_cast<double>(q.get(t, h, d)) * key.get(cu_k[b] + j, kh, d);
              dp += static_cast<double>(grad.get(t, h, d)) * value.get(cu_k[b] + j, kh, d);
            }
            const double p = std::exp(s * scale - lse[h * tokens + t]), ds = p * (dp - delta) * scale;
            for (int64_t d = 0; d < width; d++) {
              const size_t at = static_cast<size_t>(j * width + d);
              value_sum[at] += p * grad.get(t, h, d);
              key_sum[at] += ds * q.get(t, h, d);
              row[static_cast<size_t>(d)] += ds * key.get(cu_k[b] + j, kh, d);
            }
          }
          for (int64_t d = 0; d < width; d++)
            store_element(dq.data, dq.dtype, (t * heads + h) * width + d, static_cast<float>(row[static_cast<size_t>(d)]));
        }
      }
      for (int64_t j = 0; j < keys; j++)
        for (int64_t d = 0; d < width; d++) {
          const int64_t at = ((cu_k[b] + j) * key_heads + kh) * width + d;
          store_element(dk.data, dk.dtype, at, static_cast<float>(key_sum[static_cast<size_t>(j * width + d)]));
          store_element(dv.data, dv.dtype, at, static_cast<float>(value_sum[static_cast<size_t>(j * width + d)]));
        }
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_attention[] = {{op_attention, attention}, {op_attention_bwd, attention_bwd}};
const int ref_attention_count = sizeof(ref_attention) / sizeof(ref_attention[0]);

}  // namespace llm
