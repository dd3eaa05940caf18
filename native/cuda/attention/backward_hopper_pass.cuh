// The pass that computes scores (see backward_hopper.cu). Letters, as in backward_mma.cu:
//                 keys pass                queries pass
//   s  = a b^T    a = k, b = q             a = q,  b = k
//   dp = c d^T    c = v, d = do            c = do, d = v
//   sums          dk += ds b, dv += p d    dq += ds b
// a, c: kept, 64 rows for each of two warpgroups; b, d: 64 rows a step. A producer warp brings them, b and d through a ring of stages.
#pragma once
#include "cuda/attention/backward_hopper.cuh"

namespace llm::cuda::gradient {
namespace {

template <int D>
struct PassLayout {
  static constexpr int stages = 4;
  static constexpr int kept = kKept * D * 2, passing = kBlock * D * 2, stats = kBlock * 8;
  static constexpr int a = 0, c = kept, b = 2 * kept, d = b + stages * passing, stat = d + stages * passing;
  static constexpr int barriers = stat + stages * stats;  // kept full, kept empty, full[stages], empty[stages]
  static constexpr int pieces = barriers + 8 * (2 + 2 * stages);
  static constexpr int bytes = pieces + Pieces::bytes + 1024;  // the tiles start at a multiple of 1024
};

// A piece of work: its tile, head(s) and steps.
template <bool kKeys>
struct Work {
  Tile t;
  int key_head, first_head, begin, per_head, first_step, steps;

  static __device__ __forceinline__ int count(const Problem& p, const Division& d, int round) {
    if constexpr (kKeys) return round * d.groups < p.key_heads ? d.key_tiles * d.splits * d.groups : 0;
    else return d.spill ? 0 : d.query_tiles * p.heads * 2;
  }
  __device__ __forceinline__ Work(const Problem& p, const Plan& plan, int round, int piece) {
    const Division& d = *plan.division;
    const int group = p.heads / p.key_heads;
    int share = 0, shares = 1;
    Range range;
    if constexpr (kKeys) {
      share = piece / d.groups % d.splits, shares = d.splits;
      t = plan.key_tiles[piece / d.groups / d.splits];
      key_head = round * d.groups + piece % d.groups;
      first_head = key_head * group;
      range = queries_of(p, t);
      if (key_head >= p.key_heads) range = {0, 0}, t.rows = 0;
    } else {
      t = plan.query_tiles[piece / 2 / p.heads];
      const int skip = piece % 2 * kKept;
      t.row += skip, t.rows = min(kKept, t.rows - skip);
      first_head = piece / 2 % p.heads, key_head = first_head / group;
      range = keys_of(p, t);
    }
    begin = range.begin / kBlock;
    per_head = range.end > range.begin ? (range.end - 1) / kBlock + 1 - begin : 0;
    const int64_t all = static_cast<int64_t>(per_head) * (kKeys ? group : 1);
    first_step = static_cast<int>(all * share / shares);
    steps = static_cast<int>(all * (share + 1) / shares) - first_step;
  }
};

// Runs through (head, block) pairs, blocks fastest.
struct Cursor {
  int head, block, begin, end;
  template <bool kKeys>
  __device__ __forceinline__ explicit Cursor(const Work<kKeys>& w)
      : head(w.first_head + w.first_step / max(w.per_head, 1)), block(w.begin + w.first_step % max(w.per_head, 1)), begin(w.begin), end(w.begin + w.per_head) {}
  __device__ __forceinline__ void next() {
    if (++block == end) block = begin, head++;
  }
};

// Brings a piece's tiles; `turn` counts pieces with steps, `ring` steps.
template <int D, bool kKeys>
__device__ __forceinline__ void produce(const Problem& p, const Plan& plan, const Work<kKeys>& w, const Maps& maps, uint32_t base, int turn,
                                        int& ring) {
  using L = PassLayout<D>;
  const Tile& t = w.t;
  const int lane = threadIdx.x;
  const uint32_t kept_full = base + L::barriers, kept_empty = kept_full + 8, full = kept_empty + 8, empty = full + 8 * L::stages;
  if (lane == 0) {
    const int row = (kKeys ? t.k_begin : t.q_begin) + t.row, head = kKeys ? w.key_head : w.first_head;
    mbar_wait(kept_empty, (turn & 1) ^ 1);
    mbar_expect(kept_full, 2 * L::kept);
    tma_load_4d(base + L::a, &maps.kept_a, kept_full, 0, row, 0, head);
    tma_load_4d(base + L::c, &maps.kept_c, kept_full, 0, row, 0, head);
  }
  Cursor at(w);
  for (int step = 0; step < w.steps; step++, ring++, at.next()) {
    const int stage = ring % L::stages, i0 = at.block * kBlock;
    const uint32_t bar = full + 8 * stage;
    mbar_wait(empty + 8 * stage, (ring / L::stages & 1) ^ 1);
    if (lane == 0) {
      const int row = (kKeys ? t.q_begin : t.k_begin) + i0, head = kKeys ? at.head : w.key_head;
      mbar_expect(bar, 2 * L::passing);
      tma_load_4d(base + L::b + stage * L::passing, &maps.passing_b, bar, 0, row, 0, head);
      tma_load_4d(base + L::d + stage * L::passing, &maps.passing_d, bar, 0, row, 0, head);
    }
    if constexpr (kKeys) {
      const float2* stats = plan.stats + at.head * p.queries + t.q_begin + i0;
#pragma unroll
      for (int r = lane; r < kBlock; r += 32) {
        const bool exists = i0 + r < t.q_count;
        cp_async8(base + L::stat + stage * L::stats + r * 8, stats + (exists ? r : 0), exists ? 8 : 0);
      }
      cp_async_arrive(bar);
    }
  }
}

template <class T, int D, bool kKeys>
__global__ void __launch_bounds__(kThreads, 1) pass_kernel(const Problem p, const Plan plan, const __grid_constant__ Maps maps, const Round round) {
#if LLM_HOPPER
  using L = PassLayout<D>;
  extern __shared__ char memory[];
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup, lane = threadIdx.x % 32;
  const uint32_t base = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t kept_full = base + L::barriers, kept_empty = kept_full + 8, full = kept_empty + 8, empty = full + 8 * L::stages;
  const Pieces pieces{base + L::pieces};
  if (threadIdx.x == 0) {
    mbar_init(kept_full, 1);
    mbar_init(kept_empty, kConsumers * 4);
    for (int i = 0; i < L::stages; i++) {
      mbar_init(full + 8 * i, kKeys ? 1 + 32 : 1);
      mbar_init(empty + 8 * i, kConsumers * 4);
    }
    pieces.init();
    mbar_init_fence();
  }
  __syncthreads();
  release_dependents();
  wait_for_previous();
  if (warpgroup == 0) {
    registers_shrink<kProducerRegisters>();
    if (threadIdx.x >= 32) return;
    const int all = Work<kKeys>::count(p, *plan.division, round.number);
    int turn = 0, ring = 0;
    for (int n = 0;; n++) {
      int piece = 0;
      if (lane == 0) piece = pieces.take(n, all, plan.taken + (kKeys ? 2 * round.number : 2 * p.key_heads));
      piece = __shfl_sync(0xffffffffu, piece, 0);
      if (piece < 0) break;
      const Work<kKeys> w(p, plan, round.number, piece);
      if (w.steps > 0) produce<D, kKeys>(p, plan, w, maps, base, turn++, ring);
    }
    if constexpr (kKeys) {
      cp_async_commit();
      cp_async_wait<0>();
    }
    return;
  }

  registers_grow<kConsumerRegisters>();
  const int consumer = warpgroup - 1, warp = threadIdx.x / 32 % 4;
  const float scale2 = p.scale * kLog2e;
  const int splits = plan.division->splits;
  int turn = 0, ring = 0;
  for (int n = 0, piece; (piece = pieces.hear(n)) >= 0; n++) {
    const Work<kKeys> w(p, plan, round.number, piece);
    const Tile& t = w.t;
    const int first_row = t.row + consumer * 64, own_row = first_row + warp * 16 + lane / 4;
    float first[D / 2], second[kKeys ? D / 2 : 1];
#pragma unroll
    for (int i = 0; i < D / 2; i++) first[i] = 0;
#pragma unroll
    for (int i = 0; i < (kKeys ? D / 2 : 1); i++) second[i] = 0;

    if (w.steps > 0) {
      float s[32], dp[32];
      const uint64_t a = descriptor_rows(base + L::a + consumer * 64 * 128), c = descriptor_rows(base + L::c + consumer * 64 * 128);
      const int passing_count = kKeys ? t.q_count : t.k_count;
      // Waits for a step's tiles.
      const auto arrived = [&](int ring, int block) {
        const int stage = ring % L::stages;
        mbar_wait(full + 8 * stage, ring / L::stages & 1);
        if (const int valid = passing_count - block * kBlock; valid < kBlock) {
          clear_rows<D>(base + L::b + stage * L::passing, kBlock, valid);
          clear_rows<D>(base + L::d + stage * L::passing, kBlock, valid);
          cleared();
        }
      };
      float2 own_stats[2] = {};  // queries pass: of this thread's two rows
      if constexpr (!kKeys) {
#pragma unroll
        for (int half = 0; half < 2; half++)
          if (own_row + half * 8 < t.q_count) own_stats[half] = plan.stats[w.first_head * p.queries + t.q_begin + own_row + half * 8];
      }
      mbar_wait(kept_full, turn++ & 1);
      if (t.rows < kKept) {
        clear_rows<D>(base + L::a, kKept, t.rows);
        clear_rows<D>(base + L::c, kKept, t.rows);
        cleared();
      }
      const int blocks_per_head = plan.division->blocks_per_head;
      const int64_t heads_before = static_cast<int64_t>(round.number) * plan.division->groups * (p.heads / p.key_heads);
      const int64_t spill_base = kKeys ? t.spill - w.begin - heads_before * blocks_per_head : 0;
      const bool spill = kKeys && plan.division->spill;
      Cursor at(w);
      arrived(ring, at.block);
      wgmma_fence();
      scores<T, D>(s, a, descriptor_rows(base + L::b + ring % L::stages * L::passing));
      wgmma_commit();
      wgmma_wait<0>();
      hold(s);
      for (int step = 0; step < w.steps; step++, ring++) {
        const int stage = ring % L::stages, i0 = at.block * kBlock;
        const uint32_t b = base + L::b + stage * L::passing, d = base + L::d + stage * L::passing;
        const uint32_t stats = base + L::stat + stage * L::stats + lane % 4 * 16;
        const bool all = kKeys ? all_visible(p, t, i0, kBlock, first_row, 64) : all_visible(p, t, first_row, 64, i0, kBlock);
        uint32_t probability[4][4], slope[4][4];

        wgmma_fence();
        scores<T, D>(dp, c, descriptor_rows(d));
        wgmma_commit();
#pragma unroll
        for (int j = 0; j < 8; j++) {
          float4 two;
          if constexpr (kKeys) two = load_shared4(stats + j * 64);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const float lse = kKeys ? (e % 2 ? two.z : two.x) : own_stats[e / 2].x;
            s[4 * j + e] = exp2_fast(s[4 * j + e] * scale2 - lse);
          }
        }
        if (!all) {
#pragma unroll
          for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
              const int own = own_row + e / 2 * 8, other = i0 + 8 * j + lane % 4 * 2 + e % 2;
              if (!visible(p, t, kKeys ? other : own, kKeys ? own : other)) s[4 * j + e] = 0;
            }
        }
        if constexpr (kKeys) {
          as_operand<T>(probability, s);
          wgmma_fence();
          accumulate<T, D>(second, probability, descriptor_columns(d, kBlock * 128));
          wgmma_commit();
          wgmma_wait<1>();
        } else {
          wgmma_wait<0>();
        }
        hold(dp);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          float4 two;
          if constexpr (kKeys) two = load_shared4(stats + j * 64);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const float delta = kKeys ? (e % 2 ? two.w : two.y) : own_stats[e / 2].y;
            dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - delta);
          }
        }
        as_operand<T>(slope, dp);
        const int64_t out_block = spill_base + static_cast<int64_t>(at.head) * blocks_per_head + at.block;
        at.next();
        const bool more = step + 1 < w.steps;
        if (more) arrived(ring + 1, at.block);
        wgmma_fence();
        accumulate<T, D>(first, slope, descriptor_columns(b, kBlock * 128));
        wgmma_commit();
        scores<T, D>(s, a, descriptor_rows(base + L::b + (more ? ring + 1 : ring) % L::stages * L::passing));
        wgmma_commit();
        if (spill) {
          uint32_t* out = static_cast<uint32_t*>(round.spill) + (out_block * kSpill + consumer * kHalf) / 2 + warp * 512 + lane;
#pragma unroll
          for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) __stcs(out + e % 2 * 256 + (2 * n + e / 2) * 32, slope[n][e]);
        }
        wgmma_wait<0>();
        hold(s);
        hold(first);
        if constexpr (kKeys) hold(second);
        __syncwarp();
        if (lane == 0) mbar_arrive(empty + 8 * stage);
      }
      if (lane == 0) mbar_arrive(kept_empty);
    }
    if (kKeys && splits > 1) {
      float* part = round.parts + static_cast<int64_t>(piece) * (2 * kKept * D) + consumer * 64 * D;
      store_part<D>(part, first);
      if constexpr (kKeys) store_part<D>(part + kKept * D, second);
      continue;
    }
    const int64_t token = (kKeys ? t.k_begin : t.q_begin) + first_row;
    const int rows = t.rows - consumer * 64;
    if constexpr (kKeys) {
      store<T, D>(p.dk, first, p.scale, token, rows, p.key_heads, w.key_head);
      store<T, D>(p.dv, second, 1.f, token, rows, p.key_heads, w.key_head);
    } else {
      store<T, D>(p.dq, first, p.scale, token, rows, p.heads, w.first_head);
    }
  }
#endif
}

}  // namespace
}  // namespace llm::cuda::gradient
