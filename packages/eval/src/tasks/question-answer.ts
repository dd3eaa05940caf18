import { FormatError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { resolvePromptStyle, type StoredPrompt } from "../ask.js";
import { loadCustomSet, setTurns, type CustomSet } from "../custom-set.js";
import { firstLine, normalizeAnswer } from "../extract/answer-text.js";
import { stripReasoning } from "../extract/option-label.js";
import { chooseExamples, fillTurns, promptToText, renderPrompt, withAnswer, type RenderOptions } from "../prompt.js";
import { cellText, readRows, type Row } from "../rows.js";
import { defineTask, type Task, type TaskItem } from "../task.js";
import { askForText, generationEntries, promptEntries, type GeneratedPrediction } from "./generation.js";

export const questionAnswerOptionsSchema = v.strictObject({
  /** Name in reports and files. Default: the file's name up to its first dot. */
  name: v.optional(v.string()),
  ...promptEntries,
  ...generationEntries,
  /** The question's turn. @default "{question}" */
  humanPrompt: v.optional(v.string()),
  /** The answer's turn, in worked examples. @default "{answer}" */
  answerPrompt: v.optional(v.string()),
  /** Columns that prompts may use. Default: all but the answer's. */
  inputColumns: v.optional(v.array(v.string())),
  /** Column of the answer: a text, or a list of texts that are all right. null = no answers, predictions only. @default "answer" */
  answerColumn: v.optional(v.nullable(v.string())),
  /** The metric that stands first: "normalized" ignores case, articles and punctuation, "exact" nothing, "contains" looks for the answer in the text. @default "normalized" */
  metric: v.optional(v.picklist(["normalized", "exact", "contains"]), "normalized"),
  /** Judge only the first line that holds something. Default: true for raw prompts, which base models continue. */
  firstLine: v.optional(v.boolean()),
  /** File or rows of worked examples, in the same form. Needed by fewShot. */
  fewShotFrom: v.optional(v.union([v.string(), v.array(v.record(v.string(), v.unknown()))])),
  /** Another meta file, or false for none. Default: `<file>.meta.json` if it exists. */
  metaFile: v.optional(v.union([v.string(), v.literal(false)])),
});

export type QuestionAnswerOptions = v.InferInput<typeof questionAnswerOptionsSchema>;

/** One question with its right answers, rendered. */
export interface QuestionAnswerItem extends TaskItem {
  prompt: StoredPrompt;
  /** All right answers; absent = nothing to compare with. */
  references?: string[];
}

type Parsed = v.InferOutput<typeof questionAnswerOptionsSchema>;

/**
 * A question-answer set: jsonl or csv with `question` and `answer`, and optionally `<file>.meta.json`.
 *
 * Metrics, each the share of answers: `normalized_match` (equal after `normalizeAnswer`), `exact_match` (equal after
 * trimming), `contains` (the normalised answer occurs in the normalised text). Without an answer column there are
 * predictions and no metrics.
 * @throws {FormatError} at `load`: unknown columns, an infer_method other than gen
 */
export function questionAnswer(
  source: string | readonly Row[],
  options: QuestionAnswerOptions = {},
): Task<QuestionAnswerItem, GeneratedPrediction> {
  const parsed = parseOptions(questionAnswerOptionsSchema, options, "questionAnswer");
  const load = (): Promise<CustomSet> =>
    loadCustomSet(source, {
      abbr: parsed.name,
      data_type: "qa",
      human_prompt: parsed.humanPrompt,
      bot_prompt: parsed.answerPrompt,
      input_columns: parsed.inputColumns,
      output_column: parsed.answerColumn,
      metaFile: parsed.metaFile,
    });
  return questionAnswerOfSet(load, typeof source === "string" ? source : "rows", parsed);
}

/** `questionAnswer` over a set that is loaded later. */
export function questionAnswerOfSet(
  load: () => Promise<CustomSet>,
  source: string,
  options: Parsed,
): Task<QuestionAnswerItem, GeneratedPrediction> {
  let set: CustomSet | undefined;
  let pool: Row[] = [];
  const fewShot = options.fewShot ?? 0;
  if (fewShot > 0 && options.fewShotFrom === undefined)
    throw new OptionsError("[questionAnswer] fewShot: expected fewShotFrom, the examples' file or rows");
  const generation = {
    maxTokens: options.maxTokens ?? 256,
    temperature: options.temperature,
    stop: options.stop,
    rawStop: ["\n\n", "\nQuestion:"],
  };
  const defaultName = source.split(/[\\/]/).at(-1)!.split(".")[0]!;
  const judged = (item: QuestionAnswerItem, prediction: GeneratedPrediction): string => {
    const text = stripReasoning(prediction.text).trim();
    return (options.firstLine ?? typeof item.prompt === "string") ? firstLine(text) : text;
  };
  const matches = {
    normalized: (text: string, answer: string) => normalizeAnswer(text) === normalizeAnswer(answer),
    exact: (text: string, answer: string) => text === answer.trim(),
    contains: (text: string, answer: string) => normalizeAnswer(text).includes(normalizeAnswer(answer)),
  };
  const order = [
    options.metric,
    ...(["normalized", "exact", "contains"] as const).filter((name) => name !== options.metric),
  ];
  const metricNames = { normalized: "normalized_match", exact: "exact_match", contains: "contains" };

  return defineTask<QuestionAnswerItem, GeneratedPrediction>({
    get name() {
      return set?.name ?? options.name ?? defaultName;
    },
    mode: "gen",
    config: { task: "question-answer", ...generation },
    async load() {
      set = await load();
      if (set.inferMethod !== "gen")
        throw new FormatError(
          `[${set.source}] infer_method: expected "gen" for questions with free answers, got "${set.inferMethod}"`,
        );
      if (set.turns instanceof Map)
        throw new FormatError(`[${set.source}] template: templates by label are for multiple choice`);
      const from = options.fewShotFrom;
      pool = fewShot === 0 || from === undefined ? [] : typeof from === "string" ? await readRows(from) : [...from];
    },
    items(context) {
      if (!set) throw new OptionsError("[questionAnswer] expected load() before items()");
      const { answerColumn, columns, rows } = set;
      const render: RenderOptions = {
        style: resolvePromptStyle(options.promptStyle ?? "auto", context.model),
        system: options.system,
        keepTrailingSpace: options.keepTrailingSpace,
        columns,
        answerColumn: answerColumn ?? "answer",
      };
      const choice = { count: fewShot, order: options.fewShotOrder ?? "first", seed: context.seed } as const;
      return rows.map((row, i): QuestionAnswerItem => {
        const turns = setTurns(set!, row, []);
        const shots = chooseExamples(pool, row, String(i), choice).map((example) =>
          fillTurns(turns, withAnswer(example, render, answersOf(example, render.answerColumn)[0] ?? "")),
        );
        const prompt = renderPrompt(turns, withAnswer(row, render, ""), shots, render);
        const references = answerColumn === undefined ? [] : answersOf(row, answerColumn);
        return { id: String(i), prompt, ...(references.length === 0 ? {} : { references }) };
      });
    },
    ask: (item, context) => askForText(item.prompt, generation, context),
    score(item, prediction) {
      if (!item.references) return {};
      const text = judged(item, prediction);
      return Object.fromEntries(
        order.map((name) => [
          metricNames[name],
          item.references!.some((answer) => matches[name](text, answer)) ? 1 : 0,
        ]),
      );
    },
    view(item, prediction) {
      const view = { prompt: promptToText(item.prompt), prediction: prediction.text };
      if (!item.references) return view;
      const text = judged(item, prediction);
      const correct = item.references.some((answer) => matches[options.metric](text, answer));
      return { ...view, reference: item.references.join(" | "), correct };
    },
  });
}

function answersOf(row: Row, column: string): string[] {
  const value = row[column];
  if (Array.isArray(value)) return value.map(String);
  const text = cellText(row, column);
  return text === "" ? [] : [text];
}
