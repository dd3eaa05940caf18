// The second half of a decode step: partial results of the blocks (paged_work.cuh) folded into outputs. kRowWarps warps of a block share a
// row (unit, head): each takes every kRowWarps-th partial result.
#include "cuda/paged_work.cuh"

namespace llm::cuda {
namespace {

constexpr int kWarps = 8, kColumns = 128;

template <int kRowWarps>
__global__ void __launch_bounds__(32 * kWarps) combine(const PagedArgs a, const PagedWork w) {
  __shared__ float sums[kWarps][kRowWarps > 1 ? kColumns : 1];
  wait_for_previous();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % kRowWarps;
  const int64_t rows = static_cast<int64_t>(w.units) * a.heads, at = static_cast<int64_t>(blockIdx.x) * (kWarps / kRowWarps) + warp / kRowWarps;
  const bool inside = at < rows;
  const int u = inside ? static_cast<int>(at / a.heads) : 0, head = static_cast<int>(at - static_cast<int64_t>(u) * a.heads);
  const int before = w.plan[1 + u], steps = w.plan[2 + u] - before, token = a.by_token ? w.first_unit + u : a.cu[w.first_unit + u];
  const PagedShares shares(w.plan[1 + w.units], w.plan[0]);
  int first = 0, count = 0;  // partial results: shares first, first + 1, …
  if (inside && steps > 0) {
    first = static_cast<int>(shares.share_of(before));
    count = static_cast<int>(shares.share_of(before + steps - 1)) - first + 1;
  }
  if (count == 1) count = 0;  // the output is there already
  const int pieces = w.items / a.key_heads, within = head % a.group, item = head / a.group * pieces + within / w.rows, row = within % w.rows;
  const auto place = [&](int i) { return (static_cast<int64_t>(i == 0 ? 2 * first + 1 : 2 * (first + i)) * w.items + item) * w.rows + row; };
  // Loads a few partial results' columns at `begin`: the first ones before their factors are known.
  constexpr int kAhead = 8;
  float ahead[kAhead][kColumns / 32];
  const auto load = [&](int from, int begin) {
#pragma unroll
    for (int k = 0; k < kAhead; k++) {
      const int i = from + k * kRowWarps;
#pragma unroll
      for (int j = 0; j < kColumns / 32; j++)
        ahead[k][j] = i < count && begin + lane + 32 * j < a.width ? w.o[place(i) * a.width + begin + lane + 32 * j] : 0.f;
    }
  };
  load(part, 0);

  float top = -INFINITY, sum = 0.f;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, w.ml[place(i)].x);
  top = warp_max(top);
  const float base = top == -INFINITY ? 0.f : top;
  for (int i = lane; i < count; i += 32) {
    const float2 ml = w.ml[place(i)];
    sum = fmaf(ml.y, exp2f(ml.x - base), sum);
  }
  sum = warp_sum(sum);
  const float inverse = sum == 0.f ? 0.f : __fdividef(1.f, sum);
  const int64_t out = (static_cast<int64_t>(token) * a.heads + head) * a.width;
  for (int begin = 0; begin < a.width; begin += kColumns) {
    float o[kColumns / 32] = {};
    for (int i = part; i < count; i += kAhead * kRowWarps) {
      if (i != part || begin != 0) load(i, begin);
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        const int at = i + k * kRowWarps;
        const float factor = at < count ? exp2f(w.ml[place(at)].x - base) : 0.f;
#pragma unroll
        for (int j = 0; j < kColumns / 32; j++) o[j] = fmaf(factor, ahead[k][j], o[j]);
      }
    }
    if constexpr (kRowWarps > 1) {
#pragma unroll
      for (int j = 0; j < kColumns / 32; j++) sums[warp][lane + 32 * j] = o[j];
      __syncthreads();
      if (part == 0)
#pragma unroll
        for (int j = 0; j < kColumns / 32; j++) {
          o[j] = 0.f;
#pragma unroll
          for (int i = 0; i < kRowWarps; i++) o[j] += sums[warp + i][lane + 32 * j];
        }
      __syncthreads();
    }
    if (part != 0 || count == 0) continue;
#pragma unroll
    for (int j = 0; j < kColumns / 32; j++) {
      const int d = begin + lane + 32 * j;
      if (d >= a.width) continue;
      const float x = o[j] * inverse;
      if (a.type == DType::f32) reinterpret_cast<float*>(a.o)[out + d] = x;
      else if (a.type == DType::bf16) reinterpret_cast<bf16*>(a.o)[out + d] = from_float<bf16>(x);
      else reinterpret_cast<f16*>(a.o)[out + d] = from_float<f16>(x);
    }
  }
}

template <int kRowWarps>
const char* launch_combine(Context& ctx, const PagedArgs& a, const PagedWork& w) {
  const int64_t blocks = ceil_div(static_cast<int64_t>(w.units) * a.heads, kWarps / kRowWarps);
  launch(ctx, combine<kRowWarps>, static_cast<unsigned>(blocks), 32 * kWarps, 0, a, w);
  return launched();
}

}  // namespace

const char* combine_partials(Context& ctx, const PagedArgs& a, const PagedWork& w) {
  return static_cast<int64_t>(w.units) * a.heads < int64_t{8} * ctx.sms ? launch_combine<8>(ctx, a, w) : launch_combine<2>(ctx, a, w);
}

}  // namespace llm::cuda
