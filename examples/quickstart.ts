/**
 * The whole life of a model in one file, on a CPU: fine-tune with LoRA, merge, distil, quantize to 4 bits, serve over the OpenAI API,
 * evaluate. `npm run quickstart` installs, builds and runs it. It leaves a model folder, a PEFT adapter, a student, an AWQ folder and
 * an HTML report in ./quickstart.
 */
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { loadDataset, tokenBlocks } from "@llm/data";
import { createStudent, distillObjective } from "@llm/distill";
import { compare, evaluate, formatTable, multipleChoice, questionAnswer, writeReport } from "@llm/eval";
import { applyLora, mergeLora, saveLora } from "@llm/lora";
import { type CausalLM, loadModel } from "@llm/models";
import { train, type TrainOptions } from "@llm/parallel";
import { perplexityOf, quantize, saveQuantized } from "@llm/quant-awq";
import { createClient, createEngine, createServer, type LocalEngine } from "@llm/serve";
import { answerText, createRandom, plainLine, type Question, question, questionText } from "./quickstart/sums.js";

const out = resolve(process.env["QUICKSTART_OUT"] ?? "quickstart");
const baseFolder = fileURLToPath(new URL("models/sums", import.meta.url));
const started = performance.now();
const times: { part: string; seconds: string }[] = [];

/** Runs a part of the pipeline under a heading and notes its time. */
async function part<T>(title: string, work: () => Promise<T>): Promise<T> {
  console.log(`\n== ${title}`);
  const begin = performance.now();
  const result = await work();
  times.push({ part: title, seconds: ((performance.now() - begin) / 1000).toFixed(1) });
  return result;
}

/** A training run with a line every tenth of the way. */
async function fit<M extends object>(options: TrainOptions<M>): Promise<void> {
  const run = train({ ...options, progress: "none" } as TrainOptions<M>);
  for await (const { step, totalSteps, loss, tokensPerSecond } of run) {
    if (step % Math.ceil(totalSteps / 10) === 0 || step === totalSteps) {
      console.log(
        `   step ${String(step).padStart(4)}/${totalSteps}  loss ${loss.toFixed(4)}  ${Math.round(tokensPerSecond)} tokens/s`,
      );
    }
  }
  await run.done;
}

/** Questions as conversations: the user asks with options, the assistant says the sum and the letter of its option. */
const conversations = (rows: readonly Question[]) =>
  rows.map((q) => ({
    messages: [
      { role: "user", content: questionText(q) },
      { role: "assistant", content: answerText(q) },
    ],
  }));

async function writeLines(path: string, rows: readonly unknown[]): Promise<string> {
  await writeFile(`${path}.tmp`, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  await rename(`${path}.tmp`, path);
  return path;
}

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const base = await loadModel(baseFolder, { dtype: "bf16" });
console.log(
  `base model: ${(base.decoder.parameterCount / 1e6).toFixed(2)} M parameters, Qwen2 architecture, ${baseFolder.split("/").slice(-3).join("/")}`,
);

const data = await part("data: 6000 questions to learn, 500 sums it never saw to be judged by", async () => {
  const learn = createRandom(10);
  const judge = createRandom(20);
  const train_ = Array.from({ length: 6000 }, () => question(learn, false));
  const held = Array.from({ length: 500 }, () => question(judge, true));
  const lines = createRandom(30);
  const text = Array.from({ length: 400 }, () => plainLine(lines, true)).map((line) =>
    base.tokenizer.encode(`${line.prompt}${line.completion}<|endoftext|>`),
  );
  const trainFile = await writeLines(join(out, "train.jsonl"), conversations(train_));
  const testFile = await writeLines(join(out, "sums.jsonl"), held);
  console.log(`   ${JSON.stringify(held[0])}`);
  return {
    train: loadDataset(trainFile, { tokenizer: base.tokenizer, maxTokens: 64, packing: "none" }),
    testFile,
    held,
    text,
    first: held[0]!,
  };
});

const tuned = await part("LoRA: rank 16 on all linear layers", async () => {
  const model = applyLora(base, { rank: 16, alpha: 32, targets: "all-linear", seed: 1 });
  await fit({
    model,
    data: data.train,
    epochs: 3,
    batchTokens: 1024,
    lr: 2e-3,
    schedule: { kind: "cosine", warmupRatio: 0.05 },
    curve: { svg: join(out, "lora-loss.svg"), jsonl: join(out, "lora-loss.jsonl") },
  });
  await saveLora(model, join(out, "adapter"), { baseModel: "examples/models/sums" });
  return model;
});

const merged = await part("merge: the adapter becomes part of the weights", async () => {
  const model = mergeLora(tuned);
  await model.save(join(out, "merged"));
  return model;
});

const student = await part("distil: a student with a layer less learns from the merged model", async () => {
  const model = createStudent(merged, { layers: merged.spec.layers - 1, init: "layers" });
  await fit({
    model,
    data: data.train,
    objective: distillObjective({ teacher: merged, temperature: 2, alpha: 0.7 }),
    epochs: 4,
    batchTokens: 2048,
    lr: 1e-3,
    schedule: { kind: "cosine", warmupRatio: 0.05 },
  });
  await model.save(join(out, "student"));
  return model;
});

const w4 = await part("quantize: AWQ, 4 bits in groups of 32", async () => {
  const calibration = tokenBlocks(data.train, { tokens: 256, count: 32, seed: 1 });
  const model = await quantize(merged, { method: "awq", bits: 4, groupSize: 32, calibration });
  await saveQuantized(model, join(out, "awq"));
  return model;
});

const models: Record<string, CausalLM> = { base, LoRA: tuned, merged, student, W4: w4 };
const engines: Record<string, LocalEngine> = {};
for (const [name, model] of Object.entries(models))
  engines[name] = await createEngine(model, { maxBatchSize: 32, maxTokens: 512 });

await part("serve: the 4-bit model over the OpenAI API", async () => {
  const server = await createServer({ engine: engines["W4"]!, modelName: "sums-w4", port: 0 });
  const client = createClient({ baseUrl: `${server.url}/v1` });
  console.log(`   ${server.url}/v1/chat/completions`);
  let answer = "";
  for await (const event of client.chat([{ role: "user", content: questionText(data.first) }], {
    temperature: 0,
    maxTokens: 12,
  })) {
    if (event.type === "text-delta") answer += event.text;
  }
  console.log(`   ${data.first.question} -> ${answer} (right: ${data.first.answer})`);
  await server.close();
});

const results = await part("evaluate: 5 models on 500 held-out questions", () =>
  evaluate({
    models: engines,
    tasks: [
      multipleChoice(data.testFile, {
        name: "sums",
        humanPrompt: "{question}\nA. {A}\nB. {B}\nC. {C}",
        answerPrompt: "{answer}",
        promptStyle: "chat",
        maxTokens: 12,
      }),
      questionAnswer(
        data.held.map((q) => ({ question: questionText(q), answer: answerText(q) })),
        {
          name: "letters",
          metric: "exact",
          humanPrompt: "{question}",
          answerPrompt: "{answer}",
          promptStyle: "chat",
          maxTokens: 12,
        },
      ),
    ],
    concurrency: 32,
  }),
);

const rows = await part(
  "perplexity of 400 held-out lines, tokens a second of one stream, an answer of each",
  async () => {
    const list = [];
    for (const [name, engine] of Object.entries(engines)) {
      const share = (task: string): string => {
        const metric = results.cells.find((c) => c.model === name && c.task === task)?.metrics[0];
        return metric
          ? `${(metric.value * 100).toFixed(1)} % ± ${((metric.standardError ?? NaN) * 100).toFixed(1)}`
          : "failed";
      };
      const text = await perplexityOf(models[name]!, data.text);
      const begin = performance.now();
      let tokens = 0;
      for await (const event of engine.generate(["1"], { maxTokens: 256, ignoreEos: true }))
        if (event.type === "finish") tokens = event.tokenIds.length;
      const seconds = (performance.now() - begin) / 1000;
      let answer = "";
      for await (const event of engine.generate([{ messages: [{ role: "user", content: questionText(data.first) }] }], {
        maxTokens: 12,
      }))
        if (event.type === "finish") answer = event.text;
      list.push({
        model: name,
        "accuracy (option)": share("sums"),
        "accuracy (sum and letter)": share("letters"),
        perplexity: text.perplexity.toFixed(3),
        bytes: models[name]!.decoder.weightBytes,
        "tokens/s": Math.round(tokens / seconds),
        [`answer to ${data.first.question}? (${data.first.answer})`]: answer,
      });
    }
    return list;
  },
);

await writeReport(results, join(out, "report"), { title: "Quickstart: sums" });
for (const engine of Object.values(engines)) await engine.dispose();

console.log(`\n${formatTable(results)}`);
console.table(compare(results, "merged", "W4"));
console.table(times);
console.table(rows);
console.log(
  `pipeline: ${((performance.now() - started) / 1000).toFixed(0)} s; left in ${out}: adapter (PEFT), merged, student, awq (AutoAWQ), report/report.html`,
);
