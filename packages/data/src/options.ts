import type { Tokenizer } from "@llm/models";
import * as v from "valibot";
import type { DataFormat } from "./formats/define-format.js";

const positive = v.pipe(v.number(), v.integer(), v.minValue(1));
const seed = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

const format = v.union([
  v.string(),
  v.custom<DataFormat>(
    (value) => typeof (value as DataFormat | null)?.parse === "function",
    "expected a name or the result of defineFormat",
  ),
]);

/** One data set: a file, or rows in memory. */
export const dataSourceSchema = v.strictObject({
  /** File: .json, .jsonl, .csv, .txt, each also with .gz. Give this or `rows`. */
  path: v.optional(v.string()),
  /** Rows as objects, instead of a file. */
  rows: v.optional(v.array(v.unknown())),
  /** Format's name or a value of `defineFormat`. @default found by the first row's columns */
  format: v.optional(format),
  /** Format's column → file's column, e.g. `{ instruction: "question" }`. @default columns have the format's names */
  columns: v.optional(v.record(v.string(), v.string())),
  /** Share of the mixture, > 0, any scale; needs `mix: "interleave-…"`. @default 1 */
  weight: v.optional(v.pipe(v.number(), v.finite(), v.gtValue(0))),
  /** Name in reports and errors. @default the path */
  name: v.optional(v.string()),
  /** For .txt: what stands between documents, e.g. `"\n\n"`. @default the file is one document */
  separator: v.optional(v.pipe(v.string(), v.nonEmpty())),
});

/** One data set: a file (`path`) or rows in memory (`rows`), with its format, columns and weight. */
export type DataSource = v.InferInput<typeof dataSourceSchema>;

/** Options of `loadDataset`. */
export const loadDatasetSchema = v.strictObject({
  /** Tokenizer of the model that will be trained. */
  tokenizer: v.custom<Tokenizer>(
    (value) =>
      typeof (value as Tokenizer | null)?.encode === "function" &&
      typeof (value as Tokenizer).applyChatTemplate === "function",
    "expected a Tokenizer (model.tokenizer, or loadTokenizer)",
  ),
  /** Most tokens of a document, and of a packed sample. @default 2048 */
  maxTokens: v.optional(v.pipe(positive, v.minValue(2)), 2048),
  /** Format of every source that names none. @default found by the columns */
  format: v.optional(format),
  /** Column names of every source that gives none: format's column → file's column. */
  columns: v.optional(v.record(v.string(), v.string())),
  /** Chat template: a built-in name (chatml, llama3, …) or Jinja source. @default the tokenizer's own */
  template: v.optional(v.string()),
  /** Further variables for the template, e.g. `{ enable_thinking: false }`. */
  templateVariables: v.optional(v.record(v.string(), v.unknown())),
  /** System prompt for conversations that have none. @default none is added */
  system: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /**
   * What is learned of conversations and completions: every assistant's turn, the last one only, or every token. A message's
   * own `loss` goes before this. Plain text is always learned whole. @default "assistant"
   */
  trainOn: v.optional(v.picklist(["assistant", "last-assistant", "all"]), "assistant"),
  /**
   * How a turn's end is learned. "template": the template must end the assistant's turn with a special token, else an error.
   * "append-eos": where it does not, the conversation's last turn is closed with the end token. @default "template"
   */
  endOfTurn: v.optional(v.picklist(["template", "append-eos"]), "template"),
  /**
   * Conversations whose earlier turns the template shows differently later (thinking left out): "split" into documents
   * that each learn the turns as they were written, or refuse with "error". @default "split"
   */
  rewrites: v.optional(v.picklist(["split", "error"]), "split"),
  /**
   * A learned message has reasoning (`reasoning_content`, or `<think>…</think>` in its content) that the template does not write: refuse with "require", or learn the rest
   * with "drop". @default "require"
   */
  reasoning: v.optional(v.picklist(["require", "drop"]), "require"),
  /** "pack": fill samples with whole documents up to maxTokens (best-fit decreasing); "none": a document is a sample. @default "pack" */
  packing: v.optional(v.picklist(["pack", "none"]), "pack"),
  /**
   * Documents longer than maxTokens: cut off the end, leave them out, throw, or (plain text only; conversations are
   * truncated) "split" into windows that overlap by one token, so that each token is predicted once. @default "truncate"
   */
  overlong: v.optional(v.picklist(["truncate", "drop", "error", "split"]), "truncate"),
  /** Rows that break their format: throw at the first, or leave them out and list them in the report. @default "error" */
  onBadRow: v.optional(v.picklist(["error", "skip"]), "error"),
  /**
   * Several sources: all of each one after the other; in the weights' proportion until the first ("-under") or the last
   * ("-over", shorter ones start again) is used up. Shares count documents. @default "concat"
   */
  mix: v.optional(v.picklist(["concat", "interleave-under", "interleave-over"]), "concat"),
  /** Decides packing among equals, mixing, and the order of batches. @default 0 */
  seed: v.optional(seed, 0),
  /** Visit samples in a new order every epoch. @default true */
  shuffle: v.optional(v.boolean(), true),
});

export type LoadDatasetOptions = v.InferInput<typeof loadDatasetSchema>;
export type ResolvedDatasetOptions = v.InferOutput<typeof loadDatasetSchema>;

/** Options of `Dataset.batches`. */
export const batchesSchema = v.strictObject({
  /** Samples a batch; the last one of an epoch may have fewer. Give this or `batchTokens`. @default 1 */
  batchSize: v.optional(positive),
  /** Most tokens a batch: samples are added while they fit. */
  batchTokens: v.optional(positive),
  /** Passes over the data; Infinity never ends. @default 1 */
  epochs: v.optional(v.union([v.pipe(v.number(), v.integer(), v.minValue(1)), v.literal(Infinity)]), 1),
  /** Seed of the order. @default the data set's */
  seed: v.optional(seed),
  /** New order every epoch. @default the data set's */
  shuffle: v.optional(v.boolean()),
  /** Steps to leave out at the beginning, counted over all epochs: what follows is what the uninterrupted run would see. @default 0 */
  startStep: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
});

export type BatchesOptions = v.InferInput<typeof batchesSchema>;
