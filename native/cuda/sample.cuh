// What the sampling kernels share: passes over a row of logits, the order of tokens, and weights as integers.
//
// A token's weight exp((logit - largest) / temperature) = 2^-y is a whole number here: 22 bits of mantissa, shifted by its octave. Sums of
// weights are then exact in any order, so blocks may add up histograms with atomics and every run gives the same bits. Within 40 octaves
// below the largest, each octave is cut into 64 bins; what lies further down has no mass (less than 2^-40 of the largest).
#pragma once
#include "cuda/attention/ptx.cuh"

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

// f(index, value) for this thread's share of row[begin, end), in rising order: packs of 16 bytes, single elements at the ends.
template <class T, class F>
__device__ __forceinline__ void visit(const T* row, int64_t begin, int64_t end, F f) {
  constexpr int n = Pack<T>::n, kAhead = 4;
  const int64_t skip = (16 - (reinterpret_cast<uintptr_t>(row + begin) & 15)) % 16 / sizeof(T);
  const int64_t head = min(end, begin + skip), packs = (end - head) / n, tail = head + packs * n;
  if (begin + threadIdx.x < head) f(begin + threadIdx.x, to_float(row[begin + threadIdx.x]));
  int64_t i = threadIdx.x;
  for (; i + (kAhead - 1) * static_cast<int64_t>(blockDim.x) < packs; i += kAhead * static_cast<int64_t>(blockDim.x)) {
    Pack<T> p[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; a++) p[a] = load_pack(row + head + (i + a * static_cast<int64_t>(blockDim.x)) * n);
#pragma unroll
    for (int a = 0; a < kAhead; a++)
#pragma unroll
      for (int e = 0; e < n; e++) f(head + (i + a * static_cast<int64_t>(blockDim.x)) * n + e, to_float(p[a].v[e]));
  }
  for (; i < packs; i += blockDim.x) {
    const Pack<T> p = load_pack(row + head + i * n);
#pragma unroll
    for (int e = 0; e < n; e++) f(head + i * n + e, to_float(p.v[e]));
  }
  if (tail + threadIdx.x < end) f(tail + threadIdx.x, to_float(row[tail + threadIdx.x]));
}

// Rank keys: larger logits have smaller keys, -0 = +0.
__device__ inline uint32_t rank_key(float x) {
  const uint32_t u = __float_as_uint(x + 0.f);
  return u & 0x80000000u ? u : ~(u | 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key : ~key & 0x7fffffffu); }

struct Weights {
  double largest, octaves;  // of a unit of logit
  int lift;                 // masses are mantissas shifted left by lift - octave

  __device__ Weights(float largest, float temperature, int lift)
      : largest(largest), octaves(1.4426950408889634 / static_cast<double>(temperature)), lift(lift) {}

  // Bin of a logit and its octaves below the largest; kBins for one without mass.
  __device__ int bin(float x, double& y) const {
    y = (largest - static_cast<double>(x)) * octaves;
    return y < kBins / kBinsOfOctave ? static_cast<int>(y * kBinsOfOctave) : kBins;
  }
  // Bits that the shift would lose are cleared, so that masses add up like mantissas.
  __device__ uint32_t cut(uint32_t mantissa, int octave) const {
    const int lost = octave - lift;
    return lost <= 0 ? mantissa : lost > kMantissa ? 0u : mantissa >> lost << lost;
  }
  __device__ uint32_t mantissa(double y, int bin) const {
    const int octave = bin / kBinsOfOctave;
    const float fraction = static_cast<float>(y - octave);
    return cut(__float2uint_rn(ptx::exp2_fast(-fraction) * (1 << kMantissa)), octave);
  }
  // A mantissa that none of the bin's is below.
  __device__ uint32_t edge(int bin) const {
    const float fraction = static_cast<float>(bin % kBinsOfOctave + 1) * (1.f / kBinsOfOctave);
    return cut(__float2uint_rd(ptx::exp2_fast(-fraction) * (1 << kMantissa)) - 8u, bin / kBinsOfOctave);
  }
  __device__ uint64_t mass(uint64_t mantissas, int octave) const {
    return octave <= lift ? mantissas << (lift - octave) : octave - lift > kMantissa ? 0 : mantissas >> (octave - lift);
  }
  __device__ uint64_t mass_of(float x) const {
    double y;
    const int b = bin(x, y);
    return b < kBins ? mass(mantissa(y, b), b / kBinsOfOctave) : 0;
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
