// Gradient of the embedding: dweight[ids[t]] += dy[t], in the order of t, rounding to dweight's dtype at each step, as the CPU does it.
//
// The tokens are sorted by id (a stable radix sort, so that equal ids stay in the order of t); then each distinct id belongs to one block,
// which keeps that row of dweight in registers while it adds the id's rows of dy one after another. An id that comes more than 32
// times goes to a second kernel, in which threads own fewer columns and have more rows of dy in flight. No races, no float atomics.
#include "cuda/rows.cuh"

namespace llm::cuda {
namespace {

// ---- sorting ---------------------------------------------------------------------------------------------------------------------

constexpr int kWarps = 8, kSortThreads = 32 * kWarps;
constexpr int kMaxDigitBits = 9, kMaxBins = 1 << kMaxDigitBits;
constexpr int kMaxTiles = 256;
constexpr int kAhead = 4;  // keys that a thread loads at a time

struct Sort {
  int n, tile;             // tokens; tokens of a block, a multiple of kAhead * kSortThreads
  int tiles, shift, bits;  // the pass sorts by `bits` bits from `shift` up
  uint32_t limit;          // ids outside the table become this key, which sorts behind all others

  __device__ uint32_t digit(uint32_t key) const { return (key >> shift) & ((1u << bits) - 1); }
};

// A negative id is a huge unsigned one.
__device__ inline uint32_t key_of(uint32_t id, uint32_t limit) { return id < limit ? id : limit; }

// counts[tile, digit] of the keys. The first pass reports ids outside the table.
__global__ void __launch_bounds__(kSortThreads) count_digits(const uint32_t* keys, uint32_t* counts, const Sort k, int* many, int* fault, int code) {
  __shared__ uint32_t count[kMaxBins];
  const int bins = 1 << k.bits;
  for (int b = threadIdx.x; b < bins; b += kSortThreads) count[b] = 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) *many = 0;  // for the kernels below
  __syncthreads();
  const int begin = blockIdx.x * k.tile, end = min(k.n - begin, k.tile);
  for (int i = threadIdx.x; i < end; i += kSortThreads) {
    const uint32_t id = keys[begin + i], key = key_of(id, k.limit);
    if (k.shift == 0 && key == k.limit) raise(fault, code);
    atomicAdd(&count[k.digit(key)], 1u);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += kSortThreads) counts[blockIdx.x * bins + b] = count[b];
}

// Exclusive sums over the block's threads.
__device__ inline uint32_t exclusive_scan(uint32_t x, uint32_t* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32_t sum = x;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const uint32_t before = __shfl_up_sync(0xffffffffu, sum, o);
    if (lane >= o) sum += before;
  }
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  uint32_t base = 0;
  for (int w = 0; w < warp; w++) base += shared[w];
  return base + sum - x;
}

// Moves keys and tokens to where their digit belongs. A warp owns a contiguous part of the tile, so that the order is kept.
__global__ void __launch_bounds__(kSortThreads) move_by_digit(const uint32_t* keys, const int32_t* tokens, const uint32_t* counts,
                                                              uint32_t* keys_to, int32_t* tokens_to, const Sort k) {
  __shared__ uint32_t place[kWarps][kMaxBins];  // first how many, then where the next one goes
  __shared__ uint32_t shared[kWarps];
  const int bins = 1 << k.bits, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = k.tile / kWarps;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * k.tile + warp * part;
  for (int i = threadIdx.x; i < kWarps * kMaxBins; i += kSortThreads) place[0][i] = 0;
  __syncthreads();
  // The warp's keys, 32 at a time: f(in, index, key, digit, lanes with the same digit). Lanes beyond the end are a group of their own.
  const auto steps = [&](auto f) {
    for (int from = lane; from < part; from += 32 * kAhead) {
      uint32_t ahead[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; j++) ahead[j] = begin + from + 32 * j < k.n ? key_of(keys[begin + from + 32 * j], k.limit) : 0;
#pragma unroll
      for (int j = 0; j < kAhead; j++) {
        const int64_t i = begin + from + 32 * j;
        const uint32_t digit = i < k.n ? k.digit(ahead[j]) : kMaxBins;
        f(i < k.n, i, ahead[j], digit, __match_any_sync(0xffffffffu, digit));
        __syncwarp();
      }
    }
  };
  steps([&](bool in, int64_t, uint32_t, uint32_t digit, uint32_t same) {
    if (in && lane == __ffs(same) - 1) place[warp][digit] += __popc(same);
  });
  __syncthreads();
  // Thread i owns digits 2i and 2i + 1: their first place is behind all smaller digits and behind their own in the tiles before.
  const int b = 2 * threadIdx.x;
  uint32_t total[2] = {}, before[2] = {};
  if (b < bins) {
#pragma unroll 8
    for (int t = 0; t < k.tiles; t++) {
      const uint2 c = reinterpret_cast<const uint2*>(counts)[(t * bins + b) / 2];
      total[0] += c.x;
      total[1] += c.y;
      if (t < static_cast<int>(blockIdx.x)) before[0] += c.x, before[1] += c.y;
    }
  }
  const uint32_t first = exclusive_scan(total[0] + total[1], shared);
  for (int e = 0; e < 2; e++) {
    if (b + e >= bins) continue;
    uint32_t next = first + (e == 0 ? 0 : total[0]) + before[e];
    for (int w = 0; w < kWarps; w++) {
      const uint32_t c = place[w][b + e];
      place[w][b + e] = next;
      next += c;
    }
  }
  __syncthreads();
  steps([&](bool in, int64_t i, uint32_t key, uint32_t digit, uint32_t same) {
    const uint32_t to = in ? place[warp][digit] + __popc(same & ((1u << lane) - 1)) : 0;
    __syncwarp();  // all have read before one of them moves the place on
    if (!in) return;
    if (lane == __ffs(same) - 1) place[warp][digit] += __popc(same);
    keys_to[to] = key;
    tokens_to[to] = tokens ? tokens[i] : static_cast<int32_t>(i);
  });
}

// ---- adding ----------------------------------------------------------------------------------------------------------------------

constexpr int kFew = 32;           // rows of an id for the first kernel
constexpr int kAddWarps = 4;       // of a block of the second kernel
constexpr int kBatches = 4;        // of 32 rows, on their way at a time
constexpr int kAddBytes = kAddWarps * kBatches * 32 * 128;  // of shared memory for them
constexpr int kInFlight = 2;       // rows that a thread of the first kernel loads before it adds them

template <class A, class B>
struct Add {
  const uint32_t* keys;   // sorted
  const int32_t* tokens;  // in the order of the keys
  int n;
  uint32_t limit;
  const A* dy;
  B* dweight;
  int64_t cols;
  int* many;  // how many ids come more than kFew times, then where each of them begins, in any order

  __device__ uint32_t key(int at) const { return at >= 0 && at < n ? keys[at] : UINT32_MAX; }  // no token's key
};

// w += d, element by element, rounding each sum.
template <class A, class B, int V>
__device__ inline void add_span(Span<B, V>& w, const Span<A, V>& d) {
  float sum[V];
#pragma unroll
  for (int e = 0; e < V; e++) sum[e] = to_float(w.v[e]) + to_float(d.v[e]);
  round_to(w.v, sum);
}

// Adds `count` rows of dy from `column` on, loading kInFlight at a time. Lane j of the warp knows the token of row j.
template <class A, class B, int V>
__device__ inline void add_rows(const Add<A, B>& k, Span<B, V>& w, int count, int token, int64_t column) {
  const bool in = column < k.cols;
  for (int j = 0; j < count; j += kInFlight) {
    Span<A, V> d[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t t = __shfl_sync(0xffffffffu, token, (j + u) & 31);
      if (in && j + u < count) d[u] = Span<A, V>::load(k.dy + t * k.cols + column);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; u++)
      if (j + u < count) add_span(w, d[u]);
  }
}

// blockIdx.x = a place among the sorted keys; the block works when it is the first of its id and at most kFew have that id.
template <class A, class B, int V>
__global__ void __launch_bounds__(256) add_few(const Add<A, B> k) {
  const int at = blockIdx.x, lane = threadIdx.x & 31;
  // All at once: the time of this kernel is a chain of loads.
  const uint32_t id = k.keys[at], before = k.key(at - 1), behind = k.key(at + kFew), key = k.key(at + lane);
  const int token = at + lane < k.n ? k.tokens[at + lane] : 0;
  if (id >= k.limit || before == id) return;
  if (behind == id) {  // left to the second kernel
    if (threadIdx.x == 0 && blockIdx.y == 0) k.many[1 + atomicAdd(k.many, 1)] = at;
    return;
  }
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  B* row = k.dweight + id * k.cols + column;
  Span<B, V> w{};
  if (column < k.cols) w = Span<B, V>::load(row);
  add_rows(k, w, __popc(__ballot_sync(0xffffffffu, key == id)), token, column);
  if (column < k.cols) w.store(row);
}

// Adds the rows of the id that begins at place `at` to V columns a thread. A warp's part of a row is 128 bytes (or what is left of the row);
// these pieces are on their way to shared memory long before their turn, and one instruction of the warp asks for four of them.
template <class A, class B, int V>
__device__ void add_all(const Add<A, B>& k, int at, int64_t column, char* ring) {
  constexpr int kPiece = 128, kBatch = 32 * kPiece;  // ring: [kBatches][32 rows] of pieces
  static_assert(sizeof(A) * V * 32 == kPiece);
  const int lane = threadIdx.x & 31;
  const uint32_t id = k.keys[at];
  const bool in = column < k.cols;
  B* row = k.dweight + id * k.cols + column;
  Span<B, V> w{};
  if (in) w = Span<B, V>::load(row);
  // Lane l asks for the 16 bytes l % 8 of the rows l / 8, l / 8 + 4 …
  const int64_t asked_column = column - lane * V + lane % 8 * Pack<A>::n;
  const A* from = k.dy + asked_column;
  char* const to = ring + lane / 8 * kPiece + lane % 8 * 16;
  const bool asks = asked_column < k.cols;
  uint32_t key;
  int token;
  const auto next = [&] {
    key = k.key(at + lane);
    token = at + lane < k.n ? k.tokens[at + lane] : 0;
  };
  int asked = 0, added = 0, in_batch = 0, out_batch = 0;
  const auto ask = [&] {  // for a batch; the keys and tokens of the one behind it are loaded for the next time
    const int count = __popc(__ballot_sync(0xffffffffu, key == id));
    const int64_t offset = token * k.cols;
    at += 32;
    next();
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
      const int64_t row_offset = __shfl_sync(0xffffffffu, offset, j + lane / 8);
      if (asks && j + lane / 8 < count) copy_async(to + in_batch * kBatch + j * kPiece, from + row_offset);
    }
    commit_copies();
    asked += count;
    in_batch = (in_batch + 1) % kBatches;
  };
  next();
  for (int b = 1; b < kBatches; b++) ask();
  while (added < asked) {
    ask();
    wait_copies<kBatches - 1>();
    __syncwarp();
    const int count = min(32, asked - added);  // all batches but the last are full
    const char* mine = ring + out_batch * kBatch + lane * static_cast<int>(sizeof(A)) * V;
    const auto add = [&](int j) { add_span(w, Span<A, V>::load(reinterpret_cast<const A*>(mine + j * kPiece))); };
    if (count == 32) {
#pragma unroll
      for (int j = 0; j < 32; j++) add(j);
    } else {
      for (int j = 0; j < count; j++) add(j);
    }
    __syncwarp();  // all have read before anyone asks for new rows in this place
    added += count;
    out_batch = (out_batch + 1) % kBatches;
  }
  if (in) w.store(row);
}

// The same for rows that are not aligned.
template <class A, class B>
__device__ void add_all_plain(const Add<A, B>& k, int at, int64_t column) {
  const int lane = threadIdx.x & 31;
  const uint32_t id = k.keys[at];
  B* row = k.dweight + id * k.cols + column;
  Span<B, 1> w{};
  if (column < k.cols) w = Span<B, 1>::load(row);
  for (int count = 32; count == 32; at += 32) {
    count = __popc(__ballot_sync(0xffffffffu, k.key(at + lane) == id));
    add_rows(k, w, count, lane < count ? k.tokens[at + lane] : 0, column);
  }
  if (column < k.cols) w.store(row);
}

// A piece of work is an id of the list and a chunk of columns.
template <class A, class B, int V, bool Aligned>
__global__ void __launch_bounds__(32 * kAddWarps) add_many(const Add<A, B> k) {
  extern __shared__ uint4 memory[];
  const int64_t width = 32 * kAddWarps * V, chunks = (k.cols + width - 1) / width, pieces = *k.many * chunks;
  for (int64_t i = blockIdx.x; i < pieces; i += gridDim.x) {
    const int at = k.many[1 + i / chunks];
    const int64_t column = (i % chunks) * width + threadIdx.x * V;
    if constexpr (Aligned) add_all<A, B, V>(k, at, column, reinterpret_cast<char*>(memory) + (threadIdx.x >> 5) * (kAddBytes / kAddWarps));
    else add_all_plain(k, at, column);
  }
}

template <class A, class B, bool Aligned>
const char* launch_adds(Context& ctx, const Add<A, B>& k) {
  constexpr int few = Aligned ? 8 : 1, many = Aligned && sizeof(A) == 2 ? 2 : 1;  // elements of a thread
  const int64_t spans = ceil_div(k.cols, few), chunks = ceil_div(spans, 256);
  const int threads = static_cast<int>(ceil_div(ceil_div(spans, chunks), 32) * 32);
  add_few<A, B, few><<<dim3(static_cast<unsigned>(k.n), static_cast<unsigned>(chunks)), threads, 0, ctx.stream>>>(k);
  if (k.n <= kFew) return launched();
  constexpr int bytes = Aligned ? kAddBytes : 0;
  const auto kernel = add_many<A, B, many, Aligned>;
  static const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  const int64_t most = k.n / (kFew + 1) * ceil_div(k.cols, 32 * kAddWarps * many);
  kernel<<<grid_for(ctx, most, 1, 3), 32 * kAddWarps, bytes, ctx.stream>>>(k);
  return launched();
}

}  // namespace

const char* embedding_bwd(Context& ctx, const KernelArgs& k) {
  const View &dy = k.in[0], &ids = k.in[1], &dweight = k.in[2];
  const int64_t tokens = view_numel(ids), cols = dweight.shape[1];
  if (tokens == 0) return nullptr;
  if (tokens > INT32_MAX / 2) return "at most 2^30 tokens expected";
  if (cols > 65535 * 256) return "rows of at most 16776960 elements expected";
  Sort s;
  s.n = static_cast<int>(tokens);
  s.limit = static_cast<uint32_t>(dweight.shape[0] <= INT32_MAX ? dweight.shape[0] : int64_t{INT32_MAX} + 1);
  s.tile = static_cast<int>(ceil_div(tokens, int64_t{kMaxTiles} * kAhead * kSortThreads)) * kAhead * kSortThreads;
  s.tiles = static_cast<int>(ceil_div(tokens, s.tile));
  int key_bits = 1;
  while (key_bits < 32 && s.limit >> key_bits != 0) key_bits++;
  const int passes = (key_bits + kMaxDigitBits - 1) / kMaxDigitBits;
  s.bits = (key_bits + passes - 1) / passes;

  uint32_t* counts = ctx.scratch_of<uint32_t>(static_cast<size_t>(s.tiles) << s.bits);
  uint32_t* keys[2] = {ctx.scratch_of<uint32_t>(static_cast<size_t>(tokens)), ctx.scratch_of<uint32_t>(static_cast<size_t>(tokens))};
  int32_t* order[2] = {ctx.scratch_of<int32_t>(static_cast<size_t>(tokens)), ctx.scratch_of<int32_t>(static_cast<size_t>(tokens))};
  int* many = ctx.scratch_of<int>(static_cast<size_t>(1 + tokens / (kFew + 1)));
  const uint32_t* from = data_of<uint32_t>(ids);
  const int32_t* moved = nullptr;
  for (int pass = 0; pass < passes; pass++) {
    s.shift = pass * s.bits;
    count_digits<<<s.tiles, kSortThreads, 0, ctx.stream>>>(from, counts, s, many, ctx.fault_word, ctx.code(Fault::token_id));
    move_by_digit<<<s.tiles, kSortThreads, 0, ctx.stream>>>(from, moved, counts, keys[pass & 1], order[pass & 1], s);
    from = keys[pass & 1];
    moved = order[pass & 1];
  }
  if (cols == 0) return launched();
  return dispatch(dy.dtype, [&](auto a) {
    return dispatch(dweight.dtype, [&](auto b) {
      using A = decltype(a);
      using B = decltype(b);
      const Add<A, B> add{from, moved, s.n, s.limit, data_of<A>(dy), data_of<B>(dweight), cols, many};
      const bool aligned = cols % 8 == 0 && aligned16(add.dy) && aligned16(add.dweight);
      return aligned ? launch_adds<A, B, true>(ctx, add) : launch_adds<A, B, false>(ctx, add);
    });
  });
}

}  // namespace llm::cuda
