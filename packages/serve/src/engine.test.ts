import { memory } from "@llm/core";
import { type CausalLM, createModel, type GenerateOptions, trainBpe } from "@llm/models";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEngine, type EngineOptions } from "./engine.js";

const prompts = ["hello world", "a", "the quick brown fox jumps over the lazy dog", "the quick brown fox", "zzz", "12 + 30 =", "the quick brown fox jumps again and again"];
let model: CausalLM;

beforeAll(() => {
  const tokenizer = trainBpe(prompts, { vocabSize: 300, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
  model = createModel(
    { model_type: "qwen2", vocab_size: 320, hidden_size: 48, intermediate_size: 80, num_hidden_layers: 2, num_attention_heads: 6, num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: true },
    tokenizer,
    { seed: 3, initStd: 0.3 },
  );
});
afterAll(() => model.dispose());

/** Text and ids of each prompt, generated one at a time by the reference loop. */
async function reference(options: GenerateOptions): Promise<number[][]> {
  const all: number[][] = [];
  for (const [i, prompt] of prompts.entries()) {
    for await (const e of model.generate([prompt], { ...options, seed: (options.seed ?? 0) + i })) if (e.type === "finish") all.push(e.tokenIds);
  }
  return all;
}

async function served(engineOptions: EngineOptions, options: GenerateOptions): Promise<number[][]> {
  const engine = await createEngine(model, engineOptions);
  const all: number[][] = [];
  for await (const e of engine.generate(prompts, options)) if (e.type === "finish") all[e.index] = e.tokenIds;
  await engine.dispose();
  return all;
}

describe("engine", () => {
  const greedy = { maxTokens: 24, ignoreEos: true };
  const sampled = { maxTokens: 24, ignoreEos: true, temperature: 0.9, topK: 40, topP: 0.95, seed: 7 };
  const penalised = { ...sampled, repetitionPenalty: 1.3, presencePenalty: 0.4, frequencyPenalty: 0.2 };

  it.each([
    ["greedy", greedy],
    ["sampled", sampled],
    ["penalised", penalised],
  ])("gives the reference loop's tokens, %s, batched and with Plans", async (_, options) => {
    const expected = await reference(options);
    expect(await served({ maxBatchSize: 4 }, options)).toEqual(expected);
    expect(await served({ maxBatchSize: 8, plans: false }, options)).toEqual(expected);
  });

  it("gives the same tokens with chunked prompts, few blocks and preemption", async () => {
    const expected = await reference(greedy);
    expect(await served({ maxBatchSize: 4, maxBatchTokens: 5, maxTokens: 80, kvCache: { blockSize: 4, maxEntryCount: 24 } }, greedy)).toEqual(expected);
  });

  it("reuses a known prefix and says so", async () => {
    const engine = await createEngine(model, { kvCache: { blockSize: 4 } });
    const usage: (number | undefined)[] = [];
    for (let i = 0; i < 2; i++) for await (const e of engine.stream({ prompt: prompts[2]!, maxTokens: 4, ignoreEos: true })) if (e.type === "finish") usage.push(e.usage.cachedTokens);
    expect(usage[0]).toBeUndefined();
    expect(usage[1]).toBeGreaterThan(0);
    await engine.dispose();
  });

  it("streams n continuations with log-probabilities that match scoring", async () => {
    const engine = await createEngine(model);
    const ids: number[][] = [[], []];
    const logprobs: number[][] = [[], []];
    for await (const e of engine.stream({ prompt: prompts[0]!, n: 2, maxTokens: 6, ignoreEos: true, temperature: 1, logprobs: 2 })) {
      if (e.type !== "text-delta") continue;
      ids[e.index]!.push(...e.tokenIds);
      for (const l of e.logprobs!) logprobs[e.index]!.push(l.logprob);
    }
    const scores = await model.score(model.encodePrompt(prompts[0]!), ids.map((list) => Int32Array.from(list)));
    for (const i of [0, 1]) {
      expect(ids[i]).toHaveLength(6);
      logprobs[i]!.forEach((l, t) => expect(l).toBeCloseTo(scores[i]!.tokenLogprobs[t]!, 4));
    }
    await engine.dispose();
  });

  it("ends an aborted request within a step and serves the others", async () => {
    const engine = await createEngine(model);
    const controller = new AbortController();
    const aborted = (async () => {
      for await (const e of engine.stream({ prompt: "a", maxTokens: 100, ignoreEos: true, signal: controller.signal })) {
        if (e.type === "text-delta") controller.abort();
        if (e.type === "finish") return e.reason;
      }
      return "ended";
    })();
    const other = (async () => {
      for await (const e of engine.stream({ prompt: "zzz", maxTokens: 20, ignoreEos: true })) if (e.type === "finish") return e.tokenIds.length;
      return 0;
    })();
    expect(["abort", "ended"]).toContain(await aborted);
    expect(await other).toBe(20);
    expect(engine.stats().running).toBe(0);
    await engine.dispose();
  });

  it("keeps an int8 cache's continuation close: the same first tokens", async () => {
    const engine = await createEngine(model, { kvCache: { dtype: "int8" } });
    const out: number[][] = [];
    for await (const e of engine.generate(prompts, greedy)) if (e.type === "finish") out[e.index] = e.tokenIds;
    const expected = await reference(greedy);
    const agree = out.filter((ids, i) => ids[0] === expected[i]![0]).length;
    expect(agree).toBeGreaterThanOrEqual(prompts.length - 1);
    await engine.dispose();
  });

  it("frees everything on dispose", async () => {
    const run = async (): Promise<void> => void (await served({ maxBatchSize: 4 }, sampled));
    await run();
    const before = memory().liveTensors;
    await run();
    expect(memory().liveTensors).toBe(before);
  });
});
