// What the Hopper kernels of the attention gradient share: sizes, and their products of 64 rows by a warpgroup. See backward_hopper.cu.
#pragma once
#include "cuda/attention/backward.h"
#include "cuda/attention/backward_ptx.cuh"
#include "cuda/attention/tensor_map.cuh"

namespace llm::cuda::gradient {
namespace {

using namespace ptx;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kKept = 128, kBlock = 64;  // rows that a block keeps; rows of the other side per step
constexpr int kQueryRows = 256;          // rows of a query tile
constexpr int kHalf = kBlock * kBlock, kSpill = 2 * kHalf;  // elements of a spilled half and of a spilled block
constexpr float kLog2e = 1.4426950408889634f;

// What the kernels of one round read and write besides the plan.
struct Round {
  int number;
  void* spill;
  float* parts;  // [part][dk, dv][128][D]: sums of a part of a key tile's pass
};

// Tensor maps of both sides: tiles that a block keeps, tiles that pass by.
struct Maps {
  CUtensorMap kept_a, kept_c, passing_b, passing_d;
};

// Blocks stay on the card and take one piece of work after another; the lists fall in length. The producer takes a piece and tells the
// consumers through two slots in shared memory: which, then barriers "told" and "heard" of each.
struct Pieces {
  static constexpr int bytes = 48;
  uint32_t base;
  __device__ __forceinline__ uint32_t told(int n) const { return base + 16 + 16 * (n & 1); }
  __device__ __forceinline__ uint32_t heard(int n) const { return told(n) + 8; }
  __device__ __forceinline__ void init() const {  // by one thread
    for (int n = 0; n < 2; n++) {
      mbar_init(told(n), 1);
      mbar_init(heard(n), kConsumers * 4);
    }
  }
  // The producer's n-th piece of `all`, or -1; by one thread.
  __device__ __forceinline__ int take(int n, int all, int* taken) const {
    int piece = n == 0 ? static_cast<int>(blockIdx.x) : static_cast<int>(gridDim.x) + atomicAdd(taken, 1);
    if (piece >= all) piece = -1;
    mbar_wait(heard(n), (n / 2 & 1) ^ 1);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(base + 4 * (n & 1)), "r"(piece) : "memory");
    mbar_arrive(told(n));
    return piece;
  }
  // The same for the consumers; by whole warps.
  __device__ __forceinline__ int hear(int n) const {
    mbar_wait(told(n), n / 2 & 1);
    int piece;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(piece) : "r"(base + 4 * (n & 1)) : "memory");
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbar_arrive(heard(n));
    return piece;
  }
};

// Blocks of queries [begin, end) that a key tile's pass visits.
__device__ __forceinline__ Range blocks_of(const Problem& p, const Tile& t) {
  const Range r = queries_of(p, t);
  return r.end > r.begin ? Range{r.begin / kBlock, (r.end - 1) / kBlock + 1} : Range{0, 0};
}

// Rows [valid, rows) of a swizzled tile become zeros: what lies there belongs to another sequence. cleared() before products read it.
template <int D>
__device__ __forceinline__ void clear_rows(uint32_t tile, int rows, int valid) {
  for (int e = max(valid, 0) * 8 + static_cast<int>(threadIdx.x) % kWarpgroup; e < rows * 8; e += kWarpgroup)
#pragma unroll
    for (int panel = 0; panel < D / 64; panel++) store_shared_zeros(tile + static_cast<uint32_t>(panel * rows * 128 + e * 16));
}
__device__ __forceinline__ void cleared() {
  fence_async_shared();
  named_sync(threadIdx.x < 2 * kWarpgroup ? 1 : 2, kWarpgroup);
}

// x[64, 64] = (64 rows of a kept tile) (a passing tile)^T.
template <class T, int D>
__device__ __forceinline__ void scores(float (&x)[32], uint64_t kept, uint64_t passing) {
#pragma unroll
  for (int k = 0; k < D / 16; k++)
    Wgmma<T, 64>::template ss<0, 0>(x, kept + k / 4 * (kKept * 8) + k % 4 * 2, passing + k / 4 * (kBlock * 8) + k % 4 * 2, k > 0);
}

// sum[64, D] += x[64, 64] (a passing tile), x in registers.
template <class T, int D>
__device__ __forceinline__ void accumulate(float (&sum)[D / 2], const uint32_t (&x)[4][4], uint64_t passing) {
#pragma unroll
  for (int k = 0; k < 4; k++) Wgmma<T, D>::template rs<1>(sum, x[k], passing + k * 128, 1);
}

// sum[64, D] += (a spilled half)^T (a passing tile).
template <class T, int D>
__device__ __forceinline__ void accumulate_spilled(float (&sum)[D / 2], uint64_t spilled, uint64_t passing) {
#pragma unroll
  for (int k = 0; k < 4; k++) Wgmma<T, D>::template ss<1, 1>(sum, spilled + k * 128, passing + k * 128, 1);
}

template <class T>
__device__ __forceinline__ void as_operand(uint32_t (&a)[4][4], const float (&x)[32]) {
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int e = 0; e < 4; e++) a[k][e] = pack2<T>(x[8 * k + 2 * e], x[8 * k + 2 * e + 1]);
}

// A warpgroup's 64 rows of a result, times `factor`; `rows` of them exist.
template <class T, int D>
__device__ __forceinline__ void store(void* to, const float (&sum)[D / 2], float factor, int64_t token, int rows, int heads, int head) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = warp * 16 + half * 8 + lane / 4;
    if (r >= rows) continue;
    uint32_t* row = reinterpret_cast<uint32_t*>(static_cast<T*>(to) + ((token + r) * heads + head) * D) + lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; n++) row[n * 4] = pack2<T>(sum[4 * n + 2 * half] * factor, sum[4 * n + 2 * half + 1] * factor);
  }
}

// The same, unrounded, to [64][D].
template <int D>
__device__ __forceinline__ void store_part(float* to, const float (&sum)[D / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  float* row = to + (warp * 16 + lane / 4) * D + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
    *reinterpret_cast<float2*>(row + n * 8) = make_float2(sum[4 * n], sum[4 * n + 1]);
    *reinterpret_cast<float2*>(row + 8 * D + n * 8) = make_float2(sum[4 * n + 2], sum[4 * n + 3]);
  }
}

}  // namespace
}  // namespace llm::cuda::gradient
