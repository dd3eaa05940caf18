// Drawing tokens: temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution in the order of the ranks. Three
// kernels: peaks (one pass: largest logit, its first index, the log-sum-exp; all that temperature 0 needs), histogram (a second pass: how
// many tokens and how much mass lie in each of 2560 bins of weight), draw (sample_draw.cu: finds where each filter and the draw itself
// fall, and looks at single tokens only there). This file: the first two, and the table.
#include "cuda/sample.cuh"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

constexpr int kPeakThreads = 256, kBinThreads = 512;
constexpr float kLog2e = 1.4426950408889634f;

__device__ inline void merge(Peak& a, const Peak& b) {
  const float largest = fmaxf(a.largest, b.largest);
  if (largest > -INFINITY) a.sum = a.sum * exp2f((a.largest - largest) * kLog2e) + b.sum * exp2f((b.largest - largest) * kLog2e);
  a.best = a.largest > b.largest ? a.best : b.largest > a.largest ? b.best : min(a.best, b.best);
  a.largest = largest;
  a.wrong |= b.wrong;
}
__device__ inline Peak shuffled(const Peak& p, int d) {
  return {__shfl_xor_sync(0xffffffffu, p.largest, d), __shfl_xor_sync(0xffffffffu, p.sum, d), __shfl_xor_sync(0xffffffffu, p.best, d),
          __shfl_xor_sync(0xffffffffu, p.wrong, d)};
}

template <class T>
__global__ void __launch_bounds__(kPeakThreads) peaks(const T* logits, int64_t cols, int slices, Peak* out) {
  follow();
  __shared__ Peak of_warp[kPeakThreads / 32];
  const int64_t row = blockIdx.x / slices, slice = blockIdx.x % slices, width = (cols + slices - 1) / slices;
  const int64_t begin = min(cols, slice * width), end = min(cols, begin + width);
  Peak p{-INFINITY, 0.f, INT32_MAX, 0};
  visit_packs(logits + row * cols, begin, end, [&](int64_t i, const auto& v) {
    constexpr int n = sizeof(v) / sizeof(float);
    float top = v[0];
#pragma unroll
    for (int e = 0; e < n; e++) {
      p.wrong |= !(v[e] < INFINITY);
      top = fmaxf(top, v[e]);
    }
    if (top > p.largest) {
      p.sum *= ptx::exp2_fast((p.largest - top) * kLog2e);
      p.largest = top;
#pragma unroll
      for (int e = n - 1; e >= 0; e--)
        if (v[e] == top) p.best = static_cast<int>(i) + e;
    }
    if (p.largest == -INFINITY) return;
#pragma unroll
    for (int e = 0; e < n; e++) p.sum += ptx::exp2_fast((v[e] - p.largest) * kLog2e);
  });
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) merge(p, shuffled(p, d));
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = p;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kPeakThreads / 32; w++) merge(p, of_warp[w]);
  if (p.largest == -INFINITY) p.best = 0;
  out[blockIdx.x] = p;
}

template <class T>
__global__ void __launch_bounds__(kBinThreads) histogram(const SampleArgs a, Histogram* out) {
  follow();
  __shared__ uint32_t count[kBins], excess[kBins];
  __shared__ Edge edges[kBinsOfOctave];
  __shared__ Row shared_row;
  __shared__ int highest;
  const int64_t row = blockIdx.x / a.slices, slice = blockIdx.x % a.slices;
  const float heat = a.params[row * param_count + temperature];
  if (heat <= 0.f) return;
  if (threadIdx.x < 32) {
    const Row r = row_of(a.peaks + row * a.peak_slices, a.peak_slices);
    if (threadIdx.x == 0) {
      shared_row = r;
      highest = -1;
    }
  }
  fill_edges(edges);
  for (int i = threadIdx.x; i < kBins; i += kBinThreads) count[i] = excess[i] = 0;
  __syncthreads();
  if (shared_row.wrong || shared_row.largest == -INFINITY) return;
  const Weights weights(shared_row.largest, heat, a.lift, edges);
  const int64_t width = (a.cols + a.slices - 1) / a.slices, begin = min(a.cols, slice * width), end = min(a.cols, begin + width);
  visit(static_cast<const T*>(a.logits) + row * a.cols, begin, end, [&](int64_t, float x) {
    const float depth = weights.depth(x);
    if (!(depth < kBins)) return;
    int bin;
    const uint32_t above = weights.excess(depth, bin);
    atomicAdd(&count[bin], 1u);
    atomicAdd(&excess[bin], above);
  });
  __syncthreads();
  int used = -1;
  for (int i = threadIdx.x; i < kBins; i += kBinThreads)
    if (count[i] > 0) used = i;
  used = __reduce_max_sync(0xffffffffu, used);
  if ((threadIdx.x & 31) == 0) atomicMax(&highest, used);
  __syncthreads();
  used = highest + 1;
  Histogram& to = out[blockIdx.x];
  if (threadIdx.x == 0) to.used = used;
  for (int i = threadIdx.x; i < used; i += kBinThreads) {
    to.count[i] = count[i];
    to.excess[i] = excess[i];
  }
}

const char* sample(Context& ctx, const KernelArgs& k) {
  const View& logits = k.in[0];
  const int64_t rows = logits.shape[0], cols = logits.shape[1];
  if (rows == 0) return nullptr;
  if (cols == 0) return "no logits to sample from";
  if (cols > 1 << 30) return "a vocabulary of at most 2^30 tokens expected";
  const auto slices_for = [&](int64_t most, int64_t least_cols, int waves) {
    int64_t n = ceil_div(static_cast<int64_t>(ctx.sms) * waves, rows);
    if (n > ceil_div(cols, least_cols)) n = ceil_div(cols, least_cols);
    return n < most ? n : most;
  };
  SampleArgs a{};
  a.logits = logits.data;
  a.params = data_of<const float>(k.in[1]);
  a.seeds = data_of<const int>(k.in[2]);
  a.steps = data_of<const int>(k.in[3]);
  a.ids = data_of<int>(k.out[0]);
  a.logprob = data_of<float>(k.out[1]);
  a.cols = cols;
  a.lift = lift_for(cols);
  a.peak_slices = static_cast<int>(slices_for(32, 4096, 4));
  const int64_t enough = ceil_div(cols, kSliceCols), slices = slices_for(8, 8192, 2);
  a.slices = static_cast<int>(slices > enough ? slices : enough);
  a.fault = ctx.fault_word;
  a.bad_logit = ctx.code(Fault::logit);
  a.no_logit = ctx.code(Fault::no_logit);
  Peak* found = ctx.scratch_of<Peak>(static_cast<size_t>(rows * a.peak_slices));
  Histogram* bins = ctx.scratch_of<Histogram>(static_cast<size_t>(rows * a.slices));
  a.peaks = found;
  a.histograms = bins;
  const char* why = dispatch(logits.dtype, [&](auto t) {
    using T = decltype(t);
    launch(ctx, peaks<T>, static_cast<unsigned>(rows * a.peak_slices), kPeakThreads, 0, data_of<const T>(logits), cols, a.peak_slices, found);
    launch(ctx, histogram<T>, static_cast<unsigned>(rows * a.slices), kBinThreads, 0, a, bins);
    return launched();
  });
  return why ? why : draw_tokens(ctx, a, logits.dtype, rows);
}

}  // namespace

const CudaEntry cuda_sample[] = {{op_apply_penalties, apply_penalties}, {op_sample, sample}};
const int cuda_sample_count = sizeof(cuda_sample) / sizeof(cuda_sample[0]);

}  // namespace llm::cuda
