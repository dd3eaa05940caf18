import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { type AttentionCache, type AttentionMeta, type CausalLM, createInputs, loadModel } from "@llm/models";
import { empty, native, noGrad, scope, type Tensor, tensor } from "@llm/core";
import { describe, expect, it } from "vitest";
import { comparePerplexity, perplexityOf, quantize } from "./index.js";

const assets = resolve(process.env["LLM_ASSETS"] ?? "../shared/assets");
const folder = `${assets}/w-stories260K`;
const present = existsSync(folder);
if (!present) console.log(`skipped: ${folder} is absent (set LLM_ASSETS)`);

/** Keys and values of one sequence in 8 bits, each token and head with its own scale. */
class Int8Cache implements AttentionCache {
  private readonly layers: { k: Tensor; v: Tensor; ks: Tensor; vs: Tensor }[];
  private readonly slots: Tensor;
  private readonly table = tensor(Int32Array.of(0), [1, 1]);
  private readonly lengths: Tensor;

  constructor(model: CausalLM, tokens: number) {
    const { kvHeads, headDim, layers } = model.spec;
    const make = () => empty([1, tokens, kvHeads, headDim], "i8", "kv");
    const scales = () => empty([1, tokens, kvHeads, 2], "f32", "kv");
    this.layers = Array.from({ length: layers }, () => ({ k: make(), v: make(), ks: scales(), vs: scales() }));
    this.slots = tensor(Int32Array.from({ length: tokens }, (_, t) => t));
    this.lengths = tensor(Int32Array.of(tokens));
  }

  append(layer: number, k: Tensor, v: Tensor): void {
    const l = this.layers[layer]!;
    native.kvAppend(l.k, l.ks, k, this.slots);
    native.kvAppend(l.v, l.vs, v, this.slots);
  }

  attend(layer: number, q: Tensor, meta: AttentionMeta): Tensor {
    const l = this.layers[layer]!;
    return native.pagedAttention(
      q,
      l.k,
      l.v,
      l.ks,
      l.vs,
      this.table,
      meta.cuSeqlens_B1,
      this.lengths,
      meta.scale,
      meta.window,
    );
  }
}

/** `score` of a model whose keys and values are 8-bit. */
function withInt8Cache(model: CausalLM): Pick<CausalLM, "score"> {
  return {
    score: async (prefix, continuations) =>
      continuations.map((continuation) => {
        const ids = Int32Array.of(...prefix, ...continuation.subarray(0, -1));
        const targets = Int32Array.of(...prefix, ...continuation).subarray(1);
        const logprobs = noGrad(() =>
          scope(() => {
            const inputs = createInputs(
              ids,
              Int32Array.from(ids, (_, i) => i),
              Int32Array.of(0, ids.length),
            );
            const hidden = model.decoder.forward(inputs, { cache: new Int8Cache(model, ids.length) });
            return native.tokenLogprobs(model.decoder.logits(hidden), tensor(targets))[0].dataSync() as Float32Array;
          }),
        );
        const tokenLogprobs = Float64Array.from(logprobs.subarray(prefix.length - 1));
        return { logprob: tokenLogprobs.reduce((a, b) => a + b, 0), greedy: false, tokenLogprobs };
      }),
  };
}

describe.skipIf(!present)("stories260K in 4 bits", () => {
  it("loses little perplexity, and less with AWQ than with rounding alone", async () => {
    const model = await loadModel(`${folder}/hf`);
    // Stories that the model tells itself: what it was trained to model, drawn with two disjoint sets of seeds.
    const stories = async (seeds: readonly number[]): Promise<Int32Array[]> => {
      const all: Int32Array[] = [];
      for (const seed of seeds) {
        for await (const event of model.generate([Int32Array.of(1)], {
          maxTokens: 191,
          temperature: 1,
          seed,
          ignoreEos: true,
        })) {
          if (event.type === "finish") all.push(Int32Array.of(1, ...event.tokenIds));
        }
      }
      return all;
    };
    const range = (start: number, length: number): number[] => Array.from({ length }, (_, i) => start + i);
    const [calibration, blocks] = [await stories(range(1000, 8)), await stories(range(1, 24))];
    const dense = await perplexityOf(model, blocks);
    const rows: { model: string; perplexity: number; difference: number; standardError: number; bytes: number }[] = [
      { model: "f32", perplexity: dense.perplexity, difference: 0, standardError: 0, bytes: model.decoder.weightBytes },
    ];
    const measured: Record<string, Awaited<ReturnType<typeof perplexityOf>>> = {};
    for (const groupSize of [32, 64] as const) {
      for (const method of ["rtn", "awq"] as const) {
        const made = await quantize(model, { method, groupSize, ...(method === "awq" ? { calibration } : {}) });
        const p = await perplexityOf(made, blocks);
        const { perplexity, standardError } = comparePerplexity(dense, p);
        measured[`${method}${groupSize}`] = p;
        rows.push({
          model: `${method} g${groupSize}`,
          perplexity: p.perplexity,
          difference: perplexity,
          standardError: standardError * p.perplexity,
          bytes: made.decoder.weightBytes,
        });
        if (method === "awq")
          for (const l of made.quantization.linears) expect(l.errorAwq, l.name).toBeLessThanOrEqual(l.errorRtn!);
        made.dispose();
      }
    }
    const kv = await perplexityOf(withInt8Cache(model), blocks);
    const kvDifference = comparePerplexity(dense, kv);
    rows.push({
      model: "int8 keys and values",
      perplexity: kv.perplexity,
      difference: kvDifference.perplexity,
      standardError: kvDifference.standardError * kv.perplexity,
      bytes: model.decoder.weightBytes,
    });
    console.table(rows);

    expect(dense.perplexity).toBeGreaterThan(1.5);
    expect(dense.perplexity).toBeLessThan(6);
    for (const row of rows.slice(1)) {
      expect(row.difference, row.model).toBeLessThan(row.model.startsWith("rtn") ? 0.6 : 0.4);
      expect(row.difference, row.model).toBeGreaterThan(-3 * row.standardError);
    }
    expect(Math.abs(kvDifference.nll)).toBeLessThan(0.01);
    // AWQ is better than rounding, beyond the noise of the measurement.
    for (const g of [32, 64]) {
      const { nll, standardError } = comparePerplexity(measured[`rtn${g}`]!, measured[`awq${g}`]!);
      expect(nll).toBeLessThan(-2 * standardError);
    }
    model.dispose();
  }, 240_000);
});
