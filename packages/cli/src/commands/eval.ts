import { readdirSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { LlmError, NetworkError, OptionsError } from "@llm/core";
import * as ev from "@llm/eval";
import { type CausalLM, loadTokenizer, LoadModelOptions, type Tokenizer } from "@llm/models";
import { createClient, createEngine } from "@llm/serve";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { nameAndPath, openModel } from "../open-model.js";
import type { Terminal } from "../terminal.js";

const texts = v.array(v.pipe(v.string(), v.nonEmpty()));

export const EvalFlags = v.strictObject({
  /** A model, as name=path or a path: a folder, a hub name, a PEFT folder, an .onnx file, or the URL of a server (URL#model picks one). Give it once per model. */
  model: v.pipe(texts, v.minLength(1)),
  /** A set of your own (jsonl, json, csv): multiple choice where it has columns A, B …, else questions and answers. Give it once per set. */
  data: v.optional(texts, []),
  /** A known task and its data: gsm8k=folder. */
  task: v.optional(texts, []),
  /** A text file to measure perplexity on. */
  perplexity: v.optional(texts, []),
  /** Folder for the report: txt, csv, json and html. */
  report: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** What is printed. @default "table" on a terminal, JSON lines in a pipe */
  print: v.optional(v.picklist(["table", "list", "csv", "json", "html"])),
  /** Name of a model that all others are compared with, item by item. */
  baseline: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** Folder of the tokenizer of served and ONNX models; scoring (ppl, perplexity) needs it. @default beside the .onnx file */
  tokenizer: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** Key for served models. @default LLM_API_KEY */
  apiKey: v.optional(v.string()),
  /** How served models are asked where the task leaves it open. @default "chat" */
  servedPromptStyle: v.optional(v.picklist(["chat", "raw"]), "chat"),
});

type Own = v.InferOutput<typeof EvalFlags>;

/** Options of both kinds of own sets; a set's own kind refuses those of the other. */
const setSchema = v.strictObject({
  ...ev.multipleChoiceOptionsSchema.entries,
  ...ev.questionAnswerOptionsSchema.entries,
});

interface Opened {
  model: ev.EvaluatedModel;
  close(): Promise<void> | void;
}

const isUrl = (path: string): boolean => /^https?:\/\//.test(path);

/** Whether a path holds an ONNX model and no weights that we load ourselves. */
function isOnnx(path: string): boolean {
  if (/\.onnx$/i.test(path)) return true;
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) return false;
  const names = readdirSync(path);
  return names.some((name) => name.endsWith(".onnx")) && !names.some((name) => /\.(safetensors|bin)$/.test(name));
}

async function openServed(url: string, own: Own, tokenizer: Tokenizer | undefined): Promise<Opened> {
  const [address, named] = url.split("#", 2) as [string, string?];
  const apiKey = own.apiKey ?? process.env["LLM_API_KEY"];
  const key = apiKey ? { apiKey } : {};
  const name = named ?? (await createClient({ baseUrl: address, ...key }).models())[0];
  if (name === undefined) throw new NetworkError(`[llm eval] ${address} serves no model`, { url: address });
  const baseUrl = /\/v\d+\/?$/.test(address) ? address : `${address.replace(/\/+$/, "")}/v1`;
  const model = ev.openaiModel({
    baseUrl,
    model: name,
    ...key,
    promptStyle: own.servedPromptStyle,
    ...(tokenizer ? { tokenizer } : {}),
  });
  return { model, close: () => undefined };
}

async function openOnnx(path: string, own: Own): Promise<Opened> {
  const folder = /\.onnx$/i.test(path) ? dirname(path) : path;
  const tokenizer = await loadTokenizer(own.tokenizer ?? folder);
  const model = await ev.onnxModel({ path, tokenizer });
  return { model, close: () => model.dispose() };
}

/** The model of one `--model`; local ones answer through an engine, which batches what is asked at once. */
async function open(path: string, own: Own, load: LoadModelOptions, concurrency: number): Promise<Opened> {
  if (isUrl(path))
    return openServed(path, own, own.tokenizer === undefined ? undefined : await loadTokenizer(own.tokenizer));
  if (isOnnx(path)) return openOnnx(path, own);
  const model: CausalLM = await openModel(path, load);
  const engine = await createEngine(model, { maxBatchSize: concurrency, maxQueue: concurrency });
  return {
    model: engine,
    close: async () => {
      await engine.dispose();
      model.dispose();
    },
  };
}

/** A model that could not be opened fails every task, with the reason. */
function failedCells(name: string, tasks: readonly ev.Task[], error: unknown): ev.Cell[] {
  const code = LlmError.isInstance(error) ? error.code : "INTERNAL";
  const message = error instanceof Error ? error.message : String(error);
  return tasks.map((task) => ({
    model: name,
    task: task.name,
    mode: task.mode,
    hash: "",
    metrics: [],
    items: [],
    available: 0,
    asked: 0,
    resumed: 0,
    durationMs: 0,
    error: { code, message },
  }));
}

function printComparison(results: ev.Results, baseline: string, terminal: Terminal): void {
  const others = [...new Set(results.cells.map(({ model }) => model))].filter((name) => name !== baseline);
  for (const name of others) {
    for (const row of ev.compare(results, name, baseline)) {
      const spread = row.standardError === undefined ? "" : ` ± ${ev.formatNumber(row.standardError)}`;
      const text = `${name} − ${baseline}, ${row.task} ${row.metric}: ${row.difference >= 0 ? "+" : ""}${ev.formatNumber(row.difference)}${spread} (n ${row.n}${row.p === undefined ? "" : `, p ${row.p.toPrecision(2)}`})`;
      const { a: value, b: baselineValue, ...rest } = row;
      terminal.result(text, { type: "comparison", model: name, baseline, value, baselineValue, ...rest });
    }
  }
}

export const evaluation = defineCommand({
  name: "eval",
  description:
    "Asks every model every task and prints the scores with their standard errors. Exit code 1 when a cell failed.",
  arguments: [],
  groups: {
    own: { title: "Options", schema: EvalFlags, docs: "cli.EvalFlags", complete: true },
    evaluate: {
      title: "Run",
      schema: ev.evaluateOptionsSchema,
      docs: "eval.evaluateOptionsSchema",
      omit: { models: "--model", tasks: "--data, --task, --perplexity", signal: "Ctrl-C", onProgress: "a function" },
    },
    report: {
      title: "Report",
      schema: ev.writeReportOptionsSchema,
      docs: "eval.writeReportOptionsSchema",
      prefix: "report",
    },
    set: {
      title: "Own sets (--data)",
      schema: setSchema,
      docs: ["eval.multipleChoiceOptionsSchema", "eval.questionAnswerOptionsSchema"],
      omit: { name: "the file's name", metaFile: "the file beside the data" },
      commas: ["labels", "inputColumns"],
    },
    gsm8k: {
      title: "gsm8k",
      schema: ev.gsm8kOptionsSchema,
      docs: "eval.gsm8kOptionsSchema",
      prefix: "gsm8k",
      omit: { path: "--task gsm8k=path", name: "gsm8k" },
    },
    perplexity: {
      title: "Perplexity",
      schema: ev.perplexityOptionsSchema,
      docs: "eval.perplexityOptionsSchema",
      prefix: "perplexity",
      omit: { text: "--perplexity", file: "--perplexity", name: "the file's name" },
    },
    load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  },
  examples: [
    ["llm eval --model ./model --data sums.jsonl", "one model, one set"],
    [
      "llm eval --model base=./model --model tuned=./merged --data sums.jsonl --perplexity text.txt --baseline base --report out",
      "two models, compared",
    ],
    [
      "llm eval --model http://127.0.0.1:23333 --task gsm8k=./gsm8k --concurrency 16 --work-dir runs",
      "a served model; an interrupted run goes on",
    ],
  ],
  async run({ values: { own, evaluate: options, report, set, gsm8k, perplexity, load }, signal, terminal }) {
    const models = own.model.map(nameModel);
    const names = models.map(({ name }) => name);
    const twice = names.find((name, index) => names.indexOf(name) !== index);
    if (twice !== undefined)
      throw new OptionsError(`[llm eval] two models are named "${twice}"; name them: --model a=./one --model b=./two`, {
        name: twice,
      });
    if (own.baseline !== undefined && !names.includes(own.baseline))
      throw new OptionsError(`[llm eval] --baseline: expected one of ${names.join(", ")}, got "${own.baseline}"`);
    if (own.report === undefined && Object.keys(report).length > 0)
      throw new OptionsError("[llm eval] --report: expected the folder that the --report-… flags are about");
    const tasks: ev.Task[] = [];
    for (const file of own.data) tasks.push(await ev.customSet(file, set));
    for (const text of own.task) {
      const { name, path } = nameAndPath(text);
      if (name !== "gsm8k" || !text.includes("="))
        throw new OptionsError(`[llm eval] --task: expected gsm8k=path, got ${JSON.stringify(text)}`);
      tasks.push(ev.gsm8k({ ...gsm8k, path }) as unknown as ev.Task);
    }
    for (const file of own.perplexity) tasks.push(ev.perplexity({ ...perplexity, file }) as unknown as ev.Task);
    if (tasks.length === 0)
      throw new OptionsError(
        "[llm eval] expected something to ask: --data file, --task gsm8k=path or --perplexity text.txt",
      );

    const cells: ev.Cell[] = [];
    for (const [index, { name, path }] of models.entries()) {
      signal.throwIfAborted();
      terminal.progress(`loading ${name}`);
      let opened: Opened;
      try {
        opened = await open(path, own, load, options.concurrency ?? 1);
      } catch (error) {
        signal.throwIfAborted();
        if (options.onError === "throw") throw error;
        cells.push(...failedCells(name, tasks, error));
        continue;
      }
      try {
        const fingerprint = options.fingerprints?.[name];
        const { fingerprints: _all, ...shared } = options;
        const results = await ev.evaluate({
          ...shared,
          ...(fingerprint === undefined ? {} : { fingerprints: { [name]: fingerprint } }),
          models: { [name]: opened.model },
          tasks,
          signal,
          onProgress: (at) =>
            terminal.progress(
              `${name} (${index + 1} of ${models.length})  ${at.task}  ${at.done} of ${at.total}`,
              at.done,
              at.total,
            ),
        });
        cells.push(...results.cells);
      } finally {
        await opened.close();
      }
    }
    terminal.endProgress();
    const results = ev.makeResults(cells);
    print(results, own, terminal);
    if (own.baseline !== undefined) printComparison(results, own.baseline, terminal);
    if (own.report !== undefined) {
      const files = await ev.writeReport(results, own.report, report);
      terminal.result(`report: ${files.join(", ")}`, { type: "report", files });
    }
    return cells.some(({ error }) => error !== undefined) ? 1 : 0;
  },
});

/** `name=path`, a path, or a URL, which is named after its model or host. */
function nameModel(text: string): { name: string; path: string } {
  if (!isUrl(text)) return nameAndPath(text);
  const url = new URL(text);
  return { name: url.hash === "" ? url.host : decodeURIComponent(url.hash.slice(1)), path: text };
}

function print(results: ev.Results, own: Own, terminal: Terminal): void {
  const kind = own.print ?? (terminal.interactive ? "table" : "lines");
  if (kind === "table") terminal.print(ev.formatTable(results, "matrix"));
  else if (kind === "list") terminal.print(ev.formatTable(results, "list"));
  else if (kind === "csv") terminal.print(ev.toCsv(results));
  else if (kind === "json") terminal.print(ev.toJson(results));
  else if (kind === "html") terminal.print(ev.toHtml(results, "Evaluation"));
  else {
    for (const { model, task, mode, metrics, items, error } of results.cells) {
      terminal.record({
        type: "cell",
        model,
        task,
        mode,
        items: items.length,
        metrics: metrics.map(({ samples: _samples, ...metric }) => metric),
        ...(error ? { error } : {}),
      });
    }
  }
}
