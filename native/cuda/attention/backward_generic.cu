// The attention gradient for any width and element type, in f32 arithmetic on the ordinary units. One kernel for both passes: a block
// keeps 32 rows of one side (keys or queries), runs over 32 rows of the other side at a time and sums 128 columns of the results.
// Scores need the whole width, in chunks of 32 columns; widths above 128 recompute them for every 128 columns.
#include "cuda/attention/backward.h"

namespace llm::cuda::gradient {
namespace {

constexpr int kRows = 32, kChunk = 32, kColumns = 128, kThreads = 256;
constexpr int kOwn = kRows * kColumns / kThreads;  // result rows per thread, one column each

// Rows of one head.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  __device__ float get(int row, int column) const { return to_float(data[row * stride + column]); }
};

template <class T>
__device__ void load_chunk(float (&to)[kRows][kChunk + 1], const Rows<T>& from, int row0, int rows, int column0, int columns) {
  for (int e = threadIdx.x; e < kRows * kChunk; e += kThreads) {
    const int r = e / kChunk, c = e % kChunk;
    to[r][c] = r < rows && c < columns ? from.get(row0 + r, column0 + c) : 0.f;
  }
}

template <class T, bool kKeys>
__global__ void __launch_bounds__(kThreads) generic_kernel(Problem p, Plan plan) {
  __shared__ float kept[2][kRows][kChunk + 1], passing[2][kRows][kChunk + 1];
  __shared__ alignas(16) float probability[kRows][kRows + 4], slope[kRows][kRows + 4];  // [passing row][kept row]
  if (blockIdx.x >= (kKeys ? plan.division->key_tiles : plan.division->query_tiles)) return;
  const Tile t = (kKeys ? plan.key_tiles : plan.query_tiles)[blockIdx.x];
  const int group = p.heads / p.key_heads, column0 = static_cast<int>(blockIdx.z) * kColumns;
  const int key_head = kKeys ? static_cast<int>(blockIdx.y) : static_cast<int>(blockIdx.y) / group;
  const Range range = kKeys ? queries_of(p, t) : keys_of(p, t);
  const Rows<T> k{static_cast<const T*>(p.k) + t.k_begin * p.k_stride + static_cast<int64_t>(key_head) * p.width, p.k_stride};
  const Rows<T> v{static_cast<const T*>(p.v) + t.k_begin * p.v_stride + static_cast<int64_t>(key_head) * p.width, p.v_stride};
  const int64_t dense = static_cast<int64_t>(p.heads) * p.width;

  // This thread's scores: kept row `lane`, passing rows `warp` + 8 m; its results: kOwn kept rows of one column.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own_row = static_cast<int>(threadIdx.x) / kColumns * kOwn, own_column = column0 + static_cast<int>(threadIdx.x) % kColumns;
  const bool owns = own_column < p.width;
  float first[kOwn] = {}, second[kOwn] = {};  // keys: dk and dv; queries: dq

  for (int h = kKeys ? key_head * group : blockIdx.y; h < (kKeys ? (key_head + 1) * group : blockIdx.y + 1); h++) {
    const Rows<T> q{static_cast<const T*>(p.q) + t.q_begin * p.q_stride + static_cast<int64_t>(h) * p.width, p.q_stride};
    const Rows<T> grad{static_cast<const T*>(p.grad) + t.q_begin * dense + static_cast<int64_t>(h) * p.width, dense};
    const float2* stats = plan.stats + h * p.queries + t.q_begin;
    for (int i0 = range.begin; i0 < range.end; i0 += kRows) {
      const int rows = min(kRows, range.end - i0);
      float s[4] = {}, dp[4] = {};
      for (int c0 = 0; c0 < p.width; c0 += kChunk) {
        const int columns = min(kChunk, p.width - c0);
        __syncthreads();
        load_chunk(kept[0], kKeys ? k : q, t.row, t.rows, c0, columns);
        load_chunk(kept[1], kKeys ? v : grad, t.row, t.rows, c0, columns);
        load_chunk(passing[0], kKeys ? q : k, i0, rows, c0, columns);
        load_chunk(passing[1], kKeys ? grad : v, i0, rows, c0, columns);
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < kChunk; c++) {
          const float a = kept[0][lane][c], b = kept[1][lane][c];
#pragma unroll
          for (int m = 0; m < 4; m++) {
            s[m] += a * passing[0][warp + 8 * m][c];
            dp[m] += b * passing[1][warp + 8 * m][c];
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 4; m++) {
        const int other = i0 + warp + 8 * m, own = t.row + lane;
        const int query = kKeys ? other : own, key = kKeys ? own : other;
        float probable = 0, ds = 0;
        if (visible(p, t, query, key)) {
          const float2 stat = stats[query];
          probable = expf(s[m] * p.scale - stat.x);
          ds = probable * (dp[m] - stat.y) * p.scale;
        }
        probability[warp + 8 * m][lane] = probable;
        slope[warp + 8 * m][lane] = ds;
      }
      __syncthreads();
      if (!owns) continue;
      for (int i = 0; i < rows; i++) {
        const float x = kKeys ? q.get(i0 + i, own_column) : k.get(i0 + i, own_column);
        const float y = kKeys ? grad.get(i0 + i, own_column) : 0.f;
#pragma unroll
        for (int r = 0; r < kOwn; r += 4) {
          const float4 ds = *reinterpret_cast<const float4*>(&slope[i][own_row + r]);
          first[r] += ds.x * x, first[r + 1] += ds.y * x, first[r + 2] += ds.z * x, first[r + 3] += ds.w * x;
          if constexpr (kKeys) {
            const float4 pr = *reinterpret_cast<const float4*>(&probability[i][own_row + r]);
            second[r] += pr.x * y, second[r + 1] += pr.y * y, second[r + 2] += pr.z * y, second[r + 3] += pr.w * y;
          }
        }
      }
    }
  }
  if (!owns) return;
  const int64_t token0 = (kKeys ? t.k_begin : t.q_begin) + t.row;
#pragma unroll
  for (int r = 0; r < kOwn; r++) {
    if (own_row + r >= t.rows) continue;
    const int64_t at = ((token0 + own_row + r) * (kKeys ? p.key_heads : p.heads) + blockIdx.y) * p.width + own_column;
    static_cast<T*>(kKeys ? p.dk : p.dq)[at] = from_float<T>(first[r]);
    if constexpr (kKeys) static_cast<T*>(p.dv)[at] = from_float<T>(second[r]);
  }
}

}  // namespace

const char* generic(Context& ctx, const Problem& p) {
  Plan plan;
  if (const char* e = make_plan(ctx, p, kRows, kRows, 1.f, {}, plan)) return e;
  const unsigned slices = static_cast<unsigned>(ceil_div(p.width, kColumns));
  return dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    generic_kernel<T, true><<<dim3(static_cast<unsigned>(plan.most_key_tiles), static_cast<unsigned>(p.key_heads), slices), kThreads, 0,
                              ctx.stream>>>(p, plan);
    generic_kernel<T, false><<<dim3(static_cast<unsigned>(plan.most_query_tiles), static_cast<unsigned>(p.heads), slices), kThreads, 0,
                               ctx.stream>>>(p, plan);
    return launched();
  });
}

}  // namespace llm::cuda::gradient
