/** A frozen base in 8-bit floats: half the memory of 16 bits, and products on the FP8 tensor cores; adapters train on top in full precision. */
import { type Linear, type LinearGroup, native, noGrad, onDevice, parseOptions } from "@llm/core";
import type { CausalLM } from "@llm/models";
import * as v from "valibot";

export const QuantizeFp8Options = v.strictObject({
  /** Free each dense weight as it is replaced; the given model can then no longer be used. @default false */
  release: v.optional(v.boolean(), false),
});
export type QuantizeFp8Options = v.InferInput<typeof QuantizeFp8Options>;

/**
 * A model whose dense linears of the blocks are stored as e4m3 with an f32 scale for each out feature (embedding, norms, biases and output head
 * stay). Every product with such a weight quantizes its other operand row by row in the same way: activations in the forward pass,
 * gradients in the backward pass. With `applyLora` on top only the adapters train; they see activations and gradients as they are.
 * Fast on NVIDIA's Hopper (cuBLASLt 12.9 or later); elsewhere it gives the same numbers and saves memory only.
 * @see Micikevicius et al. 2022, arXiv:2209.05433
 */
export function quantizeFp8(model: CausalLM, options: QuantizeFp8Options = {}): CausalLM {
  const { release } = parseOptions(QuantizeFp8Options, options, "quantizeFp8");
  const { decoder } = model;
  const change = (linear: Linear): Linear => {
    if (linear === decoder.head || linear.storage.kind !== "dense") return linear;
    const { weight } = linear.storage;
    const [q, scale] = native.quantizeFp8(weight);
    if (release) weight.dispose();
    return linear.with({ storage: { kind: "fp8", q: q.keep(), scale: scale.keep() } });
  };
  const group = (g: LinearGroup): LinearGroup => {
    if (g.fused?.storage.kind !== "dense") return g.map(change);
    const made = g.over(change(g.fused));
    if (release) for (const l of g.linears) if (l.storage.kind === "dense") l.storage.weight.dispose();
    return made;
  };
  return model.withDecoder(onDevice(model.device, () => noGrad(() => decoder.mapLinears(change, group))));
}
