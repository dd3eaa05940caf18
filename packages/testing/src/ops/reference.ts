/**
 * What every op of native/ops.def computes, in f64 and plain loops: the oracle of all devices. A reference takes the inputs (already rounded
 * to their dtypes), returns the outputs and changes inputs marked `!` in place. Results are not rounded, but where the op is defined in
 * f32 steps (quantizers: a code depends on the last bit).
 */
import { elementwise } from "./reference-elementwise.js";
import { layers } from "./reference-layers.js";
import { losses } from "./reference-loss.js";
import type { Numbers } from "./numbers.js";
import { fp8 } from "./reference-fp8.js";
import { quantization } from "./reference-quant.js";
import { sampling } from "./reference-sampling.js";

/** Inputs in ops.def order, variadic ones one after another; null = absent. */
export type Reference = (inputs: (Numbers | null)[], attributes: readonly number[]) => Numbers[];

/**
 * The references by op name. `repack_w4`, `repack_q8`, `linear_w4` and `linear_q8` are missing: their layout is each device's own, so
 * they are proven together, against the dequantized weights (checks-quant.ts).
 */
export const references: Readonly<Record<string, Reference>> = {
  ...elementwise,
  ...layers,
  ...losses,
  ...quantization,
  ...fp8,
  ...sampling,
};
