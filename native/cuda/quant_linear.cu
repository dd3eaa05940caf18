// y = x w^T + bias with w packed in 4 or 8 bits (quant_packed.cuh).
//
// Up to kFewRows rows of x the codes are widened inside of the product, which then costs little more than reading them once: a block owns 16
// rows of w, its warps share the columns, and each warp feeds units of codes, as exact small integers, to mma.m16n8k16 against 8 or 16 rows
// of x; a group's sum is scaled in f32, the warps' sums are added in a fixed order. x in f32 goes as three bf16 terms that add up to it
// exactly. More rows: w is unpacked to x's dtype in scratch memory, and the dense product does the rest.
//
// Mode 1 rounds x to 8 bits first (blocks of 32 columns inside a group, scale absmax / 127) and then does the same with the rounded values.
#include <type_traits>

#include "cuda/gemm/gemm.h"
#include "cuda/quant.h"
#include "cuda/quant_packed.cuh"

namespace llm::cuda {
namespace {

constexpr int64_t kFewRows = 64, kFewPlainRows = 32, kMostPanels = 65535, kMostColumns = int64_t{1} << 20;
constexpr int64_t kSlabBytes = int64_t{256} << 20;  // of unpacked weights
constexpr int kThreads = 256;
constexpr int kBlockOfX = 32;  // columns of x that share a scale in mode 1

struct Bias {
  const void* data = nullptr;
  DType dtype = DType::f32;
  __device__ float at(int64_t i) const {
    if (data == nullptr) return 0.f;
    if (dtype == DType::f32) return static_cast<const float*>(data)[i];
    return dtype == DType::bf16 ? to_float(static_cast<const bf16*>(data)[i]) : to_float(static_cast<const f16*>(data)[i]);
  }
};

// out [terms][m][k] dense: x, rounded to 8 bits when asked for, as the sum of `terms` values of X. A warp a block of columns.
template <class T, class X, int terms>
__global__ void __launch_bounds__(kThreads) prepare(const T* x, int64_t ldx, int64_t m, int64_t k, int64_t group, bool round, X* out) {
  const int lane = threadIdx.x & 31;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> 5, warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const int64_t groups = (k + group - 1) / group, blocks = ((group < k ? group : k) + kBlockOfX - 1) / kBlockOfX;
  for (int64_t i = warp; i < m * groups * blocks; i += warps) {
    const int64_t row = i / (groups * blocks), g = i / blocks % groups, first = g * group + i % blocks * kBlockOfX, c = first + lane;
    const int64_t end = (g + 1) * group < k ? (g + 1) * group : k;
    float v = c < end ? to_float(x[row * ldx + c]) : 0.f;
    if (round) {
      const float absmax = warp_max(fabsf(v));
      const float inverse = absmax > 0 ? __fdiv_rn(127.f, absmax) : 0.f;
      v = rintf(v * inverse) * __fdiv_rn(absmax, 127.f);
    }
    if (c >= end) continue;
#pragma unroll
    for (int t = 0; t < terms; t++) {
      X part = from_float<X>(v);
      // Cut off, not rounded: the rest stays exact, and the largest numbers finite.
      if (terms > 1) part = from_float<X>(__uint_as_float(__float_as_uint(v) & 0xffff0000u));
      out[(t * m + row) * k + c] = part;
      v = isfinite(v) ? v - to_float(part) : 0.f;
    }
  }
}

template <class X>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Codes become floats through the mantissa: the bits of 128.0 in bf16 (1024.0 in f16) | code are 128 + code (1024 + code).
template <class X>
constexpr uint32_t kOne = 0x43004300u;  // two of the smallest float whose last mantissa bit is 1
template <>
constexpr uint32_t kOne<f16> = 0x64006400u;

template <class X>
__device__ uint32_t minus(uint32_t a, uint32_t b);
template <>
__device__ inline uint32_t minus<bf16>(uint32_t a, uint32_t b) {
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
}
template <>
__device__ inline uint32_t minus<f16>(uint32_t a, uint32_t b) {
  const __half2 d = __hsub2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
}

// (a & mask) | or_ and (a & mask) ^ xor_ in one instruction, which the compiler does not find by itself.
__device__ inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t or_) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(or_));
  return d;
}
__device__ inline uint32_t and_xor(uint32_t a, uint32_t mask, uint32_t xor_) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(mask), "r"(xor_));
  return d;
}

// Two of a word's W4 codes minus their zero (`zero` = kOne | zero, twice).
template <class X>
__device__ uint32_t pair_w4(uint32_t word, int s, uint32_t zero) {
  return minus<X>(and_or(word >> (4 * s), 0x000f000fu, kOne<X>), zero);
}
// Two of a word's Q8 codes. bf16 has 7 bits of mantissa: bit 7 of a code, its sign, turns the 128.0 to subtract into 256.0.
template <class X>
__device__ uint32_t pair_q8(uint32_t word, int s) {
  const uint32_t w = word >> (8 * s);
  if constexpr (kOne<X> == kOne<bf16>) return minus<X>(and_or(w, 0x007f007fu, kOne<X>), and_or(w, 0x00800080u, kOne<X>));
  return minus<X>(and_xor(w, 0x00ff00ffu, 0x64806480u), 0x64806480u);
}

template <class X, class Y>
struct Rows {
  const uint4* units;     // [panels][units of a row][32]
  const float2* scales;   // [panels][groups][8]
  const uint16_t* zeros;  // likewise
  int row_units, panels, groups;
  int share;              // units of a warp
  uint32_t groups_a_block;  // 2^31 * 32 / columns of a group, rounded up: exact while (blocks of a row) * (blocks of a group) < 2^31
  const X* x;
  int64_t ldx, term;      // elements between rows and between the terms of x
  int m, n;
  Bias bias;
  Y* y;                   // [m, n]
};

constexpr int kWarpsPerSm = 24;
template <int panels>
constexpr int kMostWarps = panels == 1 ? 16 : 8;

// 16 bytes of codes: read once, past the L1 cache, which is x's.
__device__ inline uint4 load_unit(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// A lane's part of one unit and of the scales and zeros that belong to it.
template <int panels, int scales>
struct Fetched {
  uint4 codes[panels];
  float2 scale[panels][scales];
  uint32_t zeros[panels][scales];  // of rows g and g + 8, in two bytes
};

// A warp computes `panels` times 16 rows of w by `tiles` times 8 rows of x over its part of the columns. `scales`: scales along a unit (2
// where groups are no multiple of 64 columns). `ahead`: units on the way.
template <class X, class Y, int bits, int terms, int panels, int tiles, int scales, int ahead>
__global__ void __launch_bounds__(32 * kMostWarps<panels>, 1) few_rows(const __grid_constant__ Rows<X, Y> a) {
  constexpr int kBlocks = bits == 4 ? 2 : 1, kWidth = 32 * kBlocks, kTokens = 8 * tiles, kRows = 16 * panels;
  extern __shared__ float sums[];  // [warps][tokens][rows + 1]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, row = lane >> 2, quarter = lane & 3;
  const int first_panel = static_cast<int>(blockIdx.y) * panels, first_token = static_cast<int>(blockIdx.x) * kTokens;
  const int begin = warp * a.share, end = min(begin + a.share, a.row_units);

  const uint4* codes[panels];
  const float2* scale[panels];
  const uint16_t* zeros[panels];
#pragma unroll
  for (int p = 0; p < panels; p++) {
    const int64_t panel = min(first_panel + p, a.panels - 1);
    codes[p] = a.units + (panel * a.row_units + begin) * 32 + lane;
    scale[p] = a.scales + panel * a.groups * 8 + row;
    zeros[p] = a.zeros + panel * a.groups * 8 + row;
  }
  const auto fetch = [&](Fetched<panels, scales>& f, int u, int step) {  // unit u, `step` after the one that codes[] points to
#pragma unroll
    for (int p = 0; p < panels; p++) {
      f.codes[p] = load_unit(codes[p] + step * 32);
#pragma unroll
      for (int s = 0; s < scales; s++) {
        const int g = static_cast<int>(__umulhi(2 * static_cast<uint32_t>(u * kBlocks + s), a.groups_a_block)) * 8;
        f.scale[p][s] = __ldg(scale[p] + g);
        f.zeros[p][s] = bits == 4 ? __ldg(zeros[p] + g) : 0;
      }
    }
  };

  // Rows beyond the last are computed like row 0 and not stored.
  const X* x[terms][tiles];
#pragma unroll
  for (int e = 0; e < terms; e++)
#pragma unroll
    for (int t = 0; t < tiles; t++) {
      const int token = first_token + 8 * t + row;
      x[e][t] = a.x + e * a.term + (token < a.m ? token : 0) * a.ldx + begin * kWidth + 8 * quarter;
    }
  float total[panels][tiles][4] = {};

  Fetched<panels, scales> ring[ahead];
#pragma unroll
  for (int s = 0; s < ahead; s++)
    if (begin + s < end) fetch(ring[s], begin + s, s);
  for (int u = begin; u < end; u += ahead) {
#pragma unroll
    for (int j = 0; j < ahead; j++) {
      if (u + j >= end) break;
      Fetched<panels, scales>& now = ring[j];
#pragma unroll
      for (int h = 0; h < kBlocks; h++) {
        const int s = h * scales / kBlocks;
        uint4 xs[terms][tiles];
#pragma unroll
        for (int e = 0; e < terms; e++)
#pragma unroll
          for (int t = 0; t < tiles; t++) xs[e][t] = __ldg(reinterpret_cast<const uint4*>(x[e][t] + j * kWidth + 32 * h));
#pragma unroll
        for (int p = 0; p < panels; p++) {
          const uint32_t words[4] = {now.codes[p].x, now.codes[p].y, now.codes[p].z, now.codes[p].w};
          const uint32_t one = kOne<X> >> 24;
          const uint32_t zero[2] = {__byte_perm(now.zeros[p][s], one, 0x4040), __byte_perm(now.zeros[p][s], one, 0x4141)};
          float sum[tiles][4] = {};
#pragma unroll
          for (int step = 0; step < 2; step++) {
            uint32_t pairs[4];
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
              for (int c = 0; c < 2; c++)
                pairs[2 * c + r] = bits == 4 ? pair_w4<X>(words[2 * h + r], 2 * step + c, zero[r]) : pair_q8<X>(words[2 * r + step], c);
#pragma unroll
            for (int t = 0; t < tiles; t++)
#pragma unroll
              for (int e = terms - 1; e >= 0; e--) {  // the small terms first
                const uint4 v = xs[e][t];
                mma<X>(sum[t], pairs, step == 0 ? v.x : v.z, step == 0 ? v.y : v.w);
              }
          }
#pragma unroll
          for (int t = 0; t < tiles; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) total[p][t][i] = fmaf(i < 2 ? now.scale[p][s].x : now.scale[p][s].y, sum[t][i], total[p][t][i]);
        }
      }
      if (u + j + ahead < end) fetch(now, u + j + ahead, j + ahead);  // into the registers that were just used: no moves that would wait
    }
#pragma unroll
    for (int p = 0; p < panels; p++) codes[p] += ahead * 32;
#pragma unroll
    for (int e = 0; e < terms; e++)
#pragma unroll
      for (int t = 0; t < tiles; t++) x[e][t] += ahead * kWidth;
  }

  float* mine = sums + warp * kTokens * (kRows + 1);
#pragma unroll
  for (int p = 0; p < panels; p++)
#pragma unroll
    for (int t = 0; t < tiles; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) mine[(8 * t + 2 * quarter + (i & 1)) * (kRows + 1) + 16 * p + row + 8 * (i >> 1)] = total[p][t][i];
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kTokens; i += blockDim.x) {
    const int token = i / kRows, out = i % kRows, col = first_panel * 16 + out;
    if (first_token + token >= a.m || col >= a.n) continue;
    float v = 0;
    for (int w = 0; w < warps; w++) v += sums[(w * kTokens + token) * (kRows + 1) + out];
    a.y[static_cast<int64_t>(first_token + token) * a.n + col] = from_float<Y>(v + a.bias.at(col));
  }
}

template <int bits, int panels, int tiles, int scales, int ahead, class X, class Y, int terms>
const char* launch_shape(Context& ctx, Rows<X, Y> a) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.m, 8 * tiles)), static_cast<unsigned>(ceil_div(a.panels, panels)));
  // Warps along the columns until the card is full, or each has little left to do.
  int warps = 4;
  while (warps < kMostWarps<panels> && static_cast<int64_t>(blocks.x) * blocks.y * warps < ctx.sms * kWarpsPerSm / panels && warps * 2 < a.row_units) warps *= 2;
  a.share = static_cast<int>(ceil_div(a.row_units, warps));
  const size_t shared = static_cast<size_t>(warps * 8 * tiles * (16 * panels + 1)) * sizeof(float);
  few_rows<X, Y, bits, terms, panels, tiles, scales, ahead><<<blocks, static_cast<unsigned>(32 * warps), shared, ctx.stream>>>(a);
  return launched();
}

template <class X, class Y, int bits, int terms>
const char* launch_few_rows(Context& ctx, const Packed& p, const X* x, int64_t ldx, int64_t term, int64_t m, Bias bias, Y* y) {
  Rows<X, Y> a{};
  a.units = reinterpret_cast<const uint4*>(p.q);
  a.scales = reinterpret_cast<const float2*>(p.scales);
  a.zeros = reinterpret_cast<const uint16_t*>(p.zeros);
  a.row_units = static_cast<int>(p.k / p.width());
  a.panels = static_cast<int>(p.n / 16);
  a.groups = static_cast<int>(p.groups);
  const int64_t group = p.groups == 1 ? p.k : p.group;
  a.groups_a_block = static_cast<uint32_t>(ceil_div(int64_t{1} << 31, group / 32));
  a.x = x;
  a.ldx = ldx;
  a.term = term;
  a.m = static_cast<int>(m);
  a.n = static_cast<int>(p.n);
  a.bias = bias;
  a.y = y;
  const auto with = [&](auto scales) {
    constexpr int s = decltype(scales)::value;
    if (m <= 8) return launch_shape<bits, 1, 1, s, 4, X, Y, terms>(ctx, a);
    if constexpr (terms == 1)
      if (m > 16) return launch_shape<bits, 2, 4, s, 4 / s, X, Y, terms>(ctx, a);
    return launch_shape<bits, 2, 2, s, 4 / s, X, Y, terms>(ctx, a);
  };
  if constexpr (bits == 4) {
    if (group % 64 != 0) return with(std::integral_constant<int, 2>{});
  }
  return with(std::integral_constant<int, 1>{});
}

// Plain buffers: a warp a row of w and four rows of x.
template <class T>
__global__ void __launch_bounds__(kThreads) plain_rows(const Packed p, const T* x, int64_t ldx, int64_t m, Bias bias, T* y) {
  const int lane = threadIdx.x & 31;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> 5, warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const int64_t fours = (m + 3) / 4;
  for (int64_t i = warp; i < p.n * fours; i += warps) {
    const int64_t row = i / fours, token = i % fours * 4;
    float sum[4] = {};
    for (int64_t c = lane; c < p.k; c += 32) {
      const float w = plain_weight(p, row, c);
#pragma unroll
      for (int t = 0; t < 4; t++)
        if (token + t < m) sum[t] = fmaf(to_float(x[(token + t) * ldx + c]), w, sum[t]);
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
      const float v = warp_sum(sum[t]);
      if (lane == 0 && token + t < m) y[(token + t) * p.n + row] = from_float<T>(v + bias.at(row));
    }
  }
}

template <class T, class X, int terms>
X* prepared(Context& ctx, const T* x, int64_t ldx, int64_t m, const Packed& p, bool round) {
  X* out = ctx.scratch_of<X>(static_cast<size_t>(terms * m * p.k));
  const int64_t group = p.groups == 1 ? p.k : p.group, blocks = m * p.groups * ceil_div(group, kBlockOfX);
  prepare<T, X, terms><<<grid_for(ctx, blocks, kThreads / 32), kThreads, 0, ctx.stream>>>(x, ldx, m, p.k, group, round, out);
  return out;
}

template <class T, int bits>
const char* linear(Context& ctx, const KernelArgs& k) {
  const View& view = k.in[0];
  const Packed p = packed_of(bits, static_cast<int64_t>(k.attr[0]), static_cast<int64_t>(k.attr[1]), static_cast<int64_t>(k.attr[2]), k.in[1].data);
  const bool round = k.attr[3] != 0 && p.k > 0;
  Bias bias;
  if (k.n_in > 2 && present(k.in[2])) bias = Bias{k.in[2].data, k.in[2].dtype};
  const int64_t m = view.shape[0];
  const T* x = data_of<T>(view);
  int64_t ldx = m == 1 ? p.k : view.stride[0];
  T* y = data_of<T>(k.out[0]);
  if (m == 0 || p.n == 0) return nullptr;
  if (const char* why = p.misplaced()) return why;
  if (p.tiled && p.k > 0 && m <= kFewRows && p.n <= kMostPanels * 16 && p.k < kMostColumns) {
    if constexpr (sizeof(T) == 4) {
      const bf16* terms = prepared<T, bf16, 3>(ctx, x, ldx, m, p, round);
      return launch_few_rows<bf16, T, bits, 3>(ctx, p, terms, p.k, m * p.k, m, bias, y);
    } else {
      if (round || !aligned16(x) || ldx % 8 != 0) {
        x = prepared<T, T, 1>(ctx, x, ldx, m, p, round);
        ldx = p.k;
      }
      return launch_few_rows<T, T, bits, 1>(ctx, p, x, ldx, 0, m, bias, y);
    }
  }
  if (round) {
    x = prepared<T, T, 1>(ctx, x, ldx, m, p, true);
    ldx = p.k;
  }
  if (!p.tiled && m <= kFewPlainRows) {
    plain_rows<<<grid_for(ctx, p.n * ceil_div(m, 4), kThreads / 32), kThreads, 0, ctx.stream>>>(p, x, ldx, m, bias, y);
    return launched();
  }
  // In slabs of rows of w, so that a vocabulary's worth of weights needs no more scratch memory than a layer's.
  const int64_t most = p.k == 0 ? p.n : kSlabBytes / (p.k * static_cast<int64_t>(sizeof(T))) / 64 * 64, slab = most < 64 ? 64 : most < p.n ? most : p.n;
  T* w = ctx.scratch_of<T>(static_cast<size_t>(slab * p.k));
  for (int64_t first = 0; first < p.n; first += slab) {
    const Packed part = p.rows(first, p.n - first < slab ? p.n - first : slab);
    if (const char* error = unpack(ctx, part, w, view.dtype)) return error;
    Gemm g;
    g.m = m;
    g.n = part.n;
    g.k = p.k;
    g.a = x;
    g.lda = ldx;
    g.b = w;
    g.ldb = p.k;
    g.trans_b = true;
    g.c = y + first;
    g.ldc = p.n;
    g.dtype_a = g.dtype_b = g.dtype_c = view.dtype;
    if (bias.data != nullptr) g.bias = static_cast<const char*>(bias.data) + first * static_cast<int64_t>(dtype_bytes(bias.dtype));
    g.dtype_bias = bias.dtype;
    if (const char* error = gemm(ctx, g)) return error;
  }
  return nullptr;
}

template <int bits>
const char* linear_of(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) { return linear<decltype(t), bits>(ctx, k); });
}

}  // namespace

const char* linear_w4(Context& ctx, const KernelArgs& k) { return linear_of<4>(ctx, k); }
const char* linear_q8(Context& ctx, const KernelArgs& k) { return linear_of<8>(ctx, k); }

}  // namespace llm::cuda
