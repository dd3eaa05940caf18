import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { backward, defaultDevice, linearCrossEntropy, openSafetensors, scope, tensor } from "@llm/core";
import { describe, expect, it } from "vitest";
import { loadTokenizer } from "./tokenizer/index.js";
import { CausalLM, modelSpec } from "./model.js";
import { readDecoder } from "./weights.js";

// Gradients of torch on the same weights and batch; tools/oracle/training.py wrote them.
const fixtures = fileURLToPath(new URL("./fixtures/oracle/", import.meta.url));
interface Batch {
  ids_T: number[];
  labels_T: number[];
  positions_T: number[];
  lossWeights_T: number[];
  cuSeqlens_B1: number[];
}
const { batch, loss, weights } = JSON.parse(readFileSync(`${fixtures}gradients.json`, "utf8")) as {
  batch: Batch;
  loss: number;
  weights: string;
};
const cases = JSON.parse(readFileSync(`${fixtures}logits.json`, "utf8")) as {
  name: string;
  config: Record<string, unknown>;
}[];

async function load(): Promise<CausalLM> {
  const { config } = cases.find((c) => c.name === weights)!;
  const { definition, spec } = modelSpec(config);
  return new CausalLM({
    definition,
    config,
    decoder: readDecoder(`${fixtures}weights/${weights}`, definition, spec, { device: defaultDevice() }),
    tokenizer: await loadTokenizer(fixtures),
  });
}

describe("a packed batch of three documents, weighted labels", () => {
  it.each([false, true])(
    "gives torch's loss and the gradient of every weight within 1e-4 (checkpointing: %s)",
    async (checkpointing) => {
      const model = await load();
      const trained = model.decoder.trainable();
      for (const { tensor: t } of trained) t.requiresGrad = true;
      const labelled = batch.labels_T.map((label, i) => (label === -100 ? 0 : batch.lossWeights_T[i]!));
      const weightSum = labelled.reduce((a, b) => a + b, 0);
      const sum = scope(() => {
        const hidden = model.hidden(
          {
            ids_T: Int32Array.from(batch.ids_T),
            positions_T: Int32Array.from(batch.positions_T),
            cuSeqlens_B1: Int32Array.from(batch.cuSeqlens_B1),
          },
          { checkpointing },
        );
        const { loss: lossSum } = linearCrossEntropy(
          hidden,
          model.decoder.headFor(),
          tensor(Int32Array.from(batch.labels_T)),
          tensor(Float32Array.from(batch.lossWeights_T)),
        );
        const value = lossSum.itemSync();
        backward(lossSum);
        return value;
      });
      expect(Math.abs(sum / weightSum / loss - 1)).toBeLessThan(1e-5);

      const expected = openSafetensors(`${fixtures}gradients.safetensors`);
      const compared = new Set<string>();
      for (const { name, tensor: t } of trained) {
        // A fused group is one tensor: its members' gradients stand one below the other.
        const suffix = name.slice(name.lastIndexOf(".") + 1);
        const members = name
          .slice(0, -suffix.length - 1)
          .split("+")
          .map((n) => `${n}.${suffix}`);
        const parts = members.map((n) => {
          compared.add(n);
          return new Float32Array(expected.read(n).buffer);
        });
        const gradient = t.grad!.dataSync() as Float32Array;
        expect(parts.reduce((n, p) => n + p.length, 0)).toBe(gradient.length);
        let at = 0;
        for (const [i, part] of parts.entries()) {
          const largest = part.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
          // A shift of all keys of a head by one vector leaves the softmax as it is: the exact gradient of a key bias is near 0.
          const scale = Math.max(largest, 1e-3);
          const worst = part.reduce((m, x) => Math.max(m, Math.abs(gradient[at++]! / weightSum - x) / scale), 0);
          expect(worst, members[i]!).toBeLessThan(1e-4);
        }
      }
      expect([...compared].sort()).toEqual([...expected.tensors.keys()].sort());
      expected.close();
      model.dispose();
    },
  );
});
