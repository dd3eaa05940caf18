// What the norm and its gradient share: how rows are split over threads, and the sum over the threads of a row.
#pragma once
#include "cuda/rows.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 512;  // most threads of a block
constexpr int kMaxWarps = kThreads / 32;
constexpr int kNarrowThreads = 448;  // the same for rows of two packs a thread

// How many threads share a row, 16 bytes times packs_per_thread each (0: the plain kernels), and how many rows a block has at a time.
struct Split {
  int lanes, packs_per_thread, groups;

  int threads() const { return lanes * groups; }
};

// `threads(packs_per_thread)` is what a block should have; a row of more has a block of its own.
template <class F>
Split split_of(bool packed, int64_t packs, int64_t cols, F threads) {
  Split s{cols > 1024 ? 256 : 32, 0, 1};
  if (packed && packs <= 32) {
    s.packs_per_thread = 1;
    for (s.lanes = 1; s.lanes < packs;) s.lanes *= 2;
  } else if (packed && packs <= 2 * kNarrowThreads) {
    s.packs_per_thread = 2;
    s.lanes = 32 * static_cast<int>(ceil_div(packs, 64));
  } else if (packed && packs <= 4 * kThreads) {
    s.packs_per_thread = 4;
    s.lanes = 32 * static_cast<int>(ceil_div(packs, 128));
  }
  const int block = threads(s.packs_per_thread);
  s.groups = s.lanes < block ? block / s.lanes : 1;
  return s;
}

// The threads that share a row: a power of two up to 32, or whole warps.
struct Group {
  int lanes, index, lane, turn;
  float* shared;  // 2 x kMaxWarps x R floats, taken in turns, so that one barrier a sum is enough. All of a block call sum() together.

  __device__ Group(int lanes, float* shared)
      : lanes(lanes), index(threadIdx.x / lanes), lane(threadIdx.x % lanes), turn(0), shared(shared) {}

  // Replaces each x by its sum over the group.
  template <int R>
  __device__ void sum(float (&x)[R]) {
    if (lanes <= 32) {
      for (int o = lanes >> 1; o > 0; o >>= 1)
#pragma unroll
        for (int r = 0; r < R; r++) x[r] += __shfl_xor_sync(0xffffffffu, x[r], o);
      return;
    }
    const int warps = lanes >> 5;
    float* slot = shared + (turn * kMaxWarps + index * warps) * R;
    turn ^= 1;
#pragma unroll
    for (int r = 0; r < R; r++) {
      x[r] = warp_sum(x[r]);
      if ((lane & 31) == 0) slot[(lane >> 5) * R + r] = x[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = 0;
#pragma unroll
    for (int w = 0; w < kMaxWarps; w++)  // unrolled: the loads overlap
#pragma unroll
      for (int r = 0; r < R; r++)
        if (w < warps) x[r] += slot[w * R + r];
  }
};

__device__ inline float rstd_of(float squares, int64_t cols, float eps) { return 1.0f / sqrtf(squares / static_cast<float>(cols) + eps); }

// Makes the compiler convert a pack again instead of keeping its elements as floats, which takes twice the registers.
template <class T>
__device__ inline void keep_packed(Pack<T>& p) {
  uint32_t* w = reinterpret_cast<uint32_t*>(&p);
  asm volatile("" : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3]));
}

}  // namespace
}  // namespace llm::cuda
