import { getEventListeners } from "node:events";
import { memory } from "@llm/core";
import { type CausalLM, createModel, type GenerateOptions, trainBpe } from "@llm/models";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEngine, type EngineOptions } from "./engine.js";

const prompts = [
  "hello world",
  "a",
  "the quick brown fox jumps over the lazy dog",
  "the quick brown fox",
  "zzz",
  "12 + 30 =",
  "the quick brown fox jumps again and again",
];
let model: CausalLM;

beforeAll(() => {
  const tokenizer = trainBpe(prompts, { vocabSize: 300, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
  model = createModel(
    {
      model_type: "qwen2",
      vocab_size: 320,
      hidden_size: 48,
      intermediate_size: 80,
      num_hidden_layers: 2,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      max_position_embeddings: 128,
      tie_word_embeddings: true,
    },
    tokenizer,
    { seed: 3, initStd: 0.3 },
  );
});
afterAll(() => model.dispose());

/** Text and ids of each prompt, generated one at a time by the reference loop. */
async function reference(options: GenerateOptions): Promise<number[][]> {
  const all: number[][] = [];
  for (const [i, prompt] of prompts.entries()) {
    for await (const e of model.generate([prompt], { ...options, seed: (options.seed ?? 0) + i }))
      if (e.type === "finish") all.push(e.tokenIds);
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
    expect(
      await served(
        { maxBatchSize: 4, maxBatchTokens: 5, maxTokens: 80, kvCache: { blockSize: 4, maxEntryCount: 24 } },
        greedy,
      ),
    ).toEqual(expected);
  });

  it("reuses a known prefix and says so", async () => {
    const engine = await createEngine(model, { kvCache: { blockSize: 4 } });
    const usage: (number | undefined)[] = [];
    for (let i = 0; i < 2; i++)
      for await (const e of engine.stream({ prompt: prompts[2]!, maxTokens: 4, ignoreEos: true }))
        if (e.type === "finish") usage.push(e.usage.cachedTokens);
    expect(usage[0]).toBeUndefined();
    expect(usage[1]).toBeGreaterThan(0);
    await engine.dispose();
  });

  it("streams n continuations with log-probabilities that match scoring", async () => {
    const engine = await createEngine(model);
    const ids: number[][] = [[], []];
    const logprobs: number[][] = [[], []];
    for await (const e of engine.stream({
      prompt: prompts[0]!,
      n: 2,
      maxTokens: 6,
      ignoreEos: true,
      temperature: 1,
      logprobs: 2,
    })) {
      if (e.type !== "text-delta") continue;
      ids[e.index]!.push(...e.tokenIds);
      for (const l of e.logprobs!) logprobs[e.index]!.push(l.logprob);
    }
    const scores = await model.score(
      model.encodePrompt(prompts[0]!),
      ids.map((list) => Int32Array.from(list)),
    );
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
      for await (const e of engine.stream({
        prompt: "a",
        maxTokens: 100,
        ignoreEos: true,
        signal: controller.signal,
      })) {
        if (e.type === "text-delta") controller.abort();
        if (e.type === "finish") return e.reason;
      }
      return "ended";
    })();
    const other = (async () => {
      for await (const e of engine.stream({ prompt: "zzz", maxTokens: 20, ignoreEos: true }))
        if (e.type === "finish") return e.tokenIds.length;
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

describe("engine over other models and caches", () => {
  const small = {
    hidden_size: 48,
    intermediate_size: 80,
    num_hidden_layers: 2,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    max_position_embeddings: 128,
    vocab_size: 320,
  };
  const long = "the quick brown fox jumps over the lazy dog again and again and again";

  async function both(
    of: CausalLM,
    engineOptions: EngineOptions,
    options: GenerateOptions,
  ): Promise<[number[][], number[][]]> {
    const [alone, together]: [number[][], number[][]] = [[], []];
    for (const [i, prompt] of [long, ...prompts].entries()) {
      for await (const e of of.generate([prompt], { ...options, seed: i }))
        if (e.type === "finish") alone.push(e.tokenIds);
    }
    const engine = await createEngine(of, engineOptions);
    for await (const e of engine.generate([long, ...prompts], options))
      if (e.type === "finish") together[e.index] = e.tokenIds;
    await engine.dispose();
    return [alone, together];
  }

  it.each([
    ["mistral with a window shorter than the prompt", { model_type: "mistral", sliding_window: 8 }, "f32"],
    [
      "qwen2 with a window in its upper layer",
      { model_type: "qwen2", use_sliding_window: true, sliding_window: 6, max_window_layers: 1 },
      "f32",
    ],
    ["qwen3", { model_type: "qwen3", head_dim: 16 }, "f32"],
    ["llama in bf16", { model_type: "llama", tie_word_embeddings: false }, "bf16"],
    ["llama in f16", { model_type: "llama" }, "f16"],
  ] as const)("gives the reference loop's tokens: %s", async (_, config, dtype) => {
    const other = createModel({ ...small, ...config }, model.tokenizer, { seed: 5, initStd: 0.3, dtype });
    const [alone, together] = await both(
      other,
      { maxBatchSize: 4, maxBatchTokens: 24, kvCache: { blockSize: 4 } },
      { maxTokens: 16, ignoreEos: true },
    );
    expect(together).toEqual(alone);
    other.dispose();
  });

  it("a window changes what is generated, so that one which is ignored would be seen", async () => {
    const made = [8, null].map((sliding_window) =>
      createModel({ ...small, model_type: "mistral", sliding_window }, model.tokenizer, { seed: 5, initStd: 0.3 }),
    );
    const [near, all] = await Promise.all(
      made.map(async (m) => (await both(m, {}, { maxTokens: 16, ignoreEos: true }))[1]),
    );
    expect(near).not.toEqual(all);
    for (const m of made) m.dispose();
  });

  it("int8 blocks of a known prefix give what computing them again gives, with and without Plans", async () => {
    const run = async (options: EngineOptions): Promise<{ ids: number[]; cached: number | undefined }[]> => {
      const engine = await createEngine(model, options);
      const all: { ids: number[]; cached: number | undefined }[] = [];
      for (let i = 0; i < 2; i++) {
        for await (const e of engine.stream({ prompt: long, maxTokens: 24, ignoreEos: true }))
          if (e.type === "finish") all.push({ ids: e.tokenIds, cached: e.usage.cachedTokens });
      }
      await engine.dispose();
      return all;
    };
    const [first, second] = await run({ kvCache: { dtype: "int8", blockSize: 4 } });
    expect(second!.cached).toBeGreaterThan(0);
    expect(second!.ids).toEqual(first!.ids);
    for (const options of [{ plans: false }, { plans: true }]) {
      const [plain] = await run({ ...options, kvCache: { dtype: "int8", blockSize: 4, prefixCaching: false } });
      expect(plain!.ids).toEqual(first!.ids);
    }
  });

  it("fails requests that it cannot take at the call and goes on: a full queue, a prompt without room, an id outside the model, a misspelt option", async () => {
    const engine = await createEngine(model, { maxBatchSize: 1, maxQueue: 1, maxTokens: 40 });
    const drain = async (events: AsyncIterable<unknown>): Promise<void> => {
      for await (const _ of events);
    };
    const first = drain(engine.stream({ prompt: "a", maxTokens: 8, ignoreEos: true }));
    expect(() => engine.stream({ prompt: "b", maxTokens: 8 })).toThrow(expect.objectContaining({ code: "QUEUE_FULL" }));
    await first;
    expect(() => engine.stream({ prompt: new Int32Array(40).fill(65), maxTokens: 1 })).toThrow(
      expect.objectContaining({
        code: "OPTIONS",
        data: expect.objectContaining({ reason: "context_length_exceeded" }),
      }),
    );
    expect(() => engine.stream({ prompt: Int32Array.of(320) })).toThrow(expect.objectContaining({ code: "NUMERIC" }));
    expect(() => engine.stream({ prompt: "a", maxToken: 1 } as never)).toThrow(/maxToken/);
    await drain(engine.stream({ prompt: "a", maxTokens: 2, ignoreEos: true }));
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvBlocksUsed: 0 });
    await engine.dispose();
    expect(() => engine.stream({ prompt: "a" })).toThrow(expect.objectContaining({ code: "DISPOSED" }));
  });

  it("takes its listener off a signal that outlives the request", async () => {
    const engine = await createEngine(model);
    const { signal } = new AbortController();
    for (let i = 0; i < 3; i++) for await (const _ of engine.stream({ prompt: "a", maxTokens: 2, signal }));
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
    await engine.dispose();
  });
});
