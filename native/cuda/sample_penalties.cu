// Penalties on tokens that a sequence has seen: repetition over prompt and output (a positive logit is divided, a negative one multiplied),
// then presence and frequency over the output. One block a row: a hash table (in shared memory when it fits, else in scratch memory) holds
// each token of the history once, with its number in the output; then one thread a table entry changes that token's logit.
#include "cuda/sample.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 512;

struct Entry {
  int token, count;  // token -1: empty
};

struct Penalties {
  float* logits;
  const int *history, *lengths, *prompts;
  const float* params;
  int64_t cols, width;
  Entry* tables;
  unsigned shared;    // entries that fit into shared memory
  unsigned capacity;  // entries of a row's table, a power of two, at least twice as many as a history has different tokens
  int* fault;
  int bad_length, bad_token;
};

__global__ void __launch_bounds__(kThreads) penalize(const Penalties a) {
  extern __shared__ Entry near_table[];
  const int64_t b = blockIdx.x;
  const float* p = a.params + b * param_count;
  if (p[repetition] == 1.f && p[presence] == 0.f && p[frequency] == 0.f) return;
  const int length = a.lengths[b], prompt = a.prompts[b];
  if (length < 0 || length > a.width) {
    if (threadIdx.x == 0) raise(a.fault, a.bad_length);
    return;
  }
  const int* history = a.history + b * a.width;
  unsigned size = 2;  // of the part of the table that this history needs
  while (size < a.capacity && size < 2u * static_cast<unsigned>(length)) size *= 2;
  Entry* table = size <= a.shared ? near_table : a.tables + b * a.capacity;
  for (unsigned i = threadIdx.x; i < size; i += kThreads) table[i] = {-1, 0};
  bool wrong = false;
  for (int i = threadIdx.x; i < length; i += kThreads) wrong |= history[i] < 0 || history[i] >= a.cols;
  if (__syncthreads_or(wrong)) {
    if (threadIdx.x == 0) raise(a.fault, a.bad_token);
    return;
  }
  for (int i = threadIdx.x; i < length; i += kThreads) {
    const int token = history[i];
    unsigned at = static_cast<unsigned>(token) * 2654435769u;
    at = (at ^ at >> 15) & (size - 1);
    for (;; at = (at + 1) & (size - 1)) {
      const int there = atomicCAS(&table[at].token, -1, token);
      if (there == -1 || there == token) break;
    }
    if (i >= prompt) atomicAdd(&table[at].count, 1);
  }
  __syncthreads();
  float* logits = a.logits + b * a.cols;
  for (unsigned i = threadIdx.x; i < size; i += kThreads) {
    const Entry e = table[i];
    if (e.token < 0) continue;
    float x = logits[e.token];
    x = x > 0.f ? __fdiv_rn(x, p[repetition]) : __fmul_rn(x, p[repetition]);
    if (e.count > 0) x = __fsub_rn(x, __fadd_rn(__fmul_rn(p[frequency], static_cast<float>(e.count)), p[presence]));
    logits[e.token] = x;
  }
}

}  // namespace

const char* apply_penalties(Context& ctx, const KernelArgs& k) {
  const View &logits = k.in[0], &history = k.in[1];
  const int64_t rows = logits.shape[0];
  if (rows == 0) return nullptr;
  Penalties a{};
  a.logits = data_of<float>(logits);
  a.history = data_of<const int>(history);
  a.lengths = data_of<const int>(k.in[2]);
  a.prompts = data_of<const int>(k.in[3]);
  a.params = data_of<const float>(k.in[4]);
  a.cols = logits.shape[1];
  a.width = history.shape[1];
  const int64_t different = a.width < a.cols ? a.width : a.cols;
  if (different > INT32_MAX / 4) return "a shorter history expected";
  a.capacity = 2;
  while (a.capacity < 2 * different) a.capacity *= 2;
  constexpr unsigned kMostShared = 8192;  // 64 KiB
  a.shared = a.capacity < kMostShared ? a.capacity : kMostShared;
  if (a.capacity > a.shared) a.tables = ctx.scratch_of<Entry>(static_cast<size_t>(rows) * a.capacity);
  const int bytes = static_cast<int>(a.shared * sizeof(Entry));
  const cudaError_t e = cudaFuncSetAttribute(penalize, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared * sizeof(Entry));
  if (e != cudaSuccess) return cudaGetErrorString(e);
  a.fault = ctx.fault_word;
  a.bad_length = ctx.code(Fault::history_length);
  a.bad_token = ctx.code(Fault::history_token);
  penalize<<<static_cast<unsigned>(rows), kThreads, bytes, ctx.stream>>>(a);
  return launched();
}

}  // namespace llm::cuda
