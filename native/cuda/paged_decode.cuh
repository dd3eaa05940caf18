// Paged attention of single queries on the tensor cores, for 16-bit queries and a cache of the same type or of i8 codes: what one warp does,
// and how the warps of a block meet. Used by paged_decode.cu and paged_step.cu.
//
// A block (four warps) computes up to 8 heads that share a key/value head, over a range of keys (paged_work.cuh). What counts is that the
// cache streams at memory speed, so each warp loads its 16 or 32 keys straight from global memory into the registers that the products
// want, one tile ahead, without shared memory or barriers. With heads as the narrow side of m16n8k16,
//     scores^T[keys, heads] = k[keys, d] q^T[d, heads],      o^T[d, heads] += v^T[d, keys] p^T[keys, heads],
// a product's 8 columns are the heads and no row is wasted. A product may take its inner index in any order if both operands do, and rows
// of o^T may come in any order if they are stored so: each lane reads 16 contiguous bytes and calls them what the layout wants.
// Of lane l: group g = l / 4, t = l % 4. It holds rows g and g + 8 of the left operand, columns 2t, 2t + 1, 2t + 8, 2t + 9.
//
// i8: k = code s + m (code as signed, m = minimum + 128 s), so q k = s (q code) + m sum(q), and sum p v = sum (p s) code + sum p m. Codes
// are exact in f16; queries are scaled to f16's range by a power of two; the running maximum includes log2 s, so that p s is at most 1.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/paged_codes.cuh"
#include "cuda/paged_work.cuh"

namespace llm::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kHeads = 8;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ void load_once(uint32_t* to, const char* from, int words) {  // 4 or 2 words, read once: not kept in L1
  if (words == 4)
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from));
  else
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
}

// An 8x8 matrix of 16-bit elements transposed among the lanes.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Where the warps of a block meet.
template <int D>
struct Merge {
  static constexpr int kPitch = 8 * kHeads + 2;  // of one element index e: [group][head], and two against bank conflicts
  float2 ml[kWarps][kHeads];
  float o[kWarps][D / 8 * kPitch];
};

// One warp's state. T: queries; C: cache elements; D: width.
template <class T, class C, int D>
struct Decoder {
  static constexpr bool kCodes = std::is_same_v<C, int8_t>;
  using M = std::conditional_t<kCodes, f16, T>;  // what the tensor cores multiply
  static constexpr int kSub = kCodes ? 2 : 1, kKeys = 16 * kSub, kTiles = D / 16;
  static constexpr int kKeyWords = D * sizeof(C) / 16, kValueWords = D * sizeof(C) / 32;  // of a lane and key
  static constexpr int kValueChunk = kValueWords < 4 ? kValueWords : 4;                   // words of one load
  static constexpr int kChunk = 16 / sizeof(C), kValueRun = kValueChunk * 4 / sizeof(C);  // elements of one load

  uint32_t q[kTiles][2], k[kSub][2][kKeyWords], v[kSub][4][kValueWords];
  float2 k_scale[kSub][2], v_scale[kSub][2];  // of keys g and g + 8
  float o[kTiles][4];
  float top[2], sum[2], middle[2];  // of heads 2t and 2t + 1: maximum (of the warp); sums of p and of p m (of this lane)
  float q_factor, q_sum[2];         // i8: what q was divided by, times the softmax scale in log2 units; its sums

  // The width index of element e of a key that lane t of a group holds. Of a value, group g holds element e / n * 8 n + g n + e % n, where n
  // is kValueRun.
  static __device__ int key_column(int t, int e) { return e / kChunk * (4 * kChunk) + t * kChunk + e % kChunk; }

  // `row`: the query of head g, or null when there is none.
  __device__ void start(const T* row, float c, int lane) {
    const int t = lane & 3;
    const bool wide = (reinterpret_cast<uintptr_t>(row) & 7) == 0;
#pragma unroll
    for (int s = 0; s < kTiles; s++) {
      q[s][0] = q[s][1] = 0;
      if (row == nullptr) continue;
      const T* from = row + key_column(t, 4 * s);
      if (wide) {
        const uint2 x = *reinterpret_cast<const uint2*>(from);
        q[s][0] = x.x;
        q[s][1] = x.y;
      } else {
        const uint16_t* x = reinterpret_cast<const uint16_t*>(from);
        q[s][0] = x[0] | static_cast<uint32_t>(x[1]) << 16;
        q[s][1] = x[2] | static_cast<uint32_t>(x[3]) << 16;
      }
    }
    if constexpr (kCodes) scale_queries(c, lane);
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[j][e] = 0.f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[h] = -INFINITY;
      sum[h] = middle[h] = 0.f;
    }
  }

  __device__ void scale_queries(float c, int lane) {
    float factor = 1.f, total = 0.f;
    if constexpr (std::is_same_v<T, bf16>) {
      float largest = 0.f;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++) {
        const float2 x = unpack2<T>(q[i / 2][i % 2]);
        const float a = fabsf(x.x), b = fabsf(x.y);  // an infinity or NaN spoils its own head alone
        largest = fmaxf(largest, fmaxf(a < INFINITY ? a : 0.f, b < INFINITY ? b : 0.f));
      }
      largest = warp_max(largest);  // of all heads: f16 leaves room for their differences
      const QueryScale scale = query_scale(largest);
      factor = scale.factor;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++) {
        const float2 x = unpack2<T>(q[i / 2][i % 2]);
        q[i / 2][i % 2] = ptx::pack2<f16>(x.x * scale.inverse, x.y * scale.inverse);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; i++) {
      const float2 x = unpack2<f16>(q[i / 2][i % 2]);
      total += x.x + x.y;
    }
    total += __shfl_xor_sync(kAll, total, 1);
    total += __shfl_xor_sync(kAll, total, 2);
    q_factor = factor * c;
#pragma unroll
    for (int h = 0; h < 2; h++) {  // from the lanes of group 2t + h
      const int from = 8 * (lane & 3) + 4 * h;
      q_sum[h] = __shfl_sync(kAll, total, from);
    }
  }

  // Loads of a tile. Lane i knows key i's slot. `head`: bytes from a token's first element to this head's.
  __device__ void load_keys(const PagedArgs& a, int slot, int key_head, int lane) {
    const int64_t pitch = static_cast<int64_t>(a.key_heads) * D * sizeof(C);
    const char* base = a.k + static_cast<int64_t>(key_head) * D * sizeof(C) + (lane & 3) * 16;
#pragma unroll
    for (int i = 0; i < kSub; i++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int at = __shfl_sync(kAll, slot, 16 * i + 8 * r + lane / 4);
        const char* from = base + at * pitch;
#pragma unroll
        for (int c = 0; c < kKeyWords / 4; c++) load_once(&k[i][r][4 * c], from + 64 * c, 4);
        if constexpr (kCodes) k_scale[i][r] = a.k_scales[static_cast<int64_t>(at) * a.key_heads + key_head];
      }
  }
  __device__ void load_values(const PagedArgs& a, int slot, int key_head, int lane) {
    const int64_t pitch = static_cast<int64_t>(a.key_heads) * D * sizeof(C);
    const char* base = a.v + static_cast<int64_t>(key_head) * D * sizeof(C) + (lane / 4) * (4 * kValueChunk);
#pragma unroll
    for (int i = 0; i < kSub; i++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const int at = __shfl_sync(kAll, slot, 16 * i + 2 * (lane & 3) + (r & 1) + 8 * (r >> 1));
        const char* from = base + at * pitch;
#pragma unroll
        for (int c = 0; c < kValueWords / kValueChunk; c++) load_once(&v[i][r][kValueChunk * c], from + 32 * kValueChunk * c, kValueChunk);
      }
      if constexpr (kCodes)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int at = __shfl_sync(kAll, slot, 16 * i + 8 * r + lane / 4);
          v_scale[i][r] = a.v_scales[static_cast<int64_t>(at) * a.key_heads + key_head];
        }
    }
  }

  // Scores of the tile in log2 units; s[i][2 r + h]: key g + 8 r of sub-tile i, head 2t + h. Bit i of `seen`: key i counts.
  __device__ void scores(float (&s)[kSub][4], float c, unsigned seen, int lane) {
#pragma unroll
    for (int i = 0; i < kSub; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][e] = 0.f;
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        uint32_t left[4];
        if constexpr (kCodes) {
          widen_codes(k[i][0][j], left[0], left[2]);
          widen_codes(k[i][1][j], left[1], left[3]);
        } else {
          left[0] = k[i][0][2 * j];
          left[1] = k[i][1][2 * j];
          left[2] = k[i][0][2 * j + 1];
          left[3] = k[i][1][2 * j + 1];
        }
        ptx::mma16816<M>(s[i], left, q[j][0], q[j][1]);
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const bool visible = seen >> (16 * i + 8 * r + lane / 4) & 1;
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float& x = s[i][2 * r + h];
          if constexpr (kCodes) {
            const float2 scale = k_scale[i][r];
            x = fmaf(scale.x, x, fmaf(128.f, scale.x, scale.y) * q_sum[h]) * q_factor;
          } else {
            x *= c;
          }
          if (!visible) x = -INFINITY;
        }
      }
    }
  }

  // Scores become what multiplies the values, p[i] = right operand; the running sums and o follow the new maximum.
  __device__ void soften(float (&s)[kSub][4], uint32_t (&p)[kSub][2]) {
    float lift[kSub][2];  // log2 of the values' scale
#pragma unroll
    for (int i = 0; i < kSub; i++)
#pragma unroll
      for (int r = 0; r < 2; r++) lift[i][r] = kCodes ? __log2f(fmaxf(v_scale[i][r].x, 0x1p-60f)) : 0.f;
    float factor[2], base[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float x = top[h];
#pragma unroll
      for (int i = 0; i < kSub; i++) x = fmaxf(x, fmaxf(s[i][h] + lift[i][0], s[i][2 + h] + lift[i][1]));
#pragma unroll
      for (int d = 4; d < 32; d <<= 1) x = fmaxf(x, __shfl_xor_sync(kAll, x, d));
      base[h] = x == -INFINITY ? 0.f : x;
      factor[h] = ptx::exp2_fast(top[h] - base[h]);
      top[h] = x;
      sum[h] *= factor[h];
      middle[h] *= factor[h];
    }
#pragma unroll
    for (int i = 0; i < kSub; i++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float x[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
          x[h] = ptx::exp2_fast(s[i][2 * r + h] - base[h]);
          sum[h] += x[h];
          if constexpr (kCodes) {
            middle[h] = fmaf(x[h], fmaf(128.f, v_scale[i][r].x, v_scale[i][r].y), middle[h]);
            x[h] *= v_scale[i][r].x;
          }
        }
        p[i][r] = transposed(ptx::pack2<M>(x[0], x[1]));
      }
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[j][e] *= factor[e & 1];
  }

  // Row g of tile j of o^T is this lane's element j of a value, row g + 8 its element j + kTiles.
  __device__ void accumulate(const uint32_t (&p)[kSub][2]) {
#pragma unroll
    for (int i = 0; i < kSub; i++) {
      if constexpr (kCodes) {
#pragma unroll
        for (int w = 0; w < kTiles / 4; w++) {
          uint32_t x[4][4];  // [part of the left operand][element]
          pair_codes(v[i][0][w], v[i][1][w], x[0]);
          pair_codes(v[i][0][w + kTiles / 4], v[i][1][w + kTiles / 4], x[1]);
          pair_codes(v[i][2][w], v[i][3][w], x[2]);
          pair_codes(v[i][2][w + kTiles / 4], v[i][3][w + kTiles / 4], x[3]);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const uint32_t left[4] = {x[0][e], x[1][e], x[2][e], x[3][e]};
            ptx::mma16816<M>(o[4 * w + e], left, p[i][0], p[i][1]);
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
          const int w = j / 2, x = w + kTiles / 2, pick = j % 2 ? 0x7632 : 0x5410;
          const uint32_t left[4] = {__byte_perm(v[i][0][w], v[i][1][w], pick), __byte_perm(v[i][0][x], v[i][1][x], pick),
                                    __byte_perm(v[i][2][w], v[i][3][w], pick), __byte_perm(v[i][2][x], v[i][3][x], pick)};
          ptx::mma16816<M>(o[j], left, p[i][0], p[i][1]);
        }
      }
    }
  }

  // All keys [begin, end) of the warp: every kWarps-th tile.
  __device__ void run(const PagedArgs& a, const Segment& seg, int key_head, float c) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    constexpr int stride = kWarps * kKeys;
    int at = seg.begin + warp * kKeys;
    if (at >= seg.end) return;
    // Keys past the end repeat the last one, so that whatever a masked score multiplies is a visible value.
    const auto slots = [&](int from) {
      const int* entries = a.table + static_cast<int64_t>(seg.unit.sequence) * a.columns;
      return from < seg.end ? slot_of(a, entries, min(from + lane % kKeys, seg.end - 1)) : 0;
    };
    int slot = slots(at), next = slots(at + stride);
    load_keys(a, max(slot, 0), key_head, lane);
    load_values(a, max(slot, 0), key_head, lane);
    for (; at < seg.end; at += stride) {
      const int after = slots(at + 2 * stride);
      const unsigned seen = __ballot_sync(kAll, slot >= 0 && at + lane % kKeys < seg.end);
      float s[kSub][4];
      uint32_t p[kSub][2];
      scores(s, c, seen, lane);
      if (at + stride < seg.end) load_keys(a, max(next, 0), key_head, lane);
      soften(s, p);
      accumulate(p);
      if (at + stride < seg.end) load_values(a, max(next, 0), key_head, lane);
      slot = next;
      next = after;
    }
  }

  // Folds what the warps of the block found: put(head, d, sum of values, maximum, sum) for every head and element, spread over the threads.
  // `heads` is asked late, since the caller has no registers to keep it in.
  template <class Heads, class Put>
  __device__ void meet(Merge<D>& merge, Heads heads, Put put) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane & 3;
#pragma unroll
    for (int d = 4; d < 32; d <<= 1)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(kAll, sum[h], d);
        middle[h] += __shfl_xor_sync(kAll, middle[h], d);
      }
    if (g == 0)
#pragma unroll
      for (int h = 0; h < 2; h++) merge.ml[warp][2 * t + h] = make_float2(top[h], sum[h]);
    __syncthreads();
    const auto top_of = [&](int head) {
      float top = merge.ml[0][head].x;
#pragma unroll
      for (int i = 1; i < kWarps; i++) top = fmaxf(top, merge.ml[i][head].x);
      return top;
    };
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float highest = top_of(2 * t + h);
      factor[h] = exp2f(top[h] - (highest == -INFINITY ? 0.f : highest));
    }
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float2 two = make_float2(o[j][2 * r], o[j][2 * r + 1]);
        if constexpr (kCodes) two = make_float2(two.x + middle[0], two.y + middle[1]);
        two = make_float2(two.x * factor[0], two.y * factor[1]);
        *reinterpret_cast<float2*>(&merge.o[warp][(j + r * kTiles) * Merge<D>::kPitch + g * kHeads + 2 * t]) = two;
      }
    __syncthreads();
    constexpr int n = kValueRun;
    const int count = heads();
    for (int i = threadIdx.x; i < count * D; i += kThreads) {
      const int head = i / D, d = i % D, e = d / (8 * n) * n + d % n, group = d / n % 8;
      const float highest = top_of(head), base = highest == -INFINITY ? 0.f : highest;
      float values = 0.f, total = 0.f;
#pragma unroll
      for (int k = 0; k < kWarps; k++) {
        values += merge.o[k][e * Merge<D>::kPitch + group * kHeads + head];
        total += merge.ml[k][head].y * exp2f(merge.ml[k][head].x - base);
      }
      put(head, d, values, highest, total);
    }
  }
};

}  // namespace
}  // namespace llm::cuda
