// Random numbers and dropout: element i of stream (seed, stream) is word i % 4 of Philox block i / 4 (core/philox.h), so the result
// does not depend on the launch and is that of the CPU. Arithmetic is rounded as there: no contraction that the CPU has not.
#include "core/philox.h"
#include "cuda/tables.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

struct Key {
  uint64_t seed, stream;
};
Key key_of(double seed, double stream) { return Key{philox_key(seed), philox_key(stream)}; }

// Words of elements i … i + V - 1; V = 1 or i a multiple of 4.
template <int V>
__device__ inline void words(const Key& key, int64_t i, uint32_t (&w)[V]) {
  const uint64_t block = static_cast<uint64_t>(i) >> 2;
  if constexpr (V == 1) {
    const PhiloxBlock b = philox(key.seed, block, key.stream);
    const int at = static_cast<int>(i & 3);
    w[0] = at < 2 ? (at == 0 ? b.word[0] : b.word[1]) : (at == 2 ? b.word[2] : b.word[3]);
  } else {
#pragma unroll
    for (int j = 0; j < V / 4; j++) {
      const PhiloxBlock b = philox(key.seed, block + static_cast<uint64_t>(j), key.stream);
#pragma unroll
      for (int l = 0; l < 4; l++) w[4 * j + l] = b.word[l];
    }
  }
}

template <class T>
struct Uniform {
  Key key;
  T* x;
  float low, width;
  template <int V>
  struct Registers {};
  template <int V>
  __device__ void load(int64_t, Registers<V>&) const {}
  template <int V>
  __device__ void store(int64_t i, Registers<V>&) const {
    uint32_t w[V];
    words(key, i, w);
    float v[V];
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = fmaf(width, philox_uniform(w[j]), low);
    store_floats(x + i, v);
  }
};

template <class T>
struct Normal {
  Key key;
  T* x;
  double mean, deviation;
  template <int V>
  struct Registers {};
  template <int V>
  __device__ void load(int64_t, Registers<V>&) const {}
  template <int V>
  __device__ void store(int64_t i, Registers<V>&) const {
    float v[V];
    if constexpr (V == 1) {
      const PhiloxBlock b = philox(key.seed, static_cast<uint64_t>(i) >> 2, key.stream);
      const bool second = (i & 2) != 0;
      float even, odd;
      philox_normal(second ? b.word[2] : b.word[0], second ? b.word[3] : b.word[1], &even, &odd);
      v[0] = (i & 1) != 0 ? odd : even;
    } else {
      uint32_t w[V];
      words(key, i, w);
#pragma unroll
      for (int j = 0; j < V; j += 2) philox_normal(w[j], w[j + 1], &v[j], &v[j + 1]);
    }
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = static_cast<float>(__dadd_rn(mean, __dmul_rn(deviation, v[j])));
    store_floats(x + i, v);
  }
};

template <class T>
struct Dropout {
  Key key;
  const T* x;
  T* y;
  uint32_t first;  // of the words >> 8 that are kept: uniform >= p
  float scale;
  template <int V>
  struct Registers {
    float x[V];
  };
  template <int V>
  __device__ void load(int64_t i, Registers<V>& r) const {
    load_floats(x + i, r.x);
  }
  template <int V>
  __device__ void store(int64_t i, Registers<V>& r) const {
    uint32_t w[V];
    words(key, i, w);
#pragma unroll
    for (int j = 0; j < V; j++) r.x[j] = w[j] >> 8 >= first ? r.x[j] * scale : 0.f;
    store_floats(y + i, r.x);
  }
};

const char* fill_normal(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    return each<4, 1>(ctx, view_numel(x), aligned16(x.data), Normal<T>{key_of(k.attr[2], k.attr[3]), data_of<T>(x), k.attr[0], k.attr[1]});
  });
}

const char* fill_uniform(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  const float low = static_cast<float>(k.attr[0]), high = static_cast<float>(k.attr[1]);
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    return each<kWidth<T>, 1>(ctx, view_numel(x), aligned16(x.data), Uniform<T>{key_of(k.attr[2], k.attr[3]), data_of<T>(x), low, high - low});
  });
}

const char* dropout(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const float p = static_cast<float>(k.attr[0]), scale = p < 1 ? 1 / (1 - p) : 0;
  const auto first = static_cast<uint32_t>(std::ceil(static_cast<double>(p) * 0x1p24));
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    return each<kWidth<T>>(ctx, view_numel(x), aligned16(x.data) && aligned16(y.data),
                           Dropout<T>{key_of(k.attr[1], k.attr[2]), data_of<T>(x), data_of<T>(y), first, scale});
  });
}

}  // namespace

const CudaEntry cuda_random[] = {{op_fill_normal, fill_normal}, {op_fill_uniform, fill_uniform}, {op_dropout, dropout}};
const int cuda_random_count = sizeof(cuda_random) / sizeof(cuda_random[0]);

}  // namespace llm::cuda
