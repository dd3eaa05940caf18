// Quantizers: W4, Q8 and NF4 codes of a float weight, group by group, to the bit as on the CPU.
//
// Groups of a power of two up to 256 values that divide the rows: eight values a thread, a group's extremes by shuffles, everything read
// and written once. Any other groups: a warp a group finds scale and zero, then a thread a byte writes the codes.
#include <bit>

#include "cpu/nf4.h"
#include "cuda/quant.h"

namespace llm::cuda {
namespace {

struct Range {
  float low = INFINITY, high = -INFINITY, absmax = 0;
  __device__ void add(float x) {
    low = fminf(low, x);
    high = fmaxf(high, x);
    absmax = fmaxf(absmax, fabsf(x));
  }
  // With the lane whose number differs by `o`. Without `extremes` only absmax counts.
  template <bool extremes>
  __device__ void merge(int o) {
    absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, o));
    if (!extremes) return;
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, o));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, o));
  }
};

// A scheme: what a group keeps, a value's code, and where the code of element i of a word goes.
struct W4Scheme {
  static constexpr int kBits = 4;
  static constexpr bool kExtremes = true;
  using Word = uint32_t;
  using Group = W4Quantizer;
  bool symmetric;
  struct Memory {};
  __device__ Memory setup() const { return {}; }
  __device__ Group group(const Range& r) const {
    return symmetric ? Group::of(r.absmax == 0 ? 1e-5f : __fdiv_rn(r.absmax, 7.f), 8.f) : Group::between(r.low, r.high);
  }
  __device__ Word code(float x, const Group& g, Memory) const { return static_cast<Word>(g.code(x)); }
  __device__ static int place(int i) { return 4 * i; }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t* zeros) {
    scales[i] = g.scale;
    zeros[i] = static_cast<uint8_t>(g.zero);
  }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t* zeros) { return Group::of(scales[i], static_cast<float>(zeros[i])); }
};

struct Q8Scheme {
  static constexpr int kBits = 8;
  static constexpr bool kExtremes = false;
  using Word = uint64_t;
  struct Group {
    float scale, inverse;
  };
  struct Memory {};
  __device__ Memory setup() const { return {}; }
  __device__ Group group(const Range& r) const { return of(r.absmax == 0 ? 1e-5f : __fdiv_rn(r.absmax, 127.f)); }
  __device__ static Group of(float scale) { return Group{scale, __frcp_rn(scale)}; }
  __device__ Word code(float x, const Group& g, Memory) const {
    const float q = fmaxf(-127.f, fminf(127.f, nearest_multiple(x, g.scale, g.inverse)));
    return static_cast<Word>(static_cast<uint8_t>(static_cast<int8_t>(q)));
  }
  __device__ static int place(int i) { return 8 * i; }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t*) { scales[i] = g.scale; }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t*) { return of(scales[i]); }
};

// A code is the number of thresholds below x / absmax. [-1, 1] is cut into 29 cells, rint(14.4 x) = -14 .. 14, with at most one threshold in
// each: a cell knows the code at its low end and its threshold. Cell 31 is where the bits of a NaN lead: code 0, as the comparisons say.
constexpr float kNf4CellsPerUnit = 14.4f;
struct Nf4Cells {
  float threshold[32];
  int base[32];
};
Nf4Cells nf4_cells() {
  Nf4Cells cells;
  for (int i = 0; i < 32; i++) {
    const float low = (static_cast<float>(i) - 16.5f) / kNf4CellsPerUnit, high = (static_cast<float>(i) - 15.5f) / kNf4CellsPerUnit;
    const int base = i == 31 ? 0 : nf4_code(low);
    cells.base[i] = base;
    cells.threshold[i] = i < 31 && base < 15 && nf4_threshold(base) < high ? nf4_threshold(base) : INFINITY;
  }
  return cells;
}

struct Nf4Scheme {
  static constexpr int kBits = 4;
  static constexpr bool kExtremes = false;
  using Word = uint32_t;
  struct Group {
    float absmax, inverse;
  };
  Nf4Cells cells;
  using Memory = const Nf4Cells*;  // the cells in shared memory: 32 banks, no conflicts
  __device__ Memory setup() const {
    __shared__ Nf4Cells shared;
    if (threadIdx.x < 32) {
      shared.threshold[threadIdx.x] = cells.threshold[threadIdx.x];
      shared.base[threadIdx.x] = cells.base[threadIdx.x];
    }
    __syncthreads();
    return &shared;
  }
  __device__ Group group(const Range& r) const { return Group{r.absmax, __frcp_rn(r.absmax)}; }
  __device__ Word code(float x, const Group& g, Memory m) const {
    if (g.inverse == INFINITY) return x > 0 ? 15 : 0;  // absmax 0 or too small to invert
    const float scaled = x * g.inverse;
    const int cell = __float_as_int(fmaf(scaled, kNf4CellsPerUnit, 8388608.f + 16.f)) & 31;
    return static_cast<Word>(m->base[cell] + (scaled > m->threshold[cell]));
  }
  __device__ static int place(int i) { return 4 * (i ^ 1); }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t*) { scales[i] = g.absmax; }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t*) { return Group{scales[i], __frcp_rn(scales[i])}; }
};

constexpr int kThreads = 256, kInFlight = 2;

// Groups of 8 * lanes values; a group is `lanes` neighbouring lanes.
template <class T, class Scheme>
__global__ void __launch_bounds__(kThreads) encode_groups(const T* x, int64_t eights, int lanes, const __grid_constant__ Scheme scheme, typename Scheme::Word* q,
                                                          float* scales, uint8_t* zeros) {
  const typename Scheme::Memory memory = scheme.setup();
  const int lane = threadIdx.x & 31, log_lanes = __ffs(lanes) - 1;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> 5, warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t first = warp * 32 * kInFlight; first < eights; first += warps * 32 * kInFlight) {
    Pack<T> packs[kInFlight][8 / Pack<T>::n];
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t i = first + u * 32 + lane;
#pragma unroll
      for (int p = 0; p < 8 / Pack<T>::n; p++)
        if (i < eights) packs[u][p] = load_pack(x + i * 8 + p * Pack<T>::n);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t i = first + u * 32 + lane;
      float v[8];
      Range range;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        v[j] = i < eights ? to_float(packs[u][j / Pack<T>::n].v[j % Pack<T>::n]) : 0.f;
        range.add(v[j]);
      }
      for (int o = lanes >> 1; o > 0; o >>= 1) range.merge<Scheme::kExtremes>(o);
      const typename Scheme::Group group = scheme.group(range);
      typename Scheme::Word word = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) word |= scheme.code(v[j], group, memory) << Scheme::place(j);
      if (i >= eights) continue;
      q[i] = word;
      if ((lane & (lanes - 1)) == 0) Scheme::keep(group, i >> log_lanes, scales, zeros);
    }
  }
}

// Any groups along rows of `cols` values: a warp a group.
template <class T, class Scheme>
__global__ void __launch_bounds__(kThreads) group_ranges(const T* x, int64_t rows, int64_t cols, int64_t group, int64_t groups,
                                                         const __grid_constant__ Scheme scheme,
                                                         float* scales, uint8_t* zeros) {
  const int lane = threadIdx.x & 31;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> 5, warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t i = warp; i < rows * groups; i += warps) {
    const int64_t first = i % groups * group, left = cols - first, count = left < group ? left : group;
    const T* from = x + i / groups * cols + first;
    Range range;
    for (int64_t c = lane; c < count; c += 32) range.add(to_float(from[c]));
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) range.merge<Scheme::kExtremes>(o);
    if (lane == 0) Scheme::keep(scheme.group(range), i, scales, zeros);
  }
}

// … and a thread a byte; rows are whole bytes.
template <class T, class Scheme>
__global__ void __launch_bounds__(kThreads) encode_bytes(const T* x, int64_t bytes, int64_t cols, int64_t group, int64_t groups,
                                                         const __grid_constant__ Scheme scheme,
                                                         uint8_t* q, const float* scales, const uint8_t* zeros) {
  const typename Scheme::Memory memory = scheme.setup();
  constexpr int kPerByte = 8 / Scheme::kBits;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < bytes; b += static_cast<int64_t>(gridDim.x) * kThreads) {
    typename Scheme::Word word = 0;
#pragma unroll
    for (int j = 0; j < kPerByte; j++) {
      const int64_t i = b * kPerByte + j, r = i / cols, c = i - r * cols;
      word |= scheme.code(to_float(x[i]), Scheme::kept(r * groups + c / group, scales, zeros), memory) << Scheme::place(j);
    }
    q[b] = static_cast<uint8_t>(word);
  }
}

template <class Scheme>
const char* encode(Context& ctx, const View& x, int64_t rows, int64_t cols, int64_t group, Scheme scheme, void* q, float* scales, uint8_t* zeros) {
  const int64_t n = rows * cols, groups = ceil_div(cols, group);
  if (n == 0) return nullptr;
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* from = data_of<T>(x);
    if (group >= 8 && group <= 256 && std::has_single_bit(static_cast<uint64_t>(group)) && cols % group == 0 && aligned16(from) && aligned16(q)) {
      encode_groups<<<grid_for(ctx, n / 8, kThreads * kInFlight), kThreads, 0, ctx.stream>>>(
          from, n / 8, static_cast<int>(group / 8), scheme, static_cast<typename Scheme::Word*>(q), scales, zeros);
      return launched();
    }
    group_ranges<<<grid_for(ctx, rows * groups, kThreads / 32), kThreads, 0, ctx.stream>>>(from, rows, cols, group, groups, scheme, scales, zeros);
    if (const char* error = launched()) return error;
    const int64_t bytes = n * Scheme::kBits / 8;
    encode_bytes<<<grid_for(ctx, bytes, kThreads), kThreads, 0, ctx.stream>>>(from, bytes, cols, group, groups, scheme, static_cast<uint8_t*>(q),
                                                                              scales, zeros);
    return launched();
  });
}

}  // namespace

const char* quantize_w4(Context& ctx, const KernelArgs& k) {
  return encode(ctx, k.in[0], k.in[0].shape[0], k.in[0].shape[1], static_cast<int64_t>(k.attr[0]), W4Scheme{k.attr[1] != 0}, k.out[0].data,
                data_of<float>(k.out[1]), data_of<uint8_t>(k.out[2]));
}
const char* quantize_q8(Context& ctx, const KernelArgs& k) {
  return encode(ctx, k.in[0], k.in[0].shape[0], k.in[0].shape[1], static_cast<int64_t>(k.attr[0]), Q8Scheme{}, k.out[0].data,
                data_of<float>(k.out[1]), nullptr);
}
const char* quantize_nf4(Context& ctx, const KernelArgs& k) {
  static const Nf4Cells cells = nf4_cells();
  return encode(ctx, k.in[0], 1, view_numel(k.in[0]), static_cast<int64_t>(k.attr[0]), Nf4Scheme{cells}, k.out[0].data,
                data_of<float>(k.out[1]), nullptr);
}

}  // namespace llm::cuda
