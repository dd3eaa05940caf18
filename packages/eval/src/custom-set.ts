import { access } from "node:fs/promises";
import { basename } from "node:path";
import { FormatError, IoError, UnsupportedError } from "@llm/core";
import * as v from "valibot";
import { parseTemplate, type TemplateTurn } from "./prompt.js";
import { cellText, readRows, readText, type Row } from "./rows.js";

/** What `<file>.meta.json` may say; OpenCompass's keys, with its meanings. */
const metaSchema = v.strictObject({
  /** Name of the task. */
  abbr: v.optional(v.string()),
  data_type: v.optional(v.picklist(["mcq", "qa"])),
  infer_method: v.optional(v.picklist(["gen", "ppl", "loglikelihood"])),
  /** The question's turn, with {column}s. */
  human_prompt: v.optional(v.string()),
  /** The answer's turn, with the {answer column}. */
  bot_prompt: v.optional(v.string()),
  /** Both turns at once; by label for ppl. Replaces human_prompt and bot_prompt. */
  template: v.optional(v.unknown()),
  input_columns: v.optional(v.array(v.string())),
  output_column: v.optional(v.nullable(v.string())),
  /** Labels of the options, which are columns. */
  options: v.optional(v.array(v.string())),
  /** A slice such as "[0:64]". */
  test_range: v.optional(v.string()),
});

export type CustomSetMeta = v.InferOutput<typeof metaSchema>;

/** A set after the first row, the meta file and the caller have spoken (in rising rank). */
export interface CustomSet {
  /** Where the rows came from, for messages. */
  source: string;
  name: string;
  rows: Row[];
  dataType: "mcq" | "qa";
  inferMethod: "gen" | "ppl" | "loglikelihood";
  columns: string[];
  answerColumn: string | undefined;
  labels: string[];
  /** Template of any label, or by label. */
  turns: TemplateTurn[] | Map<string, TemplateTurn[]> | undefined;
  humanPrompt: string | undefined;
  answerPrompt: string | undefined;
}

/**
 * Loads a multiple-choice or question-answer set as OpenCompass's custom data sets: the first row decides the columns,
 * consecutive columns A, B, C … are the options (more than one makes it multiple choice), `answer` is the answer, the
 * name is the file's up to its first dot. `<file>.meta.json` overrides that, `overrides` overrides both.
 * @throws {FormatError | IoError | UnsupportedError}
 * @see open-compass/opencompass opencompass/datasets/custom.py (parse_example_dataset)
 */
export async function loadCustomSet(
  source: string | readonly Row[],
  overrides: CustomSetMeta & { metaFile?: string | false | undefined },
): Promise<CustomSet> {
  const { metaFile, ...given } = overrides;
  const where = typeof source === "string" ? source : "rows";
  const rows = typeof source === "string" ? await readRows(source) : [...source];
  const first = rows[0];
  if (!first) throw new FormatError(`[${where}] expected at least one row`);
  const meta: CustomSetMeta = { ...(await readMeta(source, metaFile)) };
  for (const [key, value] of Object.entries(given))
    if (value !== undefined) (meta as Record<string, unknown>)[key] = value;

  const answerColumn =
    meta.output_column === undefined ? ("answer" in first ? "answer" : undefined) : (meta.output_column ?? undefined);
  const columns = meta.input_columns ?? Object.keys(first).filter((column) => column !== answerColumn);
  const labels = meta.options ?? [];
  if (!meta.options)
    for (let code = 65; code <= 90 && String.fromCharCode(code) in first; code++)
      labels.push(String.fromCharCode(code));
  for (const column of columns)
    if (!(column in first))
      throw new FormatError(
        `[${where}] input_columns: expected one of ${Object.keys(first).join(", ")}, got "${column}"`,
        { column },
      );
  if (answerColumn !== undefined && !(answerColumn in first))
    throw new FormatError(
      `[${where}] expected a column "${answerColumn}" with the answers, got ${Object.keys(first).join(", ")}`,
    );

  let turns: CustomSet["turns"];
  if (meta.template !== undefined) {
    const keys = typeof meta.template === "object" && meta.template !== null ? Object.keys(meta.template) : [];
    turns =
      keys.length > 0 && keys.every((key) => labels.includes(key))
        ? new Map(keys.map((key) => [key, parseTemplate((meta.template as Record<string, unknown>)[key], where)]))
        : parseTemplate(meta.template, where);
  }
  return {
    source: where,
    name: meta.abbr ?? (typeof source === "string" ? basename(source).split(".")[0]! : "rows"),
    rows: meta.test_range === undefined ? rows : slice(rows, meta.test_range, where),
    dataType: meta.data_type ?? (labels.length > 1 ? "mcq" : "qa"),
    inferMethod: meta.infer_method ?? "gen",
    columns,
    answerColumn,
    labels,
    turns,
    humanPrompt: meta.human_prompt,
    answerPrompt: meta.bot_prompt,
  };
}

async function readMeta(source: string | readonly Row[], metaFile: string | false | undefined): Promise<CustomSetMeta> {
  if (metaFile === false) return {};
  let file = metaFile;
  if (file === undefined) {
    if (typeof source !== "string") return {};
    file = `${source}.meta.json`;
    try {
      await access(file);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return {};
      throw new IoError(`[evaluate] expected to read ${file}: ${(error as Error).message}`, { file }, error);
    }
  }
  let value: unknown;
  try {
    value = JSON.parse(await readText(file));
  } catch (error) {
    if (IoError.isInstance(error)) throw error;
    throw new FormatError(`[${file}] expected JSON: ${(error as Error).message}`, { file }, error);
  }
  if ((value as CustomSetMeta & { data_type?: string })?.data_type === ("circular-mcq" as never))
    throw new UnsupportedError(`[${file}] data_type: circular evaluation is not offered; use "mcq"`, { file });
  for (const key of ["evaluator", "evaluator_kwargs"])
    if (typeof value === "object" && value !== null && key in value)
      throw new UnsupportedError(`[${file}] ${key}: names Python code; write the task with defineTask instead`, {
        file,
        key,
      });
  const result = v.safeParse(metaSchema, value);
  if (result.success) return result.output;
  const text = result.issues.map((issue) => `${v.getDotPath(issue) ?? ""}: ${issue.message}`).join("; ");
  throw new FormatError(`[${file}] ${text}`, { file });
}

function slice(rows: Row[], range: string, where: string): Row[] {
  const match = /^\[\s*(-?\d*)\s*:\s*(-?\d*)\s*\]$/.exec(range);
  if (!match) throw new UnsupportedError(`[${where}] test_range: expected "[from:to]", got "${range}"`, { range });
  const bound = (text: string): number | undefined => (text === "" || text === "-" ? undefined : Number(text));
  return rows.slice(bound(match[1]!) ?? 0, bound(match[2]!) ?? rows.length);
}

/** Turns of question and answer: the template, or the prompts given, or the defaults of the data type. */
export function setTurns(set: CustomSet, row: Row, labels: readonly string[]): TemplateTurn[] {
  if (Array.isArray(set.turns)) return set.turns;
  let human = set.humanPrompt;
  if (human === undefined) {
    if (!set.columns.includes("question"))
      throw new FormatError(
        `[${set.source}] expected a column "question" or a human_prompt, got ${set.columns.join(", ")}`,
      );
    human =
      set.dataType === "mcq"
        ? ["Question: {question}", ...labels.map((label) => `${label}. {${label}}`)].join("\n")
        : "{question}";
  }
  const answer = `{${set.answerColumn ?? "answer"}}`;
  const bot = set.answerPrompt ?? (set.dataType === "mcq" ? `Answer: ${answer}` : answer);
  return [
    { role: "user", text: human },
    { role: "assistant", text: bot },
  ];
}

/** The labels that a row really offers: those whose column holds something. */
export function rowLabels(set: CustomSet, row: Row): string[] {
  return set.labels.filter((label) => cellText(row, label) !== "");
}
