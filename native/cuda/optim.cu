// Global gradient norm, clip coefficient, AdamW and SGD steps.
//
// The norm: a block adds up a piece of one tensor, short runs in f32 and the rest in f64, and one more block adds the pieces, always in the
// same order. Many tensors share a launch: their addresses travel in the kernel's parameters.
//
// The steps: f32 math. What the CPU reference does in f64 for good reason is kept: 1 - lr decay does not fit into an f32 when lr decay is
// small, so decay and update are added to one another first, and the parameter is rounded once. Numbers that are not finite pass through.
#include "cuda/rows.cuh"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

// ---- norm ------------------------------------------------------------------------------------------------------------------------

constexpr int kTensors = 256;    // a launch; with 14 bytes each they stay below the 4 KB of parameters of older drivers
constexpr int kPiece = 1 << 14;  // elements of a partial sum
constexpr int kNormThreads = 256;

struct TensorList {
  const float* data[kTensors];
  int first[kTensors + 1];  // first piece of each tensor; behind the last one: how many pieces there are
  uint16_t last[kTensors];  // elements in a tensor's last piece, less one
  int count;
};

__device__ inline double block_total(double x, double* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < warps; w++) total += shared[w];
  return total;
}

// partial[piece] = sum of squares of a piece; a block a piece.
__global__ void __launch_bounds__(kNormThreads) square_pieces(const __grid_constant__ TensorList list, double* partial) {
  __shared__ double shared[kNormThreads / 32];
  const int piece = blockIdx.x;
  int low = 0, high = list.count;  // the tensor t with first[t] <= piece < first[t + 1]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.first[middle] <= piece) low = middle;
    else high = middle;
  }
  const float* x = list.data[low] + static_cast<int64_t>(piece - list.first[low]) * kPiece;
  const int n = piece + 1 == list.first[low + 1] ? list.last[low] + 1 : kPiece;
  double total = 0;
  if ((reinterpret_cast<uintptr_t>(x) & 15) == 0) {
    const int packs = n / 4;
    for (int i = threadIdx.x; i < packs; i += 16 * kNormThreads) {
      float run[4] = {};
#pragma unroll
      for (int j = 0; j < 16; j++) {
        const int at = i + j * kNormThreads;
        if (at >= packs) break;
        const Pack<float> v = load_pack(x + 4 * at);
#pragma unroll
        for (int e = 0; e < 4; e++) run[e] = fmaf(v.v[e], v.v[e], run[e]);
      }
      total += static_cast<double>(run[0] + run[1]) + static_cast<double>(run[2] + run[3]);
    }
    const int rest = 4 * packs + threadIdx.x;
    if (rest < n) total += static_cast<double>(x[rest]) * x[rest];
  } else {
    for (int i = threadIdx.x; i < n; i += 16 * kNormThreads) {
      float run = 0;
#pragma unroll
      for (int j = 0; j < 16; j++) {
        const int at = i + j * kNormThreads;
        if (at < n) run = fmaf(x[at], x[at], run);
      }
      total += run;
    }
  }
  total = block_total(total, shared);
  if (threadIdx.x == 0) partial[piece] = total;
}

__global__ void __launch_bounds__(1024) root_of_sum(const double* partial, int64_t n, float* norm) {
  __shared__ double shared[32];
  double total = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += partial[i];
  total = block_total(total, shared);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(total));
}

const char* global_norm(Context& ctx, const KernelArgs& k) {
  int64_t pieces = 0;
  for (int i = 0; i < k.n_in; i++) pieces += ceil_div(view_numel(k.in[i]), kPiece);
  double* partial = pieces == 0 ? nullptr : ctx.scratch_of<double>(static_cast<size_t>(pieces));
  TensorList list;
  list.count = list.first[0] = 0;
  int64_t done = 0;  // pieces of earlier launches
  for (int i = 0; i <= k.n_in; i++) {
    if (list.count > 0 && (i == k.n_in || list.count == kTensors)) {
      const int n = list.first[list.count];
      square_pieces<<<n, kNormThreads, 0, ctx.stream>>>(list, partial + done);
      done += n;
      list.count = 0;
    }
    const int64_t n = i == k.n_in ? 0 : view_numel(k.in[i]);
    if (n == 0) continue;
    list.data[list.count] = data_of<float>(k.in[i]);
    list.last[list.count] = static_cast<uint16_t>((n - 1) % kPiece);
    list.first[list.count + 1] = list.first[list.count] + static_cast<int>(ceil_div(n, kPiece));
    list.count++;
  }
  root_of_sum<<<1, 1024, 0, ctx.stream>>>(partial, pieces, data_of<float>(k.out[0]));
  return launched();
}

// A norm that is not a number stays one.
__global__ void coefficient_of(const float* norm, const float* limits, float* coefficient) {
  const double max_norm = limits[0], scale = limits[1];
  const double ratio = max_norm / (scale * *norm + 1e-6);
  *coefficient = static_cast<float>(max_norm == 0 || ratio > 1 ? scale : scale * ratio);
}

const char* clip_coefficient(Context& ctx, const KernelArgs& k) {
  coefficient_of<<<1, 1, 0, ctx.stream>>>(data_of<float>(k.in[0]), data_of<float>(k.in[1]), data_of<float>(k.out[0]));
  return launched();
}

// ---- steps -----------------------------------------------------------------------------------------------------------------------

// Weight decay, then m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= (lr / c1) m / (sqrt(v) / sqrt(c2) + eps).
struct AdamW {
  float beta1, beta2, rest1, rest2, eps, decay, step, root;

  __device__ explicit AdamW(const float* hyper)
      : beta1(hyper[1]),
        beta2(hyper[2]),
        rest1(1.0f - hyper[1]),
        rest2(1.0f - hyper[2]),
        eps(hyper[3]),
        decay(hyper[0] * hyper[4]),
        step(hyper[0] / hyper[5]),
        root(1.0f / sqrtf(hyper[6])) {}

  __device__ float operator()(float w, float g, float& m, float& v, bool) const {
    m = fmaf(beta1, m, rest1 * g);
    v = fmaf(beta2, v, rest2 * g * g);
    return w - fmaf(step, m / fmaf(sqrtf(v), root, eps), decay * w);
  }
};

// g += decay p; m = momentum m + g (when there is momentum); p -= lr m.
struct Sgd {
  float lr, momentum, decay;

  __device__ explicit Sgd(const float* hyper) : lr(hyper[0]), momentum(hyper[1]), decay(hyper[2]) {}

  __device__ float operator()(float w, float g, float& m, float&, bool with_momentum) const {
    const float d = fmaf(decay, w, g);
    m = fmaf(momentum, m, d);
    return fmaf(-lr, with_momentum ? m : d, w);
  }
};

template <class T>
struct Step {
  const float *hyper, *coefficient, *g;
  T* p;
  float *m, *v, *master;  // each may be absent
  int64_t n;
};

constexpr int kStepThreads = 256;

// The step of V neighbouring elements from i up.
template <int V, class Rule, class T>
__device__ inline void step_at(const Step<T>& k, int64_t i) {
  using Floats = Span<float, V>;
  Floats w{}, m{}, v{};
  Span<T, V> p{};
  const Floats g = Floats::load(k.g + i);
  if (k.m) m = Floats::load(k.m + i);
  if (k.v) v = Floats::load(k.v + i);
  if (k.master) w = Floats::load(k.master + i);
  else p = Span<T, V>::load(k.p + i);
  const Rule rule(k.hyper);
  const float coefficient = *k.coefficient;
#pragma unroll
  for (int e = 0; e < V; e++) w.v[e] = rule(k.master ? w.v[e] : to_float(p.v[e]), g.v[e] * coefficient, m.v[e], v.v[e], k.m != nullptr);
  round_to(p.v, w.v);
  if (k.m) m.store(k.m + i);
  if (k.v) v.store(k.v + i);
  if (k.master) w.store(k.master + i);
  p.store(k.p + i);
}

// A thread takes V elements; those left over have a thread each.
template <class Rule, class T, int V>
__global__ void __launch_bounds__(kStepThreads) step_elements(const Step<T> k) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x, spans = k.n / V;
  if (i < spans) step_at<V, Rule>(k, i * V);
  else if (i < spans + k.n % V) step_at<1, Rule>(k, spans * V + i - spans);
}

template <class Rule>
const char* step(Context& ctx, const KernelArgs& k, float* m, float* v, float* master) {
  const View& p = k.in[2];
  const int64_t n = view_numel(p);
  if (n == 0) return nullptr;
  return dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Step<T> s{data_of<float>(k.in[0]), data_of<float>(k.in[1]), data_of<float>(k.in[3]), data_of<T>(p), m, v, master, n};
    const bool packed = aligned16(s.g) && aligned16(s.p) && aligned16(m) && aligned16(v) && aligned16(master);
    const unsigned blocks = static_cast<unsigned>(ceil_div(packed ? n / 4 + n % 4 : n, kStepThreads));
    if (packed) step_elements<Rule, T, 4><<<blocks, kStepThreads, 0, ctx.stream>>>(s);
    else step_elements<Rule, T, 1><<<blocks, kStepThreads, 0, ctx.stream>>>(s);
    return launched();
  });
}

float* given(const KernelArgs& k, int i) { return i < k.n_in && present(k.in[i]) ? data_of<float>(k.in[i]) : nullptr; }

const char* adamw(Context& ctx, const KernelArgs& k) { return step<AdamW>(ctx, k, given(k, 4), given(k, 5), given(k, 6)); }

const char* sgd(Context& ctx, const KernelArgs& k) { return step<Sgd>(ctx, k, given(k, 4), nullptr, given(k, 5)); }

}  // namespace

const CudaEntry cuda_optim[] = {{op_global_norm, global_norm}, {op_clip_coefficient, clip_coefficient}, {op_adamw, adamw}, {op_sgd, sgd}};
const int cuda_optim_count = sizeof(cuda_optim) / sizeof(cuda_optim[0]);

}  // namespace llm::cuda
