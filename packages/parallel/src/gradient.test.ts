import { backward, linearCrossEntropy, type NamedTensor, randomNormal, scope, tensor } from "@llm/core";
import type { CausalLM, TokenBatch } from "@llm/models";
import { gradientCheck, packIds, randomDocuments, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { withAdapters } from "./adapters.test-support.js";
import { batchWeight, causalLanguageModel } from "./objective.js";
import { adapterTensors } from "./parameters.js";

const context = { step: 0, totalSteps: 1, checkpointing: false, training: true };

function gradients(
  model: CausalLM,
  batches: readonly TokenBatch[],
  checkpointing: boolean,
  parameters: readonly NamedTensor[] = model.decoder.trainable(),
): Map<string, Float32Array> {
  for (const p of parameters) p.tensor.requiresGrad = true;
  for (const batch of batches)
    scope(() => backward(causalLanguageModel(model, batch, { ...context, checkpointing }).lossSum));
  return new Map(
    parameters.map(({ name, tensor: t }) => {
      const values = Float32Array.from(t.grad!.dataSync() as Float32Array);
      t.grad!.dispose();
      t.grad = undefined;
      t.requiresGrad = false;
      return [name, values];
    }),
  );
}

const loss = (model: CausalLM, batch: TokenBatch) => () => {
  const { loss: sum, nll } = linearCrossEntropy(
    model.hidden(batch),
    model.decoder.headFor(),
    tensor(batch.labels_T),
    batch.lossWeights_T ? tensor(batch.lossWeights_T) : null,
  );
  return { loss: sum, terms: nll };
};

describe("gradients of a small Qwen2", () => {
  const options = { vocabSize: 270, layers: 2, hidden: 24, heads: 4, kvHeads: 2, intermediate: 40 };

  it.each([
    ["tied", "qwen2", true],
    ["untied", "qwen2", false],
    ["with query and key norms", "qwen3", true],
  ] as const)("agree with differences for every parameter: %s", (_, modelType, tied) => {
    const model = tinyModel({ ...options, modelType, tied, std: 0.2 });
    const batch = {
      ...packIds(randomDocuments([5, 7], { vocabSize: 270 })),
      lossWeights_T: Float32Array.from({ length: 12 }, (__, t) => 0.5 + t / 8),
    };
    const errors = gradientCheck(loss(model, batch), model.decoder.trainable());
    expect(new Set(errors.map((e) => e.name)).size).toBe(model.decoder.trainable().length);
    expect(errors[0]!.error, JSON.stringify(errors[0])).toBeLessThan(2e-3);
    model.dispose();
  });

  it("of adapters agree with differences", () => {
    const model = withAdapters(tinyModel({ ...options, std: 0.2 }), { rank: 3, initB: 0.3 });
    const batch = packIds(randomDocuments([6, 6], { vocabSize: 270 }));
    const errors = gradientCheck(loss(model, batch), adapterTensors(model.decoder));
    expect(errors[0]!.error, JSON.stringify(errors[0])).toBeLessThan(2e-3);
    model.dispose();
  });

  it("a wrong gradient does not agree", () => {
    const model = tinyModel(options);
    const batch = packIds(randomDocuments([6], { vocabSize: 270 }));
    const honest = loss(model, batch);
    const errors = gradientCheck(() => ({ ...honest(), terms: tensor([0]) }), model.decoder.trainable().slice(0, 1));
    expect(errors[0]!.error).toBeGreaterThan(0.5);
    model.dispose();
  });

  it.each(["f32", "bf16"] as const)(
    "are the same bits with activation checkpointing, dropout included (%s)",
    (dtype) => {
      const model = withAdapters(tinyModel({ ...options, dtype }), { rank: 2, initB: 0.1, dropout: 0.3 });
      const batch = packIds(randomDocuments([9, 3, 12], { vocabSize: 270 }));
      const parameters = [...model.decoder.trainable(), ...adapterTensors(model.decoder)];
      const kept = gradients(model, [batch], false, parameters);
      const recomputed = gradients(model, [batch], true, parameters);
      for (const [name, values] of kept) expect(recomputed.get(name), name).toEqual(values);
      model.dispose();
    },
  );

  it("of packed documents are those of the documents one by one", () => {
    const model = tinyModel({ ...options, std: 0.2 });
    const documents = randomDocuments([11, 2, 17, 6], { vocabSize: 270 });
    const packed = gradients(model, [packIds(documents)], false);
    const separate = gradients(
      model,
      documents.map((d) => packIds([d])),
      false,
    );
    for (const [name, values] of packed) {
      const other = separate.get(name)!;
      const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const worst = values.reduce((most, v, i) => Math.max(most, Math.abs(v - other[i]!)), 0);
      expect(worst / scale, name).toBeLessThan(1e-6);
    }
    model.dispose();
  });

  it.each(["f32", "bf16"] as const)(
    "are the same when prompts are skipped before the output projection (%s)",
    (dtype) => {
      const documents = randomDocuments([30, 25], { vocabSize: 270 });
      const answers = packIds(documents, { learn: (_, t) => t % 4 === 3 });
      const weights = Float32Array.from(answers.labels_T, (label) => (label < 0 ? 0 : 1));
      // Every position has a label here, so nothing is skipped; the weights say what counts.
      const all = { ...packIds(documents), lossWeights_T: weights };
      all.labels_T[29] = 0;
      all.labels_T[54] = 0;
      const model = withAdapters(tinyModel({ ...options, dtype, tied: false }), { rank: 2, initB: 0.2 });
      const parameters = [...model.decoder.trainable(), ...adapterTensors(model.decoder)];
      const skipped = gradients(model, [answers], false, parameters);
      for (const [name, values] of gradients(model, [all], false, parameters)) {
        const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        const worst = values.reduce((most, v, i) => Math.max(most, Math.abs(v - skipped.get(name)![i]!)), 0);
        expect(worst / scale, name).toBeLessThan(dtype === "f32" ? 1e-6 : 0.02);
      }
      model.dispose();
    },
  );

  it("of an adapted head agree with differences", () => {
    const plain = tinyModel({ ...options, tied: false, std: 0.2 });
    const head = plain.decoder.head!;
    const a = randomNormal([2, 24], { seed: 1, std: 0.3 }).keep();
    const b = randomNormal([270, 2], { seed: 2, std: 0.3 }).keep();
    const model = plain.mapLinears((l) =>
      l === head ? l.with({ deltas: [{ kind: "lora", name: "test", a, b, scale: 0.5 }] }) : l,
    );
    const batch = packIds(randomDocuments([7, 4], { vocabSize: 270 }));
    const objective = () => ({ loss: causalLanguageModel(model, batch, context).lossSum });
    const errors = gradientCheck(objective, adapterTensors(model.decoder));
    expect(errors).toHaveLength(12);
    expect(errors[0]!.error, JSON.stringify(errors[0])).toBeLessThan(5e-3);
    model.dispose();
  });

  it("of one document do not see the others: nothing leaks into a document that learns nothing", () => {
    const model = tinyModel({ ...options, tied: false, vocabSize: 300 });
    // The first document uses ids of its own; only the second one is learned.
    const first = Int32Array.from({ length: 8 }, (_, i) => 280 + i);
    const second = randomDocuments([10], { vocabSize: 250 })[0]!;
    const batch = packIds([first, second], { learn: (document) => document === 1 });
    expect(batchWeight(batch)).toBe(9);
    const embedding = gradients(model, [batch], false).get("model.embed_tokens.weight")!;
    expect(embedding.subarray(280 * 24).every((v) => v === 0)).toBe(true);
    expect(embedding.subarray(0, 280 * 24).some((v) => v !== 0)).toBe(true);
    model.dispose();
  });
});
