/** What an op case is: data. The function that runs it is run-case.ts. */
import type { DType } from "@llm/core";
import type { Values } from "./numbers.js";

/**
 * Largest accepted error by the dtype of the result, measured as |got − want| / (|want| + rms(want) + floor): relative, but forgiving
 * where terms cancel. Integers are always exact.
 */
export interface Tolerance {
  f32: number;
  bf16: number;
  f16: number;
  /** Size of terms that cancel to nothing over the whole result. @default 0 */
  floor?: number;
  /** Why these numbers. */
  reason: string;
}

/** One input of an op. */
export interface CaseInput {
  dtype: DType;
  shape: readonly number[];
  values: Values;
  /** Elements between the end of a row (of the first dim) and the next: the input is a strided view. @default 0 */
  padding?: number;
}

/** One call of one op, compared with the f64 reference of that op. */
export interface OpCase {
  /** Unique; seeds the inputs. */
  name: string;
  /** Name in native/ops.def. */
  op: string;
  /** In ops.def order; null = an absent optional input; variadic ones one after another. */
  inputs: readonly (CaseInput | null)[];
  attributes: readonly number[];
  tolerance: Tolerance;
}

/** What running a case gave. */
export interface CaseResult {
  name: string;
  /** Ops that it proves something about. */
  ops: readonly string[];
  maxError: number;
  tolerance: number;
  ok: boolean;
  /** Where the largest error is, or what else is wrong; empty when fine. */
  detail: string;
}

/** A property that is not one call against one reference: "paged = contiguous", "the sample follows its distribution". */
export interface OpCheck {
  name: string;
  ops: readonly string[];
  /** Takes long: left out where a quick look is asked for. @default false */
  slow?: boolean;
  /** Largest error found and what is accepted; `detail` says where. */
  run(): { maxError: number; tolerance: number; detail?: string };
}

export const floats: readonly ("f32" | "bf16" | "f16")[] = ["f32", "bf16", "f16"];

/** An input: `input("bf16", [3, 5])` is normal noise; with `padding` its rows are apart. */
export function input(dtype: DType, shape: readonly number[], values: Values = { normal: 1 }, padding = 0): CaseInput {
  return padding === 0 ? { dtype, shape, values } : { dtype, shape, values, padding };
}

const shapeText = (inputs: readonly (CaseInput | null)[]): string =>
  inputs.map((x) => (x ? `${x.dtype}[${x.shape.join(",")}]${x.padding ? "*" : ""}` : "-")).join(" ");

/** A case named by op, note, dtypes, shapes (`*` = strided rows) and attributes. */
export function opCase(
  op: string,
  note: string,
  inputs: readonly (CaseInput | null)[],
  attributes: readonly number[],
  tolerance: Tolerance,
): OpCase {
  const values = attributes.length > 0 ? ` (${attributes.map((a) => Number(a.toPrecision(4))).join(" ")})` : "";
  return { name: `${op}${note ? ` ${note}` : ""}: ${shapeText(inputs)}${values}`, op, inputs, attributes, tolerance };
}

/** Moves bits, or every step is defined to the bit. */
export const exact: Tolerance = { f32: 0, bf16: 0, f16: 0, reason: "the result is defined to the last bit" };

/** At most three f32 operations and one rounding to the result's dtype. */
export const arithmetic: Tolerance = {
  f32: 2 ** -22,
  bf16: 2 ** -8,
  f16: 2 ** -11,
  reason:
    "up to three f32 roundings (2^-24 each) of terms that may cancel; one rounding to 16 bits is half an ulp, 2^-9 or 2^-12, at most twice that across a midpoint",
};

/** Uses exp, log or a reciprocal root, for which vector kernels have polynomials of a few ulp. */
export const transcendental: Tolerance = {
  ...arithmetic,
  f32: 2 ** -20,
  reason: "polynomials for exp, log and rsqrt are good to about 4 ulp of f32; 16-bit results differ by their rounding",
};

/** Sums of up to a few thousand products. */
export const summation: Tolerance = {
  f32: 2 ** -18,
  bf16: 2 ** -8,
  f16: 2 ** -11,
  reason:
    "f32 accumulation of n terms of either sign errs by about sqrt(n) ulp, n up to 4096; one rounding to 16 bits at the end",
};

/** Sums whose terms may be rounded to the inputs' 16 bits on the way (probabilities of attention fed to bf16 dot products). */
export const attentionSums: Tolerance = {
  f32: 2 ** -17,
  bf16: 2 ** -7,
  f16: 2 ** -10,
  reason: "as sums, with exponentials inside; in 16 bits the probabilities may be rounded before they meet the values",
};

/** Gradients of attention: p (dp − delta), where p comes from an f32 log-sum-exp and the bracket may cancel. */
export const attentionGradients: Tolerance = {
  f32: 2 ** -15,
  bf16: 2 ** -7,
  f16: 2 ** -10,
  floor: 1,
  reason:
    "exp(s − lse) has the absolute error of an f32 lse: 2^-19 at 32; a query that sees one key has dp = delta but for the rounding of o",
};
