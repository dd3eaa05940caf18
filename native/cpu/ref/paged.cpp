// Reference kernels: the paged key/value cache [blocks, block, K, D].
// An i8 cache holds, per token and head, code = rint((x - minimum) / scale) - 128 with scale = (max - min) / 255, and
// x ~ (code + 128) * scale + minimum.
#include <algorithm>

#include "cpu/ref/attention.h"

namespace llm {
namespace {

struct Cache {
  const View& v;
  const float* scales;  // null unless i8
  // `vector` counts (block, offset, head); element d of it
  float get(int64_t vector, int64_t d) const {
    const float x = load_element(v.data, v.dtype, vector * v.shape[3] + d);
    return scales ? (x + 128.0f) * scales[2 * vector] + scales[2 * vector + 1] : x;
  }
};

const char* kv_append(const KernelArgs& k) {
  const View &cache = k.in[0], &x = k.in[2];
  const int32_t* slots = data_of<int32_t>(k.in[3]);
  const int64_t tokens = x.shape[0], heads = x.shape[1], width = x.shape[2], limit = cache.shape[0] * cache.shape[1];
  for (int64_t t = 0; t < tokens; t++)
    if (slots[t] >= limit) return "slot outside the cache";
  float* scales = cache.dtype == DType::i8 ? data_of<float>(k.in[1]) : nullptr;
  for (int64_t t = 0; t < tokens; t++) {
    if (slots[t] < 0) continue;
    for (int64_t h = 0; h < heads; h++) {
      const int64_t from = t * x.stride[0] + h * width, vector = slots[t] * heads + h;
      if (!scales) {
        for (int64_t d = 0; d < width; d++)
          store_element(cache.data, cache.dtype, vector * width + d, load_element(x.data, x.dtype, from + d));
        continue;
      }
      float low = kInf, high = -kInf;
      for (int64_t d = 0; d < width; d++) {
        low = std::min(low, load_element(x.data, x.dtype, from + d));
        high = std::max(high, load_element(x.data, x.dtype, from + d));
      }
      const float scale = (high - low) / 255.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
      scales[2 * vector] = scale;
      scales[2 * vector + 1] = low;
      for (int64_t d = 0; d < width; d++) {
        const float code = std::nearbyint((load_element(x.data, x.dtype, from + d) - low) * inverse) - 128.0f;
        reinterpret_cast<int8_t*>(cache.data)[vector * width + d] = static_cast<int8_t>(std::max(-128.0f, std::min(127.0f, code)));
      }
    }
  }
  return nullptr;
}

const char* paged_attention(const KernelArgs& k) {
  const View &q = k.in[0], &o = k.out[0], &table = k.in[5];
  const bool quantized = k.in[1].dtype == DType::i8;
  const Cache key{k.in[1], quantized ? data_of<float>(k.in[3]) : nullptr};
  const Cache value{k.in[2], quantized ? data_of<float>(k.in[4]) : nullptr};
  const int32_t *blocks = data_of<int32_t>(table), *cu_q = data_of<int32_t>(k.in[6]), *lengths = data_of<int32_t>(k.in[7]);
  const int64_t sequences = table.shape[0], columns = table.shape[1], tokens = q.shape[0], heads = q.shape[1], width = q.shape[2];
  const int64_t block = key.v.shape[1], key_heads = key.v.shape[2], group = heads / key_heads;
  const double scale = k.attr[0];
  const int64_t window = static_cast<int64_t>(k.attr[1]);
  if (!valid_boundaries(cu_q, sequences, tokens)) return kBadBoundaries;
  for (int64_t b = 0; b < sequences; b++) {
    const int64_t queries = cu_q[b + 1] - cu_q[b], keys = lengths[b];
    if (queries == 0 || keys <= 0) continue;
    if (keys > columns * block) return "kv length beyond the block table";
    int64_t first, last;
    visible_keys(keys - queries, keys, true, window, first, last);
    for (int64_t j = first / block; j * block < keys; j++)
      if (blocks[b * columns + j] < 0 || blocks[b * columns + j] >= key.v.shape[0]) return "block table entry outside the cache";
  }
  parallel_rows(tokens, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scores, row;
    for (int64_t t = begin; t < end; t++) {
      const int64_t b = sequence_of(cu_q, sequences, t);
      int64_t first = 0, last = 0;
      if (b >= 0) visible_keys(t - cu_q[b] + lengths[b] - (cu_q[b + 1] - cu_q[b]), lengths[b], true, window, first, last);
      const auto vector = [&](int64_t j, int64_t h) { return (blocks[b * columns + j / block] * block + j % block) * key_heads + h; };
      for (int64_t h = 0; h < heads; h++) {
        attend([&](int64_t d) { return load_element(q.data, q.dtype, t * q.stride[0] + h * width + d); },
               [&](int64_t j, int64_t d) { return key.get(vector(j, h / group), d); },
               [&](int64_t j, int64_t d) { return value.get(vector(j, h / group), d); }, first, last, width, scale, scores, row);
        for (int64_t d = 0; d < width; d++)
          store_element(o.data, o.dtype, (t * heads + h) * width + d, static_cast<float>(row[static_cast<size_t>(d)]));
      }
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_paged[] = {{op_kv_append, kv_append}, {op_paged_attention, paged_attention}};
const int ref_paged_count = sizeof(ref_paged) / sizeof(ref_paged[0]);

}  // namespace llm
