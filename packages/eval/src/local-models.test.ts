import { readFileSync } from "node:fs";
import { type CausalLM, loadModel } from "@llm/models";
import { createEngine, createServer, type LocalEngine } from "@llm/serve";
import { tinyModel } from "@llm/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { evaluate } from "./evaluate.js";
import { openaiModel } from "./models/openai.js";
import { multipleChoice } from "./tasks/multiple-choice.js";
import { perplexity } from "./tasks/perplexity.js";
import { questionAnswer } from "./tasks/question-answer.js";
import type { Task } from "./task.js";
import { asset } from "./test-assets.test-support.js";

// The models that users judge: a local one, an engine over it, the same engine behind a URL.
const rows = Array.from({ length: 12 }, (_, i) => ({
  question: `${i}+${i}=`,
  A: String(2 * i),
  B: String(2 * i + 1),
  C: String(3 * i + 1),
  answer: "A",
}));
const text = "one plus one is two, two plus two is four, and four plus four is eight. ".repeat(4);
const tasks = (): Task[] =>
  [
    multipleChoice(rows, { name: "ppl", mode: "ppl", promptStyle: "raw" }),
    multipleChoice(rows, { name: "loglikelihood", mode: "loglikelihood", promptStyle: "raw" }),
    multipleChoice(rows, { name: "gen", mode: "gen", maxTokens: 8 }),
    questionAnswer(
      rows.map(({ question, A }) => ({ question, answer: A })),
      { name: "answers", maxTokens: 6, promptStyle: "raw" },
    ),
    perplexity({ text, name: "text", windowTokens: 128, stride: 64 }),
  ] as Task[];

let model: CausalLM;
let engine: LocalEngine;
beforeAll(async () => {
  model = tinyModel({ std: 0.3, seed: 2 });
  engine = await createEngine(model, { maxBatchSize: 8 });
});
afterAll(async () => {
  await engine.dispose();
  model.dispose();
});

describe("evaluate", () => {
  it("judges a model, an engine over it and that engine's URL alike", async () => {
    const server = await createServer({ engine, port: 0, modelName: "tiny" });
    try {
      const url = openaiModel({
        baseUrl: `${server.url}/v1`,
        model: "tiny",
        tokenizer: model.tokenizer,
        maxTokens: model.maxTokens,
      });
      const results = await evaluate({
        models: { model, engine, url },
        tasks: tasks(),
        concurrency: 6,
        onError: "throw",
      });
      const of = (name: string): unknown =>
        results.cells
          .filter((cell) => cell.model === name)
          .map(({ task, items }) => ({
            task,
            scores: items.map((item) => Object.values(item.scores).map((x) => x.toPrecision(4))),
          }));
      expect(of("engine")).toEqual(of("model"));
      expect(of("url")).toEqual(of("model"));
      const chance = results.find(
        (row) => row.model === "model" && row.task === "text" && row.metric === "perplexity",
      )!;
      expect(Number(chance.value)).toBeGreaterThan(50);
      expect(engine.stats()).toMatchObject({ running: 0, kvBlocksUsed: 0 });
    } finally {
      await server.close({ timeoutMs: 0 });
    }
  });

  it("sees an int8 cache: its scores differ from the model's, by little", async () => {
    const int8 = await createEngine(model, { kvCache: { dtype: "int8" } });
    try {
      const results = await evaluate({
        models: { model, int8 },
        tasks: [perplexity({ text, name: "text", windowTokens: 128, stride: 64 })] as Task[],
        onError: "throw",
      });
      const [exact, rounded] = ["model", "int8"].map(
        (name) =>
          results.cells.find((cell) => cell.model === name)!.metrics.find((m) => m.name === "nll_per_token")!.value,
      ) as [number, number];
      expect(rounded).not.toBe(exact);
      expect(Math.abs(rounded - exact)).toBeLessThan(0.01);
    } finally {
      await int8.dispose();
    }
  });
});

const stories = asset("w-stories260K");

describe.skipIf(!stories)("stories260K", () => {
  it("loses less than 1 % perplexity by an int8 cache", async () => {
    const trained = await loadModel(`${stories}/hf`);
    const int8 = await createEngine(trained, { kvCache: { dtype: "int8" } });
    const ids = (JSON.parse(readFileSync(`${stories}/reference.json`, "utf8")) as { greedy_ids: number[] }).greedy_ids;
    // Sampled text, so that the model is unsure of it.
    let story = "";
    for await (const e of trained.generate([Int32Array.from(ids.slice(0, 8))], {
      maxTokens: 400,
      temperature: 1,
      seed: 1,
      ignoreEos: true,
    }))
      if (e.type === "finish") story = e.text;
    const results = await evaluate({
      models: { f32: trained, int8 },
      tasks: [perplexity({ text: story, windowTokens: 256, stride: 128 })] as Task[],
      onError: "throw",
    });
    const [f32, quantized] = ["f32", "int8"].map(
      (name) => results.cells.find((cell) => cell.model === name)!.metrics.find((m) => m.name === "perplexity")!.value,
    ) as [number, number];
    console.log(`stories260K perplexity: f32 ${f32.toFixed(4)}, int8 KV ${quantized.toFixed(4)}`);
    expect(quantized).not.toBe(f32);
    expect(Math.abs(quantized / f32 - 1)).toBeLessThan(0.01);
    await int8.dispose();
    trained.dispose();
  });
});
