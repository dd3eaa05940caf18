/** Adapters for tests of the trainer; applyLora of @llm/lora is the real thing. */
import { dropout, type NamedTensor, randomNormal, randomStep, scope, trainingForward } from "@llm/core";
import type { CausalLM } from "@llm/models";

/** A model with a low-rank update on every linear of every block; its tensors want gradients. */
export function withAdapters(model: CausalLM, options: { rank: number; initB?: number; dropout?: number }): CausalLM {
  let stream = 1000;
  return model.mapLinears((l) => {
    if (l.name === "lm_head") return l;
    const own = ++stream;
    const a = randomNormal([options.rank, l.inFeatures], { seed: 5, stream: own, std: 0.2, tag: "weights" }).keep();
    const b = randomNormal([l.outFeatures, options.rank], {
      seed: 6,
      stream: own,
      std: options.initB ?? 0,
      tag: "weights",
    }).keep();
    a.requiresGrad = true;
    b.requiresGrad = true;
    const p = options.dropout ?? 0;
    return l.with({
      deltas: [
        {
          kind: "lora",
          name: "test",
          a,
          b,
          scale: 0.5,
          ...(p > 0 ? { dropout: (x) => (trainingForward() ? dropout(x, p, randomStep(), own) : x) } : {}),
        },
      ],
    });
  });
}

/** All values of the tensors, in their own bits. */
export function bitsOf(parameters: readonly NamedTensor[]): Map<string, Uint8Array> {
  return scope(
    () =>
      new Map(
        parameters.map(({ name, tensor }) => {
          const bits = tensor.bitsSync();
          return [name, new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength).slice()];
        }),
      ),
  );
}
