import { createRequire } from "node:module";
import { LlmError } from "@llm/core";
import type { GenerateEvent, Tokenizer } from "@llm/models";
import { afterEach, describe, expect, it, vi } from "vitest";
import { evaluate } from "../evaluate.js";
import { asset } from "../test-assets.test-support.js";
import { perplexity } from "../tasks/perplexity.js";
import { onnxModel } from "./onnx.js";
import { halfToFloat } from "./onnx-session.js";

/** Ids written as numbers: "5 6 7". */
const numbers: Tokenizer = {
  vocabSize: 1000,
  bosTokenId: undefined,
  eosTokenId: 98,
  padTokenId: undefined,
  unkTokenId: undefined,
  specialTokens: new Map(),
  chatTemplate: undefined,
  encode: (text) => Int32Array.from(text.split(/\s+/).filter(Boolean), Number),
  decode: (ids) => Array.from(ids).join(" "),
  decodeStream: () => ({ push: (id) => `${id} `, end: () => "" }),
  idToToken: (id) => String(id),
  tokenToId: (token) => Number(token),
  tokenBytes: (id) => Buffer.from(`${id} `),
  applyChatTemplate: (messages) => messages.map((message) => message.content).join(" "),
  save: async () => {},
};

const installed = ((): boolean => {
  try {
    createRequire(import.meta.url).resolve("onnxruntime-node");
    return true;
  } catch {
    console.log("skipped: onnxruntime-node is not installed");
    return false;
  }
})();
const folder = (...parts: string[]): string | undefined => (installed ? asset("w-onnx-tiny", ...parts) : undefined);

const finishes = async (
  events: AsyncIterable<GenerateEvent>,
): Promise<Extract<GenerateEvent, { type: "finish" }>[]> => {
  const list = [];
  for await (const event of events) if (event.type === "finish") list.push(event);
  return list;
};

// Greedy continuations that onnxruntime-genai's own tests record for the tiny GPT-2 (test/model_tests.cpp, GreedySearchGptFp32).
const PROMPTS = [Int32Array.of(0, 0, 0, 52), Int32Array.of(0, 0, 195, 731)];
const GREEDY = [
  [204, 204, 204, 204, 204, 204],
  [731, 114, 114, 114, 114, 114],
];

describe("onnxModel", () => {
  const gpt2 = folder("hf-internal-testing", "tiny-random-gpt2-fp32");
  const gpt2Half = folder("hf-internal-testing", "tiny-random-gpt2-fp16-cuda");
  const lfm2 = folder("hf-internal-testing", "tiny-random-lfm2-fp32");
  const qwen = folder("hf-internal-testing", "tiny-qwen35-cuda");
  const paged = folder("engine", "synthetic-paged");
  const dummy = folder("engine", "dummy-decoder");

  it.skipIf(!gpt2)("continues as recorded, f32", async () => {
    const model = await onnxModel({ path: gpt2!, tokenizer: numbers });
    expect(model.maxTokens).toBe(512);
    const results = await finishes(model.generate(PROMPTS, { maxTokens: 6 }));
    expect(results.map((result) => result.tokenIds)).toEqual(GREEDY);
    expect(results[0]).toMatchObject({ reason: "length", usage: { promptTokens: 4, completionTokens: 6 } });
    await model.dispose();
    await expect(finishes(model.generate(["1"]))).rejects.toSatisfy((error) => LlmError.isInstance(error, "DISPOSED"));
  });

  it.skipIf(!gpt2Half)("continues as recorded, f16", async () => {
    const model = await onnxModel({ path: gpt2Half!, tokenizer: numbers });
    const results = await finishes(model.generate(PROMPTS, { maxTokens: 6 }));
    expect(results.map((result) => result.tokenIds)).toEqual(GREEDY);
    await model.dispose();
  });

  it.skipIf(!lfm2)("carries fixed states beside growing ones: step by step equals all at once", async () => {
    const model = await onnxModel({ path: lfm2!, tokenizer: numbers });
    const [result] = await finishes(model.generate(["0 0 195 731"], { maxTokens: 6, ignoreEos: true }));
    expect(result!.tokenIds.length).toBe(6);
    const [score] = await model.score(PROMPTS[1]!, [Int32Array.from(result!.tokenIds)]);
    expect(score!.greedy).toBe(true);
    const stepped: number[] = [];
    for (let i = 0; i < 6; i++) {
      const prefix = Int32Array.from([...PROMPTS[1]!, ...result!.tokenIds.slice(0, i)]);
      stepped.push((await model.score(prefix, [Int32Array.of(result!.tokenIds[i]!)]))[0]!.logprob);
    }
    expect([...score!.tokenLogprobs]).toEqual(stepped.map((value) => expect.closeTo(value, 4)));
    await model.dispose();
  });

  it.skipIf(!qwen)("runs grouped-query attention in f16", async () => {
    const model = await onnxModel({ path: qwen!, tokenizer: numbers });
    const [result] = await finishes(model.generate([Int32Array.of(10, 20, 30, 40)], { maxTokens: 6, ignoreEos: true }));
    expect(result!.tokenIds.length).toBe(6);
    const [score] = await model.score(Int32Array.of(10, 20, 30, 40), [Int32Array.from(result!.tokenIds)]);
    expect(score!.greedy).toBe(true);
    await model.dispose();
  });

  it.skipIf(!gpt2)("scores: greedy continuations are greedy, sums are sums, one prefix serves many", async () => {
    const model = await onnxModel({ path: gpt2!, tokenizer: numbers });
    const continuations = [...GREEDY.map((ids) => Int32Array.from(ids)), Int32Array.of(1), Int32Array.of(1, 2, 3)];
    const scores = await model.score(PROMPTS[0]!, continuations);
    expect(scores.map((score) => score.greedy)).toEqual([true, false, false, false]);
    for (const score of scores)
      expect(score.logprob).toBeCloseTo(
        score.tokenLogprobs.reduce((sum, value) => sum + value, 0),
        10,
      );
    // The chain rule over another split of the same ids.
    const [whole] = await model.score(Int32Array.of(0), [Int32Array.of(0, 0, 52, 1, 2, 3)]);
    expect(Array.from(whole!.tokenLogprobs.subarray(3))).toEqual(
      [...scores[3]!.tokenLogprobs].map((value) => expect.closeTo(value, 4)),
    );
    // Probabilities of all 1000 ids sum to 1.
    const all = await model.score(
      PROMPTS[0]!,
      Array.from({ length: 1000 }, (_, id) => Int32Array.of(id)),
    );
    expect(all.reduce((sum, score) => sum + Math.exp(score.logprob), 0)).toBeCloseTo(1, 6);
    await expect(model.score(Int32Array.of(), [Int32Array.of(1)])).rejects.toThrow("prefix");
    await expect(model.score(PROMPTS[0]!, [new Int32Array(600)])).rejects.toThrow("at most 512");
    const results = await evaluate({
      models: { model },
      tasks: [perplexity({ text: "0 0 0 52 204 204 204", blockTokens: 2 })],
    });
    expect(results.cells[0]!.metrics[0]!.value).toBeGreaterThan(1);
    await model.dispose();
  });

  it.skipIf(!gpt2)("samples by seed, and stops at stop texts and ids", async () => {
    const model = await onnxModel({ path: gpt2!, tokenizer: numbers });
    const sample = async (seed: number): Promise<number[]> =>
      (
        await finishes(model.generate(PROMPTS.slice(0, 1), { maxTokens: 12, temperature: 1, seed, ignoreEos: true }))
      )[0]!.tokenIds;
    expect(await sample(1)).toEqual(await sample(1));
    expect(await sample(1)).not.toEqual(await sample(2));
    const events: GenerateEvent[] = [];
    for await (const event of model.generate(["0 0 195 731"], { maxTokens: 9, stop: ["114 114"] })) events.push(event);
    expect(events.at(-1)).toMatchObject({ reason: "stop", text: "731 ", tokenIds: [731, 114, 114] });
    expect(events.flatMap((event) => (event.type === "text-delta" ? [event.text] : [])).join("")).toBe("731 ");
    expect(events.flatMap((event) => (event.type === "text-delta" ? event.tokenIds : []))).toEqual([731, 114, 114]);
    const [byId] = await finishes(model.generate(PROMPTS.slice(1), { maxTokens: 9, stopTokenIds: [114] }));
    expect(byId).toMatchObject({ reason: "stop", tokenIds: [731], text: "731 " });
    const abort = AbortSignal.abort();
    expect((await finishes(model.generate(PROMPTS.slice(1), { signal: abort })))[0]!.reason).toBe("abort");
    await model.dispose();
  });

  it.skipIf(!paged || !dummy)("refuses graphs that are no such decoder, and files that are none", async () => {
    await expect(onnxModel({ path: paged!, tokenizer: numbers })).rejects.toSatisfy((error) =>
      LlmError.isInstance(error, "UNSUPPORTED"),
    );
    const fixed = await onnxModel({ path: dummy!, tokenizer: numbers });
    await expect(finishes(fixed.generate(["1 2 3"]))).rejects.toSatisfy(
      (error) => LlmError.isInstance(error, "SHAPE") || LlmError.isInstance(error, "FORMAT"),
    );
    await fixed.dispose();
    await expect(onnxModel({ path: "/nowhere/model.onnx", tokenizer: numbers })).rejects.toSatisfy((error) =>
      LlmError.isInstance(error, "IO"),
    );
  });

  afterEach(() => {
    vi.doUnmock("onnxruntime-node");
    vi.resetModules();
  });

  it("says what to install when onnxruntime-node is absent", async () => {
    vi.resetModules();
    vi.doMock("onnxruntime-node", () => {
      throw new Error("Cannot find package 'onnxruntime-node'");
    });
    const { OnnxDecoder } = await import("./onnx-session.js");
    await expect(OnnxDecoder.open("model.onnx", {})).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringContaining("npm install onnxruntime-node"),
    });
  });

  it("reads half precision", () => {
    expect([0x3c00, 0xc000, 0x7bff, 0x0001, 0x8000, 0x7c00].map(halfToFloat)).toEqual([
      1,
      -2,
      65504,
      2 ** -24,
      -0,
      Infinity,
    ]);
    expect(halfToFloat(0x7e00)).toBeNaN();
  });
});
