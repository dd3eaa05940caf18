// The attention gradient with mma.sync (sm_80 and later): bf16 and f16, widths 64 and 128. One kernel for both passes: 8 warps keep 128
// rows of one side, 16 each, and run over 64 rows of the other side at a time:
//                 keys pass                queries pass
//   s  = a b^T    a = k, b = q             a = q,  b = k
//   dp = c d^T    c = v, d = do            c = do, d = v
//   sums          dk += ds b, dv += p d    dq += ds b
// p and ds go from the sums of the first products straight into the operands of the next, rounded to the element type.
#include "cuda/attention/backward.h"
#include "cuda/attention/backward_ptx.cuh"

namespace llm::cuda::gradient {
namespace {

using namespace ptx;
constexpr int kKept = 128, kPassing = 64, kThreads = 256;

// Shared memory: a, c; then per stage b, d and the passing queries' stats.
template <int D>
struct Layout {
  static constexpr int kept = kKept * D * 2, passing = kPassing * D * 2, stats = kPassing * 8;
  static constexpr int stage = 2 * passing + stats;
  static constexpr int bytes(int stages) { return 2 * kept + stages * stage; }
};

// Rows [0, rows) of `from` into a tile of R rows, panels of 64 columns, swizzled; zeros below.
template <int R, int D, class T>
__device__ void load_rows(uint32_t to, const T* from, int64_t stride, int rows) {
  constexpr int pieces = D / 8;
#pragma unroll
  for (int e = 0; e < R * pieces / kThreads; e++) {
    const int at = e * kThreads + static_cast<int>(threadIdx.x), r = at / pieces, c = at % pieces * 8;
    cp_async16(to + c / 64 * (R * 128) + swizzled(r, c % 64), from + (r < rows ? r * stride : 0) + c, r < rows ? 16 : 0);
  }
}

// x[16, 64] = (16 rows of a kept tile) (a passing tile)^T.
template <class T, int D>
__device__ __forceinline__ void scores(float (&x)[8][4], uint32_t kept, uint32_t passing) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) x[i][e] = 0;
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    uint32_t a[4];
    ldmatrix4(a, kept + k / 64 * (kKept * 128) + swizzled(warp * 16 + (lane & 15), k % 64 + (lane >> 4) * 8));
#pragma unroll
    for (int n = 0; n < 64; n += 16) {
      uint32_t b[4];
      ldmatrix4(b, passing + k / 64 * (kPassing * 128) + swizzled(n + (lane & 7) + (lane >> 4) * 8, k % 64 + (lane >> 3 & 1) * 8));
      mma16816<T>(x[n / 8], a, b[0], b[1]);
      mma16816<T>(x[n / 8 + 1], a, b[2], b[3]);
    }
  }
}

// sum[16, D] += a[16, 64] (a passing tile).
template <class T, int D>
__device__ __forceinline__ void accumulate(float (&sum)[D / 8][4], const uint32_t (&a)[4][4], uint32_t passing) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int n = 0; n < D; n += 16) {
      uint32_t b[4];
      ldmatrix4_trans(b, passing + n / 64 * (kPassing * 128) + swizzled(k * 16 + (lane & 15), n % 64 + (lane >> 4) * 8));
      mma16816<T>(sum[n / 8], a[k], b[0], b[1]);
      mma16816<T>(sum[n / 8 + 1], a[k], b[2], b[3]);
    }
}

template <class T>
__device__ __forceinline__ void as_operand(uint32_t (&a)[4][4], const float (&x)[8][4]) {
#pragma unroll
  for (int k = 0; k < 4; k++) {
    a[k][0] = pack2<T>(x[2 * k][0], x[2 * k][1]);
    a[k][1] = pack2<T>(x[2 * k][2], x[2 * k][3]);
    a[k][2] = pack2<T>(x[2 * k + 1][0], x[2 * k + 1][1]);
    a[k][3] = pack2<T>(x[2 * k + 1][2], x[2 * k + 1][3]);
  }
}

// This warp's 16 rows of a result, times `factor`.
template <class T, int D>
__device__ void store(void* to, const float (&sum)[D / 8][4], float factor, int64_t token, int rows, int heads, int head) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = warp * 16 + half * 8 + lane / 4;
    if (r >= rows) continue;
    uint32_t* row = reinterpret_cast<uint32_t*>(static_cast<T*>(to) + ((token + r) * heads + head) * D);
#pragma unroll
    for (int n = 0; n < D / 8; n++) row[n * 4 + lane % 4] = pack2<T>(sum[n][2 * half] * factor, sum[n][2 * half + 1] * factor);
  }
}

template <class T, int D, bool kKeys, int kStages>
__global__ void __launch_bounds__(kThreads, 1) mma_kernel(Problem p, Plan plan) {
  extern __shared__ __align__(1024) char memory[];
  const int heads = kKeys ? p.key_heads : p.heads, group = p.heads / p.key_heads;
  const int tile = static_cast<int>(blockIdx.x) / heads, head = static_cast<int>(blockIdx.x) % heads;
  if (tile >= (kKeys ? plan.division->key_tiles : plan.division->query_tiles)) return;
  const Tile t = (kKeys ? plan.key_tiles : plan.query_tiles)[tile];
  const int key_head = kKeys ? head : head / group;
  const Range range = kKeys ? queries_of(p, t) : keys_of(p, t);
  const int per_head = (range.end - range.begin + kPassing - 1) / kPassing, steps = per_head * (kKeys ? group : 1);
  const int64_t dense = static_cast<int64_t>(p.heads) * D;
  const T* q = static_cast<const T*>(p.q) + t.q_begin * p.q_stride;
  const T* grad = static_cast<const T*>(p.grad) + t.q_begin * dense;
  const T* k = static_cast<const T*>(p.k) + t.k_begin * p.k_stride + key_head * D;
  const T* v = static_cast<const T*>(p.v) + t.k_begin * p.v_stride + key_head * D;
  const uint32_t kept_a = shared_address(memory), kept_c = kept_a + Layout<D>::kept, stages = kept_c + Layout<D>::kept;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const auto load = [&](int step) {
    const uint32_t b = stages + step % kStages * Layout<D>::stage, d = b + Layout<D>::passing, stats = d + Layout<D>::passing;
    const int h = kKeys ? key_head * group + step / per_head : head, i0 = range.begin + step % per_head * kPassing;
    if constexpr (kKeys) {
      const int rows = min(kPassing, t.q_count - i0);
      load_rows<kPassing, D>(b, q + i0 * p.q_stride + h * D, p.q_stride, rows);
      load_rows<kPassing, D>(d, grad + i0 * dense + h * D, dense, rows);
      const int r = static_cast<int>(threadIdx.x);
      if (r < kPassing) cp_async8(stats + r * 8, plan.stats + h * p.queries + t.q_begin + i0 + (r < rows ? r : 0), r < rows ? 8 : 0);
    } else {
      const int rows = min(kPassing, t.k_count - i0);
      load_rows<kPassing, D>(b, k + i0 * p.k_stride, p.k_stride, rows);
      load_rows<kPassing, D>(d, v + i0 * p.v_stride, p.v_stride, rows);
    }
    cp_async_commit();
  };

  if (steps > 0) {
    if constexpr (kKeys) {
      load_rows<kKept, D>(kept_a, k + t.row * p.k_stride, p.k_stride, t.rows);
      load_rows<kKept, D>(kept_c, v + t.row * p.v_stride, p.v_stride, t.rows);
    } else {
      load_rows<kKept, D>(kept_a, q + t.row * p.q_stride + head * D, p.q_stride, t.rows);
      load_rows<kKept, D>(kept_c, grad + t.row * dense + head * D, dense, t.rows);
    }
    if constexpr (kStages > 1) load(0);
  }
  float2 own_stats[2] = {};  // queries pass: of this thread's two rows
  if constexpr (!kKeys) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp * 16 + half * 8 + lane / 4;
      if (r < t.rows) own_stats[half] = plan.stats[head * p.queries + t.q_begin + t.row + r];
    }
  }

  const float scale2 = p.scale * 1.4426950408889634f;
  float first[D / 8][4] = {}, second[kKeys ? D / 8 : 1][4] = {};
  for (int step = 0; step < steps; step++) {
    if constexpr (kStages == 1) {
      load(step);
      cp_async_wait<0>();
    } else if (step + 1 < steps) {
      load(step + 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const int stage = step % kStages * Layout<D>::stage;
    const uint32_t b = stages + stage, d = b + Layout<D>::passing;
    const float2* stats = reinterpret_cast<const float2*>(memory + 2 * Layout<D>::kept + stage + 2 * Layout<D>::passing);
    const int i0 = range.begin + step % per_head * kPassing;
    float s[8][4], dp[8][4];
    scores<T, D>(s, kept_a, b);
    scores<T, D>(dp, kept_c, d);
    const bool all = kKeys ? all_visible(p, t, i0, kPassing, t.row, kKept) : all_visible(p, t, t.row, kKept, i0, kPassing);
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int own = t.row + warp * 16 + lane / 4 + e / 2 * 8, other = n * 8 + lane % 4 * 2 + e % 2;
        const float2 stat = kKeys ? stats[other] : own_stats[e / 2];
        float probable = exp2_fast(s[n][e] * scale2 - stat.x);
        float ds = probable * (dp[n][e] - stat.y);
        if (!all && !visible(p, t, kKeys ? i0 + other : own, kKeys ? own : i0 + other)) probable = ds = 0;
        s[n][e] = probable;
        dp[n][e] = ds;
      }
    uint32_t operand[4][4];
    if constexpr (kKeys) {
      as_operand<T>(operand, s);
      accumulate<T, D>(second, operand, d);
    }
    as_operand<T>(operand, dp);
    accumulate<T, D>(first, operand, b);
    __syncthreads();
  }
  const int64_t token = (kKeys ? t.k_begin : t.q_begin) + t.row;
  store<T, D>(kKeys ? p.dk : p.dq, first, p.scale, token, t.rows, heads, head);
  if constexpr (kKeys) store<T, D>(p.dv, second, 1.f, token, t.rows, heads, head);
}

template <class T, int D, bool kKeys, int kStages>
const char* launch(Context& ctx, const Problem& p, const Plan& plan) {
  constexpr int bytes = Layout<D>::bytes(kStages);
  const auto kernel = mma_kernel<T, D, kKeys, kStages>;
  if (const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return cudaGetErrorString(e);
  const unsigned grid = kKeys ? static_cast<unsigned>(plan.most_key_tiles) * static_cast<unsigned>(p.key_heads)
                              : static_cast<unsigned>(plan.most_query_tiles) * static_cast<unsigned>(p.heads);
  kernel<<<grid, kThreads, bytes, ctx.stream>>>(p, plan);
  return launched();
}

template <class T, int D>
const char* both(Context& ctx, const Problem& p) {
  Plan plan;
  if (const char* e = make_plan(ctx, p, kKept, kKept, 1.4426950408889634f, {}, plan)) return e;
  if (ctx.shared_bytes >= Layout<D>::bytes(2)) {
    const char* e = launch<T, D, true, 2>(ctx, p, plan);
    return e ? e : launch<T, D, false, 2>(ctx, p, plan);
  }
  const char* e = launch<T, D, true, 1>(ctx, p, plan);
  return e ? e : launch<T, D, false, 1>(ctx, p, plan);
}

}  // namespace

bool tensor_cores_fit(const Context& ctx, const Problem& p) {
  const auto rows_aligned = [](const void* data, int64_t stride) { return aligned16(data) && stride % 8 == 0; };
  return p.dtype != DType::f32 && (p.width == 64 || p.width == 128) && ctx.arch >= 80 &&
         ctx.shared_bytes >= (p.width == 64 ? Layout<64>::bytes(1) : Layout<128>::bytes(1)) && aligned16(p.grad) &&
         rows_aligned(p.q, p.q_stride) && rows_aligned(p.k, p.k_stride) && rows_aligned(p.v, p.v_stride);
}

const char* tensor_cores(Context& ctx, const Problem& p) {
  if (p.dtype == DType::bf16) return p.width == 64 ? both<bf16, 64>(ctx, p) : both<bf16, 128>(ctx, p);
  return p.width == 64 ? both<f16, 64>(ctx, p) : both<f16, 128>(ctx, p);
}

}  // namespace llm::cuda::gradient
