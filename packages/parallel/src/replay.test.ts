import { memory, native, PlanError, synchronize, tensor, trimMemory } from "@llm/core";
import { type CausalLM, createModel, type TokenBatch } from "@llm/models";
import { packIds, randomDocuments, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { withAdapters } from "./adapters.test-support.js";
import { adapterTensors, type StepReport, train, type TrainOptions } from "./index.js";

/** Batches of several sizes; with prompts that are not learned, and weights, every other one. */
const batches = (): TokenBatch[] =>
  [[30, 12, 7], [64], [9, 80, 3, 21, 40], [17, 17], [5, 50, 33, 8]].map((lengths, i) => {
    const batch = packIds(randomDocuments(lengths, { vocabSize: 200, seed: i }));
    if (i % 2 === 0) return batch;
    const { labels_T } = batch;
    return {
      ...batch,
      labels_T: labels_T.map((label, t) => (t % 3 === 0 ? label : -100)),
      lossWeights_T: Float32Array.from(labels_T, (_, t) => 0.5 + (t % 4)),
    };
  });

/** Block weights in 8 bits, which are packed for their kernels on first use. */
const quantized = (): CausalLM =>
  tinyModel().mapLinears((l) => {
    if (l.storage.kind !== "dense") return l;
    const [q, scales] = native.quantizeQ8(l.storage.weight, 32);
    return l.with({ storage: { kind: "q8", q: q.keep(), scales: scales.keep(), group: 32 } });
  });

async function run(
  model: CausalLM,
  options: Partial<TrainOptions<CausalLM>>,
): Promise<{ reports: StepReport[]; weights: Float32Array[] }> {
  const parameters = model.decoder.trainable();
  const reports: StepReport[] = [];
  const training = train({ model, data: batches(), epochs: 3, lr: 3e-3, ...options });
  for await (const report of training) reports.push(report);
  const weights = parameters.map(({ tensor }) => tensor.dataSync() as Float32Array);
  model.dispose();
  return { reports, weights };
}

const furthest = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

describe("replayed steps", () => {
  it.each<[string, Partial<TrainOptions<CausalLM>>]>([
    ["batches of changing size", {}],
    ["micro-batches and accumulation", { accumulation: 2, microBatchTokens: 60 }],
    ["checkpointing", { checkpointing: true }],
    ["looking for gradients that are not finite", { onNonFinite: "skip", maxGradNorm: 0.5 }],
    ["momentum", { optimizer: "sgd", momentum: 0.9, lr: 0.05 }],
  ])("learn what steps computed anew learn: %s", async (_, options) => {
    const anew = await run(tinyModel(), options);
    const replayed = await run(tinyModel(), { ...options, replay: true });
    expect(replayed.reports).toHaveLength(anew.reports.length);
    replayed.reports.forEach((r, i) => {
      const expected = anew.reports[i]!;
      expect(Math.abs(r.loss / expected.loss - 1)).toBeLessThan(1e-4);
      expect(Math.abs(r.gradNorm / expected.gradNorm - 1)).toBeLessThan(1e-3);
      expect([r.lr, r.tokens, r.learnedTokens]).toEqual([expected.lr, expected.tokens, expected.learnedTokens]);
    });
    expect(anew.reports.at(-1)!.loss).toBeLessThan(anew.reports[0]!.loss);
    anew.weights.forEach((w, i) => expect(furthest(w, replayed.weights[i]!)).toBeLessThan(2e-3));
  });

  it("leave a step out whose loss is not finite, and go on", async () => {
    const data = batches().slice(0, 2);
    data[0]!.lossWeights_T = new Float32Array(data[0]!.ids_T.length).fill(Infinity);
    const { reports } = await run(tinyModel(), { data, onNonFinite: "skip", replay: true });
    expect(reports.map((r) => r.skipped ?? "updated")).toEqual(
      Array.from({ length: 6 }, (_, i) => (i % 2 === 0 ? "non-finite" : "updated")),
    );
    expect(reports[5]!.loss).toBeLessThan(reports[1]!.loss);
  });

  it("train adapters, and hold no memory afterwards", async () => {
    const once = async (): Promise<void> => {
      const model = withAdapters(tinyModel(), { rank: 4 });
      const reports: StepReport[] = [];
      for await (const r of train({ model, data: batches(), epochs: 4, lr: 1e-2, replay: true })) reports.push(r);
      expect(reports.at(-1)!.loss).toBeLessThan(reports[0]!.loss);
      model.dispose();
    };
    await once();
    const before = memory().liveTensors;
    await once();
    expect(memory().liveTensors).toBe(before);
  });

  it("refuse dropout, and objectives that have no part for it", async () => {
    const model = withAdapters(tinyModel(), { rank: 4, dropout: 0.1 });
    await expect(train({ model, data: batches(), lr: 1e-2, replay: true }).done).rejects.toThrow(PlanError);
    model.dispose();
    const other = tinyModel();
    expect(() =>
      train({
        model: other,
        data: batches(),
        replay: true,
        objective: () => {
          throw new Error("not reached");
        },
      }),
    ).toThrow(/\[train\] replay: the objective has no `replay` part/);
    other.dispose();
  });

  it("pack a quantized base before they record it: a refused recording leaves it as it was", async () => {
    const base = quantized();
    const ids = Int32Array.of(5, 6, 7, 8);
    const logits = (): Float32Array => base.logits(ids).dataSync() as Float32Array;
    const model = withAdapters(base, { rank: 4 });
    const extra = tensor([1, 2]).keep();
    const parameters = [...adapterTensors(model.decoder), { name: "extra", tensor: extra }];
    await expect(train({ model, data: batches(), lr: 1e-2, parameters, replay: true }).done).rejects.toThrow(/extra/);
    extra.dispose();
    const after = logits();
    const untouched = quantized();
    expect(after).toEqual(untouched.logits(ids).dataSync());
    untouched.dispose();
    model.dispose();
  });

  it("refuse a model whose angles would be those of another length, and one with a forward pass of its own", async () => {
    const like = tinyModel();
    const dynamic = createModel(
      {
        ...like.config,
        model_type: "llama",
        max_position_embeddings: 64,
        rope_scaling: { rope_type: "dynamic", factor: 4 },
      },
      like.tokenizer,
      { seed: 1 },
    );
    like.dispose();
    await expect(train({ model: dynamic, data: batches(), lr: 1e-3, replay: true }).done).rejects.toThrow(
      /beyond 64 positions/,
    );
    dynamic.dispose();
    const own = tinyModel();
    own.hidden = () => {
      throw new Error("not reached");
    };
    await expect(train({ model: own, data: batches(), lr: 1e-3, replay: true }).done).rejects.toThrow(
      /`hidden` of its own/,
    );
    own.dispose();
  });

  it("name a parameter that the loss does not depend on", async () => {
    const model = tinyModel();
    const extra = tensor([1, 2]).keep();
    const parameters = [...model.decoder.trainable(), { name: "extra", tensor: extra }];
    await expect(train({ model, data: batches(), lr: 1e-3, parameters, replay: true }).done).rejects.toThrow(
      /does not depend on extra/,
    );
    model.dispose();
    extra.dispose();
  });

  it("hold one recording at a time, also where a larger batch is recorded anew", async () => {
    const of = (lengths: number[]): TokenBatch => packIds(randomDocuments(lengths, { vocabSize: 200 }));
    const peak = async (data: TokenBatch[]): Promise<number> => {
      const model = tinyModel({ hidden: 64 });
      synchronize();
      trimMemory();
      const before = memory().liveBytes;
      await train({ model, data, lr: 1e-3, replay: true }).done;
      const { peakBytes } = memory();
      model.dispose();
      return peakBytes - before;
    };
    const large = await peak([of([500, 500])]);
    expect(await peak([of([400, 400]), of([500, 500])])).toBeLessThan(1.35 * large);
  });
});
