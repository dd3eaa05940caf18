import { packIds, randomDocuments } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { batchWeight, splitBatch } from "./index.js";
import { checkBatch } from "./batch-source.js";
import { microBatchNumber } from "./step.js";

describe("splitBatch", () => {
  const documents = randomDocuments([10, 3, 8, 25, 1, 1, 7], { vocabSize: 100 });
  const batch = { ...packIds(documents), lossWeights_T: Float32Array.from({ length: 55 }, (_, t) => t / 55) };

  it.each([1, 10, 12, 20, 54, 55])("keeps every document whole and in order, at most %i tokens a part", (maxTokens) => {
    const parts = splitBatch(batch, maxTokens);
    const found = parts.flatMap((part) => {
      checkBatch(part);
      if (part.cuSeqlens_B1.length > 2) expect(part.ids_T.length).toBeLessThanOrEqual(maxTokens);
      return Array.from(part.cuSeqlens_B1.slice(1), (end, b) => part.ids_T.slice(part.cuSeqlens_B1[b], end));
    });
    expect(found).toEqual(documents);
    expect(parts.reduce((n, part) => n + batchWeight(part), 0)).toBeCloseTo(batchWeight(batch), 5);
    expect(parts.flatMap((part) => Array.from(part.positions_T))).toEqual(Array.from(batch.positions_T));
    expect(parts.flatMap((part) => Array.from(part.labels_T))).toEqual(Array.from(batch.labels_T));
  });

  it("fills parts: the fewest that hold the documents in their order", () => {
    expect(splitBatch(batch, 30).map((part) => part.ids_T.length)).toEqual([21, 27, 7]);
    expect(splitBatch(batch, undefined)).toEqual([batch]);
  });
});

describe("microBatchNumber", () => {
  it("differs between runs, steps and micro-batches, and fits setRandomStep", () => {
    const numbers = new Set<number>();
    for (const run of [0, 1, 7, 2 ** 32 - 1])
      for (const step of [0, 1, 2, 99, 2 ** 24 - 1])
        for (let m = 0; m < 4; m++) numbers.add(microBatchNumber(run, step, m));
    expect(numbers.size).toBe(4 * 5 * 4);
    for (const number of numbers) expect(Number.isSafeInteger(number) && number >= 0 && number < 2 ** 37).toBe(true);
  });
});
