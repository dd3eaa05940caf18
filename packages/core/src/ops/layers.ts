/** Differentiable building blocks of a decoder. T tokens, H query heads, K key/value heads, D head width, C channels, I inner width. */
import { needsGrad, record, rememberRecipe } from "../autograd.js";
import * as raw from "../gen/ops.js";
import type { Tensor } from "../tensor.js";

/**
 * Rows of a table: y[t] = weight[ids[t]].
 * @param ids     i32 [T], each in [0, V)
 * @param weight  [V, C]
 * @returns       [T, C]
 * @throws {NumericError} at the next read, when an id is outside the table
 */
export function embedding(ids: Tensor, weight: Tensor): Tensor {
  const y = raw.embedding(ids, weight);
  const shape = weight.shape;
  record("embedding", [y], [weight], [ids], ([dy], [ids_], c) => {
    c.accumulate(0, shape, (grad) => raw.embeddingBwd(dy!, ids_!, grad));
    return [null];
  });
  return y;
}

/**
 * RMS norm over the last dim: y = x / √(mean(x²) + eps) · weight.
 * @param x       [..., C] f32 | f16 | bf16; statistics in f32
 * @param weight  [C], dtype of x
 * @throws {ShapeError} weight is not [C]
 * @see Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  const [y, rstd] = raw.rmsNorm(x, weight, eps);
  record("rmsNorm", [y], [x, weight], [x, weight, rstd], ([dy], [x_, w, r], c) => {
    const [dx, dw] = raw.rmsNormBwd(dy!, x_!, w!, r!, null, c.needs(1) ? 1 : 0);
    return [dx, c.needs(1) ? dw : null];
  });
  rememberRecipe(y, [x, weight], ([x_, w]) => raw.rmsNorm(x_!, w!, eps)[0]);
  return y;
}

/**
 * Residual addition and RMS norm in one pass: sum = x + residual, y = rmsNorm(sum).
 * @returns [y, sum], both [T, C]
 */
export function addRmsNorm(x: Tensor, residual: Tensor, weight: Tensor, eps: number): [y: Tensor, sum: Tensor] {
  const [y, sum, rstd] = raw.addRmsNorm(x, residual, weight, eps);
  record("addRmsNorm", [y, sum], [x, residual, weight], [sum, weight, rstd], ([dy, dsum], [s, w, r], c) => {
    if (!dy) return [dsum!, dsum!, null];
    const [dx, dw] = raw.rmsNormBwd(dy, s!, w!, r!, dsum ?? null, c.needs(2) ? 1 : 0);
    return [dx, dx, c.needs(2) ? dw : null];
  });
  rememberRecipe(y, [sum, weight], ([s, w]) => raw.rmsNorm(s!, w!, eps)[0]);
  return [y, sum];
}

/**
 * Rotary position embedding, rotating the two halves of each head: (a, b) → (a·cos − b·sin, b·cos + a·sin).
 * @param x          [T, H, D], D even; rows may be strided
 * @param cos, sin   f32 [positions, D/2]
 * @param positions  i32 [T]
 * @see Su et al. 2021, arXiv:2104.09864, eq. 34, in the half-split form of transformers' `rotate_half`
 */
export function rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor): Tensor {
  const y = raw.rope(x, cos, sin, positions, 0);
  record("rope", [y], [x], [cos, sin, positions], ([dy], [c, s, p]) => [raw.rope(dy!, c!, s!, p!, 1)]);
  return y;
}

/**
 * Gated activation: x = [gate, up] side by side, y = silu(gate) · up.
 * @param x  [T, 2I]
 * @returns  [T, I]
 * @see Shazeer 2020, arXiv:2002.05202, eq. 6
 */
export function swiglu(x: Tensor): Tensor {
  const y = raw.swiglu(x);
  record("swiglu", [y], [x], [x], ([dy], [x_]) => [raw.swigluBwd(dy!, x_!)]);
  rememberRecipe(y, [x], ([x_]) => raw.swiglu(x_!));
  return y;
}

export interface AttentionOptions {
  /** Multiplies q·k; usually 1/√D. */
  scale: number;
  /** @default true */
  causal?: boolean;
  /** A query sees only this many last keys, itself included; 0 = all. @default 0 */
  window?: number;
}

/**
 * Grouped-query attention over packed sequences: o = softmax(scale · q kᵀ) v inside each sequence, never across.
 * With `causal` the ends of a sequence's queries and keys are aligned.
 * @param q                [Tq, H, D]
 * @param k, v             [Tk, K, D], K divides H
 * @param cuSeqlensQ, cuSeqlensK  i32 [B+1] boundaries, first 0, last Tq / Tk
 * @returns                [Tq, H, D]
 * @see Dao 2023, arXiv:2307.08691; Ainslie et al. 2023, arXiv:2305.13245
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  cuSeqlensQ: Tensor,
  cuSeqlensK: Tensor,
  options: AttentionOptions,
): Tensor {
  const causal = options.causal === false ? 0 : 1;
  const window = options.window ?? 0;
  const [o, lse] = raw.attention(q, k, v, cuSeqlensQ, cuSeqlensK, options.scale, causal, window);
  if (needsGrad(q) || needsGrad(k) || needsGrad(v)) {
    record(
      "attention",
      [o],
      [q, k, v],
      [q, k, v, o, lse, cuSeqlensQ, cuSeqlensK],
      ([dO], [q_, k_, v_, o_, l, cq, ck]) =>
        raw.attentionBwd(dO!, q_!, k_!, v_!, o_!, l!, cq!, ck!, options.scale, causal, window),
    );
  }
  return o;
}

/**
 * Inverted dropout: y = x · keep / (1 − p), keep drawn from a counter-based generator by (seed, stream), so that recomputation and
 * any device give the same mask.
 * @param p  probability of dropping, in [0, 1)
 * @see Srivastava et al. 2014; Salmon et al. 2011 (Philox)
 */
export function dropout(x: Tensor, p: number, seed: number, stream: number): Tensor {
  if (p === 0) return x;
  const y = raw.dropout(x, p, seed, stream);
  record("dropout", [y], [x], [], ([dy]) => [raw.dropout(dy!, p, seed, stream)]);
  return y;
}
