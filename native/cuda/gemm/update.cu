// Low-rank updates: C = alpha A op(B) + beta C with k <= 128 and 16-bit matrices of one dtype, the second half of a LoRA layer.
//
// C is read and written once, and that is the time it takes. A block owns a 128x128 tile: it asks for its pieces of A and B and for its
// tile of C at the same moment, multiplies (8 warps, 32x64 each) when the first two are there, adds into the tile in shared memory, and
// writes whole cache lines. Several blocks share a multiprocessor, so that there is always something on the way.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/paths.h"
#include "cuda/gemm/tile.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kDepth = 64, kPanelBytes = kTile * kDepth * 2;
constexpr int kMostDepth = 2 * kDepth;
constexpr int kRowBytes = kTile * 2 + 16;  // of C in shared memory; the padding spreads a column over the banks
constexpr int kTileBytes = kTile * kRowBytes;

struct UpdateArgs {
  int64_t m, n, lda, ldb;
  int k, tiles_n;
  const void *a, *b;
  Epilogue e;
};

template <class T>
struct alignas(4) Pair {
  T x, y;
};

template <class T, bool trans_b, int panels>
__global__ __launch_bounds__(kThreads, 2) void update_kernel(const UpdateArgs p) {
  extern __shared__ __align__(128) char shared[];
  const uint32_t tile_a = ptx::shared_address(shared), tile_b = tile_a + panels * kPanelBytes, tile_c = tile_b + panels * kPanelBytes;
  char* c_tile = shared + 2 * panels * kPanelBytes;
  const int64_t first_m = static_cast<int64_t>(blockIdx.x / p.tiles_n) * kTile, first_n = static_cast<int64_t>(blockIdx.x % p.tiles_n) * kTile;
#pragma unroll
  for (int panel = 0; panel < panels; panel++) {
    fetch_tile<T, kDepth, true, kThreads>(tile_a + panel * kPanelBytes, static_cast<const T*>(p.a), p.lda, first_m, p.m, panel * kDepth, p.k);
    fetch_tile<T, kDepth, trans_b, kThreads>(tile_b + panel * kPanelBytes, static_cast<const T*>(p.b), p.ldb, first_n, p.n, panel * kDepth, p.k);
  }
  ptx::cp_async_commit();
  // Pieces of the tile of C that this thread moves: 16 to a row, n is a multiple of 8.
  T* c = static_cast<T*>(p.e.c) + first_m * p.e.ldc + first_n;
  const int piece = threadIdx.x % 16, top = threadIdx.x / 16;
  const bool in_row = first_n + piece * 8 < p.n;
  if (p.e.beta != 0.f)
#pragma unroll
    for (int i = 0; i < kTile / 16; i++) {
      const int row = top + i * 16;
      const bool there = in_row && first_m + row < p.m;
      ptx::cp_async16(tile_c + row * kRowBytes + piece * 16, there ? c + row * p.e.ldc + piece * 8 : c, there ? 16 : 0);
    }
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  __syncthreads();

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = (warp >> 1) * 32, warp_n = (warp & 1) * 64;
  float sum[2][8][4] = {};
#pragma unroll
  for (int panel = 0; panel < panels; panel++)
#pragma unroll
    for (int inner = 0; inner < kDepth / 16; inner++) {
      if (panel * kDepth + inner * 16 >= p.k) break;
      uint32_t fa[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) fragment_a<kDepth, true>(fa[i], tile_a + panel * kPanelBytes, warp_m + i * 16, inner);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t fb[4];
        fragment_b<kDepth, trans_b>(fb, tile_b + panel * kPanelBytes, warp_n + j * 16, inner);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          ptx::mma16816<T>(sum[i][j * 2], fa[i], fb[0], fb[1]);
          ptx::mma16816<T>(sum[i][j * 2 + 1], fa[i], fb[2], fb[3]);
        }
      }
    }

  ptx::cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = warp_m + i * 16 + (lane >> 2) + half * 8, col = warp_n + j * 8 + (lane & 3) * 2;
        Pair<T>& at = *reinterpret_cast<Pair<T>*>(c_tile + row * kRowBytes + col * 2);
        float x = p.e.alpha * sum[i][j][half * 2], y = p.e.alpha * sum[i][j][half * 2 + 1];
        if (p.e.beta != 0.f) {
          const Pair<T> old = at;
          x += p.e.beta * to_float(old.x);
          y += p.e.beta * to_float(old.y);
        }
        at = {from_float<T>(x), from_float<T>(y)};
      }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTile / 16; i++) {
    const int row = top + i * 16;
    if (in_row && first_m + row < p.m) *reinterpret_cast<uint4*>(c + row * p.e.ldc + piece * 8) = *reinterpret_cast<const uint4*>(c_tile + row * kRowBytes + piece * 16);
  }
}

template <class T, bool trans_b, int panels>
const char* launch(Context& ctx, const Gemm& g) {
  constexpr int bytes = 2 * panels * kPanelBytes + kTileBytes;
  const int64_t tiles_m = ceil_div(g.m, kTile), tiles_n = ceil_div(g.n, kTile);
  UpdateArgs p{g.m, g.n, g.lda, g.ldb, static_cast<int>(g.k), static_cast<int>(tiles_n), g.a, g.b, epilogue_of(g)};
  auto kernel = update_kernel<T, trans_b, panels>;
  static const cudaError_t sized = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (sized != cudaSuccess) return cudaGetErrorString(sized);
  kernel<<<static_cast<unsigned>(tiles_m * tiles_n), kThreads, bytes, ctx.stream>>>(p);
  return launched();
}

template <class T>
const char* by_shape(Context& ctx, const Gemm& g) {
  if (g.k <= kDepth) return g.trans_b ? launch<T, true, 1>(ctx, g) : launch<T, false, 1>(ctx, g);
  return g.trans_b ? launch<T, true, 2>(ctx, g) : launch<T, false, 2>(ctx, g);
}

}  // namespace

bool can_update(const Gemm& g) {
  return !g.trans_a && g.k <= kMostDepth && !g.bias && g.m >= kTile && g.n >= kTile && g.n % 8 == 0 && can_mma(g) && g.dtype_c == g.dtype_a &&
         rows_aligned16(g.c, g.ldc, g.dtype_c);
}

const char* update_gemm(Context& ctx, const Gemm& g) { return g.dtype_a == DType::bf16 ? by_shape<bf16>(ctx, g) : by_shape<f16>(ctx, g); }

}  // namespace llm::cuda
