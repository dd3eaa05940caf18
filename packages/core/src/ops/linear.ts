/** Matrix products. M, T rows; N out features; C in features; r adapter rank. */
import { type BackwardContext, needsGrad, record } from "../autograd.js";
import { type DType, dtypes } from "../dtype.js";
import * as raw from "../gen/ops.js";
import { empty, type Tensor } from "../tensor.js";

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

/** Adapters that read the same input: their A matrices work as one, [Σr, C]. */
interface AdapterGroup {
  /** The input, when it is not the linear's own (dropout). */
  x: Tensor | undefined;
  members: { adapter: LowRank; index: number; start: number; end: number }[];
}

function groupAdapters(lowRank: readonly LowRank[]): AdapterGroup[] {
  const groups: AdapterGroup[] = [];
  lowRank.forEach((adapter, index) => {
    let group = groups.find((g) => g.x === adapter.x);
    if (!group) groups.push((group = { x: adapter.x, members: [] }));
    const start = group.members.at(-1)?.end ?? 0;
    group.members.push({ adapter, index, start, end: start + adapter.a.dim(0) });
  });
  return groups;
}

/**
 * y = x Wᵀ + bias + Σ scaleᵢ (x Aᵢᵀ) Bᵢᵀ: one node for a linear (or several side by side) and its adapters; B·A is never formed.
 * Adapters with the same input share the products with x and with its gradient, which are bound by memory.
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
  const dtype = code(x.dtype);
  const y = dense ? raw.matmul(x, dense.weight, dense.bias, 0, 1, dtype) : (base as LinearBase).forward(x);
  // Adapters kept in another dtype than the activations (f32 masters) compute in the activations' dtype.
  const same = (t: Tensor): Tensor => (t.dtype === x.dtype ? t : raw.cast(t, dtype));
  const groups = groupAdapters(lowRank).map((g) => {
    const a = same(
      g.members.length === 1 ? g.members[0]!.adapter.a : raw.concatRows(g.members.map((m) => m.adapter.a)),
    );
    const h = raw.matmul(g.x ?? x, a, null, 0, 1, dtype);
    const bs = g.members.map(({ adapter, start, end }) => {
      const b = same(adapter.b);
      const part = y.columns(adapter.offset, adapter.offset + b.dim(0));
      raw.matmulAcc(part, h.columns(start, end), b, 0, 1, adapter.scale, 1);
      return b;
    });
    return { ...g, a, h, bs };
  });
  const inputs: (Tensor | null)[] = [x, dense?.weight ?? null, dense?.bias ?? null];
  for (const l of lowRank) inputs.push(l.a, l.b, l.x ?? null);
  if (!inputs.some(needsGrad)) return y;

  const saved: Tensor[] = [];
  const save = (t: Tensor): number => saved.push(t) - 1;
  // A frozen weight without adapters needs no x.
  const xAt = needsGrad(dense?.weight) || groups.some((g) => !g.x) ? save(x) : -1;
  const weightAt = dense ? save(dense.weight) : -1;
  const kept = groups.map((g) => ({
    x: g.x ? save(g.x) : xAt,
    dropped: g.x !== undefined,
    a: save(g.a),
    h: save(g.h),
    members: g.members.map(({ adapter, index, start, end }, i) => ({
      b: save(g.bs[i]!),
      shapes: [adapter.a.shape, adapter.b.shape] as const,
      scale: adapter.scale,
      offset: adapter.offset,
      at: 3 + 3 * index,
      start,
      end,
    })),
  }));
  record("linear", [y], inputs, saved, ([dy], s, c: BackwardContext) => {
    const out: (Tensor | null)[] = inputs.map(() => null);
    if (dense && c.needs(1))
      c.accumulate(1, s[weightAt]!.shape, (grad) => raw.matmulAcc(grad, dy!, s[xAt]!, 1, 0, 1, 1));
    if (dense && c.needs(2)) out[2] = raw.sumRows(dy!);
    if (c.needs(0))
      out[0] = dense ? raw.matmul(dy!, s[weightAt]!, null, 0, 0, dtype) : (base as LinearBase).backward(dy!);
    for (const g of kept) {
      const a = s[g.a]!;
      const h = s[g.h]!;
      const wantsA = g.members.some((m) => c.needs(m.at));
      const wantsX = g.dropped ? c.needs(g.members[0]!.at + 2) : out[0] !== null;
      // d(x Aᵀ), with each adapter's scale in it.
      const dh = wantsA || wantsX ? empty(h.shape, dy!.dtype, "activations", dy!.device) : null;
      for (const m of g.members) {
        const dy_i = dy!.columns(m.offset, m.offset + m.shapes[1][0]!);
        if (c.needs(m.at + 1))
          c.accumulate(m.at + 1, m.shapes[1], (grad) =>
            raw.matmulAcc(grad, dy_i, h.columns(m.start, m.end), 1, 0, m.scale, 1),
          );
        if (dh) raw.matmulAcc(dh.columns(m.start, m.end), dy_i, s[m.b]!, 0, 0, m.scale, 0);
      }
      if (!dh) continue;
      if (wantsA) {
        const x_ = s[g.x]!;
        if (g.members.length === 1) {
          const [m] = g.members;
          c.accumulate(m!.at, m!.shapes[0], (grad) => raw.matmulAcc(grad, dh, x_, 1, 0, 1, 1));
        } else {
          const da = raw.matmul(dh, x_, null, 1, 0, code("f32"));
          for (const m of g.members)
            if (c.needs(m.at)) c.accumulate(m.at, m.shapes[0], (grad) => raw.axpy(grad, da.rows(m.start, m.end), 1));
        }
      }
      if (!wantsX) continue;
      if (g.dropped) out[g.members[0]!.at + 2] = raw.matmul(dh, a, null, 0, 0, code(dy!.dtype));
      else raw.matmulAcc(out[0]!, dh, a, 0, 0, 1, 1);
    }
    return out;
  });
  return y;
}
