import { createHash } from "node:crypto";
import { OptionsError } from "@llm/core";
import type { LanguageModel } from "@llm/models";

/** One question of a task. Everything in it is JSON, and everything in it enters the task's hash. */
export interface TaskItem {
  /** Unique in its task; predictions are stored and paired by it. */
  id: string;
}

/** How a task wants its prompt given: as a conversation (chat template) or as plain text. */
export type PromptStyle = "chat" | "raw";

/**
 * A LanguageModel may say two more things about itself; both are optional.
 * `fingerprint`: any text that changes when its answers could change (weights, quantization, URL).
 * `promptStyle`: what `promptStyle: "auto"` means for it.
 */
export interface EvaluatedModel extends LanguageModel {
  readonly fingerprint?: string;
  readonly promptStyle?: PromptStyle;
}

/** What a task knows about the run when it builds its items and asks. */
export interface TaskContext {
  model: EvaluatedModel;
  modelName: string;
  seed: number;
  signal: AbortSignal | undefined;
}

/** One observation of a metric: `value` is the mean over `weight` units (1 item, or w tokens). */
export interface MetricSample {
  id: string;
  value: number;
  weight: number;
}

/** One number of a report. */
export interface Metric {
  /** Field-standard name: accuracy, acc_norm, perplexity … */
  name: string;
  value: number;
  /** Undefined where it cannot be estimated (a single observation). */
  standardError: number | undefined;
  /** Observations behind the value. */
  n: number;
  higherIsBetter: boolean;
  /** "fraction" is in [0, 1] and shown as such; "number" has its own scale. */
  unit: "fraction" | "number";
  /** Per observation, where two models can be compared pairwise (`compare`). */
  samples?: MetricSample[];
}

/** What a reader wants to see of one answer. */
export interface PredictionView {
  prompt: string;
  prediction: string;
  reference?: string;
  /** Undefined where the item has no reference. */
  correct?: boolean;
}

/** An item, what the model said and what it is worth. */
export interface ScoredItem<TItem extends TaskItem = TaskItem, TPrediction = unknown> {
  item: TItem;
  prediction: TPrediction;
  /** By metric name; absent = this item says nothing about that metric (no reference). */
  scores: Record<string, number>;
}

/**
 * A way to ask and a way to score. Asking is slow and its result is stored; scoring is pure, cheap and done again
 * on every run, so a better extraction rule needs no new inference.
 */
export interface Task<TItem extends TaskItem = TaskItem, TPrediction = unknown> {
  /** Column of the report and file name of the predictions; unique in a run. */
  readonly name: string;
  /** gen | ppl | loglikelihood | perplexity | your own word. */
  readonly mode: string;
  /** JSON: every setting that changes what is asked or how the answer is produced. Enters the hash. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Reads files and checks them; called once, before any model is asked. */
  load?(): Promise<void>;
  /** The items, in order, with their prompts rendered for this model. */
  items(context: TaskContext): TItem[] | Promise<TItem[]>;
  /** Asks the model about one item. The result must be JSON. */
  ask(item: TItem, context: TaskContext): Promise<TPrediction>;
  /** Scores one answer: metric name to number. Pure. */
  score(item: TItem, prediction: TPrediction): Record<string, number>;
  /** Turns scores into metrics, the most important first. Default: the mean of each score with its standard error. */
  summarize?(scored: ScoredItem<TItem, TPrediction>[]): Metric[];
  /** For reports. Default: the item and the prediction as JSON. */
  view?(item: TItem, prediction: TPrediction): PredictionView;
}

/**
 * Checks a task definition and returns it, typed.
 * @throws {OptionsError} a missing member, an empty name, or a config that is not JSON
 * @example
 * const shouts = defineTask({
 *   name: "shouts", mode: "gen", config: { prompt: "v1" },
 *   items: () => [{ id: "0", text: "hi" }],
 *   ask: async (item, { model }) => (await generateText(model, item.text, { maxTokens: 8 })).text,
 *   score: (item, prediction) => ({ accuracy: prediction === item.text.toUpperCase() ? 1 : 0 }),
 * });
 */
export function defineTask<TItem extends TaskItem, TPrediction>(
  definition: Task<TItem, TPrediction>,
): Task<TItem, TPrediction> {
  const problems: string[] = [];
  if (typeof definition.name !== "string" || definition.name.trim() === "")
    problems.push("name: expected a non-empty text");
  if (typeof definition.mode !== "string" || definition.mode === "") problems.push("mode: expected a non-empty text");
  for (const member of ["items", "ask", "score"] as const)
    if (typeof definition[member] !== "function") problems.push(`${member}: expected a function`);
  try {
    canonicalJson(definition.config);
    if (typeof definition.config !== "object" || definition.config === null)
      problems.push("config: expected an object");
  } catch (error) {
    problems.push(`config: expected JSON, got ${(error as Error).message}`);
  }
  if (problems.length > 0) throw new OptionsError(`[defineTask] ${problems.join("; ")}`, { issues: problems });
  return definition;
}

/** JSON with object keys sorted, so that equal values give equal text. @throws {TypeError} a value that JSON cannot hold */
export function canonicalJson(value: unknown): string {
  if (value === null || typeof value === "boolean" || typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new TypeError(`${value}`);
    return JSON.stringify(value);
  }
  if (Array.isArray(value))
    return `[${value.map((entry) => canonicalJson(entry === undefined ? null : entry)).join(",")}]`;
  if (typeof value === "object" && !ArrayBuffer.isView(value)) {
    const entries = Object.entries(value).filter(([, entry]) => entry !== undefined);
    entries.sort(([left], [right]) => (left < right ? -1 : left > right ? 1 : 0));
    return `{${entries.map(([key, entry]) => `${JSON.stringify(key)}:${canonicalJson(entry)}`).join(",")}}`;
  }
  throw new TypeError(`a ${ArrayBuffer.isView(value) ? "typed array" : typeof value}`);
}

/** SHA-256 in hexadecimal. */
export function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** SHA-256 over mode, config, seed and every item (so over every prompt and reference): what a stored prediction answers. */
export function taskHash(task: Task, items: readonly TaskItem[], seed: number): string {
  const hash = createHash("sha256");
  hash.update(canonicalJson({ format: 1, mode: task.mode, config: task.config, seed }));
  for (const item of items) hash.update("\n").update(canonicalJson(item));
  return hash.digest("hex");
}
