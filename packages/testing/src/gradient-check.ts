/** Gradients against differences of the loss. */
import { backward, type NamedTensor, noGrad, scope, type Tensor } from "@llm/core";

export interface GradientCheckOptions {
  /** Entries compared of each tensor: half those with the largest gradients, half spread over it. @default 6 */
  entries?: number;
  /** Distance between two points of the stencil. @default 1e-2 */
  step?: number;
}

export interface GradientError {
  name: string;
  index: number;
  /** By backward(). */
  analytic: number;
  /** By differences. */
  numeric: number;
  /** |analytic − numeric| / (largest |gradient| of the tensor + 1e-6) */
  error: number;
}

const total = (t: Tensor): number => {
  let sum = 0;
  for (const value of t.dataSync() as Float32Array) sum += value;
  return sum;
};

/**
 * Compares ∂loss/∂p of backward() with the five-point difference (8(f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h for some entries of each f32
 * parameter, whose values are put back. Truncation is O(h⁴); what remains is rounding of `terms`, about 1e-7 · |term| / h.
 * @param loss  computes the scalar to differentiate and, when it is a sum of many terms, the terms: they are added in double precision
 * @returns every comparison, the worst first
 * @see Abramowitz & Stegun 1964, table 25.2
 */
export function gradientCheck(
  loss: () => { loss: Tensor; terms?: Tensor },
  parameters: readonly NamedTensor[],
  options: GradientCheckOptions = {},
): GradientError[] {
  const { entries = 6, step = 1e-2 } = options;
  const flags = parameters.map((p) => p.tensor.requiresGrad);
  for (const { tensor } of parameters) {
    if (tensor.dtype !== "f32") throw new TypeError(`gradientCheck takes f32 parameters, got ${tensor.dtype}`);
    tensor.grad?.dispose();
    tensor.grad = undefined;
    tensor.requiresGrad = true;
  }
  scope(() => backward(loss().loss));
  const value = (): number =>
    noGrad(() =>
      scope(() => {
        const out = loss();
        return total(out.terms ?? out.loss);
      }),
    );
  const errors: GradientError[] = [];
  parameters.forEach(({ name, tensor }, p) => {
    const grad = tensor.grad
      ? Float32Array.from(tensor.grad.dataSync() as Float32Array)
      : new Float32Array(tensor.size);
    tensor.grad?.dispose();
    tensor.grad = undefined;
    tensor.requiresGrad = flags[p]!;
    const original = Float32Array.from(tensor.dataSync() as Float32Array);
    const byModulus = Array.from(grad.keys()).sort((a, b) => Math.abs(grad[b]!) - Math.abs(grad[a]!));
    const largest = Math.abs(grad[byModulus[0]!] ?? 0);
    const half = Math.ceil(entries / 2);
    const spread = Array.from({ length: entries - half }, (_, i) =>
      Math.floor(((i + 0.5) * tensor.size) / (entries - half)),
    );
    for (const index of new Set([...byModulus.slice(0, half), ...spread])) {
      const at = (offset: number): number => {
        const moved = original.slice();
        moved[index] = original[index]! + offset;
        tensor.write(moved);
        return value();
      };
      const numeric = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
      errors.push({
        name,
        index,
        analytic: grad[index]!,
        numeric,
        error: Math.abs(grad[index]! - numeric) / (largest + 1e-6),
      });
    }
    tensor.write(original);
  });
  return errors.sort((a, b) => b.error - a.error);
}
