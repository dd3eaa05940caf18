// repack: canonical weights into the layout of quant_packed.cuh; unpack: from there to a dense matrix for a large product.
#include "cuda/quant.h"
#include "cuda/quant_packed.cuh"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

// A lane's piece of a unit: where its eight columns of row `r` (0: row g, 1: row g + 8) and block `h` begin.
struct Piece {
  int64_t panel, unit;
  int lane;
  __device__ Piece(int64_t i, int64_t units) : panel(i / 32 / units), unit(i / 32 % units), lane(static_cast<int>(i & 31)) {}
  __device__ int64_t row(int r) const { return panel * 16 + (lane >> 2) + 8 * r; }
  __device__ int64_t col(int width, int h) const { return unit * width + 32 * h + 8 * (lane & 3); }
};

__global__ void __launch_bounds__(kThreads) tile_w4(const uint32_t* q, int64_t n, int64_t k, uint4* out) {
  const int64_t units = k / 64, pieces = n / 16 * units * 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Piece at(i, units);
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const uint32_t from = q[(at.row(w & 1) * k + at.col(64, w >> 1)) / 8];
      uint32_t to = 0;
#pragma unroll
      for (int s = 0; s < 4; s++) to |= (from >> (8 * s) & 15) << (4 * s) | (from >> (8 * s + 4) & 15) << (16 + 4 * s);
      words[w] = to;
    }
    out[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__global__ void __launch_bounds__(kThreads) tile_q8(const uint32_t* q, int64_t n, int64_t k, uint4* out) {
  const int64_t units = k / 32, pieces = n / 16 * units * 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Piece at(i, units);
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; w++) words[w] = __byte_perm(q[(at.row(w >> 1) * k + at.col(32, 0)) / 4 + (w & 1)], 0, 0x3120);
    out[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// [n, groups] to [n / 16][groups][16].
template <class T>
__global__ void __launch_bounds__(kThreads) tile_groups(const T* from, int64_t n, int64_t groups, T* to) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n * groups; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / groups, g = i % groups;
    to[(row / 16 * groups + g) * 16 + tile_row_at(static_cast<int>(row % 16))] = from[i];
  }
}

const char* copy(Context& ctx, const void* to, const View& from) {
  const size_t bytes = static_cast<size_t>(view_numel(from)) * dtype_bytes(from.dtype);
  if (bytes == 0) return nullptr;
  const cudaError_t e = cudaMemcpyAsync(const_cast<void*>(to), from.data, bytes, cudaMemcpyDeviceToDevice, ctx.stream);
  return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

const char* repack(Context& ctx, const KernelArgs& k, int bits) {
  const View &q = k.in[0], &scales = k.in[1];
  const int64_t n = q.shape[0], cols = q.shape[1] * (bits == 4 ? 2 : 1);
  if (n == 0 || cols == 0) return nullptr;
  const Packed p = packed_of(bits, n, cols, static_cast<int64_t>(k.attr[0]), k.out[0].data);
  if (!p.tiled) {
    const char* error = copy(ctx, p.scales, scales);
    if (error == nullptr && bits == 4) error = copy(ctx, p.zeros, k.in[2]);
    return error != nullptr ? error : copy(ctx, p.q, q);
  }
  const int64_t pieces = n * cols * bits / 128;
  const int blocks = grid_for(ctx, pieces, kThreads);
  if ((reinterpret_cast<uintptr_t>(q.data) & 3) != 0) return "codes on a 4-byte boundary expected";
  uint4* to = reinterpret_cast<uint4*>(const_cast<uint8_t*>(p.q));
  if (bits == 4) tile_w4<<<blocks, kThreads, 0, ctx.stream>>>(data_of<uint32_t>(q), n, cols, to);
  else tile_q8<<<blocks, kThreads, 0, ctx.stream>>>(data_of<uint32_t>(q), n, cols, to);
  const int few = grid_for(ctx, n * p.groups, kThreads);
  tile_groups<<<few, kThreads, 0, ctx.stream>>>(data_of<float>(scales), n, p.groups, const_cast<float*>(p.scales));
  if (bits == 4) tile_groups<<<few, kThreads, 0, ctx.stream>>>(data_of<uint8_t>(k.in[2]), n, p.groups, const_cast<uint8_t*>(p.zeros));
  return launched();
}

// Eight weights to neighbouring columns.
template <class T>
__device__ void store_row(T* out, const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += Pack<T>::n) {
    Pack<T> p;
#pragma unroll
    for (int j = 0; j < Pack<T>::n; j++) p.v[j] = from_float<T>(v[i + j]);
    store_pack(out + i, p);
  }
}

template <class T, int bits>
__global__ void __launch_bounds__(kThreads) untile(const Packed p, T* out) {
  constexpr int kWidth = bits == 4 ? 64 : 32;
  const int64_t units = p.k / kWidth, pieces = p.n / 16 * units * 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Piece at(i, units);
    const uint4 unit = __ldcs(reinterpret_cast<const uint4*>(p.q) + i);
    const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
    for (int half = 0; half < 2; half++) {  // W4: block h of columns, both rows; Q8: row r
      const int64_t col = at.col(kWidth, bits == 4 ? half : 0);
      const int64_t group = (at.panel * p.groups + col / p.group) * 16 + 2 * (at.lane >> 2);
#pragma unroll
      for (int r = 0; r < (bits == 4 ? 2 : 1); r++) {
        float v[8];
        const int row = bits == 4 ? r : half;
        const float scale = __ldg(p.scales + group + row);
        if (bits == 4) {
          const int zero = __ldg(p.zeros + group + row);
#pragma unroll
          for (int j = 0; j < 8; j++)
            v[j] = static_cast<float>(static_cast<int>(words[2 * half + r] >> (4 * (j >> 1) + 16 * (j & 1)) & 15) - zero) * scale;
        } else {
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const int place = 8 * (j >> 1 & 1) + 16 * (j & 1);
            v[j] = static_cast<float>(static_cast<int8_t>(words[2 * half + (j >> 2)] >> place & 255)) * scale;
          }
        }
        store_row(out + at.row(row) * p.k + col, v);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) unpack_plain(const Packed p, T* out) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.n * p.k; i += static_cast<int64_t>(gridDim.x) * kThreads)
    out[i] = from_float<T>(plain_weight(p, i / p.k, i % p.k));
}

}  // namespace

const char* repack_w4(Context& ctx, const KernelArgs& k) { return repack(ctx, k, 4); }
const char* repack_q8(Context& ctx, const KernelArgs& k) { return repack(ctx, k, 8); }

const char* unpack(Context& ctx, const Packed& p, void* out, DType dtype) {
  if (p.n == 0 || p.k == 0) return nullptr;
  return dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    T* to = static_cast<T*>(out);
    const int pieces = grid_for(ctx, p.n * p.k * p.bits / 128, kThreads);
    if (!p.tiled) unpack_plain<<<grid_for(ctx, p.n * p.k, kThreads), kThreads, 0, ctx.stream>>>(p, to);
    else if (p.bits == 4) untile<T, 4><<<pieces, kThreads, 0, ctx.stream>>>(p, to);
    else untile<T, 8><<<pieces, kThreads, 0, ctx.stream>>>(p, to);
    return launched();
  });
}

}  // namespace llm::cuda
