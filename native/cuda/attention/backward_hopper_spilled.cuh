// dq = scale ds k from the spill, and dk, dv from their parts (see backward_hopper.cu). A piece of work is a tile of 256 queries of a head:
// two warpgroups with 128 rows each, 64 keys a step.
#pragma once
#include "cuda/attention/backward_hopper.cuh"

namespace llm::cuda::gradient {
namespace {

template <int D>
struct SpilledLayout {
  static constexpr int stages = 4;
  static constexpr int spill = kQueryRows * kBlock * 2, k = kBlock * D * 2;
  static constexpr int keys = stages * spill, barriers = keys + stages * k;  // full[stages], empty[stages]
  static constexpr int pieces = barriers + 16 * stages, bytes = pieces + Pieces::bytes + 1024;
};

struct QueryWork {
  Tile t;
  int head, first, last;  // halves of key tiles [first, last)
  __device__ __forceinline__ QueryWork(const Problem& p, const Plan& plan, int item, int first_head, int heads) {
    t = plan.query_tiles[item / heads];
    head = first_head + item % heads;
    const Range keys = keys_of(p, t);
    first = keys.begin / kBlock;
    last = keys.end > keys.begin ? (keys.end - 1) / kBlock + 1 : first;
  }
  // Query blocks that the spill has for this half's key tile.
  __device__ __forceinline__ Range blocks(const Problem& p, int half) const {
    Tile kt = t;
    kt.row = half / 2 * kKept;
    kt.rows = min(kKept, t.k_count - kt.row);
    return blocks_of(p, kt);
  }
};

// dk and dv of key tiles whose pass was split: the parts, in order.
template <class T, int D>
__device__ void sum_parts(const Problem& p, const Plan& plan, const Round& round) {
  const Division& d = *plan.division;
  if (d.splits < 2) return;
  constexpr int pieces = 16, rows = kKept / (pieces / 2);  // a piece: 16 rows of dk or dv
  for (int i = blockIdx.x; i < d.key_tiles * d.groups * pieces; i += gridDim.x) {
    const int item = i / pieces, piece = i % pieces, which = piece % 2, row0 = piece / 2 * rows;
    const Tile t = plan.key_tiles[item / d.groups];
    const int head = round.number * d.groups + item % d.groups;
    if (head >= p.key_heads) continue;
    const int64_t apart = static_cast<int64_t>(d.groups) * (2 * kKept * D);
    const float* from = round.parts + (static_cast<int64_t>(item / d.groups) * d.splits * d.groups + item % d.groups) * (2 * kKept * D) +
                        (which * kKept + row0) * D;
    const float factor = which == 0 ? p.scale : 1.f;
    T* to = static_cast<T*>(which == 0 ? p.dk : p.dv);
    for (int e = (static_cast<int>(threadIdx.x) - kWarpgroup) * 4; e < rows * D; e += kConsumers * kWarpgroup * 4) {
      float4 sum = {};
      for (int s = 0; s < d.splits; s++) {
        const float4 x = *reinterpret_cast<const float4*>(from + s * apart + e);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
      }
      const int row = row0 + e / D;
      if (row >= t.rows) continue;
      uint2 rounded = {pack2<T>(sum.x * factor, sum.y * factor), pack2<T>(sum.z * factor, sum.w * factor)};
      *reinterpret_cast<uint2*>(to + ((static_cast<int64_t>(t.k_begin) + t.row + row) * p.key_heads + head) * D + e % D) = rounded;
    }
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1) spilled_kernel(const Problem p, const Plan plan, const __grid_constant__ CUtensorMap map_k, const Round round) {
#if LLM_HOPPER
  using L = SpilledLayout<D>;
  extern __shared__ char memory[];
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup, lane = threadIdx.x % 32;
  const uint32_t base = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t full = base + L::barriers, empty = full + 8 * L::stages;
  const Pieces pieces{base + L::pieces};
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::stages; i++) {
      mbar_init(full + 8 * i, 1);
      mbar_init(empty + 8 * i, kConsumers * 4);
    }
    pieces.init();
    mbar_init_fence();
  }
  __syncthreads();
  release_dependents();
  wait_for_previous();
  const Division& division = *plan.division;
  const int group = p.heads / p.key_heads, first_head = round.number * division.groups * group;
  const int heads = min(division.groups * group, p.heads - first_head);
  const int all = division.spill && heads > 0 ? division.query_tiles * heads : 0;

  if (warpgroup == 0) {
    registers_shrink<40>();
    if (threadIdx.x > 0) return;
    int step = 0;
    for (int n = 0, piece; (piece = pieces.take(n, all, plan.taken + 2 * round.number + 1)) >= 0; n++) {
      const QueryWork w(p, plan, piece, first_head, heads);
      const int block0 = w.t.row / kBlock;
      const T* of_head = static_cast<const T*>(round.spill) + (w.head - first_head) * static_cast<int64_t>(division.blocks_per_head) * kSpill;
      for (int half = w.first; half < w.last; half++, step++) {
        const int stage = step % L::stages;
        const uint32_t bar = full + 8 * stage;
        const Range blocks = w.blocks(p, half);
        const int begin = max(blocks.begin, block0), end = min(blocks.end, block0 + kQueryRows / kBlock);
        const T* from = of_head + static_cast<int64_t>(plan.spill_of[w.t.first_key_tile + half / 2] - blocks.begin) * kSpill + half % 2 * kHalf;
        mbar_wait(empty + 8 * stage, (step / L::stages & 1) ^ 1);
        mbar_expect(bar, static_cast<uint32_t>(L::k + max(end - begin, 0) * kHalf * 2));
        for (int b = begin; b < end; b++)
          bulk_load(base + stage * L::spill + (b - block0) * kHalf * 2, from + static_cast<int64_t>(b) * kSpill, kHalf * 2, bar);
        tma_load_4d(base + L::keys + stage * L::k, &map_k, bar, 0, w.t.k_begin + half * kBlock, 0, w.head / group);
      }
    }
    return;
  }

  registers_grow<232>();
  if (all > 0) sum_parts<T, D>(p, plan, round);
  const int consumer = warpgroup - 1;
  int step = 0;
  for (int n = 0, piece; (piece = pieces.hear(n)) >= 0; n++) {
    const QueryWork w(p, plan, piece, first_head, heads);
    const int own = w.t.row / kBlock + consumer * 2;
    float dq[2][D / 2];
#pragma unroll
    for (int e = 0; e < D / 2; e++) dq[0][e] = dq[1][e] = 0;
    for (int half = w.first; half < w.last; half++, step++) {
      const int stage = step % L::stages;
      const Range blocks = w.blocks(p, half);
      const uint32_t k = base + L::keys + stage * L::k;
      mbar_wait(full + 8 * stage, step / L::stages & 1);
      if (const int valid = w.t.k_count - half * kBlock; valid < kBlock) {
        clear_rows<D>(k, kBlock, valid);
        cleared();
      }
      const uint64_t ds0 = descriptor_blocks(base + stage * L::spill + consumer * 2 * kHalf * 2, 128, 1024), ds1 = ds0 + kHalf * 2 / 16;
      const uint64_t operand = descriptor_columns(k, kBlock * 128);
      const bool has0 = own >= blocks.begin && own < blocks.end, has1 = own + 1 >= blocks.begin && own + 1 < blocks.end;
      if (has0 && has1) {
        wgmma_fence();
        accumulate_spilled<T, D>(dq[0], ds0, operand);
        accumulate_spilled<T, D>(dq[1], ds1, operand);
        wgmma_commit();
        wgmma_wait<0>();
      } else if (has0) {
        wgmma_fence();
        accumulate_spilled<T, D>(dq[0], ds0, operand);
        wgmma_commit();
        wgmma_wait<0>();
      } else if (has1) {
        wgmma_fence();
        accumulate_spilled<T, D>(dq[1], ds1, operand);
        wgmma_commit();
        wgmma_wait<0>();
      }
      hold(dq[0]);
      hold(dq[1]);
      __syncwarp();
      if (lane == 0) mbar_arrive(empty + 8 * stage);
    }
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const int row = w.t.row + (consumer * 2 + b) * kBlock;
      store<T, D>(p.dq, dq[b], p.scale, w.t.q_begin + row, w.t.q_count - row, p.heads, w.head);
    }
  }
#endif
}

}  // namespace
}  // namespace llm::cuda::gradient
