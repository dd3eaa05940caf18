// AWQ's clip search (Lin et al. 2023): for every row r and group g of w, the clip among absmax (1 - i / grid), i < grid * shrink, whose
// 4-bit quantization changes the outputs least: smallest sum over the samples s of (x[s, g] . (dequantized - w)[r, g])^2; the first of equals.
//
// A (row, clip) pair is one error vector, and the sums are a product of error vectors by samples: a block owns one group and up to 64 such
// vectors (whole rows, or a part of a row's clips at a time), makes their elements on the fly, and multiplies them by 128 samples at a time,
// 4 x 8 products a thread. Dot products are f32, the sums of their squares f64.
#include "cuda/quant.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kVectors = 64, kSamples = 128, kDepth = 16;

struct Search {
  const float* w;
  const float* x;
  int64_t rows, cols, samples, ldx, group, groups;
  double grid;
  int64_t steps;
  float* best;  // [rows, groups]
};

// Quantizer of one (row, clip).
struct Candidate {
  float clip;
  W4Quantizer quantizer;
};

__global__ void __launch_bounds__(kThreads, 2) clip_search(const __grid_constant__ Search a, int rows_per_block) {
  __shared__ alignas(16) float errors[kDepth][kVectors + 4];
  __shared__ alignas(16) float inputs[kDepth][kSamples + 4];
  __shared__ Candidate candidates[kVectors];
  __shared__ double totals[kVectors];
  __shared__ float lows[kVectors], highs[kVectors], absmaxes[kVectors], best_clip[kVectors];
  __shared__ double best_total[kVectors];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int64_t g = blockIdx.x % a.groups, first_row = blockIdx.x / a.groups * rows_per_block, first_col = g * a.group;
  const int64_t left = a.cols - first_col, count = left < a.group ? left : a.group, rows_left = a.rows - first_row;
  const int rows = static_cast<int>(rows_left < rows_per_block ? rows_left : rows_per_block);

  for (int r = warp; r < rows; r += kThreads / 32) {
    const float* from = a.w + (first_row + r) * a.cols + first_col;
    float low = INFINITY, high = -INFINITY, absmax = 0;
    for (int64_t c = lane; c < count; c += 32) {
      low = fminf(low, from[c]);
      high = fmaxf(high, from[c]);
      absmax = fmaxf(absmax, fabsf(from[c]));
    }
    low = -warp_max(-low);
    high = warp_max(high);
    absmax = warp_max(absmax);
    if (lane == 0) {
      lows[r] = low;
      highs[r] = high;
      absmaxes[r] = best_clip[r] = absmax;
      best_total[r] = INFINITY;
    }
  }
  __syncthreads();

  // Vector v of a pass: row v / steps_here, clip first_step + v % steps_here.
  const int64_t most_steps = kVectors / rows_per_block;
  for (int64_t first_step = 0; first_step < a.steps; first_step += most_steps) {
    const int steps = static_cast<int>(a.steps - first_step < most_steps ? a.steps - first_step : most_steps), vectors = rows * steps;
    if (threadIdx.x < kVectors) {
      Candidate c{0, W4Quantizer::of(1, 0)};
      if (static_cast<int>(threadIdx.x) < vectors) {
        const int r = static_cast<int>(threadIdx.x) / steps;
        const int64_t i = first_step + static_cast<int>(threadIdx.x) % steps;
        c.clip = static_cast<float>(absmaxes[r] * (1.0 - static_cast<double>(i) / a.grid));
        c.quantizer = W4Quantizer::between(fmaxf(-c.clip, fminf(c.clip, lows[r])), fmaxf(-c.clip, fminf(c.clip, highs[r])));
      }
      candidates[threadIdx.x] = c;
      totals[threadIdx.x] = 0;
    }
    __syncthreads();

    const int to_vector = static_cast<int>(threadIdx.x) / 16 * 4, to_sample = static_cast<int>(threadIdx.x) % 16 * 8;
    double total[4] = {};
    for (int64_t first_sample = 0; first_sample < a.samples; first_sample += kSamples) {
      float dot[4][8] = {};
      for (int64_t depth = 0; depth < count; depth += kDepth) {
        for (int i = threadIdx.x; i < kVectors * kDepth; i += kThreads) {
          const int v = i / kDepth, d = i % kDepth;
          float e = 0;
          if (v < vectors && depth + d < count) {
            const Candidate c = candidates[v];
            const float value = a.w[(first_row + v / steps) * a.cols + first_col + depth + d];
            e = c.quantizer.rounded(fmaxf(-c.clip, fminf(c.clip, value))) - value;
          }
          errors[d][v] = e;
        }
        for (int i = threadIdx.x; i < kSamples * kDepth; i += kThreads) {
          const int s = i / kDepth, d = i % kDepth;
          const bool there = first_sample + s < a.samples && depth + d < count;
          inputs[d][s] = there ? a.x[(first_sample + s) * a.ldx + first_col + depth + d] : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < kDepth; d++) {
          const float4 e = *reinterpret_cast<const float4*>(&errors[d][to_vector]);
          const float4 x0 = *reinterpret_cast<const float4*>(&inputs[d][to_sample]), x1 = *reinterpret_cast<const float4*>(&inputs[d][to_sample + 4]);
          const float es[4] = {e.x, e.y, e.z, e.w}, xs[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
#pragma unroll
          for (int v = 0; v < 4; v++)
#pragma unroll
            for (int s = 0; s < 8; s++) dot[v][s] = fmaf(es[v], xs[s], dot[v][s]);
        }
        __syncthreads();
      }
#pragma unroll
      for (int v = 0; v < 4; v++)
#pragma unroll
        for (int s = 0; s < 8; s++) total[v] += static_cast<double>(dot[v][s]) * static_cast<double>(dot[v][s]);
    }
    // The 16 threads of the same vectors are half a warp.
#pragma unroll
    for (int v = 0; v < 4; v++) {
#pragma unroll
      for (int o = 8; o > 0; o >>= 1) total[v] += __shfl_xor_sync(0xffffffffu, total[v], o);
      if (threadIdx.x % 16 == 0) totals[to_vector + v] = total[v];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      const int r = threadIdx.x;
      for (int i = 0; i < steps; i++) {
        if (totals[r * steps + i] < best_total[r]) {
          best_total[r] = totals[r * steps + i];
          best_clip[r] = candidates[r * steps + i].clip;
        }
      }
    }
    __syncthreads();
  }
  if (static_cast<int>(threadIdx.x) < rows) a.best[(first_row + threadIdx.x) * a.groups + g] = best_clip[threadIdx.x];
}

}  // namespace

const char* awq_clip_search(Context& ctx, const KernelArgs& k) {
  const View &w = k.in[0], &x = k.in[1];
  Search a{};
  a.w = data_of<float>(w);
  a.x = data_of<float>(x);
  a.rows = w.shape[0];
  a.cols = w.shape[1];
  a.samples = x.shape[0];
  a.ldx = x.stride[0];
  a.group = static_cast<int64_t>(k.attr[0]);
  a.groups = ceil_div(a.cols, a.group);
  a.grid = k.attr[1];
  const int64_t steps = static_cast<int64_t>(a.grid * k.attr[2]);
  a.steps = steps < 1 ? 1 : steps;
  a.best = data_of<float>(k.out[0]);
  if (a.rows == 0 || a.groups == 0) return nullptr;
  const int rows_per_block = a.steps >= kVectors ? 1 : static_cast<int>(kVectors / a.steps);
  clip_search<<<static_cast<unsigned>(ceil_div(a.rows, rows_per_block) * a.groups), kThreads, 0, ctx.stream>>>(a, rows_per_block);
  return launched();
}

}  // namespace llm::cuda
