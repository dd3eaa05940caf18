// What the files of the attention gradient share.
//
// Two passes over tiles of the score matrix. With p = exp(scale q.k - lse), delta = do.o, ds = p (do.v - delta):
//   keys:    a block keeps a tile of k and v, runs over the queries that see it (every query head of the group, in order) and sums
//            dv = p^T do and dk = scale ds^T q in registers;
//   queries: a block keeps a tile of queries, runs over the keys it sees and sums dq = scale ds k.
// No sum is shared between blocks, so results are the same bits in every run. Before both, one kernel (backward_plan.cu) computes
// delta and lists the tiles of all sequences, the longest work first.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda::gradient {

struct Problem {
  const void *grad, *q, *k, *v, *o;  // grad = do; o and grad dense [Tq, H, D]
  void *dq, *dk, *dv;
  const float* lse;
  const int *cu_q, *cu_k;
  int64_t q_stride, k_stride, v_stride;  // elements between tokens
  int64_t queries, keys;                 // tokens of all sequences
  int heads, key_heads, width, sequences;
  float scale;
  bool causal;
  int window;  // 0: none
  DType dtype;
};

// Rows [row, row + rows) of one sequence. Tokens outside all sequences form tiles too, with an empty other side: their gradient is 0.
struct Tile {
  int row, rows;
  int q_begin, q_count, k_begin, k_count;  // the sequence: first token and tokens
  int first_key_tile;                      // number of the sequence's first key tile in order of tokens
  int spill;                               // key tiles: number of their first spilled block within a head; see backward_hopper.cu
};

// How the Hopper kernels divide the work, decided on the device by the sequences' real lengths; see backward_hopper.cu.
struct Division {
  int key_tiles, query_tiles;
  int blocks_per_head;  // spilled blocks of one head
  bool spill;           // or compute the scores again for dq
  int rounds, groups;   // key heads per round
  int splits;           // parts of a key tile's pass
};
// What it may use.
struct Limits {
  int spill_rows = 64;          // queries of a spilled block
  int64_t spill_blocks = 0;     // of all heads of a round
  int parts = 0;                // key tiles x key heads of a round x splits, when splits > 1
  int sms = 1;
};

// What backward_plan.cu leaves in scratch.
struct Plan {
  Division* division;
  Tile *key_tiles, *query_tiles;
  int* spill_of;      // per key tile in order of tokens: its `spill`
  int* taken;         // 0s: work that the Hopper kernels' blocks took, two counters per round and one
  float2* stats;      // [H, Tq]: lse * lse_factor (+inf instead of -inf, so that p = 0), delta
  int most_key_tiles, most_query_tiles;
};

// Tile sizes in rows; lse_factor as above.
const char* make_plan(Context& ctx, const Problem& p, int key_rows, int query_rows, float lse_factor, const Limits& limits, Plan& plan);

const char* generic(Context& ctx, const Problem& p);  // any width, f32 arithmetic
bool tensor_cores_fit(const Context& ctx, const Problem& p);
const char* tensor_cores(Context& ctx, const Problem& p);  // mma.sync, 16-bit types, widths 64 and 128

bool hopper_fits(const Context& ctx, const Problem& p);
const char* hopper(Context& ctx, const Problem& p, const View& grad, const View& q, const View& k, const View& v);  // wgmma, likewise

struct Range {
  int begin, end;
};

// Query i of a sequence sees key j when j <= i + shift (causal) and j > i + shift - window.
__host__ __device__ inline int shift_of(const Tile& t) { return t.k_count - t.q_count; }

// The queries that see any key of a key tile.
__device__ inline Range queries_of(const Problem& p, const Tile& t) {
  const int shift = shift_of(t);
  int begin = p.causal ? t.row - shift : 0, end = t.q_count;
  if (p.window > 0) end = static_cast<int>(min(static_cast<int64_t>(end), static_cast<int64_t>(t.row) + t.rows - 1 + p.window - shift));
  if (t.rows <= 0 || t.k_count <= 0) end = 0;
  begin = max(begin, 0);
  return {begin, max(begin, end)};
}

// The keys that any query of a query tile sees.
__device__ inline Range keys_of(const Problem& p, const Tile& t) {
  const int shift = shift_of(t);
  int begin = p.window > 0 ? static_cast<int>(max(static_cast<int64_t>(t.row) + shift - p.window + 1, static_cast<int64_t>(0))) : 0;
  int end = p.causal ? min(t.k_count, t.row + t.rows + shift) : t.k_count;
  if (t.rows <= 0) end = 0;
  begin = max(begin, 0);
  return {begin, max(begin, end)};
}

__device__ inline bool visible(const Problem& p, const Tile& t, int query, int key) {
  const int position = query + shift_of(t);
  return query < t.q_count && key < t.k_count && (!p.causal || key <= position) && (p.window <= 0 || key > position - p.window);
}

// Whether all of queries [q0, q0 + qn) see all of keys [k0, k0 + kn).
__device__ inline bool all_visible(const Problem& p, const Tile& t, int q0, int qn, int k0, int kn) {
  const int shift = shift_of(t);
  return q0 + qn <= t.q_count && k0 + kn <= t.k_count && (!p.causal || k0 + kn - 1 <= q0 + shift) &&
         (p.window <= 0 || k0 > q0 + qn - 1 + shift - p.window);
}

}  // namespace llm::cuda::gradient
