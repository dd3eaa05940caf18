// Entries of the table cuda_reduce that have files of their own, and what the reductions share.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

const char* softmax(Context& ctx, const KernelArgs& k);
const char* log_softmax(Context& ctx, const KernelArgs& k);
const char* argmax(Context& ctx, const KernelArgs& k);
const char* topk(Context& ctx, const KernelArgs& k);

constexpr int kMostGroups = 1024;  // results of one command that several blocks share

// How a few long rows are shared out: `splits` blocks a row, each over `chunk` elements (a multiple of `multiple`, about `least` or more),
// no more blocks than the card holds at once. One split where the rows alone fill the card.
struct Split {
  int splits;
  int64_t chunk;
};
inline Split split_rows(const Context& ctx, int64_t rows, int64_t cols, int64_t least, int64_t multiple, int blocks_per_sm) {
  if (rows == 0 || rows >= 4 * ctx.sms || rows > kMostGroups || cols < 2 * least) return Split{1, cols};
  const int64_t want = static_cast<int64_t>(ctx.sms) * blocks_per_sm / rows, most = ceil_div(cols, least);
  if (want < 2) return Split{1, cols};
  const int64_t chunk = ceil_div(ceil_div(cols, want < most ? want : most), multiple) * multiple;
  return Split{static_cast<int>(ceil_div(cols, chunk)), chunk};
}

#if defined(__CUDACC__)
// Blocks of one group work on parts of one result; the last of them to get here puts the parts together, in a fixed order, in the same
// launch. All threads call it; true in the last block alone, which then sees what the others wrote (read it with __ldcg). `arrived` is
// zero before and after: atomicInc wraps around. Commands run one at a time, so that a file's counters serve all its kernels.
__device__ inline bool last_of(unsigned* arrived, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(arrived, blocks - 1) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}
#endif
}  // namespace llm::cuda
