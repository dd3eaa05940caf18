// softmax and log_softmax over the last dim. One pass finds the largest element and the sum of exponentials together (a running sum,
// rescaled when the maximum grows), a second one writes. Three ways by shape: short rows live in a warp's registers; of longer rows a
// block keeps as much as fits in shared memory between the passes; a few long rows are cut into chunks for the whole card (two launches).
// A row of -inf gives zeros, its log -inf.
#include <algorithm>

#include "cuda/reduce.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

// sum = sum of exp(x - top)
struct Statistics {
  float top, sum;
};
__device__ inline Statistics none() { return Statistics{-INFINITY, 0.f}; }
// What to subtract: finite also where all is -inf.
__device__ inline float base_of(float top) { return top == -INFINITY ? 0.f : top; }

// NaN does not show in the maximum, but in the sum.
__device__ inline Statistics merge(const Statistics& a, const Statistics& b) {
  const float top = fmaxf(a.top, b.top), base = base_of(top);
  return Statistics{top, a.sum * exp_fast(a.top - base) + b.sum * exp_fast(b.top - base)};
}
__device__ inline Statistics merge_warp(const Statistics& s) {
  const float top = warp_max(s.top);
  return Statistics{top, warp_sum(s.sum * exp_fast(s.top - base_of(top)))};
}
// Every thread gets the result. `shared` holds 32.
__device__ inline Statistics merge_block(Statistics s, Statistics* shared) {
  const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  s = merge_warp(s);
  __syncthreads();  // `shared` may still be read after the last call
  if (lane == 0) shared[threadIdx.x >> 5] = s;
  __syncthreads();
  return merge_warp(lane < warps ? shared[lane] : none());
}

// From x to the result.
template <bool kLog>
struct Finish {
  float base, by;
  __device__ explicit Finish(const Statistics& s) : base(base_of(s.top)) {
    if constexpr (kLog) by = s.sum == 0 ? 0.f : logf(s.sum);
    else by = s.sum == 0 ? 0.f : 1.f / s.sum;
  }
  __device__ float operator()(float x) const {
    if constexpr (kLog) return x - base - by;
    else return exp_fast(x - base) * by;
  }
};

// A row in pieces of V elements a thread, for `threads` threads: neighbours (kWide), or `threads` apart where rows have any alignment. V
// elements of the result are 16 bytes; kAhead pieces, 64 bytes of x a thread, are on the way at a time.
template <class T, class O, bool kWide>
struct Row {
  static constexpr int V = 16 / static_cast<int>(sizeof(O)), kAhead = 64 / (V * static_cast<int>(sizeof(T)));
  using Piece = Few<T, V>;
  const T* x;
  O* y;
  int64_t cols;
  int thread, threads;

  __device__ int pieces() const { return static_cast<int>((cols + threads * V - 1) / (threads * V)); }
  __device__ int64_t place(int piece, int j) const {
    const int64_t first = static_cast<int64_t>(piece) * threads * V;
    return kWide ? first + thread * V + j : first + j * threads + thread;
  }
  // Whether the thread has elements of this piece.
  __device__ bool inside(int piece) const { return place(piece, 0) < cols; }
  // Of a piece that it has elements of; past the end: -inf.
  __device__ Piece load(int piece) const {
    if constexpr (kWide) {
      return Piece::load(x + place(piece, 0));
    } else {
      Piece q;
#pragma unroll
      for (int j = 0; j < V; j++) q.put(j, place(piece, j) < cols ? x[place(piece, j)] : from_float<T>(-INFINITY));
      return q;
    }
  }
  template <bool kLog>
  __device__ void store(int piece, const Piece& q, const Finish<kLog>& finish) const {
    float v[V];
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = finish(q.get(j));
    if constexpr (kWide) {
      store_floats(y + place(piece, 0), v);
    } else {
#pragma unroll
      for (int j = 0; j < V; j++)
        if (place(piece, j) < cols) y[place(piece, j)] = from_float<O>(v[j]);
    }
  }
  __device__ static void absorb(Statistics& s, const Piece& q) {
    float v[V], top = s.top;
#pragma unroll
    for (int j = 0; j < V; j++) {
      v[j] = q.get(j);
      top = fmaxf(top, v[j]);
    }
    const float base = base_of(top);
    float sum = s.sum * exp_fast(s.top - base);
#pragma unroll
    for (int j = 0; j < V; j++) sum += exp_fast(v[j] - base);
    s = Statistics{top, sum};
  }
};

// ---- rows of at most kShort elements: `lanes` lanes of a warp each -----------------------------------------------------------

constexpr int kShort = 1024, kShortThreads = 128;

template <class T, class O, bool kLog, bool kWide, int kPieces>
__global__ void __launch_bounds__(kShortThreads) softmax_short(const T* x, O* y, int64_t rows, int cols, int lanes) {
  using R = Row<T, O, kWide>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kShortThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  // A warp stays together for its shuffles: beyond the last row it has nothing to read or write.
  const R r{x + row * cols, y + row * cols, row < rows ? cols : 0, static_cast<int>(threadIdx.x) % lanes, lanes};
  typename R::Piece q[kPieces];
  float top = -INFINITY, sum = 0;
#pragma unroll
  for (int p = 0; p < kPieces; p++)
    if (r.inside(p)) q[p] = r.load(p);
#pragma unroll
  for (int p = 0; p < kPieces; p++)
    if (r.inside(p))
#pragma unroll
      for (int j = 0; j < R::V; j++) top = fmaxf(top, q[p].get(j));
  for (int o = lanes / 2; o > 0; o /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
  const float base = base_of(top);
#pragma unroll
  for (int p = 0; p < kPieces; p++)
    if (r.inside(p))
#pragma unroll
      for (int j = 0; j < R::V; j++) sum += exp_fast(q[p].get(j) - base);
  for (int o = lanes / 2; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  const Finish<kLog> finish(Statistics{top, sum});
#pragma unroll
  for (int p = 0; p < kPieces; p++)
    if (r.inside(p)) r.store(p, q[p], finish);
}

// ---- longer rows: a block each -----------------------------------------------------------------------------------------------
// The first `kept` pieces stay in shared memory between the passes, each thread its own; the others are read again, the latest first (they
// may still be in the cache).

// Rows of any alignment.
template <class T, class O, bool kLog>
__global__ void __launch_bounds__(1024) softmax_block(const T* x, O* y, int64_t cols, int kept) {
  using R = Row<T, O, false>;
  using Piece = typename R::Piece;
  constexpr int kAhead = R::kAhead;
  extern __shared__ uint4 memory[];
  __shared__ Statistics shared[32];
  const R r{x + blockIdx.x * cols, y + blockIdx.x * cols, cols, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  Piece* mine = reinterpret_cast<Piece*>(memory) + threadIdx.x;
  const int pieces = r.pieces();
  Statistics s = none();
  for (int p = 0; p < pieces; p += kAhead) {
    Piece q[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (r.inside(p + u)) q[u] = r.load(p + u);
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      if (!r.inside(p + u)) break;
      if (p + u < kept) mine[(p + u) * r.threads] = q[u];
      R::absorb(s, q[u]);
    }
  }
  const Finish<kLog> finish(merge_block(s, shared));
  for (int p = pieces - 1; p >= kept; p--)
    if (r.inside(p)) r.store(p, r.load(p), finish);
  for (int p = min(kept, pieces) - 1; p >= 0; p--)
    if (r.inside(p)) r.store(p, mine[p * r.threads], finish);
}

// Asynchronous copies from global to shared memory, in groups; a thread waits for its own.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(kBytes) : "memory");
}
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most n groups are under way (fewer, where n is more than 3).
__device__ inline void wait_groups(int n) {
  switch (n) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 3;" ::: "memory");
  }
}

// Rows on 16-byte boundaries: each block takes every gridDim-th row. As soon as a thread has written a group of kept pieces, it asks for
// the same pieces of the block's next row: reading and writing overlap.
template <class T, class O, bool kLog>
__global__ void __launch_bounds__(1024) softmax_stream(const T* x, O* y, int64_t rows, int64_t cols, int kept) {
  using R = Row<T, O, true>;
  using Piece = typename R::Piece;
  constexpr int kAhead = R::kAhead;
  extern __shared__ uint4 memory[];
  __shared__ Statistics shared[32];
  R r{x, y, cols, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  Piece* mine = reinterpret_cast<Piece*>(memory) + threadIdx.x;
  const int pieces = r.pieces(), groups = (kept + kAhead - 1) / kAhead;
  const auto fetch = [&](int64_t row, int group) {
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      const int p = group * kAhead + u;
      if (row < rows && p < kept && r.inside(p)) copy_async<Piece::kBytes>(mine + p * r.threads, x + row * cols + r.place(p, 0));
    }
    end_group();
  };
  for (int g = 0; g < groups; g++) fetch(blockIdx.x, g);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    r.x = x + row * cols;
    r.y = y + row * cols;
    Statistics s = none();
#pragma unroll 1
    for (int g = 0; g < groups; g++) {
      wait_groups(groups - 1 - g);
#pragma unroll
      for (int u = 0; u < kAhead; u++) {
        const int p = g * kAhead + u;
        if (p < kept && r.inside(p)) R::absorb(s, mine[p * r.threads]);
      }
    }
#pragma unroll 1
    for (int p = kept; p < pieces; p += kAhead) {
      Piece q[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (r.inside(p + u)) q[u] = r.load(p + u);
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (r.inside(p + u)) R::absorb(s, q[u]);
    }
    const Finish<kLog> finish(merge_block(s, shared));
#pragma unroll 1
    for (int p = pieces - 1; p >= kept; p -= kAhead) {
      Piece q[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (p - u >= kept && r.inside(p - u)) q[u] = r.load(p - u);
#pragma unroll
      for (int u = 0; u < kAhead; u++)
        if (p - u >= kept && r.inside(p - u)) r.store(p - u, q[u], finish);
    }
#pragma unroll 1
    for (int g = 0; g < groups; g++) {
#pragma unroll
      for (int u = 0; u < kAhead; u++) {
        const int p = g * kAhead + u;
        if (p < kept && r.inside(p)) r.store(p, mine[p * r.threads], finish);
      }
      fetch(row + gridDim.x, g);
    }
  }
  wait_groups(0);
}

// ---- few long rows: several blocks each --------------------------------------------------------------------------------------

constexpr int kSplitThreads = 256;

template <class T, class O, bool kWide>
__device__ inline Row<T, O, kWide> part_of_row(const T* x, O* y, int64_t cols, int64_t chunk) {
  const int64_t begin = blockIdx.x * chunk, offset = blockIdx.y * cols + begin;
  return {x + offset, y + offset, min(chunk, cols - begin), static_cast<int>(threadIdx.x), kSplitThreads};
}

template <class T, class O, bool kWide>
__global__ void __launch_bounds__(kSplitThreads) statistics_kernel(const T* x, int64_t cols, int64_t chunk, Statistics* parts) {
  constexpr int kAhead = Row<T, O, kWide>::kAhead;
  __shared__ Statistics shared[32];
  const auto r = part_of_row<T, O, kWide>(x, nullptr, cols, chunk);
  const int pieces = r.pieces();
  Statistics s = none();
  for (int p = 0; p < pieces; p += kAhead) {
    typename Row<T, O, kWide>::Piece q[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (r.inside(p + u)) q[u] = r.load(p + u);
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (r.inside(p + u)) r.absorb(s, q[u]);
  }
  s = merge_block(s, shared);
  if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = s;
}

template <class T, class O, bool kLog, bool kWide>
__global__ void __launch_bounds__(kSplitThreads) finish_kernel(const T* x, O* y, int64_t cols, int64_t chunk, const Statistics* parts) {
  const auto r = part_of_row<T, O, kWide>(x, y, cols, chunk);
  const int pieces = r.pieces();
  Statistics s = none();
  for (unsigned i = threadIdx.x & 31; i < gridDim.x; i += 32) s = merge(s, parts[blockIdx.y * gridDim.x + i]);
  const Finish<kLog> finish(merge_warp(s));
#pragma unroll 4
  for (int p = 0; p < pieces; p++)
    if (r.inside(p)) r.store(p, r.load(p), finish);
}

// ---- the choice --------------------------------------------------------------------------------------------------------------

template <class T, class O, bool kLog, bool kWide>
const char* launch_short(Context& ctx, const T* x, O* y, int64_t rows, int cols) {
  constexpr int V = Row<T, O, kWide>::V;
  int lanes = 1;
  while (lanes < 32 && lanes * V < cols) lanes *= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(rows, kShortThreads / lanes));
  if (cols <= 32 * V) softmax_short<T, O, kLog, kWide, 1><<<blocks, kShortThreads, 0, ctx.stream>>>(x, y, rows, cols, lanes);
  else softmax_short<T, O, kLog, kWide, kShort / (32 * V)><<<blocks, kShortThreads, 0, ctx.stream>>>(x, y, rows, cols, lanes);
  return launched();
}

// About 64 bytes of the row a thread, while several blocks fit into a multiprocessor's shared memory.
template <class T, class O, bool kLog, bool kWide>
const char* launch_block(Context& ctx, const T* x, O* y, int64_t rows, int64_t cols) {
  constexpr int64_t kPerThread = Row<T, O, kWide>::V * static_cast<int>(sizeof(T));
  const int64_t bytes = cols * static_cast<int64_t>(sizeof(T)), room = ctx.shared_bytes - 1024;
  const int threads = bytes <= 8192 ? 128 : bytes <= 32768 ? 256 : bytes <= room / 2 ? 512 : 1024;
  const int64_t piece = threads * kPerThread, kept = std::min(ceil_div(bytes, piece), room / piece), shared = kept * piece;
  const auto allow = [&](const void* kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(room));
  };
  if constexpr (kWide) {
    const auto kernel = softmax_stream<T, O, kLog>;
    static const cudaError_t allowed = allow(reinterpret_cast<const void*>(kernel));
    if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
    const int64_t resident = std::min<int64_t>((ctx.shared_bytes + 1024) / (shared + 2048), 1024 / threads);  // of 64 registers a thread
    const int64_t blocks = std::min(rows, std::max<int64_t>(1, resident) * ctx.sms);
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared), ctx.stream>>>(x, y, rows, cols,
                                                                                                                     static_cast<int>(kept));
  } else {
    const auto kernel = softmax_block<T, O, kLog>;
    static const cudaError_t allowed = allow(reinterpret_cast<const void*>(kernel));
    if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
    kernel<<<static_cast<unsigned>(rows), static_cast<unsigned>(threads), static_cast<size_t>(shared), ctx.stream>>>(x, y, cols,
                                                                                                                   static_cast<int>(kept));
  }
  return launched();
}

template <class T, class O, bool kLog, bool kWide>
const char* launch(Context& ctx, const T* x, O* y, int64_t rows, int64_t cols) {
  if (cols <= kShort) return launch_short<T, O, kLog, kWide>(ctx, x, y, rows, static_cast<int>(cols));
  const Split split = cols < 16384 ? Split{1, cols} : split_rows(ctx, rows, cols, 2048, kSplitThreads * 8, 8);
  if (split.splits == 1) return launch_block<T, O, kLog, kWide>(ctx, x, y, rows, cols);
  Statistics* parts = ctx.scratch_of<Statistics>(static_cast<size_t>(split.splits * rows));
  const dim3 grid(static_cast<unsigned>(split.splits), static_cast<unsigned>(rows));
  statistics_kernel<T, O, kWide><<<grid, kSplitThreads, 0, ctx.stream>>>(x, cols, split.chunk, parts);
  finish_kernel<T, O, kLog, kWide><<<grid, kSplitThreads, 0, ctx.stream>>>(x, y, cols, split.chunk, parts);
  return launched();
}

template <bool kLog>
const char* softmax_of(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const int64_t n = view_numel(x), cols = last_dim(x);
  if (n == 0) return nullptr;
  return dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    using O = std::conditional_t<kLog, float, T>;
    const bool wide = aligned16(x.data) && aligned16(y.data) && cols % Pack<O>::n == 0;
    return wide ? launch<T, O, kLog, true>(ctx, data_of<const T>(x), data_of<O>(y), n / cols, cols)
                : launch<T, O, kLog, false>(ctx, data_of<const T>(x), data_of<O>(y), n / cols, cols);
  });
}

}  // namespace

const char* softmax(Context& ctx, const KernelArgs& k) { return softmax_of<false>(ctx, k); }
const char* log_softmax(Context& ctx, const KernelArgs& k) { return softmax_of<true>(ctx, k); }

}  // namespace llm::cuda
