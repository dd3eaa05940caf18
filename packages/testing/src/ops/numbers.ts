/** Arrays for the oracle: every element in f64, with the dtype that the core holds it in. */
import { type DType, tensor, type Tensor, type TypedArray } from "@llm/core";

/** A dense row-major array whose elements are values of `dtype`, written out in f64. */
export interface Numbers {
  dtype: DType;
  shape: number[];
  data: Float64Array;
}

/** Number of elements of a shape. */
export const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

export function numbers(dtype: DType, shape: readonly number[], data?: ArrayLike<number>): Numbers {
  const out = new Float64Array(sizeOf(shape));
  if (data !== undefined) out.set(data);
  return { dtype, shape: [...shape], data: out };
}

export const copyNumbers = (x: Numbers): Numbers => ({ dtype: x.dtype, shape: [...x.shape], data: x.data.slice() });

/** Rounds to a whole number, halves to the even neighbour. */
export function roundEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  if (rest < 0.5) return down;
  if (rest > 0.5) return down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/** Nearest value with `mantissa` bits after the leading one, smallest normal exponent `low`, infinite from `limit` on. */
function roundBits(x: number, mantissa: number, low: number, limit: number): number {
  if (x === 0 || !Number.isFinite(x)) return x;
  let exponent = Math.floor(Math.log2(Math.abs(x)));
  if (2 ** exponent > Math.abs(x)) exponent--;
  const step = 2 ** (Math.max(exponent, low) - mantissa);
  const y = roundEven(x / step) * step;
  return Math.abs(y) >= limit ? Math.sign(y) * Infinity : y;
}

/** The value of `dtype` nearest to x, halves to even. Integers saturate. */
export function roundTo(dtype: DType, x: number): number {
  switch (dtype) {
    case "f32":
      return Math.fround(x);
    case "bf16":
      return roundBits(Math.fround(x), 7, -126, 2 ** 128);
    case "f16":
      return roundBits(Math.fround(x), 10, -14, 65520);
    case "i8":
      return Math.max(-128, Math.min(127, roundEven(x)));
    case "u8":
      return Math.max(0, Math.min(255, roundEven(x)));
    default:
      return roundEven(x);
  }
}

/** Every element rounded to the array's dtype. */
export function rounded(x: Numbers): Numbers {
  return { ...x, data: x.data.map((value) => roundTo(x.dtype, value)) };
}

function bf16Bits(x: number): number {
  return new Uint32Array(Float32Array.of(x).buffer)[0]! >>> 16;
}

function f16Bits(x: number): number {
  const sign = Object.is(x, -0) || x < 0 ? 0x8000 : 0;
  const a = Math.abs(x);
  if (Number.isNaN(x)) return 0x7e00;
  if (a === Infinity) return sign | 0x7c00;
  if (a < 2 ** -14) return sign | (a * 2 ** 24);
  const exponent = Math.floor(Math.log2(a));
  return sign | ((exponent + 15) << 10) | ((a / 2 ** exponent - 1) * 1024);
}

/** The dtype's own bits of an array whose elements are values of that dtype. */
export function toBits(x: Numbers): TypedArray {
  switch (x.dtype) {
    case "f32":
      return Float32Array.from(x.data);
    case "bf16":
      return Uint16Array.from(x.data, bf16Bits);
    case "f16":
      return Uint16Array.from(x.data, f16Bits);
    case "i32":
      return Int32Array.from(x.data);
    case "i8":
      return Int8Array.from(x.data);
    case "u8":
      return Uint8Array.from(x.data);
    case "i64":
      return BigInt64Array.from(x.data as unknown as ArrayLike<bigint>, (value) => BigInt(value));
  }
}

/** The array as a tensor of the native core. */
export const toTensor = (x: Numbers): Tensor => tensor(toBits(x), x.shape, x.dtype);

/** A tensor's values. Blocks until they are there. */
export function fromTensor(t: Tensor): Numbers {
  return numbers(t.dtype, t.shape, Float64Array.from(t.dataSync() as Float32Array, Number));
}

/**
 * Seeded uniform numbers in [0, 1): the same everywhere (Mulberry32 on a hash of the text). For test inputs only; the product's generator
 * is the native Philox.
 */
export function randomSource(seed: string): () => number {
  let state = 2166136261;
  for (const letter of seed) state = Math.imul(state ^ letter.charCodeAt(0), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** How an input's elements are made: seeded, then rounded to the dtype, so that the oracle and the core see the same numbers; a function is called when the case runs. */
export type Values =
  | { normal: number }
  | { uniform: readonly [low: number, high: number] }
  | { integers: readonly [low: number, high: number] }
  | ArrayLike<number>
  | (() => ArrayLike<number>);

export function makeNumbers(dtype: DType, shape: readonly number[], values: Values, seed: string): Numbers {
  if (typeof values === "function") return makeNumbers(dtype, shape, values(), seed);
  const out = numbers(dtype, shape);
  const next = randomSource(seed);
  if ("length" in values) {
    if (values.length !== out.data.length)
      throw new Error(
        `[cases] ${seed}: expected ${out.data.length} values for [${shape.join(", ")}], got ${values.length}`,
      );
    out.data.set(values);
  } else if ("normal" in values) {
    for (let i = 0; i < out.data.length; i++)
      out.data[i] = values.normal * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  } else if ("uniform" in values) {
    const [low, high] = values.uniform;
    for (let i = 0; i < out.data.length; i++) out.data[i] = low + (high - low) * next();
  } else {
    const [low, high] = values.integers;
    for (let i = 0; i < out.data.length; i++) out.data[i] = low + Math.floor((high - low + 1) * next());
  }
  return rounded(out);
}

/** Number of elements whose bits differ. */
export function differentBits(a: Tensor, b: Tensor): number {
  const [x, y] = [a.bitsSync(), b.bitsSync()].map((t) => new Uint8Array(t.buffer, t.byteOffset, t.byteLength)) as [
    Uint8Array,
    Uint8Array,
  ];
  if (x.length !== y.length) return Infinity;
  let count = 0;
  x.forEach((byte, i) => (count += byte === y[i] ? 0 : 1));
  return count;
}
