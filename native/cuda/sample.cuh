// What the sampling kernels share: passes over a row of logits, the order of tokens, and weights as integers.
//
// A token's weight exp((logit - largest) / temperature) = 2^-y is a whole number here: 22 bits of mantissa, shifted by its octave. Sums of
// weights are then exact in any order, so blocks may add up histograms with atomics and every run gives the same bits. Within 40 octaves
// below the largest, each octave is cut into 64 bins; what lies further down has no mass (less than 2^-40 of the largest).
#pragma once
#include "cuda/ptx.cuh"

namespace llm::cuda {

enum Param { temperature, top_k, top_p, min_p, repetition, presence, frequency, param_count = 8 };

const char* apply_penalties(Context& ctx, const KernelArgs& k);

constexpr int kBinsOfOctave = 64, kBins = 40 * kBinsOfOctave;
constexpr int kMantissa = 22;

// What a slice of a row found in one pass.
struct Peak {
  float largest, sum;  // sum exp(logit - largest)
  int best;            // lowest index of the largest
  int wrong;           // a NaN or +inf is among them
};

// A row's data for kernels after the first pass. `slices` <= 32 peaks.
struct Row {
  float largest;
  int best;
  bool wrong;
  double sum;
};

// Called by one whole warp.
__device__ inline Row row_of(const Peak* peaks, int slices) {
  const int lane = threadIdx.x & 31;
  Peak own = lane < slices ? peaks[lane] : Peak{-INFINITY, 0.f, 0, 0};
  const float largest = warp_max(own.largest);
  double sum = own.sum > 0.f ? own.sum * exp(static_cast<double>(own.largest) - largest) : 0.;
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  const unsigned holders = __ballot_sync(0xffffffffu, lane < slices && own.largest == largest);  // slices are in the order of the row
  const int best = __shfl_sync(0xffffffffu, own.best, holders ? __ffs(holders) - 1 : 0);
  return {largest, best, __any_sync(0xffffffffu, own.wrong) != 0, sum};
}

// f(index of the first, values) for this thread's share of row[begin, end), in rising order: arrays of 16 bytes' worth of elements, and of one
// at the ends.
template <class T, class F>
__device__ __forceinline__ void visit_packs(const T* row, int64_t begin, int64_t end, F f) {
  constexpr int n = Pack<T>::n, kAhead = 4;
  const auto one = [&](int64_t i) {
    const float v[1] = {to_float(row[i])};
    f(i, v);
  };
  const auto pack = [&](int64_t i, const Pack<T>& p) {
    float v[n];
#pragma unroll
    for (int e = 0; e < n; e++) v[e] = to_float(p.v[e]);
    f(i, v);
  };
  const int64_t skip = (16 - (reinterpret_cast<uintptr_t>(row + begin) & 15)) % 16 / sizeof(T), stride = blockDim.x;
  const int64_t head = min(end, begin + skip), packs = (end - head) / n, tail = head + packs * n;
  if (begin + threadIdx.x < head) one(begin + threadIdx.x);
  int64_t i = threadIdx.x;
  for (; i + (kAhead - 1) * stride < packs; i += kAhead * stride) {
    Pack<T> p[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; a++) p[a] = load_pack(row + head + (i + a * stride) * n);
#pragma unroll
    for (int a = 0; a < kAhead; a++) pack(head + (i + a * stride) * n, p[a]);
  }
  for (; i < packs; i += stride) pack(head + i * n, load_pack(row + head + i * n));
  if (tail + threadIdx.x < end) one(tail + threadIdx.x);
}
// f(index, value) likewise.
template <class T, class F>
__device__ __forceinline__ void visit(const T* row, int64_t begin, int64_t end, F f) {
  visit_packs(row, begin, end, [&](int64_t i, const auto& v) {
#pragma unroll
    for (int e = 0; e < static_cast<int>(sizeof(v) / sizeof(float)); e++) f(i + e, v[e]);
  });
}

// Rank keys: larger logits have smaller keys, -0 = +0.
__device__ inline uint32_t rank_key(float x) {
  const uint32_t u = __float_as_uint(x + 0.f);
  return u & 0x80000000u ? u : ~(u | 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key : ~key & 0x7fffffffu); }

// 2^22 2^(-j / 64), and a whole number just below 2^22 2^(-(j + 1) / 64): the mantissas at the ends of bin j of an octave. Each kernel has
// the table in shared memory.
struct Edge {
  float high, low;
};
__device__ inline void fill_edges(Edge* edges) {
  for (int j = threadIdx.x; j < kBinsOfOctave; j += blockDim.x) {
    const auto mantissa = [](int i) { return exp2f(i * (-1.f / kBinsOfOctave)) * (1 << kMantissa); };
    edges[j] = {mantissa(j), floorf(mantissa(j + 1)) - 4.f};
  }
}

struct Weights {
  float largest, bins;  // of a unit of logit
  int lift;             // masses are mantissas shifted left by lift - octave
  const Edge* edges;

  __device__ Weights(float largest, float temperature, int lift, const Edge* edges)
      : largest(largest), bins(static_cast<float>(kBinsOfOctave * 1.4426950408889634 / temperature)), lift(lift), edges(edges) {}

  // How far below the largest, in bins; kBins or more (or NaN): without mass.
  __device__ float depth(float x) const { return __fmul_rn(__fsub_rn(largest, x), bins); }  // the same in every kernel
  __device__ int bin(float x) const {
    const float d = depth(x);
    return d < kBins ? static_cast<int>(d) : kBins;
  }
  // Bits that the shift would lose are cleared, so that masses add up like mantissas.
  __device__ uint32_t cut(uint32_t mantissa, int octave) const {
    const int lost = octave - lift;
    return lost <= 0 ? mantissa : lost > kMantissa ? 0u : mantissa >> lost << lost;
  }
  // The least mantissa of a bin, and by how much a token's is larger; depth < kBins. Adding 2^23 makes whole numbers of floats.
  __device__ uint32_t edge(int bin) const { return cut(static_cast<uint32_t>(edges[bin % kBinsOfOctave].low), bin / kBinsOfOctave); }
  __device__ uint32_t excess(float depth, int& bin) const {
    const float whole = __fadd_rd(depth, 0x1p23f);
    bin = static_cast<int>(__float_as_uint(whole) & 0x7fffff);
    const float x = (depth - (whole - 0x1p23f)) * (0.6931471805599453f / kBinsOfOctave);
    const Edge e = edges[bin % kBinsOfOctave];
    // e^-x for x < 0.011
    const float above = fmaf(e.high, fmaf(x, fmaf(x, fmaf(x, -1.f / 6, 0.5f), -1.f), 1.f), -e.low);
    const uint32_t whole_above = __float_as_uint(fmaxf(above, 0.f) + 0x1p23f) & 0x7fffff;
    if (bin < (lift + 1) * kBinsOfOctave) return whole_above;
    const uint32_t low = static_cast<uint32_t>(e.low);
    return cut(low + whole_above, bin / kBinsOfOctave) - cut(low, bin / kBinsOfOctave);
  }
  __device__ uint64_t mass(uint64_t mantissas, int octave) const {
    return octave <= lift ? mantissas << (lift - octave) : octave - lift > kMantissa ? 0 : mantissas >> (octave - lift);
  }
  __device__ uint64_t mass_of(float x) const {
    const float d = depth(x);
    if (!(d < kBins)) return 0;
    int b;
    const uint32_t above = excess(d, b);
    return mass(edge(b) + above, b / kBinsOfOctave);
  }
};

// Largest shift for which the masses of a whole row fit 64 bits.
inline int lift_for(int64_t cols) {
  int bits = 0;
  while (int64_t{1} << bits < cols) bits++;
  return 41 - bits < 23 ? 41 - bits : 23;
}

// The histogram of a slice: counts and sums of (mantissa - edge) of bins [0, used). A slice is at most kSliceCols wide, so that 32 bits do.
struct Histogram {
  int used;
  uint32_t count[kBins], excess[kBins];
};
constexpr int64_t kSliceCols = 32768;

struct SampleArgs {
  const void* logits;
  const float* params;
  const int *seeds, *steps;
  int* ids;
  float* logprob;
  int64_t cols;
  int lift;
  const Peak* peaks;
  int peak_slices;
  const Histogram* histograms;
  int slices;
  int* fault;
  int bad_logit, no_logit;
};

// The last of the three kernels: one block a row.
const char* draw_tokens(Context& ctx, const SampleArgs& a, DType type, int64_t rows);

}  // namespace llm::cuda
