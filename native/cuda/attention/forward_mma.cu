// Attention forward in bf16 and f16 on tensor cores (mma.sync, sm_80 and later), for widths up to 256 that are multiples of 8.
// Four warps take 128 rows of one head, each two tiles of 16, so that every fragment of keys and values read from shared memory is used
// twice (64 rows, one tile, when the head is wider than 128: registers). Keys and values come by cp.async in two stages; rows in shared memory are 16 bytes longer than needed, so that the 8 rows of a
// matrix fragment lie in different banks. Widths are rounded up to a multiple of 32 with zeros.
#include "cuda/attention/forward.h"
#include "cuda/attention/softmax.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;
template <int D>
constexpr int tiles_of = D > 128 ? 1 : 2;  // of 16 rows, a warp
template <int D>
constexpr int rows_of = 64 * tiles_of<D>;
template <int D>
constexpr int keys_of = D > 64 ? 32 : 64;  // a stage; the sums of o take the registers of a wide head

template <class T>
struct MmaArgs {
  const T *q, *k, *v;
  T* o;
  float* lse;
  int64_t q_stride, k_stride, v_stride;  // between tokens
  Packed p;
  int heads, group, together, width;
  float scale, scale_log2;
};

template <int D>
constexpr int row_bytes = D * 2 + 16;
template <int D>
constexpr int tile_bytes = keys_of<D> * row_bytes<D>;

// Starts copying rows [first, first + count) of a head to `to`; rows >= rows and columns >= width become zeros.
template <int D, int count, class T>
__device__ __forceinline__ void copy_tile(uint32_t to, const T* from, int64_t stride, int first, int rows, int width) {
  constexpr int pieces = D / 8;
  for (int i = threadIdx.x; i < count * pieces; i += kThreads) {
    const int row = i / pieces, column = i % pieces * 8;
    const bool inside = first + row < rows && column < width;
    const T* source = inside ? from + static_cast<int64_t>(first + row) * stride + column : from;
    ptx::cp_async16(to + row * row_bytes<D> + column * 2, source, inside ? 16 : 0);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) forward_mma_kernel(const MmaArgs<T> a) {
  extern __shared__ __align__(16) char shared[];  // q; stage 0: keys, values; stage 1: keys, values
  constexpr int kTiles = tiles_of<D>, kRows = rows_of<D>, kKeys = keys_of<D>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (blockIdx.x == 0 && warp == 0) check_boundaries(a.p);
  WorkCursor cursor;
  Work w;
  if (!find_work(a.p, kRows, a.heads, a.together, blockIdx.x, cursor, w)) return;
  const Stretch s = w.s;
  const int row0 = w.tile * kRows, rows = min(kRows, s.queries - row0);
  const T* q = a.q + (s.q_begin + row0) * a.q_stride + static_cast<int64_t>(w.head) * a.width;
  const T* k = a.k + s.k_begin * a.k_stride + static_cast<int64_t>(w.head / a.group) * a.width;
  const T* v = a.v + s.k_begin * a.v_stride + static_cast<int64_t>(w.head / a.group) * a.width;
  const int begin = first_key(a.p, s, row0) / kKeys, end = (last_key(a.p, s, row0 + rows - 1) + kKeys - 1) / kKeys;
  // Tiles [inner_begin, inner_end) are seen whole by all rows.
  const int inner_end = last_key(a.p, s, row0) / kKeys, inner_begin = (first_key(a.p, s, row0 + rows - 1) + kKeys - 1) / kKeys;
  const uint32_t q_base = ptx::shared_address(shared), base = q_base + kRows * row_bytes<D>;
  const auto copy_keys = [&](int n) {
    const uint32_t to = base + ((end - 1 - n) & 1) * 2 * tile_bytes<D>;
    copy_tile<D, kKeys>(to, k, a.k_stride, n * kKeys, s.keys, a.width);
    copy_tile<D, kKeys>(to + tile_bytes<D>, v, a.v_stride, n * kKeys, s.keys, a.width);
  };
  if (begin < end) {
    copy_tile<D, kRows>(q_base, q, a.q_stride, 0, rows, a.width);
    copy_keys(end - 1);
  }
  ptx::cp_async_commit();

  float o[kTiles][D / 2] = {};
  RunningSoftmax softmax[kTiles];
  for (int n = end - 1; n >= begin; n--) {
    if (n > begin) copy_keys(n - 1);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();
    const uint32_t keys = base + ((end - 1 - n) & 1) * 2 * tile_bytes<D>, values = keys + tile_bytes<D>;

    float x[kTiles][kKeys / 2] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
      uint32_t qa[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; t++)
        ptx::ldmatrix4(qa[t], q_base + (16 * (kTiles * warp + t) + lane % 16) * row_bytes<D> + 32 * i + lane / 16 * 16);
#pragma unroll
      for (int j = 0; j < kKeys / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix4(b, keys + (16 * j + lane % 8 + lane / 16 * 8) * row_bytes<D> + 32 * i + lane / 8 % 2 * 16);
#pragma unroll
        for (int t = 0; t < kTiles; t++) {
          ptx::mma16816<T>(x[t] + 8 * j, qa[t], b[0], b[1]);
          ptx::mma16816<T>(x[t] + 8 * j + 4, qa[t], b[2], b[3]);
        }
      }
    }
    uint32_t pa[kTiles][kKeys / 16][4];
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
      float factor[2];
      if (n >= inner_end || n < inner_begin) {
        int first[2], last[2];  // of this thread's rows, from column 2 (lane % 4)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int row = row0 + 16 * (kTiles * warp + t) + lane / 4 + 8 * r;
          first[r] = first_key(a.p, s, row) - n * kKeys - 2 * (lane % 4);
          last[r] = last_key(a.p, s, row) - n * kKeys - 2 * (lane % 4);
        }
        mask_scores(x[t], first, last);
        advance_softmax<true>(x[t], softmax[t], factor, a.scale_log2);
      } else {
        advance_softmax<false>(x[t], softmax[t], factor, a.scale_log2);
      }
      pack_scores<T>(x[t], pa[t]);
#pragma unroll
      for (int i = 0; i < D / 2; i++) o[t][i] *= factor[(i >> 1) & 1];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 16; i++)
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix4_trans(b, values + (16 * i + lane % 16) * row_bytes<D> + 32 * j + lane / 16 * 16);
#pragma unroll
        for (int t = 0; t < kTiles; t++) {
          ptx::mma16816<T>(o[t] + 8 * j, pa[t][i], b[0], b[1]);
          ptx::mma16816<T>(o[t] + 8 * j + 4, pa[t][i], b[2], b[3]);
        }
      }
    __syncthreads();
  }

#pragma unroll
  for (int t = 0; t < kTiles; t++) {
    float inverse[2], lse[2];
    finish_softmax(softmax[t], a.scale, inverse, lse);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = 16 * (kTiles * warp + t) + lane / 4 + 8 * r;
      const int64_t token = s.q_begin + row0 + row;
      if (row < rows && lane % 4 == 0) a.lse[static_cast<int64_t>(w.head) * a.p.queries + token] = lse[r];
      store_row(a.o + (token * a.heads + w.head) * a.width, o[t], r, inverse[r], a.width, row < rows);
    }
  }
}

bool rows_fit(const View& v) { return aligned16(v.data) && (v.stride[0] % 8 == 0 || v.shape[0] <= 1); }

template <class T, int D>
const char* launch(Context& ctx, const Forward& f) {
  MmaArgs<T> a;
  a.q = data_of<T>(f.q);
  a.k = data_of<T>(f.k);
  a.v = data_of<T>(f.v);
  a.o = reinterpret_cast<T*>(f.o);
  a.lse = f.lse;
  a.q_stride = f.q.stride[0];
  a.k_stride = f.k.stride[0];
  a.v_stride = f.v.stride[0];
  a.p = f.packed;
  a.heads = f.heads;
  a.group = f.group;
  a.together = f.together;
  a.width = static_cast<int>(f.q.shape[2]);
  a.scale = static_cast<float>(f.scale);
  a.scale_log2 = static_cast<float>(f.scale * 1.4426950408889634);
  const int bytes = rows_of<D> * row_bytes<D> + 4 * tile_bytes<D>;  // at most 99 KiB, what sm_86 has
  const cudaError_t e = cudaFuncSetAttribute(forward_mma_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return cudaGetErrorString(e);
  const int64_t blocks = f.packed.most_tiles(rows_of<D>) * f.heads;
  if (blocks >= int64_t{1} << 30) return "fewer tokens or heads expected";
  forward_mma_kernel<T, D><<<static_cast<unsigned>(blocks), kThreads, bytes, ctx.stream>>>(a);
  return launched();
}

}  // namespace

bool forward_mma_fits(const Forward& f) {
  return f.q.dtype != DType::f32 && f.q.shape[2] > 0 && f.q.shape[2] <= 256 && f.q.shape[2] % 8 == 0 && aligned16(f.o) && rows_fit(f.q) &&
         rows_fit(f.k) && rows_fit(f.v);
}

const char* forward_mma(Context& ctx, const Forward& f) {
  const auto by_width = [&](auto t) {
    using T = decltype(t);
    const int64_t width = f.q.shape[2];
    if (width <= 32) return launch<T, 32>(ctx, f);
    if (width <= 64) return launch<T, 64>(ctx, f);
    if (width <= 96) return launch<T, 96>(ctx, f);
    if (width <= 128) return launch<T, 128>(ctx, f);
    return width <= 192 ? launch<T, 192>(ctx, f) : launch<T, 256>(ctx, f);
  };
  return f.q.dtype == DType::bf16 ? by_width(bf16{}) : by_width(f16{});
}

}  // namespace llm::cuda
