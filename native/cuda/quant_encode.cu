// Quantizers: W4, Q8 and NF4 codes of a float weight, group by group, to the bit as on the CPU.
//
// Groups of a power of two up to 256 values that divide the rows: eight values a thread, a group's extremes by shuffles, everything read
// and written once. Any other groups: a warp a group finds scale and zero, then a thread a byte writes the codes.
#include <bit>

#include "cpu/nf4.h"
#include "cuda/quant.h"

namespace llm::cuda {
namespace {

// The extremes of a group, of which lanes of a warp have parts.
struct Extremes {
  float low = INFINITY, high = -INFINITY;
  __device__ void add(float x) {
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  __device__ void merge(int o) {  // with the lane whose number differs by `o`
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, o));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, o));
  }
  __device__ float absmax() const { return low <= high ? fmaxf(fabsf(low), fabsf(high)) : 0.f; }
};
struct Largest {
  float absmax = 0;
  __device__ void add(float x) { absmax = fmaxf(absmax, fabsf(x)); }
  __device__ void merge(int o) { absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, o)); }
};

// A scheme: what it needs to know of a group, what the group keeps, and the word of the codes of some neighbouring values.
struct W4Scheme {
  static constexpr int kBits = 4;
  using Range = Extremes;
  using Group = W4Quantizer;
  using Word = uint32_t;
  struct Memory {};
  bool symmetric;
  __device__ static int place(int i) { return 4 * i; }  // of value i's code in a word
  __device__ Memory setup() const { return {}; }
  __device__ Group group(const Range& r) const {
    if (!symmetric) return Group::between(r.low, r.high);
    const float absmax = r.absmax();
    return Group::of(absmax == 0 ? 1e-5f : __fdiv_rn(absmax, 7.f), 8.f);
  }
  template <int N>
  __device__ Word word(const float (&x)[N], const Group& g, Memory) const {
    bool unsure = !g.multiples.invertible();
    Word w = 0;
#pragma unroll
    for (int i = 0; i < N; i++) w |= (__float_as_uint(g.multiples.shifted(x[i], unsure) + g.zero) & 15) << place(i);
    if (!unsure) return w;
    w = 0;
#pragma unroll
    for (int i = N - 1; i >= 0; i--) w = w << 4 | static_cast<Word>(g.multiples.exactly(x[i]) + g.zero);
    return w;
  }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t* zeros) {
    scales[i] = g.multiples.scale;
    zeros[i] = static_cast<uint8_t>(g.zero);
  }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t* zeros) { return Group::of(scales[i], static_cast<float>(zeros[i])); }
};

struct Q8Scheme {
  static constexpr int kBits = 8;
  using Range = Largest;
  using Group = Multiples<true>;
  using Word = uint64_t;
  struct Memory {};
  __device__ static int place(int i) { return 8 * i; }
  __device__ Memory setup() const { return {}; }
  __device__ static Group of(float scale) { return Group::of(scale, -127.f, 127.f); }
  __device__ Group group(const Range& r) const { return of(r.absmax == 0 ? 1e-5f : __fdiv_rn(r.absmax, 127.f)); }
  template <int N>
  __device__ Word word(const float (&x)[N], const Group& g, Memory) const {
    bool unsure = !g.invertible();
    uint32_t halves[2] = {};
#pragma unroll
    for (int i = 0; i < N; i++) halves[i / 4] |= (__float_as_uint(g.shifted(x[i], unsure)) & 255) << (8 * (i % 4));
    if (!unsure) return static_cast<Word>(halves[1]) << 32 | halves[0];
    Word w = 0;
#pragma unroll
    for (int i = N - 1; i >= 0; i--) w = w << 8 | static_cast<Word>(static_cast<uint8_t>(static_cast<int8_t>(g.exactly(x[i]))));
    return w;
  }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t*) { scales[i] = g.scale; }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t*) { return of(scales[i]); }
};

// A code is the number of thresholds below x / absmax. The line is cut into cells, cell c = floor(12.85 x + 16) with the product rounded to a
// quarter, so that no cell has two thresholds and none is near a cell's ends: a cell knows the code at its low end and its threshold. The
// quarters make c the bits 2 .. 6 of 12.85 x + 16 + 2^21. Cell 31 is where the bits of a NaN lead: code 0, as the comparisons say.
constexpr float kNf4CellsPerUnit = 12.85f, kNf4Shift = 2097152.f + 16.f;
struct Nf4Cells {
  float threshold[32];
  uint32_t base[32];
};
Nf4Cells nf4_cells() {
  Nf4Cells cells;
  for (int i = 0; i < 32; i++) {
    const float low = (static_cast<float>(i) - 16.125f) / kNf4CellsPerUnit, high = (static_cast<float>(i) - 15.125f) / kNf4CellsPerUnit;
    const int base = i == 31 ? 0 : nf4_code(low);
    cells.base[i] = static_cast<uint32_t>(base);
    cells.threshold[i] = i < 31 && base < 15 && nf4_threshold(base) < high ? nf4_threshold(base) : INFINITY;
  }
  return cells;
}

struct Nf4Scheme {
  static constexpr int kBits = 4;
  using Range = Largest;
  using Word = uint32_t;
  struct Group {
    float absmax, inverse;
  };
  Nf4Cells cells;
  __device__ static int place(int i) { return 4 * (i ^ 1); }
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
  __device__ static Group of(float absmax) { return Group{absmax, __frcp_rn(absmax)}; }
  __device__ Group group(const Range& r) const { return of(r.absmax); }
  template <int N>
  __device__ Word word(const float (&x)[N], const Group& g, Memory m) const {
    Word w = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float scaled = x[i] * g.inverse;
      const uint32_t cell = __float_as_uint(fmaf(scaled, kNf4CellsPerUnit, kNf4Shift)) >> 2 & 31;
      w += m->base[cell] << place(i);
      if (scaled > m->threshold[cell]) w += 1u << place(i);
    }
    if (g.inverse < INFINITY) return w;
    w = 0;  // absmax is 0 or too small to invert: x / absmax is a NaN or infinite
#pragma unroll
    for (int i = 0; i < N; i++) w |= (x[i] > 0 ? 15u : 0u) << place(i);
    return w;
  }
  __device__ static void keep(const Group& g, int64_t i, float* scales, uint8_t*) { scales[i] = g.absmax; }
  __device__ static Group kept(int64_t i, const float* scales, const uint8_t*) { return of(scales[i]); }
};

constexpr int kThreads = 256, kInFlight = 2;

// Groups of 8 * lanes values; a group is `lanes` neighbouring lanes.
template <class T, class Scheme>
__global__ void __launch_bounds__(kThreads, 4) encode_groups(const T* x, int64_t eights, int lanes, const __grid_constant__ Scheme scheme, typename Scheme::Word* q,
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
      typename Scheme::Range range;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        v[j] = i < eights ? to_float(packs[u][j / Pack<T>::n].v[j % Pack<T>::n]) : 0.f;
        range.add(v[j]);
      }
      for (int o = lanes >> 1; o > 0; o >>= 1) range.merge(o);
      const typename Scheme::Group group = scheme.group(range);
      const typename Scheme::Word word = scheme.word(v, group, memory);
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
    typename Scheme::Range range;
    for (int64_t c = lane; c < count; c += 32) range.add(to_float(from[c]));
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) range.merge(o);
    if (lane == 0) Scheme::keep(scheme.group(range), i, scales, zeros);
  }
}

// … and a thread a byte; rows are whole bytes. The two values of a byte may be of different groups: each is encoded on its own.
template <class T, class Scheme>
__global__ void __launch_bounds__(kThreads) encode_bytes(const T* x, int64_t bytes, int64_t cols, int64_t group, int64_t groups,
                                                         const __grid_constant__ Scheme scheme, uint8_t* q, const float* scales, const uint8_t* zeros) {
  const typename Scheme::Memory memory = scheme.setup();
  constexpr int kPerByte = 8 / Scheme::kBits;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < bytes; b += static_cast<int64_t>(gridDim.x) * kThreads) {
    typename Scheme::Word word = 0;
#pragma unroll
    for (int j = 0; j < kPerByte; j++) {
      const int64_t i = b * kPerByte + j, r = i / cols, c = i - r * cols;
      float v[kPerByte] = {};
      v[j] = to_float(x[i]);
      const typename Scheme::Word mask = (1u << Scheme::kBits) - 1;
      word |= scheme.word(v, Scheme::kept(r * groups + c / group, scales, zeros), memory) & mask << Scheme::place(j);
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
