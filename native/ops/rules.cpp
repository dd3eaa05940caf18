// Shape rules: what each op of ops.def accepts and returns. One rule serves every device. In the order of ops.def.
#include <cmath>

#include "core/error.h"
#include "core/submit.h"
#include "cpu/packed.h"
#include "gen/ops.h"

namespace llm {

namespace {

int64_t numel(const View& v) { return view_numel(v); }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr DType f32 = DType::f32, i32 = DType::i32, u8 = DType::u8, i8 = DType::i8;

void float_like(Infer& c) {  // one float input, one output like it
  c.expect_float(0);
  c.out_like(0);
}

void two_alike(Infer& c) {
  c.expect_float(0);
  c.expect_same_shape(1, 0);
  c.expect_same_dtype(1, 0);
  c.out_like(0);
}

void broadcast(Infer& c) {
  c.expect_float(0);
  c.expect_same_dtype(1, 0);
  const View &a = c.in[0], &b = c.in[1];
  bool same = a.ndim == b.ndim;
  for (int d = 0; same && d < a.ndim; d++) same = a.shape[d] == b.shape[d];
  const bool row = b.ndim == 1 && a.ndim > 0 && b.shape[0] == a.shape[a.ndim - 1];
  if (!same && !row && numel(b) != 1) c.fail_shape(1, "of the shape of a, [last dim of a], or one element");
  c.out_like(0);
}

void in_place(Infer& c) { c.expect_float(0); }

void concat_rows(Infer& c) {
  if (c.n_in == 0) throw Error(Code::shape, "[concat_rows] needs at least one tensor");
  View v = c.in[0];
  if (v.ndim < 1) c.fail_shape(0, "at least 1-dimensional");
  int64_t rows = 0;
  for (int i = 0; i < c.n_in; i++) {
    c.expect_same_dtype(i, 0);
    if (c.in[i].ndim != v.ndim) c.fail_shape(i, std::to_string(v.ndim) + "-dimensional");
    for (int d = 1; d < v.ndim; d++) {
      if (c.in[i].shape[d] != v.shape[d]) c.fail_shape(i, "equal to x[0] but for its first dim");
    }
    rows += c.in[i].shape[0];
  }
  c.out_like(0);
  c.outs[0].shape[0] = rows;
}

void concat_cols(Infer& c) {
  if (c.n_in == 0) throw Error(Code::shape, "[concat_cols] needs at least one tensor");
  int64_t cols = 0;
  for (int i = 0; i < c.n_in; i++) {
    c.expect_shape(i, {c.dim(0, 0), -1});
    c.expect_same_dtype(i, 0);
    cols += c.dim(i, 1);
  }
  c.out(c.in[0].dtype, {c.dim(0, 0), cols});
}

void matmul_dims(const Infer& c, int a, int b, bool trans_a, bool trans_b, int64_t& m, int64_t& n) {
  c.expect_ndim(a, 2);
  c.expect_ndim(b, 2);
  c.expect_float(a);
  c.expect_float(b);
  m = c.dim(a, trans_a ? 1 : 0);
  const int64_t k = c.dim(a, trans_a ? 0 : 1);
  n = c.dim(b, trans_b ? 0 : 1);
  if (c.dim(b, trans_b ? 1 : 0) != k) {
    const std::string inner = std::to_string(k);
    c.fail_shape(b, trans_b ? std::string("[any, ").append(inner).append("]") : std::string("[").append(inner).append(", any]"));
  }
}

void matmul(Infer& c) {
  int64_t m, n;
  matmul_dims(c, 0, 1, c.attr[0] != 0, c.attr[1] != 0, m, n);
  if (c.has(2)) {
    c.expect_shape(2, {n});
    c.expect_float(2);
  }
  c.out(c.dtype_attr(2), {m, n});
}

void matmul_acc(Infer& c) {
  int64_t m, n;
  matmul_dims(c, 1, 2, c.attr[0] != 0, c.attr[1] != 0, m, n);
  c.expect_float(0);
  c.expect_shape(0, {m, n});
}

void embedding(Infer& c) {
  c.expect_ndim(0, 1);
  c.expect_dtype(0, i32);
  c.expect_ndim(1, 2);
  c.expect_float(1);
  c.out(c.in[1].dtype, {c.dim(0, 0), c.dim(1, 1)});
}

void embedding_bwd(Infer& c) {
  c.expect_ndim(0, 2);
  c.expect_float(0);
  c.expect_shape(1, {c.dim(0, 0)});
  c.expect_dtype(1, i32);
  c.expect_shape(2, {-1, c.dim(0, 1)});
  c.expect_float(2);
}

int64_t rows_of(const View& v) {
  int64_t rows = 1;
  for (int d = 0; d + 1 < v.ndim; d++) rows *= v.shape[d];
  return rows;
}

void rms_norm(Infer& c) {
  c.expect_float(0);
  if (c.in[0].ndim < 1) c.fail_shape(0, "at least 1-dimensional");
  c.expect_shape(1, {c.dim(0, -1)});
  c.expect_same_dtype(1, 0);
  c.out_like(0);
  c.out(f32, {rows_of(c.in[0])});
}

void add_rms_norm(Infer& c) {
  c.expect_float(0);
  if (c.in[0].ndim < 1) c.fail_shape(0, "at least 1-dimensional");
  c.expect_same_shape(1, 0);
  c.expect_same_dtype(1, 0);
  c.expect_shape(2, {c.dim(0, -1)});
  c.expect_same_dtype(2, 0);
  c.out_like(0);
  c.out_like(0);
  c.out(f32, {rows_of(c.in[0])});
}

void rms_norm_bwd(Infer& c) {
  c.expect_float(1);
  c.expect_same_shape(0, 1);
  c.expect_same_dtype(0, 1);
  c.expect_shape(2, {c.dim(1, -1)});
  c.expect_same_dtype(2, 1);
  c.expect_shape(3, {rows_of(c.in[1])});
  c.expect_dtype(3, f32);
  if (c.has(4)) {
    c.expect_same_shape(4, 1);
    c.expect_same_dtype(4, 1);
  }
  c.out_like(1);
  c.out(f32, {c.attr[0] != 0 ? c.dim(1, -1) : 1});
}

void rope(Infer& c) {
  c.expect_ndim(0, 3);
  c.expect_float(0);
  const int64_t half = c.dim(0, 2) / 2;
  if (c.dim(0, 2) % 2) c.fail_shape(0, "[tokens, heads, even head width]");
  c.expect_shape(1, {-1, half});
  c.expect_dtype(1, f32);
  c.expect_shape(2, {c.dim(1, 0), half});
  c.expect_dtype(2, f32);
  c.expect_shape(3, {c.dim(0, 0)});
  c.expect_dtype(3, i32);
  c.out_like(0);
}

void swiglu(Infer& c) {
  c.expect_ndim(0, 2);
  c.expect_float(0);
  if (c.dim(0, 1) % 2) c.fail_shape(0, "[tokens, even width]");
  c.out(c.in[0].dtype, {c.dim(0, 0), c.dim(0, 1) / 2});
}

void swiglu_bwd(Infer& c) {
  c.expect_ndim(1, 2);
  c.expect_float(1);
  c.expect_shape(0, {c.dim(1, 0), c.dim(1, 1) / 2});
  c.expect_same_dtype(0, 1);
  c.out_like(1);
}

void attention_inputs(const Infer& c, int q, int k, int v, int cu_q, int cu_k) {
  c.expect_ndim(q, 3);
  c.expect_float(q);
  c.expect_shape(k, {-1, -1, c.dim(q, 2)});
  c.expect_same_dtype(k, q);
  c.expect_same_shape(v, k);
  c.expect_same_dtype(v, q);
  if (c.dim(k, 1) == 0 || c.dim(q, 1) % c.dim(k, 1)) c.fail_shape(k, "of a head count that divides " + std::to_string(c.dim(q, 1)));
  c.expect_ndim(cu_q, 1);
  if (c.dim(cu_q, 0) < 1) c.fail_shape(cu_q, "[sequences + 1]");
  c.expect_dtype(cu_q, i32);
  c.expect_same_shape(cu_k, cu_q);
  c.expect_dtype(cu_k, i32);
}

void attention(Infer& c) {
  attention_inputs(c, 0, 1, 2, 3, 4);
  c.out_like(0);
  c.out(f32, {c.dim(0, 1), c.dim(0, 0)});
}

void attention_bwd(Infer& c) {
  attention_inputs(c, 1, 2, 3, 6, 7);
  for (int i : {0, 4}) {
    c.expect_same_shape(i, 1);
    c.expect_same_dtype(i, 1);
  }
  c.expect_shape(5, {c.dim(1, 1), c.dim(1, 0)});
  c.expect_dtype(5, f32);
  for (int i : {1, 2, 3}) c.out_like(i);
}

void loss_inputs(const Infer& c, int labels, int weights) {
  c.expect_ndim(0, 2);
  c.expect_float(0);
  c.expect_shape(labels, {c.dim(0, 0)});
  c.expect_dtype(labels, i32);
  if (weights < 0 || !c.has(weights)) return;
  c.expect_shape(weights, {c.dim(0, 0)});
  c.expect_dtype(weights, f32);
}

void cross_entropy(Infer& c) {
  loss_inputs(c, 1, 2);
  c.out(f32, {c.dim(0, 0)});
}

void distill(Infer& c) {
  loss_inputs(c, 2, 3);
  c.expect_shape(1, {c.dim(0, 0), -1});
  c.expect_float(1);
  c.expect_attr(c.attr[0] > 0, "temperature must be > 0");
  c.expect_attr(c.attr[1] >= 0 && c.attr[1] <= 1, "alpha must be in [0, 1]");
  c.out(f32, {c.dim(0, 0)});
  c.out(f32, {c.dim(0, 0)});
}

void token_logprobs(Infer& c) {
  loss_inputs(c, 1, -1);
  c.out(f32, {c.dim(0, 0)});
  c.out(i32, {c.dim(0, 0)});
}

void optimizer_step(Infer& c, int64_t hyper, int master, bool moments) {
  c.expect_shape(0, {hyper});
  c.expect_dtype(0, f32);
  c.expect_shape(1, {1});
  c.expect_dtype(1, f32);
  c.expect_float(2);
  for (int i = 3; i < c.n_in; i++) {
    if (!c.has(i)) {
      if (i == 3 || (moments && i < master)) c.fail_shape(i, "given");
      continue;
    }
    c.expect_same_shape(i, 2);
    c.expect_dtype(i, f32);
  }
  if (c.in[2].dtype != f32 && !c.has(master)) c.fail_shape(master, "given when p is not f32");
}

void group_attr(const Infer& c, double group) { c.expect_attr(group >= 1 && group == std::floor(group), "group must be a positive integer"); }

void quantize_w4(Infer& c) {
  c.expect_ndim(0, 2);
  c.expect_float(0);
  group_attr(c, c.attr[0]);
  const int64_t n = c.dim(0, 0), k = c.dim(0, 1), groups = ceil_div(k, static_cast<int64_t>(c.attr[0]));
  if (k % 2) c.fail_shape(0, "[out features, even in features]");
  c.out(u8, {n, k / 2});
  c.out(f32, {n, groups});
  c.out(u8, {n, groups});
}

int64_t check_w4(const Infer& c, double group) {
  group_attr(c, group);
  c.expect_ndim(0, 2);
  c.expect_dtype(0, u8);
  const int64_t n = c.dim(0, 0), k = c.dim(0, 1) * 2, groups = ceil_div(k, static_cast<int64_t>(group));
  c.expect_shape(1, {n, groups});
  c.expect_dtype(1, f32);
  c.expect_shape(2, {n, groups});
  c.expect_dtype(2, u8);
  return k;
}

int64_t check_q8(const Infer& c, double group) {
  group_attr(c, group);
  c.expect_ndim(0, 2);
  c.expect_dtype(0, i8);
  const int64_t k = c.dim(0, 1);
  c.expect_shape(1, {c.dim(0, 0), ceil_div(k, static_cast<int64_t>(group))});
  c.expect_dtype(1, f32);
  return k;
}

void check_fp8(const Infer& c, int q) {
  c.expect_ndim(q, 2);
  c.expect_dtype(q, u8);
  c.expect_shape(q + 1, {c.dim(q, 0)});
  c.expect_dtype(q + 1, f32);
}

void linear_packed(Infer& c, int64_t bytes) {
  const int64_t n = static_cast<int64_t>(c.attr[0]), k = static_cast<int64_t>(c.attr[1]);
  c.expect_shape(0, {-1, k});
  c.expect_float(0);
  c.expect_shape(1, {bytes});
  c.expect_dtype(1, u8);
  c.expect_attr(c.attr[3] == 0 || c.attr[3] == 1, "mode must be 0 (exact) or 1 (int8 activations)");
  if (c.has(2)) {
    c.expect_shape(2, {n});
    c.expect_float(2);
  }
  c.out(c.in[0].dtype, {c.dim(0, 0), n});
}

void paged_cache(const Infer& c, int cache, int scales, int64_t heads, int64_t width) {
  c.expect_shape(cache, {-1, -1, heads, width});
  const DType t = c.in[cache].dtype;
  if (!is_float(t)) c.expect_dtype(cache, i8);
  if (t == i8) {
    if (!c.has(scales)) c.fail_shape(scales, "given for an i8 cache");
    c.expect_shape(scales, {c.dim(cache, 0), c.dim(cache, 1), heads, 2});
    c.expect_dtype(scales, f32);
  }
}

ShapeRule rules[op_count];

bool fill_rules() {
  const auto set = [](Op op, ShapeRule rule) { rules[op] = rule; };
  for (Op op : {op_add, op_sub, op_mul}) set(op, broadcast);
  for (Op op : {op_scale, op_silu, op_softmax, op_contiguous}) set(op, float_like);
  set(op_contiguous, [](Infer& c) { c.out_like(0); });
  set(op_axpy, [](Infer& c) { c.expect_float(0); c.expect_float(1); c.expect_same_shape(1, 0); });
  set(op_mul_scalar_tensor, [](Infer& c) { c.expect_float(0); c.expect_shape(1, {1}); c.expect_dtype(1, f32); c.out_like(0); });
  set(op_fill, [](Infer&) {});
  set(op_copy, [](Infer& c) {
    c.expect_same_shape(1, 0);
    if (!is_float(c.in[0].dtype) || !is_float(c.in[1].dtype)) c.expect_same_dtype(1, 0);
  });
  set(op_cast, [](Infer& c) {
    c.expect_float(0);
    c.out_like(0, c.dtype_attr(0));
  });
  set(op_transpose, [](Infer& c) { c.expect_ndim(0, 2); c.out(c.in[0].dtype, {c.dim(0, 1), c.dim(0, 0)}); });
  set(op_concat_rows, concat_rows);
  set(op_concat_cols, concat_cols);
  set(op_gather_rows, [](Infer& c) {
    if (c.in[0].ndim < 1) c.fail_shape(0, "at least 1-dimensional");
    c.expect_ndim(1, 1);
    c.expect_dtype(1, i32);
    c.out_like(0);
    c.outs[0].shape[0] = c.dim(1, 0);
  });
  set(op_sum, [](Infer& c) { c.expect_float(0); c.out(f32, {1}); });
  for (Op op : {op_sum_rows, op_mean_abs_cols, op_max_abs_cols}) {
    set(op, [](Infer& c) { c.expect_ndim(0, 2); c.expect_float(0); c.out(f32, {c.dim(0, 1)}); });
  }
  set(op_mse, [](Infer& c) { c.expect_float(0); c.expect_float(1); c.expect_same_shape(1, 0); c.out(f32, {1}); });
  set(op_mul_cols, [](Infer& c) { c.expect_float(0); c.expect_shape(1, {c.dim(0, -1)}); c.expect_dtype(1, f32); c.out_like(0); });
  set(op_silu_bwd, two_alike);
  set(op_log_softmax, [](Infer& c) { c.expect_float(0); c.out_like(0, f32); });
  set(op_argmax, [](Infer& c) { c.expect_ndim(0, 2); c.expect_float(0); c.out(i32, {c.dim(0, 0)}); });
  set(op_topk, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_float(0);
    c.expect_attr(c.attr[0] >= 1 && c.attr[0] <= 1024, "k must be in 1..1024");
    const int64_t k = static_cast<int64_t>(c.attr[0]);
    c.out(f32, {c.dim(0, 0), k});
    c.out(i32, {c.dim(0, 0), k});
  });
  set(op_fill_normal, in_place);
  set(op_fill_uniform, in_place);
  set(op_dropout, [](Infer& c) { c.expect_attr(c.attr[0] >= 0 && c.attr[0] < 1, "p must be in [0, 1)"); float_like(c); });
  set(op_matmul, matmul);
  set(op_matmul_acc, matmul_acc);
  set(op_embedding, embedding);
  set(op_embedding_bwd, embedding_bwd);
  set(op_rms_norm, rms_norm);
  set(op_add_rms_norm, add_rms_norm);
  set(op_rms_norm_bwd, rms_norm_bwd);
  set(op_rope, rope);
  set(op_swiglu, swiglu);
  set(op_swiglu_bwd, swiglu_bwd);
  set(op_attention, attention);
  set(op_attention_bwd, attention_bwd);
  set(op_cross_entropy, cross_entropy);
  set(op_cross_entropy_inplace, cross_entropy);
  set(op_distill_inplace, distill);
  set(op_token_logprobs, token_logprobs);
  set(op_global_norm, [](Infer& c) {
    for (int i = 0; i < c.n_in; i++) c.expect_dtype(i, f32);
    c.out(f32, {1});
  });
  set(op_clip_coefficient, [](Infer& c) {
    c.expect_shape(0, {1});
    c.expect_shape(1, {2});
    for (int i : {0, 1}) c.expect_dtype(i, f32);
    c.out(f32, {1});
  });
  set(op_adamw, [](Infer& c) { optimizer_step(c, 7, 6, true); });
  set(op_sgd, [](Infer& c) { optimizer_step(c, 3, 5, false); });
  set(op_quantize_w4, quantize_w4);
  set(op_dequantize_w4, [](Infer& c) {
    const int64_t k = check_w4(c, c.attr[0]);
    c.out(c.dtype_attr(1), {c.dim(0, 0), k});
  });
  set(op_repack_w4, [](Infer& c) {
    const int64_t k = check_w4(c, c.attr[0]);
    c.out(u8, {packed_w4_bytes(c.dim(0, 0), k, static_cast<int64_t>(c.attr[0]))});
  });
  set(op_linear_w4, [](Infer& c) {
    group_attr(c, c.attr[2]);
    c.expect_attr(static_cast<int64_t>(c.attr[1]) % 2 == 0, "c must be even");
    linear_packed(c, packed_w4_bytes(static_cast<int64_t>(c.attr[0]), static_cast<int64_t>(c.attr[1]), static_cast<int64_t>(c.attr[2])));
  });
  set(op_quantize_q8, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_float(0);
    group_attr(c, c.attr[0]);
    c.out(i8, {c.dim(0, 0), c.dim(0, 1)});
    c.out(f32, {c.dim(0, 0), ceil_div(c.dim(0, 1), static_cast<int64_t>(c.attr[0]))});
  });
  set(op_dequantize_q8, [](Infer& c) {
    const int64_t k = check_q8(c, c.attr[0]);
    c.out(c.dtype_attr(1), {c.dim(0, 0), k});
  });
  set(op_repack_q8, [](Infer& c) {
    const int64_t k = check_q8(c, c.attr[0]);
    c.out(u8, {packed_q8_bytes(c.dim(0, 0), k, static_cast<int64_t>(c.attr[0]))});
  });
  set(op_linear_q8, [](Infer& c) {
    group_attr(c, c.attr[2]);
    linear_packed(c, packed_q8_bytes(static_cast<int64_t>(c.attr[0]), static_cast<int64_t>(c.attr[1]), static_cast<int64_t>(c.attr[2])));
  });
  set(op_quantize_nf4, [](Infer& c) {
    c.expect_float(0);
    group_attr(c, c.attr[0]);
    const int64_t n = numel(c.in[0]);
    if (n % 2) c.fail_shape(0, "of an even number of elements");
    c.out(u8, {n / 2});
    c.out(f32, {ceil_div(n, static_cast<int64_t>(c.attr[0]))});
  });
  set(op_dequantize_nf4, [](Infer& c) {
    group_attr(c, c.attr[0]);
    const int64_t rows = static_cast<int64_t>(c.attr[2]), cols = static_cast<int64_t>(c.attr[3]);
    c.expect_dtype(0, u8);
    c.expect_shape(0, {rows * cols / 2});
    c.expect_dtype(1, f32);
    c.expect_shape(1, {ceil_div(rows * cols, static_cast<int64_t>(c.attr[0]))});
    c.out(c.dtype_attr(1), {rows, cols});
  });
  set(op_quantize_fp8, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_float(0);
    c.out(u8, {c.dim(0, 0), c.dim(0, 1)});
    c.out(f32, {c.dim(0, 0)});
  });
  set(op_dequantize_fp8, [](Infer& c) {
    check_fp8(c, 0);
    c.out(c.dtype_attr(0), {c.dim(0, 0), c.dim(0, 1)});
  });
  set(op_linear_fp8, [](Infer& c) {
    c.expect_float(0);
    check_fp8(c, 1);
    c.expect_shape(0, {-1, c.dim(1, 1)});
    if (c.has(3)) {
      c.expect_shape(3, {c.dim(1, 0)});
      c.expect_same_dtype(3, 0);
    }
    c.out(c.in[0].dtype, {c.dim(0, 0), c.dim(1, 0)});
  });
  set(op_linear_fp8_bwd, [](Infer& c) {
    c.expect_float(0);
    check_fp8(c, 1);
    c.expect_shape(0, {-1, c.dim(1, 0)});
    c.out(c.in[0].dtype, {c.dim(0, 0), c.dim(1, 1)});
  });
  set(op_awq_clip_search, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_dtype(0, f32);
    c.expect_shape(1, {-1, c.dim(0, 1)});
    c.expect_dtype(1, f32);
    group_attr(c, c.attr[0]);
    c.out(f32, {c.dim(0, 0), ceil_div(c.dim(0, 1), static_cast<int64_t>(c.attr[0]))});
  });
  set(op_kv_append, [](Infer& c) {
    c.expect_ndim(2, 3);
    c.expect_float(2);
    paged_cache(c, 0, 1, c.dim(2, 1), c.dim(2, 2));
    c.expect_shape(3, {c.dim(2, 0)});
    c.expect_dtype(3, i32);
  });
  set(op_paged_attention, [](Infer& c) {
    c.expect_ndim(0, 3);
    c.expect_float(0);
    c.expect_ndim(1, 4);
    const int64_t heads = c.dim(1, 2);
    paged_cache(c, 1, 3, heads, c.dim(0, 2));
    paged_cache(c, 2, 4, heads, c.dim(0, 2));
    c.expect_same_shape(2, 1);
    c.expect_same_dtype(2, 1);
    if (heads == 0 || c.dim(0, 1) % heads) c.fail_shape(1, "of a head count that divides " + std::to_string(c.dim(0, 1)));
    c.expect_ndim(7, 1);
    const int64_t sequences = c.dim(7, 0);
    c.expect_shape(5, {sequences, -1});
    c.expect_shape(6, {sequences + 1});
    for (int i : {5, 6, 7}) c.expect_dtype(i, i32);
    c.out_like(0);
  });
  set(op_apply_penalties, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_dtype(0, f32);
    const int64_t b = c.dim(0, 0);
    c.expect_shape(1, {b, -1});
    c.expect_shape(2, {b});
    c.expect_shape(3, {b});
    for (int i : {1, 2, 3}) c.expect_dtype(i, i32);
    c.expect_shape(4, {b, 8});
    c.expect_dtype(4, f32);
  });
  set(op_sample, [](Infer& c) {
    c.expect_ndim(0, 2);
    c.expect_float(0);
    const int64_t b = c.dim(0, 0);
    c.expect_shape(1, {b, 8});
    c.expect_dtype(1, f32);
    c.expect_shape(2, {b, 2});
    c.expect_dtype(2, i32);
    c.expect_shape(3, {b});
    c.expect_dtype(3, i32);
    c.out(i32, {b});
    c.out(f32, {b});
  });
  return true;
}

}  // namespace

ShapeRule shape_rule(int op) {
  static const bool filled = fill_rules();
  (void)filled;
  if (!rules[op]) throw Error(Code::internal, std::string("[") + kOps[op].name + "] has no shape rule");
  return rules[op];
}

}  // namespace llm
