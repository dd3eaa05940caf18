/** Matrix products. M, T rows; N out features; C in features; r adapter rank. */
import { type BackwardContext, needsGrad, record } from "../autograd.js";
import { type DType, dtypes } from "../dtype.js";
import * as raw from "../gen/ops.js";
import type { Tensor } from "../tensor.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/**
 * y = op(a) · op(b), f32 accumulation.
 * @param a  [M, C], or [C, M] with transA
 * @param b  [C, N], or [N, C] with transB
 * @returns  [M, N] in a's dtype
 * @throws {ShapeError} inner lengths differ
 */
export function matmul(a: Tensor, b: Tensor, options: { transA?: boolean; transB?: boolean } = {}): Tensor {
  const { transA = false, transB = false } = options;
  const y = raw.matmul(a, b, null, transA ? 1 : 0, transB ? 1 : 0, code(a.dtype));
  record("matmul", [y], [a, b], [a, b], ([dy], [a_, b_], c) => {
    const product = (p: Tensor, q: Tensor, tp: boolean, tq: boolean, i: number): void => {
      c.accumulate(i, (i === 0 ? a_! : b_!).shape, (grad) => raw.matmulAcc(grad, p, q, tp ? 1 : 0, tq ? 1 : 0, 1, 1));
    };
    if (c.needs(0)) {
      if (transA) product(b_!, dy!, transB, true, 0);
      else product(dy!, b_!, false, !transB, 0);
    }
    if (c.needs(1)) {
      if (transB) product(dy!, a_!, true, transA, 1);
      else product(a_!, dy!, !transA, false, 1);
    }
    return [null, null];
  });
  return y;
}

/** A low-rank update of columns [offset, offset + N) of a linear's output: y += scale · (x Aᵀ) Bᵀ. */
export interface LowRank {
  /** [r, C] */
  a: Tensor;
  /** [N, r] */
  b: Tensor;
  scale: number;
  offset: number;
  /** x after dropout, when this adapter uses dropout. */
  x?: Tensor;
}

/** What produces the base of a linear and its gradient with respect to x; the weight may be of any storage. */
export interface LinearBase {
  /** [T, N] = x Wᵀ + bias */
  forward(x: Tensor): Tensor;
  /** dx [T, C] = dy W, for dense weights in place of `dense`. */
  backward(dy: Tensor): Tensor;
}

/**
 * y = x Wᵀ + bias + Σ scaleᵢ (x Aᵢᵀ) Bᵢᵀ: one node for a linear (or several side by side) and its adapters; B·A is never formed.
 * @param x     [T, C]
 * @param base  dense weight [N, C] with optional bias [N], or a LinearBase for quantized storage
 * @returns     [T, N] in x's dtype
 * @see Hu et al. 2021, arXiv:2106.09685
 */
export function linear(
  x: Tensor,
  base: { weight: Tensor; bias: Tensor | null } | LinearBase,
  lowRank: readonly LowRank[] = [],
): Tensor {
  const dense = "weight" in base ? base : undefined;
  const y = dense ? raw.matmul(x, dense.weight, dense.bias, 0, 1, code(x.dtype)) : (base as LinearBase).forward(x);
  // Adapters kept in another dtype than the activations (f32 masters) compute in the activations' dtype.
  const same = (t: Tensor): Tensor => (t.dtype === x.dtype ? t : raw.cast(t, code(x.dtype)));
  const hidden = lowRank.map((l) => {
    const h = raw.matmul(l.x ?? x, same(l.a), null, 0, 1, code(x.dtype));
    raw.matmulAcc(y.columns(l.offset, l.offset + l.b.dim(0)), h, same(l.b), 0, 1, l.scale, 1);
    return h;
  });
  const inputs: (Tensor | null)[] = [x, dense?.weight ?? null, dense?.bias ?? null];
  for (const l of lowRank) inputs.push(l.a, l.b, l.x ?? null);
  if (!inputs.some(needsGrad)) return y;

  const saved: Tensor[] = [];
  const save = (t: Tensor): number => saved.push(t) - 1;
  const dtype = code(x.dtype);
  // A frozen weight without adapters needs no x.
  const xAt = needsGrad(dense?.weight) || lowRank.some((l) => !l.x) ? save(x) : -1;
  const weightAt = dense ? save(dense.weight) : -1;
  const adapters = lowRank.map((l, i) => ({
    a: save(l.a),
    b: save(l.b),
    h: save(hidden[i]!),
    x: l.x ? save(l.x) : xAt,
    dropped: l.x !== undefined,
    scale: l.scale,
    offset: l.offset,
  }));
  record("linear", [y], inputs, saved, ([dy], s, c: BackwardContext) => {
    const out: (Tensor | null)[] = inputs.map(() => null);
    if (dense && c.needs(1))
      c.accumulate(1, s[weightAt]!.shape, (grad) => raw.matmulAcc(grad, dy!, s[xAt]!, 1, 0, 1, 1));
    if (dense && c.needs(2)) out[2] = raw.sumRows(dy!);
    if (c.needs(0))
      out[0] = dense ? raw.matmul(dy!, s[weightAt]!, null, 0, 0, dtype) : (base as LinearBase).backward(dy!);
    adapters.forEach((l, i) => {
      const a = s[l.a]!;
      const b = s[l.b]!;
      const dy_i = dy!.columns(l.offset, l.offset + b.dim(0));
      const at = 3 + 3 * i;
      if (c.needs(at + 1))
        c.accumulate(at + 1, b.shape, (grad) => raw.matmulAcc(grad, dy_i, s[l.h]!, 1, 0, l.scale, 1));
      if (!c.needs(at) && !c.needs(0) && !c.needs(at + 2)) return;
      const cast = (t: Tensor): Tensor => (t.dtype === dy!.dtype ? t : raw.cast(t, code(dy!.dtype)));
      const dh = raw.matmul(dy_i, cast(b), null, 0, 0, code(dy!.dtype));
      if (c.needs(at)) c.accumulate(at, a.shape, (grad) => raw.matmulAcc(grad, dh, s[l.x]!, 1, 0, l.scale, 1));
      if (l.dropped) {
        if (c.needs(at + 2)) out[at + 2] = raw.scale(raw.matmul(dh, cast(a), null, 0, 0, code(dy!.dtype)), l.scale);
      } else if (out[0]) raw.matmulAcc(out[0], dh, cast(a), 0, 0, l.scale, 1);
    });
    return out;
  });
  return y;
}
