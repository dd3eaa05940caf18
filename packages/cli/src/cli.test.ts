import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { tinyModel } from "@llm/testing";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type Finished, llm, records } from "../test/run-llm.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "llm-cli-"));
const at = (name: string): string => join(folder, name);
const lines = (rows: readonly unknown[]): string => rows.map((row) => JSON.stringify(row)).join("\n");

beforeAll(async () => {
  await tinyModel().save(at("model"));
  writeFileSync(
    at("train.jsonl"),
    lines(Array.from({ length: 8 }, (_, i) => ({ instruction: `What is ${i}+1?`, output: String(i + 1) }))),
  );
  writeFileSync(
    at("sums.jsonl"),
    lines(
      Array.from({ length: 4 }, (_, i) => ({ question: `${i}+1=`, A: String(i + 1), B: String(i + 3), answer: "A" })),
    ),
  );
  writeFileSync(at("text.txt"), "the quick brown fox jumps over the lazy dog. ".repeat(12));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const split = (line: string): string[] => line.split(" ");

/** Starts a command in a process of its own, from the sources. */
function start(
  words: readonly string[],
  environment: NodeJS.ProcessEnv = {},
): { child: ChildProcess; finished: Promise<Finished> } {
  const child = spawn(
    process.execPath,
    [join(root, "tools/run-ts.mjs"), join(root, "packages/cli/src/main.ts"), ...words],
    {
      cwd: folder,
      env: { ...process.env, LLM_FROM_SOURCE: "1", ...environment },
    },
  );
  const written = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name]!.on("data", (chunk: Buffer) => (written[name] += chunk.toString()));
  child.stdin!.end();
  return { child, finished: once(child, "close").then(([code]) => ({ code: code as number | null, ...written })) };
}

const last = (text: string): Record<string, unknown> => records(text).at(-1)!;

/** Git's name of a file: SHA-1 over its header and content. */
const gitOid = (text: string): string =>
  createHash("sha1")
    .update(`blob ${Buffer.byteLength(text)}\0${text}`)
    .digest("hex");

describe("usage", () => {
  test("--help lists the commands and the exit codes; a command's help has examples", async () => {
    const help = await llm("--help");
    expect(help).toMatchObject({ code: 0, stderr: "" });
    for (const name of [
      "pull",
      "train",
      "merge",
      "quantize",
      "distill",
      "serve",
      "chat",
      "client",
      "eval",
      "doctor",
      "top",
      "bench",
    ])
      expect(help.stdout).toMatch(new RegExp(`^  ${name} `, "m"));
    expect(help.stdout).toContain("Exit codes: 0 ok, 1 failure, 2 usage, 130 interrupted.");
    expect(await llm("help", "merge")).toEqual(await llm("merge", "--help"));
    expect((await llm("merge", "--help")).stdout).toMatch(/--max-shard-size <number\|text>[\s\S]*Examples:\n/);
    expect((await llm("--version")).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test.each([
    [["trian"], "unknown command 'trian'", "Did you mean train?"],
    [["train", "--lora-rnak", "4"], "unknown option '--lora-rnak'", "Did you mean --lora-rank?"],
    [["merge", "a"], "missing required argument 'adapter'", "--help"],
    [["merge", "a", "b"], "expected --output", "error"],
    [["train", "--lr", "fast"], '--lr: expected a number, got "fast"', "error"],
    [["train", "--data", "x.jsonl"], "expected --model, --output", "error"],
    [["train", "--no-lora", "--lora-rank", "4"], "expected --no-lora or --lora-… flags, got both", "error"],
    [["eval", "--model", "a"], "expected something to ask", "error"],
    [["quantize", "a", "--output", "b"], "expected --calibration", "error"],
  ])("llm %j ends with code 2", async (words, message, hint) => {
    const { code, stderr } = await llm(...words);
    expect(stderr).toContain(message);
    expect(stderr).toContain(hint);
    expect(stderr).not.toMatch(/^\s+at /m);
    expect(code).toBe(2);
  });

  test("a range that the package checks names the flag", async () => {
    const { code, stderr } = await llm(
      "train",
      "--model",
      at("model"),
      "--data",
      at("train.jsonl"),
      "--output",
      at("never"),
      "--sample-prompts",
      "hi",
    );
    expect(stderr).toMatch(/^error \[train\] sample\.every: .*\(--sample-every\)\n$/);
    expect(code).toBe(2);
  });

  test("a failure is one message without a stack, code 1; LLM_DEBUG shows the stack", async () => {
    const failed = await llm("merge", at("nowhere"), at("adapter"), "--output", at("never"));
    expect(failed).toMatchObject({ code: 1, stdout: "" });
    expect(failed.stderr.split("\n")).toHaveLength(2);
    expect(failed.stderr).toMatch(/^error \[resolveModelFolder\] expected a folder/);
    vi.stubEnv("LLM_DEBUG", "1");
    expect((await llm("merge", at("nowhere"), at("adapter"), "--output", at("never"))).stderr).toMatch(/^\s+at /m);
    vi.unstubAllEnvs();
  });
});

describe("from training to a served model", () => {
  test("a TypeScript config and flags train an adapter; flags win", { timeout: 120_000 }, async () => {
    writeFileSync(at("shared.ts"), "export const rank: number = 2;\n");
    writeFileSync(
      at("train.config.ts"),
      `import { defineConfig, type TrainConfig } from "@llm/cli";
import { rank } from "./shared.js";
const data = { path: "train.jsonl", format: "alpaca" } as const satisfies TrainConfig["data"];
export default defineConfig({ model: "model", data, lora: { rank, targets: ["q_proj", "v_proj"] }, train: { steps: 50, lr: 1e-3 }, output: "adapter" });
`,
    );
    const words = [
      "train",
      "train.config.ts",
      "--steps",
      "3",
      "--log-every",
      "1",
      "--lora-alpha",
      "6",
      "--sample-every",
      "3",
      "--sample-questions",
      "What is 1+1?",
      "--sample-max-tokens",
      "2",
    ];
    const { code, stdout, stderr } = await start(words).finished;
    expect(stderr).toBe("");
    expect(code).toBe(0);
    const steps = records(stdout).filter(({ type }) => type === "step");
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3]);
    expect(steps[2]).toMatchObject({ totalSteps: 3, samples: [{ prompt: "What is 1+1?" }] });
    expect(last(stdout)).toMatchObject({ type: "done", kind: "adapter", output: "adapter", steps: 3 });
    expect(JSON.parse(readFileSync(at("adapter/adapter_config.json"), "utf8"))).toMatchObject({
      r: 2,
      lora_alpha: 6,
      target_modules: ["q_proj", "v_proj"],
    });
    expect(readFileSync(at("adapter/loss.svg"), "utf8")).toContain("</svg>");
    expect(readFileSync(at("adapter/loss.jsonl"), "utf8").trim().split("\n")).toHaveLength(3);
  });

  test.each(["nf4", "fp8"])("--quantize-base trains an adapter on a base in %s", async (kind) => {
    const words = split(`train --model ${at("model")} --data ${at("train.jsonl")} --steps 2 --quantize-base ${kind}`);
    const { code, stdout } = await llm(...words, "--lora-rank", "2", "--checkpointing", "--output", at(kind));
    expect(code).toBe(0);
    expect(last(stdout)).toMatchObject({ type: "done", kind: "adapter", steps: 2 });
    const config = JSON.parse(readFileSync(at(`${kind}/adapter_config.json`), "utf8"));
    expect(config).toMatchObject({ r: 2, base_model_name_or_path: at("model") });
    expect(await llm(...words, "--output", at("never"))).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("quantized weights do not train"),
    });
  });

  test("a config with unknown keys, or none, is refused", { timeout: 120_000 }, async () => {
    writeFileSync(
      at("bad.config.mjs"),
      'export default { model: "model", laura: true, train: { stepz: 3, output: "x" } };\n',
    );
    const bad = await start(["train", "bad.config.mjs"]).finished;
    expect(bad.code).toBe(2);
    for (const part of [
      "laura: no such key",
      "train.stepz: no such option",
      "train.output: set the file's own `output`",
    ])
      expect(bad.stderr).toContain(part);
    expect(await llm("train", at("none.config.ts"))).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("does not exist"),
    });
  });

  test("--preview shows what would be learned and trains nothing", async () => {
    const { code, stdout } = await llm("train", "--model", at("model"), "--data", at("train.jsonl"), "--preview", "1");
    expect(code).toBe(0);
    expect(stdout).toMatch(/⟦\d+<\|im_end\|>/);
  });

  test("a run that stopped goes on with --resume", async () => {
    const words = [
      "train",
      "--model",
      at("model"),
      "--data",
      at("train.jsonl"),
      "--steps",
      "4",
      "--checkpoint-every",
      "2",
      "--log-every",
      "1",
      "--output",
    ];
    const whole = await llm(...words, at("whole"));
    expect(whole.code).toBe(0);
    rmSync(at("whole/checkpoints/step-4"), { recursive: true });
    const weights = readFileSync(at("whole/model.safetensors"));
    const refused = await llm(...words, at("whole"));
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining("set resume") });
    const resumed = await llm(...words, at("whole"), "--resume");
    expect(
      records(resumed.stdout)
        .filter(({ type }) => type === "step")
        .map(({ step }) => step),
    ).toEqual([3, 4]);
    expect(readFileSync(at("whole/model.safetensors")).equals(weights)).toBe(true);
  });

  test("merge adds the adapter and writes shards", async () => {
    const { code, stdout } = await llm(
      "merge",
      at("model"),
      at("adapter"),
      "--output",
      at("merged"),
      "--max-shard-size",
      "64kB",
    );
    expect(code).toBe(0);
    expect(last(stdout)).toMatchObject({ type: "done", output: at("merged") });
    expect(existsSync(at("merged/model.safetensors.index.json"))).toBe(true);
  });

  test("quantize writes 4-bit folders, with perplexity before and after", async () => {
    const awq = await llm(
      "quantize",
      at("merged"),
      "--calibration",
      at("text.txt"),
      "--group-size",
      "32",
      "--n-grid",
      "4",
      "--perplexity",
      at("text.txt"),
      "--perplexity-tokens",
      "64",
      "--output",
      at("awq"),
    );
    expect(awq.stderr).toBe("");
    expect(last(awq.stdout)).toMatchObject({
      type: "done",
      perplexity: { before: expect.any(Number), after: expect.any(Number) },
      calibration: { tokens: expect.any(Number) },
    });
    expect(JSON.parse(readFileSync(at("awq/config.json"), "utf8"))).toMatchObject({
      quantization_config: { quant_method: "awq", group_size: 32 },
    });
    expect(
      (await llm("quantize", at("merged"), "--method", "rtn", "--group-size", "32", "--output", at("rtn"))).code,
    ).toBe(0);
    expect(
      (await llm("quantize", at("merged"), "--method", "rtn", "--calibration", "x.txt", "--output", at("never"))).code,
    ).toBe(2);
  });

  test("distill makes a student and trains it", async () => {
    const words = `distill ${at("model")} --student-layers 1 --student-init layers --data ${at("train.jsonl")} --steps 2 --log-every 1`;
    const more = `--alpha 0.9 --alpha-to 0.3 --temperature 3 --output ${at("student")}`;
    const { code, stdout } = await llm(...split(words), ...split(more));
    expect(code).toBe(0);
    expect(
      records(stdout)
        .filter(({ type }) => type === "step")
        .map(({ metrics }) => (metrics as { alpha: number }).alpha),
    ).toEqual([expect.closeTo(0.9, 5), expect.closeTo(0.6, 5)]);
    expect(JSON.parse(readFileSync(at("student/config.json"), "utf8"))).toMatchObject({ num_hidden_layers: 1 });
  });

  test("eval judges folders and adapters, compares them, and writes the report", async () => {
    const models = `--model base=${at("model")} --model tuned=${at("adapter")} --model awq=${at("awq")} --baseline base`;
    const tasks = `--data ${at("sums.jsonl")} --mode ppl --perplexity ${at("text.txt")} --concurrency 4`;
    const report = `--report ${at("report")} --report-formats csv,json`;
    const { code, stdout } = await llm("eval", ...split(models), ...split(tasks), ...split(report));
    expect(code).toBe(0);
    const cells = records(stdout).filter(({ type }) => type === "cell");
    expect(cells.map(({ model, task }) => `${String(model)} ${String(task)}`)).toEqual([
      "base sums",
      "base text",
      "tuned sums",
      "tuned text",
      "awq sums",
      "awq text",
    ]);
    expect(records(stdout).filter(({ type }) => type === "comparison").length).toBeGreaterThanOrEqual(2);
    expect(last(stdout)).toMatchObject({ type: "report", files: [at("report/report.csv"), at("report/report.json")] });
    const table = await llm("eval", "--model", at("model"), "--perplexity", at("text.txt"), "--print", "table");
    expect(table.stdout).toMatch(/^model +text perplexity\n─+\nmodel +\d/);
  });

  test("eval ends with code 1 when a cell failed, and says why", async () => {
    const { code, stdout } = await llm(
      "eval",
      "--model",
      `gone=${at("gone")}`,
      "--model",
      at("model"),
      "--perplexity",
      at("text.txt"),
    );
    expect(code).toBe(1);
    const [gone, fine] = records(stdout);
    expect(gone).toMatchObject({ model: "gone", error: { code: "IO" } });
    expect(fine).toMatchObject({ model: "model", metrics: [{ name: "perplexity" }, {}, {}, {}] });
  });

  test("chat answers once, with an adapter or a folder's own template", async () => {
    const words = ["chat", at("model"), "hello", "--max-tokens", "3", "--ignore-eos"];
    const plain = await llm(...words);
    expect(plain.code).toBe(0);
    expect(plain.stdout.length).toBeGreaterThan(1);
    expect(await llm(...words, "--kv-cache-block-size", "8", "--no-plans")).toEqual(plain);
    expect((await llm("chat", at("adapter"), "hello", "--max-tokens", "3")).code).toBe(0);
    expect((await llm("chat", at("model"), "hello", "--raw", "--max-tokens", "3")).code).toBe(0);
  });

  test("--device goes to the model; one that cannot be used is one message, code 1", { timeout: 120_000 }, async () => {
    const words = ["chat", "model", "hello", "--max-tokens", "2", "--ignore-eos", "--device"];
    const nowhere = { LLM_CUDA_PLUGIN: "no-such-plugin.so" };
    expect((await start([...words, "cpu"], { ...nowhere, LLM_DEVICE: "cuda" }).finished).code).toBe(0);
    const refused = await start([...words, "cuda"], nowhere).finished;
    expect(refused).toMatchObject({ code: 1, stdout: "" });
    expect(refused.stderr).toMatch(/^error \[device\] cuda: [^\n]*no-such-plugin\.so\n$/);
    for (const command of ["train", "merge", "quantize", "distill", "serve", "chat", "eval", "bench"])
      expect((await llm(command, "--help")).stdout, command).toContain("--device <auto|cpu|cuda>");
  });

  test("a teacher on another device than its student is refused", { timeout: 120_000 }, async () => {
    writeFileSync(
      at("apart.config.mjs"),
      `export default { model: "model", data: "train.jsonl", output: "never", distill: { teacher: "model", teacherLoad: { device: "cuda" } }, load: { device: "cpu" } };\n`,
    );
    expect(await start(["train", "apart.config.mjs"]).finished).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("expected the student's device, cpu, got cuda"),
    });
  });

  test("serve answers over HTTP, and SIGTERM ends it with code 0", { timeout: 120_000 }, async () => {
    const { child, finished } = start([
      "serve",
      "model",
      "--adapter",
      "tuned=adapter",
      "--port",
      "0",
      "--max-batch-size",
      "2",
      "--kv-cache-dtype",
      "int8",
    ]);
    const url = await new Promise<string>((resolve, reject) => {
      let text = "";
      child.stdout!.on("data", (chunk: Buffer) => {
        text += chunk.toString();
        if (text.includes("\n")) resolve(String(records(text)[0]!["url"]));
      });
      void finished.then(({ stderr }) => reject(new Error(stderr)));
    });
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "tuned", messages: [{ role: "user", content: "hi" }], max_tokens: 2 }),
    });
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({
      object: "chat.completion",
      model: "tuned",
      usage: { completion_tokens: expect.any(Number) },
    });

    expect(records((await llm("client", "--url", url, "--models")).stdout).map(({ name }) => name)).toEqual([
      "model",
      "tuned",
    ]);
    const client = await llm("client", "--url", url, "--model", "tuned", "--max-tokens", "3", "--ignore-eos", "hello");
    expect(client.code).toBe(0);
    expect(client.stdout).toMatch(/\n$/);
    expect((await llm("client", "--url", url, "--model", "other", "hello")).stderr).toContain("serves model, tuned");
    const judged = await llm(
      "eval",
      "--model",
      `served=${url}#model`,
      "--data",
      at("sums.jsonl"),
      "--max-tokens",
      "2",
      "--limit",
      "2",
    );
    expect(judged.code).toBe(0);
    expect(records(judged.stdout)[0]).toMatchObject({ model: "served", task: "sums", mode: "gen", items: 2 });

    child.kill("SIGTERM");
    const ended = await finished;
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    expect(last(ended.stdout)).toEqual({ type: "stopped" });
    expect((await llm("client", "--url", url, "hello")).code).toBe(1);
  });
});

describe("the process", () => {
  test(
    "doctor describes the machine as JSON; without the native core it says what is missing, code 1",
    { timeout: 120_000 },
    async () => {
      const { code, stdout } = await llm("doctor", "--json");
      const report = JSON.parse(stdout) as {
        native: { kernels: Record<string, string>; scalarOps: string[] };
        versions: Record<string, string>;
      };
      expect(code).toBe(0);
      expect(report).toMatchObject({
        ok: true,
        node: process.version,
        native: { path: expect.stringContaining(".node"), threads: expect.any(Number) },
      });
      expect(report.native.scalarOps).toEqual(
        Object.keys(report.native.kernels).filter((op) => report.native.kernels[op] === "scalar"),
      );
      expect(report.versions["@llm/cli"]).toMatch(/^\d/);
      const nowhere = { LLM_CUDA_PLUGIN: "no-such-plugin.so", LLM_DEVICE: "" };
      const plain = await start(["doctor"], nowhere).finished;
      expect(plain).toMatchObject({ code: 0, stderr: "" });
      expect(plain.stdout).toMatch(
        /^gpu +none: \[device\] cuda: .*no such file no-such-plugin\.so\n +LLM_CUDA_PLUGIN/m,
      );
      expect(plain.stdout).toMatch(/^device +cpu /m);
      const refused = await start(["doctor", "--json"], { ...nowhere, LLM_DEVICE: "cuda" }).finished;
      expect(refused.code).toBe(0);
      expect(JSON.parse(refused.stdout)).toMatchObject({
        ok: true,
        device: null,
        deviceProblem: expect.stringContaining("no-such-plugin.so"),
        cuda: { ok: false, plugin: null, problem: expect.stringContaining("no-such-plugin.so") },
      });
      const without = await start(["doctor"], { LLM_NATIVE: "no-such-file.node" }).finished;
      expect(without.code).toBe(1);
      expect(without.stdout).toMatch(/native +missing\n[\s\S]*no-such-file\.node: no such file/);
    },
  );

  test(
    "Ctrl-C ends a run with code 130 after writing a checkpoint; a closed pipe ends it quietly",
    { timeout: 120_000 },
    async () => {
      const words = [
        "train",
        "--model",
        "model",
        "--data",
        "train.jsonl",
        "--lora",
        "--steps",
        "1000000",
        "--log-every",
        "1",
        "--output",
      ];
      const interrupted = start([...words, "stopped", "--checkpoint-every", "1000000"]);
      // Once: a second signal ends the process without waiting.
      const stopAtFirstStep = (chunk: Buffer): void => {
        if (!chunk.includes('"type":"step"')) return;
        interrupted.child.stdout!.off("data", stopAtFirstStep);
        interrupted.child.kill("SIGINT");
      };
      interrupted.child.stdout!.on("data", stopAtFirstStep);
      const closed = start([...words, "closed"]);
      closed.child.stdout!.once("data", () => closed.child.stdout!.destroy());
      const [first, second] = await Promise.all([interrupted.finished, closed.finished]);
      expect(first.code).toBe(130);
      expect(first.stderr).toMatch(
        /^warning stopped; the checkpoints are in stopped.checkpoints, go on with --resume\ninterrupted\n$/,
      );
      expect(existsSync(at("stopped/checkpoints"))).toBe(true);
      expect(second).toMatchObject({ code: 0, stderr: "" });
    },
  );

  test("pull downloads with a JSON line per file, and fails in one message", async () => {
    const files = new Map([
      ["config.json", "{}"],
      ["data/a.jsonl", '{"x":1}\n'],
    ]);
    const sha = "a".repeat(40);
    const hub = createServer((request, response) => {
      const { pathname } = new URL(request.url!, "http://hub");
      const file = /^\/datasets\/org\/name\/resolve\/[^/]+\/(.+)$/.exec(pathname)?.[1];
      const content = file === undefined ? undefined : files.get(decodeURIComponent(file));
      if (content !== undefined) response.end(content);
      else if (pathname.includes("/revision/"))
        response.setHeader("content-type", "application/json").end(
          JSON.stringify({
            sha,
            id: "org/name",
            _id: "1",
            private: false,
            downloads: 0,
            likes: 0,
            lastModified: "2024-01-01T00:00:00.000Z",
          }),
        );
      else if (pathname.includes("/tree/"))
        response
          .setHeader("content-type", "application/json")
          .end(
            JSON.stringify(
              [...files].map(([path, text]) => ({ type: "file", path, size: text.length, oid: gitOid(text) })),
            ),
          );
      else response.writeHead(404).end();
    }).listen(0, "127.0.0.1");
    await once(hub, "listening");
    const endpoint = `http://127.0.0.1:${(hub.address() as AddressInfo).port}`;
    const pulled = await llm(
      "pull",
      "org/name",
      "--dataset",
      "--endpoint",
      endpoint,
      "--local-dir",
      at("pulled"),
      "--token",
      "",
    );
    hub.closeAllConnections();
    hub.close();
    expect(pulled.stderr).toBe("");
    expect(last(pulled.stdout)).toMatchObject({ type: "done", folder: at("pulled"), files: 2, bytes: 10 });
    const complete = records(pulled.stdout).filter(
      ({ bytes, totalBytes, type }) => type === "progress" && bytes === totalBytes,
    );
    expect(new Set(complete.map(({ file }) => file))).toEqual(new Set(files.keys()));
    expect(readFileSync(at("pulled/data/a.jsonl"), "utf8")).toBe(files.get("data/a.jsonl"));
    const offline = await llm("pull", "org/other", "--offline", "--cache-dir", at("cache"));
    expect(offline).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^error \[pullModel\] offline, and model org\/other/),
    });
  });
});
