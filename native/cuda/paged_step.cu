// Attention of a few single queries over caches of moderate length, for the shortest time from start to end: a cluster of blocks takes the
// heads of one token that share a key/value head, each block a stretch of the keys, and the blocks read one another's results from shared
// memory. With PagedFresh it also does what a decoder does right before: turns q and k by the rotary tables and puts k and v into the cache.
//
// Every block writes the new keys and values of its head itself, all of them the same numbers, so that none waits for another. Where no
// earlier command writes lengths, tables and positions (settled), they are read, and the cache is brought near, before the wait for the
// kernel that makes q, k and v.
#include <cooperative_groups.h>

#include "cuda/paged_decode.cuh"
#include "cuda/rows.cuh"

namespace llm::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kRanks = 8, kMostTokens = 4;  // blocks of a cluster; tokens of a step
constexpr int64_t kMostKeys = 4096;         // more are better spread over the card

[[maybe_unused]] __device__ inline void bring_near(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Cosines and sines of a token's position.
template <int D>
struct Turn {
  float cosine[D / 2], sine[D / 2];
  bool good;  // a position outside the table gives zeros
};

template <class T, int D>
__device__ inline void turn_piece(const T* from, T* to, T* copy, T* cache, const Turn<D>& turn, int at) {
  constexpr int V = 8;
  Span<T, V> a = Span<T, V>::load(from + at), b = Span<T, V>::load(from + D / 2 + at);
  float turned[2][V];
#pragma unroll
  for (int e = 0; e < V; e++) {
    const float first = to_float(a.v[e]), second = to_float(b.v[e]), c = turn.cosine[at + e], s = turn.sine[at + e];
    turned[0][e] = turn.good ? first * c - second * s : 0.f;
    turned[1][e] = turn.good ? second * c + first * s : 0.f;
  }
  round_to(a.v, turned[0]);
  round_to(b.v, turned[1]);
  for (T* p : {to, copy, cache}) {
    if (!p) continue;
    a.store(p + at);
    b.store(p + D / 2 + at);
  }
}

template <class T, class C, int D, bool kFresh>
__global__ void __launch_bounds__(kThreads) step(const PagedArgs a, const PagedFresh f, const int items) {
#if __CUDA_ARCH__ >= 900
  using Warp = Decoder<T, C, D>;
  __shared__ Merge<D> merge;
  __shared__ float2 ml[kHeads];
  __shared__ float o[kHeads][D];
  __shared__ alignas(16) T turned[kFresh ? kHeads : 1][D];
  __shared__ Turn<D> turns[kFresh ? 2 : 1][kFresh ? kMostTokens : 1];  // of q and k
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, rank = blockIdx.x % kRanks;
  const int u = blockIdx.x / kRanks / items, item = blockIdx.x / kRanks % items, pieces = items / a.key_heads, key_head = item / pieces;
  const int first_head = key_head * a.group + item % pieces * kHeads, heads = min(kHeads, a.group - item % pieces * kHeads);

  release_dependents();
  if (!a.settled) wait_for_previous();
  Segment seg;
  {
    const bool wrong = __syncthreads_or(boundaries_wrong(a));
    seg.unit = wrong ? Unit{u, -1, {0, 0}} : unit_of(a, u);
    const KeyRange keys = seg.unit.keys;
    const int share = (keys.last - keys.first + kRanks * 16 - 1) / (kRanks * 16) * 16;
    seg.begin = min(keys.last, keys.first + rank * share);
    seg.end = min(keys.last, seg.begin + share);
  }
  if constexpr (kFresh) {
    for (int i = threadIdx.x; i < 2 * a.tokens * (D / 2); i += kThreads) {
      const int which = i / (a.tokens * (D / 2)), token = i / (D / 2) % a.tokens, at = i % (D / 2);
      const PagedFresh::Rope& rope = which ? f.k : f.q;
      const int64_t position = rope.positions[token];
      const bool good = position >= 0 && position < rope.limit;
      if (!good) raise(a.fault, f.bad_position);
      if (at == 0) turns[which][token].good = good;
      turns[which][token].cosine[at] = good ? rope.cosines[position * (D / 2) + at] : 0.f;
      turns[which][token].sine[at] = good ? rope.sines[position * (D / 2) + at] : 0.f;
    }
  }
  if (a.settled) {
    const int* entries = a.table + static_cast<int64_t>(seg.unit.sequence) * a.columns;
    for (int key = seg.begin + warp * Warp::kKeys + lane; lane < Warp::kKeys && key < seg.end; key += kWarps * Warp::kKeys) {
      const int slot = slot_of(a, entries, key);
      const int64_t at = (static_cast<int64_t>(max(slot, 0)) * a.key_heads + key_head) * D * sizeof(C);
      for (int line = 0; line < D * static_cast<int>(sizeof(C)); line += 128) {
        bring_near(a.k + at + line);
        bring_near(a.v + at + line);
      }
    }
    wait_for_previous();
  }
  if constexpr (kFresh) {
    constexpr int per_head = D / 16, per_value = D / 8;
    __syncthreads();
    for (int i = threadIdx.x; i < heads * per_head + a.tokens * (per_head + per_value); i += kThreads) {
      if (i < heads * per_head) {
        const int head = i / per_head;
        const int64_t row = static_cast<int64_t>(u) * a.heads + first_head + head;
        T* out = rank == 0 ? reinterpret_cast<T*>(f.q.out) + row * D : nullptr;
        turn_piece<T, D>(reinterpret_cast<const T*>(f.q.x) + u * f.q.stride + (first_head + head) * D, turned[head], out, nullptr, turns[0][u], i % per_head * 8);
        continue;
      }
      const int j = i - heads * per_head, token = j / (per_head + per_value), piece = j % (per_head + per_value);
      const bool is_key = piece < per_head;
      const int slot = (is_key ? f.k_slots : f.v_slots)[token];
      const bool kept = slot >= 0 && slot < f.slots;
      if (slot >= f.slots) raise(a.fault, f.bad_slot);
      T* const cache = kept ? reinterpret_cast<T*>(const_cast<char*>(is_key ? a.k : a.v)) + (static_cast<int64_t>(slot) * a.key_heads + key_head) * D : nullptr;
      if (is_key) {
        T* out = reinterpret_cast<T*>(f.k.out) + (static_cast<int64_t>(token) * a.key_heads + key_head) * D;
        turn_piece<T, D>(reinterpret_cast<const T*>(f.k.x) + token * f.k.stride + key_head * D, nullptr, out, cache, turns[1][token], piece * 8);
      } else if (kept) {
        const int at = (piece - per_head) * 8;
        store_pack(cache + at, load_pack(reinterpret_cast<const T*>(f.v) + token * f.v_stride + key_head * D + at));
      }
    }
    __syncthreads();
  }

  Warp x;
  {
    const float c = a.scale * 1.4426950408889634f;
    const T* q = kFresh ? turned[g] : reinterpret_cast<const T*>(a.q) + u * a.q_stride + static_cast<int64_t>(first_head + g) * D;
    x.start(g < heads ? q : nullptr, c, lane);
    x.run(a, seg, key_head, c);
  }
  const auto put = [&](int head, int d, float sum_of_values, float top, float sum) {
    o[head][d] = sum_of_values;
    if (d == 0) ml[head] = make_float2(top, sum);
  };
  x.meet(merge, [&] { return heads; }, put);
  cluster.sync();
  for (int head = rank; head < heads; head += kRanks)
    for (int d = threadIdx.x; d < D; d += kThreads) {
      float2 of[kRanks];
      float part[kRanks], top = -INFINITY;
#pragma unroll
      for (int r = 0; r < kRanks; r++) {
        of[r] = *cluster.map_shared_rank(&ml[head], r);
        part[r] = *cluster.map_shared_rank(&o[head][d], r);
        top = fmaxf(top, of[r].x);
      }
      const float base = top == -INFINITY ? 0.f : top;
      float value = 0.f, sum = 0.f;
#pragma unroll
      for (int r = 0; r < kRanks; r++) {
        const float factor = exp2f(of[r].x - base);
        value = fmaf(part[r], factor, value);
        sum = fmaf(of[r].y, factor, sum);
      }
      reinterpret_cast<T*>(a.o)[(static_cast<int64_t>(u) * a.heads + first_head + head) * D + d] = from_float<T>(sum == 0.f ? 0.f : __fdividef(value, sum));
    }
  cluster.sync();  // until all have read
#endif
}

template <class T, class C, int D, bool kFresh>
const char* run(Context& ctx, const PagedArgs& a, const PagedFresh& f) {
  cudaLaunchAttribute how[2]{};
  how[0].id = cudaLaunchAttributeClusterDimension;
  how[0].val.clusterDim = {kRanks, 1, 1};
  how[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  how[1].val.programmaticStreamSerializationAllowed = !ctx.serial;
  const int items = a.key_heads * static_cast<int>(ceil_div(a.group, kHeads));
  cudaLaunchConfig_t c{};
  c.gridDim = static_cast<unsigned>(a.tokens * items * kRanks);
  c.blockDim = kThreads;
  c.stream = ctx.stream;
  c.attrs = how;
  c.numAttrs = 2;
  cudaLaunchKernelEx(&c, step<T, C, D, kFresh>, a, f, items);
  return launched();
}

template <class T>
const char* run_type(Context& ctx, const PagedArgs& a, const PagedFresh* f) {
  if (f) return a.width == 64 ? run<T, T, 64, true>(ctx, a, *f) : run<T, T, 128, true>(ctx, a, *f);
  if (a.cache_type == DType::i8) return a.width == 64 ? run<T, int8_t, 64, false>(ctx, a, {}) : run<T, int8_t, 128, false>(ctx, a, {});
  return a.width == 64 ? run<T, T, 64, false>(ctx, a, {}) : run<T, T, 128, false>(ctx, a, {});
}

}  // namespace

bool can_paged_step(const Context& ctx, const PagedArgs& a) {
  return ctx.arch >= 90 && a.tensor_cores && a.by_token && a.tokens > 0 && a.tokens <= kMostTokens && a.heads > 0 && static_cast<int64_t>(a.columns) * a.block <= kMostKeys &&
         a.tokens * a.key_heads * ceil_div(a.group, kHeads) * kRanks <= ctx.sms;
}

const char* paged_step(Context& ctx, const PagedArgs& a, const PagedFresh* fresh) {
  return a.type == DType::bf16 ? run_type<bf16>(ctx, a, fresh) : run_type<f16>(ctx, a, fresh);
}

}  // namespace llm::cuda
