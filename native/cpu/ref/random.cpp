// Reference kernels: random numbers (core/philox.h) and dropout.
#include "core/philox.h"
#include "cpu/ref/ref.h"

namespace llm {
namespace {

constexpr int64_t kGrain = 4096;  // blocks of four elements

const char* fill_normal(const KernelArgs& k) {
  const View& x = k.in[0];
  const double mean = k.attr[0], deviation = k.attr[1];
  const uint64_t seed = philox_key(k.attr[2]), stream = philox_key(k.attr[3]);
  const int64_t n = view_numel(x);
  parallel_rows((n + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const PhiloxBlock block = philox(seed, static_cast<uint64_t>(b), stream);
      float z[4];
      philox_normal(block.word[0], block.word[1], &z[0], &z[1]);
      philox_normal(block.word[2], block.word[3], &z[2], &z[3]);
      for (int64_t i = 0; i < 4 && 4 * b + i < n; i++)
        store_element(x.data, x.dtype, 4 * b + i, static_cast<float>(mean + deviation * z[i]));
    }
  });
  return nullptr;
}

const char* fill_uniform(const KernelArgs& k) {
  const View& x = k.in[0];
  const float low = static_cast<float>(k.attr[0]), high = static_cast<float>(k.attr[1]);
  const uint64_t seed = philox_key(k.attr[2]), stream = philox_key(k.attr[3]);
  const int64_t n = view_numel(x);
  parallel_rows((n + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const PhiloxBlock block = philox(seed, static_cast<uint64_t>(b), stream);
      for (int64_t i = 0; i < 4 && 4 * b + i < n; i++)
        store_element(x.data, x.dtype, 4 * b + i, low + (high - low) * philox_uniform(block.word[i]));
    }
  });
  return nullptr;
}

const char* dropout(const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const float p = static_cast<float>(k.attr[0]), keep = p < 1 ? 1 / (1 - p) : 0;
  const uint64_t seed = philox_key(k.attr[1]), stream = philox_key(k.attr[2]);
  const int64_t n = view_numel(x);
  parallel_rows((n + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const PhiloxBlock block = philox(seed, static_cast<uint64_t>(b), stream);
      for (int64_t i = 0; i < 4 && 4 * b + i < n; i++) {
        const float v = load_element(x.data, x.dtype, 4 * b + i);
        store_element(y.data, y.dtype, 4 * b + i, philox_uniform(block.word[i]) >= p ? v * keep : 0.0f);
      }
    }
  });
  return nullptr;
}

}  // namespace

const KernelEntry ref_random[] = {{op_fill_normal, fill_normal}, {op_fill_uniform, fill_uniform}, {op_dropout, dropout}};
const int ref_random_count = sizeof(ref_random) / sizeof(ref_random[0]);

}  // namespace llm
