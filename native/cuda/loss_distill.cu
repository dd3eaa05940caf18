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
  Factor cooling, soft, plain;  // 1 / temperature; log2(e) / temperature; log2(e)
  bool reverse, hard;       // hard: the teacher's argmax is the label
  bool student_wide, teacher_wide;  // every row starts on a 16-byte boundary
  int* fault;
  int code;
};

// How logits at a temperature become powers of two. `precise` (f32 students): rounded as if the product were exact.
template <bool precise>
struct Powers {
  Factor factor;  // log2(e) / temperature
  __device__ float operator()(float x) const { return precise ? factor.times(x) : x * factor.high; }
};

// x - m and its product with a factor, each as a rounded value and what the rounding left: log-ratios are differences of such products.
struct Exactly {
  float value, rest;
  __device__ static Exactly difference(float x, float m) {
    const float d = x - m, back = d + m;
    return Exactly{d, isfinite(d) ? (x - back) + ((back - d) - m) : 0.f};
  }
  __device__ Exactly times(const Factor& f) const {
    const float p = value * f.high;
    return Exactly{p, isfinite(p) ? fmaf(value, f.high, -p) + fmaf(value, f.rest, rest * f.high) : 0.f};
  }
};

// A softmax that is known: probability and log-probability of a logit. A sum of 0 (all impossible) gives probability 0.
template <bool precise>
struct Softmax {
  Powers<precise> powers;
  Factor cooling;  // 1 / temperature
  float m, inverse_sum, log_sum;
  __device__ Softmax(const RunningSoftmax& all, const Powers<precise>& powers, const Factor& cooling)
      : powers(powers), cooling(cooling), m(all.m), inverse_sum(all.s == 0 ? 0.f : 1.f / all.s), log_sum(logf(all.s)) {}
  __device__ float probability(float z) const {
    if (!precise) return exp2_fast(powers(z - m)) * inverse_sum;
    const Exactly power = Exactly::difference(z, m).times(powers.factor);
    const float p = exp2_fast(power.value) * inverse_sum;
    return fmaf(p, power.rest * 0.6931472f, p);
  }
  // log(probability(z) / other.probability(y)), both at one temperature.
  __device__ float log_ratio(float z, const Softmax& other, float y) const {
    if (!precise) return ((z - m) - (y - other.m)) * cooling.high - (log_sum - other.log_sum);
    const Exactly a = Exactly::difference(z, m).times(cooling), b = Exactly::difference(y, other.m).times(cooling);
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
__global__ void __launch_bounds__(256, 3) distill_rows(Distill<S, T> a) {
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

  constexpr bool kPrecise = sizeof(S) == 4;  // a 16-bit gradient needs no more than f32
  const Powers<kPrecise> plain{a.plain}, soft{a.soft};
  RunningSoftmax sum_s, sum_q, sum_p;
  Best best{-INFINITY, INT32_MAX};
  for (int64_t c = start; c < a.cols; c += step) {
    float z[8], zt[8];
    load_eight(student, c, a.cols, a.student_wide, z);
    sum_s.add(z, largest(z), plain);
    if (c >= a.common) continue;
    load_eight(teacher, c, a.common, a.teacher_wide, zt);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (c + i >= a.common) z[i] = -INFINITY;
      if (zt[i] > best.x) best = Best{zt[i], static_cast<int>(c + i)};
    }
    sum_q.add(z, largest(z), soft);
    sum_p.add(zt, largest(zt), soft);
  }
  using Known = Softmax<kPrecise>;
  const Known s(sum_s.over_block(reduce, plain), plain, a.plain), q(sum_q.over_block(reduce, soft), soft, a.cooling),
      p(sum_p.over_block(reduce, soft), soft, a.cooling);
  if (a.hard) label = argmax_over_block(best, bests);
  const float own = a.cols > 0 ? to_float(student[label]) : 0.f;
  __syncthreads();  // nobody writes the row before all have read this

  float divergence = 0, mass = 0;  // of q or p: 1 but for rounding, which it takes out of KL
  if (a.reverse) {
    for (int64_t c = start; c < a.common; c += step) {
      float z[8], zt[8];
      load_eight(student, c, a.common, a.student_wide, z);
      load_eight(teacher, c, a.common, a.teacher_wide, zt);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float qi = q.probability(z[i]);
        mass += qi;
        if (qi > 0) divergence += qi * q.log_ratio(z[i], p, zt[i]);
      }
    }
    mass = block_sum(mass, reduce);
    divergence = mass > 0 ? block_sum(divergence, reduce) / mass : 0.f;
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
          mass += pi;
          if (pi > 0) forward += pi * p.log_ratio(zt[i], q, z[i]);
        } else if (qi > 0) {
          d = qi * (q.log_ratio(z[i], p, zt[i]) - divergence);
        }
      }
      z[i] = w * (soft_weight * d + hard_weight * (s.probability(z[i]) - (c + i == label ? 1.f : 0.f)));
    }
    store_eight(student, c, a.cols, a.student_wide, z);
  }
  if (!a.reverse) {
    mass = block_sum(mass, reduce);
    divergence = mass > 0 ? block_sum(forward, reduce) / mass : 0.f;
  }
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
  a.cooling = Factor::of(1.0 / k.attr[0]);
  a.soft = Factor::of(1.4426950408889634 / k.attr[0]);
  a.plain = Factor::of(1.4426950408889634);
  a.alpha = static_cast<float>(k.attr[1]);
  a.reverse = k.attr[2] != 0;
  a.hard = k.attr[3] != 0;
  a.student_wide = aligned16(a.student) && a.cols % Pack<S>::n == 0;
  a.teacher_wide = aligned16(a.teacher) && a.teacher_cols % Pack<T>::n == 0;
  a.fault = ctx.fault_word;
  a.code = ctx.code(Fault::token_id);
  if (x.shape[0] == 0) return nullptr;
  const unsigned threads = a.cols >= 4096 ? 256 : 128;
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
