// f32 products without tensor cores (they would round to 10 bits), for machines without cuBLASLt.
//
// A block of 256 threads computes a 128x128 tile of C, each thread 8x8 of it as four 4x4 corners. Tiles of 128x8 lie in shared memory
// with k as the slow index, whatever the transposes; while one is multiplied, the next waits in registers. At the end the sums take their place.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/paths.h"

namespace llm::cuda {
namespace {

constexpr int kTile = 128, kDepth = 8, kThreads = 256, kRow = kTile + 4;  // 4 more floats a row: fewer bank conflicts, rows stay 16-byte aligned
static_assert(kTile == kStagedTile && 2 * kDepth * kRow * sizeof(float) <= kStagedBytes);
constexpr int kEach = kTile * kDepth / kThreads;

struct SimtArgs {
  int64_t m, n, lda, ldb;
  int k;
  const float *a, *b;
  int tiles_m;
  Epilogue e;
};

// A thread's share of an operand's tiles: kEach elements a tile, `hop` apart in memory. Neighbouring threads read neighbouring memory.
template <bool depth_contiguous>
struct Share {
  static constexpr int along_hop = depth_contiguous ? kThreads / kDepth : 0, deep_hop = depth_contiguous ? 0 : kThreads / kTile;
  const float* next;
  int64_t hop, advance;
  int along, deep, left;  // left: elements of the long side from `along` on, cut to what matters

  __device__ Share(const float* x, int64_t ld, int64_t first, int64_t length) {
    along = depth_contiguous ? threadIdx.x / kDepth : threadIdx.x % kTile;
    deep = depth_contiguous ? threadIdx.x % kDepth : threadIdx.x / kTile;
    next = x + (depth_contiguous ? (first + along) * ld + deep : deep * ld + first + along);
    hop = depth_contiguous ? along_hop * ld : deep_hop * ld;
    advance = depth_contiguous ? kDepth : kDepth * ld;
    const int64_t rest = length - first - along;
    left = rest > kTile ? kTile : static_cast<int>(rest);
  }
  __device__ void fetch(float (&to)[kEach], int depth_left) {
#pragma unroll
    for (int i = 0; i < kEach; i++) to[i] = i * along_hop < left && deep + i * deep_hop < depth_left ? next[i * hop] : 0.f;
    next += advance;
  }
  __device__ void put(float (*tile)[kRow], const float (&from)[kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach; i++) tile[deep + i * deep_hop][along + i * along_hop] = from[i];
  }
};

template <bool trans_a, bool trans_b>
__global__ __launch_bounds__(kThreads, 2) void simt_kernel(const SimtArgs p) {
  extern __shared__ __align__(16) float shared[];
  float (*tile_a)[kRow] = reinterpret_cast<float (*)[kRow]>(shared);
  float (*tile_b)[kRow] = tile_a + kDepth;
  const int64_t first_m = static_cast<int64_t>(blockIdx.x % p.tiles_m) * kTile, first_n = static_cast<int64_t>(blockIdx.x / p.tiles_m) * kTile;
  const int row = threadIdx.x / 16 * 4, col = threadIdx.x % 16 * 4;  // and both + 64
  float next_a[kEach], next_b[kEach], sum[8][8] = {};
  Share<!trans_a> share_a(p.a, p.lda, first_m, p.m);
  Share<trans_b> share_b(p.b, p.ldb, first_n, p.n);
  int left = p.k;
  share_a.fetch(next_a, left);
  share_b.fetch(next_b, left);
  for (; left > 0; left -= kDepth) {
    share_a.put(tile_a, next_a);
    share_b.put(tile_b, next_b);
    __syncthreads();
    if (left > kDepth) {
      share_a.fetch(next_a, left - kDepth);
      share_b.fetch(next_b, left - kDepth);
    }
#pragma unroll 2
    for (int d = 0; d < kDepth; d++) {
      float va[8], vb[8];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        *reinterpret_cast<float4*>(va + half * 4) = *reinterpret_cast<const float4*>(&tile_a[d][row + half * 64]);
        *reinterpret_cast<float4*>(vb + half * 4) = *reinterpret_cast<const float4*>(&tile_b[d][col + half * 64]);
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] = fmaf(va[i], vb[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<float4*>(shared + (row + (i & 3) + (i >> 2) * 64) * kStagedRow + col + half * 64) =
          make_float4(sum[i][half * 4], sum[i][half * 4 + 1], sum[i][half * 4 + 2], sum[i][half * 4 + 3]);
  __syncthreads();
  finish_tile(p.e, shared, first_m, first_n, p.m, p.n);
}

template <bool trans_a, bool trans_b>
const char* launch(Context& ctx, const Gemm& g) {
  if (g.k > INT32_MAX) return "matmul without cuBLASLt: at most 2^31 - 1 products a sum";
  const int64_t tiles_m = ceil_div(g.m, kTile), tiles_n = ceil_div(g.n, kTile);
  SimtArgs p{g.m, g.n, g.lda, g.ldb, static_cast<int>(g.k), static_cast<const float*>(g.a), static_cast<const float*>(g.b), static_cast<int>(tiles_m), epilogue_of(g)};
  static const cudaError_t sized = cudaFuncSetAttribute(simt_kernel<trans_a, trans_b>, cudaFuncAttributeMaxDynamicSharedMemorySize, kStagedBytes);
  if (sized != cudaSuccess) return cudaGetErrorString(sized);
  simt_kernel<trans_a, trans_b><<<static_cast<unsigned>(tiles_m * tiles_n), kThreads, kStagedBytes, ctx.stream>>>(p);
  return launched();
}

}  // namespace

const char* simt_gemm(Context& ctx, const Gemm& g) {
  if (g.trans_a) return g.trans_b ? launch<true, true>(ctx, g) : launch<true, false>(ctx, g);
  return g.trans_b ? launch<false, true>(ctx, g) : launch<false, false>(ctx, g);
}

}  // namespace llm::cuda
