// Finds, at the head of a list of commands, what a decoder's step is made of, and hands it to one kernel:
//
//     [rms_norm | add_rms_norm]  matmul  [swiglu | add]                 row_product (gemm/row.h), for a single row; also the product alone
//     rope  rope  kv_append  kv_append  paged_attention                 paged_step (paged.cuh), for a few tokens
//
// Tensors are the same where their memory is; where a reshaped one would mean something else, shapes are compared too. The fused
// kernel writes every output of every command, so nobody has to know whether one is used later. What it must not do is write, in one
// block, what another block has yet to read: memory of a Plan is reused, and an output may lie where an input lay. Such commands run
// one by one.
#include "cuda/fuse.h"

#include <cstdlib>

#include "cuda/gemm/row.h"
#include "cuda/paged.cuh"

namespace llm::cuda {
namespace {

// The memory that a fused kernel reads and writes.
class Footprint {
 public:
  void reads(const View& v) { add(v, false); }
  void writes(const View& v) { add(v, true); }
  // Whether nothing written is also read from outside or written twice.
  bool sound() const {
    for (int i = 0; i < count_; i++)
      for (int j = 0; j < i; j++)
        if ((spans_[i].written || spans_[j].written) && spans_[i].begin < spans_[j].end && spans_[j].begin < spans_[i].end) return false;
    return true;
  }

 private:
  struct Span {
    const char *begin, *end;
    bool written;
  };
  void add(const View& v, bool written) {
    if (!present(v)) return;
    const Bytes b = bytes_of(v);
    spans_[count_++] = {b.begin, b.end, written};
  }
  Span spans_[24];
  int count_ = 0;
};

bool same_tensor(const View& a, const View& b) {
  if (a.data != b.data || a.dtype != b.dtype || view_numel(a) != view_numel(b)) return false;
  return is_one_piece(a) && is_one_piece(b);
}
bool half_width(DType t) { return t == DType::bf16 || t == DType::f16; }
bool is_one_row(const View& v) { return view_numel(v) > 0 && view_numel(v) == last_dim(v); }

// [norm] matmul [swiglu | add] of one row; `with_norm` and `with_tail` say which of the two to look for.
bool match_row(const Context& ctx, const PluginCommand* c, int n, bool with_norm, bool with_tail, RowProduct& p, DType& type, int& taken) {
  Footprint memory;
  p = {};
  taken = 1 + with_norm + with_tail;
  if (n < taken || c[with_norm].op != op_matmul) return false;
  const KernelArgs& product = c[with_norm].args;
  const View &x = product.in[0], &w = product.in[1], &y = product.out[0];
  if (product.attr[0] != 0 || product.attr[1] == 0 || !is_one_row(x)) return false;
  type = x.dtype;
  if (!half_width(type) || w.dtype != type) return false;
  p.w = w.data;
  p.ldw = w.shape[0] == 1 ? w.shape[1] : w.stride[0];
  if (w.shape[0] >= INT32_MAX || w.shape[1] >= INT32_MAX) return false;
  p.n = static_cast<int>(w.shape[0]);
  p.k = static_cast<int>(w.shape[1]);
  p.x = x.data;
  p.e = {y.data, p.n, y.dtype, nullptr, DType::f32, 1.f, 0.f, false};
  memory.reads(w);
  memory.writes(y);
  if (product.n_in > 2 && present(product.in[2])) {
    p.e.bias = product.in[2].data;
    p.e.dtype_bias = product.in[2].dtype;
    memory.reads(product.in[2]);
  }
  p.settled = ctx.settled(w);

  if (with_norm) {
    const bool adds = c[0].op == op_add_rms_norm;
    const KernelArgs& norm = c[0].args;
    if ((!adds && c[0].op != op_rms_norm) || !is_one_row(norm.in[0]) || !same_tensor(norm.out[0], x)) return false;
    p.x = norm.in[0].data;
    memory.reads(norm.in[0]);
    memory.writes(norm.out[0]);
    p.normed = norm.out[0].data;
    if (adds) {
      p.residual = norm.in[1].data;
      p.sum = norm.out[1].data;
      memory.reads(norm.in[1]);
      memory.writes(norm.out[1]);
    }
    const View &weight = norm.in[adds ? 2 : 1], &rstd = norm.out[adds ? 2 : 1];
    p.norm = weight.data;
    p.rstd = data_of<float>(rstd);
    p.eps = static_cast<float>(norm.attr[0]);
    memory.reads(weight);
    memory.writes(rstd);
  } else {
    memory.reads(x);
  }

  if (with_tail) {
    const PluginCommand& tail = c[with_norm + 1];
    if (y.dtype != type || (tail.op != op_swiglu && tail.op != op_add)) return false;
    const View *in = tail.args.in, &out = tail.args.out[0];
    if (tail.op == op_swiglu) {
      if (!is_one_row(in[0]) || !same_tensor(in[0], y)) return false;
      p.gated = out.data;
    } else {
      const int own = same_tensor(in[0], y) ? 0 : 1;
      const View& other = in[1 - own];
      if (!same_tensor(in[own], y) || other.dtype != type || view_numel(other) != view_numel(y) || !is_one_piece(other)) return false;
      p.other = other.data;
      p.added = out.data;
      memory.reads(other);
    }
    memory.writes(out);
  }
  return memory.sound() && can_row_product(ctx, type, p);
}

const char* run_row(Context& ctx, const PluginCommand* c, int n, int* taken) {
  RowProduct p;
  DType type;
  const bool norm = c->op == op_rms_norm || c->op == op_add_rms_norm;
  if (!norm && c->op != op_matmul) return nullptr;
  for (const bool tail : {true, false}) {
    int count;
    if (!match_row(ctx, c, n, norm, tail, p, type, count)) continue;
    ctx.op = op_matmul;
    *taken = count;
    return row_product(ctx, type, p);
  }
  return nullptr;
}

// One side of the pair rope, rope: over the whole width, forwards.
bool match_rope(const KernelArgs& k, const View& cache, Footprint& memory, PagedFresh::Rope& to) {
  const View &x = k.in[0], &y = k.out[0];
  if (k.attr[0] != 0 || x.dtype != cache.dtype || x.shape[2] != cache.shape[3] || k.in[1].shape[0] == 0) return false;
  to = {x.data, y.data, x.stride[0], k.in[1].shape[0], data_of<float>(k.in[1]), data_of<float>(k.in[2]), data_of<int32_t>(k.in[3])};
  for (int i = 0; i < 4; i++) memory.reads(k.in[i]);
  memory.writes(y);
  return aligned16(x.data) && aligned16(y.data) && (x.shape[0] == 1 || x.stride[0] % 8 == 0);
}

const char* run_attention(Context& ctx, const PluginCommand* c, int n, int* taken) {
  constexpr int ops[] = {op_rope, op_rope, op_kv_append, op_kv_append, op_paged_attention};
  constexpr int count = sizeof ops / sizeof *ops;
  if (n < count) return nullptr;
  for (int i = 0; i < count; i++)
    if (c[i].op != ops[i]) return nullptr;
  const KernelArgs &q = c[0].args, &k = c[1].args, &keys = c[2].args, &values = c[3].args, &attention = c[4].args;
  const View &k_cache = attention.in[1], &v_cache = attention.in[2], &v = values.in[2];
  if (!same_tensor(q.out[0], attention.in[0]) || !same_tensor(k.out[0], keys.in[2])) return nullptr;
  if (!same_tensor(keys.in[0], k_cache) || !same_tensor(values.in[0], v_cache) || k_cache.dtype != q.in[0].dtype) return nullptr;
  if (v.dtype != k_cache.dtype || !aligned16(v.data) || (v.shape[0] > 1 && v.stride[0] % 8 != 0)) return nullptr;
  for (const View* t : {&attention.in[0], &k.in[0], &keys.in[2], &v})
    if (t->shape[0] != q.in[0].shape[0]) return nullptr;

  Footprint memory;
  PagedFresh f{};
  if (!match_rope(q, k_cache, memory, f.q) || !match_rope(k, k_cache, memory, f.k)) return nullptr;
  f.v = v.data;
  f.v_stride = v.stride[0];
  f.k_slots = data_of<int>(keys.in[3]);
  f.v_slots = data_of<int>(values.in[3]);
  f.slots = k_cache.shape[0] * k_cache.shape[1];
  memory.reads(v);
  memory.reads(keys.in[3]);
  memory.reads(values.in[3]);
  for (int i = 5; i < 8; i++) memory.reads(attention.in[i]);
  memory.writes(k_cache);
  memory.writes(v_cache);
  memory.writes(attention.out[0]);
  if (!memory.sound()) return nullptr;

  PagedArgs a{};
  ctx.op = op_rope;
  f.bad_position = ctx.code(Fault::position);
  ctx.op = op_kv_append;
  f.bad_slot = ctx.code(Fault::slot);
  ctx.op = op_paged_attention;
  const bool fits = paged_args(ctx, attention, a) == nullptr && can_paged_step(ctx, a);
  if (!fits) {
    ctx.op = c->op;
    return nullptr;
  }
  for (int i = 1; i < 4; i++) a.settled = a.settled && ctx.settled(q.in[i]) && ctx.settled(k.in[i]);
  a.settled = a.settled && ctx.settled(keys.in[3]) && ctx.settled(values.in[3]);
  *taken = count;
  return paged_step(ctx, a, &f);
}

}  // namespace

const char* run_fused(Context& ctx, const PluginCommand* commands, int n, int* taken) {
  *taken = 0;
  // LLM_CUDA_FUSE=0 runs every command by itself, to compare.
  static const char* const wanted = std::getenv("LLM_CUDA_FUSE");
  if (n < 2 || (wanted && *wanted == '0')) return nullptr;
  return commands->op == op_rope ? run_attention(ctx, commands, n, taken) : run_row(ctx, commands, n, taken);
}

}  // namespace llm::cuda
