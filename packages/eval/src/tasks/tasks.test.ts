import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LlmError } from "@llm/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { evaluate, type Results } from "../evaluate.js";
import { byteTokenizer, FakeModel } from "../fake-model.test-support.js";
import { compare } from "../compare.js";
import type { Task } from "../task.js";
import { asset } from "../test-assets.test-support.js";
import { customSet } from "./custom-set.js";
import { gsm8k } from "./gsm8k.js";
import { multipleChoice } from "./multiple-choice.js";
import { perplexity } from "./perplexity.js";
import { questionAnswer } from "./question-answer.js";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llm-eval-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const file = async (name: string, content: string): Promise<string> => {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
};
const run = (model: FakeModel, task: Task, options: object = {}): Promise<Results> =>
  evaluate({ models: { m: model }, tasks: [task], onError: "throw", ...options });
const metrics = (results: Results): Record<string, number> =>
  Object.fromEntries(results.cells[0]!.metrics.map((metric) => [metric.name, metric.value]));

const SUMS = [
  { question: "165+833=", A: "998", B: "1008", C: "988", answer: "A" },
  { question: "1+1=", A: "3", B: "2", C: "4", answer: "B" },
  { question: "2+2=", A: "5", B: "6", C: "4", answer: "C" },
];
const jsonl = (rows: object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

describe("multipleChoice", () => {
  it("asks gen questions as plain text in OpenCompass's form and reads the label", async () => {
    const path = await file("sums.test.jsonl", jsonl(SUMS));
    const model = new FakeModel({ answer: (prompt) => (prompt.includes("1+1") ? "(B)" : "The answer is A.") });
    const results = await run(model, multipleChoice(path));
    expect(model.asked[0]).toBe("Question: 165+833=\nA. 998\nB. 1008\nC. 988\nAnswer:");
    expect(model.generateOptions[0]).toMatchObject({ maxTokens: 256, temperature: 0, stop: ["\n\n", "\nQuestion:"] });
    expect(results.cells[0]).toMatchObject({ task: "sums", mode: "gen" });
    expect(metrics(results)).toEqual({ accuracy: 2 / 3, answered: 1 });
    expect(results[0]!.standardError).toBeCloseTo(Math.sqrt(2 / 9 / 2), 5);
    expect(results.cells[0]!.items[2]).toMatchObject({ reference: "C", correct: false });
  });

  it("keeps the trailing space when asked to, and asks chat models by conversation", async () => {
    const raw = new FakeModel();
    await run(raw, multipleChoice(SUMS, { keepTrailingSpace: true }));
    expect(raw.asked[0]).toBe("Question: 165+833=\nA. 998\nB. 1008\nC. 988\nAnswer: ");
    const chat = new FakeModel({ tokenizer: byteTokenizer({ chat: true }) });
    await run(chat, multipleChoice(SUMS, { system: "Be brief.", fewShot: 1, fewShotFrom: [...SUMS].reverse() }));
    expect(chat.conversations[0]).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "Question: 2+2=\nA. 5\nB. 6\nC. 4" },
      { role: "assistant", content: "Answer: C" },
      { role: "user", content: "Question: 165+833=\nA. 998\nB. 1008\nC. 988" },
    ]);
    expect(chat.generateOptions[0]!.stop).toBeUndefined();
    // The third question is not its own example.
    expect(chat.conversations[2]![1]!.content).toContain("1+1=");
    await run(chat, multipleChoice(SUMS, { promptStyle: "raw" }), { limit: 1 });
    expect(chat.asked.at(-1)).toMatch(/Answer:$/);
  });

  it("reads csv with a byte order mark, quotes and empty options", async () => {
    const path = await file(
      "set.csv",
      '\ufeffquestion,A,B,C,answer\r\n"What, exactly?",one,"two ""2""",,B\r\nNext?,x,y,z,C\r\n',
    );
    const model = new FakeModel({ answer: (prompt) => (prompt.includes("Next") ? "C" : "B") });
    const results = await run(model, multipleChoice(path));
    expect(model.asked[0]).toBe('Question: What, exactly?\nA. one\nB. two "2"\nAnswer:');
    expect(metrics(results)).toEqual({ accuracy: 1, answered: 1 });
  });

  it("lets the meta file override and the caller override that", async () => {
    const rows = [{ q: "1+1=", hint: "small", X: "3", Y: "2", key: "Y" }];
    const path = await file("meta.jsonl", jsonl(rows));
    await file(
      "meta.jsonl.meta.json",
      JSON.stringify({
        abbr: "renamed",
        data_type: "mcq",
        infer_method: "ppl",
        human_prompt: "{q} ({hint}) {unknown}\n{X}/{Y}",
        bot_prompt: "=> {key}",
        input_columns: ["q", "hint", "X", "Y"],
        output_column: "key",
        options: ["X", "Y"],
      }),
    );
    const ppl = new FakeModel({ logprob: (_, id) => (id === "Y".charCodeAt(0) ? -0.1 : -1) });
    const results = await run(ppl, multipleChoice(path));
    expect(results.cells[0]).toMatchObject({ task: "renamed", mode: "ppl" });
    expect(results.cells[0]!.items[0]!.prompt).toBe("1+1= (small) {unknown}\n3/2\n=> ");
    expect(metrics(results)).toEqual({ accuracy: 1 });
    const gen = new FakeModel({ answer: () => "X" });
    const again = await run(gen, multipleChoice(path, { mode: "gen", name: "mine", answerPrompt: "{key}" }));
    expect(again.cells[0]).toMatchObject({ task: "mine", mode: "gen" });
    expect(gen.asked[0]).toBe("1+1= (small) {unknown}\n3/2");
    expect(metrics(again)).toEqual({ accuracy: 0, answered: 1 });
    await file("bad.jsonl", jsonl(SUMS));
    await file("bad.jsonl.meta.json", JSON.stringify({ infer_methd: "ppl" }));
    await expect(run(gen, multipleChoice(join(folder, "bad.jsonl")))).rejects.toThrow(
      /bad\.jsonl\.meta\.json.*infer_methd/,
    );
    await expect(run(gen, multipleChoice(join(folder, "bad.jsonl"), { metaFile: false }))).resolves.toBeDefined();
  });

  it("chooses the lowest mean cross-entropy of the whole text in ppl mode, scoring the shared part once", async () => {
    // Labels of one byte: the shared part cancels.
    const model = new FakeModel();
    const results = await run(model, multipleChoice(SUMS, { mode: "ppl" }));
    expect(model.scoreCalls).toBe(3);
    const logprob = (before: number, id: number): number => -1 - ((before * 31 + id * 17) % 97) / 50;
    const space = " ".charCodeAt(0);
    const bestLabel = ["A", "B", "C"].reduce((best, label) =>
      logprob(space, label.charCodeAt(0)) > logprob(space, best.charCodeAt(0)) ? label : best,
    );
    expect(metrics(results)["accuracy"]).toBeCloseTo(SUMS.filter((row) => row.answer === bestLabel).length / 3, 12);
  });

  it("equals brute force in ppl mode when the options' texts differ in length", async () => {
    const rows = [{ question: "The sky is", A: "blue", B: "made of old cheese", C: "up", answer: "C" }];
    const model = new FakeModel({ logprob: (before, id) => -((before.at(-1)! + 3 * id) % 7) - 0.01 * before.length });
    const task = multipleChoice(rows, { mode: "ppl", target: "text" });
    const results = await run(model, task);
    const bruteForce = await Promise.all(
      ["blue", "made of old cheese", "up"].map(async (text) => {
        const ids = model.tokenizer.encode(
          `Question: The sky is\nA. blue\nB. made of old cheese\nC. up\nAnswer: ${text}`,
        );
        const [score] = await model.score(ids.slice(0, 1), [ids.slice(1)]);
        return -score!.logprob / ids.length;
      }),
    );
    const shown = results.cells[0]!.items[0]!.prediction;
    bruteForce.forEach((value) => expect(shown).toContain(`mean cross-entropy ${value.toFixed(5)}`));
    expect(shown[0]).toBe("ABC"[bruteForce.indexOf(Math.min(...bruteForce))]);
  });

  it("scores the answer alone in loglikelihood mode: acc by sum, acc_norm per byte", async () => {
    // Every byte costs 1, so the sum prefers the short option and the mean ties at the first: make "b" bytes cheaper.
    const rows = [{ question: "?", A: "x", B: "bbbbbbbb", answer: "B" }];
    const model = new FakeModel({ logprob: (_, id) => (id === "b".charCodeAt(0) ? -0.5 : -1) });
    const results = await run(model, multipleChoice(rows, { mode: "loglikelihood", target: "text" }));
    // A: " x" = −2 over 1 byte; B: " bbbbbbbb" = −5 over 8 bytes.
    expect(metrics(results)).toEqual({ acc: 0, acc_norm: 1 });
    expect(results.cells[0]!.items[0]!.prompt).toBe("Question: ?\nA. x\nB. bbbbbbbb\nAnswer:");
    expect(results.cells[0]!.items[0]!.prediction).toContain("B: log-probability -5.00000");
  });

  it("counts a token that spans the join to the continuation", async () => {
    // A tokenizer that merges "Ans" + "wer" style pairs: ": A" is one token.
    const base = byteTokenizer();
    const merged = {
      ...base,
      encode: (text: string, options?: { addSpecialTokens?: boolean }) => {
        const out: number[] = [];
        for (const id of base.encode(text, options)) {
          if (id === "A".charCodeAt(0) && out.at(-1) === 32 && out.at(-2) === 58) out.splice(-2, 2, 300);
          else out.push(id);
        }
        return Int32Array.from(out);
      },
    };
    const model = new FakeModel({ tokenizer: merged, logprob: (_, id) => (id === 300 ? -0.25 : -1) });
    const rows = [{ question: "?", A: "x", B: "y", answer: "A" }];
    const results = await run(model, multipleChoice(rows, { mode: "loglikelihood" }));
    expect(results.cells[0]!.items[0]!.prediction).toContain("A: log-probability -0.25000");
    expect(results.cells[0]!.items[0]!.prediction).toContain("B: log-probability -2.00000");
  });

  it("takes the option's text for the answer, gives predictions without answers, and names bad rows", async () => {
    const model = new FakeModel({ answer: () => "B" });
    expect(
      metrics(await run(model, multipleChoice([{ question: "?", A: "x", B: "y", answer: "y" }])))["accuracy"],
    ).toBe(1);
    const unlabelled = await run(model, multipleChoice([{ question: "?", A: "x", B: "y" }]));
    expect(metrics(unlabelled)).toEqual({ answered: 1 });
    const ppl = await run(model, multipleChoice([{ question: "?", A: "x", B: "y" }], { mode: "ppl" }));
    expect(ppl[0]).toMatchObject({ metric: "-", value: "no reference answers" });
    await expect(run(model, multipleChoice([...SUMS, { ...SUMS[0], answer: "Z" }]))).rejects.toThrow(
      '[rows] row 4: answer: expected one of A, B, C, got "Z"',
    );
    await expect(run(model, multipleChoice([{ question: "?", answer: "x" }]))).rejects.toThrow("at least two options");
    await expect(run(model, multipleChoice(await file("cut.jsonl", '{"question": "?"\n')))).rejects.toThrow(
      /cut\.jsonl:1: expected JSON/,
    );
    await expect(run(model, multipleChoice(join(folder, "absent.jsonl")))).rejects.toSatisfy((error) =>
      LlmError.isInstance(error, "IO"),
    );
    expect(() => multipleChoice(SUMS, { fewShot: 2 })).toThrow("fewShotFrom");
    expect(() => multipleChoice(SUMS, { mod: "ppl" } as never)).toThrow("mod");
  });
});

describe("questionAnswer and customSet", () => {
  const QA = [
    { question: "Capital of France?", answer: "Paris" },
    { question: "2125 in words or digits?", answer: ["2125", "two thousand one hundred twenty-five"] },
    { question: "中国的首都是？", answer: "北京" },
  ];

  it("scores exact, normalised and contained answers", async () => {
    const answers = ["the paris.\nQuestion", "2,125", "是北京。"];
    const model = new FakeModel({ answer: (prompt) => answers[QA.findIndex((row) => row.question === prompt)]! });
    const results = await run(model, questionAnswer(QA));
    expect(model.asked[0]).toBe("Capital of France?");
    expect(metrics(results)).toEqual({ normalized_match: 2 / 3, exact_match: 0, contains: 1 });
    const contains = await run(model, questionAnswer(QA, { metric: "contains" }));
    expect(contains[0]).toMatchObject({ metric: "contains", value: 1 });
  });

  it("gives worked examples and needs no answers", async () => {
    const model = new FakeModel();
    const results = await run(model, questionAnswer([{ question: "Why?" }], { fewShot: 1, fewShotFrom: QA }));
    expect(model.asked[0]).toBe("Capital of France?\nParis\n\nWhy?");
    expect(results[0]!.value).toBe("no reference answers");
    expect(results.cells[0]!.items[0]!.prediction).toBe("A");
  });

  it("lets the file decide what it is", async () => {
    const mcq = await customSet(await file("one.jsonl", jsonl(SUMS)), { mode: "ppl" });
    const qa = await customSet(await file("two.csv", "question,answer\n1+1=,2\n"));
    const results = await evaluate({ models: { m: new FakeModel({ answer: () => "2" }) }, tasks: [mcq, qa] });
    expect(results.map((row) => [row.task, row.mode, row.metric])).toEqual([
      ["one", "ppl", "accuracy"],
      ["two", "gen", "normalized_match"],
      ["two", "gen", "exact_match"],
      ["two", "gen", "contains"],
    ]);
    await expect(customSet(join(folder, "two.csv"), { target: "text" })).rejects.toThrow("target");
  });
});

describe("gsm8k", () => {
  it("asks with seeded random examples and reports three extractors", async () => {
    const set = join(folder, "gsm8k");
    await (await import("node:fs/promises")).mkdir(set, { recursive: true });
    const problem = (i: number): object => ({ question: `q${i}`, answer: `think\n#### ${i}` });
    await file("gsm8k/test.jsonl", jsonl([problem(1000), problem(2)]));
    await file("gsm8k/train.jsonl", jsonl(Array.from({ length: 20 }, (_, i) => problem(i))));
    const model = new FakeModel({
      answer: (prompt) => (prompt.endsWith("q1000\nAnswer:") ? " so 1,000.\n#### 1,000" : "It is 2 of 3"),
    });
    const results = await run(model, gsm8k({ path: set, fewShot: 2 }));
    expect(metrics(results)).toEqual({ flexible_match: 0.5, strict_match: 0.5, opencompass_match: 0, answered: 1 });
    expect(model.asked[0]).toMatch(
      /^Question: q\d+\nAnswer: think\n#### \d+\n\nQuestion: q\d+\nAnswer: think\n#### \d+\n\nQuestion: q1000\nAnswer:$/,
    );
    const again = new FakeModel();
    await run(again, gsm8k({ path: set, fewShot: 2 }), { limit: 1 });
    expect(again.asked[0]).toBe(model.asked[0]);
    await run(again, gsm8k({ path: set, fewShot: 2 }), { limit: 1, seed: 5 });
    expect(again.asked[1]).not.toBe(again.asked[0]);
    await file("alone.jsonl", jsonl([problem(1)]));
    await rm(join(set, "train.jsonl"));
    await expect(run(model, gsm8k({ path: set }))).rejects.toThrow("fewShot: expected examples");
    await expect(run(model, gsm8k({ path: join(folder, "two.csv"), fewShot: 0 }))).rejects.toThrow("row 1");
  });

  const real = asset("eval-gsm8k");
  it.skipIf(!real)("takes the real set", async () => {
    const model = new FakeModel({ answer: () => "#### 18" });
    const results = await run(model, gsm8k({ path: real! }), { limit: 3 });
    expect(results.cells[0]!.available).toBe(1319);
    expect(metrics(results)["flexible_match"]).toBeCloseTo(1 / 3, 12);
  });
});

describe("perplexity", () => {
  const text = "The quick brown fox\njumps over 十三 lazy dogs. ".repeat(8);

  it("scores every token once, whatever the windows, and weighs by tokens", async () => {
    const model = new FakeModel();
    const ids = [256, ...Buffer.from(text)];
    let nll = 0;
    for (let i = 1; i < ids.length; i++) nll += 1 + ((ids[i - 1]! * 31 + ids[i]! * 17) % 97) / 50;
    const tokens = ids.length - 1;
    for (const [windowTokens, stride] of [
      [4096, undefined],
      [50, undefined],
      [50, 10],
      [33, 7],
    ] as const) {
      const task = perplexity({ text, windowTokens, ...(stride === undefined ? {} : { stride }) });
      const values = metrics(await run(model, task));
      expect(values["nll_per_token"]).toBeCloseTo(nll / tokens, 10);
      expect(values["perplexity"]).toBeCloseTo(Math.exp(nll / tokens), 8);
      expect(values["bits_per_byte"]).toBeCloseTo(nll / Math.LN2 / Buffer.byteLength(text), 10);
      expect(Math.log(values["word_perplexity"]!)).toBeCloseTo(nll / text.trim().split(/\s+/).length, 8);
    }
  });

  it("gives as much context as fits", async () => {
    const seen: number[][] = [];
    const model = new FakeModel({ logprob: (before) => (seen.push([...before]), -1) });
    await run(model, perplexity({ text: "abcdefghij", windowTokens: 5, stride: 2 }));
    expect(seen.map((before) => before.length)).toEqual([1, 2, 3, 4, 3, 4, 3, 4, 3, 4]);
  });

  it("has a standard error from blocks, by hand, and pairs models block by block", async () => {
    // Six tokens in blocks of two: NLL means 1, 2, 6 → mean 3, s² = (4 + 1 + 9)/2 = 7, SE = sqrt(7/3).
    const costs = new Map([...Buffer.from("abcdef")].map((id, i) => [id, [1, 1, 2, 2, 6, 6][i]!]));
    const model = new FakeModel({ logprob: (_, id) => -costs.get(id)! });
    const other = new FakeModel({ logprob: (_, id) => -costs.get(id)! - 0.5 });
    const task = perplexity({ text: "abcdef", blockTokens: 2 });
    const results = await evaluate({ models: { model, other }, tasks: [task] });
    const [ppl, nll] = results.cells[0]!.metrics;
    expect(nll).toMatchObject({ value: 3, n: 3 });
    expect(nll!.standardError).toBeCloseTo(Math.sqrt(7 / 3), 12);
    expect(ppl!.standardError).toBeCloseTo(Math.exp(3) * Math.sqrt(7 / 3), 10);
    const rows = compare(results, "other", "model");
    expect(rows).toMatchObject([{ metric: "nll_per_token", difference: 0.5, standardError: 0, n: 3, above: 3 }]);
  });

  it("does without a begin token and refuses windows that do not fit", async () => {
    const model = new FakeModel({ tokenizer: byteTokenizer({ bos: false }), logprob: () => -Math.LN2 });
    const values = metrics(await run(model, perplexity({ text: "ab cd" })));
    // The first byte is context only: 4 scored bytes, one bit each.
    expect(values["bits_per_byte"]).toBeCloseTo(1, 12);
    await expect(run(model, perplexity({ text: "abc", windowTokens: 5000 }))).rejects.toThrow("windowTokens ≤ 4096");
    expect(() => perplexity({ text: "a", file: "b" })).toThrow("either text or file");
    expect(() => perplexity({ text: "a", windowTokens: 8, stride: 8 })).toThrow("stride");
  });
});
