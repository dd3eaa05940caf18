// Cross-entropy over rows of logits, and log-probabilities of tokens. A block a row, in one kernel with three uses:
//     loss      nll = weight * -log softmax(row)[label]: the row is read once, with a running softmax
//     gradient  the same, then the row becomes weight * (softmax - onehot): as much of the row as fits stays in shared memory between the
//               two passes, so that only the rest is read twice
//     logprob   log softmax(row)[id], and whether id is the argmax (the first of equals)
// On Hopper and later a cluster of up to eight blocks shares a row, so that long rows fit their shared memories altogether, several blocks
// live on a multiprocessor (one loads while another adds up), and a few rows still keep the card busy.
// A row with label -100 or weight 0 has no loss and no gradient. -inf logits are impossible tokens; a row of nothing else has an infinite
// loss and a zero gradient. A label outside the vocabulary raises a fault and counts as -100.
#include <cooperative_groups.h>

#include "cuda/loss.h"
#include "cuda/loss_rows.cuh"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

enum class Use { loss, gradient, logprob };

constexpr int kIgnored = -100;
constexpr int kMostRanks = 8;              // the largest cluster that every card grants
constexpr int64_t kBytesOfABlock = 78000;  // of a row: two or three blocks on a multiprocessor
// Packs that a thread has in flight: as many as 64 registers can hold widened to f32.
template <class T>
constexpr int kInFlight = sizeof(T) == 2 ? 3 : 4;

template <class T>
struct RowsOf {
  T* logits;
  int cols;
  const int32_t* labels;
  const float* weights;
  float* out;       // nll or logprob
  int32_t* greedy;
  int kept;         // packs that a block's shared memory holds
  int ranks;        // blocks that share a row: a cluster
  int* fault;
  int code;
};

struct InBase2 {
  __device__ float operator()(float x) const { return x * kLog2e; }
};

// The running softmax of the thread's share of the row, which it keeps in shared memory as far as that goes. `beaten`: an element before
// `label` is at least as large as `bar`, or one after it larger (looked at for Use::logprob).
template <class T, Use use>
__device__ RunningSoftmax softmax_pass(const T* row, const RowPart& part, int kept, Pack<T>* keep, int label, float bar, bool& beaten) {
  constexpr int kPack = Pack<T>::n, kBatch = kInFlight<T>;
  RunningSoftmax sum;
  const auto look = [&](float x, int c) { beaten |= c < label ? x >= bar : c > label && x > bar; };
  const auto single = [&](int c) {
    const float x[1] = {to_float(row[c])};
    sum.add(x, x[0], InBase2{});
    if (use == Use::logprob) look(x[0], c);
  };
  for (int c = part.begin + threadIdx.x; c < part.body; c += blockDim.x) single(c);
  for (int c = part.tail + threadIdx.x; c < part.end; c += blockDim.x) single(c);

  const T* body = row + part.body;
  for (int first = threadIdx.x; first < part.packs; first += kBatch * blockDim.x) {
    Pack<T> p[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int i = first + b * static_cast<int>(blockDim.x);
      if (i < part.packs) {
        p[b] = i < kept || use != Use::gradient ? load_pack_last(body + i * kPack) : load_pack(body + i * kPack);
      } else {
#pragma unroll
        for (int j = 0; j < kPack; j++) p[b].v[j] = from_float<T>(-INFINITY);
      }
    }
    float x[kBatch * kPack];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int i = first + b * static_cast<int>(blockDim.x);
      if (use == Use::gradient && i < kept && i < part.packs) keep[i] = p[b];
#pragma unroll
      for (int j = 0; j < kPack; j++) x[b * kPack + j] = to_float(p[b].v[j]);
    }
    const float most = largest(x);
    sum.add(x, most, InBase2{});
    if (use == Use::logprob && !beaten && most >= bar) {
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const int i = first + b * static_cast<int>(blockDim.x);
#pragma unroll
        for (int j = 0; j < kPack; j++)
          if (i < part.packs) look(x[b * kPack + j], part.body + i * kPack + j);
      }
    }
  }
  return sum;
}

// row = scale * exp(row - m); a scale of 0 writes zeros. Packs below `kept` come from shared memory.
template <class T>
__device__ void gradient_pass(T* row, const RowPart& part, int kept, const Pack<T>* keep, float m, float scale) {
  constexpr int kPack = Pack<T>::n, kBatch = kInFlight<T>;
  const auto change = [&](float x) { return scale == 0 ? 0.f : scale * exp2_fast((x - m) * kLog2e); };
  const auto change_pack = [&](Pack<T> p) {
#pragma unroll
    for (int j = 0; j < kPack; j++) p.v[j] = from_float<T>(change(to_float(p.v[j])));
    return p;
  };
  T* body = row + part.body;
  kept = min(kept, part.packs);
  // Packs that were read last are the likeliest in the L2 cache: they come first.
  for (int first = kept + threadIdx.x; first < part.packs; first += kBatch * blockDim.x) {
    Pack<T> p[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int i = first + b * static_cast<int>(blockDim.x);
      if (i < part.packs) p[b] = load_pack_last(body + i * kPack);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int i = first + b * static_cast<int>(blockDim.x);
      if (i < part.packs) store_pack_last(body + i * kPack, change_pack(p[b]));
    }
  }
  for (int c = part.begin + threadIdx.x; c < part.body; c += blockDim.x) row[c] = from_float<T>(change(to_float(row[c])));
  for (int c = part.tail + threadIdx.x; c < part.end; c += blockDim.x) row[c] = from_float<T>(change(to_float(row[c])));
  for (int i = threadIdx.x; i < kept; i += blockDim.x) store_pack_last(body + i * kPack, change_pack(keep[i]));
}

template <class T>
__device__ void zero_row(T* row, const RowPart& part) {
  Pack<T> none;
#pragma unroll
  for (int j = 0; j < Pack<T>::n; j++) none.v[j] = from_float<T>(0.f);
  for (int c = part.begin + threadIdx.x; c < part.body; c += blockDim.x) row[c] = none.v[0];
  for (int c = part.tail + threadIdx.x; c < part.end; c += blockDim.x) row[c] = none.v[0];
  for (int i = threadIdx.x; i < part.packs; i += blockDim.x) store_pack_last(row + part.body + i * Pack<T>::n, none);
}

struct RowSum {
  RunningSoftmax sum;
  int beaten;
};

// The whole row's, from what each block of the cluster found: every block writes to all and adds up in the order of their ranks.
__device__ RowSum over_cluster(RowSum mine, int rank, int ranks) {
#if __CUDA_ARCH__ >= 900
  __shared__ RowSum found[kMostRanks];
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.barrier_wait();  // all blocks have started; the kernel's beginning arrived
  if (threadIdx.x < ranks) *cluster.map_shared_rank(&found[rank], threadIdx.x) = mine;
  cluster.sync();
  RowSum all = found[0];
  for (int i = 1; i < ranks; i++) {
    all.sum.m = fmaxf(all.sum.m, found[i].sum.m);
    all.beaten |= found[i].beaten;
  }
  all.sum.s = 0;
  for (int i = 0; i < ranks; i++) all.sum.s += found[i].sum.s * exp2_fast((found[i].sum.m - all.sum.m) * kLog2e);
  return all;
#else
  return mine;
#endif
}

template <class T, Use use>
__global__ void __launch_bounds__(1024) softmax_rows(RowsOf<T> a) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ float reduce[32];
  Pack<T>* keep = reinterpret_cast<Pack<T>*>(dynamic);
  const int64_t r = blockIdx.x / a.ranks;
  const int rank = static_cast<int>(blockIdx.x) % a.ranks;
  T* row = a.logits + r * a.cols;
  const RowPart part = row_part(row, a.cols, rank, a.ranks);
  const int label = a.labels[r];
  const float w = a.weights == nullptr ? 1.f : a.weights[r];
  const bool bad = label != kIgnored && (label < 0 || label >= a.cols), first = rank == 0 && threadIdx.x == 0;
  if (bad && first) raise(a.fault, a.code);
  if (bad || label == kIgnored || w == 0) {
    if (use == Use::gradient) zero_row(row, part);
    if (first) {
      a.out[r] = 0;
      if (use == Use::logprob) a.greedy[r] = 0;
    }
    return;
  }
#if __CUDA_ARCH__ >= 900
  if (a.ranks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  const float own = to_float(row[label]);  // every thread passes a barrier before any of them writes the row
  bool beaten = false;
  const RunningSoftmax mine = softmax_pass<T, use>(row, part, a.kept, keep, label, own, beaten);
  RowSum row_sum{mine.over_block(reduce, InBase2{}), use == Use::logprob ? __syncthreads_or(beaten) : 0};
  if (a.ranks > 1) row_sum = over_cluster(row_sum, rank, a.ranks);
  const RunningSoftmax all = row_sum.sum;
  if (use == Use::logprob) {
    if (first) {
      a.out[r] = own == -INFINITY ? own : own - all.m - logf(all.s);
      a.greedy[r] = row_sum.beaten == 0;
    }
    return;
  }
  if (first) a.out[r] = own == -INFINITY ? w * INFINITY : w * (logf(all.s) - (own - all.m));
  if (use == Use::gradient) {
    const float scale = all.s == 0 ? 0.f : w / all.s;
    gradient_pass(row, part, a.kept, keep, all.m, scale);
    __syncthreads();
    if (threadIdx.x == 0 && label >= part.begin && label < part.end)
      row[label] = from_float<T>(all.s == 0 ? 0.f : w * (exp2_fast((own - all.m) * kLog2e) / all.s - 1.f));
  }
}

// How a row is shared out.
struct Shares {
  int ranks, threads, shared;
};
template <class T, Use use>
Shares shares_of(const Context& ctx, int64_t rows, int64_t cols) {
  const int64_t bytes = cols * static_cast<int64_t>(sizeof(T));
  Shares s{1, 256, 0};
  if (ctx.arch >= 90) {
    while (s.ranks < kMostRanks && (bytes / s.ranks > kBytesOfABlock || (rows * s.ranks < ctx.sms && bytes / s.ranks > 16384))) s.ranks *= 2;
    if (use != Use::gradient && rows >= ctx.sms) s.ranks = 1;
  }
  const int64_t part = (ceil_div(bytes / 16, s.ranks) + 1) * 16, most = ctx.shared_bytes - 1024;
  if (part / 16 < 256 * kInFlight<T>) s.threads = 128;
  if (rows * s.ranks < ctx.sms) s.threads = part / 16 >= 1024 * kInFlight<T> ? 1024 : part / 16 >= 512 * kInFlight<T> ? 512 : s.threads;
  if (use == Use::gradient) {
    if (part > most / 2 - 1024) s.threads = 1024;  // alone on its multiprocessor
    s.shared = static_cast<int>(part < most ? part : most) & ~15;
  }
  return s;
}

template <class T, Use use>
const char* run(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  const int64_t rows = x.shape[0];
  if (rows == 0) return nullptr;
  const Shares s = shares_of<T, use>(ctx, rows, x.shape[1]);
  RowsOf<T> a{};
  a.logits = data_of<T>(x);
  a.cols = static_cast<int>(x.shape[1]);
  a.labels = data_of<int32_t>(k.in[1]);
  a.weights = use != Use::logprob && k.n_in > 2 && present(k.in[2]) ? data_of<float>(k.in[2]) : nullptr;
  a.out = data_of<float>(k.out[0]);
  a.greedy = use == Use::logprob ? data_of<int32_t>(k.out[1]) : nullptr;
  a.kept = s.shared / 16;
  a.ranks = s.ranks;
  a.fault = ctx.fault_word;
  a.code = ctx.code(Fault::token_id);
  const auto kernel = softmax_rows<T, use>;
  if (s.shared > 47 * 1024) {
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, s.shared);
    if (e != cudaSuccess) return cudaGetErrorString(e);
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(s.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows * s.ranks));
  config.blockDim = dim3(static_cast<unsigned>(s.threads));
  config.dynamicSmemBytes = static_cast<size_t>(s.shared);
  config.stream = ctx.stream;
  config.attrs = &cluster;
  config.numAttrs = s.ranks > 1 ? 1 : 0;
  const cudaError_t e = cudaLaunchKernelEx(&config, kernel, a);
  return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

const char* cross_entropy(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) { return run<decltype(t), Use::loss>(ctx, k); });
}
const char* cross_entropy_inplace(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) { return run<decltype(t), Use::gradient>(ctx, k); });
}
const char* token_logprobs(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) { return run<decltype(t), Use::logprob>(ctx, k); });
}

}  // namespace

const CudaEntry cuda_loss[] = {
    {op_cross_entropy, cross_entropy},
    {op_cross_entropy_inplace, cross_entropy_inplace},
    {op_distill_inplace, distill_inplace},
    {op_token_logprobs, token_logprobs},
};
const int cuda_loss_count = sizeof(cuda_loss) / sizeof(cuda_loss[0]);

}  // namespace llm::cuda
