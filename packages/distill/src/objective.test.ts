import { backward, createAdamW, LlmError, noGrad, scope, UnsupportedError } from "@llm/core";
import { type CausalLM, type TokenBatch, trainBpe } from "@llm/models";
import type { Objective } from "@llm/parallel";
import { byteTokenizer, packIds, randomDocuments, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { type DistillObjective, distillObjective, type DistillOptions } from "./index.js";

const tokenizer = byteTokenizer();
const documents = randomDocuments([9, 5, 12], { vocabSize: 259, seed: 4 });

const values = (objective: DistillObjective, student: CausalLM, batch: TokenBatch, step = 0, totalSteps = 10) =>
  scope(() => {
    const { lossSum, weightSum, metrics } = objective(student, batch, { step, totalSteps });
    return {
      loss: lossSum.itemSync(),
      weight: weightSum,
      kl: metrics.kl.itemSync(),
      ce: metrics.ce.itemSync(),
      alpha: metrics.alpha.itemSync() / weightSum,
    };
  });

/** Logits [T][V] of a packed batch, document by document, in JavaScript. */
function logits(model: CausalLM, docs: readonly Int32Array[]): number[][] {
  const V = model.spec.vocabSize;
  return docs.flatMap((ids) => {
    const data = model.logits(ids).dataSync() as Float32Array;
    return Array.from(ids, (_, t) => [...data.subarray(t * V, (t + 1) * V)]);
  });
}

const logSoftmax = (z: readonly number[], T = 1): number[] => {
  const lse = Math.log(z.reduce((sum, x) => sum + Math.exp(x / T), 0));
  return z.map((x) => x / T - lse);
};

describe("distillObjective", () => {
  const teacher = tinyModel({ seed: 1, hidden: 32, layers: 2, tied: false, std: 0.3, tokenizer });
  const student = tinyModel({ seed: 2, hidden: 16, heads: 2, kvHeads: 1, layers: 1, std: 0.3, tokenizer });
  const batch = packIds(documents, { learn: (d, t) => d !== 1 && t % 3 !== 0 });
  const options = (o: Partial<DistillOptions> = {}): DistillOptions => ({ teacher, ...o });

  it("is the blend of T²·KL and cross-entropy over the labelled positions, worked out in f64", () => {
    const [zs, zt] = [logits(student, documents), logits(teacher, documents)];
    let [kl, ce, weight] = [0, 0, 0];
    batch.labels_T.forEach((label, t) => {
      if (label < 0) return;
      const [p, q] = [logSoftmax(zt[t]!, 3), logSoftmax(zs[t]!, 3)];
      kl += 9 * p.reduce((sum, lp, i) => sum + Math.exp(lp) * (lp - q[i]!), 0);
      ce -= logSoftmax(zs[t]!)[label]!;
      weight++;
    });
    const got = values(distillObjective(options({ temperature: 3, alpha: 0.25 })), student, batch);
    expect(got.kl / kl).toBeCloseTo(1, 4);
    expect(got.ce / ce).toBeCloseTo(1, 4);
    expect(got.loss / (0.25 * kl + 0.75 * ce)).toBeCloseTo(1, 4);
    expect(got.weight).toBe(weight);
    expect(got.alpha).toBeCloseTo(0.25, 6);
  });

  it("takes hard labels from the teacher's prediction at the same position, not the one before or after", () => {
    const [zs, zt] = [logits(student, documents), logits(teacher, documents)];
    const argmax = zt.map((row) => row.indexOf(Math.max(...row)));
    const crossEntropy = (shift: number): number => {
      let sum = 0;
      batch.labels_T.forEach((label, t) => {
        if (label >= 0) sum -= logSoftmax(zs[t]!)[argmax[t + shift]!]!;
      });
      return sum;
    };
    const { ce, loss } = values(distillObjective(options({ alpha: 0, hardLabels: "teacher" })), student, batch);
    expect(ce / crossEntropy(0)).toBeCloseTo(1, 4);
    expect(loss).toBeCloseTo(ce, 3);
    // The case can tell: labels off by one give something else.
    for (const shift of [-1, 1]) expect(Math.abs(crossEntropy(shift) - ce)).toBeGreaterThan(1);
  });

  it("teaches a student that copies a deterministic teacher to predict the next token, as the data's labels do", () => {
    // The teacher's own likeliest continuation: its hard labels are the data's labels exactly.
    const ids = [7];
    for (let t = 0; t < 12; t++) {
      const z = logits(teacher, [Int32Array.from(ids)]).at(-1)!;
      ids.push(z.indexOf(Math.max(...z)));
    }
    const own = packIds([Int32Array.from(ids)]);
    const [a, b] = (["data", "teacher"] as const).map((hardLabels) =>
      values(distillObjective(options({ alpha: 0.5, hardLabels })), student, own),
    );
    expect(b).toEqual(a);
  });

  it("does not count ignored positions and padding: adding documents without labels changes nothing", () => {
    const more = packIds([...documents, ...randomDocuments([30], { vocabSize: 259, seed: 9 })], {
      learn: (d, t) => d !== 1 && d !== 3 && t % 3 !== 0,
    });
    for (const reduction of ["token", "batch"] as const) {
      const [a, b] = [batch, more].map((x) => values(distillObjective(options({ reduction })), student, x)) as [
        ReturnType<typeof values>,
        ReturnType<typeof values>,
      ];
      expect(b.weight).toBe(a.weight);
      expect(b.loss).toBeCloseTo(a.loss, 3);
    }
  });

  it("divides by learned tokens, or by documents with a learned token", () => {
    const learned = batch.labels_T.filter((l) => l >= 0).length;
    expect(values(distillObjective(options({ reduction: "token" })), student, batch).weight).toBe(learned);
    expect(values(distillObjective(options({ reduction: "batch" })), student, batch).weight).toBe(2);
    const lossWeights_T = Float32Array.from(batch.labels_T, (_, t) => (t < 9 ? 0 : 0.5));
    const weighted = { ...batch, lossWeights_T };
    expect(values(distillObjective(options({ reduction: "token" })), student, weighted).weight).toBe(
      0.5 * batch.labels_T.subarray(9).filter((l) => l >= 0).length,
    );
    expect(values(distillObjective(options({ reduction: "batch" })), student, weighted).weight).toBe(1);
  });

  it("adds up: two micro-batches of documents are the batch", () => {
    const parts = [packIds(documents.slice(0, 1)), packIds(documents.slice(1))];
    for (const reduction of ["token", "batch"] as const) {
      const objective = distillObjective(options({ reduction }));
      const whole = values(objective, student, packIds(documents));
      const sums = parts.map((p) => values(objective, student, p));
      expect(sums.reduce((n, s) => n + s.loss, 0) / whole.loss).toBeCloseTo(1, 5);
      expect(sums.reduce((n, s) => n + s.weight, 0)).toBe(whole.weight);
    }
  });

  it("gives the teacher no gradient, and the student the same with checkpointing", () => {
    const objective = distillObjective(options({ alpha: 0.5 }));
    const parameters = student.decoder.trainable();
    for (const { tensor } of parameters) tensor.requiresGrad = true;
    const taught = teacher.decoder.trainable();
    for (const { tensor } of taught) tensor.requiresGrad = true;
    const gradients = [false, true].map((checkpointing) => {
      scope(() =>
        backward(objective(student, batch, { step: 0, totalSteps: 1, checkpointing, training: true }).lossSum),
      );
      return parameters.map(({ name, tensor }) => {
        const g = Array.from(tensor.grad!.dataSync() as Float32Array);
        tensor.grad!.dispose();
        tensor.grad = undefined;
        return [name, g] as const;
      });
    });
    expect(gradients[0]!.some(([, g]) => g.some((x) => Math.abs(x) > 1e-3))).toBe(true);
    gradients[0]!.forEach(([name, g], i) =>
      gradients[1]![i]![1].forEach((x, k) => expect(Math.abs(x - g[k]!), name).toBeLessThan(1e-4)),
    );
    expect(taught.every(({ tensor }) => tensor.grad === undefined)).toBe(true);
    for (const { tensor } of [...parameters, ...taught]) tensor.requiresGrad = false;
  });

  it("follows the alpha schedule by the step alone", () => {
    const at = (o: DistillOptions["alpha"], step: number): number =>
      values(distillObjective(options({ alpha: o! })), student, batch, step, 8).alpha;
    expect([0, 2, 4, 99].map((s) => at({ from: 1, to: 0, steps: 4 }, s))).toEqual([1, 0.5, 0, 0]);
    expect([0, 4, 8].map((s) => at({ from: 0.8, to: 0.2 }, s)).map((x) => x.toFixed(3))).toEqual([
      "0.800",
      "0.500",
      "0.200",
    ]);
    expect(at({ from: 1, to: 0, kind: "cosine" }, 2)).toBeCloseTo((1 + Math.cos(Math.PI / 4)) / 2, 5);
    expect(at({ from: 0.3, kind: "constant" }, 5)).toBeCloseTo(0.3, 6);
    const steps = Array.from({ length: 9 }, (_, s) => at({ from: 1, to: 0.1, kind: "cosine" }, s));
    steps.forEach((x, i) => i > 0 && expect(x).toBeLessThan(steps[i - 1]!));
  });

  it("refuses another vocabulary, naming the first difference", () => {
    const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|stop|>"];
    const other = trainBpe([], { vocabSize: 259, specialTokens, eosToken: "<|stop|>", padToken: "<|endoftext|>" });
    const stranger = tinyModel({ layers: 1, tokenizer: other });
    expect(() => values(distillObjective(options()), stranger, batch)).toThrow(
      /token 258 is "<\|im_end\|>" for the teacher and "<\|stop\|>" for the student/,
    );
    const larger = trainBpe(["aaaa bbbb aaaa"], {
      vocabSize: 260,
      specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
      eosToken: "<|im_end|>",
      padToken: "<|endoftext|>",
    });
    try {
      values(distillObjective(options()), tinyModel({ layers: 1, tokenizer: larger, vocabSize: 264 }), batch);
      expect.unreachable();
    } catch (error) {
      expect(LlmError.isInstance(error, "UNSUPPORTED")).toBe(true);
      expect(error).toBeInstanceOf(UnsupportedError);
    }
    // An equal tokenizer of its own is fine, and so are padded rows of the embedding.
    const same = tinyModel({ layers: 1, tokenizer: byteTokenizer(), vocabSize: 272 });
    expect(values(distillObjective(options()), same, batch).loss).toBeGreaterThan(0);
  });

  it("refuses options that do not fit", () => {
    expect(() => distillObjective({} as never)).toThrow(/teacher/);
    expect(() => distillObjective(options({ temperature: 0 }))).toThrow(/temperature/);
    expect(() => distillObjective(options({ alpha: 1.5 }))).toThrow(/alpha/);
    expect(() => distillObjective(options({ alpha: { from: 1 } }))).toThrow(/needs `to`/);
    expect(() => distillObjective(options({ alpha: { from: 1, to: 0, kind: "constant" } }))).toThrow(
      /uses only `from`/,
    );
    expect(() => distillObjective({ ...options(), tempreature: 2 } as never)).toThrow(/tempreature/);
    expect(() => scope(() => distillObjective(options({ alpha: { from: 1, to: 0 } }))(student, batch))).toThrow(
      /length of the run is not known/,
    );
  });

  it("is an objective for train()", () => {
    const objective: Objective<CausalLM> = distillObjective(options());
    expect(objective).toBeTypeOf("function");
  });
});

describe("learning from a teacher", () => {
  const V = 16;
  // Tokens of the text are those of a Markov chain: from i to i + 1, 3i or 5i + 2 with probabilities .6, .3, .1.
  let state = 12345;
  const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const text = (length: number): Int32Array => {
    let at = Math.floor(random() * V);
    return Int32Array.from({ length }, () => {
      const u = random();
      return (at = (u < 0.6 ? at + 1 : u < 0.9 ? 3 * at : 5 * at + 2) % V);
    });
  };
  const corpus = (count: number): TokenBatch => packIds(Array.from({ length: count }, () => text(32)));

  const learn = (model: CausalLM, batches: readonly TokenBatch[], objective: DistillObjective, lr: number): void => {
    const parameters = model.decoder.trainable();
    for (const { tensor } of parameters) tensor.requiresGrad = true;
    const optimizer = createAdamW(parameters, { lr, weightDecay: 0 });
    batches.forEach((batch, step) => {
      scope(() => {
        const { lossSum, weightSum } = objective(model, batch, { step, totalSteps: batches.length });
        backward(lossSum);
        optimizer.step({ gradScale: 1 / weightSum });
      });
      optimizer.zeroGrad();
    });
    for (const { tensor } of parameters) tensor.requiresGrad = false;
  };

  it("gets a student closer to the teacher than the data alone, in the same steps on the same text", () => {
    const make = (seed: number, hidden: number): CausalLM =>
      tinyModel({ seed, hidden, layers: 1, heads: 2, kvHeads: 1, std: 0.1, tokenizer });
    const teacher = make(1, 32);
    // Self-distillation at alpha 0 is plain cross-entropy on the data.
    learn(
      teacher,
      Array.from({ length: 100 }, () => corpus(4)),
      distillObjective({ teacher, alpha: 0 }),
      0.01,
    );
    const batches = Array.from({ length: 60 }, () => corpus(1));
    const held = corpus(8);
    const divergence = distillObjective({ teacher, alpha: 1, temperature: 1 });
    const klAfter = (alpha: number): number => {
      const student = make(2, 16);
      learn(student, batches, distillObjective({ teacher, alpha, temperature: 2 }), 0.01);
      const result = noGrad(() => values(divergence, student, held));
      student.dispose();
      return result.kl / result.weight;
    };
    const [taught, alone] = [klAfter(0.5), klAfter(0)];
    console.log(
      `KL to the teacher on held-out text, 60 steps: ${taught.toFixed(4)} with distillation, ${alone.toFixed(4)} with cross-entropy alone`,
    );
    expect(taught).toBeLessThan(alone * 0.8);
    teacher.dispose();
  });
});
