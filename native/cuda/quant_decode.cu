// The inverses of the quantizers: codes of a weight back to f32, bf16 or f16, the product rounded to f32 and then to the result.
//
// Groups of a power of two values that divide the rows: a thread turns the codes of 16 bytes of result at a time, four such pieces in
// flight, so that every load and store of a warp is one contiguous stretch. Any other groups: a thread an element.
#include <bit>

#include "cpu/nf4.h"
#include "cuda/quant.h"

namespace llm::cuda {
namespace {

// A scheme: the code of element i in a word, and the value of a code in group g.
struct W4Codes {
  static constexpr int kBits = 4;
  const float* scales;
  const uint8_t* zeros;
  struct Group {
    float scale;
    int zero;
  };
  struct Memory {};
  __device__ Memory setup() const { return {}; }
  __device__ Group group(int64_t g) const { return Group{__ldg(scales + g), __ldg(zeros + g)}; }
  __device__ static int place(int i) { return 4 * i; }
  __device__ float value(uint32_t code, const Group& g, Memory) const { return static_cast<float>(static_cast<int>(code & 15) - g.zero) * g.scale; }
};

struct Q8Codes {
  static constexpr int kBits = 8;
  const float* scales;
  struct Group {
    float scale;
  };
  struct Memory {};
  __device__ Memory setup() const { return {}; }
  __device__ Group group(int64_t g) const { return Group{__ldg(scales + g)}; }
  __device__ static int place(int i) { return 8 * i; }
  __device__ float value(uint32_t code, const Group& g, Memory) const { return static_cast<float>(static_cast<int8_t>(code & 255)) * g.scale; }
};

struct Nf4Table {
  float v[16];
};
struct Nf4Codes {
  static constexpr int kBits = 4;
  const float* absmax;
  Nf4Table table;
  struct Group {
    float absmax;
  };
  using Memory = const float*;  // the table in shared memory: 16 banks, no conflicts
  __device__ Memory setup() const {
    __shared__ float shared[16];
    if (threadIdx.x < 16) shared[threadIdx.x] = table.v[threadIdx.x];
    __syncthreads();
    return shared;
  }
  __device__ Group group(int64_t g) const { return Group{__ldg(absmax + g)}; }
  __device__ static int place(int i) { return 4 * (i ^ 1); }
  __device__ float value(uint32_t code, const Group& g, Memory values) const { return values[code & 15] * g.absmax; }
};

constexpr int kThreads = 256, kInFlight = 4;

template <int bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};

template <class T, class Codes>
__global__ void __launch_bounds__(kThreads) decode_groups(const void* q, int64_t pieces, int log_group, const __grid_constant__ Codes codes, T* y) {
  const typename Codes::Memory memory = codes.setup();
  constexpr int kPer = Pack<T>::n;
  constexpr int kLogPer = kPer == 8 ? 3 : 2;
  using Word = typename WordOf<kPer * Codes::kBits / 8>::type;
  const Word* words = static_cast<const Word*>(q);
  const int shift = log_group - kLogPer;  // pieces of a group
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kInFlight;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x; first < pieces; first += step) {
    Word word[kInFlight];
    typename Codes::Group group[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t i = first + u * kThreads;
      if (i >= pieces) continue;
      word[u] = __ldcs(words + i);
      group[u] = codes.group(i >> shift);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t i = first + u * kThreads;
      if (i >= pieces) continue;
      Pack<T> out;
#pragma unroll
      for (int j = 0; j < kPer; j++) out.v[j] = from_float<T>(codes.value(static_cast<uint32_t>(word[u] >> Codes::place(j)), group[u], memory));
      store_pack(y + i * kPer, out);
    }
  }
}

// `bytes`: those that q has; elements beyond them (an odd number of NF4 values) become 0.
template <class T, class Codes>
__global__ void __launch_bounds__(kThreads) decode_elements(const uint8_t* q, int64_t bytes, int64_t n, int64_t cols, int64_t group, int64_t groups,
                                                            const __grid_constant__ Codes codes, T* y) {
  const typename Codes::Memory memory = codes.setup();
  constexpr int kPerByte = 8 / Codes::kBits;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t r = i / cols, c = i - r * cols, b = i / kPerByte;
    float v = 0;
    if (b < bytes) v = codes.value(static_cast<uint32_t>(q[b]) >> Codes::place(static_cast<int>(i % kPerByte)), codes.group(r * groups + c / group), memory);
    y[i] = from_float<T>(v);
  }
}

template <class Codes>
const char* decode(Context& ctx, const View& q, const View& y, int64_t rows, int64_t cols, int64_t group, Codes codes) {
  const int64_t n = rows * cols, groups = ceil_div(cols, group);
  if (n == 0) return nullptr;
  return dispatch(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* to = data_of<T>(y);
    if (group >= 8 && std::has_single_bit(static_cast<uint64_t>(group)) && cols % group == 0 && aligned16(q.data) && aligned16(to)) {
      const int64_t pieces = n / Pack<T>::n;
      decode_groups<<<grid_for(ctx, pieces, kThreads * kInFlight), kThreads, 0, ctx.stream>>>(
          static_cast<const void*>(q.data), pieces, std::countr_zero(static_cast<uint64_t>(group)), codes, to);
    } else {
      decode_elements<<<grid_for(ctx, n, kThreads), kThreads, 0, ctx.stream>>>(data_of<uint8_t>(q), view_numel(q), n, cols, group, groups, codes, to);
    }
    return launched();
  });
}

}  // namespace

const char* dequantize_w4(Context& ctx, const KernelArgs& k) {
  const View& y = k.out[0];
  return decode(ctx, k.in[0], y, y.shape[0], y.shape[1], static_cast<int64_t>(k.attr[0]),
                W4Codes{data_of<float>(k.in[1]), data_of<uint8_t>(k.in[2])});
}
const char* dequantize_q8(Context& ctx, const KernelArgs& k) {
  const View& y = k.out[0];
  return decode(ctx, k.in[0], y, y.shape[0], y.shape[1], static_cast<int64_t>(k.attr[0]), Q8Codes{data_of<float>(k.in[1])});
}
const char* dequantize_nf4(Context& ctx, const KernelArgs& k) {
  const View& y = k.out[0];
  Nf4Codes codes{data_of<float>(k.in[1]), {}};
  for (int i = 0; i < 16; i++) codes.table.v[i] = kNf4Table[i];
  return decode(ctx, k.in[0], y, 1, view_numel(y), static_cast<int64_t>(k.attr[0]), codes);
}

}  // namespace llm::cuda
