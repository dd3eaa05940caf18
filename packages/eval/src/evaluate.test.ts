import { appendFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LlmError, NetworkError, UnsupportedError } from "@llm/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { generateText } from "./ask.js";
import { compare } from "./compare.js";
import { evaluate, type EvaluateProgress } from "./evaluate.js";
import { FakeModel } from "./fake-model.test-support.js";
import { modelFingerprint } from "./fingerprint.js";
import { defineTask, type Task } from "./task.js";

const sums = (count: number, name = "sums"): Task =>
  defineTask({
    name,
    mode: "gen",
    config: { version: 1 },
    items: () =>
      Array.from({ length: count }, (_, i) => ({ id: String(i), question: `${i}+${i}=`, answer: String(2 * i) })),
    ask: async (item, { model, seed, signal }) =>
      (await generateText(model, item.question, { seed, ...(signal ? { signal } : {}) })).text,
    score: (item, prediction) => ({ accuracy: prediction === item.answer ? 1 : 0 }),
  }) as Task;

/** Right for every number below `limit`. */
const adder = (limit: number, fingerprint = `adder ${limit}`): FakeModel =>
  new FakeModel({
    fingerprint,
    answer: (prompt) => {
      const n = Number(prompt.split("+")[0]);
      return n < limit ? String(2 * n) : "?";
    },
  });

let workDir: string;
beforeEach(async () => {
  workDir = await mkdtemp(join(tmpdir(), "llm-eval-"));
});
afterEach(async () => {
  await rm(workDir, { recursive: true, force: true });
});

const logFiles = async (): Promise<string[]> => {
  const entries = await readdir(workDir, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
};

describe("evaluate", () => {
  it("gives a row per model and task, with standard errors", async () => {
    const results = await evaluate({ models: { good: adder(10), half: adder(5) }, tasks: [sums(10), sums(4, "few")] });
    expect([...results]).toEqual([
      { model: "good", task: "sums", mode: "gen", metric: "accuracy", value: 1, standardError: 0, n: 10 },
      { model: "good", task: "few", mode: "gen", metric: "accuracy", value: 1, standardError: 0, n: 4 },
      { model: "half", task: "sums", mode: "gen", metric: "accuracy", value: 0.5, standardError: 0.166667, n: 10 },
      { model: "half", task: "few", mode: "gen", metric: "accuracy", value: 1, standardError: 0, n: 4 },
    ]);
    expect(Object.keys(results)).toEqual(["0", "1", "2", "3"]);
    expect(results.cells[2]!.metrics[0]!.standardError).toBeCloseTo(1 / 6, 12);
    expect(results.cells[2]!.items[7]).toMatchObject({ id: "7", scores: { accuracy: 0 } });
  });

  it("asks only the first items with limit, and the rest later from the same predictions", async () => {
    const model = adder(10);
    await evaluate({ models: { model }, tasks: [sums(10)], limit: 3, workDir });
    expect(model.asked).toEqual(["0+0=", "1+1=", "2+2="]);
    const results = await evaluate({ models: { model }, tasks: [sums(10)], workDir });
    expect(model.asked.length).toBe(10);
    expect(results.cells[0]).toMatchObject({ asked: 7, resumed: 3, available: 10 });
  });

  it("never runs more items at once than concurrency allows, and uses what it allows", async () => {
    let running = 0;
    let most = 0;
    const model = new FakeModel({
      answer: async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setTimeout(resolve, 2));
        running--;
        return "";
      },
    });
    await evaluate({ models: { model }, tasks: [sums(12)], concurrency: 3 });
    expect(most).toBe(3);
  });

  it("continues an aborted run without asking finished items again", async () => {
    const abort = new AbortController();
    const first = new FakeModel({
      fingerprint: "same",
      answer: (prompt) => {
        if (prompt === "6+6=") abort.abort(new Error("stop here"));
        return String(2 * Number(prompt.split("+")[0]));
      },
    });
    const progress: EvaluateProgress[] = [];
    await expect(
      evaluate({
        models: { m: first },
        tasks: [sums(10)],
        workDir,
        signal: abort.signal,
        onProgress: (p) => progress.push(p),
      }),
    ).rejects.toThrow("stop here");
    expect(first.asked.length).toBe(7);
    expect(progress.at(-1)).toEqual({ model: "m", task: "sums", done: 6, total: 10, resumed: 0, cell: 0, cells: 1 });

    const second = adder(10, "same");
    const results = await evaluate({ models: { m: second }, tasks: [sums(10)], workDir });
    expect(second.asked).toEqual(["6+6=", "7+7=", "8+8=", "9+9="]);
    expect(results[0]).toMatchObject({ value: 1, n: 10 });

    const third = adder(10, "same");
    await evaluate({ models: { m: third }, tasks: [sums(10)], workDir });
    expect(third.asked).toEqual([]);
  });

  it("drops the half line of a killed run and refuses a broken line elsewhere", async () => {
    await evaluate({ models: { m: adder(10, "x") }, tasks: [sums(4)], workDir });
    const [file] = await logFiles();
    const whole = await readFile(file!, "utf8");
    await writeFile(file!, whole.slice(0, -9));
    const again = adder(10, "x");
    await evaluate({ models: { m: again }, tasks: [sums(4)], workDir });
    expect(again.asked).toEqual(["3+3="]);
    expect((await readFile(file!, "utf8")).trim().split("\n").length).toBe(5);

    await appendFile(file!, "not json\n");
    const results = await evaluate({ models: { m: again }, tasks: [sums(4)], workDir });
    expect(results.cells[0]!.error).toMatchObject({ code: "FORMAT" });
    expect(results.cells[0]!.error!.message).toContain(":6: expected JSON");
  });

  it("keeps predictions of other weights, seeds and data apart", async () => {
    const run = async (model: FakeModel, task: Task, seed = 0): Promise<number> => {
      const before = model.asked.length;
      await evaluate({ models: { m: model }, tasks: [task], workDir, seed });
      return model.asked.length - before;
    };
    const model = adder(10, "w1");
    expect(await run(model, sums(3))).toBe(3);
    expect(await run(model, sums(3))).toBe(0);
    expect(await run(model, sums(3), 1)).toBe(3);
    expect(await run(model, sums(4))).toBe(4);
    expect(await run(adder(10, "w2"), sums(3))).toBe(3);
    await evaluate({ models: { m: model }, tasks: [sums(3)], workDir, restart: true });
    expect(model.asked.length).toBe(13);
  });

  it("tells models without a fingerprint apart by what they answer", async () => {
    const a = await modelFingerprint(new FakeModel());
    expect(await modelFingerprint(new FakeModel())).toBe(a);
    expect(await modelFingerprint(new FakeModel({ logprob: (_, id) => -id / 100 }))).not.toBe(a);
    const silent = (answer: string): FakeModel =>
      new FakeModel({
        answer: () => answer,
        logprob: () => {
          throw new UnsupportedError("[fake] cannot score");
        },
      });
    expect(await modelFingerprint(silent("x"))).not.toBe(await modelFingerprint(silent("y")));
  });

  it("tries network failures again, and records why a cell failed", async () => {
    let failures = 2;
    const flaky = new FakeModel({
      answer: () => {
        if (failures-- > 0) throw new NetworkError("[fake] connection reset");
        return "0";
      },
    });
    const broken = new FakeModel({
      answer: () => {
        throw new UnsupportedError("[fake] cannot do this");
      },
    });
    const results = await evaluate({ models: { flaky, broken }, tasks: [sums(1), sums(2, "two")] });
    expect(results[0]).toMatchObject({ model: "flaky", value: 1 });
    expect(results[2]).toMatchObject({
      model: "broken",
      task: "sums",
      metric: "-",
      value: "failed: [fake] cannot do this",
    });
    expect(results.cells[3]!.error).toEqual({ code: "UNSUPPORTED", message: "[fake] cannot do this" });
    expect(broken.asked.length).toBe(2);
    await expect(evaluate({ models: { broken }, tasks: [sums(1)], onError: "throw" })).rejects.toThrow(
      "cannot do this",
    );
  });

  it("refuses options that make no sense", async () => {
    const model = adder(1);
    const bad = async (options: object, message: string): Promise<void> => {
      const run = evaluate({ models: { model }, tasks: [sums(1)], ...options } as never);
      await expect(run).rejects.toThrow(message);
      await run.catch((error) => expect(LlmError.isInstance(error, "OPTIONS")).toBe(true));
    };
    await bad({ taks: [] }, "taks");
    await bad({ models: {} }, "at least one");
    await bad({ models: { model: 3 } }, "expected a LanguageModel");
    await bad({ tasks: [sums(1), sums(2)] }, 'got "sums" twice');
    await bad({ limit: 0 }, "limit");
    await bad({ restart: true }, "need workDir");
    await bad({ workDir, fingerprints: { other: "x" } }, 'no model is named "other"');
    expect(() => defineTask({ name: "", mode: "gen", config: { f: () => 1 } } as never)).toThrow("name: expected");
  });
});

describe("compare", () => {
  it("uses the differences on the same items", async () => {
    // good is right on 0..7, half on 0..4 of 10: differences 3 × 1 and 7 × 0.
    const results = await evaluate({ models: { good: adder(8), half: adder(5) }, tasks: [sums(10)] });
    const [row] = compare(results, "good", "half");
    expect(row).toMatchObject({ task: "sums", metric: "accuracy", a: 0.8, b: 0.5, n: 10, above: 3, below: 0 });
    expect(row!.difference).toBeCloseTo(0.3, 12);
    expect(row!.standardError).toBeCloseTo(Math.sqrt((0.3 * 0.7) / 9), 12);
    expect(row!.z).toBeCloseTo(0.3 / Math.sqrt(0.21 / 9), 10);
    expect(row!.p).toBeCloseTo(0.0495, 3);
    expect(() => compare(results, "good", "other")).toThrow('got "other"');
  });
});
