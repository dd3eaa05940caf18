/** The base of QLoRA: linears in 4-bit NormalFloat, frozen; adapters train on top of them in full precision. */
import {
  type LinearStorage,
  native,
  noGrad,
  onDevice,
  parseOptions,
  reshape,
  scope,
  sub,
  type Tensor,
} from "@llm/core";
import type { CausalLM } from "@llm/models";
import * as v from "valibot";

export const QuantizeNf4Options = v.strictObject({
  /** Weights that share a scale: a multiple of 2. @default 64 */
  block: v.optional(v.pipe(v.number(), v.integer(), v.minValue(2), v.multipleOf(2)), 64),
  /** Keep the scales in 8 bits too, in groups of 256: 4.13 instead of 4.5 bits a weight. @default true */
  doubleQuantization: v.optional(v.boolean(), true),
  /** Free each dense weight as it is replaced; the given model can then no longer be used. @default false */
  release: v.optional(v.boolean(), false),
});
export type QuantizeNf4Options = v.InferInput<typeof QuantizeNf4Options>;

/** Scales of double quantization that share one of theirs. */
const scaleGroup = 256;

/**
 * A model whose dense linears of the blocks are stored in NF4 (embedding, norms, biases and output head stay): what QLoRA trains on.
 * With `applyLora` on top only the adapters train; the weights are made dense in the activations' dtype for each product.
 * @see Dettmers et al. 2023, arXiv:2305.14314, sections 2 and 3
 */
export function quantizeNf4(model: CausalLM, options: QuantizeNf4Options = {}): CausalLM {
  const o = parseOptions(QuantizeNf4Options, options, "quantizeNf4");
  const { decoder } = model;
  const made = onDevice(model.device, () =>
    noGrad(() =>
      decoder.mapLinears((linear) => {
        if (linear === decoder.head || linear.storage.kind !== "dense") return linear;
        const { weight } = linear.storage;
        const storage = scope(() => {
          const [q, absmax] = native.quantizeNf4(weight, o.block);
          const kept: LinearStorage = {
            kind: "nf4",
            q: q.keep(),
            absmax: o.doubleQuantization ? quantizeScales(absmax) : absmax.keep(),
            block: o.block,
          };
          return kept;
        });
        if (o.release) weight.dispose();
        return linear.with({ storage });
      }),
    ),
  );
  if (o.release)
    for (const block of decoder.blocks)
      for (const { fused } of [block.qkv, block.gateUp])
        if (fused?.storage.kind === "dense") fused.storage.weight.dispose();
  return model.withDecoder(made);
}

/** absmax f32 [blocks] as offset + 8-bit steps: the mean is taken off first, because all are positive. */
function quantizeScales(absmax: Tensor): { q: Tensor; scales: Tensor; offset: Tensor; group: number } {
  const offset = native.scale(native.sum(absmax), 1 / absmax.size);
  const [q, scales] = native.quantizeQ8(reshape(sub(absmax, offset), [1, absmax.size]), scaleGroup);
  return { q: q.keep(), scales: scales.keep(), offset: offset.keep(), group: scaleGroup };
}
