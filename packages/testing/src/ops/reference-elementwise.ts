/** References: arithmetic, movement, reductions, random numbers and matrix products. */
import { type DType, dtypes } from "@llm/core";
import { philox4x32, uniform01 } from "@llm/models";
import { copyNumbers, type Numbers, numbers, roundTo, sizeOf } from "./numbers.js";
import type { Reference } from "./reference.js";

const dtypeOf = (code: number): DType => dtypes[code]!;

/** y = f(a, b) with b of a's shape, of its last dim, or of one element. */
const binary =
  (f: (a: number, b: number) => number): Reference =>
  ([a, b]) => [{ ...a!, data: a!.data.map((x, i) => f(x, b!.data[i % b!.data.length]!)) }];

const unary =
  (f: (x: number, attributes: readonly number[]) => number): Reference =>
  ([x], attributes) => [{ ...x!, data: x!.data.map((value) => f(value, attributes)) }];

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** Rows and columns of an array seen as a matrix over its last dim. */
export function matrixOf(x: Numbers): { rows: number; cols: number } {
  const cols = x.shape[x.shape.length - 1] ?? 1;
  return { rows: sizeOf(x.shape.slice(0, -1)), cols };
}

/** One f32 number a column, folded down the rows. */
const columns =
  (step: (state: number, x: number) => number, end: (state: number, rows: number) => number = (s) => s): Reference =>
  ([x]) => {
    const { rows, cols } = matrixOf(x!);
    const y = numbers("f32", [cols]);
    for (let c = 0; c < cols; c++) {
      let state = 0;
      for (let r = 0; r < rows; r++) state = step(state, x!.data[r * cols + c]!);
      y.data[c] = end(state, rows);
    }
    return [y];
  };

/** log Σ exp(xᵢ / temperature); −∞ for a row of −∞. */
export function logSumExp(row: ArrayLike<number>, temperature = 1): number {
  let largest = -Infinity;
  for (let i = 0; i < row.length; i++) largest = Math.max(largest, row[i]! / temperature);
  if (largest === -Infinity) return largest;
  let total = 0;
  for (let i = 0; i < row.length; i++) total += Math.exp(row[i]! / temperature - largest);
  return largest + Math.log(total);
}

/** Index of the largest element, the first of equals. */
export function argmaxOf(row: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}

export const rowOf = (x: Numbers, r: number): Float64Array => {
  const { cols } = matrixOf(x);
  return x.data.subarray(r * cols, (r + 1) * cols);
};

const overRows =
  (log: boolean): Reference =>
  ([x]) => {
    const y = numbers(log ? "f32" : x!.dtype, x!.shape);
    const { rows, cols } = matrixOf(x!);
    for (let r = 0; r < rows; r++) {
      const row = rowOf(x!, r);
      const lse = logSumExp(row);
      row.forEach((value, c) => {
        const l = value === -Infinity ? -Infinity : value - lse;
        y.data[r * cols + c] = log ? l : Math.exp(l);
      });
    }
    return [y];
  };

/** The random words of `count` elements: element i is word i mod 4 of block ⌊i / 4⌋. */
export function randomWords(seed: number, stream: number, count: number): Uint32Array {
  const words = new Uint32Array(count);
  const [s0, s1] = [stream % 2 ** 32, Math.floor(stream / 2 ** 32)];
  for (let block = 0; block * 4 < count; block++) {
    philox4x32(seed, [block, 0, s0, s1]).forEach((word, i) => {
      if (block * 4 + i < count) words[block * 4 + i] = word;
    });
  }
  return words;
}

const element = (x: Numbers, transposed: boolean, r: number, c: number): number =>
  x.data[transposed ? c * x.shape[1]! + r : r * x.shape[1]! + c]!;

/** op(a) op(b) as rows × cols numbers. */
function product(
  a: Numbers,
  b: Numbers,
  transA: boolean,
  transB: boolean,
): { rows: number; cols: number; data: Float64Array } {
  const [rows, depth] = transA ? [a.shape[1]!, a.shape[0]!] : [a.shape[0]!, a.shape[1]!];
  const cols = b.shape[transB ? 0 : 1]!;
  const data = new Float64Array(rows * cols);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      let total = 0;
      for (let k = 0; k < depth; k++) total += element(a, transA, r, k) * element(b, transB, k, c);
      data[r * cols + c] = total;
    }
  return { rows, cols, data };
}

export const elementwise: Record<string, Reference> = {
  add: binary((a, b) => a + b),
  sub: binary((a, b) => a - b),
  mul: binary((a, b) => a * b),
  scale: unary((x, [factor]) => factor! * x),
  axpy: ([y, x], [alpha]) => {
    y!.data.forEach((value, i) => (y!.data[i] = value + alpha! * x!.data[i]!));
    return [];
  },
  mul_scalar_tensor: binary((a, b) => a * b),
  fill: ([x], [value]) => {
    x!.data.fill(roundTo(x!.dtype, value!));
    return [];
  },
  copy: ([dst, src]) => {
    dst!.data.set(src!.data);
    return [];
  },
  cast: ([x], [code]) => [{ ...copyNumbers(x!), dtype: dtypeOf(code!) }],
  contiguous: ([x]) => [copyNumbers(x!)],
  transpose: ([x]) => {
    const [rows, cols] = x!.shape as [number, number];
    const y = numbers(x!.dtype, [cols, rows]);
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) y.data[c * rows + r] = x!.data[r * cols + c]!;
    return [y];
  },
  concat_rows: (parts) => {
    const first = parts[0]!;
    const y = numbers(first.dtype, [parts.reduce((n, p) => n + p!.shape[0]!, 0), ...first.shape.slice(1)]);
    let at = 0;
    for (const part of parts) {
      y.data.set(part!.data, at);
      at += part!.data.length;
    }
    return [y];
  },
  concat_cols: (parts) => {
    const rows = parts[0]!.shape[0]!;
    const width = parts.reduce((n, p) => n + p!.shape[1]!, 0);
    const y = numbers(parts[0]!.dtype, [rows, width]);
    let at = 0;
    for (const part of parts) {
      const cols = part!.shape[1]!;
      for (let r = 0; r < rows; r++) y.data.set(part!.data.subarray(r * cols, (r + 1) * cols), r * width + at);
      at += cols;
    }
    return [y];
  },
  gather_rows: ([x, rows]) => {
    const width = sizeOf(x!.shape.slice(1));
    const y = numbers(x!.dtype, [rows!.data.length, ...x!.shape.slice(1)]);
    rows!.data.forEach((row, i) => y.data.set(x!.data.subarray(row * width, (row + 1) * width), i * width));
    return [y];
  },
  sum: ([x]) => [numbers("f32", [1], [x!.data.reduce((a, b) => a + b, 0)])],
  sum_rows: columns((s, x) => s + x),
  mean_abs_cols: columns(
    (s, x) => s + Math.abs(x),
    (s, rows) => (rows === 0 ? 0 : s / rows),
  ),
  max_abs_cols: columns((s, x) => Math.max(s, Math.abs(x))),
  mse: ([a, b]) => {
    const n = a!.data.length;
    return [numbers("f32", [1], [n === 0 ? 0 : a!.data.reduce((s, x, i) => s + (x - b!.data[i]!) ** 2, 0) / n])];
  },
  mul_cols: ([x, s], [invert]) => [
    {
      ...x!,
      data: x!.data.map((value, i) =>
        invert ? value / s!.data[i % s!.data.length]! : value * s!.data[i % s!.data.length]!,
      ),
    },
  ],
  silu: unary((x) => x * sigmoid(x)),
  silu_bwd: binary((dy, x) => dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
  softmax: overRows(false),
  log_softmax: overRows(true),
  argmax: ([x]) => [
    numbers(
      "i32",
      [x!.shape[0]!],
      Array.from({ length: x!.shape[0]! }, (_, r) => argmaxOf(rowOf(x!, r))),
    ),
  ],
  topk: ([x], [k]) => {
    const { rows, cols } = matrixOf(x!);
    const values = numbers("f32", [rows, k!]);
    const indices = numbers("i32", [rows, k!]);
    for (let r = 0; r < rows; r++) {
      const row = rowOf(x!, r);
      const order = Array.from({ length: cols }, (_, c) => c).sort((a, b) =>
        row[a] === row[b] ? a - b : row[b]! - row[a]!,
      );
      for (let j = 0; j < k!; j++) {
        values.data[r * k! + j] = j < cols ? row[order[j]!]! : -Infinity;
        indices.data[r * k! + j] = j < cols ? order[j]! : -1;
      }
    }
    return [values, indices];
  },
  fill_normal: ([x], [mean, std, seed, stream]) => {
    const words = randomWords(seed!, stream!, Math.ceil(x!.data.length / 4) * 4);
    x!.data.forEach((_, i) => {
      const [a, b] = [words[i - (i % 2)]!, words[i - (i % 2) + 1]!];
      const radius = Math.sqrt(-2 * Math.log((a + 1) * 2 ** -32));
      const angle = 2 * Math.PI * (b * 2 ** -32);
      x!.data[i] = mean! + std! * Math.fround(radius * (i % 2 === 0 ? Math.cos(angle) : Math.sin(angle)));
    });
    return [];
  },
  fill_uniform: ([x], [low, high, seed, stream]) => {
    randomWords(seed!, stream!, x!.data.length).forEach(
      (word, i) => (x!.data[i] = low! + (high! - low!) * uniform01(word)),
    );
    return [];
  },
  dropout: ([x], [p, seed, stream]) => {
    const words = randomWords(seed!, stream!, x!.data.length);
    return [
      { ...x!, data: x!.data.map((value, i) => (uniform01(words[i]!) >= Math.fround(p!) ? value / (1 - p!) : 0)) },
    ];
  },
  matmul: ([a, b, bias], [transA, transB, code]) => {
    const { rows, cols, data } = product(a!, b!, transA !== 0, transB !== 0);
    return [numbers(dtypeOf(code!), [rows, cols], bias ? data.map((value, i) => value + bias.data[i % cols]!) : data)];
  },
  matmul_acc: ([c, a, b], [transA, transB, alpha, beta]) => {
    const { data } = product(a!, b!, transA !== 0, transB !== 0);
    data.forEach((value, i) => (c!.data[i] = alpha! * value + (beta === 0 ? 0 : beta! * c!.data[i]!)));
    return [];
  },
};
