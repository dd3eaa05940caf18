import {
  createAdamW,
  full,
  memory,
  native,
  NumericError,
  OptionsError,
  scale,
  scope,
  setExecution,
  synchronize,
  tensor,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM, TokenBatch } from "@llm/models";
import { packIds, randomDocuments, tinyModel } from "@llm/testing";
import { describe, expect, it, vi } from "vitest";
import { bitsOf, withAdapters } from "./adapters.test-support.js";
import {
  batchWeight,
  type BatchRequest,
  causalLanguageModel,
  type StepReport,
  train,
  type TrainResult,
} from "./index.js";
import { adapterTensors } from "./parameters.js";

const text = (model: CausalLM, line = "the quick brown fox jumps over the lazy dog. "): TokenBatch =>
  packIds([model.tokenizer.encode(line), model.tokenizer.encode("hello world")]);

async function collect(run: AsyncIterable<StepReport>): Promise<StepReport[]> {
  const reports: StepReport[] = [];
  for await (const report of run) reports.push(report);
  return reports;
}

const largest = (values: Float32Array): number => values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);

/** Documents in batches by number, as a data set gives them. */
function source(documents: readonly Int32Array[]) {
  return {
    length: documents.length,
    tokenCount: documents.reduce((n, d) => n + d.length, 0),
    batches: ({ batchSize = 1, epochs = 1, startStep = 0 }: BatchRequest) => {
      const perEpoch = Math.ceil(documents.length / batchSize);
      return {
        totalSteps: perEpoch * epochs,
        *[Symbol.iterator]() {
          for (let at = startStep; at < perEpoch * epochs; at++) {
            const first = (at % perEpoch) * batchSize;
            yield { ...packIds(documents.slice(first, first + batchSize)), epoch: Math.floor(at / perEpoch) };
          }
        },
      };
    },
  };
}

describe("train", () => {
  it.each(["f32", "bf16"] as const)("makes the loss of a small model fall in %s", async (dtype) => {
    const model = tinyModel({ dtype });
    const reports = await collect(train({ model, data: [text(model)], steps: 60, lr: 1e-2, precision: dtype }));
    expect(reports[0]!.loss).toBeGreaterThan(5);
    expect(reports.at(-1)!.loss).toBeLessThan(0.2);
    model.dispose();
  });

  it("reports every step with its numbers", async () => {
    const model = tinyModel();
    const batch = text(model);
    const seen: number[] = [];
    const run = train({
      model,
      data: [batch],
      steps: 6,
      lr: 0.01,
      schedule: { kind: "linear", warmupSteps: 2 },
      onReport: (r) => seen.push(r.step),
    });
    const reports = await collect(run);
    expect(reports.map((r) => r.step)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(seen).toEqual([1, 2, 3, 4, 5, 6]);
    const first = reports[0]!;
    expect(first).toMatchObject({
      totalSteps: 6,
      epoch: 0,
      tokens: batch.ids_T.length,
      learnedTokens: batchWeight(batch),
    });
    expect(reports.map((r) => r.lr)).toEqual(
      [0.01 / 3, 0.02 / 3, 0.01, 0.0075, 0.005, 0.0025].map((lr) => expect.closeTo(lr, 9)),
    );
    for (const r of reports) {
      expect(r.gradNorm).toBeGreaterThan(0);
      expect(r.tokensPerSecond).toBeGreaterThan(0);
      expect(r.memoryBytes).toBeGreaterThan(0);
    }
    expect(reports.at(-1)!.etaMs).toBe(0);
    expect(await run.done).toMatchObject({ steps: 6, loss: reports.at(-1)!.loss, tokens: 6 * batch.ids_T.length });
    model.dispose();
  });

  it("reports the loss and gradient norm that the definition gives", async () => {
    const model = tinyModel();
    const batch = { ...text(model) };
    batch.lossWeights_T = Float32Array.from({ length: batch.ids_T.length }, (_, t) => (t % 3) / 2);
    const parameters = model.decoder.trainable();
    for (const p of parameters) p.tensor.requiresGrad = true;
    const { loss } = await collect(train({ model, data: [batch], steps: 1, lr: 0, maxGradNorm: 0, parameters })).then(
      ([r]) => r!,
    );
    const logits = scope(() => model.decoder.logits(model.hidden(batch)).keep());
    const values = logits.dataSync() as Float32Array;
    let sum = 0;
    batch.labels_T.forEach((label, t) => {
      if (label < 0) return;
      const row = Array.from(values.subarray(t * 259, t * 259 + 259));
      sum += batch.lossWeights_T![t]! * (Math.log(row.reduce((a, v) => a + Math.exp(v), 0)) - row[label]!);
    });
    expect(loss).toBeCloseTo(sum / batchWeight(batch), 4);
    logits.dispose();
    model.dispose();
  });

  it("does not depend on how the step is cut into micro-batches", async () => {
    const documents = randomDocuments([31, 5, 18, 12, 9, 27, 3, 14], { vocabSize: 259 });
    const weights = async (options: { batchSize: number; accumulation?: number; microBatchTokens?: number }) => {
      const model = tinyModel();
      const run = train({
        model,
        data: source(documents),
        steps: 3,
        lr: 1e-2,
        optimizer: "sgd",
        maxGradNorm: 0.5,
        ...options,
      });
      const reports = await collect(run);
      const values = model.decoder.trainable().map((p) => Float32Array.from(p.tensor.dataSync() as Float32Array));
      model.dispose();
      return { reports, values };
    };
    const whole = await weights({ batchSize: 8 });
    for (const cut of [
      { batchSize: 8, microBatchTokens: 40 },
      { batchSize: 8, microBatchTokens: 1 },
      { batchSize: 2, accumulation: 4 },
      { batchSize: 4, accumulation: 2, microBatchTokens: 20 },
    ]) {
      const parts = await weights(cut);
      parts.reports.forEach((r, i) => {
        expect(r.tokens).toBe(whole.reports[i]!.tokens);
        expect(Math.abs(r.loss - whole.reports[i]!.loss)).toBeLessThan(2e-6);
        expect(Math.abs(r.gradNorm / whole.reports[i]!.gradNorm - 1)).toBeLessThan(2e-6);
      });
      parts.values.forEach((values, i) => {
        const difference = largest(values.map((v, j) => v - whole.values[i]![j]!));
        expect(difference / largest(values)).toBeLessThan(2e-6);
      });
    }
  });

  it("weighs every token alike when micro-batches have very different numbers of labels, none included", async () => {
    const model = tinyModel();
    const documents = randomDocuments([40, 40, 40], { vocabSize: 259 });
    const batch = packIds(documents, { learn: (d, t) => (d === 0 ? t < 1 : d === 1) });
    const [whole] = await collect(train({ model, data: [batch], steps: 1, lr: 0 }));
    const [parts] = await collect(train({ model, data: [batch], steps: 1, lr: 0, microBatchTokens: 40 }));
    expect(whole!.learnedTokens).toBe(1 + 39);
    expect(parts!.loss).toBeCloseTo(whole!.loss, 5);
    expect(parts!.gradNorm / whole!.gradNorm).toBeCloseTo(1, 5);
    model.dispose();
  });

  it("gives a step without labels no update and says so", async () => {
    const model = tinyModel();
    const before = bitsOf(model.decoder.trainable());
    const [report] = await collect(
      train({ model, data: [packIds(randomDocuments([9], { vocabSize: 259 }), { learn: () => false })], steps: 1 }),
    );
    expect(report).toMatchObject({ skipped: "no-labels", learnedTokens: 0, loss: Number.NaN });
    expect(bitsOf(model.decoder.trainable())).toEqual(before);
    model.dispose();
  });

  it("trains only the adapters when there are some, and gives the flags back", async () => {
    const model = withAdapters(tinyModel(), { rank: 4 });
    const base = bitsOf(model.decoder.trainable());
    const adapters = bitsOf(adapterTensors(model.decoder));
    const reports = await collect(train({ model, data: [text(model)], steps: 30, lr: 3e-2 }));
    expect(reports.at(-1)!.loss).toBeLessThan(reports[0]!.loss - 1);
    expect(bitsOf(model.decoder.trainable())).toEqual(base);
    for (const [name, bits] of bitsOf(adapterTensors(model.decoder)))
      expect(bits, name).not.toEqual(adapters.get(name));
    expect(adapterTensors(model.decoder).every((p) => p.tensor.requiresGrad && p.tensor.grad === undefined)).toBe(true);
    expect(model.decoder.trainable().some((p) => p.tensor.requiresGrad)).toBe(false);
    model.dispose();
  });

  it("trains f32 adapters on a bf16 base", async () => {
    const model = withAdapters(tinyModel({ dtype: "bf16" }), { rank: 4, dropout: 0.1 });
    const reports = await collect(train({ model, data: [text(model)], steps: 30, lr: 3e-2 }));
    expect(reports.at(-1)!.loss).toBeLessThan(reports[0]!.loss - 1);
    model.dispose();
  });

  it("trains a chosen list of tensors and nothing else", async () => {
    const model = tinyModel();
    const norms = model.decoder.trainable().filter((p) => p.name.includes("norm"));
    const before = bitsOf(model.decoder.trainable());
    await train({ model, data: [text(model)], steps: 2, lr: 0.1, parameters: norms }).done;
    const changed = [...bitsOf(model.decoder.trainable())]
      .filter(([name, bits]) => Buffer.compare(bits, before.get(name)!) !== 0)
      .map(([name]) => name);
    expect(changed.sort()).toEqual(norms.map((p) => p.name).sort());
    model.dispose();
  });

  it("takes another objective, with metrics and a weight that only the device knows", async () => {
    const model = tinyModel();
    const batch = text(model);
    const plain = await collect(train({ model, data: [batch], steps: 2, lr: 1e-2 }));
    const again = tinyModel();
    const other = await collect(
      train({
        model: again,
        data: [batch],
        steps: 2,
        lr: 1e-2,
        objective: (m, b, context) => {
          const { lossSum, weightSum } = causalLanguageModel(m, b, context);
          return { lossSum, weightSum: tensor([weightSum as number]), metrics: { twice: native.scale(lossSum, 2) } };
        },
      }),
    );
    expect(other.map((r) => r.loss)).toEqual(plain.map((r) => r.loss));
    expect(other[1]!.metrics!["twice"]).toBeCloseTo(2 * plain[1]!.loss, 5);
    model.dispose();
    again.dispose();
  });

  it("takes an optimizer that was made by hand", async () => {
    const model = tinyModel();
    const optimizer = createAdamW(model.decoder.trainable(), { weightDecay: 0.1 });
    await train({ model, data: [text(model)], steps: 3, lr: 1e-2, optimizer }).done;
    expect(optimizer.stepCount).toBe(3);
    expect(() => train({ model, data: [text(model)], steps: 3, optimizer, weightDecay: 0.2 })).toThrow(
      /weightDecay: has no effect/,
    );
    optimizer.dispose();
    model.dispose();
  });

  it("runs to the end when nobody reads, and when a reader leaves early", async () => {
    const model = tinyModel();
    const silent = train({ model, data: [text(model)], steps: 5 });
    expect((await silent.done).steps).toBe(5);
    expect(silent.reports).toHaveLength(5);
    const left = train({ model, data: [text(model)], steps: 8 });
    for await (const report of left) if (report.step === 2) break;
    expect((await left.done).steps).toBe(8);
    expect((await collect(left)).map((r) => r.step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    model.dispose();
  });

  it("lets the event loop run between steps", async () => {
    const model = tinyModel({ hidden: 64 });
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    await train({ model, data: [packIds(randomDocuments([64, 64], { vocabSize: 259 }))], steps: 40 }).done;
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(10);
    model.dispose();
  });

  it("ends with the signal's reason", async () => {
    const model = tinyModel();
    const stop = new AbortController();
    const run = train({ model, data: [text(model)], steps: 1000, signal: stop.signal });
    const reason = new Error("enough");
    const steps: number[] = [];
    await expect(async () => {
      for await (const report of run) {
        steps.push(report.step);
        if (report.step === 3) stop.abort(reason);
      }
    }).rejects.toBe(reason);
    await expect(run.done).rejects.toBe(reason);
    expect(steps.at(-1)).toBeLessThan(10);
    model.dispose();
  });

  it("stops at a gradient that is not finite, naming the step", async () => {
    const model = tinyModel();
    const bad = (m: CausalLM, b: TokenBatch, context: Parameters<typeof causalLanguageModel>[2]) => {
      const { lossSum, weightSum } = causalLanguageModel(m, b, context);
      return { lossSum: context.step === 2 ? scale(lossSum, Number.NaN) : lossSum, weightSum };
    };
    const run = train({ model, data: [text(model)], steps: 6, objective: bad });
    const error = await run.done.then(
      () => undefined,
      (e: unknown) => e,
    );
    expect(error).toBeInstanceOf(NumericError);
    expect((error as NumericError).data).toMatchObject({ step: 3 });
    expect(run.reports.map((r) => r.step)).toEqual([1, 2]);
    model.dispose();
  });

  it("can leave out updates that are not finite and go on", async () => {
    const model = tinyModel();
    const weights: Map<string, Uint8Array>[] = [];
    const run = train({
      model,
      data: [text(model)],
      steps: 4,
      lr: 1e-2,
      onNonFinite: "skip",
      objective: (m, b, context) => {
        weights.push(bitsOf(m.decoder.trainable()));
        const { lossSum, weightSum } = causalLanguageModel(m, b, context);
        if (context.step === 1) return { lossSum: scale(lossSum, Number.POSITIVE_INFINITY), weightSum };
        return { lossSum, weightSum };
      },
    });
    const reports = await collect(run);
    expect(reports.map((r) => r.skipped)).toEqual([undefined, "non-finite", undefined, undefined]);
    expect(weights[2]).toEqual(weights[1]);
    expect(weights[3]).not.toEqual(weights[2]);
    expect(reports[3]!.loss).toBeLessThan(reports[0]!.loss);
    model.dispose();
  });

  it("shows samples and evaluations in the report of their step", async () => {
    const model = tinyModel();
    const batch = text(model);
    const reports = await collect(
      train({
        model,
        data: [batch],
        steps: 40,
        lr: 1e-2,
        sample: { every: 20, prompts: ["the quick", { messages: [{ role: "user", content: "hi" }] }], maxTokens: 12 },
        evaluation: { data: [batch], every: 10 },
      }),
    );
    expect(reports.filter((r) => r.samples).map((r) => r.step)).toEqual([20, 40]);
    expect(reports.filter((r) => r.evaluation).map((r) => r.step)).toEqual([10, 20, 30, 40]);
    expect(reports[39]!.samples![0]).toMatchObject({ prompt: "the quick" });
    expect(reports[39]!.samples![0]!.text).toContain(" brown");
    expect(reports[39]!.samples![1]!.prompt).toBe("hi");
    const evaluation = reports[9]!.evaluation!;
    expect(evaluation.loss).toBeCloseTo(reports[10]!.loss, 5);
    expect(evaluation.perplexity).toBeCloseTo(Math.exp(evaluation.loss), 6);
    expect(evaluation.weight).toBe(batchWeight(batch));
    model.dispose();
  });

  it("draws dropout anew each step, the same for the same seed", async () => {
    const losses = async (seed: number): Promise<number[]> => {
      const model = withAdapters(tinyModel(), { rank: 4, initB: 0.3, dropout: 0.4 });
      const reports = await collect(train({ model, data: [text(model)], steps: 3, lr: 0, seed }));
      model.dispose();
      return reports.map((r) => r.loss);
    };
    const one = await losses(1);
    expect(new Set(one).size).toBe(3);
    expect(await losses(1)).toEqual(one);
    expect(await losses(2)).not.toEqual(one);
  });

  it("counts epochs, and steps of accumulated batches", async () => {
    const model = tinyModel({ layers: 1 });
    const data = source(randomDocuments(new Array(5).fill(8), { vocabSize: 259 }));
    const reports = await collect(train({ model, data, epochs: 2, batchSize: 2, accumulation: 2 }));
    expect(reports.map((r) => [r.step, r.epoch, r.tokens])).toEqual([
      [1, 0, 32],
      [2, 0, 24],
      [3, 1, 24],
    ]);
    model.dispose();
  });

  it("takes functions and asynchronous batches, and refuses data that ends early", async () => {
    const model = tinyModel({ layers: 1 });
    const batch = text(model);
    async function* stream(): AsyncGenerator<TokenBatch> {
      for (let i = 0; i < 3; i++) yield batch;
    }
    expect((await train({ model, data: () => stream(), steps: 3 }).done).steps).toBe(3);
    await expect(train({ model, data: () => stream(), steps: 4 }).done).rejects.toThrow(
      /the data ended after 3 batches, at step 3 of 4/,
    );
    expect(() => train({ model, data: () => stream() })).toThrow(/steps: needed/);
    model.dispose();
  });

  it("gives the same bits queued as run at once", async () => {
    const weights = async (mode: "queued" | "inline") => {
      setExecution(mode);
      const model = withAdapters(tinyModel({ hidden: 48 }), { rank: 2, initB: 0.2, dropout: 0.2 });
      const batch = packIds(randomDocuments([60, 9, 33], { vocabSize: 259 }));
      const reports = await collect(
        train({
          model,
          data: [batch],
          steps: 8,
          lr: 1e-2,
          microBatchTokens: 50,
          parameters: [...model.decoder.trainable(), ...adapterTensors(model.decoder)],
        }),
      );
      const bits = bitsOf([...model.decoder.trainable(), ...adapterTensors(model.decoder)]);
      model.dispose();
      return { bits, losses: reports.map((r) => r.loss) };
    };
    let inline;
    try {
      inline = await weights("inline");
    } finally {
      setExecution("queued");
    }
    const queued = await weights("queued");
    expect(queued.losses).toEqual(inline.losses);
    expect(queued.bits).toEqual(inline.bits);
  });

  it("needs no more memory however far the host runs ahead of the queue", () => {
    const before = memory().liveBytes;
    scope(() => {
      // Something slow first, so that what follows waits.
      const slow = full([700, 700], 1);
      for (let i = 0; i < 4; i++) native.matmul(slow, slow, null, 0, 0, 0);
      for (let i = 0; i < 400; i++) scope(() => void native.scale(full([1 << 16], 1), 2));
    });
    expect(memory().liveBytes - before).toBeLessThan(4 << 20);
    synchronize();
  });

  it("frees what it made", async () => {
    const model = tinyModel();
    const data = [text(model)];
    await train({ model, data, steps: 2 }).done;
    const before = memory().liveTensors;
    await train({ model, data, steps: 20, evaluation: { data, every: 5 } }).done;
    expect(memory().liveTensors).toBeLessThanOrEqual(before);
    model.dispose();
  });

  it("saves the model at the end", async () => {
    const { mkdtemp, readdir, rm } = await import("node:fs/promises");
    const { tmpdir } = await import("node:os");
    const { loadModel } = await import("@llm/models");
    const folder = await mkdtemp(`${tmpdir()}/train-output-`);
    const model = tinyModel();
    await train({ model, data: [text(model)], steps: 2, lr: 1e-2, output: folder }).done;
    expect(await readdir(folder)).toEqual(
      expect.arrayContaining(["config.json", "model.safetensors", "tokenizer.json"]),
    );
    const again = await loadModel(folder);
    expect(bitsOf(again.decoder.trainable())).toEqual(bitsOf(model.decoder.trainable()));
    model.dispose();
    again.dispose();
    await rm(folder, { recursive: true });
  });

  it("refuses options that do not fit, by name", () => {
    const model = tinyModel({ layers: 1 });
    const data = [text(model)];
    const refuse = (options: object): unknown => {
      try {
        train({ model, data, ...options });
        return undefined;
      } catch (error) {
        return error;
      }
    };
    const cases: [object, RegExp][] = [
      [{ stepz: 3 }, /stepz/],
      [{ steps: 3, epochs: 1 }, /steps or epochs/],
      [{ batchSize: 4 }, /batchSize: the data is given as batches/],
      [{ precision: "bf16" }, /precision: expected a model in bf16, got f32/],
      [{ parameters: "adapters" }, /needs a model with adapters/],
      [{ parameters: [] }, /at least one tensor/],
      [{ momentum: 0.9 }, /momentum: has no effect on adamw/],
      [{ schedule: { warmupSteps: 1, warmupRatio: 0.1 } }, /warmupSteps or warmupRatio/],
      [{ data: [] }, /empty list/],
      [{ model: {} }, /expected a CausalLM/],
    ];
    for (const [options, message] of cases) {
      const error = refuse(options);
      expect(error, JSON.stringify(Object.keys(options))).toBeInstanceOf(OptionsError);
      expect((error as Error).message).toMatch(message);
    }
    expect(model.decoder.trainable().some((p) => p.tensor.requiresGrad)).toBe(false);
    model.dispose();
    const half = tinyModel({ layers: 1, dtype: "f16" });
    expect(() => train({ model: half, data })).toThrow(UnsupportedError);
    half.dispose();
  });

  it("refuses a batch whose arrays do not fit together", async () => {
    const model = tinyModel({ layers: 1 });
    const batch = { ...text(model), labels_T: new Int32Array(3) };
    await expect(train({ model, data: [batch], steps: 1 }).done).rejects.toThrow(
      /labels_T must be \[\d+\] like ids_T, got \[3\]/,
    );
    model.dispose();
  });

  it("writes JSON lines as progress", async () => {
    const lines: string[] = [];
    const write = vi.spyOn(process.stdout, "write").mockImplementation((line) => lines.push(String(line)) > 0);
    const model = tinyModel({ layers: 1 });
    let result: TrainResult;
    try {
      result = await train({ model, data: [text(model)], steps: 7, progress: "json", logEvery: 3 }).done;
    } finally {
      write.mockRestore();
    }
    const steps = lines.filter((line) => line.startsWith("{")).map((line) => (JSON.parse(line) as StepReport).step);
    expect(steps).toEqual([3, 6, 7]);
    expect(result.steps).toBe(7);
    model.dispose();
  });
});
