// Generated from native/ops.def by native/scripts/gen.mjs. Do not edit.
// Bare calls into the native core: no gradients. The differentiable ops are in src/ops/.
import { submit } from "../native.js";
import type { Tensor } from "../tensor.js";

/** Must equal what the addon reports. */
export const abi = 8005488;

export const opNames: readonly string[] = ["add","sub","mul","scale","axpy","mul_scalar_tensor","fill","copy","cast","contiguous","transpose","concat_rows","concat_cols","gather_rows","sum","sum_rows","mean_abs_cols","max_abs_cols","mse","mul_cols","silu","silu_bwd","softmax","log_softmax","argmax","topk","fill_normal","fill_uniform","dropout","matmul","matmul_acc","embedding","embedding_bwd","rms_norm","add_rms_norm","rms_norm_bwd","rope","swiglu","swiglu_bwd","attention","attention_bwd","cross_entropy","cross_entropy_inplace","distill_inplace","token_logprobs","global_norm","clip_coefficient","adamw","sgd","quantize_w4","dequantize_w4","repack_w4","linear_w4","quantize_q8","dequantize_q8","repack_q8","linear_q8","quantize_nf4","dequantize_nf4","quantize_fp8","dequantize_fp8","linear_fp8","linear_fp8_bwd","awq_clip_search","kv_append","paged_attention","apply_penalties","sample"];

/** y = a + b; b may be [N] against a [.., N], or one element */
export function add(a: Tensor, b: Tensor): Tensor {
  return submit(0, [a, b], [])[0]!;
}

/** y = a - b, same broadcasting as add */
export function sub(a: Tensor, b: Tensor): Tensor {
  return submit(1, [a, b], [])[0]!;
}

/** y = a * b, same broadcasting as add */
export function mul(a: Tensor, b: Tensor): Tensor {
  return submit(2, [a, b], [])[0]!;
}

/** y = factor * x */
export function scale(x: Tensor, factor: number): Tensor {
  return submit(3, [x], [factor])[0]!;
}

/** y += alpha * x, in place; y and x have the same shape, any float dtypes; they overlap wholly or not at all */
export function axpy(y: Tensor, x: Tensor, alpha: number): void {
  submit(4, [y, x], [alpha]);
}

/** y = x * s[0], s f32 [1] */
export function mulScalarTensor(x: Tensor, s: Tensor): Tensor {
  return submit(5, [x, s], [])[0]!;
}

/** every element = value */
export function fill(x: Tensor, value: number): void {
  submit(6, [x], [value]);
}

/** dst = src with a cast; same shape */
export function copy(dst: Tensor, src: Tensor): void {
  submit(7, [dst, src], []);
}

/** y = x in another float dtype, round to nearest even */
export function cast(x: Tensor, dtype: number): Tensor {
  return submit(8, [x], [dtype])[0]!;
}

/** dense copy of a strided view */
export function contiguous(x: Tensor): Tensor {
  return submit(9, [x], [])[0]!;
}

/** [R, C] to [C, R] */
export function transpose(x: Tensor): Tensor {
  return submit(10, [x], [])[0]!;
}

/** stack along the first dim */
export function concatRows(x: readonly Tensor[]): Tensor {
  return submit(11, x, [])[0]!;
}

/** [T, Ni] side by side: [T, sum Ni] */
export function concatCols(x: readonly Tensor[]): Tensor {
  return submit(12, x, [])[0]!;
}

/** y[i] = x[rows[i]], rows i32 [M] */
export function gatherRows(x: Tensor, rows: Tensor): Tensor {
  return submit(13, [x, rows], [])[0]!;
}

/** sum of all elements, f32 [1] */
export function sum(x: Tensor): Tensor {
  return submit(14, [x], [])[0]!;
}

/** column sums of [T, N]: f32 [N] */
export function sumRows(x: Tensor): Tensor {
  return submit(15, [x], [])[0]!;
}

/** mean over rows of |x| per column: f32 [N] */
export function meanAbsCols(x: Tensor): Tensor {
  return submit(16, [x], [])[0]!;
}

/** largest |x| per column: f32 [N] */
export function maxAbsCols(x: Tensor): Tensor {
  return submit(17, [x], [])[0]!;
}

/** mean of squared differences, f32 [1] */
export function mse(a: Tensor, b: Tensor): Tensor {
  return submit(18, [a, b], [])[0]!;
}

/** y[.., c] = x[.., c] * s[c] (or / s[c] when invert = 1), s f32 [N] */
export function mulCols(x: Tensor, s: Tensor, invert: number): Tensor {
  return submit(19, [x, s], [invert])[0]!;
}

/** x * sigmoid(x) */
export function silu(x: Tensor): Tensor {
  return submit(20, [x], [])[0]!;
}

/** gradient of silu */
export function siluBwd(dy: Tensor, x: Tensor): Tensor {
  return submit(21, [dy, x], [])[0]!;
}

/** over the last dim, statistics in f32 */
export function softmax(x: Tensor): Tensor {
  return submit(22, [x], [])[0]!;
}

/** over the last dim, f32 out */
export function logSoftmax(x: Tensor): Tensor {
  return submit(23, [x], [])[0]!;
}

/** over the last dim of [R, C]; ties give the lowest index; i32 [R] */
export function argmax(x: Tensor): Tensor {
  return submit(24, [x], [])[0]!;
}

/** of each row [R, C], descending, ties by lower index: f32 [R, k], i32 [R, k] */
export function topk(x: Tensor, k: number): [values: Tensor, indices: Tensor] {
  return submit(25, [x], [k]) as [Tensor, Tensor];
}

/** normal by Box-Muller */
export function fillNormal(x: Tensor, mean: number, std: number, seed: number, stream: number): void {
  submit(26, [x], [mean, std, seed, stream]);
}

/** uniform in [low, high) */
export function fillUniform(x: Tensor, low: number, high: number, seed: number, stream: number): void {
  submit(27, [x], [low, high, seed, stream]);
}

/** y = x * keep / (1 - p); its gradient is dropout(dy) with the same key */
export function dropout(x: Tensor, p: number, seed: number, stream: number): Tensor {
  return submit(28, [x], [p, seed, stream])[0]!;
}

/** y = op(a) op(b) + bias; op(a) [M, K], op(b) [K, N]; f32 accumulation; dtype = that of y */
export function matmul(a: Tensor, b: Tensor, bias: Tensor | null, transA: number, transB: number, dtype: number): Tensor {
  return submit(29, [a, b, bias], [transA, transB, dtype])[0]!;
}

/** c = alpha op(a) op(b) + beta c, in place */
export function matmulAcc(c: Tensor, a: Tensor, b: Tensor, transA: number, transB: number, alpha: number, beta: number): void {
  submit(30, [c, a, b], [transA, transB, alpha, beta]);
}

/** y[t] = weight[ids[t]]: [T, C] */
export function embedding(ids: Tensor, weight: Tensor): Tensor {
  return submit(31, [ids, weight], [])[0]!;
}

/** dweight[ids[t]] += dy[t], in order of t; dweight f32 or bf16 [V, C] */
export function embeddingBwd(dy: Tensor, ids: Tensor, dweight: Tensor): void {
  submit(32, [dy, ids, dweight], []);
}

/** y = x * rstd * weight over the last dim, rstd = 1/sqrt(mean(x^2) + eps) f32 [rows] */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): [y: Tensor, rstd: Tensor] {
  return submit(33, [x, weight], [eps]) as [Tensor, Tensor];
}

/** sum = x + residual; y = rms_norm(sum) */
export function addRmsNorm(x: Tensor, residual: Tensor, weight: Tensor, eps: number): [y: Tensor, sum: Tensor, rstd: Tensor] {
  return submit(34, [x, residual, weight], [eps]) as [Tensor, Tensor, Tensor];
}

/** dx (+ dsum); dweight f32 [C] (zeros [1] when not needed) */
export function rmsNormBwd(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, dsum: Tensor | null, needDweight: number): [dx: Tensor, dweight: Tensor] {
  return submit(35, [dy, x, weight, rstd, dsum], [needDweight]) as [Tensor, Tensor];
}

/** x [T, H, D]: rotate halves by the angle of positions[t]; cos, sin f32 [P, D/2]; inverse = 1 is the gradient */
export function rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, inverse: number): Tensor {
  return submit(36, [x, cos, sin, positions], [inverse])[0]!;
}

/** x = [gate, up] [T, 2I]: y = silu(gate) * up [T, I] */
export function swiglu(x: Tensor): Tensor {
  return submit(37, [x], [])[0]!;
}

/** [T, 2I] */
export function swigluBwd(dy: Tensor, x: Tensor): Tensor {
  return submit(38, [dy, x], [])[0]!;
}

/** packed sequences: q [Tq, H, D], k, v [Tk, K, D], boundaries i32 [B+1]; o [Tq, H, D], lse f32 [H, Tq]; causal aligns the ends of each sequence */
export function attention(q: Tensor, k: Tensor, v: Tensor, cuQ: Tensor, cuK: Tensor, scale: number, causal: number, window: number): [o: Tensor, lse: Tensor] {
  return submit(39, [q, k, v, cuQ, cuK], [scale, causal, window]) as [Tensor, Tensor];
}

/** Gradient of attention. */
export function attentionBwd(dO: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, cuQ: Tensor, cuK: Tensor, scale: number, causal: number, window: number): [dq: Tensor, dk: Tensor, dv: Tensor] {
  return submit(40, [dO, q, k, v, o, lse, cuQ, cuK], [scale, causal, window]) as [Tensor, Tensor, Tensor];
}

/** nll[t] = weight * -log softmax(logits[t])[label]: f32 [T] */
export function crossEntropy(logits: Tensor, labels: Tensor, weights: Tensor | null): Tensor {
  return submit(41, [logits, labels, weights], [])[0]!;
}

/** as cross_entropy; logits becomes weight * (softmax - onehot), the gradient */
export function crossEntropyInplace(logits: Tensor, labels: Tensor, weights: Tensor | null): Tensor {
  return submit(42, [logits, labels, weights], [])[0]!;
}

/** student becomes d(alpha T^2 KL + (1-alpha) CE)/dlogits; kind 0 forward KL, 1 reverse KL; hard 0 labels, 1 teacher argmax, f32 [T] each; both already weighted */
export function distillInplace(student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor | null, temperature: number, alpha: number, kind: number, hard: number): [kl: Tensor, ce: Tensor] {
  return submit(43, [student, teacher, labels, weights], [temperature, alpha, kind, hard]) as [Tensor, Tensor];
}

/** log softmax(logits[t])[ids[t]] f32 [T]; greedy i32 [T] = 1 when ids[t] is the argmax */
export function tokenLogprobs(logits: Tensor, ids: Tensor): [logprob: Tensor, greedy: Tensor] {
  return submit(44, [logits, ids], []) as [Tensor, Tensor];
}

/** sqrt of the sum of squares over all tensors, f32 [1], fixed order */
export function globalNorm(g: readonly Tensor[]): Tensor {
  return submit(45, g, [])[0]!;
}

/** limits = [max_norm, scale]: c = scale * min(1, max_norm / (scale * norm + 1e-6)), f32 [1]; max_norm 0 = no clipping */
export function clipCoefficient(norm: Tensor, limits: Tensor): Tensor {
  return submit(46, [norm, limits], [])[0]!;
}

/** one parameter: hyper f32 [7]: lr beta1 beta2 eps weight_decay 1-beta1^t 1-beta2^t; g is multiplied by coefficient[0] */
export function adamw(hyper: Tensor, coefficient: Tensor, p: Tensor, g: Tensor, m: Tensor, v: Tensor, master: Tensor | null): void {
  submit(47, [hyper, coefficient, p, g, m, v, master], []);
}

/** hyper f32 [3]: lr momentum weight_decay */
export function sgd(hyper: Tensor, coefficient: Tensor, p: Tensor, g: Tensor, m: Tensor | null, master: Tensor | null): void {
  submit(48, [hyper, coefficient, p, g, m, master], []);
}

/** round to nearest, half to even; min/max per group */
export function quantizeW4(w: Tensor, group: number, symmetric: number): [q: Tensor, scales: Tensor, zeros: Tensor] {
  return submit(49, [w], [group, symmetric]) as [Tensor, Tensor, Tensor];
}

/** [N, C] */
export function dequantizeW4(q: Tensor, scales: Tensor, zeros: Tensor, group: number, dtype: number): Tensor {
  return submit(50, [q, scales, zeros], [group, dtype])[0]!;
}

/** opaque layout of this device's kernel, u8 [bytes] */
export function repackW4(q: Tensor, scales: Tensor, zeros: Tensor, group: number): Tensor {
  return submit(51, [q, scales, zeros], [group])[0]!;
}

/** y = x w^T + bias; mode 0 exact (dequantized f32), 1 int8 activations in blocks of 32 */
export function linearW4(x: Tensor, packed: Tensor, bias: Tensor | null, n: number, c: number, group: number, mode: number): Tensor {
  return submit(52, [x, packed, bias], [n, c, group, mode])[0]!;
}

/** i8 [N, C], f32 [N, G], absmax / 127 */
export function quantizeQ8(w: Tensor, group: number): [q: Tensor, scales: Tensor] {
  return submit(53, [w], [group]) as [Tensor, Tensor];
}

/** w = q * scale, [N, C] */
export function dequantizeQ8(q: Tensor, scales: Tensor, group: number, dtype: number): Tensor {
  return submit(54, [q, scales], [group, dtype])[0]!;
}

/** opaque layout of this device's kernel, u8 [bytes] */
export function repackQ8(q: Tensor, scales: Tensor, group: number): Tensor {
  return submit(55, [q, scales], [group])[0]!;
}

/** y = x w^T + bias; modes as in linear_w4 */
export function linearQ8(x: Tensor, packed: Tensor, bias: Tensor | null, n: number, c: number, group: number, mode: number): Tensor {
  return submit(56, [x, packed, bias], [n, c, group, mode])[0]!;
}

/** NF4 codes, two to a byte, first element in the high nibble (Dettmers 2023): u8 [numel/2], f32 [blocks] */
export function quantizeNf4(x: Tensor, block: number): [q: Tensor, absmax: Tensor] {
  return submit(57, [x], [block]) as [Tensor, Tensor];
}

/** [rows, cols] */
export function dequantizeNf4(q: Tensor, absmax: Tensor, block: number, dtype: number, rows: number, cols: number): Tensor {
  return submit(58, [q, absmax], [block, dtype, rows, cols])[0]!;
}

/** e4m3 codes, round to nearest even, and a scale a row: amax = max(|x|, 1e-30), scale = amax / 448, q = e4m3(x * (448 / amax)): u8 [R, C], f32 [R] */
export function quantizeFp8(x: Tensor): [q: Tensor, scale: Tensor] {
  return submit(59, [x], []) as [Tensor, Tensor];
}

/** w = e4m3 value * scale of its row, [R, C] */
export function dequantizeFp8(q: Tensor, scale: Tensor, dtype: number): Tensor {
  return submit(60, [q, scale], [dtype])[0]!;
}

/** y = x w^T + bias with the rows of x quantized as in quantize_fp8: exact products of codes, f32 sums, both scales, one rounding */
export function linearFp8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | null): Tensor {
  return submit(61, [x, q, scale, bias], [])[0]!;
}

/** dx = dy w for w [N, C]: the scale of w is multiplied into dy before its rows are quantized as in quantize_fp8 */
export function linearFp8Bwd(dy: Tensor, q: Tensor, scale: Tensor): Tensor {
  return submit(62, [dy, q, scale], [])[0]!;
}

/** best symmetric clip per row and group against inputs x [S, C]: f32 [N, G] */
export function awqClipSearch(w: Tensor, x: Tensor, group: number, grid: number, shrink: number): Tensor {
  return submit(63, [w, x], [group, grid, shrink])[0]!;
}

/** row t of x [T, K, D] to slot slots[t] = block * block_size + offset; negative = skip; no slot twice */
export function kvAppend(cache: Tensor, scales: Tensor | null, x: Tensor, slots: Tensor): void {
  submit(64, [cache, scales, x, slots], []);
}

/** block_table i32 [B, M], kv_lengths i32 [B] including this step's tokens */
export function pagedAttention(q: Tensor, kCache: Tensor, vCache: Tensor, kScales: Tensor | null, vScales: Tensor | null, blockTable: Tensor, cuQ: Tensor, kvLengths: Tensor, scale: number, window: number): Tensor {
  return submit(65, [q, kCache, vCache, kScales, vScales, blockTable, cuQ, kvLengths], [scale, window])[0]!;
}

/** history i32 [B, L] prompt then output; params f32 [B, 8]: temperature top_k top_p min_p repetition presence frequency - */
export function applyPenalties(logits: Tensor, history: Tensor, historyLengths: Tensor, promptLengths: Tensor, params: Tensor): void {
  submit(66, [logits, history, historyLengths, promptLengths, params], []);
}

/** seeds i32 [B, 2], steps i32 [B]; temperature 0 = argmax; ids i32 [B], logprob of the raw distribution f32 [B] */
export function sample(logits: Tensor, params: Tensor, seeds: Tensor, steps: Tensor): [ids: Tensor, logprob: Tensor] {
  return submit(67, [logits, params, seeds, steps], []) as [Tensor, Tensor];
}
