// Paged attention in plain f32 arithmetic: f32 queries (exact, no tf32), f32 caches, mixed types, any width. One query and head at a time,
// its keys spread over the card as for the tensor cores (paged_work.cuh).
//
// kLanes neighbouring lanes share a key: each holds every kLanes-th run of V elements of it. The groups of a block take turns over the keys,
// each with a running softmax of its own, and are folded in a fixed order. Outputs are computed kLanes * kHeld elements of the width at a
// time; a wider head computes its scores again for each such part.
#include "cuda/paged_work.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(bf16 x) { return to_float(x); }
__device__ inline float widened(f16 x) { return to_float(x); }
__device__ inline float widened(int8_t x) { return static_cast<float>(x) + 128.f; }

__device__ inline float load_as(const char* p, DType type, int64_t i) {
  if (type == DType::f32) return reinterpret_cast<const float*>(p)[i];
  if (type == DType::bf16) return to_float(reinterpret_cast<const bf16*>(p)[i]);
  return to_float(reinterpret_cast<const f16*>(p)[i]);
}
__device__ inline void store_as(char* p, DType type, int64_t i, float x) {
  if (type == DType::f32) reinterpret_cast<float*>(p)[i] = x;
  else if (type == DType::bf16) reinterpret_cast<bf16*>(p)[i] = from_float<bf16>(x);
  else reinterpret_cast<f16*>(p)[i] = from_float<f16>(x);
}

// Sum over the kLanes neighbours that share a key.
template <int kLanes>
__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

// This lane's elements [part, part + kLanes * kHeld) of a vector: column() of element e, those outside the width are 0.
template <class C, int kLanes, int kHeld, int V>
struct Piece {
  float x[kHeld];
  static __device__ int column(int lane, int e) { return e / V * (kLanes * V) + lane * V + e % V; }
  __device__ void load(const C* from, int part, int width, int lane) {
#pragma unroll
    for (int e = 0; e < kHeld; e += V) {
      const int d = part + column(lane, e);
      if (d < width) {
        const auto s = *reinterpret_cast<const Neighbours<C, V>*>(from + d);
#pragma unroll
        for (int i = 0; i < V; i++) x[e + i] = widened(s.v[i]);
      } else {
#pragma unroll
        for (int i = 0; i < V; i++) x[e + i] = 0.f;
      }
    }
  }
};

// V divides the width. Shared memory: the query [width rounded up to 4], the folded groups, then the plan's prefix sums.
template <class C, int kLanes, int kHeld, int V>
__global__ void __launch_bounds__(kThreads, 6) generic(const PagedArgs a, const PagedWork w) {
  constexpr int kGroups = kThreads / kLanes, kPart = kLanes * kHeld;
  using Elements = Piece<C, kLanes, kHeld, V>;
  extern __shared__ float memory[];
  __shared__ float tops[kGroups], sums[kGroups], folded[kGroups][kPart];
  float* query = memory;
  int* prefix = reinterpret_cast<int*>(memory + (a.width + 3) / 4 * 4);
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const float c = a.scale * 1.4426950408889634f;
  release_dependents();
  work_on(a, w, prefix, [&](const Segment& seg) {
    const int head = seg.item, key_head = head / a.group;
    for (int d = threadIdx.x; d < a.width; d += kThreads)
      query[d] = load_as(a.q, a.type, seg.unit.token * a.q_stride + static_cast<int64_t>(head) * a.width + d);
    __syncthreads();
    const int* entries = a.table + static_cast<int64_t>(seg.unit.sequence) * a.columns;
    const int64_t row = static_cast<int64_t>(seg.unit.token) * a.heads + head;
    for (int part = 0; part < a.width; part += kPart) {
      float top = -INFINITY, sum = 0.f, o[kHeld] = {};
      // Rounds, not keys, so that the lanes of a warp stay together.
      for (int at = seg.begin; at < seg.end; at += kGroups) {
        const int key = at + group, slot = key < seg.end ? slot_of(a, entries, key) : -1;
        const int64_t vector = static_cast<int64_t>(max(slot, 0)) * a.key_heads + key_head;
        Elements value, x;
        float s = 0.f, total = 0.f;
        if (slot >= 0) {
          value.load(reinterpret_cast<const C*>(a.v) + vector * a.width, part, a.width, lane);
          for (int begin = 0; begin < a.width; begin += kPart) {
            x.load(reinterpret_cast<const C*>(a.k) + vector * a.width, begin, a.width, lane);
#pragma unroll
            for (int e = 0; e < kHeld; e++) {
              const int d = begin + Elements::column(lane, e);
              const float q = d < a.width ? query[d] : 0.f;
              s = fmaf(q, x.x[e], s);
              if constexpr (std::is_same_v<C, int8_t>) total += q;
            }
          }
        }
        s = group_sum<kLanes>(s);
        if constexpr (std::is_same_v<C, int8_t>) {
          total = group_sum<kLanes>(total);
          if (slot >= 0) {
            const float2 k = a.k_scales[vector], v = a.v_scales[vector];
            s = fmaf(k.x, s, k.y * total);
#pragma unroll
            for (int e = 0; e < kHeld; e++) value.x[e] = fmaf(value.x[e], v.x, v.y);
          }
        }
        if (slot < 0) continue;
        s *= c;
        const float now = fmaxf(top, s), base = now == -INFINITY ? 0.f : now, factor = exp2f(top - base), p = exp2f(s - base);
        top = now;
        sum = fmaf(sum, factor, p);
#pragma unroll
        for (int e = 0; e < kHeld; e++) o[e] = fmaf(o[e], factor, p * value.x[e]);
      }
      if (lane == 0) {
        tops[group] = top;
        sums[group] = sum;
      }
#pragma unroll
      for (int e = 0; e < kHeld; e++) folded[group][Elements::column(lane, e)] = o[e];
      __syncthreads();
      top = tops[0];
      for (int g = 1; g < kGroups; g++) top = fmaxf(top, tops[g]);
      const float base = top == -INFINITY ? 0.f : top;
      for (int d = threadIdx.x; d < kPart && part + d < a.width; d += kThreads) {
        float x = 0.f, all = 0.f;
        for (int g = 0; g < kGroups; g++) {
          const float factor = exp2f(tops[g] - base);
          x = fmaf(factor, folded[g][d], x);
          all = fmaf(factor, sums[g], all);
        }
        if (seg.whole) {
          store_as(a.o, a.type, row * a.width + part + d, all == 0.f ? 0.f : __fdividef(x, all));
        } else {
          w.o[static_cast<int64_t>(seg.place) * a.width + part + d] = x;
          if (part + d == 0) w.ml[seg.place] = make_float2(top, all);
        }
      }
      __syncthreads();
    }
  });
}

template <class C, int kLanes, int kHeld, int V>
const char* run(Context& ctx, const PagedArgs& a) {
  PagedWork w{};
  w.items = a.heads;
  w.rows = 1;
  w.step = 64;
  w.least = 1;
  return run_work(ctx, a, w, 6, [&](unsigned blocks, const PagedWork& work) -> const char* {
    const size_t bytes = (static_cast<size_t>(a.width + 3) / 4 * 4 + work.units + 1) * sizeof(float);
    constexpr size_t kStatic = 12 << 10;
    if (bytes + kStatic > static_cast<size_t>(ctx.shared_bytes)) return "a narrower head expected";
    if (bytes + kStatic > 48 << 10) {
      const cudaError_t e = cudaFuncSetAttribute(generic<C, kLanes, kHeld, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      if (e != cudaSuccess) return cudaGetErrorString(e);
    }
    generic<C, kLanes, kHeld, V><<<blocks, kThreads, bytes, ctx.stream>>>(a, work);
    return launched();
  });
}

template <class C>
const char* run_width(Context& ctx, const PagedArgs& a) {
  constexpr int V = 4;
  const bool fits = a.width % V == 0 && aligned16(a.k) && aligned16(a.v);
  if (a.width <= 64) return fits ? run<C, 8, 8, V>(ctx, a) : run<C, 8, 8, 1>(ctx, a);
  if (a.width <= 128) return fits ? run<C, 8, 16, V>(ctx, a) : run<C, 8, 16, 1>(ctx, a);
  return fits ? run<C, 32, 8, V>(ctx, a) : run<C, 32, 8, 1>(ctx, a);
}

}  // namespace

const char* paged_generic(Context& ctx, const PagedArgs& a) {
  if (a.cache_type == DType::i8) return run_width<int8_t>(ctx, a);
  return dispatch(a.cache_type, [&](auto c) { return run_width<decltype(c)>(ctx, a); });
}

}  // namespace llm::cuda
