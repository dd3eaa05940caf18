// Standalone check of kv_append and paged_attention: results against sums in double precision on odd shapes, memory that must not be read
// full of NaN, the same bits twice, a graph replayed with other lengths; then timings. Link it with native/cuda/paged*.cu.
// Arguments: "check", "time", "once" or "all".
#include "core/half.h"
#include "serving_common.cuh"

namespace {

struct Case {
  std::string note;
  std::vector<int> queries, lengths;
  int heads, key_heads, width, block, window = 0, padding = 0, before = 0, after = 0;  // tokens outside the sequences
  DType type = DType::bf16, cache = DType::bf16;
};

template <class T>
__global__ void fill(T* x, size_t n, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < n; i += size_t{256} * gridDim.x) {
    if constexpr (std::is_same_v<T, int8_t>) x[i] = static_cast<int8_t>(mix(i, seed));
    else x[i] = from_float<T>(noise(i, seed) * scale);
  }
}
__global__ void fill_scales(float* x, size_t n, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < n; i += size_t{256} * gridDim.x) {
    const float u = mix(i, seed) * 2.3283064e-10f;
    x[i] = i % 2 ? -2.f + 2.f * u : 0.002f + 0.02f * u;
  }
}
// Blocks of the cache that no sequence owns hold NaN.
template <class T>
__global__ void poison(T* x, size_t per_block, const int* owned) {
  if (owned[blockIdx.x]) return;
  for (size_t i = threadIdx.x; i < per_block; i += blockDim.x) x[blockIdx.x * per_block + i] = from_float<T>(NAN);
}

struct Data {
  Buffer q, k, v, ks, vs, table, cu, lengths, o;
  Case c;
  int tokens, sequences, columns, blocks;
  std::vector<View> in, out;
  std::vector<double> attr;
};

template <class F>
void by_type(DType t, F f) {
  if (t == DType::f32) f(float{});
  else if (t == DType::bf16) f(bf16{});
  else if (t == DType::f16) f(f16{});
  else f(int8_t{});
}

Data make(const Case& c, uint32_t seed, int extra_columns = 1) {
  Data d;
  d.c = c;
  d.sequences = static_cast<int>(c.queries.size());
  std::vector<int> cu = {c.before};
  for (int n : c.queries) cu.push_back(cu.back() + n);
  d.tokens = cu.back() + c.after;
  int longest = 0, used = 0;
  for (int n : c.lengths) longest = std::max(longest, n);
  d.columns = (longest + c.block - 1) / c.block + extra_columns;
  for (int n : c.lengths) used += (std::max(n, 0) + c.block - 1) / c.block;
  d.blocks = used + 3;
  std::vector<int> order(d.blocks), owned(d.blocks, 0), table(static_cast<size_t>(d.sequences) * d.columns, -1);
  for (int i = 0; i < d.blocks; i++) order[i] = i;
  for (int i = d.blocks - 1; i > 0; i--) std::swap(order[i], order[mix(i, seed) % (i + 1)]);
  int next = 0;
  for (int b = 0; b < d.sequences; b++)
    for (int j = 0; j * c.block < c.lengths[b]; j++) {
      const int first = c.window > 0 ? std::max(0, c.lengths[b] - c.queries[b] - c.window + 1) : 0;
      const int at = order[next++];
      if ((j + 1) * c.block <= first) continue;  // nobody looks there: no entry
      table[static_cast<size_t>(b) * d.columns + j] = at;
      owned[at] = 1;
    }
  const size_t n = static_cast<size_t>(d.blocks) * c.block * c.key_heads * c.width, rows = static_cast<size_t>(d.tokens);
  const int64_t q_stride = c.heads * c.width + c.padding;
  d.q = Buffer(rows * q_stride * dtype_bytes(c.type) + 16);
  d.k = Buffer(n * dtype_bytes(c.cache));
  d.v = Buffer(n * dtype_bytes(c.cache));
  d.table = Buffer(table);
  d.cu = Buffer(cu);
  d.lengths = Buffer(c.lengths);
  d.o = Buffer(rows * c.heads * c.width * dtype_bytes(c.type));
  const Buffer own(owned);
  by_type(c.type, [&](auto t) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, int8_t>) fill<<<512, 256>>>(static_cast<T*>(d.q.p), rows * q_stride, seed, 1.f);
  });
  by_type(c.cache, [&](auto t) {
    using T = decltype(t);
    fill<<<512, 256>>>(static_cast<T*>(d.k.p), n, seed + 1, 1.f);
    fill<<<512, 256>>>(static_cast<T*>(d.v.p), n, seed + 2, 1.f);
    if constexpr (!std::is_same_v<T, int8_t>) {
      poison<<<d.blocks, 128>>>(static_cast<T*>(d.k.p), n / d.blocks, static_cast<int*>(own.p));
      poison<<<d.blocks, 128>>>(static_cast<T*>(d.v.p), n / d.blocks, static_cast<int*>(own.p));
    }
  });
  const bool codes = c.cache == DType::i8;
  if (codes) {
    const size_t m = n / c.width * 2;
    d.ks = Buffer(m * 4);
    d.vs = Buffer(m * 4);
    fill_scales<<<512, 256>>>(static_cast<float*>(d.ks.p), m, seed + 3);
    fill_scales<<<512, 256>>>(static_cast<float*>(d.vs.p), m, seed + 4);
    poison<<<d.blocks, 128>>>(static_cast<float*>(d.ks.p), m / d.blocks, static_cast<int*>(own.p));
    poison<<<d.blocks, 128>>>(static_cast<float*>(d.vs.p), m / d.blocks, static_cast<int*>(own.p));
  }
  CHECK(cudaDeviceSynchronize());
  const std::vector<int64_t> cache = {d.blocks, c.block, c.key_heads, c.width}, scales = {d.blocks, c.block, c.key_heads, 2};
  const View none;
  d.in = {view(d.q, c.type, {d.tokens, c.heads, c.width}, q_stride), view(d.k, c.cache, cache), view(d.v, c.cache, cache),
          codes ? view(d.ks, DType::f32, scales) : none, codes ? view(d.vs, DType::f32, scales) : none,
          view(d.table, DType::i32, {d.sequences, d.columns}), view(d.cu, DType::i32, {d.sequences + 1}), view(d.lengths, DType::i32, {d.sequences})};
  d.out = {view(d.o, c.type, {d.tokens, c.heads, c.width})};
  d.attr = {1 / std::sqrt(static_cast<double>(c.width)), static_cast<double>(c.window)};
  return d;
}

// One block a (token, head), all in double.
struct Reference {
  int tokens, sequences, columns, heads, key_heads, width, block, window;
  int64_t q_stride, longest;
  double scale;
};
template <class T, class C>
__global__ void reference(Reference r, const T* q, const C* k, const C* v, const float2* ks, const float2* vs, const int* table, const int* cu,
                          const int* lengths, double* scores, double* o) {
  const int64_t t = blockIdx.x / r.heads, h = blockIdx.x % r.heads, kh = h / (r.heads / r.key_heads);
  int b = -1;
  for (int i = 0; i < r.sequences; i++)
    if (t >= cu[i] && t < cu[i + 1]) b = i;
  int64_t first = 0, last = 0;
  if (b >= 0) {
    const int64_t position = t - cu[b] + lengths[b] - (cu[b + 1] - cu[b]);
    last = min(static_cast<int64_t>(lengths[b]), position + 1);
    first = r.window > 0 ? max(int64_t{0}, position - r.window + 1) : 0;
  }
  double* s = scores + blockIdx.x * r.longest;
  const auto vector = [&](int64_t j) { return (static_cast<int64_t>(table[static_cast<int64_t>(b) * r.columns + j / r.block]) * r.block + j % r.block) * r.key_heads + kh; };
  const auto get = [&](const C* p, const float2* sc, int64_t at, int d) {
    if constexpr (std::is_same_v<C, int8_t>) return (p[at * r.width + d] + 128.) * sc[at].x + sc[at].y;
    else return static_cast<double>(to_float(p[at * r.width + d]));
  };
  for (int64_t j = first + threadIdx.x; j < last; j += blockDim.x) {
    double x = 0;
    const int64_t at = vector(j);
    for (int d = 0; d < r.width; d++) x += static_cast<double>(to_float(q[t * r.q_stride + h * r.width + d])) * get(k, ks, at, d);
    s[j - first] = x * r.scale;
  }
  __syncthreads();
  __shared__ double top, total;
  if (threadIdx.x == 0) {
    top = -INFINITY;
    for (int64_t j = 0; j < last - first; j++) top = fmax(top, s[j]);
  }
  __syncthreads();
  for (int64_t j = threadIdx.x; j < last - first; j += blockDim.x) s[j] = exp(s[j] - top);
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0;
    for (int64_t j = 0; j < last - first; j++) total += s[j];
  }
  __syncthreads();
  for (int d = threadIdx.x; d < r.width; d += blockDim.x) {
    double x = 0;
    for (int64_t j = first; j < last; j++) x += s[j - first] * get(v, vs, vector(j), d);
    o[(t * r.heads + h) * r.width + d] = last > first ? x / total : 0;
  }
}

std::vector<double> expected(const Data& d) {
  const Case& c = d.c;
  int longest = 1;
  for (int n : c.lengths) longest = std::max(longest, n);
  const size_t rows = static_cast<size_t>(d.tokens) * c.heads;
  Buffer scores(rows * longest * 8), o(rows * c.width * 8);
  const Reference r{d.tokens, d.sequences, d.columns, c.heads, c.key_heads, c.width, c.block, c.window, d.in[0].stride[0], longest, d.attr[0]};
  by_type(c.type, [&](auto t) {
    by_type(c.cache, [&](auto e) {
      using T = decltype(t);
      using C = decltype(e);
      if constexpr (!std::is_same_v<T, int8_t>)
        reference<T, C><<<static_cast<unsigned>(rows), 128>>>(r, static_cast<T*>(d.q.p), static_cast<C*>(d.k.p), static_cast<C*>(d.v.p),
                                                              static_cast<float2*>(d.ks.p), static_cast<float2*>(d.vs.p), static_cast<int*>(d.table.p),
                                                              static_cast<int*>(d.cu.p), static_cast<int*>(d.lengths.p), static_cast<double*>(scores.p),
                                                              static_cast<double*>(o.p));
    });
  });
  CHECK(cudaDeviceSynchronize());
  return o.read<double>();
}

std::vector<float> outputs(const Buffer& b, DType t) {
  std::vector<float> x;
  if (t == DType::f32) return b.read<float>();
  for (uint16_t h : b.read<uint16_t>()) x.push_back(t == DType::bf16 ? bf16_to_f32(h) : f16_to_f32(h));
  return x;
}

int failures = 0;

// Largest |got - want| / (|want| + rms of the row), with the op tests' tolerances. By rows: outputs over few keys are larger than over many.
void judge(const std::string& name, const std::vector<float>& got, const std::vector<double>& want, int width, DType t, bool print) {
  double error = 0, rms = 0;
  size_t where = 0;
  for (size_t i = 0; i < want.size(); i++) {
    if (i % width == 0) {
      rms = 0;
      for (int d = 0; d < width; d++) rms += want[i + d] * want[i + d];
      rms = std::sqrt(rms / width);
    }
    double e = std::fabs(got[i] - want[i]) / (std::fabs(want[i]) + rms);
    if (got[i] == want[i]) e = 0;
    if (!(e <= error)) error = std::isnan(e) ? INFINITY : e, where = i;
  }
  const double limit = t == DType::f32 ? 0x1p-17 : t == DType::bf16 ? 0x1p-7 : 0x1p-10;
  if (error > limit) failures++;
  if (error > limit || print)
    std::printf("%s %s: error %.2e of %.2e%s\n", error > limit ? "FAIL" : "ok  ", name.c_str(), error, limit,
                error > limit ? (" at " + std::to_string(where) + ": " + std::to_string(got[where]) + ", expected " + std::to_string(want[where])).c_str() : "");
}

CudaKernel attention, append;
void attend(Context& ctx, Data& d) { run_op(ctx, attention, op_paged_attention, d.in, d.out, d.attr); }

std::string name_of(const Case& c) {
  return c.note + " " + dtype_name(c.type) + "/" + dtype_name(c.cache) + " " + std::to_string(c.heads) + "/" + std::to_string(c.key_heads) + "x" +
         std::to_string(c.width) + " block " + std::to_string(c.block) + " window " + std::to_string(c.window);
}

void check_case(Context& ctx, const Case& c, uint32_t seed) {
  Data d = make(c, seed);
  CHECK(cudaMemset(d.o.p, 0xff, d.o.bytes));
  attend(ctx, d);
  CHECK(cudaStreamSynchronize(ctx.stream));
  const auto first = d.o.read<char>();
  judge(name_of(c), outputs(d.o, c.type), expected(d), c.width, c.type, false);
  CHECK(cudaMemset(d.o.p, 0xff, d.o.bytes));
  attend(ctx, d);
  CHECK(cudaStreamSynchronize(ctx.stream));
  if (first != d.o.read<char>()) {
    failures++;
    std::printf("FAIL %s: other bits in a second run\n", name_of(c).c_str());
  }
  if (const int f = take_fault(ctx)) {
    failures++;
    std::printf("FAIL %s: fault %d\n", name_of(c).c_str(), f);
  }
}

void check_attention(Context& ctx) {
  int count = 0;
  const auto with = [&](Case c) {
    for (const auto& [t, e] : std::vector<std::pair<DType, DType>>{{DType::bf16, DType::bf16}, {DType::f16, DType::f16}, {DType::f32, DType::f32},
                                                                   {DType::bf16, DType::i8}, {DType::f16, DType::i8}, {DType::f32, DType::i8},
                                                                   {DType::bf16, DType::f32}}) {
      c.type = t;
      c.cache = e;
      check_case(ctx, c, static_cast<uint32_t>(++count));
    }
  };
  struct Heads {
    int heads, key_heads, width;
  };
  for (const Heads& h : {Heads{4, 4, 64}, Heads{8, 2, 128}, Heads{7, 1, 128}, Heads{28, 4, 128}, Heads{12, 1, 64}, Heads{3, 1, 5}, Heads{2, 2, 80}, Heads{2, 1, 300}})
    for (const int block : {1, 16, 64}) {
      with({"decode", {1, 1, 1, 1, 1}, {1, 7, 130, 1029, 64}, h.heads, h.key_heads, h.width, block});
      with({"decode, lengths 0", {1, 1, 1, 1}, {0, 300, 0, 17}, h.heads, h.key_heads, h.width, block});
      with({"decode, window", {1, 1, 1}, {700, 20, 33}, h.heads, h.key_heads, h.width, block, 100});
    }
  for (const Heads& h : {Heads{4, 4, 64}, Heads{28, 4, 128}, Heads{7, 1, 128}, Heads{3, 1, 5}})
    for (const int block : {3, 16}) {
      with({"one long", {1}, {3000}, h.heads, h.key_heads, h.width, block});
      with({"as many tokens as sequences, unevenly", {3, 0, 1, 0}, {70, 5, 33, 0}, h.heads, h.key_heads, h.width, block});
      with({"prefill", {65, 130}, {65, 130}, h.heads, h.key_heads, h.width, block});
      with({"mixed", {1, 40, 0, 1, 7, 1}, {400, 300, 9, 17, 7, 1}, h.heads, h.key_heads, h.width, block});
      with({"more queries than keys", {20, 1}, {5, 3}, h.heads, h.key_heads, h.width, block});
      with({"window", {50, 1, 9}, {300, 200, 9}, h.heads, h.key_heads, h.width, block, 33});
      with({"tokens outside", {5, 1, 2}, {40, 200, 0}, h.heads, h.key_heads, h.width, block, 0, 0, 3, 4});
      with({"strided", {1, 1}, {90, 33}, h.heads, h.key_heads, h.width, block, 0, 9});
      with({"strided prefill", {9, 11}, {90, 33}, h.heads, h.key_heads, h.width, block, 0, 9});
    }
  // Many sequences of odd lengths, more than one launch's worth of units for the generic kernel.
  Case many{"many", {}, {}, 4, 1, 64, 16};
  for (int b = 0; b < 5000; b++) {
    many.queries.push_back(1);
    many.lengths.push_back(static_cast<int>(mix(b, 7) % 90));
  }
  check_case(ctx, many, 1);
  many.type = many.cache = DType::f32;
  check_case(ctx, many, 1);
  std::printf("%d attention cases\n", count + 2);

  // A captured step follows lengths that change.
  Case c{"graph", {1, 1, 1}, {900, 900, 900}, 28, 4, 128, 16};
  Data d = make(c, 3);
  attend(ctx, d);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamSynchronize(ctx.stream));
  CHECK(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeRelaxed));
  attend(ctx, d);
  CHECK(cudaStreamEndCapture(ctx.stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const std::vector<int>& lengths : {std::vector<int>{900, 1, 0}, std::vector<int>{10, 899, 450}}) {
    d.c.lengths = lengths;
    CHECK(cudaMemcpy(d.lengths.p, lengths.data(), lengths.size() * 4, cudaMemcpyHostToDevice));
    CHECK(cudaMemset(d.o.p, 0xff, d.o.bytes));
    CHECK(cudaGraphLaunch(exec, ctx.stream));
    CHECK(cudaStreamSynchronize(ctx.stream));
    judge("graph", outputs(d.o, c.type), expected(d), c.width, c.type, true);
  }
  // Bad data: faults, and nothing stops.
  const auto fault = [&](const char* what, int want) {
    const int got = take_fault(ctx);
    if (got != want) failures++;
    std::printf("%s fault: %s\n", got == want ? "ok  " : "FAIL", what);
  };
  for (const DType t : {DType::bf16, DType::f32})
    for (const int queries : {1, 70}) {
      Case bad{"bad", {queries, 1}, {100, 50}, 4, 2, 64, 16};
      bad.type = bad.cache = t;
      Data x = make(bad, 5, 0);
      std::vector<int> lengths = {113, 50}, boundaries = {0, queries + 5, queries + 1}, entries = x.table.read<int>();
      CHECK(cudaMemcpy(x.lengths.p, lengths.data(), 8, cudaMemcpyHostToDevice));
      attend(ctx, x);
      fault("kv length", static_cast<int>(Fault::kv_length));
      x = make(bad, 5, 0);
      entries[1] = 1 << 20;
      CHECK(cudaMemcpy(x.table.p, entries.data(), x.table.bytes, cudaMemcpyHostToDevice));
      attend(ctx, x);
      fault("block entry", static_cast<int>(Fault::block_entry));
      x = make(bad, 5, 0);
      CHECK(cudaMemcpy(x.cu.p, boundaries.data(), 12, cudaMemcpyHostToDevice));
      CHECK(cudaMemset(x.o.p, 0xff, x.o.bytes));
      attend(ctx, x);
      fault("boundaries", static_cast<int>(Fault::boundaries));
      for (float v : outputs(x.o, t))
        if (v != 0.f) {
          failures++;
          std::printf("FAIL outputs without sound boundaries must be 0\n");
          break;
        }
    }
}

// ---- kv_append ----------------------------------------------------------------------------------------------------------------

float element(const std::vector<char>& x, DType t, size_t i) {
  if (t == DType::f32) return reinterpret_cast<const float*>(x.data())[i];
  const uint16_t h = reinterpret_cast<const uint16_t*>(x.data())[i];
  return t == DType::bf16 ? bf16_to_f32(h) : f16_to_f32(h);
}

void check_append(Context& ctx) {
  int count = 0;
  for (const DType t : {DType::f32, DType::bf16, DType::f16})
    for (const DType e : {DType::f32, DType::bf16, DType::f16, DType::i8})
      for (const int width : {5, 64, 128, 200})
        for (const int padding : {0, 3, 8}) {
          const int tokens = 37, heads = 3, blocks = 7, block = 6, stride = heads * width + padding;
          std::vector<int> slots(tokens);
          for (int i = 0; i < tokens; i++) slots[i] = i % 5 == 1 ? -1 - i : (i * 11) % (blocks * block);
          Buffer x(tokens * stride * dtype_bytes(t)), cache(static_cast<size_t>(blocks) * block * heads * width * dtype_bytes(e)),
              scales(static_cast<size_t>(blocks) * block * heads * 8), slot(slots);
          by_type(t, [&](auto z) {
            using T = decltype(z);
            if constexpr (!std::is_same_v<T, int8_t>) fill<<<64, 256>>>(static_cast<T*>(x.p), tokens * stride, 9, 2.f);
          });
          if (t == DType::f32 && padding == 0) CHECK(cudaMemset(x.p, 0, width * 4));  // a constant vector
          CHECK(cudaMemset(cache.p, 0x5a, cache.bytes));
          CHECK(cudaMemset(scales.p, 0x5a, scales.bytes));
          CHECK(cudaDeviceSynchronize());
          auto want = cache.read<char>();
          auto want_scales = scales.read<float>();
          const auto from = x.read<char>();
          for (int i = 0; i < tokens; i++)
            for (int h = 0; h < heads && slots[i] >= 0; h++) {
              const size_t vector = static_cast<size_t>(slots[i]) * heads + h;
              const auto get = [&](int d) { return element(from, t, static_cast<size_t>(i) * stride + h * width + d); };
              if (e != DType::i8) {
                for (int d = 0; d < width; d++) {
                  const size_t at = vector * width + d;
                  if (e == DType::f32) reinterpret_cast<float*>(want.data())[at] = get(d);
                  else reinterpret_cast<uint16_t*>(want.data())[at] = e == DType::bf16 ? f32_to_bf16(get(d)) : f32_to_f16(get(d));
                }
                continue;
              }
              float low = INFINITY, high = -INFINITY;
              for (int d = 0; d < width; d++) low = std::min(low, get(d)), high = std::max(high, get(d));
              const float scale = (high - low) / 255.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
              want_scales[2 * vector] = scale;
              want_scales[2 * vector + 1] = low;
              for (int d = 0; d < width; d++) {
                volatile float product = (get(d) - low) * inverse;
                want[vector * width + d] = static_cast<char>(static_cast<int8_t>(std::max(-128.0f, std::min(127.0f, std::nearbyint(product) - 128.0f))));
              }
            }
          const View none;
          run_op(ctx, append, op_kv_append,
                 {view(cache, e, {blocks, block, heads, width}), e == DType::i8 ? view(scales, DType::f32, {blocks, block, heads, 2}) : none,
                  view(x, t, {tokens, heads, width}, stride), view(slot, DType::i32, {tokens})},
                 {});
          CHECK(cudaStreamSynchronize(ctx.stream));
          count++;
          const auto got_scales = scales.read<float>();
          if (cache.read<char>() != want || std::memcmp(got_scales.data(), want_scales.data(), scales.bytes) != 0 || take_fault(ctx) != 0) {
            failures++;
            std::printf("FAIL kv_append %s to %s width %d padding %d\n", dtype_name(t), dtype_name(e), width, padding);
          }
        }
  std::printf("%d kv_append cases\n", count);
}

// ---- timings ------------------------------------------------------------------------------------------------------------------

double copy_rate() {
  const size_t n = size_t{1} << 30;
  Buffer a(n), b(n);
  cudaEvent_t s, e;
  CHECK(cudaEventCreate(&s));
  CHECK(cudaEventCreate(&e));
  float best = 1e30f;
  for (int i = 0; i < 5; i++) {
    float ms;
    CHECK(cudaEventRecord(s));
    CHECK(cudaMemcpyAsync(a.p, b.p, n, cudaMemcpyDeviceToDevice));
    CHECK(cudaEventRecord(e));
    CHECK(cudaEventSynchronize(e));
    CHECK(cudaEventElapsedTime(&ms, s, e));
    best = std::min(best, ms);
  }
  return 2 * n / (best * 1e6);
}

void time_all(Context& ctx) {
  const double copy = copy_rate();
  std::printf("copy %.0f GB/s\n", copy);
  for (const DType cache : {DType::bf16, DType::i8})
    for (const auto& [batch, length] : std::vector<std::pair<int, int>>{{1, 4096}, {1, 16384}, {8, 4096}, {64, 1024}, {64, 4096}, {64, 16384}}) {
      Case c{"", std::vector<int>(batch, 1), std::vector<int>(batch, length), 28, 4, 128, 16};
      c.cache = cache;
      const double bytes = 2. * batch * length * 4 * (cache == DType::i8 ? 128 + 8 : 256);
      // Several copies for short work, so that the L2 cache holds none of it.
      const int copies = std::max(1, static_cast<int>(250e6 / bytes) + (bytes < 250e6));
      std::vector<Data> d;
      for (int i = 0; i < copies; i++) d.push_back(make(c, 1));
      for (int i = 1; i < copies; i++) std::copy(d[0].in.begin() + 5, d[0].in.end(), d[i].in.begin() + 5);  // layers share the block table
      if (batch == 64 && length == 4096) {
        attend(ctx, d[0]);
        CHECK(cudaStreamSynchronize(ctx.stream));
        judge(name_of(c), outputs(d[0].o, c.type), expected(d[0]), c.width, c.type, true);
      }
      const float us = time_graph(ctx, std::max(copies, 5), [&](int i) { attend(ctx, d[i % copies]); });
      std::printf("decode %s B %d, %d keys: %.1f us, %.0f GB/s, %.0f %% of copy\n", dtype_name(cache), batch, length, us, bytes / us / 1e3, bytes / us / 1e3 / copy * 100);
    }
  {
    Case c{"", std::vector<int>(64, 1), {}, 28, 4, 128, 16};
    double keys = 0;
    for (int b = 0; b < 64; b++) c.lengths.push_back(b == 0 ? 30000 : 200 + static_cast<int>(mix(b, 3) % 4000)), keys += c.lengths.back();
    Data d = make(c, 1);
    const float us = time_graph(ctx, 5, [&](int) { attend(ctx, d); });
    const double rate = keys * 4 * 512 / us / 1e3;
    std::printf("decode bf16 B 64, uneven lengths (one of 30000): %.1f us, %.0f GB/s, %.0f %% of copy\n", us, rate, rate / copy * 100);
  }
  {
    Case c{"", std::vector<int>(8, 1), std::vector<int>(8, 4096), 16, 16, 64, 16};
    c.type = c.cache = DType::f32;
    Data d = make(c, 1);
    const float us = time_graph(ctx, 5, [&](int) { attend(ctx, d); });
    std::printf("decode f32 B 8, 4096 keys, 16/16x64: %.1f us, %.0f GB/s\n", us, 8. * 4096 * 16 * 64 * 8 / us / 1e3);
  }
  for (const DType cache : {DType::bf16, DType::i8})
    for (const auto& [batch, queries, length] : std::vector<std::tuple<int, int, int>>{{4, 2048, 2048}, {1, 8192, 8192}, {4, 512, 4096}, {16, 5, 4096}}) {
      Case c{"", std::vector<int>(batch, queries), std::vector<int>(batch, length), 28, 4, 128, 16};
      c.cache = cache;
      Data d = make(c, 1);
      const float us = time_graph(ctx, 5, [&](int) { attend(ctx, d); });
      const double pairs = static_cast<double>(batch) * queries * (length - (queries - 1) / 2.);
      std::printf("prefill %s %d x %d queries, %d keys: %.1f us, %.0f TFLOP/s\n", dtype_name(cache), batch, queries, length, us, pairs * 28 * 128 * 4 / us / 1e6);
    }
  for (const int tokens : {1, 64, 8192}) {
    for (const DType e : {DType::bf16, DType::i8}) {
      std::vector<int> slots(tokens);
      for (int i = 0; i < tokens; i++) slots[i] = i;
      Buffer x(static_cast<size_t>(tokens) * 512 * 2), cache(static_cast<size_t>(8192) * 512 * dtype_bytes(e)), scales(8192 * 4 * 8), slot(slots);
      fill<<<512, 256>>>(static_cast<bf16*>(x.p), static_cast<size_t>(tokens) * 512, 1, 1.f);
      const View none;
      const float us = time_graph(ctx, 20, [&](int) {
        run_op(ctx, append, op_kv_append,
               {view(cache, e, {512, 16, 4, 128}), e == DType::i8 ? view(scales, DType::f32, {512, 16, 4, 2}) : none, view(x, DType::bf16, {tokens, 4, 128}), view(slot, DType::i32, {tokens})}, {});
      });
      std::printf("kv_append %s, %d tokens: %.2f us\n", dtype_name(e), tokens, us);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  once = what == "once";
  Context ctx = make_context();
  attention = kernel_of(cuda_paged, cuda_paged_count, op_paged_attention);
  append = kernel_of(cuda_paged, cuda_paged_count, op_kv_append);
  if (what == "check" || what == "all") {
    check_append(ctx);
    check_attention(ctx);
  }
  if (what != "check") time_all(ctx);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
