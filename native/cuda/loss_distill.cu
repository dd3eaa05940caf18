// Distillation over rows of logits: the student's row becomes the gradient of alpha T^2 KL + (1 - alpha) CE.
//     q, p   student and teacher over the vocabulary they share, at temperature T;   s   the student over its whole vocabulary at 1
//     forward  KL = sum p log(p / q), d/dz = (q - p) / T        reverse  KL = sum q log(q / p), d/dz = q (log(q / p) - KL) / T
// One block a row: a pass for the three softmax sums (and the teacher's argmax), for the reverse kind a pass for KL, and the pass that
// writes the gradient (the forward kind adds up KL on the way). KL sums p log(p / q) term by term: no difference of large sums.
#include "cuda/loss.h"
#include "cuda/loss_rows.cuh"

namespace llm::cuda {
namespace {

constexpr int kIgnored = -100;

template <class S, class T>
struct Distill {
  S* student;
  const T* teacher;
  int64_t cols, teacher_cols, common;
  const int32_t* labels;
  const float* weights;
  float *kl, *ce;
  float temperature, alpha;
  double cooling;           // 1 / temperature
  bool reverse, hard;       // hard: the teacher's argmax is the label
  bool student_wide, teacher_wide;  // every row starts on a 16-byte boundary
  int* fault;
  int code;
};

// x - m and its product with a factor, each as a rounded value and what the rounding left: probabilities and log-ratios of f32 rows are
// differences of such products, which cancel.
struct Exactly {
  float value, rest;
  __device__ static Exactly difference(float x, float m) {
    const float d = x - m, back = d + m;
    return Exactly{d, isfinite(d) ? (x - back) + ((back - d) - m) : 0.f};
  }
  // factor = high + low.
  __device__ Exactly times(float high, float low) const {
    const float p = value * high;
    return Exactly{p, isfinite(p) ? fmaf(value, high, -p) + fmaf(value, low, rest * high) : 0.f};
  }
};

// A softmax that is known: probability and log-probability of a logit. A sum of 0 (all impossible) gives probability 0.
template <bool precise>
struct Softmax {
  float m, factor, factor_rest, cooling, cooling_rest, inverse_sum, log_sum;
  __device__ Softmax(const RunningSoftmax& all, double inverse_temperature)
      : m(all.m),
        factor(static_cast<float>(inverse_temperature * 1.4426950408889634)),
        factor_rest(static_cast<float>(inverse_temperature * 1.4426950408889634 - factor)),
        cooling(static_cast<float>(inverse_temperature)),
        cooling_rest(static_cast<float>(inverse_temperature - cooling)),
        inverse_sum(all.s == 0 ? 0.f : 1.f / all.s),
        log_sum(logf(all.s)) {}
  __device__ float probability(float z) const {
    if (!precise) return exp2_fast((z - m) * factor) * inverse_sum;
    const Exactly power = Exactly::difference(z, m).times(factor, factor_rest);
    const float p = exp2_fast(power.value) * inverse_sum;
    return fmaf(p, power.rest * 0.6931472f, p);
  }
  // log(probability(z) / other.probability(y))
  __device__ float log_ratio(float z, const Softmax& other, float y) const {
    if (!precise) return ((z - m) * cooling - (y - other.m) * other.cooling) - (log_sum - other.log_sum);
    const Exactly a = Exactly::difference(z, m).times(cooling, cooling_rest), b = Exactly::difference(y, other.m).times(other.cooling, other.cooling_rest);
    return ((a.value - b.value) - (log_sum - other.log_sum)) + (a.rest - b.rest);
  }
};

struct Best {
  float x;
  int c;
};
__device__ Best better(Best a, Best b) { return b.x > a.x || (b.x == a.x && b.c < a.c) ? b : a; }
// First largest of the block; index 0 when nothing was above -inf.
__device__ int argmax_over_block(Best mine, Best* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const auto over_warp = [](Best b) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1)
      b = better(b, Best{__shfl_xor_sync(0xffffffffu, b.x, o), __shfl_xor_sync(0xffffffffu, b.c, o)});
    return b;
  };
  mine = over_warp(mine);
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  mine = over_warp(lane < warps ? shared[lane] : Best{-INFINITY, INT32_MAX});
  return mine.c == INT32_MAX ? 0 : mine.c;
}

template <class S, class T>
__global__ void __launch_bounds__(512) distill_rows(Distill<S, T> a) {
  __shared__ float reduce[32];
  __shared__ Best bests[32];
  const int64_t r = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * 8, start = static_cast<int64_t>(threadIdx.x) * 8;
  S* student = a.student + r * a.cols;
  const T* teacher = a.teacher + r * a.teacher_cols;
  const float w = a.weights == nullptr ? 1.f : a.weights[r];
  int64_t label = a.labels[r];
  const bool bad = !a.hard && label != kIgnored && (label < 0 || label >= a.cols);
  if (bad && threadIdx.x == 0) raise(a.fault, a.code);
  if (bad || label == kIgnored || w == 0) {
    const float none[8] = {};
    for (int64_t c = start; c < a.cols; c += step) store_eight(student, c, a.cols, a.student_wide, none);
    if (threadIdx.x == 0) a.kl[r] = a.ce[r] = 0;
    return;
  }

  const float soft_factor = static_cast<float>(a.cooling) * kLog2e;
  RunningSoftmax sum_s, sum_q, sum_p;
  Best best{-INFINITY, INT32_MAX};
  for (int64_t c = start; c < a.cols; c += step) {
    float z[8], zt[8];
    load_eight(student, c, a.cols, a.student_wide, z);
    sum_s.add(z, largest(z), kLog2e);
    if (c >= a.common) continue;
    load_eight(teacher, c, a.common, a.teacher_wide, zt);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (c + i >= a.common) z[i] = -INFINITY;
      if (zt[i] > best.x) best = Best{zt[i], static_cast<int>(c + i)};
    }
    sum_q.add(z, largest(z), soft_factor);
    sum_p.add(zt, largest(zt), soft_factor);
  }
  using Known = Softmax<sizeof(S) == 4>;  // a 16-bit gradient needs no more than f32
  const Known s(sum_s.over_block(kLog2e, reduce), 1.0), q(sum_q.over_block(soft_factor, reduce), a.cooling),
      p(sum_p.over_block(soft_factor, reduce), a.cooling);
  if (a.hard) label = argmax_over_block(best, bests);
  const float own = a.cols > 0 ? to_float(student[label]) : 0.f;
  __syncthreads();  // nobody writes the row before all have read this

  float divergence = 0;
  if (a.reverse) {
    for (int64_t c = start; c < a.common; c += step) {
      float z[8], zt[8];
      load_eight(student, c, a.common, a.student_wide, z);
      load_eight(teacher, c, a.common, a.teacher_wide, zt);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float qi = q.probability(z[i]);
        if (qi > 0) divergence += qi * q.log_ratio(z[i], p, zt[i]);
      }
    }
    divergence = block_sum(divergence, reduce);
  }
  const float soft_weight = a.alpha * a.temperature, hard_weight = 1.f - a.alpha;
  float forward = 0;
  for (int64_t c = start; c < a.cols; c += step) {
    float z[8], zt[8];
    load_eight(student, c, a.cols, a.student_wide, z);
    if (c < a.common) {
      load_eight(teacher, c, a.common, a.teacher_wide, zt);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) zt[i] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float d = 0;
      if (c + i < a.common) {
        const float qi = q.probability(z[i]), pi = p.probability(zt[i]);
        if (!a.reverse) {
          d = qi - pi;
          if (pi > 0) forward += pi * p.log_ratio(zt[i], q, z[i]);
        } else if (qi > 0) {
          d = qi * (q.log_ratio(z[i], p, zt[i]) - divergence);
        }
      }
      z[i] = w * (soft_weight * d + hard_weight * (s.probability(z[i]) - (c + i == label ? 1.f : 0.f)));
    }
    store_eight(student, c, a.cols, a.student_wide, z);
  }
  if (!a.reverse) divergence = block_sum(forward, reduce);
  if (threadIdx.x == 0) {
    a.kl[r] = w * a.temperature * a.temperature * divergence;
    a.ce[r] = own == -INFINITY ? w * INFINITY : w * (s.log_sum - (own - s.m));
  }
}

template <class S, class T>
const char* run(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &t = k.in[1];
  Distill<S, T> a{};
  a.student = data_of<S>(x);
  a.teacher = data_of<T>(t);
  a.cols = x.shape[1];
  a.teacher_cols = t.shape[1];
  a.common = a.cols < a.teacher_cols ? a.cols : a.teacher_cols;
  a.labels = data_of<int32_t>(k.in[2]);
  a.weights = k.n_in > 3 && present(k.in[3]) ? data_of<float>(k.in[3]) : nullptr;
  a.kl = data_of<float>(k.out[0]);
  a.ce = data_of<float>(k.out[1]);
  a.temperature = static_cast<float>(k.attr[0]);
  a.cooling = 1.0 / k.attr[0];
  a.alpha = static_cast<float>(k.attr[1]);
  a.reverse = k.attr[2] != 0;
  a.hard = k.attr[3] != 0;
  a.student_wide = aligned16(a.student) && a.cols % Pack<S>::n == 0;
  a.teacher_wide = aligned16(a.teacher) && a.teacher_cols % Pack<T>::n == 0;
  a.fault = ctx.fault_word;
  a.code = ctx.code(Fault::token_id);
  if (x.shape[0] == 0) return nullptr;
  const unsigned threads = a.cols >= 4096 ? 512 : 128;
  distill_rows<S, T><<<static_cast<unsigned>(x.shape[0]), threads, 0, ctx.stream>>>(a);
  return launched();
}

}  // namespace

const char* distill_inplace(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto s) {
    return dispatch(k.in[1].dtype, [&](auto t) { return run<decltype(s), decltype(t)>(ctx, k); });
  });
}

}  // namespace llm::cuda
