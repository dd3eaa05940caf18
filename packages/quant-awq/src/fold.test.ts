import type { Tensor } from "@llm/core";
import { createModel, type CausalLM } from "@llm/models";
import { byteTokenizer, randomDocuments } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { type BlockScales, foldScales } from "./index.js";
import { linearRoles } from "./fold.js";
import { tieHeads, untieHeads } from "./scales.js";

const tokenizer = byteTokenizer();

function model(modelType: string, extra: Record<string, unknown> = {}, dtype: "f32" | "bf16" = "f32"): CausalLM {
  const config = {
    model_type: modelType,
    vocab_size: 259,
    hidden_size: 32,
    intermediate_size: modelType === "qwen" ? 96 : 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    max_position_embeddings: 128,
    tie_word_embeddings: false,
    ...extra,
  };
  const made = createModel(config, tokenizer, { seed: 3, dtype, initStd: 0.15 });
  // Norms of one and biases of zero would hide mistakes.
  const rest = [...made.decoder.namedTensors()].filter(([, t]) => t.shape.length === 1);
  for (const [i, [name, t]] of rest.entries()) {
    const values = Float32Array.from(
      { length: t.size },
      (_, c) => (name.endsWith("bias") ? 0 : 1) + 0.3 * Math.sin(7 * c + i),
    );
    if (dtype === "f32") t.write(values);
  }
  return made;
}

/** Positive scales from 1/8 to 8 with no pattern that a mistake could share. */
function arbitrary(length: number, seed: number): Float32Array {
  return Float32Array.from({ length }, (_, c) => 2 ** (3 * Math.sin(1.7 * c + seed)));
}

function allScales(m: CausalLM): BlockScales[] {
  const { hiddenSize, intermediateSize, kvHeads, headDim, layers } = m.spec;
  return Array.from({ length: layers }, (_, i) => ({
    qkv: arbitrary(hiddenSize, i),
    o: arbitrary(kvHeads * headDim, 10 + i),
    gateUp: arbitrary(hiddenSize, 20 + i),
    down: arbitrary(intermediateSize, 30 + i),
  }));
}

const ids = randomDocuments([40], { vocabSize: 259, seed: 1 })[0]!;

function largestDifference(a: CausalLM, b: CausalLM): number {
  const [x, y] = [a, b].map((m) => {
    const logits = m.logits(ids);
    const values = logits.dataSync() as Float32Array;
    logits.dispose();
    return values;
  }) as [Float32Array, Float32Array];
  return x.reduce((worst, value, i) => Math.max(worst, Math.abs(value - y[i]!)), 0);
}

describe("foldScales", () => {
  it.each([
    ["llama, one key/value head a query head", "llama", {}],
    ["llama, grouped heads and all biases", "llama", { num_key_value_heads: 2, attention_bias: true, mlp_bias: true }],
    ["mistral with a window", "mistral", { num_key_value_heads: 1, sliding_window: 8 }],
    ["qwen2 with its biases", "qwen2", { num_key_value_heads: 2 }],
    ["qwen3 with norms of query and key", "qwen3", { num_key_value_heads: 2, head_dim: 16, attention_bias: true }],
    ["internlm2", "internlm2", { num_key_value_heads: 2, bias: true }],
    ["qwen 1", "qwen", { kv_channels: 8, seq_length: 128, no_bias: false, use_logn_attn: false }],
  ])("leaves the logits of %s as they are for arbitrary positive scales", (_, type, extra) => {
    const before = model(type, extra);
    const original = [...before.decoder.namedTensors()].map(([, t]) => Float32Array.from(t.dataSync() as Float32Array));
    const after = foldScales(before, allScales(before));
    expect(largestDifference(before, after)).toBeLessThan(1e-5);
    // It did something, and not to its argument.
    const weight = linearRoles(after.decoder.blocks[0]!).map(([, l]) => [
      ...((l.storage as { weight: Tensor }).weight.dataSync() as Float32Array),
    ]);
    linearRoles(before.decoder.blocks[0]!).forEach(([, l], i) =>
      expect(weight[i]).not.toEqual([...((l.storage as { weight: Tensor }).weight.dataSync() as Float32Array)]),
    );
    expect([...before.decoder.namedTensors()].map(([, t]) => t.dataSync())).toEqual(original);
    after.dispose();
    before.dispose();
  });

  it("multiplies consumers by what a bf16 norm really divides by, not by what was asked", () => {
    const before = model("llama", { num_key_value_heads: 2 }, "bf16");
    const scales = allScales(before).map(({ qkv, gateUp }) => ({ qkv: qkv!, gateUp: gateUp! }));
    const after = foldScales(before, scales);
    for (const [i, block] of before.decoder.blocks.entries()) {
      const folded = after.decoder.blocks[i]!;
      const [w, n, v, m] = [block.qkv.linears[0]!, folded.qkv.linears[0]!].flatMap((l, side) => [
        (l.storage as { weight: Tensor }).weight.dataSync() as Float32Array,
        (side === 0 ? block : folded).inputNorm.weight.dataSync() as Float32Array,
      ]) as [Float32Array, Float32Array, Float32Array, Float32Array];
      // norm · weight is preserved up to the rounding of the weight alone (2^-8); rounding both would reach 2^-7.
      v.forEach((value, k) =>
        expect(Math.abs((value * m[k % 32]!) / (w[k]! * n[k % 32]!) - 1)).toBeLessThan(2 ** -7.99),
      );
    }
    after.dispose();
    before.dispose();
  });

  it("keeps working when the model it came from is disposed of", () => {
    const before = model("qwen2", { num_key_value_heads: 2 });
    const after = foldScales(before, [{}, { down: arbitrary(48, 1) }]);
    const expected = Float32Array.from(before.logits(ids).dataSync() as Float32Array);
    before.dispose();
    const values = after.logits(ids).dataSync() as Float32Array;
    values.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-5));
    after.dispose();
  });

  it("refuses scales of a wrong length, and a missing block", () => {
    const m = model("llama");
    expect(() => foldScales(m, [{ qkv: new Float32Array(31).fill(1) }, {}])).toThrow(
      /scales of .* must be \[32\], got \[31\]/,
    );
    expect(() => foldScales(m, [{}])).toThrow(/expected scales of 2 blocks, got 1/);
    m.dispose();
  });
});

describe("scales of grouped heads", () => {
  it("are averaged over the query heads of a key/value head and given back to each", () => {
    const tied = tieHeads(Float64Array.of(1, 2, 3, 4, 10, 20, 30, 40), 4, 2, 2);
    expect([...tied]).toEqual([2, 3, 20, 30]);
    expect([...untieHeads(Float32Array.from(tied), 4, 2, 2)]).toEqual([2, 3, 2, 3, 20, 30, 20, 30]);
  });
});
