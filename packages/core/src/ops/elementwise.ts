/** Differentiable elementwise ops, reductions and movement. Shape letters: T rows, N columns. */
import { record } from "../autograd.js";
import { type DType, dtypes } from "../dtype.js";
import { ShapeError } from "../errors.js";
import * as raw from "../gen/ops.js";
import { rowMajor, type Tensor } from "../tensor.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** Sums a gradient over the dims along which `like` was broadcast. */
function reduceTo(grad: Tensor, like: Tensor): Tensor {
  if (grad.size === like.size) return grad;
  const columns = like.size === 1 ? 1 : grad.dim(-1);
  const flat = grad.asStrided([grad.size / columns, columns], [columns, 1], 0);
  const sums = raw.sumRows(flat);
  const sum = sums.dtype === like.dtype ? sums : raw.cast(sums, code(like.dtype));
  return like.shape.length === 1 ? sum : sum.asStrided(like.shape, rowMajor(like.shape), 0);
}

/**
 * y = a + b. b has the shape of a, is [N] against the last dim of a, or has one element.
 * @throws {ShapeError} other shapes  @throws {DTypeError} different dtypes
 */
export function add(a: Tensor, b: Tensor): Tensor {
  const y = raw.add(a, b);
  record("add", [y], [a, b], [], ([dy], _, c) => [dy!, c.needs(1) ? reduceTo(dy!, b) : null]);
  return y;
}

/** y = a − b, with add's broadcasting. */
export function sub(a: Tensor, b: Tensor): Tensor {
  const y = raw.sub(a, b);
  record("sub", [y], [a, b], [], ([dy], _, c) => [dy!, c.needs(1) ? reduceTo(raw.scale(dy!, -1), b) : null]);
  return y;
}

/** y = a · b elementwise, with add's broadcasting. */
export function mul(a: Tensor, b: Tensor): Tensor {
  const y = raw.mul(a, b);
  record("mul", [y], [a, b], [a, b], ([dy], [a_, b_], c) => [
    c.needs(0) ? raw.mul(dy!, b_!) : null,
    c.needs(1) ? reduceTo(raw.mul(dy!, a_!), b_!) : null,
  ]);
  return y;
}

/** y = factor · x. */
export function scale(x: Tensor, factor: number): Tensor {
  const y = raw.scale(x, factor);
  record("scale", [y], [x], [], ([dy]) => [raw.scale(dy!, factor)]);
  return y;
}

/** x in another float dtype, rounded to nearest even. */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (x.dtype === dtype) return x;
  const y = raw.cast(x, code(dtype));
  record("cast", [y], [x], [], ([dy]) => [raw.cast(dy!, code(x.dtype))]);
  return y;
}

/** y = x · sigmoid(x) (Ramachandran et al. 2017, arXiv:1710.05941). */
export function silu(x: Tensor): Tensor {
  const y = raw.silu(x);
  record("silu", [y], [x], [x], ([dy], [x_]) => [raw.siluBwd(dy!, x_!)]);
  return y;
}

/** Sum of all elements: f32 [1]. */
export function sum(x: Tensor): Tensor {
  const y = raw.sum(x);
  record("sum", [y], [x], [x], ([dy], [x_]) => {
    const ones = raw.scale(x_!, 0);
    raw.fill(ones, 1);
    return [raw.mulScalarTensor(ones, dy!)];
  });
  return y;
}

/** The same elements in another shape (dense tensors; a view). One length may be −1. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  const known = shape.filter((n) => n !== -1).reduce((a, b) => a * b, 1);
  const full = shape.map((n) => (n === -1 ? x.size / known : n));
  if (full.reduce((a, b) => a * b, 1) !== x.size || full.some((n) => !Number.isInteger(n))) {
    throw new ShapeError(
      `[reshape] [${x.shape.join(", ")}] has ${x.size} elements, [${shape.join(", ")}] does not fit`,
    );
  }
  // Row-strided [T, N] can become [T, H, D]: only the row stride matters.
  const strides = rowMajor(full);
  if (x.strides) {
    if (full[0] !== x.shape[0])
      throw new ShapeError(
        `[reshape] a row-strided [${x.shape.join(", ")}] keeps its first dim, got [${full.join(", ")}]`,
      );
    strides[0] = x.strides[0]!;
  }
  const y = x.asStrided(full, strides, 0);
  const before = x.shape;
  record("reshape", [y], [x], [], ([dy]) => [dy!.asStrided(before, rowMajor(before), 0)]);
  return y;
}

/**
 * Splits the columns of [T, N] into views of given widths.
 * @throws {ShapeError} the widths do not add up to N
 */
export function splitColumns(x: Tensor, widths: readonly number[]): Tensor[] {
  if (x.shape.length !== 2 || widths.reduce((a, b) => a + b, 0) !== x.dim(1)) {
    throw new ShapeError(
      `[splitColumns] widths ${widths.join(" + ")} must add up to the columns of [${x.shape.join(", ")}]`,
    );
  }
  let at = 0;
  const parts = widths.map((width) => x.columns(at, (at += width)));
  const rows = x.dim(0);
  record("splitColumns", parts, [x], [], (grads) => {
    const like = grads.find((g) => g !== null)!;
    const blocks = grads.map((g, i) => {
      if (g) return g.shape.length === 2 ? g : g.asStrided([rows, widths[i]!], [widths[i]!, 1], 0);
      const zeros = raw.scale(like.asStrided([rows, 1], [like.size / Math.max(rows, 1), 1], 0), 0);
      const wide = raw.concatCols(Array.from({ length: widths[i]! }, () => zeros));
      raw.fill(wide, 0);
      return wide;
    });
    return [raw.concatCols(blocks)];
  });
  return parts;
}

/** Stacks tensors along the first dim. */
export function concatRows(parts: readonly Tensor[]): Tensor {
  const y = raw.concatRows(parts);
  const lengths = parts.map((p) => p.dim(0));
  record("concatRows", [y], parts, [], ([dy]) => {
    let at = 0;
    return lengths.map((n) => dy!.rows(at, (at += n)));
  });
  return y;
}

/** y[i] = x[rows[i]] along the first dim; rows i32 [M]. The gradient adds rows that were taken twice. */
export function gatherRows(x: Tensor, rows: Tensor): Tensor {
  const y = raw.gatherRows(x, rows);
  const shape = x.shape;
  record("gatherRows", [y], [x], [rows], ([dy], [rows_], c) => {
    const width = dy!.size / Math.max(dy!.dim(0), 1);
    const flat = dy!.asStrided([dy!.dim(0), width], [width, 1], 0);
    c.accumulate(0, shape, (grad) => raw.embeddingBwd(flat, rows_!, grad.asStrided([shape[0]!, width], [width, 1], 0)));
    return [null];
  });
  return y;
}
