import { LlmError } from "@llm/core";
import { describe, expect, it } from "vitest";
import { CharTokenizer, templates } from "../test/char-tokenizer.js";
import {
  type DataBatch,
  Dataset,
  loadDataset,
  type LoadDatasetOptions,
  mixSources,
  packBestFitDecreasing,
  perplexityWindows,
  permutation,
  preview,
  tokenBlocks,
} from "./index.js";

const tokenizer = new CharTokenizer({ template: templates.chatml });

function randomLengths(count: number, most: number, seed: number): number[] {
  return Array.from(permutation(count, seed, 7), (value) => 1 + ((value * 7919) % most));
}

function texts(count: number, most = 40, options: Partial<LoadDatasetOptions> = {}): Dataset {
  const rows = randomLengths(count, most, 3).map((length, row) => ({
    text: String.fromCodePoint(0x4e00 + row).repeat(length),
  }));
  return loadDataset({ rows }, { tokenizer, maxTokens: 64, ...options });
}

function expectSound(batch: DataBatch, dataset: Dataset): void {
  const { ids_T, labels_T, positions_T, cuSeqlens_B1, documents_B } = batch;
  expect(cuSeqlens_B1[0]).toBe(0);
  expect(cuSeqlens_B1.at(-1)).toBe(ids_T.length);
  for (let b = 0; b + 1 < cuSeqlens_B1.length; b += 1) {
    const [from, to] = [cuSeqlens_B1[b] as number, cuSeqlens_B1[b + 1] as number];
    const document = dataset.documents[documents_B[b] as number];
    expect(ids_T.subarray(from, to)).toEqual(document?.ids);
    for (let t = from; t < to; t += 1) {
      expect(positions_T[t]).toBe(t - from);
      const learned = t + 1 < to && (document?.lossWeights[t + 1 - from] as number) > 0;
      expect(labels_T[t]).toBe(learned ? ids_T[t + 1] : -100);
    }
  }
}

describe("packBestFitDecreasing", () => {
  it("puts every document into exactly one bin, none over capacity, for many inputs", () => {
    for (let seed = 0; seed < 40; seed += 1) {
      const capacity = 1 + ((seed * 37) % 130);
      const lengths = randomLengths(1 + seed * 5, capacity, seed);
      const bins = packBestFitDecreasing(lengths, capacity, seed);
      expect(bins.flatMap((bin) => [...bin]).sort((a, b) => a - b)).toEqual(lengths.map((_, index) => index));
      for (const bin of bins)
        expect(bin.reduce((sum, index) => sum + (lengths[index] as number), 0)).toBeLessThanOrEqual(capacity);
      // no two bins could be one: at most one is half full or less
      expect(
        bins.filter((bin) => 2 * bin.reduce((sum, index) => sum + (lengths[index] as number), 0) <= capacity).length,
      ).toBeLessThanOrEqual(1);
    }
  });

  it("finds the tightest fit", () => {
    expect(packBestFitDecreasing([6, 7, 3, 4], 10).map((bin) => [...bin].sort((a, b) => a - b))).toEqual([
      [1, 2],
      [0, 3],
    ]);
  });

  it("refuses documents that do not fit", () => {
    expect(() => packBestFitDecreasing([3, 11], 10)).toThrow(/1 to 10 tokens, got 11/);
    expect(() => packBestFitDecreasing([0], 10)).toThrow(/got 0/);
  });
});

describe("permutation", () => {
  it("is a permutation, the same for the same arguments and another for others", () => {
    for (const count of [0, 1, 2, 17, 1000])
      expect([...permutation(count, 5, 1)].sort((a, b) => a - b)).toEqual(
        Array.from({ length: count }, (_, index) => index),
      );
    expect(permutation(100, 5, 1)).toEqual(permutation(100, 5, 1));
    expect(permutation(100, 5, 1)).not.toEqual(permutation(100, 5, 2));
    expect(permutation(100, 5, 1)).not.toEqual(permutation(100, 6, 1));
    expect(permutation(100, 5, 1)).not.toEqual(permutation(100, 5 + 2 ** 40, 1));
    expect(() => permutation(3, -1, 0)).toThrow(/seed/);
  });

  it("is even-handed: all orders of four are about equally frequent", () => {
    const seen = new Map<string, number>();
    for (let seed = 0; seed < 4800; seed += 1) {
      const key = permutation(4, seed, seed % 3).join();
      seen.set(key, (seen.get(key) ?? 0) + 1);
    }
    expect(seen.size).toBe(24);
    // chi-square, 23 degrees of freedom: 49.7 is exceeded once in a thousand
    expect([...seen.values()].reduce((sum, count) => sum + (count - 200) ** 2 / 200, 0)).toBeLessThan(49.7);
  });
});

describe("batches", () => {
  it.each([
    ["pack", { batchSize: 3 }],
    ["pack", { batchTokens: 150 }],
    ["none", { batchSize: 7 }],
    ["none", { batchTokens: 150 }],
  ] as const)("of %s with %o cover every document once an epoch and never cross a boundary", (packing, size) => {
    const data = texts(101, 40, { packing });
    const batches = [...data.batches({ ...size, epochs: 2 })];
    for (const epoch of [0, 1]) {
      const mine = batches.filter((batch) => batch.epoch === epoch);
      expect(mine.flatMap((batch) => [...batch.documents_B]).sort((a, b) => a - b)).toEqual(
        data.documents.map((_, index) => index),
      );
      expect(mine.reduce((sum, batch) => sum + batch.ids_T.length, 0)).toBe(data.tokenCount);
      expect(mine.reduce((sum, batch) => sum + batch.labels_T.filter((label) => label !== -100).length, 0)).toBe(
        data.trainedTokenCount,
      );
      if ("batchTokens" in size) for (const batch of mine) expect(batch.ids_T.length).toBeLessThanOrEqual(150);
    }
    for (const batch of batches) expectSound(batch, data);
    const first = batches.filter((batch) => batch.epoch === 0).flatMap((batch) => [...batch.documents_B]);
    const second = batches.filter((batch) => batch.epoch === 1).flatMap((batch) => [...batch.documents_B]);
    expect(first).not.toEqual(second);
  });

  it("resume at any step with the identical rest", () => {
    const data = texts(37, 30);
    for (const size of [{ batchSize: 2 }, { batchTokens: 130 }]) {
      const whole = [...data.batches({ ...size, epochs: 3, seed: 11 })];
      expect(data.batches({ ...size, epochs: 3, seed: 11 }).totalSteps).toBe(whole.length);
      expect(whole.map((batch) => batch.step)).toEqual(whole.map((_, step) => step));
      for (let startStep = 0; startStep <= whole.length + 1; startStep += 1)
        expect([...data.batches({ ...size, epochs: 3, seed: 11, startStep })]).toEqual(whole.slice(startStep));
    }
  });

  it("are the same for the same seed on a set loaded again, and begin anew for every loop", () => {
    const sequence = texts(50).batches({ batchSize: 4, epochs: 2 });
    const once = [...sequence];
    expect([...sequence]).toEqual(once);
    expect([...texts(50).batches({ batchSize: 4, epochs: 2 })]).toEqual(once);
    expect([...texts(50).batches({ batchSize: 4, epochs: 2, seed: 1 })]).not.toEqual(once);
  });

  it("go on forever with endless epochs", () => {
    const sequence = texts(5).batches({ epochs: Infinity, startStep: 1000 });
    expect(sequence.totalSteps).toBe(Infinity);
    for (const batch of sequence) {
      expect(batch.step).toBe(1000);
      break;
    }
  });

  it("keep the stored order without shuffling", () => {
    const data = texts(9, 20, { packing: "none", shuffle: false });
    expect([...data.batches({ batchSize: 4 })].map((batch) => [...batch.documents_B])).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
      [8],
    ]);
  });

  it("refuse options that contradict each other or the data", () => {
    const data = texts(9);
    expect(() => data.batches({ batchSize: 1, batchTokens: 100 })).toThrow(/got both/);
    expect(() => data.batches({ batchTokens: 10 })).toThrow(/longest sample/);
    expect(() => data.batches({ batchsize: 1 } as object)).toThrow(/batchsize/);
    expect(() => data.at(data.length)).toThrow(/sample index/);
    expect(() => loadDataset({ rows: [{ text: "a" }] }, { tokenizer, maxToken: 1 } as never)).toThrow(/maxToken/);
    expect(() => loadDataset({ rows: [{ text: "ab" }] }, {} as never)).toThrow(/tokenizer/);
  });
});

describe("overlong documents", () => {
  const rows = [{ text: "a".repeat(100) }, { text: "bb" }];
  const load = (options: Partial<LoadDatasetOptions>): Dataset =>
    loadDataset({ rows }, { tokenizer, maxTokens: 16, packing: "none", ...options });

  it("are truncated and counted", () => {
    const data = load({});
    expect(data.documents.map((document) => document.ids.length)).toEqual([16, 3]);
    expect(data.report().truncated).toEqual({ documents: 1, tokens: 85 });
  });

  it("are dropped, refused or cut into windows on request", () => {
    expect(load({ overlong: "drop" }).report()).toMatchObject({ documents: 1, dropped: { documents: 1, tokens: 101 } });
    expect(() => load({ overlong: "error" })).toThrow(/rows\[0\]: expected at most 16 tokens, got 101/);
    const data = load({ overlong: "split" });
    expect(data.report().windowed).toEqual({ documents: 1, windows: 7 });
    const windows = data.documents.filter((document) => document.row === 0).map((document) => document.ids);
    // every token after the first is predicted once, within the document that holds what comes before it
    expect(Int32Array.from(windows.flatMap((ids, index) => [...(index === 0 ? ids : ids.subarray(1))]))).toEqual(
      tokenizer.encode(`${"a".repeat(100)}</s>`),
    );
  });

  it("that lose everything to learn are left out and counted", () => {
    const chat = {
      messages: [
        { role: "user", content: "x".repeat(50) },
        { role: "assistant", content: "y" },
      ],
    };
    const short = {
      messages: [
        { role: "user", content: "x" },
        { role: "assistant", content: "y" },
      ],
    };
    const report = loadDataset({ rows: [chat, short] }, { tokenizer, maxTokens: 40 }).report();
    expect(report).toMatchObject({ documents: 1, nothingLeft: 1 });
    expect(() => loadDataset({ rows: [chat] }, { tokenizer, maxTokens: 40 })).toThrow(/at least one document/);
  });
});

describe("mixing", () => {
  it("concatenates, stops at the first exhausted source, or repeats until the last is", () => {
    const share = (mix: "concat" | "interleave-under" | "interleave-over") => {
      const mixed = mixSources([100, 30], [1, 1], mix, 0);
      return [0, 1].map((source) => mixed.filter((item) => item.source === source).map((item) => item.index));
    };
    expect(share("concat").map((indices) => indices.length)).toEqual([100, 30]);
    const under = share("interleave-under");
    expect(under.map((indices) => new Set(indices).size)).toEqual([30, 30]);
    const over = share("interleave-over");
    expect(over.map((indices) => indices.length)).toEqual([100, 100]);
    expect(over.map((indices) => new Set(indices).size)).toEqual([100, 30]);
    // all of the short one before any of it again
    expect(new Set(over[1]?.slice(0, 30)).size).toBe(30);
  });

  it("keeps the weights' proportion all along", () => {
    const mixed = mixSources([1000, 1000, 1000], [0.7, 0.2, 0.1], "interleave-under", 1);
    expect([0, 1, 2].map((source) => mixed.filter((item) => item.source === source).length)).toEqual([1000, 285, 142]);
    const head = mixed.slice(0, 100);
    expect([0, 1, 2].map((source) => head.filter((item) => item.source === source).length)).toEqual([70, 20, 10]);
  });

  it("works through loadDataset and refuses weights that would do nothing", () => {
    const a = { rows: Array.from({ length: 20 }, (_, index) => ({ text: `a${index}` })), name: "a", weight: 3 };
    const b = {
      rows: Array.from({ length: 20 }, (_, index) => ({ instruction: `b${index}`, output: "x" })),
      name: "b",
    };
    const data = loadDataset([a, b], { tokenizer, mix: "interleave-under" });
    expect([0, 1].map((source) => data.documents.filter((document) => document.source === source).length)).toEqual([
      20, 6,
    ]);
    expect(data.report().sources.map(({ name, format }) => [name, format])).toEqual([
      ["a", "text"],
      ["b", "alpaca"],
    ]);
    expect(() => loadDataset([a, b], { tokenizer })).toThrow(/weight: has no effect/);
    expect(() => loadDataset(b, { tokenizer, mix: "interleave-over" })).toThrow(/two sources/);
  });
});

describe("split, report and preview", () => {
  it("divides by rows without overlap", () => {
    const data = texts(50, 100, { overlong: "split", maxTokens: 16 });
    const { train, evaluation } = data.split(0.2, { seed: 4 });
    const rowsOf = (side: Dataset): Set<number> => new Set(side.documents.map((document) => document.row));
    expect(rowsOf(evaluation).size).toBe(10);
    expect(rowsOf(train).size).toBe(40);
    expect([...rowsOf(train)].filter((row) => rowsOf(evaluation).has(row))).toEqual([]);
    expect(train.tokenCount + evaluation.tokenCount).toBe(data.tokenCount);
    expect(() => data.split(1)).toThrow(/fraction/);
  });

  it("reports lengths, fill and the share of learned tokens", () => {
    const data = texts(100);
    const report = data.report();
    expect(report.lengths.histogram.reduce((sum, bar) => sum + bar.documents, 0)).toBe(100);
    expect(report.lengths.max).toBe(Math.max(...data.documents.map((document) => document.ids.length)));
    expect(report.trainedTokens).toBe(report.tokens - report.documents);
    expect(report.fill).toBeGreaterThan(0.8);
    expect(report.fill).toBeLessThanOrEqual(1);
    expect(JSON.parse(JSON.stringify(report))).toEqual(report);
  });

  it("shows what is learned", () => {
    const rows = [
      {
        messages: [
          { role: "user", content: "Hi" },
          { role: "assistant", content: "Yo", loss: 0.25 },
        ],
      },
    ];
    const data = loadDataset({ rows }, { tokenizer });
    expect(preview(data)).toContain("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧×0.25\n");
    expect(preview(data, 1, { color: true })).toContain("\u001b[32mYo<|im_end|>");
    expect(preview(data, 1, { maxTokens: 4 })).toContain("more tokens");
  });
});

describe("blocks and windows", () => {
  const text = Array.from({ length: 1000 }, (_, index) => String.fromCodePoint(0x4e00 + index)).join("");

  it("cuts text and data sets into full blocks, some of them by seed", () => {
    const all = tokenBlocks(text, { tokenizer, tokens: 64 });
    expect(all).toHaveLength(15);
    expect(Int32Array.from(all.flatMap((block) => [...block]))).toEqual(tokenizer.encode(text).slice(0, 960));
    const some = tokenBlocks(text, { tokenizer, tokens: 64, count: 5, seed: 1 });
    expect(some).toEqual(tokenBlocks(text, { tokenizer, tokens: 64, count: 5, seed: 1 }));
    for (const block of some) expect(all).toContainEqual(block);
    expect(tokenBlocks(texts(50), { tokens: 100, count: 3 }).map((block) => block.length)).toEqual([100, 100, 100]);
    expect(tokenBlocks(text, { tokenizer, tokens: 64, stride: 32 })).toHaveLength(30);
    expect(() => tokenBlocks(text, { tokenizer, tokens: 512, count: 3 })).toThrow(/got 1000 tokens \(1 blocks\)/);
    expect(() => tokenBlocks(text)).toThrow(/tokenizer/);
  });

  it("scores every token but the first exactly once", () => {
    const ids = tokenizer.encode(text);
    for (const options of [
      { tokens: 64 },
      { tokens: 64, stride: 16 },
      { tokens: 2 },
      { tokens: 4096 },
      { tokens: 999 },
    ]) {
      const windows = perplexityWindows(ids, options);
      expect(Int32Array.from(windows.flatMap((window) => [...window.ids.subarray(window.scoredFrom)]))).toEqual(
        ids.slice(1),
      );
      for (const [index, window] of windows.entries()) {
        expect(window.ids.length).toBeLessThanOrEqual(options.tokens);
        expect(window.scoredFrom).toBeGreaterThanOrEqual(
          index === 0 ? 1 : Math.min(options.tokens - (options.stride ?? options.tokens - 1), window.ids.length - 1),
        );
      }
    }
    expect(() => perplexityWindows(Int32Array.of(1))).toThrow(/at least 2/);
  });
});

it("errors are recognised by brand", () => {
  try {
    texts(3).at(-1);
    expect.unreachable();
  } catch (error) {
    expect(LlmError.isInstance(error, "OPTIONS")).toBe(true);
  }
});
