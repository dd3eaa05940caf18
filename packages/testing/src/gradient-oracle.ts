/** Gradients of the core against central differences of f64 references. */
import { backward, type DType, scope, type Tensor } from "@llm/core";
import { fromTensor, makeNumbers, type Numbers, numbers, toTensor, type Values } from "./ops/numbers.js";
import { largestError } from "./ops/run-case.js";

/** One input of a differentiable function. */
export interface GradientInput {
  shape: readonly number[];
  /** @default "f32" */
  dtype?: DType;
  /** @default normal with deviation 1 */
  values?: Values;
  /** No gradient is asked for (ids, tables, weights of a loss). @default false */
  constant?: boolean;
}

/** A differentiable function and what it computes. */
export interface GradientCase {
  /** Unique; seeds the inputs. */
  name: string;
  inputs: readonly GradientInput[];
  run(inputs: Tensor[]): Tensor | Tensor[];
  /** The same in f64, without rounding: a rounded function has no useful differences. */
  reference(inputs: Numbers[]): Numbers[];
  /** Outputs that the loss uses; the others get no gradient. @default all */
  use?: readonly number[];
  /** Accepted error of values and gradients: |got − want| / (|want| + rms(want)). @default 2^-16, 2^-5 when a 16-bit dtype is involved */
  tolerance?: number;
}

export interface GradientResult {
  /** Largest error of an output's values. */
  value: number;
  /** Largest error of a gradient. */
  gradient: number;
  tolerance: number;
  /** Where the largest errors are. */
  detail: string;
  ok: boolean;
}

/**
 * Differentiates Σ w · y with fixed random w: by backward(), and in f64 by (f(x + h) − f(x − h)) / 2h for every element of every input, with
 * an error of about 1e-9.
 */
export function runGradientCase(c: GradientCase): GradientResult {
  const sixteenBits = c.inputs.some((x) => x.dtype === "bf16" || x.dtype === "f16");
  const tolerance = c.tolerance ?? (sixteenBits ? 2 ** -5 : 2 ** -16);
  const inputs = c.inputs.map((x, i) =>
    makeNumbers(x.dtype ?? "f32", x.shape, x.values ?? { normal: 1 }, `${c.name} #${i}`),
  );
  // References round where an op rounds to 16 bits; differences need them smooth, so they see the values as f32.
  const wide = (): Numbers[] => inputs.map((x, i) => numbers(c.inputs[i]!.constant ? x.dtype : "f32", x.shape, x.data));
  const expected = c.reference(wide());
  const used = c.use ?? expected.map((_, i) => i);
  const weights = expected.map((y, i) => makeNumbers(y.dtype, y.shape, { normal: 1 }, `${c.name} w${i}`));
  const loss = (x: Numbers[]): number => {
    const y = c.reference(x);
    return used.reduce((sum, o) => sum + y[o]!.data.reduce((s, value, i) => s + value * weights[o]!.data[i]!, 0), 0);
  };
  let [value, gradient] = [0, 0];
  const detail: string[] = [];
  scope(() => {
    const leaves = inputs.map((x, i) => {
      const t = toTensor(x);
      t.requiresGrad = !c.inputs[i]!.constant;
      return t;
    });
    const result = c.run(leaves);
    const outputs = Array.isArray(result) ? result : [result];
    outputs.forEach((y, o) => {
      const { error, index } = largestError(fromTensor(y), { ...expected[o]!, dtype: y.dtype });
      if (error > value) {
        value = error;
        detail[0] = `output ${o}[${index}] = ${fromTensor(y).data[index]}, expected ${expected[o]!.data[index]}`;
      }
    });
    backward(
      used.map((o) => outputs[o]!),
      used.map((o) => toTensor(makeNumbers(outputs[o]!.dtype, outputs[o]!.shape, weights[o]!.data, ""))),
    );
    leaves.forEach((leaf, i) => {
      if (c.inputs[i]!.constant) return;
      const want = numbers("f32", inputs[i]!.shape);
      for (let e = 0; e < want.data.length; e++) {
        const at = (h: number): number => {
          const x = wide();
          x[i]!.data[e]! += h;
          return loss(x);
        };
        const h = 1e-5;
        want.data[e] = (at(h) - at(-h)) / (2 * h);
      }
      const got = leaf.grad ? fromTensor(leaf.grad) : numbers("f32", inputs[i]!.shape);
      const shape = leaf.grad && leaf.grad.shape.join() !== leaf.shape.join();
      const { error, index } = shape ? { error: Infinity, index: 0 } : largestError(got, want, 1e-6);
      if (error > gradient) {
        gradient = error;
        detail[1] = shape
          ? `input ${i}: gradient of shape [${leaf.grad!.shape.join(", ")}]`
          : `input ${i}: gradient[${index}] = ${got.data[index]}, expected ${want.data[index]}`;
      }
      leaf.grad?.dispose();
      leaf.grad = undefined;
    });
  });
  return {
    value,
    gradient,
    tolerance,
    detail: detail.filter(Boolean).join("; "),
    ok: value <= tolerance && gradient <= tolerance,
  };
}
