/** Runs op cases and checks on the native core. Used by vitest and by the plain runner (main.ts). */
import { createHash, type Hash } from "node:crypto";
import { type DType, native, scope, type Tensor } from "@llm/core";
import { copyNumbers, fromTensor, makeNumbers, type Numbers, numbers, roundTo, sizeOf, toTensor } from "./numbers.js";
import type { CaseInput, CaseResult, OpCase, OpCheck, Tolerance } from "./op-case.js";
import { references } from "./reference.js";

const camel = (name: string): string => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
const variadic = new Set(["concat_rows", "concat_cols", "global_norm"]);

/** Calls an op of the native table by its name in ops.def. Bare: no gradients. */
export function callOp(op: string, inputs: readonly (Tensor | null)[], attributes: readonly number[]): Tensor[] {
  const call = (native as unknown as Record<string, (...args: unknown[]) => Tensor | Tensor[] | undefined>)[camel(op)]!;
  const out = variadic.has(op) ? call(inputs, ...attributes) : call(...inputs, ...attributes);
  return out === undefined ? [] : Array.isArray(out) ? out : [out];
}

/** Largest |got − want| / (|want| + rms(want) + floor), and where. A wrong infinity or NaN is an infinite error. */
export function largestError(got: Numbers, want: Numbers, floor = 0): { error: number; index: number } {
  let squares = 0;
  let finite = 0;
  for (const value of want.data) {
    if (!Number.isFinite(value)) continue;
    squares += value * value;
    finite++;
  }
  const rms = Math.sqrt(squares / Math.max(finite, 1)) + floor;
  let [error, index] = [0, -1];
  for (let i = 0; i < want.data.length; i++) {
    const [g, w] = [got.data[i]!, want.data[i]!];
    // An infinity is right where the dtype's rounding gives one.
    if (Object.is(g, w) || g === w || (!Number.isFinite(g) && g === roundTo(want.dtype, w))) continue;
    let e = Math.abs(g - w) / (Math.abs(w) + rms);
    if (Number.isNaN(e) || !Number.isFinite(g)) e = Infinity;
    if (e > error) [error, index] = [e, i];
  }
  return { error, index };
}

interface Comparison {
  error: number;
  tolerance: number;
  detail: string;
}

const text = (shape: readonly number[]): string => `[${shape.join(", ")}]`;

function compare(what: string, got: Numbers, want: Numbers, tolerance: Tolerance): Comparison {
  if (got.dtype !== want.dtype)
    return { error: Infinity, tolerance: 0, detail: `${what} is ${got.dtype}, expected ${want.dtype}` };
  if (text(got.shape) !== text(want.shape))
    return { error: Infinity, tolerance: 0, detail: `${what} is ${text(got.shape)}, expected ${text(want.shape)}` };
  const limit = want.dtype === "f32" || want.dtype === "bf16" || want.dtype === "f16" ? tolerance[want.dtype] : 0;
  const target = limit === 0 ? { ...want, data: want.data.map((x) => roundTo(want.dtype, x)) } : want;
  const { error, index } = largestError(got, target, tolerance.floor);
  const detail = index < 0 ? "" : `${what}[${index}] = ${got.data[index]}, expected ${target.data[index]}`;
  return { error, tolerance: limit, detail };
}

const filler = (dtype: DType): number => (dtype === "u8" ? 77 : -77);

/** The memory behind an input: its rows with filler between them. */
function padded(x: Numbers, padding: number): Numbers {
  if (padding === 0) return x;
  const rows = x.shape[0]!;
  const inner = sizeOf(x.shape.slice(1));
  const base = numbers(x.dtype, [rows, inner + padding]);
  base.data.fill(filler(x.dtype));
  for (let r = 0; r < rows; r++) base.data.set(x.data.subarray(r * inner, (r + 1) * inner), r * (inner + padding));
  return base;
}

function view(base: Tensor, spec: CaseInput): Tensor {
  if (!spec.padding) return base;
  const strides: number[] = new Array(spec.shape.length);
  let stride = 1;
  for (let d = spec.shape.length - 1; d >= 0; d--) {
    strides[d] = stride;
    stride *= spec.shape[d]!;
  }
  strides[0] = base.shape[1]!;
  return base.asStrided(spec.shape, strides, 0);
}

/** The inputs of a case, as the core and the reference see them. */
export function caseInputs(c: OpCase): (Numbers | null)[] {
  return c.inputs.map((spec, i) => spec && makeNumbers(spec.dtype, spec.shape, spec.values, `${c.name} #${i}`));
}

/** The inputs of a case as tensors: the memory behind each, and the view on it that the op gets. */
function caseTensors(
  c: OpCase,
  inputs: readonly (Numbers | null)[],
): { bases: (Tensor | null)[]; tensors: (Tensor | null)[] } {
  const bases = inputs.map((x, i) => x && toTensor(padded(x, c.inputs[i]!.padding ?? 0)));
  return { bases, tensors: bases.map((base, i) => base && view(base, c.inputs[i]!)) };
}

/** Runs a case without judging it and adds the bits of all that it gave and left to `digest`: to compare runs with one another. */
export function digestCase(c: OpCase, digest: Hash): void {
  scope(() => {
    const { bases, tensors } = caseTensors(c, caseInputs(c));
    for (const t of [...callOp(c.op, tensors, c.attributes), ...bases]) if (t) digest.update(t.bitsSync());
  });
}

/**
 * Runs one case: outputs must have the reference's shapes, dtypes and values; inputs must hold what the reference left in them, so that
 * ops write in place where they should and nowhere else (memory between strided rows included).
 */
export function runCase(c: OpCase): CaseResult {
  const inputs = caseInputs(c);
  const after = inputs.map((x) => x && copyNumbers(x));
  const reference = references[c.op];
  if (!reference) throw new Error(`[cases] ${c.op} has no reference`);
  const expected = reference(after, c.attributes);
  const found: Comparison[] = [];
  scope(() => {
    const { bases, tensors } = caseTensors(c, inputs);
    const outputs = callOp(c.op, tensors, c.attributes);
    if (outputs.length !== expected.length)
      found.push({ error: Infinity, tolerance: 0, detail: `${outputs.length} outputs, expected ${expected.length}` });
    outputs.forEach((t, i) => {
      found.push(compare(`output ${i}`, fromTensor(t), expected[i]!, c.tolerance));
    });
    bases.forEach((base, i) => {
      if (!base) return;
      const before = inputs[i]!;
      const want = after[i]!;
      const changed = want.data.some((value, j) => !Object.is(value, before.data[j]));
      const limit = changed ? c.tolerance : { ...c.tolerance, f32: 0, bf16: 0, f16: 0 };
      const target = padded(want, c.inputs[i]!.padding ?? 0);
      found.push(
        compare(`input ${i}${changed ? " afterwards" : " (must not change)"}`, fromTensor(base), target, limit),
      );
    });
  });
  let worst: Comparison = { error: 0, tolerance: c.tolerance.f32, detail: "" };
  let ratio = -1;
  for (const f of found) {
    const r = f.error === 0 ? 0 : f.error / f.tolerance;
    if (r > ratio) [worst, ratio] = [f, r];
  }
  const ok = found.every((f) => f.error <= f.tolerance);
  return {
    name: c.name,
    ops: [c.op],
    maxError: worst.error,
    tolerance: worst.tolerance,
    ok,
    detail: ok ? "" : worst.detail,
  };
}

/** Runs a check; an exception is a failure. */
export function runCheck(check: OpCheck): CaseResult {
  const { maxError, tolerance, detail } = scope(() => check.run());
  const ok = maxError <= tolerance;
  return { name: check.name, ops: check.ops, maxError, tolerance, ok, detail: ok ? "" : (detail ?? "") };
}

export const newDigest = (): Hash => createHash("sha256");
