// What the kernels of the paged cache share: the arguments as plain data, where a token of a sequence lies, which keys a query sees, and
// the plan that spreads a decode step's work evenly over the card.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

// V neighbouring elements, loaded and stored as one where V elements of the address are aligned (to 16 bytes if they are more).
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Neighbours {
  T v[V];
};

struct PagedArgs {
  const char* q;
  const char *k, *v;              // [blocks, block, key_heads, width]
  const float2 *k_scales, *v_scales;  // (scale, minimum) of each vector of an i8 cache, else null
  const int *table, *cu, *lengths;    // [sequences, columns], [sequences + 1], [sequences]
  char* o;                        // [tokens, heads, width]
  DType type, cache_type;
  int64_t q_stride;
  int tokens, heads, width, key_heads, group;  // group = heads / key_heads
  int sequences, columns, block, blocks;
  int window;
  float scale;
  bool by_token;  // the units of a decode plan, see unit_of()
  bool tensor_cores;  // whether their kernels take it
  bool settled;   // no earlier command that may still run writes boundaries, lengths or table
  int* fault;
  int bad_length, bad_entry, bad_boundaries;
};

// The arguments of the op; nullptr or why not.
const char* paged_args(const Context& ctx, const KernelArgs& k, PagedArgs& a);

// What a decoder does with q, k and v right before: rope of q and k over the whole width, and kv_append of k and v. All of a's type.
struct PagedFresh {
  struct Rope {
    const char* x;
    char* out;
    int64_t stride, limit;  // elements from token to token of x; positions in the tables
    const float *cosines, *sines;
    const int* positions;
  } q, k;
  const char* v;
  int64_t v_stride;
  const int *k_slots, *v_slots;
  int64_t slots;  // of the cache
  int bad_position, bad_slot;
};

// Attention of a few single queries over caches of moderate length. `fresh`: null, or what comes before; the cache is of a's type then, and
// a.settled speaks of tables, positions and slots too.
bool can_paged_step(const Context& ctx, const PagedArgs& a);
const char* paged_step(Context& ctx, const PagedArgs& a, const PagedFresh* fresh);
// Attention of single queries over any number of keys. Tensor cores: 16-bit queries, a cache of the same type or i8, width 64 or 128.
const char* paged_decode(Context& ctx, const PagedArgs& a);
// The same with plain f32 arithmetic, for everything else.
const char* paged_generic(Context& ctx, const PagedArgs& a);
// Attention of sequences with several queries in this step; zeros for tokens outside all sequences. Types and widths as paged_decode.
const char* paged_prefill(Context& ctx, const PagedArgs& a);

// Slot (block * block size + offset) of token `key` of a sequence whose row of the block table is `entries`; -1 (and a fault) when the
// table is wrong.
__device__ __forceinline__ int slot_of(const PagedArgs& a, const int* entries, int key) {
  const unsigned block = a.block, column = static_cast<unsigned>(key) / block;
  const int entry = entries[column];
  if (static_cast<unsigned>(entry) >= static_cast<unsigned>(a.blocks)) {
    raise(a.fault, a.bad_entry);
    return -1;
  }
  return entry * a.block + static_cast<int>(static_cast<unsigned>(key) - column * block);
}

// A sequence's length; 0 when there are no keys to look at.
__device__ inline int keys_of(const PagedArgs& a, int length) {
  if (length > static_cast<int64_t>(a.columns) * a.block) {
    raise(a.fault, a.bad_length);
    return 0;
  }
  if (length > 0 && a.blocks == 0) {
    raise(a.fault, a.bad_entry);
    return 0;
  }
  return length > 0 ? length : 0;
}

// Keys [first, last) that the query at `position` of a sequence with `keys` keys sees.
struct KeyRange {
  int first, last;
};
__device__ inline KeyRange visible_keys(int position, int keys, int window) {
  const int last = min(keys, position + 1), first = window > 0 && position >= window ? position - window + 1 : 0;
  return last > first ? KeyRange{first, last} : KeyRange{0, 0};
}

// Whether this thread's share of the sequences' boundaries is wrong.
__device__ inline bool boundaries_wrong(const PagedArgs& a) {
  bool wrong = false;
  if (threadIdx.x == 0) wrong = a.cu[0] < 0 || a.cu[a.sequences] > a.tokens;
  for (int b = threadIdx.x; b < a.sequences; b += blockDim.x) wrong |= a.cu[b] > a.cu[b + 1];
  if (wrong) raise(a.fault, a.bad_boundaries);
  return wrong;
}

// prefix[i] = count(0) + … + count(i - 1), i <= n, in shared memory. Each thread counts a run of neighbours. `shared` holds 32 ints.
template <class Count>
__device__ inline void block_prefix(int n, Count count, int* prefix, int* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int run = (n + blockDim.x - 1) / blockDim.x, begin = min(n, static_cast<int>(threadIdx.x) * run), end = min(n, begin + run);
  int own = 0;
  for (int i = begin; i < end; i++) {
    const int c = count(i);
    prefix[i + 1] = c;
    own += c;
  }
  int sum = own;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const int left = __shfl_up_sync(0xffffffffu, sum, o);
    if (lane >= o) sum += left;
  }
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  int before = sum - own;
  for (int w = 0; w < warp; w++) before += shared[w];
  for (int i = begin; i < end; i++) {
    before += prefix[i + 1];
    prefix[i + 1] = before;
  }
  if (threadIdx.x == 0) prefix[0] = 0;
  __syncthreads();
}

// The i with prefix[i] <= x < prefix[i + 1], for 0 <= x < prefix[n].
__device__ inline int find_in_prefix(const int* prefix, int n, int x) {
  int low = 0, high = n;  // prefix[low] <= x < prefix[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (prefix[middle] <= x) low = middle;
    else high = middle;
  }
  return low;
}

}  // namespace llm::cuda
