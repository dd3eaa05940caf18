/** Random initial values. Counter-based: element i of stream (seed, stream) is the same on every device and machine. */
import type { DType } from "./dtype.js";
import * as raw from "./gen/ops.js";
import type { MemoryTag } from "./native.js";
import { empty, type Tensor } from "./tensor.js";

export interface RandomOptions {
  seed: number;
  /** Which of the seed's independent sequences. @default 0 */
  stream?: number;
  dtype?: DType;
  tag?: MemoryTag;
}

/** Normal values with given mean (default 0) and standard deviation (default 1). @see Salmon et al. 2011 (Philox 4x32-10) */
export function randomNormal(
  shape: readonly number[],
  options: RandomOptions & { mean?: number; std?: number },
): Tensor {
  const t = empty(shape, options.dtype ?? "f32", options.tag ?? "other");
  raw.fillNormal(t, options.mean ?? 0, options.std ?? 1, options.seed, options.stream ?? 0);
  return t;
}

/** Uniform values in [low, high), default [0, 1). */
export function randomUniform(
  shape: readonly number[],
  options: RandomOptions & { low?: number; high?: number },
): Tensor {
  const t = empty(shape, options.dtype ?? "f32", options.tag ?? "other");
  raw.fillUniform(t, options.low ?? 0, options.high ?? 1, options.seed, options.stream ?? 0);
  return t;
}

/** A tensor of one repeated value. */
export function full(shape: readonly number[], value: number, dtype: DType = "f32", tag: MemoryTag = "other"): Tensor {
  const t = empty(shape, dtype, tag);
  raw.fill(t, value);
  return t;
}
