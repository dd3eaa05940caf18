// Paged attention of sequences with several queries (a prompt, a chunk of one, drafted tokens) on the tensor cores: tiles of 64 rows, where
// the rows of a sequence and key/value head are its (query, head of the group) pairs, query by query. So the heads that share keys share
// their loads, and a few queries fill a tile. Keys come in tiles of 64 through shared memory, gathered by the block table: 16-bit caches
// two tiles deep by asynchronous copies; i8 codes land in a staging buffer and are widened to f16 when their turn comes, their scales
// applied to the products as in paged_decode. The running softmax is FlashAttention's (Dao 2023). Four warps, 16 rows each.
//
// The host knows only how many tokens and sequences there are: the grid holds the most tiles that these can make, the rest returns.
#include "cuda/attention/softmax.cuh"
#include "cuda/paged.cuh"
#include "cuda/paged_codes.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128, kRows = 64, kKeys = 64;

template <class T, class C, int D>
struct Shared {
  static constexpr bool kCodes = std::is_same_v<C, int8_t>;
  using M = std::conditional_t<kCodes, f16, T>;  // what the tensor cores multiply
  static constexpr int kStages = kCodes ? 1 : 2, kScales = kCodes ? kKeys : 1;
  M k[kStages][kKeys][D], v[kStages][kKeys][D];  // 16-byte chunk c of row r lies at c ^ (r % 8)
  C codes[kCodes ? 2 : 1][kCodes ? kKeys : 1][kCodes ? D : 16];  // k, v
  // Of the tile under way: keys' (scale, value of code 0) times the softmax scale, in log2 units; values' the same as they are; log2 of the
  // latters' scale.
  float2 k_scale[kScales], v_scale[kScales];
  float lift[kScales];
  int slots[2][kKeys];  // of even and odd tiles; -1: no key
  KeyRange sees[kRows];
};

// The tile's sequence. Index 0 and sequences + 1 stand for tokens before the first and after the last sequence.
struct Tile {
  int first_token, queries, sequence, keys, first_row;  // sequence -1: no keys
};

__device__ inline int queries_at(const PagedArgs& a, bool wrong, int i) {
  if (wrong) return i == 0 ? a.tokens : 0;
  if (i == 0) return a.cu[0];
  if (i == a.sequences + 1) return a.tokens - a.cu[a.sequences];
  const int n = a.cu[i] - a.cu[i - 1];
  return n == 1 ? 0 : n;  // single queries are paged_decode's
}

__device__ inline bool find_tile(const PagedArgs& a, int* prefix, int* shared, Tile& tile) {
  const bool wrong = __syncthreads_or(boundaries_wrong(a));
  const int n = a.sequences + 2;
  block_prefix(
      n, [&](int i) { return static_cast<int>((static_cast<int64_t>(queries_at(a, wrong, i)) * a.group + kRows - 1) / kRows); }, prefix, shared);
  if (static_cast<int>(blockIdx.x) >= prefix[n]) return false;
  const int at = prefix[n] - 1 - static_cast<int>(blockIdx.x);  // late tiles see most keys: they go first
  const int i = find_in_prefix(prefix, n, at);
  tile.queries = queries_at(a, wrong, i);
  tile.first_token = i == 0 ? 0 : a.cu[i - 1];
  tile.first_row = (at - prefix[i]) * kRows;
  tile.sequence = i == 0 || i == a.sequences + 1 ? -1 : i - 1;
  tile.keys = tile.sequence < 0 ? 0 : keys_of(a, a.lengths[tile.sequence]);
  return true;
}

template <class T>
__device__ __forceinline__ T* chunk_of(T* rows, int width, int row, int chunk) {
  return rows + row * width + ((chunk ^ (row & 7)) * 8);
}

// Divides a thread's two rows of queries by powers of two and rounds them to f16; the rows' factors and sums.
template <class T, int N>
__device__ inline void scale_queries(uint32_t (&q)[N][4], float (&factor)[2], float (&sum)[2]) {
  const auto over_quad = [](float x, auto f) {
    x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
  };
#pragma unroll
  for (int r = 0; r < 2; r++) {
    QueryScale scale{1.f, 1.f};
    if constexpr (std::is_same_v<T, bf16>) {
      float largest = 0.f;
#pragma unroll
      for (int i = 0; i < 2 * N; i++) {
        const float2 x = unpack2<T>(q[i / 2][r + 2 * (i % 2)]);
        largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
      }
      scale = query_scale(over_quad(largest, [](float x, float y) { return fmaxf(x, y); }));
    }
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
      uint32_t& w = q[i / 2][r + 2 * (i % 2)];
      float2 x = unpack2<T>(w);
      if constexpr (std::is_same_v<T, bf16>) {
        w = ptx::pack2<f16>(x.x * scale.inverse, x.y * scale.inverse);
        x = unpack2<f16>(w);
      }
      total += x.x + x.y;
    }
    factor[r] = scale.factor;
    sum[r] = over_quad(total, [](float x, float y) { return x + y; });
  }
}

// Scores from products with codes, in log2 units: column 8 j + 2 (lane % 4) + {0, 1} of row r is s[4 j + 2 r + {0, 1}].
template <int N>
__device__ __forceinline__ void scale_scores(float (&s)[N], const float2* scales, const float (&factor)[2], const float (&sum)[2]) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    const float4 two = *reinterpret_cast<const float4*>(scales + 2 * j + 2 * (threadIdx.x & 3));
#pragma unroll
    for (int r = 0; r < 2; r++) {
      s[j + 2 * r] = fmaf(two.x, s[j + 2 * r], two.y * sum[r]) * factor[r];
      s[j + 2 * r + 1] = fmaf(two.z, s[j + 2 * r + 1], two.w * sum[r]) * factor[r];
    }
  }
}

// As advance_softmax, for values that are codes: the top includes the log2 of a value's scale, so that p times the scale, which multiplies
// the code, is at most 1. `middle`: this thread's share of sum p (value of code 0).
template <int N>
__device__ __forceinline__ void advance_codes(float (&s)[N], RunningSoftmax& x, float (&middle)[2], float (&factor)[2], const float2* scales,
                                              const float* lifts) {
  const int column = 2 * (threadIdx.x & 3);
  float base[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float top = x.top[r];
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      const float2 lift = *reinterpret_cast<const float2*>(lifts + 2 * j + column);
      top = fmaxf(top, fmaxf(s[j + 2 * r] + lift.x, s[j + 2 * r + 1] + lift.y));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    base[r] = top == -INFINITY ? 0.f : top;
    factor[r] = ptx::exp2_fast(x.top[r] - base[r]);
    x.top[r] = top;
    x.sum[r] *= factor[r];
    middle[r] *= factor[r];
  }
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    const float4 two = *reinterpret_cast<const float4*>(scales + 2 * j + column);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float p = ptx::exp2_fast(s[j + 2 * r] - base[r]), q = ptx::exp2_fast(s[j + 2 * r + 1] - base[r]);
      x.sum[r] += p + q;
      middle[r] = fmaf(p, two.y, fmaf(q, two.w, middle[r]));
      s[j + 2 * r] = p * two.x;
      s[j + 2 * r + 1] = q * two.z;
    }
  }
}

template <class T, class C, int D>
__global__ void __launch_bounds__(kThreads, D == 64 && sizeof(C) == 2 ? 3 : 2) prefill(const PagedArgs a) {
  using S = Shared<T, C, D>;
  using M = typename S::M;
  extern __shared__ __align__(128) char memory[];
  S& x = *reinterpret_cast<S*>(memory);
  __shared__ int totals[32];
  Tile tile;
  if (!find_tile(a, reinterpret_cast<int*>(memory), totals, tile)) return;
  __syncthreads();  // the prefix sums are in the way of the tiles

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y;
  const int64_t rows = static_cast<int64_t>(tile.queries) * a.group;
  const int before = tile.keys - tile.queries;  // position of query 0
  const int last_query = static_cast<int>(min(rows, static_cast<int64_t>(tile.first_row) + kRows) - 1) / a.group;
  const KeyRange least = visible_keys(before + tile.first_row / a.group, tile.keys, a.window);
  const KeyRange most = visible_keys(before + last_query, tile.keys, a.window);
  // A first query without keys has position < 0: no window has begun by then.
  const int begin = least.first, end = most.last, tiles = (end - begin + kKeys - 1) / kKeys;

  // Row r of the tile: its query and head, if it exists.
  const auto place = [&](int r, int64_t& token, int& head) {
    const int row = tile.first_row + r;
    token = tile.first_token + row / a.group;
    head = key_head * a.group + row % a.group;
    return row < rows;
  };
  if (threadIdx.x < kRows) {
    const int row = tile.first_row + static_cast<int>(threadIdx.x);
    x.sees[threadIdx.x] = row < rows ? visible_keys(before + row / a.group, tile.keys, a.window) : KeyRange{0, 0};
  }
  // This thread's two rows: own_row and that + 8.
  const int own_row = warp * 16 + lane / 4;
  uint32_t q[D / 16][4];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int64_t token;
    int head;
    const bool inside = place(own_row + 8 * r, token, head);
    const uint16_t* from = reinterpret_cast<const uint16_t*>(a.q) + token * a.q_stride + head * D + 2 * (lane & 3);
#pragma unroll
    for (int s = 0; s < D / 8; s++) q[s / 2][r + 2 * (s % 2)] = inside ? from[8 * s] | static_cast<uint32_t>(from[8 * s + 1]) << 16 : 0;
  }

  float q_factor[2], q_sum[2], middle[2] = {};
  if constexpr (S::kCodes) scale_queries<T>(q, q_factor, q_sum);
  const float c = a.scale * 1.4426950408889634f;

  const int* entries = a.table + static_cast<int64_t>(tile.sequence < 0 ? 0 : tile.sequence) * a.columns;
  const auto find_slots = [&](int j) {
    if (threadIdx.x < kKeys && j < tiles) {
      const int key = begin + j * kKeys + static_cast<int>(threadIdx.x);
      x.slots[j & 1][threadIdx.x] = key < end ? slot_of(a, entries, key) : -1;
    }
  };
  float2 next_scale{};
  // Keys without a slot read as zeros.
  const auto load = [&](int j) {
    if (j >= tiles) return;
    constexpr int chunks = D * sizeof(C) / 16;
#pragma unroll
    for (int i = 0; i < kKeys * chunks / kThreads; i++) {
      const int at = i * kThreads + threadIdx.x, row = at / chunks, chunk = at % chunks, slot = x.slots[j & 1][row];
      const int64_t from = ((static_cast<int64_t>(max(slot, 0)) * a.key_heads + key_head) * D) * static_cast<int>(sizeof(C)) + chunk * 16;
      const int bytes = slot >= 0 ? 16 : 0;
      if constexpr (S::kCodes) {
        ptx::cp_async16(ptx::shared_address(&x.codes[0][row][chunk * 16]), a.k + from, bytes);
        ptx::cp_async16(ptx::shared_address(&x.codes[1][row][chunk * 16]), a.v + from, bytes);
      } else {
        ptx::cp_async16(ptx::shared_address(chunk_of(&x.k[j & 1][0][0], D, row, chunk)), a.k + from, bytes);
        ptx::cp_async16(ptx::shared_address(chunk_of(&x.v[j & 1][0][0], D, row, chunk)), a.v + from, bytes);
      }
    }
    if constexpr (S::kCodes) {
      const int row = threadIdx.x % kKeys, slot = x.slots[j & 1][row];
      const bool keys = threadIdx.x < kKeys;
      const float2* scales = (keys ? a.k_scales : a.v_scales) + static_cast<int64_t>(max(slot, 0)) * a.key_heads + key_head;
      const float2 scale = slot >= 0 ? *scales : make_float2(0.f, 0.f);
      next_scale = make_float2(scale.x, fmaf(128.f, scale.x, scale.y));
    }
  };
  // Codes to f16; their scales have waited in registers since the codes were sent for.
  const auto widen = [&] {
    constexpr int chunks = D / 16;
#pragma unroll 2
    for (int i = threadIdx.x; i < 2 * kKeys * chunks; i += kThreads) {
      const int which = i / (kKeys * chunks), row = i / chunks % kKeys, chunk = i % chunks;
      const uint4 codes = *reinterpret_cast<const uint4*>(&x.codes[which][row][chunk * 16]);
      uint4 low, high;
      widen_codes(codes.x, low.x, low.y);
      widen_codes(codes.y, low.z, low.w);
      widen_codes(codes.z, high.x, high.y);
      widen_codes(codes.w, high.z, high.w);
      M* to = which ? &x.v[0][0][0] : &x.k[0][0][0];
      *reinterpret_cast<uint4*>(chunk_of(to, D, row, 2 * chunk)) = low;
      *reinterpret_cast<uint4*>(chunk_of(to, D, row, 2 * chunk + 1)) = high;
    }
    const int row = threadIdx.x % kKeys;
    if (threadIdx.x < kKeys) {
      x.k_scale[row] = make_float2(next_scale.x * c, next_scale.y * c);
    } else {
      x.v_scale[row] = next_scale;
      x.lift[row] = __log2f(fmaxf(next_scale.x, 0x1p-60f));
    }
  };

  float o[D / 2] = {};
  RunningSoftmax running;
  find_slots(0);
  __syncthreads();
  load(0);
  ptx::cp_async_commit();
  find_slots(1);
  __syncthreads();
  for (int j = 0; j < tiles; j++) {
    if constexpr (!S::kCodes) {
      load(j + 1);
      ptx::cp_async_commit();
      ptx::cp_async_wait<1>();
      __syncthreads();
    } else {
      ptx::cp_async_wait<0>();
      __syncthreads();
      widen();
      __syncthreads();
      load(j + 1);
      ptx::cp_async_commit();
    }
    find_slots(j + 2);  // in place of tile j's, which were used up one round ago
    const M *k = &x.k[S::kCodes ? 0 : j & 1][0][0], *v = &x.v[S::kCodes ? 0 : j & 1][0][0];

    float s[kKeys / 2] = {};
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
      for (int n = 0; n < kKeys / 16; n++) {
        uint32_t b[4];
        ptx::ldmatrix4(b, ptx::shared_address(chunk_of(k, D, 16 * n + (lane & 7) + (lane >> 4) * 8, 2 * d + (lane >> 3 & 1))));
        ptx::mma16816<M>(s + 8 * n, q[d], b[0], b[1]);
        ptx::mma16816<M>(s + 8 * n + 4, q[d], b[2], b[3]);
      }
    if constexpr (S::kCodes) scale_scores(s, x.k_scale, q_factor, q_sum);
    const int base = begin + j * kKeys, shift = base + 2 * (lane & 3);
    // Every row sees every key of the tile? Rows are in the order of their queries.
    if (base < most.first || base + kKeys > least.last || tile.first_row + kRows > rows) {
      const KeyRange upper = x.sees[own_row], lower = x.sees[own_row + 8];
      const int first[2] = {upper.first - shift, lower.first - shift}, last[2] = {upper.last - shift, lower.last - shift};
      mask_scores(s, first, last);
    }
    float factor[2];
    if constexpr (S::kCodes) advance_codes(s, running, middle, factor, x.v_scale, x.lift);
    else advance_softmax<true>(s, running, factor, c);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= factor[i >> 1 & 1];
    uint32_t p[kKeys / 16][4];
    pack_scores<M>(s, p);
#pragma unroll
    for (int n = 0; n < kKeys / 16; n++)
#pragma unroll
      for (int d = 0; d < D / 16; d++) {
        uint32_t b[4];
        ptx::ldmatrix4_trans(b, ptx::shared_address(chunk_of(v, D, 16 * n + (lane & 15), 2 * d + (lane >> 4))));
        ptx::mma16816<M>(o + 8 * d, p[n], b[0], b[1]);
        ptx::mma16816<M>(o + 8 * d + 4, p[n], b[2], b[3]);
      }
    __syncthreads();
  }
  ptx::cp_async_wait<0>();
  float inverse[2], lse[2];
  finish_softmax(running, a.scale, inverse, lse);
  if constexpr (S::kCodes) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      middle[r] += __shfl_xor_sync(0xffffffffu, middle[r], 1);
      middle[r] += __shfl_xor_sync(0xffffffffu, middle[r], 2);
#pragma unroll
      for (int i = 0; i < D / 2; i += 4) {
        o[i + 2 * r] += middle[r];
        o[i + 2 * r + 1] += middle[r];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int64_t token;
    int head;
    const bool inside = place(own_row + 8 * r, token, head);
    store_row(reinterpret_cast<T*>(a.o) + (token * a.heads + head) * D, o, r, inverse[r], D, inside);
  }
}

template <class T, class C, int D>
const char* run(Context& ctx, const PagedArgs& a) {
  const int64_t tiles = static_cast<int64_t>(a.tokens) * a.group / kRows + a.sequences + 2;
  size_t bytes = sizeof(Shared<T, C, D>);
  const size_t prefix = (static_cast<size_t>(a.sequences) + 3) * sizeof(int);
  if (prefix > bytes) bytes = prefix;
  if (bytes > static_cast<size_t>(ctx.shared_bytes)) return "fewer sequences in a step expected";
  if (bytes > 48 << 10) {
    const cudaError_t e = cudaFuncSetAttribute(prefill<T, C, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (e != cudaSuccess) return cudaGetErrorString(e);
  }
  prefill<T, C, D><<<dim3(static_cast<unsigned>(tiles), a.key_heads), kThreads, bytes, ctx.stream>>>(a);
  return launched();
}

template <class T>
const char* run_width(Context& ctx, const PagedArgs& a) {
  if (a.cache_type == DType::i8) return a.width == 64 ? run<T, int8_t, 64>(ctx, a) : run<T, int8_t, 128>(ctx, a);
  return a.width == 64 ? run<T, T, 64>(ctx, a) : run<T, T, 128>(ctx, a);
}

}  // namespace

const char* paged_prefill(Context& ctx, const PagedArgs& a) { return a.type == DType::bf16 ? run_width<bf16>(ctx, a) : run_width<f16>(ctx, a); }

}  // namespace llm::cuda
