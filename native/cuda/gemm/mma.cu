// bf16 and f16 products on tensor cores by mma.sync, for machines without cuBLASLt.
//
// A block of 4 warps computes a 128x128 tile of C, each warp 64x64. Tiles of A and B (tile.cuh) travel through a ring of buffers in shared
// memory, so that all but one are on their way while that one is multiplied. Where shared memory allows two blocks of it, a step is 64
// deep: rows of k then fill whole cache lines.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/paths.h"
#include "cuda/gemm/tile.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kGroup = 8;  // tile rows that run side by side, so that they share columns of B in the L2 cache
static_assert(kTile == kStagedTile);

struct MmaArgs {
  int64_t m, n, k, lda, ldb;
  const void *a, *b;
  int tiles_m, tiles_n;
  Epilogue e;
};

template <int depth, int stages>
constexpr int shared_bytes() {
  constexpr int ring = stages * 2 * kTile * depth * 2;
  return ring > kStagedBytes ? ring : kStagedBytes;
}

template <class T, bool trans_a, bool trans_b, int depth, int stages>
__global__ __launch_bounds__(kThreads, 2) void mma_kernel(const MmaArgs p) {
  constexpr int operand = kTile * depth * 2, stage = 2 * operand;
  extern __shared__ __align__(128) char shared[];
  const uint32_t base = ptx::shared_address(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int warp_m = (warp >> 1) * 64, warp_n = (warp & 1) * 64;

  // Groups of kGroup tile rows, each run column by column.
  const int per_group = kGroup * p.tiles_n, group = blockIdx.x / per_group, within = blockIdx.x % per_group;
  const int group_rows = min(kGroup, p.tiles_m - group * kGroup);
  const int64_t first_m = static_cast<int64_t>(group * kGroup + within % group_rows) * kTile;
  const int64_t first_n = static_cast<int64_t>(within / group_rows) * kTile;

  const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  const int steps = static_cast<int>((p.k + depth - 1) / depth);
  auto start = [&](int step) {
    if (step < steps) {
      const uint32_t buffer = base + (step % stages) * stage;
      const int64_t deep = static_cast<int64_t>(step) * depth;
      fetch_tile<T, depth, !trans_a, kThreads>(buffer, a, p.lda, first_m, p.m, deep, p.k);
      fetch_tile<T, depth, trans_b, kThreads>(buffer + operand, b, p.ldb, first_n, p.n, deep, p.k);
    }
    ptx::cp_async_commit();  // an empty group keeps the count
  };

  float sum[4][8][4] = {};
#pragma unroll
  for (int s = 0; s < stages - 1; s++) start(s);

  for (int step = 0; step < steps; step++) {
    ptx::cp_async_wait<stages - 2>();
    __syncthreads();  // this step's tiles have landed for all threads, and all are done with the buffer that start() overwrites
    start(step + stages - 1);
    const uint32_t tile_a = base + (step % stages) * stage, tile_b = tile_a + operand;
#pragma unroll
    for (int inner = 0; inner < depth / 16; inner++) {
      uint32_t fa[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) fragment_a<depth, !trans_a>(fa[i], tile_a, warp_m + i * 16, inner);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t fb[4];
        fragment_b<depth, trans_b>(fb, tile_b, warp_n + j * 16, inner);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          ptx::mma16816<T>(sum[i][j * 2], fa[i], fb[0], fb[1]);
          ptx::mma16816<T>(sum[i][j * 2 + 1], fa[i], fb[2], fb[3]);
        }
      }
    }
  }

  ptx::cp_async_wait<0>();
  __syncthreads();  // the ring is free: the sums take its place
  float* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = warp_m + i * 16 + (lane >> 2) + half * 8, col = warp_n + j * 8 + (lane & 3) * 2;
        *reinterpret_cast<float2*>(tile + row * kStagedRow + col) = make_float2(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
      }
  __syncthreads();
  finish_tile(p.e, tile, first_m, first_n, p.m, p.n);
}

template <class T, bool trans_a, bool trans_b, int depth, int stages>
const char* launch(Context& ctx, const Gemm& g) {
  constexpr int bytes = shared_bytes<depth, stages>();
  MmaArgs p{g.m, g.n, g.k, g.lda, g.ldb, g.a, g.b, static_cast<int>(ceil_div(g.m, kTile)), static_cast<int>(ceil_div(g.n, kTile)), epilogue_of(g)};
  auto kernel = mma_kernel<T, trans_a, trans_b, depth, stages>;
  static const cudaError_t sized = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (sized != cudaSuccess) return cudaGetErrorString(sized);
  kernel<<<static_cast<unsigned>(p.tiles_m) * p.tiles_n, kThreads, bytes, ctx.stream>>>(p);
  return launched();
}

template <class T, bool trans_a, bool trans_b>
const char* by_machine(Context& ctx, const Gemm& g) {
  const bool roomy = ctx.shared_bytes >= 2 * shared_bytes<64, 3>();
  return roomy ? launch<T, trans_a, trans_b, 64, 3>(ctx, g) : launch<T, trans_a, trans_b, 32, 4>(ctx, g);
}

template <class T>
const char* by_transposes(Context& ctx, const Gemm& g) {
  if (g.trans_a) return g.trans_b ? by_machine<T, true, true>(ctx, g) : by_machine<T, true, false>(ctx, g);
  return g.trans_b ? by_machine<T, false, true>(ctx, g) : by_machine<T, false, false>(ctx, g);
}

}  // namespace

bool can_mma(const Gemm& g) {
  return g.dtype_a == g.dtype_b && dtype_bytes(g.dtype_a) == 2 && rows_aligned16(g.a, g.lda, g.dtype_a) && rows_aligned16(g.b, g.ldb, g.dtype_b);
}

const char* mma_gemm(Context& ctx, const Gemm& g) { return g.dtype_a == DType::bf16 ? by_transposes<bf16>(ctx, g) : by_transposes<f16>(ctx, g); }

}  // namespace llm::cuda
