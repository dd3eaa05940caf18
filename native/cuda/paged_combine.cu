// The second half of a decode step: partial results of the workers (paged_work.cuh) folded into outputs, one block a (unit, head).
#include "cuda/paged_work.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kColumns = 128;

__global__ void __launch_bounds__(kThreads) combine(const PagedArgs a, const Work w) {
  __shared__ float factors[kMostWorkers], sums[kWarps][kColumns], shared[32];
  const int u = blockIdx.x / a.heads, head = blockIdx.x % a.heads, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int before = w.plan[1 + u], steps = w.plan[2 + u] - before;
  if (steps == 0) return;
  const int per_key_head = w.items / a.key_heads, within = head % a.group;
  const int item = head / a.group * per_key_head + within / w.rows, row = within % w.rows;
  const Shares shares(static_cast<unsigned>(w.plan[1 + w.units]) * w.items, w.plan[0]);
  const unsigned at = static_cast<unsigned>(before) * w.items + static_cast<unsigned>(item) * steps;
  const int first = static_cast<int>(shares.worker_of(at)), count = static_cast<int>(shares.worker_of(at + steps - 1)) - first + 1;
  if (count == 1) return;
  const auto place = [&](int i) { return (i == 0 ? 2 * first + 1 : 2 * (first + i)) * static_cast<int64_t>(w.rows) + row; };
  float top = -INFINITY;
  for (int i = threadIdx.x; i < count; i += kThreads) top = fmaxf(top, w.ml[place(i)].x);
  top = block_max(top, shared);
  const float base = top == -INFINITY ? 0.f : top;
  float sum = 0.f;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float2 ml = w.ml[place(i)];
    factors[i] = exp2f(ml.x - base);
    sum += ml.y * factors[i];
  }
  sum = block_sum(sum, shared);
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;
  const int64_t out = (static_cast<int64_t>(unit_of(a, w.first_unit + u).token) * a.heads + head) * a.width;
  for (int begin = 0; begin < a.width; begin += kColumns) {
    float o[kColumns / 32] = {};
    for (int i = warp; i < count; i += kWarps) {
      const float* from = w.o + place(i) * a.width + begin;
#pragma unroll
      for (int j = 0; j < kColumns / 32; j++)
        if (begin + lane + 32 * j < a.width) o[j] = fmaf(factors[i], from[lane + 32 * j], o[j]);
    }
#pragma unroll
    for (int j = 0; j < kColumns / 32; j++) sums[warp][lane + 32 * j] = o[j];
    __syncthreads();
    if (threadIdx.x < kColumns && begin + static_cast<int>(threadIdx.x) < a.width) {
      float x = 0.f;
#pragma unroll
      for (int i = 0; i < kWarps; i++) x += sums[i][threadIdx.x];
      x *= inverse;
      const int64_t i = out + begin + threadIdx.x;
      if (a.type == DType::f32) reinterpret_cast<float*>(a.o)[i] = x;
      else if (a.type == DType::bf16) reinterpret_cast<bf16*>(a.o)[i] = from_float<bf16>(x);
      else reinterpret_cast<f16*>(a.o)[i] = from_float<f16>(x);
    }
    __syncthreads();
  }
}

}  // namespace

const char* combine_partials(Context& ctx, const PagedArgs& a, const Work& w) {
  combine<<<static_cast<unsigned>(static_cast<int64_t>(w.units) * a.heads), kThreads, 0, ctx.stream>>>(a, w);
  return launched();
}

}  // namespace llm::cuda
