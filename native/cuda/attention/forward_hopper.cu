// Attention forward in bf16 and f16 on Hopper, D = 64 or 128, after FlashAttention-3 (arXiv:2407.08608).
//
// One block a multiprocessor; it works until no piece (tile of rows x head) is left. The first warpgroup only feeds: one warp chooses the
// pieces, one thread starts the copy engine's loads of q (two buffers) and of keys and values, which share a ring of slots: of each piece
// K[n-1], K[n-2], V[n-1], K[n-3], V[n-2], … V[0]. The other warpgroups compute 64 rows each, from the last keys to the first:
//     start S' = q K[i] and O += P V[i+1]; wait for S'; softmax of S' while the second product still runs; wait; P = S'; O *= factor.
// With the last values of a piece go the first scores of the next one, so that the products of one hide the end of the other. Products are
// started in turns (named barriers): one warpgroup's softmax runs under the other's products. Scores stay in registers; rounded they are
// the left operand of P V. Every mbarrier `full` counts the copy engine's bytes, every `empty` one arrival per computing warp.
#include "cuda/attention/forward.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/tensor_map.cuh"

namespace llm::cuda {
namespace {

template <int D>
struct Shape {
  static constexpr int groups = D == 64 ? 3 : 2;  // computing warpgroups
  static constexpr int rows = 64 * groups;
  static constexpr int keys = 128;
  static constexpr int slots = D == 64 ? 8 : 5;
  static constexpr int threads = 128 * (groups + 1);
  static constexpr int q_bytes = rows * D * 2, slot_bytes = keys * D * 2;
  static constexpr int shared = 1024 + 2 * q_bytes + slots * slot_bytes + 512;
  // Registers a thread, in eights. The block starts with the same number for all threads; together they cannot have more than that.
  static constexpr int feed_registers = D == 64 ? 32 : 40, compute_registers = D == 64 ? 160 : 232;
  static_assert(feed_registers + groups * compute_registers <= (groups + 1) * (65536 / threads / 8 * 8));
};

struct HopperArgs {
  char* o;
  float* lse;
  Packed p;
  int heads, group, together;
  float scale, scale_log2;
};

// Key tiles [begin, end) that a tile of rows sees, and [inner_begin, inner_end), those that all its rows see whole.
struct KeyTiles {
  int begin, end, inner_begin, inner_end;
};
template <int rows, int keys>
__device__ __forceinline__ KeyTiles key_tiles(const Packed& p, const Work& w) {
  const int first_row = w.tile * rows, last_row = min(first_row + rows, w.s.queries) - 1;
  KeyTiles t;
  t.begin = first_key(p, w.s, first_row) / keys;
  t.end = (last_key(p, w.s, last_row) + keys - 1) / keys;
  t.inner_begin = (first_key(p, w.s, last_row) + keys - 1) / keys;
  t.inner_end = last_key(p, w.s, first_row) / keys;
  return t;
}

// What the feeding thread tells the computing ones: a piece that sees keys. head = -1: no more.
struct Piece {
  Stretch s;
  int head, row0;  // first row, within the stretch
  KeyTiles t;
};

// A block's barriers and messages, behind the buffers. Message i uses q buffer i % 2 and, to outlive it, its own place i % 4.
template <int D>
struct Control {
  uint64_t wanted, known;  // the feeding thread wants a piece; the choosing warp has one
  uint64_t piece_full[2], piece_empty[2], full[Shape<D>::slots], empty[Shape<D>::slots];
  Piece piece[4];
};
static_assert(sizeof(Control<64>) <= 512 && sizeof(Control<128>) <= 512);

// Pieces handed out beyond the first of each block, and blocks that are done. The last block sets both back to 0.
[[maybe_unused]] __device__ unsigned pieces_taken, blocks_done;

// The first lane's value: tells the compiler that the warp agrees on it, so that what depends on it stays in uniform registers.
[[maybe_unused]] __device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Position in the ring of slots: goes round with the phase of the slots' barriers.
template <int slots>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++slot == slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// The rows of a piece that sees no keys. Called by one warp.
template <int D>
__device__ __forceinline__ void write_nothing(const HopperArgs& a, const Work& w) {
  const int lane = threadIdx.x & 31, row0 = w.tile * Shape<D>::rows, rows = min(Shape<D>::rows, w.s.queries - row0);
  for (int row = lane; row < rows; row += 32) {
    const int64_t token = w.s.q_begin + row0 + row;
    uint4* o = reinterpret_cast<uint4*>(a.o) + (token * a.heads + w.head) * (D / 8);
#pragma unroll 1
    for (int i = 0; i < D / 8; i++) o[i] = make_uint4(0, 0, 0, 0);
    a.lse[static_cast<int64_t>(w.head) * a.p.queries + token] = -INFINITY;
  }
}

// The choosing warp: finds the next piece that sees keys whenever one is wanted.
template <int D>
__device__ __forceinline__ void choose(const HopperArgs& a, Control<D>& control) {
  using S = Shape<D>;
  const bool leader = threadIdx.x % 32 == 0;
  WorkCursor cursor;
  Work w;
  int number = blockIdx.x;
  if (leader) control.piece[0].head = -1;  // unless one is found
  for (int turn = 0; find_work(a.p, S::rows, a.heads, a.together, number, cursor, w);) {
    const KeyTiles t = key_tiles<S::rows, S::keys>(a.p, w);
    if (t.begin < t.end) {
      if (leader) {
        control.piece[turn & 3] = Piece{w.s, w.head, w.tile * S::rows, t};
        ptx::mbar_arrive(ptx::shared_address(&control.known));
      }
      ptx::mbar_wait(ptx::shared_address(&control.wanted), turn & 1);
      turn++;
    } else {
      write_nothing<D>(a, w);
    }
    number = leader ? gridDim.x + atomicAdd(&pieces_taken, 1u) : 0;
    number = __shfl_sync(0xffffffffu, number, 0);
    if (leader) control.piece[turn & 3].head = -1;
  }
  if (leader) {
    ptx::mbar_arrive(ptx::shared_address(&control.known));
    if (atomicAdd(&blocks_done, 1u) == gridDim.x - 1) pieces_taken = blocks_done = 0;
  }
}

// The feeding thread.
template <class T, int D>
__device__ __forceinline__ void feed(const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map, const HopperArgs& a,
                                     uint32_t q_base, uint32_t slot_base, Control<D>& control) {
  using S = Shape<D>;
  RingPosition<S::slots> at;
  for (int turn = 0;; turn++) {
    const int b = turn & 1;
    const uint32_t piece_full = ptx::shared_address(&control.piece_full[b]);
    ptx::mbar_wait(ptx::shared_address(&control.known), b);
    ptx::mbar_wait(ptx::shared_address(&control.piece_empty[b]), ((turn >> 1) & 1) ^ 1);
    const Piece x = control.piece[turn & 3];
    if (x.head < 0) {
      ptx::mbar_arrive(piece_full);
      break;
    }
    ptx::mbar_expect(piece_full, S::q_bytes);
    ptx::tma_load_4d(q_base + b * S::q_bytes, &q_map, piece_full, 0, x.s.q_begin + x.row0, 0, x.head);
    const int key_head = x.head / a.group;
    const auto load = [&](const CUtensorMap& map, int n) {
      ptx::mbar_wait(ptx::shared_address(&control.empty[at.slot]), at.phase ^ 1);
      const uint32_t full = ptx::shared_address(&control.full[at.slot]);
      ptx::mbar_expect(full, S::slot_bytes);
      ptx::tma_load_4d(slot_base + at.slot * S::slot_bytes, &map, full, 0, x.s.k_begin + n * S::keys, 0, key_head);
      at.next();
    };
    // The next piece is asked for shortly before this one ends: late enough to balance the blocks, early enough to be known in time.
    const auto ask_at = [&](int n) {
      if (n == min(x.t.end - 1, x.t.begin + 2)) ptx::mbar_arrive(ptx::shared_address(&control.wanted));
    };
    ask_at(x.t.end - 1);
    load(k_map, x.t.end - 1);
    for (int n = x.t.end - 2; n >= x.t.begin; n--) {
      ask_at(n);
      load(k_map, n);
      load(v_map, n + 1);
    }
    load(v_map, x.t.begin);
  }
}

template <class T, int D>
__device__ __forceinline__ void compute(const HopperArgs& a, const CUtensorMap& o_map, uint32_t q_base, uint32_t slot_base, char* slots,
                                        Control<D>& control) {
  using S = Shape<D>;
  constexpr int N = S::keys;
  const int thread = threadIdx.x % 128, lane = thread % 32, group = uniform(threadIdx.x / 128) - 1, warp = uniform(thread / 32);
  const int my_turn = 1 + group, next_turn = 1 + (group + 1) % S::groups, own_barrier = 1 + S::groups + group;
  RingPosition<S::slots> at;
  int turn = 0;  // messages read

  float o[D / 2], s[N / 2], factor[2];
  uint32_t p[N / 16][4];

  const auto wait_full = [&](const RingPosition<S::slots>& r) { ptx::mbar_wait(ptx::shared_address(&control.full[r.slot]), r.phase); };
  const auto arrive = [&](uint64_t& barrier) {
    if (lane == 0) ptx::mbar_arrive(ptx::shared_address(&barrier));
  };
  // The next piece; false when there is none.
  const auto take = [&](Piece& x) {
    ptx::mbar_wait(ptx::shared_address(&control.piece_full[turn & 1]), (turn >> 1) & 1);
    const Piece& message = control.piece[turn++ & 3];
    x.s = Stretch{uniform(message.s.q_begin), uniform(message.s.queries), 0, uniform(message.s.keys)};
    x.t = KeyTiles{uniform(message.t.begin), uniform(message.t.end), uniform(message.t.inner_begin), uniform(message.t.inner_end)};
    x.head = uniform(message.head);
    x.row0 = uniform(message.row0);
    return x.head >= 0;
  };
  const auto start_scores = [&](int buffer, int slot) {
    const uint64_t q = ptx::descriptor_rows(q_base + buffer * S::q_bytes + group * 64 * 128);
    const uint64_t k = ptx::descriptor_rows(slot_base + slot * S::slot_bytes);
#pragma unroll
    for (int i = 0; i < D / 16; i++)
      ptx::Wgmma<T, N>::template ss<0, 0>(s, q + i / 4 * (S::rows * 8) + i % 4 * 2, k + i / 4 * (N * 8) + i % 4 * 2, i > 0);
    ptx::wgmma_commit();
  };
  const auto start_output = [&](int slot, int accumulate) {
    ptx::wgmma_fence();
    const uint64_t v = ptx::descriptor_columns(slot_base + slot * S::slot_bytes, N * 128);
#pragma unroll
    for (int i = 0; i < N / 16; i++) ptx::Wgmma<T, D>::template rs<1>(o, p[i], v + i * 128, i > 0 ? 1 : accumulate);
    ptx::wgmma_commit();
  };
  const auto hold_output = [&] {
    ptx::hold(o);
#pragma unroll
    for (int i = 0; i < N / 16; i++) ptx::hold(p[i]);
  };
  const auto fence = [&] {
    ptx::hold(s);
    hold_output();
    ptx::wgmma_fence();
  };
  const auto upper_row = [&](const Piece& x) { return x.row0 + group * 64 + warp * 16 + lane / 4; };  // of this thread; the lower is 8 on
  const auto mask = [&](const Piece& x, int n) {
    const int row = upper_row(x), origin = n * N + 2 * (lane % 4);
    const int last[2] = {last_key(a.p, x.s, row) - origin, last_key(a.p, x.s, row + 8) - origin};
    if (a.p.window > 0) {
      const int first[2] = {first_key(a.p, x.s, row) - origin, first_key(a.p, x.s, row + 8) - origin};
      mask_scores(s, first, last);
    } else {
      mask_scores(s, last);
    }
  };
  // The scores of a piece's last keys, which are in `s`: starts its softmax.
  const auto begin_softmax = [&](const Piece& x, RunningSoftmax& softmax) {
    softmax = RunningSoftmax{};
    mask(x, x.t.end - 1);
    advance_softmax<true>(s, softmax, factor, a.scale_log2);
  };
  const auto step = [&](const Piece& x, RunningSoftmax& softmax, int n, int accumulate, auto masked) {
    wait_full(at);
    ptx::named_sync(my_turn, 256);
    fence();
    const int key_slot = at.slot;
    start_scores((turn - 1) & 1, key_slot);
    at.next();
    wait_full(at);
    start_output(at.slot, accumulate);
    ptx::named_arrive(next_turn, 256);
    ptx::wgmma_wait<1>();
    ptx::hold(s);
    arrive(control.empty[key_slot]);
    if constexpr (decltype(masked)::value) mask(x, n);
    advance_softmax<decltype(masked)::value>(s, softmax, factor, a.scale_log2);
    ptx::wgmma_wait<0>();
    hold_output();
    arrive(control.empty[at.slot]);
    at.next();
    pack_scores<T>(s, p);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= factor[(i >> 1) & 1];
  };

  Piece now, next;
  if (!take(now)) return;
  RunningSoftmax softmax;
  if (group == S::groups - 1) ptx::named_arrive(1, 256);
  wait_full(at);
  ptx::hold(s);
  ptx::wgmma_fence();
  start_scores((turn - 1) & 1, at.slot);
  ptx::wgmma_wait<0>();
  ptx::hold(s);
  arrive(control.empty[at.slot]);
  at.next();
  begin_softmax(now, softmax);
  pack_scores<T>(s, p);

  int stored = -1;  // q buffer out of which rows of o are being stored
  for (bool more = true; more;) {
    // Here p holds the probabilities of the last keys of `now`, o nothing yet. Values past the sequence's end may be anything, and 0 * NaN
    // is not 0: make them zeros. Every warpgroup does it for itself.
    const KeyTiles t = now.t;
    const int rest = now.s.keys - (t.end - 1) * N;
    if (rest < N) {
      RingPosition<S::slots> value = at;
      if (t.end - 1 > t.begin) value.next();
      wait_full(value);
      char* rows = slots + value.slot * S::slot_bytes;
      for (int i = rest * 8 + thread; i < N * 8; i += 128)
#pragma unroll
        for (int panel = 0; panel < D / 64; panel++) reinterpret_cast<uint4*>(rows + panel * N * 128)[i] = make_uint4(0, 0, 0, 0);
      ptx::fence_async_shared();
      ptx::named_sync(own_barrier, 128);
    }
    if (stored >= 0) {
      if (lane == 0) ptx::tma_store_wait<0>();
      arrive(control.piece_empty[stored]);
      stored = -1;
    }
    int accumulate = 0;
    for (int n = t.end - 2; n >= t.begin; n--) {
      if (n >= t.inner_end || n < t.inner_begin)
        step(now, softmax, n, accumulate, std::true_type{});
      else
        step(now, softmax, n, accumulate, std::false_type{});
      accumulate = 1;
    }

    // The last values, together with the first scores of the next piece. Whole rows of a long piece go out through its q buffer; the others
    // straight from registers, so that the buffer is free early.
    const int buffer = (turn - 1) & 1, row = upper_row(now);
    const bool by_copy = now.row0 + group * 64 + warp * 16 + 16 <= now.s.queries && t.end - t.begin > 1;
    if (!by_copy) arrive(control.piece_empty[buffer]);
    more = take(next);
    const RingPosition<S::slots> values = at;
    at.next();
    const RunningSoftmax done = softmax;
    if (more) {
      wait_full(at);
      ptx::named_sync(my_turn, 256);
      fence();
      start_scores((turn - 1) & 1, at.slot);
      wait_full(values);
      start_output(values.slot, accumulate);
      ptx::named_arrive(next_turn, 256);
      ptx::wgmma_wait<1>();
      ptx::hold(s);
      arrive(control.empty[at.slot]);
      at.next();
      begin_softmax(next, softmax);
      ptx::wgmma_wait<0>();
    } else {
      ptx::named_sync(own_barrier, 128);  // all warps are done with q: the rows of o may take its place
      wait_full(values);
      hold_output();
      start_output(values.slot, accumulate);
      ptx::wgmma_wait<0>();
    }
    hold_output();
    arrive(control.empty[values.slot]);

    float inverse[2], lse[2];
    finish_softmax(done, a.scale, inverse, lse);
#pragma unroll
    for (int r = 0; r < 2; r++)
      if (lane % 4 == 0 && row + 8 * r < now.s.queries)
        a.lse[static_cast<int64_t>(now.head) * a.p.queries + now.s.q_begin + row + 8 * r] = lse[r];
    if (by_copy) {
      const uint32_t rows = q_base + buffer * S::q_bytes + (group * 64 + warp * 16) * 128;
#pragma unroll
      for (int i = 0; i < D / 16; i++) {
        uint32_t x[4];
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] = ptx::pack2<T>(o[8 * i + 2 * e] * inverse[e & 1], o[8 * i + 2 * e + 1] * inverse[e & 1]);
        ptx::stmatrix4(rows + i / 4 * (S::rows * 128) + ptx::swizzled(lane % 16, i % 4 * 16 + lane / 16 * 8), x);
      }
      ptx::fence_async_shared();
      __syncwarp();
      if (lane == 0) {
#pragma unroll
        for (int panel = 0; panel < D / 64; panel++)
          ptx::tma_store_4d(&o_map, rows + panel * (S::rows * 128), 0, now.s.q_begin + row, panel, now.head);
        ptx::tma_store_commit();
      }
      stored = buffer;
    } else {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int64_t token = now.s.q_begin + row + 8 * r;
        store_row(reinterpret_cast<T*>(a.o) + (token * a.heads + now.head) * D, o, r, inverse[r], D, row + 8 * r < now.s.queries);
      }
    }
    if (more) pack_scores<T>(s, p);
    now = next;
  }
  if (lane == 0) ptx::tma_store_wait<0>();
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<D>::threads, 1)
    forward_hopper_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap o_map, const HopperArgs a) {
#if LLM_HOPPER
  using S = Shape<D>;
  extern __shared__ char raw[];
  char* base = raw + (-ptx::shared_address(raw) & 1023u);
  char* slots = base + 2 * S::q_bytes;
  Control<D>& control = *reinterpret_cast<Control<D>*>(slots + S::slots * S::slot_bytes);
  const uint32_t q_base = ptx::shared_address(base), slot_base = ptx::shared_address(slots);
  if (threadIdx.x == 0) {
    ptx::tma_prefetch_map(&q_map);
    ptx::tma_prefetch_map(&k_map);
    ptx::tma_prefetch_map(&v_map);
    ptx::tma_prefetch_map(&o_map);
    constexpr int warps = S::groups * 4;
    ptx::mbar_init(ptx::shared_address(&control.wanted), 1);
    ptx::mbar_init(ptx::shared_address(&control.known), 1);
    for (int i = 0; i < 2; i++) {
      ptx::mbar_init(ptx::shared_address(&control.piece_full[i]), 1);
      ptx::mbar_init(ptx::shared_address(&control.piece_empty[i]), warps);
    }
    for (int i = 0; i < S::slots; i++) {
      ptx::mbar_init(ptx::shared_address(&control.full[i]), 1);
      ptx::mbar_init(ptx::shared_address(&control.empty[i]), warps);
    }
    ptx::mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::registers_shrink<S::feed_registers>();
    if (threadIdx.x == 0) feed<T, D>(q_map, k_map, v_map, a, q_base, slot_base, control);
    else if (threadIdx.x / 32 == 1) choose<D>(a, control);
    else if (threadIdx.x / 32 == 2 && blockIdx.x == 0) check_boundaries(a.p);
  } else {
    ptx::registers_grow<S::compute_registers>();
    compute<T, D>(a, o_map, q_base, slot_base, slots, control);
  }
#endif
}

template <class T, int D>
const char* launch(Context& ctx, const Forward& f) {
  using S = Shape<D>;
  CUtensorMap q_map, k_map, v_map, o_map;
  View o = f.q;
  o.data = f.o;
  o.stride[0] = o.shape[1] * o.shape[2];
  if (!encode_heads(&q_map, f.q, S::rows) || !encode_heads(&k_map, f.k, S::keys) || !encode_heads(&v_map, f.v, S::keys) ||
      !encode_heads(&o_map, o, 16, 1))
    return "the driver refused the tensor map of q, k, v or o";
  HopperArgs a;
  a.o = f.o;
  a.lse = f.lse;
  a.p = f.packed;
  a.heads = f.heads;
  a.group = f.group;
  a.together = f.together;
  a.scale = static_cast<float>(f.scale);
  a.scale_log2 = static_cast<float>(f.scale * 1.4426950408889634);
  const int64_t pieces = f.packed.most_tiles(S::rows) * f.heads;
  if (pieces >= int64_t{1} << 30) return "fewer tokens or heads expected";
  const cudaError_t e = cudaFuncSetAttribute(forward_hopper_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::shared);
  if (e != cudaSuccess) return cudaGetErrorString(e);
  const int blocks = static_cast<int>(pieces < ctx.sms ? pieces : ctx.sms);
  forward_hopper_kernel<T, D><<<blocks, S::threads, S::shared, ctx.stream>>>(q_map, k_map, v_map, o_map, a);
  return launched();
}

}  // namespace

bool forward_hopper_fits(const Context& ctx, const Forward& f) {
  const int64_t width = f.q.shape[2];
  return ctx.arch == 90 && (width == 64 || width == 128) && aligned16(f.o) && tensor_map_fits(f.q) && tensor_map_fits(f.k) &&
         tensor_map_fits(f.v) && encode_tiled() != nullptr;
}

const char* forward_hopper(Context& ctx, const Forward& f) {
  const bool wide = f.q.shape[2] == 128;
  if (f.q.dtype == DType::bf16) return wide ? launch<bf16, 128>(ctx, f) : launch<bf16, 64>(ctx, f);
  return wide ? launch<f16, 128>(ctx, f) : launch<f16, 64>(ctx, f);
}

}  // namespace llm::cuda
