// The gradient of RMS norm.
//
// A row belongs to a group of threads (part of a warp, a warp, or several warps) and is read once and written once. Blocks stay for the
// whole run and walk over the rows in steps of the grid; the next rows are on their way to shared memory (cp.async) while a group
// works on the present ones. Rows that are not aligned to 16 bytes, or too wide, take the plain kernels, which read a row twice.
//
// The weight's gradient is a sum over rows: each group adds up its rows in registers, a block joins its groups, and a second kernel
// joins the blocks. Who adds what depends on the shape and the card alone, so every run gives the same bits.
#include "cuda/norm.cuh"

namespace llm::cuda {
namespace {

// With n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)) + dsum, dweight = sum over rows of dy n.
template <class T>
struct Backward {
  const T *dy, *x, *weight, *dsum;
  const float* rstd;
  T* dx;
  float* dweight;  // [blocks, cols] partial sums, or the one zero when there is none
  RowView at;      // of x; all others are dense
  int lanes, stages;
};

constexpr int kStages = 2;  // most steps of a group in shared memory; more are not faster

// By packs per thread: rows of a group at a time, threads of a block, and blocks of a multiprocessor.
constexpr int rows_at_a_time(int packs) { return packs == 1 ? 2 : 1; }
constexpr int block_threads(int packs) { return packs == 4 ? kThreads : packs == 2 ? kNarrowThreads : 256; }
constexpr int blocks_at_a_time(int packs) { return packs == 4 ? 1 : packs == 2 ? 2 : 3; }

// Packs on their way to a thread: Q of each operand for each of `stages` steps. A thread reads only what it asked for itself, so waiting for
// its own copies is enough.
template <class T, int Q>
struct Ring {
  uint4* slots;
  int operands, stages, in = 0, out = 0;

  __device__ Ring(uint4* slots, int operands, int stages) : slots(slots), operands(operands), stages(stages) {}
  __device__ uint4* slot(int stage, int operand, int q) const { return slots + ((stage * operands + operand) * Q + q) * blockDim.x + threadIdx.x; }
  __device__ void ask(int operand, int q, const T* from) { copy_async(slot(in, operand, q), from); }
  __device__ void asked() {
    commit_copies();
    if (++in == stages) in = 0;
  }
  __device__ void wait() const {  // for the oldest step
    if (stages == 1) wait_copies<0>();
    else wait_copies<kStages - 1>();
  }
  __device__ Pack<T> take(int operand, int q) const { return load_pack(reinterpret_cast<const T*>(slot(out, operand, q))); }
  __device__ void taken() {
    if (++out == stages) out = 0;
  }
};

// A group takes R rows a step, one below the other. Shared memory: the weight and the rows on their way; in the end, each group's sums for the
// gradient of the weight, which need no more than one step's rows.
template <class T, int P, bool Weight>
__global__ void __launch_bounds__(block_threads(P), blocks_at_a_time(P)) norm_rows_bwd(const Backward<T> k) {
  constexpr int N = Pack<T>::n, R = rows_at_a_time(P);
  extern __shared__ uint4 memory[];
  __shared__ float shared[2 * kMaxWarps * R];
  Group group(k.lanes, shared);
  const int groups = blockDim.x / k.lanes, packs = static_cast<int>(k.at.cols / N);
  T* weight = reinterpret_cast<T*>(memory);
  Ring<T, R * P> ring(memory + packs, k.dsum ? 3 : 2, k.stages);
  const int64_t step = static_cast<int64_t>(gridDim.x) * groups * R;
  int64_t row = (static_cast<int64_t>(blockIdx.x) * groups + group.index) * R, ahead = row;
  const auto ask = [&] {
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (ahead + r >= k.at.rows) continue;
      const T* x = k.x + k.at.start(ahead + r);
      const int64_t dense = (ahead + r) * k.at.cols;
#pragma unroll
      for (int j = 0; j < P; j++) {
        const int i = group.lane + j * k.lanes;
        if (i >= packs) continue;
        ring.ask(0, r * P + j, x + i * N);
        ring.ask(1, r * P + j, k.dy + dense + i * N);
        if (k.dsum) ring.ask(2, r * P + j, k.dsum + dense + i * N);
      }
    }
    ring.asked();
    ahead += step;
  };
  float rstd[R], next_rstd[R];  // loaded a step ahead as well
  const auto load_rstd = [&](int64_t from) {
#pragma unroll
    for (int r = 0; r < R; r++) next_rstd[r] = from + r < k.at.rows ? k.rstd[from + r] : 0;
  };
  for (int s = 1; s < k.stages; s++) ask();
  load_rstd(row);
  const float scale = 1.0f / static_cast<float>(k.at.cols);
  if (!Weight && blockIdx.x == 0 && threadIdx.x == 0) k.dweight[0] = 0;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) store_pack(weight + i * N, load_pack(k.weight + i * N));
  __syncthreads();
  float total[P][N] = {};
  // The block's groups stay together: every thread takes part in every sum.
  for (; k.at.rows > row - group.index * R; row += step) {
    ask();
#pragma unroll
    for (int r = 0; r < R; r++) rstd[r] = next_rstd[r];
    load_rstd(row + step);
    ring.wait();
    // dx = q - x rstd^2 mean(q x) + dsum with q = rstd dy weight.
    float q[R][P][N], dot[R] = {};
    Pack<T> v[R][P];
#pragma unroll
    for (int j = 0; j < P; j++) {
      const int i = group.lane + j * k.lanes;
      if (i >= packs) continue;
      const Pack<T> w = load_pack(weight + i * N);
#pragma unroll
      for (int r = 0; r < R; r++) {
        if (row + r >= k.at.rows) continue;
        v[r][j] = ring.take(0, r * P + j);
        const Pack<T> d = ring.take(1, r * P + j);
#pragma unroll
        for (int e = 0; e < N; e++) {
          const float scaled = to_float(d.v[e]) * rstd[r], x = to_float(v[r][j].v[e]);
          if (Weight) total[j][e] = fmaf(scaled, x, total[j][e]);
          q[r][j][e] = scaled * to_float(w.v[e]);
          dot[r] = fmaf(q[r][j][e], x, dot[r]);
        }
        keep_packed(v[r][j]);
      }
    }
    group.sum(dot);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const float pull = -dot[r] * scale * rstd[r] * rstd[r];
#pragma unroll
      for (int j = 0; j < P; j++) {
        const int i = group.lane + j * k.lanes;
        if (i >= packs || row + r >= k.at.rows) continue;
        if (k.dsum) {
          const Pack<T> s = ring.take(2, r * P + j);
#pragma unroll
          for (int e = 0; e < N; e++) q[r][j][e] += to_float(s.v[e]);
        }
#pragma unroll
        for (int e = 0; e < N; e++) q[r][j][e] = fmaf(to_float(v[r][j].v[e]), pull, q[r][j][e]);
        round_to(v[r][j].v, q[r][j]);
        store_pack(k.dx + (row + r) * k.at.cols + i * N, v[r][j]);
      }
    }
    ring.taken();
  }
  if (!Weight) return;
  // Every group's sums to shared memory, then one thread a column joins them in order.
  float* sums = reinterpret_cast<float*>(memory);  // [groups, cols]
  __syncthreads();  // nobody reads the weight or the rows any more
#pragma unroll
  for (int j = 0; j < P; j++) {
    const int i = group.lane + j * k.lanes;
    if (i >= packs) continue;
#pragma unroll
    for (int e = 0; e < N; e += 4) {
      float4* to = reinterpret_cast<float4*>(sums + (group.index * packs + i) * N + e);
      *to = make_float4(total[j][e], total[j][e + 1], total[j][e + 2], total[j][e + 3]);
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < k.at.cols; c += blockDim.x) {
    float sum = 0;
    for (int g = 0; g < groups; g++) sum += sums[g * packs * N + c];
    k.dweight[blockIdx.x * k.at.cols + c] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) norm_rows_bwd_plain(const Backward<T> k) {
  __shared__ float shared[2 * kMaxWarps];
  Group group(k.lanes, shared);
  const int groups = blockDim.x / k.lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < k.at.rows; first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t row = first + group.index, width = row < k.at.rows ? k.at.cols : 0, dense = row * k.at.cols;
    const T* x = k.x + k.at.start(row);
    const float rstd = width != 0 ? k.rstd[row] : 0;
    float dot[1] = {};
    for (int64_t c = group.lane; c < width; c += k.lanes)
      dot[0] = fmaf(to_float(k.dy[dense + c]) * to_float(k.weight[c]), to_float(x[c]) * rstd, dot[0]);
    group.sum(dot);
    const float mean = dot[0] / static_cast<float>(k.at.cols);
    for (int64_t c = group.lane; c < width; c += k.lanes) {
      const float n = to_float(x[c]) * rstd, g = to_float(k.dy[dense + c]) * to_float(k.weight[c]);
      k.dx[dense + c] = from_float<T>(fmaf(rstd, g - n * mean, k.dsum ? to_float(k.dsum[dense + c]) : 0.0f));
    }
  }
}

// Partial sums of the weight's gradient for the plain kernel: a thread per column, a row of partial sums per blockIdx.y.
template <class T>
__global__ void weight_sums_plain(const Backward<T> k) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= k.at.cols) return;
  float total = 0;
  for (int64_t r = blockIdx.y; r < k.at.rows; r += gridDim.y)
    total = fmaf(to_float(k.dy[r * k.at.cols + c]), to_float(k.x[k.at.start(r) + c]) * k.rstd[r], total);
  k.dweight[blockIdx.y * k.at.cols + c] = total;
}

constexpr int kJoin = 32;  // threads that share a column, and columns of a block

// y[c] = sum over p of partial[p, c], always in the same order.
__global__ void __launch_bounds__(kJoin * kJoin) join_partial_sums(const float* partial, float* y, int count, int64_t cols) {
  __shared__ float shared[kJoin][kJoin + 1];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kJoin + threadIdx.x;
  float total = 0;
  for (int first = threadIdx.y; c < cols && first < count; first += 8 * kJoin) {
    float part[8];
#pragma unroll
    for (int j = 0; j < 8; j++) part[j] = first + j * kJoin < count ? partial[(first + j * kJoin) * cols + c] : 0;
#pragma unroll
    for (int j = 0; j < 8; j++) total += part[j];
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  total = warp_sum(shared[threadIdx.x][threadIdx.y]);  // one warp a column
  const int64_t to = static_cast<int64_t>(blockIdx.x) * kJoin + threadIdx.y;
  if (threadIdx.x == 0 && to < cols) y[to] = total;
}

// Blocks of the kernel above, and how much shared memory they get.
struct Walk {
  int grid, stages;  // stages = 0: not even one step's rows fit
  size_t bytes;
};

template <class T>
Walk walk_of(const Context& ctx, const Backward<T>& k, const Split& s) {
  const int packs = s.packs_per_thread, rows = rows_at_a_time(packs), resident = block_threads(packs) * blocks_at_a_time(packs) / s.threads();
  const size_t weight = static_cast<size_t>(k.at.cols) * sizeof(T), reserved = 3072;  // the kernel's own arrays and the system's share
  const size_t stage = size_t{16} * (k.dsum ? 3 : 2) * packs * rows * s.threads();
  const size_t whole = static_cast<size_t>(ctx.shared_bytes), part = whole / resident;
  Walk w{grid_for(ctx, k.at.rows, s.groups * rows, resident), 1, 0};
  if (part > weight + reserved + stage) w.stages = static_cast<int>((part - weight - reserved) / stage);
  if (w.stages > kStages) w.stages = kStages;
  w.bytes = weight + stage * w.stages;
  if (w.bytes + reserved > whole) w.stages = 0;
  return w;
}

template <class T, int P, bool Weight>
const char* launch_backward(Context& ctx, const Backward<T>& k, const Split& s, const Walk& w) {
  static const cudaError_t allowed = [&] {
    const auto kernel = norm_rows_bwd<T, P, Weight>;
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    return e != cudaSuccess ? e : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ctx.shared_bytes - 2048);
  }();
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  norm_rows_bwd<T, P, Weight><<<w.grid, s.threads(), w.bytes, ctx.stream>>>(k);
  return launched();
}
template <class T, bool Weight>
const char* launch_backward(Context& ctx, const Backward<T>& k, const Split& s, const Walk& w) {
  switch (s.packs_per_thread) {
    case 1: return launch_backward<T, 1, Weight>(ctx, k, s, w);
    case 2: return launch_backward<T, 2, Weight>(ctx, k, s, w);
    default: return launch_backward<T, 4, Weight>(ctx, k, s, w);
  }
}

const char* clear(Context& ctx, float* x, int64_t n) {
  const cudaError_t e = n == 0 ? cudaSuccess : cudaMemsetAsync(x, 0, sizeof(float) * static_cast<size_t>(n), ctx.stream);
  return e == cudaSuccess ? launched() : cudaGetErrorString(e);
}

template <class T>
const char* backward(Context& ctx, Backward<T> k, DType dtype, bool weight) {
  float* dweight = k.dweight;
  const int64_t cols = k.at.cols;
  if (k.at.rows == 0 || cols == 0) {
    return clear(ctx, dweight, weight ? cols : 1);
  }
  const RowView dense{k.at.rows, cols, 1, cols};
  const bool packed = packs_fit(k.x, dtype, k.at) && packs_fit(k.dy, dtype, dense) && aligned16(k.weight) && aligned16(k.dx) &&
                      (!k.dsum || aligned16(k.dsum));
  Split s = split_of(packed, cols / Pack<T>::n, cols, block_threads);
  Walk w{};
  if (s.packs_per_thread > 0) w = walk_of(ctx, k, s);
  if (w.stages == 0) s = split_of(false, 0, cols, block_threads);
  k.lanes = s.lanes;
  k.stages = w.stages;
  int parts = w.grid;
  if (w.stages == 0) {
    norm_rows_bwd_plain<T><<<grid_for(ctx, k.at.rows, s.groups), s.threads(), 0, ctx.stream>>>(k);
    if (!weight) return clear(ctx, dweight, 1);
    parts = static_cast<int>(k.at.rows < 256 ? k.at.rows : 256);
    k.dweight = ctx.scratch_of<float>(static_cast<size_t>(parts * cols));
    const dim3 blocks(static_cast<unsigned>(ceil_div(cols, 128)), static_cast<unsigned>(parts));
    weight_sums_plain<T><<<blocks, 128, 0, ctx.stream>>>(k);
  } else if (weight) {
    k.dweight = ctx.scratch_of<float>(static_cast<size_t>(parts * cols));
    if (const char* error = launch_backward<T, true>(ctx, k, s, w)) return error;
  } else {
    return launch_backward<T, false>(ctx, k, s, w);
  }
  join_partial_sums<<<static_cast<unsigned>(ceil_div(cols, kJoin)), dim3(kJoin, kJoin), 0, ctx.stream>>>(k.dweight, dweight, parts, cols);
  return launched();
}

}  // namespace

const char* rms_norm_bwd(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[1].dtype, [&](auto t) {
    using T = decltype(t);
    const T* dsum = k.n_in > 4 && present(k.in[4]) ? data_of<T>(k.in[4]) : nullptr;
    Backward<T> b{data_of<T>(k.in[0]), data_of<T>(k.in[1]), data_of<T>(k.in[2]),      dsum,             data_of<float>(k.in[3]),
                  data_of<T>(k.out[0]), data_of<float>(k.out[1]), row_view(k.in[1]), 0, 0};
    return backward<T>(ctx, b, k.in[1].dtype, k.attr[0] != 0);
  });
}

}  // namespace llm::cuda
