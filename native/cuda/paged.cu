// The paged key/value cache [blocks, block, K, D]: the table of its ops, and kv_append; the attention kernels are paged_*.cu.
//
// An i8 cache holds, per token and head, code = rint((x - minimum) / scale) - 128 with scale = (max - min) / 255. One warp a vector; the
// other types are element for element copies.
#include "cuda/paged.cuh"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;

// x and slots of `tokens` tokens, fewer than 2^31 elements in all; `limit` slots in the cache.
struct Append {
  const char* x;
  int64_t stride, limit;
  const int* slots;
  unsigned tokens, heads, width;
  char* cache;
  float2* scales;
  int* fault;
  int code;
};

template <class T, class C, int V>
__global__ void __launch_bounds__(kThreads) append(const Append p) {
  follow();
  const unsigned row = p.heads * p.width, spans = row / V, i = blockIdx.x * kThreads + threadIdx.x, t = i / spans, at = (i - t * spans) * V;
  if (t >= p.tokens) return;
  const int slot = p.slots[t];
  if (slot < 0) return;
  if (slot >= p.limit) {
    raise(p.fault, p.code);
    return;
  }
  const auto from = *reinterpret_cast<const Neighbours<T, V>*>(reinterpret_cast<const T*>(p.x) + t * p.stride + at);
  Neighbours<C, V> to;
#pragma unroll
  for (int e = 0; e < V; e++) {
    if constexpr (std::is_same_v<T, C>) to.v[e] = from.v[e];
    else to.v[e] = from_float<C>(to_float(from.v[e]));
  }
  *reinterpret_cast<Neighbours<C, V>*>(reinterpret_cast<C*>(p.cache) + slot * static_cast<int64_t>(row) + at) = to;
}

// Lane l of the warp has elements l, l + 32, …: up to kHeld of them stay in registers between the two passes.
template <class T>
__global__ void __launch_bounds__(kThreads) append_codes(const Append p) {
  follow();
  constexpr int kHeld = 4;
  const unsigned vector = blockIdx.x * (kThreads / 32) + (threadIdx.x >> 5), t = vector / p.heads, head = vector - t * p.heads;
  if (t >= p.tokens) return;
  const int lane = threadIdx.x & 31, slot = p.slots[t], width = p.width;
  if (slot < 0) return;
  if (slot >= p.limit) {
    raise(p.fault, p.code);
    return;
  }
  const T* from = reinterpret_cast<const T*>(p.x) + t * p.stride + head * p.width;
  float held[kHeld], low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int j = 0; j < kHeld; j++) {
    if (lane + 32 * j >= width) continue;
    held[j] = to_float(from[lane + 32 * j]);
    low = fminf(low, held[j]);
    high = fmaxf(high, held[j]);
  }
  for (int d = lane + 32 * kHeld; d < width; d += 32) {
    low = fminf(low, to_float(from[d]));
    high = fmaxf(high, to_float(from[d]));
  }
  high = warp_max(high);
  low = -warp_max(-low);
  const float scale = __fdiv_rn(__fsub_rn(high, low), 255.f), inverse = scale > 0.f ? __fdiv_rn(1.f, scale) : 0.f;
  const int64_t to = static_cast<int64_t>(slot) * p.heads + head;
  int8_t* codes = reinterpret_cast<int8_t*>(p.cache) + to * width;
  const auto put = [&](int d, float v) {
    const float c = rintf(__fmul_rn(__fsub_rn(v, low), inverse)) - 128.f;
    codes[d] = static_cast<int8_t>(fmaxf(-128.f, fminf(127.f, c)));
  };
#pragma unroll
  for (int j = 0; j < kHeld; j++)
    if (lane + 32 * j < width) put(lane + 32 * j, held[j]);
  for (int d = lane + 32 * kHeld; d < width; d += 32) put(d, to_float(from[d]));
  if (lane == 0) p.scales[to] = make_float2(scale, low);
}

template <class T>
const char* append_some(Context& ctx, const Append& p, DType cache) {
  const int64_t vectors = static_cast<int64_t>(p.tokens) * p.heads, elements = vectors * p.width;
  if (cache == DType::i8) {
    launch(ctx, append_codes<T>, static_cast<unsigned>(ceil_div(vectors, kThreads / 32)), kThreads, 0, p);
    return launched();
  }
  return dispatch(cache, [&](auto c) {
    using C = decltype(c);
    constexpr int V = 8;
    if (p.heads * p.width % V == 0 && (p.tokens == 1 || p.stride % V == 0) && aligned16(p.x) && aligned16(p.cache))
      launch(ctx, append<T, C, V>, static_cast<unsigned>(ceil_div(elements / V, kThreads)), kThreads, 0, p);
    else
      launch(ctx, append<T, C, 1>, static_cast<unsigned>(ceil_div(elements, kThreads)), kThreads, 0, p);
    return launched();
  });
}

// Scales and zero points are read in pairs.
constexpr const char* kPairsExpected = "scales on an 8-byte boundary expected";
bool pairs_aligned(const View& scales) { return reinterpret_cast<uintptr_t>(scales.data) % 8 == 0; }

const char* kv_append(Context& ctx, const KernelArgs& k) {
  const View &cache = k.in[0], &x = k.in[2];
  const int64_t n = view_numel(x);
  if (n == 0) return nullptr;
  const int64_t tokens = x.shape[0], row = n / tokens, most = INT32_MAX / row;  // tokens of a launch
  if (most == 0) return "tokens of fewer than 2^31 elements expected";
  if (cache.dtype == DType::i8 && !pairs_aligned(k.in[1])) return kPairsExpected;
  for (int64_t t = 0; t < tokens; t += most) {
    Append p{};
    p.x = x.data + t * x.stride[0] * static_cast<int64_t>(dtype_bytes(x.dtype));
    p.stride = x.stride[0];
    p.limit = cache.shape[0] * cache.shape[1];
    p.slots = data_of<const int>(k.in[3]) + t;
    p.tokens = static_cast<unsigned>(tokens - t < most ? tokens - t : most);
    p.heads = static_cast<unsigned>(x.shape[1]);
    p.width = static_cast<unsigned>(x.shape[2]);
    p.cache = cache.data;
    if (cache.dtype == DType::i8) p.scales = data_of<float2>(k.in[1]);
    p.fault = ctx.fault_word;
    p.code = ctx.code(Fault::slot);
    const char* why = dispatch(x.dtype, [&](auto e) { return append_some<decltype(e)>(ctx, p, cache.dtype); });
    if (why) return why;
  }
  return nullptr;
}

// Whether the tensor-core kernels take it: what they load 16 bytes at a time must be aligned.
bool for_tensor_cores(const PagedArgs& a) {
  return a.type != DType::f32 && (a.cache_type == a.type || a.cache_type == DType::i8) && (a.width == 64 || a.width == 128) && a.scale > 0 &&
         aligned16(a.k) && aligned16(a.v) && aligned16(a.o);
}

const char* paged_attention(Context& ctx, const KernelArgs& k) {
  if (view_numel(k.in[0]) == 0) return nullptr;
  PagedArgs a{};
  if (const char* why = paged_args(ctx, k, a)) return why;
  if (!a.tensor_cores) return paged_generic(ctx, a);
  if (can_paged_step(ctx, a)) return paged_step(ctx, a, nullptr);
  if (a.by_token) return paged_decode(ctx, a);
  const char* why = paged_decode(ctx, a);
  return why ? why : paged_prefill(ctx, a);
}

}  // namespace

const char* paged_args(const Context& ctx, const KernelArgs& k, PagedArgs& a) {
  const View &q = k.in[0], &cache = k.in[1], &table = k.in[5];
  a.q = q.data;
  a.k = cache.data;
  a.v = k.in[2].data;
  if (cache.dtype == DType::i8) {
    if (!pairs_aligned(k.in[3]) || !pairs_aligned(k.in[4])) return kPairsExpected;
    a.k_scales = data_of<const float2>(k.in[3]);
    a.v_scales = data_of<const float2>(k.in[4]);
  }
  a.table = data_of<const int>(table);
  a.cu = data_of<const int>(k.in[6]);
  a.lengths = data_of<const int>(k.in[7]);
  a.o = k.out[0].data;
  a.type = q.dtype;
  a.cache_type = cache.dtype;
  a.q_stride = q.stride[0];
  a.tokens = static_cast<int>(q.shape[0]);
  a.heads = static_cast<int>(q.shape[1]);
  a.width = static_cast<int>(q.shape[2]);
  a.key_heads = static_cast<int>(cache.shape[2]);
  a.group = a.heads / a.key_heads;
  a.sequences = static_cast<int>(table.shape[0]);
  a.columns = static_cast<int>(table.shape[1]);
  a.block = static_cast<int>(cache.shape[1]);
  a.blocks = a.block == 0 ? 0 : static_cast<int>(cache.shape[0]);
  a.scale = static_cast<float>(k.attr[0]);
  a.window = k.attr[1] < INT32_MAX ? static_cast<int>(k.attr[1]) : INT32_MAX;
  a.fault = ctx.fault_word;
  a.bad_length = ctx.code(Fault::kv_length);
  a.bad_entry = ctx.code(Fault::block_entry);
  a.bad_boundaries = ctx.code(Fault::boundaries);
  a.settled = ctx.settled(table) && ctx.settled(k.in[6]) && ctx.settled(k.in[7]);
  a.tensor_cores = for_tensor_cores(a);
  // As many tokens as sequences: a decode step, where each token is a unit of work, also if a sequence should have several or none. Else
  // sequences with one query go to paged_decode, the others to the tiles of paged_prefill.
  a.by_token = !a.tensor_cores || a.tokens == a.sequences;
  return nullptr;
}

const CudaEntry cuda_paged[] = {{op_kv_append, kv_append}, {op_paged_attention, paged_attention}};
const int cuda_paged_count = sizeof(cuda_paged) / sizeof(cuda_paged[0]);

}  // namespace llm::cuda
