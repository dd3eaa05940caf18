import { LlmError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { modelFingerprint } from "./fingerprint.js";
import { PredictionLog, type PredictionLogHeader } from "./prediction-log.js";
import { meanEstimate } from "./statistics.js";
import {
  taskHash,
  type EvaluatedModel,
  type Metric,
  type PredictionView,
  type ScoredItem,
  type Task,
  type TaskContext,
  type TaskItem,
} from "./task.js";

/** Told after every answer; `resumed` of the `done` answers came from `workDir`. */
export interface EvaluateProgress {
  model: string;
  task: string;
  done: number;
  total: number;
  resumed: number;
  /** Cells (model × task) finished before this one, and all of them. */
  cell: number;
  cells: number;
}

const hasFunctions = (value: unknown, ...names: string[]): boolean =>
  typeof value === "object" &&
  value !== null &&
  names.every((name) => typeof (value as Record<string, unknown>)[name] === "function");

export const evaluateOptionsSchema = v.strictObject({
  /** Models by the name that the report shows. */
  models: v.record(
    v.string(),
    v.custom<EvaluatedModel>((value) => hasFunctions(value, "generate", "score"), "expected a LanguageModel"),
  ),
  /** Tasks; their names are the report's columns and must differ. */
  tasks: v.pipe(
    v.array(
      v.custom<Task>((value) => hasFunctions(value, "items", "ask", "score"), "expected a task (see defineTask)"),
    ),
    v.minLength(1, "expected at least one task"),
  ),
  /** Ask only the first n items of each task. Absent = all. */
  limit: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** Items asked at once. Raise it for engines and URLs, which batch what arrives together. @default 1 */
  concurrency: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 1),
  /** Chooses random few-shot examples and seeds sampling. @default 0 */
  seed: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
  /** Folder for the predictions: an interrupted run continues there, a finished one is not asked again. Absent = memory only. */
  workDir: v.optional(v.pipe(v.string(), v.minLength(1))),
  /** By model name: text that changes when its answers could change. Default: see `modelFingerprint`. */
  fingerprints: v.optional(v.record(v.string(), v.string()), {}),
  /** Forget stored predictions of these models and tasks first. Needs `workDir`. @default false */
  restart: v.optional(v.boolean(), false),
  /** Ask an item again this often when the connection fails. @default 2 */
  retries: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 2),
  /** What a failing item does: "record" ends its cell, whose row then carries the reason, and goes on with the next; "throw" ends the run. @default "record" */
  onError: v.optional(v.picklist(["record", "throw"]), "record"),
  /** Ends the run; answers already given stay in `workDir`. */
  signal: v.optional(v.instance(AbortSignal)),
  onProgress: v.optional(
    v.custom<(progress: EvaluateProgress) => void>((value) => typeof value === "function", "expected a function"),
  ),
});

export type EvaluateOptions = v.InferInput<typeof evaluateOptionsSchema>;

/** An item as reports show it. */
export interface ItemRecord extends PredictionView {
  id: string;
  scores: Record<string, number>;
  durationMs: number;
}

/** One model on one task, in full precision. */
export interface Cell {
  model: string;
  task: string;
  mode: string;
  /** SHA-256 of prompts, configuration and data; two cells with the same hash answered the same questions. */
  hash: string;
  /** The most important first. Empty when the cell failed or nothing has a reference. */
  metrics: Metric[];
  items: ItemRecord[];
  /** Items of the task before `limit`. */
  available: number;
  /** Items answered in this run, and those read back from `workDir`. */
  asked: number;
  resumed: number;
  durationMs: number;
  /** Why the cell has no metrics. */
  error?: { code: string; message: string };
}

/** A line of `console.table(results)`; rounded to six digits (`cells` has them all). */
export interface ResultRow {
  model: string;
  task: string;
  mode: string;
  metric: string;
  value: number | string;
  standardError: number | string;
  n: number;
}

/** Rows for `console.table`, and everything behind them in `cells` (not enumerable, so tables stay tables). */
export type Results = ResultRow[] & { readonly cells: readonly Cell[] };

/**
 * Asks every model every task. Models are taken one after the other (each is loaded once), tasks too; items of a task
 * run `concurrency` at a time. Tasks are loaded and checked before anything is asked.
 * @throws {OptionsError} bad options, or two tasks of one name
 * @throws the signal's reason when aborted
 */
export async function evaluate(options: EvaluateOptions): Promise<Results> {
  const parsed = parseOptions(evaluateOptionsSchema, options, "evaluate");
  const models = Object.entries(parsed.models);
  if (models.length === 0) throw new OptionsError("[evaluate] models: expected at least one");
  for (const name of Object.keys(parsed.fingerprints))
    if (!(name in parsed.models))
      throw new OptionsError(`[evaluate] fingerprints: no model is named "${name}"`, { name });
  if (parsed.workDir === undefined && (parsed.restart || Object.keys(parsed.fingerprints).length > 0))
    throw new OptionsError("[evaluate] restart and fingerprints need workDir");
  const names = new Set<string>();
  for (const task of parsed.tasks) {
    await task.load?.();
    if (names.has(task.name))
      throw new OptionsError(`[evaluate] tasks: expected different names, got "${task.name}" twice`, {
        name: task.name,
      });
    names.add(task.name);
  }

  const cells: Cell[] = [];
  for (const [modelName, model] of models) {
    let fingerprint: string | undefined;
    for (const task of parsed.tasks) {
      parsed.signal?.throwIfAborted();
      const context: TaskContext = { model, modelName, seed: parsed.seed, signal: parsed.signal };
      const cell: Cell = {
        model: modelName,
        task: task.name,
        mode: task.mode,
        hash: "",
        metrics: [],
        items: [],
        available: 0,
        asked: 0,
        resumed: 0,
        durationMs: 0,
      };
      try {
        if (parsed.workDir !== undefined)
          fingerprint ??= await modelFingerprint(withFingerprint(model, parsed.fingerprints[modelName]), parsed.signal);
        await runCell(cell, task, context, parsed, fingerprint, cells.length, models.length * parsed.tasks.length);
      } catch (error) {
        parsed.signal?.throwIfAborted();
        if (parsed.onError === "throw") throw error;
        cell.error = {
          code: LlmError.isInstance(error) ? error.code : "INTERNAL",
          message: error instanceof Error ? error.message : String(error),
        };
      }
      cells.push(cell);
    }
  }
  return makeResults(cells);
}

function withFingerprint(model: EvaluatedModel, fingerprint: string | undefined): EvaluatedModel {
  return fingerprint === undefined ? model : Object.create(model, { fingerprint: { value: fingerprint } });
}

type Parsed = v.InferOutput<typeof evaluateOptionsSchema>;

async function runCell(
  cell: Cell,
  task: Task,
  context: TaskContext,
  options: Parsed,
  fingerprint: string | undefined,
  cellIndex: number,
  cellCount: number,
): Promise<void> {
  const started = performance.now();
  const all = await task.items(context);
  const ids = new Set(all.map((item) => item.id));
  if (ids.size !== all.length) throw new OptionsError(`[evaluate] ${task.name}: expected a different id for each item`);
  cell.available = all.length;
  cell.hash = taskHash(task, all, context.seed);
  const items = all.slice(0, options.limit ?? all.length);

  let log: PredictionLog | undefined;
  if (options.workDir !== undefined) {
    const header: PredictionLogHeader = {
      model: cell.model,
      fingerprint: fingerprint!,
      task: task.name,
      hash: cell.hash,
    };
    if (options.restart) await PredictionLog.remove(options.workDir, header);
    log = await PredictionLog.open(options.workDir, header);
  }
  const predictions = new Map<string, { prediction: unknown; durationMs: number }>();
  const pending: TaskItem[] = [];
  for (const item of items) {
    const known = log?.stored.get(item.id);
    if (known) predictions.set(item.id, known);
    else pending.push(item);
  }
  cell.resumed = predictions.size;
  const report = (): void =>
    options.onProgress?.({
      model: cell.model,
      task: task.name,
      done: predictions.size,
      total: items.length,
      resumed: cell.resumed,
      cell: cellIndex,
      cells: cellCount,
    });
  report();
  try {
    await runPool(pending, options.concurrency, context.signal, async (item) => {
      const begin = performance.now();
      const prediction = await askWithRetries(task, item, context, options.retries);
      const entry = { prediction, durationMs: Math.round((performance.now() - begin) * 1000) / 1000 };
      await log?.append({ id: item.id, ...entry });
      predictions.set(item.id, entry);
      cell.asked++;
      report();
    });
  } finally {
    await log?.close();
    cell.durationMs = performance.now() - started;
  }

  const scored: ScoredItem[] = items.map((item) => {
    const { prediction } = predictions.get(item.id)!;
    return { item, prediction, scores: task.score(item, prediction) };
  });
  cell.metrics = task.summarize?.(scored) ?? meanMetrics(scored);
  cell.items = scored.map(({ item, prediction, scores }) => ({
    id: item.id,
    ...(task.view?.(item, prediction) ?? { prompt: JSON.stringify(item), prediction: JSON.stringify(prediction) }),
    scores,
    durationMs: predictions.get(item.id)!.durationMs,
  }));
}

async function askWithRetries(task: Task, item: TaskItem, context: TaskContext, retries: number): Promise<unknown> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await task.ask(item, context);
    } catch (error) {
      context.signal?.throwIfAborted();
      if (attempt >= retries || !LlmError.isInstance(error, "NETWORK")) throw error;
    }
  }
}

/** Runs `work` over the items, `concurrency` at a time; after the first failure starts no more and waits for those begun. */
async function runPool(
  items: readonly TaskItem[],
  concurrency: number,
  signal: AbortSignal | undefined,
  work: (item: TaskItem) => Promise<void>,
): Promise<void> {
  let next = 0;
  let failure: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    while (next < items.length && failure === undefined) {
      const item = items[next++]!;
      try {
        signal?.throwIfAborted();
        await work(item);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(concurrency, items.length) }, worker));
  if (failure) throw failure.error;
}

/** The mean of every score over the items that have it, with its standard error, in order of first appearance. */
export function meanMetrics(scored: readonly ScoredItem[]): Metric[] {
  const samples = new Map<string, { id: string; value: number; weight: number }[]>();
  for (const { item, scores } of scored)
    for (const [name, value] of Object.entries(scores)) {
      const list = samples.get(name);
      if (list) list.push({ id: item.id, value, weight: 1 });
      else samples.set(name, [{ id: item.id, value, weight: 1 }]);
    }
  return [...samples].map(([name, list]) => {
    const estimate = meanEstimate(list.map((sample) => sample.value))!;
    const unit = list.every((sample) => sample.value >= 0 && sample.value <= 1) ? "fraction" : "number";
    return { name, ...estimate, higherIsBetter: true, unit, samples: list } satisfies Metric;
  });
}

const sixDigits = (value: number): number => Number(value.toPrecision(6));

/** Builds the table's rows over the cells. */
export function makeResults(cells: readonly Cell[]): Results {
  const rows: ResultRow[] = [];
  for (const { model, task, mode, metrics, items, error } of cells) {
    if (error || metrics.length === 0) {
      const reason = error ? `failed: ${error.message}` : "no reference answers";
      rows.push({ model, task, mode, metric: "-", value: reason, standardError: "-", n: items.length });
      continue;
    }
    for (const metric of metrics)
      rows.push({
        model,
        task,
        mode,
        metric: metric.name,
        value: sixDigits(metric.value),
        standardError: metric.standardError === undefined ? "-" : sixDigits(metric.standardError),
        n: metric.n,
      });
  }
  return Object.defineProperty(rows, "cells", { value: Object.freeze([...cells]), enumerable: false }) as Results;
}
