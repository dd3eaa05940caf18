// Embedding rows, rotary embedding, SwiGLU and its gradient; the table of the layer kernels (norms in norm.cu and norm_bwd.cu, the embedding's
// gradient in embedding_bwd.cu). All of them read once and write once, 16 bytes at a time where the rows allow it.
#include "cuda/rows.cuh"
#include "cuda/tables.h"

namespace llm::cuda {

const char* embedding_bwd(Context& ctx, const KernelArgs& k);
const char* rms_norm(Context& ctx, const KernelArgs& k);
const char* add_rms_norm(Context& ctx, const KernelArgs& k);
const char* rms_norm_bwd(Context& ctx, const KernelArgs& k);

namespace {

// ---- embedding -------------------------------------------------------------------------------------------------------------------

// y[t] = weight[ids[t]] as `units` units of U; a block copies a row at a time. An id outside the table gives zeros and a fault.
template <class U>
__global__ void embedding_rows(const int32_t* __restrict__ ids, const U* __restrict__ weight, U* __restrict__ y, int64_t tokens,
                               int64_t units, int64_t vocabulary, int* fault, int code) {
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t id = ids[t];
    const bool good = id >= 0 && id < vocabulary;
    if (!good && threadIdx.x == 0) raise(fault, code);
    const U* from = weight + (good ? id : 0) * units;
    U* to = y + t * units;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < units; i += blockDim.x) to[i] = good ? from[i] : U{};
  }
}

template <class U>
const char* embedding_as(Context& ctx, const KernelArgs& k, int64_t units) {
  const int64_t tokens = view_numel(k.in[0]), warps = ceil_div(units, 4 * 32);
  const int threads = 32 * static_cast<int>(warps < 1 ? 1 : warps > 8 ? 8 : warps);
  embedding_rows<U><<<grid_for(ctx, tokens, 1, 2048 / threads), threads, 0, ctx.stream>>>(
      data_of<int32_t>(k.in[0]), data_of<U>(k.in[1]), data_of<U>(k.out[0]), tokens, units, k.in[1].shape[0], ctx.fault_word,
      ctx.code(Fault::token_id));
  return launched();
}

const char* embedding(Context& ctx, const KernelArgs& k) {
  const View &weight = k.in[1], &y = k.out[0];
  if (view_numel(k.in[0]) == 0) return nullptr;
  const int64_t bytes = weight.shape[1] * static_cast<int64_t>(dtype_bytes(weight.dtype));
  if (bytes % 16 == 0 && aligned16(weight.data) && aligned16(y.data)) return embedding_as<uint4>(ctx, k, bytes / 16);
  if (dtype_bytes(weight.dtype) == 4) return embedding_as<uint32_t>(ctx, k, bytes / 4);
  return embedding_as<uint16_t>(ctx, k, bytes / 2);
}

// ---- rotary embedding ------------------------------------------------------------------------------------------------------------

struct Rope {
  const float *cosines, *sines;
  const int32_t* positions;
  int64_t tokens, stride, limit;  // stride: elements from token to token of x
  int heads, width, half;         // half: columns of the tables
  float sign;
  int* fault;
  int code;
};

// Element i of the first half turns with element i of the second; columns beyond 2 * half pass through. A piece of work is V elements of
// both halves, or V elements that pass through. A position outside the table gives zeros and a fault.
template <class T, int V>
__global__ void __launch_bounds__(256) rope_pieces(const T* x, T* y, const Rope k) {
  follow();
  const uint32_t turns = k.half / V, pieces = turns + (k.width - 2 * k.half) / V, per_token = pieces * k.heads;
  const int64_t total = k.tokens * per_token;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total; at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t t = at <= UINT32_MAX ? static_cast<uint32_t>(at) / per_token : at / per_token;
    const uint32_t rest = static_cast<uint32_t>(at - t * per_token), h = rest / pieces, piece = rest - h * pieces;
    const int64_t position = k.positions[t];
    const bool good = position >= 0 && position < k.limit;
    if (!good && rest == 0) raise(k.fault, k.code);
    const T* from = x + t * k.stride + static_cast<int64_t>(h) * k.width;
    T* to = y + (t * k.heads + h) * k.width;
    if (piece >= turns) {
      const int i = 2 * k.half + (piece - turns) * V;
      Span<T, V> v = Span<T, V>::load(from + i);
#pragma unroll
      for (int e = 0; e < V; e++) v.v[e] = good ? v.v[e] : from_float<T>(0.0f);
      v.store(to + i);
      continue;
    }
    const int i = piece * V;
    const int64_t entry = (good ? position : 0) * k.half + i;
    Span<T, V> a = Span<T, V>::load(from + i), b = Span<T, V>::load(from + k.half + i);
    Span<float, V> c{}, s{};
    if (good) {  // the table may be empty
      c = Span<float, V>::load(k.cosines + entry);
      s = Span<float, V>::load(k.sines + entry);
    }
    float turned[2][V];
#pragma unroll
    for (int e = 0; e < V; e++) {
      const float first = to_float(a.v[e]), second = to_float(b.v[e]), sine = k.sign * s.v[e];
      turned[0][e] = good ? first * c.v[e] - second * sine : 0.0f;
      turned[1][e] = good ? second * c.v[e] + first * sine : 0.0f;
    }
    round_to(a.v, turned[0]);
    round_to(b.v, turned[1]);
    a.store(to + i);
    b.store(to + k.half + i);
  }
}

const char* rope(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  if (view_numel(x) == 0) return nullptr;
  Rope r{data_of<float>(k.in[1]),
         data_of<float>(k.in[2]),
         data_of<int32_t>(k.in[3]),
         x.shape[0],
         x.shape[0] == 1 ? 0 : x.stride[0],
         k.in[1].shape[0],
         static_cast<int>(x.shape[1]),
         static_cast<int>(x.shape[2]),
         static_cast<int>(k.in[1].shape[1]),
         k.attr[0] != 0 ? -1.0f : 1.0f,
         ctx.fault_word,
         ctx.code(Fault::position)};
  return dispatch(x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = Pack<T>::n;
    const bool packed = r.half % V == 0 && r.width % V == 0 && r.stride % V == 0 && aligned16(x.data) && aligned16(y.data) &&
                        aligned16(r.cosines) && aligned16(r.sines);
    const int step = packed ? V : 1;
    const int64_t pieces = r.tokens * r.heads * (r.half / step + (r.width - 2 * r.half) / step);
    const int grid = grid_for(ctx, pieces, 256, 32);
    if (packed) launch(ctx, rope_pieces<T, V>, grid, 256, 0, data_of<T>(x), data_of<T>(y), r);
    else launch(ctx, rope_pieces<T, 1>, grid, 256, 0, data_of<T>(x), data_of<T>(y), r);
    return launched();
  });
}

// ---- SwiGLU ----------------------------------------------------------------------------------------------------------------------

template <class T>
struct Gated {
  const T *x, *dy;  // x: [rows, 2 cols], gate then up
  T* y;             // y [rows, cols], or dx [rows, 2 cols]
  int64_t rows, cols, stride;
  int64_t chunks;  // a row is cut into so many pieces of work
};

constexpr int kGatedSpans = 2;  // of V elements, of each operand, for each thread

// A block takes a chunk of a row: kGatedSpans spans a thread, all of them loaded before the first is used.
template <class T, int V, bool Gradient>
__global__ void __launch_bounds__(256) gated_rows(const Gated<T> k) {
  follow();
  using S = Span<T, V>;
  for (int64_t at = blockIdx.x; at < k.rows * k.chunks; at += gridDim.x) {
    const int64_t row = at <= UINT32_MAX ? static_cast<uint32_t>(at) / static_cast<uint32_t>(k.chunks) : at / k.chunks;
    const int64_t begin = ((at - row * k.chunks) * kGatedSpans * blockDim.x + threadIdx.x) * V, step = blockDim.x * V;
    const T* x = k.x + row * k.stride;
    S gate[kGatedSpans], up[kGatedSpans], dy[kGatedSpans];
#pragma unroll
    for (int j = 0; j < kGatedSpans; j++) {
      const int64_t c = begin + j * step;
      if (c >= k.cols) continue;
      gate[j] = S::load(x + c);
      up[j] = S::load(x + k.cols + c);
      if (Gradient) dy[j] = S::load(k.dy + row * k.cols + c);
    }
#pragma unroll
    for (int j = 0; j < kGatedSpans; j++) {
      const int64_t c = begin + j * step;
      if (c >= k.cols) continue;
      float first[V], second[V];  // of the result: y, or the gradients of gate and up
#pragma unroll
      for (int e = 0; e < V; e++) {
        const float g = to_float(gate[j].v[e]), u = to_float(up[j].v[e]), s = sigmoid<T>(g);
        const float d = Gradient ? to_float(dy[j].v[e]) : 1.0f;
        first[e] = Gradient ? d * u * s * (1.0f + g * (1.0f - s)) : g * s * u;
        second[e] = d * g * s;
      }
      round_to(gate[j].v, first);
      if (Gradient) round_to(up[j].v, second);
      T* to = k.y + row * (Gradient ? 2 * k.cols : k.cols) + c;
      gate[j].store(to);
      if (Gradient) up[j].store(to + k.cols);
    }
  }
}

template <class T, int V, bool Gradient>
const char* launch_gated(Context& ctx, Gated<T> k) {
  const int64_t spans = ceil_div(ceil_div(k.cols, V), kGatedSpans);  // per row and place in a thread
  k.chunks = ceil_div(spans, 256);
  const int threads = static_cast<int>(ceil_div(ceil_div(spans, k.chunks), 32) * 32);
  const int64_t blocks = k.rows * k.chunks;
  launch(ctx, gated_rows<T, V, Gradient>, static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX), threads, 0, k);
  return launched();
}

template <bool Gradient>
const char* gated(Context& ctx, const View& x, const View* dy, const View& y) {
  if (view_numel(y) == 0) return nullptr;
  return dispatch(x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = Pack<T>::n;
    const RowView rows = row_view(x);
    const Gated<T> k{data_of<T>(x), dy ? data_of<T>(*dy) : nullptr, data_of<T>(y), rows.rows, rows.cols / 2, rows.stride, 0};
    const bool packed = k.cols % V == 0 && k.stride % V == 0 && aligned16(k.x) && aligned16(k.y) && aligned16(k.dy);
    return packed ? launch_gated<T, V, Gradient>(ctx, k) : launch_gated<T, 1, Gradient>(ctx, k);
  });
}

const char* swiglu(Context& ctx, const KernelArgs& k) { return gated<false>(ctx, k.in[0], nullptr, k.out[0]); }

const char* swiglu_bwd(Context& ctx, const KernelArgs& k) { return gated<true>(ctx, k.in[1], &k.in[0], k.out[0]); }

}  // namespace

const CudaEntry cuda_layers[] = {
    {op_embedding, embedding},       {op_embedding_bwd, embedding_bwd}, {op_rms_norm, rms_norm}, {op_add_rms_norm, add_rms_norm},
    {op_rms_norm_bwd, rms_norm_bwd}, {op_rope, rope},                   {op_swiglu, swiglu},     {op_swiglu_bwd, swiglu_bwd},
};
const int cuda_layers_count = sizeof(cuda_layers) / sizeof(cuda_layers[0]);

}  // namespace llm::cuda
