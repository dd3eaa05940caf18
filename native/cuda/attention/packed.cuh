// Packed sequences as the attention kernels see them: which rows and keys belong together, which keys a row sees, and how work is cut into
// tiles of rows. The boundaries live in device memory, so a launch knows only the number of sequences and of tokens.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

// The queries are cut into sequences + 2 stretches: number 0 and the last are the tokens before and after all sequences (they see no
// keys), the others the sequences themselves.
struct Packed {
  const int32_t *cu_q, *cu_k;
  int sequences;
  int queries, keys;  // tokens in all
  int causal;
  int window;  // 0 = none
  int code;    // fault code of bad boundaries
  int* fault_word;

  int stretches() const { return sequences + 2; }
  // Most tiles of `rows` queries that there can be.
  int64_t most_tiles(int rows) const { return ceil_div(queries, rows) + sequences + 2; }
};

inline Packed packed_of(const Context& ctx, const View& q, const View& k, const View& cu_q, const View& cu_k, const double* attr) {
  Packed p;
  p.cu_q = data_of<int32_t>(cu_q);
  p.cu_k = data_of<int32_t>(cu_k);
  p.sequences = static_cast<int>(cu_q.shape[0]) - 1;
  p.queries = static_cast<int>(q.shape[0]);
  p.keys = static_cast<int>(k.shape[0]);
  p.causal = attr[1] != 0;
  p.window = attr[2] >= 1 && attr[2] < 1 << 30 ? static_cast<int>(attr[2]) : 0;
  p.code = ctx.code(Fault::boundaries);
  p.fault_word = ctx.fault_word;
  return p;
}

// One stretch of queries and its keys: rows [q_begin, q_begin + queries), keys [k_begin, k_begin + keys). Always inside the tensors.
struct Stretch {
  int q_begin, queries, k_begin, keys;
};

__device__ inline int stretch_begin(const Packed& p, int i) {
  return i <= 0 ? 0 : i >= p.sequences + 2 ? p.queries : min(max(p.cu_q[i - 1], 0), p.queries);
}
__device__ inline Stretch stretch(const Packed& p, int i) {
  Stretch s;
  s.q_begin = stretch_begin(p, i);
  s.queries = max(stretch_begin(p, i + 1) - s.q_begin, 0);
  s.k_begin = s.keys = 0;
  if (i >= 1 && i <= p.sequences) {
    s.k_begin = min(max(p.cu_k[i - 1], 0), p.keys);
    s.keys = max(min(p.cu_k[i], p.keys) - s.k_begin, 0);
  }
  return s;
}

// Keys [first, last) that row `row` of a stretch sees; last may be <= first.
__device__ inline int first_key(const Packed& p, const Stretch& s, int row) {
  return p.window > 0 ? max(0, row + s.keys - s.queries - p.window + 1) : 0;
}
__device__ inline int last_key(const Packed& p, const Stretch& s, int row) {
  return p.causal ? min(s.keys, row + s.keys - s.queries + 1) : s.keys;
}

// A piece of work: tile `tile` (rows [tile * rows, …) of the stretch) of one head.
struct Work {
  Stretch s;
  int tile, head;
};
// The 32 stretches that the search for a piece looks at, one a lane; pieces are asked for in rising order.
struct WorkCursor {
  int base = -32;  // first stretch
  int before = 0;  // pieces before it
  int sum = 0;     // pieces up to and with this lane's stretch; stops at 2^30: only boundaries that overlap get there
  int tiles = 0;   // of this lane's stretch
};

// Piece number `g` < 2^30 of all; false when there are fewer. Called by a whole warp, every lane gets the result. Order: stretch by stretch;
// inside one `together` heads at a time (whose keys fit the cache), their last tiles, which see the most keys, first.
__device__ inline bool find_work(const Packed& p, int rows, int heads, int together, int g, WorkCursor& c, Work& w) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x & 31;
  unsigned hit;
  while ((hit = __ballot_sync(all, g < c.before + c.sum)) == 0) {
    c.before += __shfl_sync(all, c.sum, 31);
    c.base += 32;
    if (c.base >= p.sequences + 2) return false;
    const int i = c.base + lane, rest = stretch_begin(p, i + 1) - stretch_begin(p, i);
    c.tiles = i < p.sequences + 2 && rest > 0 ? (rest + rows - 1) / rows : 0;
    c.sum = c.tiles * heads;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const int other = __shfl_up_sync(all, c.sum, o);
      if (lane >= o) c.sum = min(c.sum + other, 1 << 30);
    }
  }
  const int at = __ffs(hit) - 1;
  const int n = __shfl_sync(all, c.tiles, at), earlier = __shfl_sync(all, c.sum, max(at - 1, 0));
  w.s = stretch(p, c.base + at);
  int inside = g - c.before - (at > 0 ? earlier : 0), head0 = 0, width = heads;
  if (together < heads) {
    const int section = inside / (n * together);
    inside -= section * n * together;
    head0 = section * together;
    width = min(together, heads - head0);
  }
  const int row_of_heads = inside / width;
  w.tile = n - 1 - row_of_heads;
  w.head = head0 + inside - row_of_heads * width;
  return true;
}

// Raises the fault of boundaries that fall or leave the tensors. Called by one whole warp of a launch.
__device__ inline void check_boundaries(const Packed& p) {
  const int lane = threadIdx.x & 31;
  bool bad = lane == 0 && (p.cu_q[0] < 0 || p.cu_k[0] < 0 || p.cu_q[p.sequences] > p.queries || p.cu_k[p.sequences] > p.keys);
  for (int b = lane; b < p.sequences; b += 32) bad |= p.cu_q[b] > p.cu_q[b + 1] || p.cu_k[b] > p.cu_k[b + 1];
  if (bad) raise(p.fault_word, p.code);
}

}  // namespace llm::cuda
