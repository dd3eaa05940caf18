import { LlmError } from "@llm/core";
import { describe, expect, it } from "vitest";
import { philox4x32, uniform01 } from "./philox.js";
import { processLogits, sampleToken, topLogprobs } from "./sampling.js";
import type { SamplingOptions } from "./sampling.js";

const inf = Infinity;
const logits = (...values: number[]): Float32Array => Float32Array.from(values);
/** Logits whose softmax is these probabilities. */
const ofProbabilities = (...values: number[]): Float32Array => Float32Array.from(values, Math.log);
const kept = (values: Float32Array): number[] => [...values.keys()].filter((id) => values[id] !== -inf);
const random = (seed: number) => {
  let step = 0;
  return (): number => uniform01(philox4x32(seed, step++)[0]!);
};

function code(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (LlmError.isInstance(error)) return error.code;
    throw error;
  }
  return "nothing thrown";
}

describe("philox4x32", () => {
  it("gives the published known answers", () => {
    // Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, words.
    const vectors: [number[], bigint, number[]][] = [
      [[0, 0, 0, 0], 0n, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
      [
        [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
        0xffffffffffffffffn,
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
      ],
      [
        [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
        0x299f31d0a4093822n,
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
      ],
    ];
    for (const [counter, key, words] of vectors) {
      expect([...philox4x32(key, counter as [number, number, number, number])]).toEqual(words);
      const wide = counter.reduceRight((value, part) => (value << 32n) | BigInt(part), 0n);
      expect([...philox4x32(key, wide)]).toEqual(words);
    }
    expect(philox4x32(-1, 0)).toEqual(philox4x32(2n ** 64n - 1n, 0n));
    expect(philox4x32(7, 1)).not.toEqual(philox4x32(7, 0));
  });

  it("multiplies 32-bit words exactly", () => {
    // Against the same rounds in bigint arithmetic.
    const reference = (key: bigint, start: bigint[]): number[] => {
      let c = start;
      let [k0, k1] = [key & 0xffffffffn, key >> 32n];
      for (let round = 0; round < 10; round++) {
        const [p0, p1] = [0xd2511f53n * c[0]!, 0xcd9e8d57n * c[2]!];
        c = [(p1 >> 32n) ^ c[1]! ^ k0, p1 & 0xffffffffn, (p0 >> 32n) ^ c[3]! ^ k1, p0 & 0xffffffffn];
        [k0, k1] = [(k0 + 0x9e3779b9n) & 0xffffffffn, (k1 + 0xbb67ae85n) & 0xffffffffn];
      }
      return c.map(Number);
    };
    for (let index = 0; index < 300; index++) {
      const [a, b, c, d] = philox4x32(99, index) as unknown as [number, number, number, number];
      const key = (BigInt(d) << 32n) | BigInt(a);
      expect([...philox4x32(key, [a, b, c, d])]).toEqual(reference(key, [a, b, c, d].map(BigInt)));
    }
  });

  it("fills [0, 1) evenly", () => {
    expect([uniform01(0), uniform01(0xffffffff), uniform01(0x80000000)]).toEqual([0, 1 - 2 ** -24, 0.5]);
    const bins = new Array<number>(10).fill(0);
    for (let index = 0; index < 2500; index++)
      for (const word of philox4x32(3, index)) bins[Math.floor(uniform01(word) * 10)]!++;
    // χ² with 9 degrees of freedom: 27.9 is passed once in 1000.
    expect(bins.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0)).toBeLessThan(27.9);
  });
});

describe("processLogits", () => {
  it("leaves logits alone by default and never changes its argument", () => {
    const input = logits(1, -2, 0.5);
    expect(processLogits(input)).toEqual(input);
    expect(processLogits(input, { temperature: 1 })).toEqual(input);
    processLogits(input, { temperature: 2, topK: 1, repetitionPenalty: 2 }, { promptIds: [0], outputIds: [1] });
    expect(input).toEqual(logits(1, -2, 0.5));
  });

  it("penalizes repetition over prompt and output, presence and frequency over the output only", () => {
    const history = { promptIds: [0, 0, 1], outputIds: [1, 2, 2, 2] };
    expect(processLogits(logits(4, -4, 4, 4), { repetitionPenalty: 2 }, history)).toEqual(logits(2, -8, 2, 4));
    expect(processLogits(logits(4, 4, 4, 4), { presencePenalty: 1.5 }, history)).toEqual(logits(4, 2.5, 2.5, 4));
    expect(processLogits(logits(4, 4, 4, 4), { frequencyPenalty: 0.5 }, history)).toEqual(logits(4, 3.5, 2.5, 4));
    expect(
      processLogits(logits(4, 4, 4, 4), { repetitionPenalty: 2, presencePenalty: 1, frequencyPenalty: 0.5 }, history),
    ).toEqual(logits(2, 0.5, -0.5, 4));
    expect(
      processLogits(logits(4, -inf), { presencePenalty: 1, repetitionPenalty: 2 }, { promptIds: [], outputIds: [1] }),
    ).toEqual(logits(4, -inf));
  });

  it("divides by the temperature, also by one that would overflow", () => {
    expect(processLogits(logits(1, -2, 3), { temperature: 0.5 })).toEqual(logits(2, -4, 6));
    const tiny = processLogits(logits(5, 4, 5), { temperature: 1e-40 });
    expect([tiny[0], tiny[1], tiny[2]]).toEqual([0, -inf, 0]);
  });

  it("keeps exactly the k likeliest, of equal ones the lower ids", () => {
    expect(kept(processLogits(logits(1, 3, 2, 3, 3), { temperature: 1, topK: 2 }))).toEqual([1, 3]);
    expect(kept(processLogits(logits(1, 1, 1), { temperature: 1, topK: 10 }))).toEqual([0, 1, 2]);
    expect(kept(processLogits(logits(1, 2, -inf), { temperature: 1, topK: 3 }))).toEqual([0, 1]);
  });

  it("keeps the smallest set that reaches p, with the token that crosses", () => {
    const input = ofProbabilities(0.1, 0.4, 0.2, 0.3);
    const nucleus = (topP: number): number[] => kept(processLogits(input, { temperature: 1, topP }));
    expect([nucleus(0.01), nucleus(0.39), nucleus(0.45), nucleus(0.75), nucleus(0.95), nucleus(1)]).toEqual([
      [1],
      [1],
      [1, 3],
      [1, 2, 3],
      [0, 1, 2, 3],
      [0, 1, 2, 3],
    ]);
  });

  it("keeps what is at least minP as likely as the likeliest", () => {
    const input = ofProbabilities(0.1, 0.4, 0.2, 0.3);
    const above = (minP: number): number[] => kept(processLogits(input, { temperature: 1, minP }));
    expect([above(0), above(0.3), above(0.6), above(0.8), above(0.99)]).toEqual([
      [0, 1, 2, 3],
      [1, 2, 3],
      [1, 3],
      [1],
      [1],
    ]);
  });

  it("applies the steps in the stated order", () => {
    const input = ofProbabilities(0.4, 0.3, 0.2, 0.1);
    // Top-k first: 0.4 and 0.3 renormalize to 0.57 and 0.43, so that p = 0.55 keeps one; over all four it would keep two.
    expect(kept(processLogits(input, { temperature: 1, topK: 2, topP: 0.55 }))).toEqual([0]);
    expect(kept(processLogits(input, { temperature: 1, topP: 0.55 }))).toEqual([0, 1]);
    // Temperature before top-p: a flatter distribution needs more tokens.
    expect(kept(processLogits(input, { temperature: 10, topP: 0.55 }))).toEqual([0, 1, 2]);
    // Penalties before top-k.
    expect(
      kept(processLogits(input, { temperature: 1, topK: 1, presencePenalty: 2 }, { promptIds: [], outputIds: [0] })),
    ).toEqual([1]);
    // Top-p before min-p.
    expect(kept(processLogits(input, { temperature: 1, topP: 0.85, minP: 0.6 }))).toEqual([0, 1]);
  });

  it("agrees with a plain definition of each filter on random logits", () => {
    const next = random(11);
    for (let round = 0; round < 200; round++) {
      const size = 1 + Math.floor(next() * 40);
      const input = Float32Array.from({ length: size }, () => Math.round(next() * 40) / 4 - 5);
      const options: SamplingOptions = {
        temperature: 0.1 + next() * 2,
        topK: Math.floor(next() * 10),
        topP: Math.max(0.01, next()),
        minP: next() * 0.5,
      };
      const order = [...input.keys()]
        .sort((a, b) => input[b]! - input[a]! || a - b)
        .slice(0, options.topK || undefined);
      const weights = order.map((id) => Math.exp((input[id]! - input[order[0]!]!) / options.temperature!));
      const mass = weights.reduce((a, b) => a + b);
      let before = 0;
      const expected = order.filter((_, place) => {
        const inNucleus = before < options.topP! * mass || place === 0;
        before += weights[place]!;
        return inNucleus && weights[place]! >= options.minP!;
      });
      expect(kept(processLogits(input, options))).toEqual(expected.sort((a, b) => a - b));
    }
  });

  it("refuses numbers and options that mean nothing", () => {
    expect(code(() => processLogits(logits(1, Number.NaN)))).toBe("NUMERIC");
    expect(code(() => processLogits(logits(1, inf)))).toBe("NUMERIC");
    expect(code(() => processLogits(logits(-inf, -inf)))).toBe("NUMERIC");
    expect(code(() => processLogits(logits()))).toBe("NUMERIC");
    for (const id of [2, -1, 0.5])
      expect(code(() => processLogits(logits(1, 2), { presencePenalty: 1 }, { promptIds: [], outputIds: [id] }))).toBe(
        "NUMERIC",
      );
    expect(code(() => processLogits(logits(1, 2), { presencePenalty: 1 }))).toBe("OPTIONS");
    const wrong: object[] = [
      { temperature: -1 },
      { temperature: Number.NaN },
      { topK: -1 },
      { topK: 1.5 },
      { topP: 0 },
      { topP: 1.1 },
      { minP: 1 },
      { repetitionPenalty: 0 },
      { presencePenalty: 3 },
      { frequencyPenalty: inf },
      { top_k: 1 },
    ];
    for (const options of wrong)
      expect(
        code(() => processLogits(logits(1, 2), options)),
        JSON.stringify(options),
      ).toBe("OPTIONS");
  });
});

describe("sampleToken", () => {
  it("is greedy at temperature 0, of equal tokens the lowest id", () => {
    expect(sampleToken(logits(1, 3, 3, 2), {}, 0.99)).toMatchObject({ id: 1 });
    expect(sampleToken(logits(1, 3, 3, 2), { presencePenalty: 1 }, 0, { promptIds: [], outputIds: [1] })).toMatchObject(
      { id: 2 },
    );
    expect(sampleToken(ofProbabilities(0.25, 0.75), {}, 0).logprob).toBeCloseTo(Math.log(0.75), 6);
  });

  it("inverts the cumulative distribution, likeliest first", () => {
    const input = ofProbabilities(0.1, 0.4, 0.2, 0.3);
    const draw = (random01: number, options: SamplingOptions = {}): number =>
      sampleToken(input, { temperature: 1, ...options }, random01).id;
    expect([0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999999].map((u) => draw(u))).toEqual([1, 1, 3, 3, 2, 2, 0, 0]);
    expect([0.56, 0.58].map((u) => draw(u, { topK: 2 }))).toEqual([1, 3]);
    expect(draw(0.999999, { topP: 0.5 })).toBe(3);
  });

  it("draws each token as often as it is likely", () => {
    const next = random(5);
    const input = ofProbabilities(0.5, 0.05, 0.25, 0.2);
    const counts = [0, 0, 0, 0];
    for (let index = 0; index < 8000; index++) counts[sampleToken(input, { temperature: 1 }, next()).id]!++;
    const chiSquare = [0.5, 0.05, 0.25, 0.2].reduce(
      (sum, p, id) => sum + (counts[id]! - 8000 * p) ** 2 / (8000 * p),
      0,
    );
    expect(chiSquare).toBeLessThan(16.3); // 3 degrees of freedom, once in 1000
  });

  it("reports the log-probability before temperature and filters, after penalties", () => {
    const input = ofProbabilities(0.2, 0.8);
    expect(sampleToken(input, { temperature: 5, topK: 1 }, 0.5).logprob).toBeCloseTo(Math.log(0.8), 6);
    const { id, logprob } = sampleToken(input, { presencePenalty: 2 }, 0, { promptIds: [], outputIds: [1] });
    expect([id, logprob]).toEqual([0, expect.closeTo(Math.log(0.2 / (0.2 + 0.8 * Math.exp(-2))), 6)]);
  });

  it("never draws a forbidden token and refuses random numbers outside [0, 1)", () => {
    const next = random(8);
    for (let index = 0; index < 200; index++)
      expect(sampleToken(logits(-inf, 1, -inf, 0), { temperature: 3 }, next()).id % 2).toBe(1);
    for (const u of [1, -0.1, Number.NaN])
      expect(code(() => sampleToken(logits(1, 2), { temperature: 1 }, u))).toBe("NUMERIC");
    expect(code(() => sampleToken(logits(1, Number.NaN), {}, 0))).toBe("NUMERIC");
  });
});

describe("topLogprobs", () => {
  it("lists the likeliest tokens, of equal ones the lower id first", () => {
    const input = ofProbabilities(0.1, 0.3, 0.3, 0.3);
    expect(topLogprobs(input, 2)).toEqual([
      { id: 1, logprob: expect.closeTo(Math.log(0.3), 6) },
      { id: 2, logprob: expect.closeTo(Math.log(0.3), 6) },
    ]);
    expect(topLogprobs(input, 9).map(({ id }) => id)).toEqual([1, 2, 3, 0]);
    expect(topLogprobs(input, 0)).toEqual([]);
    expect(topLogprobs(logits(0, -inf), 2)[1]).toEqual({ id: 1, logprob: -inf });
    expect(code(() => topLogprobs(input, -1))).toBe("NUMERIC");
  });

  it("agrees with a full sort", () => {
    const next = random(21);
    for (let round = 0; round < 50; round++) {
      const input = Float32Array.from({ length: 60 }, () => Math.round(next() * 20));
      const sorted = [...input.keys()].sort((a, b) => input[b]! - input[a]! || a - b).slice(0, 7);
      expect(topLogprobs(input, 7).map(({ id }) => id)).toEqual(sorted);
    }
  });
});
