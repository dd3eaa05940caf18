import { FormatError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { resolvePromptStyle, scoreContinuations, scoreTexts, type StoredPrompt } from "../ask.js";
import { loadCustomSet, rowLabels, setTurns, type CustomSet } from "../custom-set.js";
import { extractOptionLabel } from "../extract/option-label.js";
import {
  answerText,
  chooseExamples,
  fillTurns,
  promptToText,
  renderPrompt,
  withAnswer,
  type RenderOptions,
  type TemplateTurn,
} from "../prompt.js";
import { cellText, readRows, type Row } from "../rows.js";
import { defineTask, type PredictionView, type Task, type TaskContext, type TaskItem } from "../task.js";
import { askForText, generationEntries, promptEntries, type GeneratedPrediction } from "./generation.js";

export const multipleChoiceOptionsSchema = v.strictObject({
  /** Name in reports and files. Default: the file's name up to its first dot. */
  name: v.optional(v.string()),
  /**
   * "gen": the model writes, a label is read from its answer. "ppl": every option's whole text is scored, the lowest mean
   * cross-entropy wins. "loglikelihood": the answer alone is scored after the question. @default "gen"
   */
  mode: v.optional(v.picklist(["gen", "ppl", "loglikelihood"])),
  ...promptEntries,
  ...generationEntries,
  /** The question's turn, `{column}` filled in. Default: "Question: {question}" and a line "A. {A}" per option. */
  humanPrompt: v.optional(v.string()),
  /** The answer's turn. @default "Answer: {answer}" */
  answerPrompt: v.optional(v.string()),
  /** Labels, which are columns of the set. Default: consecutive columns A, B, C … */
  labels: v.optional(v.array(v.string())),
  /** Columns that prompts may use. Default: all but the answer's. */
  inputColumns: v.optional(v.array(v.string())),
  /** Column of the right label (or of the right option's text). @default "answer" */
  answerColumn: v.optional(v.nullable(v.string())),
  /** What stands for {answer} when an option is scored: its label, or its text. @default "label" */
  target: v.optional(v.picklist(["label", "text"]), "label"),
  /** File or rows of worked examples, in the same form. Needed by fewShot. */
  fewShotFrom: v.optional(v.union([v.string(), v.array(v.record(v.string(), v.unknown()))])),
  /** When no rule finds a label: "none" counts the item as unanswered, "nearest" takes the option at the smallest edit distance (OpenCompass). @default "none" */
  lastResort: v.optional(v.picklist(["none", "nearest"]), "none"),
  /** Another meta file, or false for none. Default: `<file>.meta.json` if it exists. */
  metaFile: v.optional(v.union([v.string(), v.literal(false)])),
});

export type MultipleChoiceOptions = v.InferInput<typeof multipleChoiceOptionsSchema>;

/** One question with its options, rendered. */
export interface MultipleChoiceItem extends TaskItem {
  prompt: StoredPrompt;
  /** Label to the option's text. */
  options: Record<string, string>;
  /** ppl, loglikelihood: label to what completes the context. */
  answers?: Record<string, string>;
  /** ppl, loglikelihood: what is scored before the answers, as text. */
  context?: string;
  /** Whether the tokenizer adds its own begin token (not when a chat template wrote it). */
  addSpecialTokens?: boolean;
  reference?: string;
}

/** What a model's score of one option is kept as. */
interface OptionScore {
  label: string;
  logprob: number;
  tokens: number;
  /** ppl: over the whole text; null where the shared part cancels and was not computed. */
  meanCrossEntropy?: number | null;
  bytes?: number;
}

/** What is stored of an answer: text in mode gen, one score an option in the others. */
export type MultipleChoicePrediction = GeneratedPrediction | { scores: OptionScore[] };

/**
 * A multiple-choice set in OpenCompass's custom form: jsonl or csv with `question`, `A`, `B`, … and `answer`, and
 * optionally `<file>.meta.json`.
 *
 * Metrics. gen: `accuracy`, `answered` (share of answers in which a label was found). ppl: `accuracy`, of
 * argmin over options of −(1/n) Σ log p(tokenᵢ | before) over the n tokens of question and option together, first label
 * on ties (OpenCompass's definition with its Hugging Face divisor n). loglikelihood: `acc` of argmax Σ log p(answer | question),
 * `acc_norm` of the same divided by the answer's UTF-8 bytes (lm-evaluation-harness; it calls the byte form acc_bytes).
 * @throws {FormatError} at `load` or when items are built: unknown columns, an answer that is no option
 * @see open-compass/opencompass opencompass/datasets/custom.py, openicl/icl_inferencer/icl_ppl_inferencer.py
 */
export function multipleChoice(
  source: string | readonly Row[],
  options: MultipleChoiceOptions = {},
): Task<MultipleChoiceItem, MultipleChoicePrediction> {
  const parsed = parseOptions(multipleChoiceOptionsSchema, options, "multipleChoice");
  const load = async (): Promise<CustomSet> => {
    const set = await loadCustomSet(source, {
      abbr: parsed.name,
      data_type: "mcq",
      infer_method: parsed.mode,
      human_prompt: parsed.humanPrompt,
      bot_prompt: parsed.answerPrompt,
      options: parsed.labels,
      input_columns: parsed.inputColumns,
      output_column: parsed.answerColumn,
      metaFile: parsed.metaFile,
    });
    return set;
  };
  return multipleChoiceOfSet(load, typeof source === "string" ? source : "rows", parsed);
}

type Parsed = v.InferOutput<typeof multipleChoiceOptionsSchema>;

/** `multipleChoice` over a set that is loaded later. The name and mode are the options' or, once loaded, the set's. */
export function multipleChoiceOfSet(
  load: () => Promise<CustomSet>,
  source: string,
  options: Parsed,
): Task<MultipleChoiceItem, MultipleChoicePrediction> {
  let set: CustomSet | undefined;
  let pool: Row[] = [];
  const fewShot = options.fewShot ?? 0;
  if (fewShot > 0 && options.fewShotFrom === undefined)
    throw new OptionsError("[multipleChoice] fewShot: expected fewShotFrom, the examples' file or rows");
  const loaded = (): CustomSet => {
    if (!set) throw new OptionsError("[multipleChoice] expected load() before items()");
    return set;
  };
  const generation = {
    maxTokens: options.maxTokens ?? 256,
    temperature: options.temperature,
    stop: options.stop,
    rawStop: ["\n\n", "\nQuestion:"],
  };
  const defaultName = source.split(/[\\/]/).at(-1)!.split(".")[0]!;

  return defineTask<MultipleChoiceItem, MultipleChoicePrediction>({
    get name() {
      return set?.name ?? options.name ?? defaultName;
    },
    get mode() {
      return set?.inferMethod ?? options.mode ?? "gen";
    },
    get config() {
      const mode = set?.inferMethod ?? options.mode ?? "gen";
      return mode === "gen"
        ? { task: "multiple-choice", ...generation }
        : { task: "multiple-choice", target: options.target };
    },
    async load() {
      set = await load();
      if (set.dataType !== "mcq" || set.labels.length < 2)
        throw new FormatError(
          `[${set.source}] expected columns A, B … with at least two options, got ${set.labels.join(", ") || "none"}`,
        );
      const from = options.fewShotFrom;
      pool = fewShot === 0 || from === undefined ? [] : typeof from === "string" ? await readRows(from) : [...from];
    },
    items(context) {
      return loaded().rows.map((row, i) => buildItem(loaded(), row, i, pool, options, fewShot, context));
    },
    async ask(item, context) {
      if (item.answers === undefined) return askForText(item.prompt, generation, context);
      const labels = Object.keys(item.answers);
      const settings = { addSpecialTokens: item.addSpecialTokens ?? true, signal: context.signal };
      const answers = Object.values(item.answers);
      if (loaded().inferMethod === "ppl") {
        const texts = answers.map((answer) => item.context + answer);
        const scores = await scoreTexts(context.model, texts, settings);
        return {
          scores: scores.map(({ tokens, tailLogprob, sharedLogprob }, i) => ({
            label: labels[i]!,
            logprob: tailLogprob,
            tokens,
            meanCrossEntropy: sharedLogprob === null ? null : -(tailLogprob + sharedLogprob) / tokens,
          })),
        };
      }
      const scores = await scoreContinuations(context.model, item.context!, answers, settings);
      return {
        scores: scores.map(({ logprob, tokens }, i) => ({
          label: labels[i]!,
          logprob,
          tokens,
          bytes: Buffer.byteLength(answers[i]!.trimStart()),
        })),
      };
    },
    score(item, prediction): Record<string, number> {
      const { reference } = item;
      if (!("scores" in prediction)) {
        const label = extractOptionLabel(prediction.text, new Map(Object.entries(item.options)), options);
        const answered = label === undefined ? 0 : 1;
        return reference === undefined ? { answered } : { accuracy: label === reference ? 1 : 0, answered };
      }
      if (reference === undefined) return {};
      if (loaded().inferMethod === "ppl")
        return { accuracy: lowestCrossEntropy(prediction.scores) === reference ? 1 : 0 };
      return {
        acc: best(prediction.scores, (score) => score.logprob) === reference ? 1 : 0,
        acc_norm: best(prediction.scores, (score) => score.logprob / Math.max(1, score.bytes!)) === reference ? 1 : 0,
      };
    },
    view(item, prediction): PredictionView {
      const chosen =
        "scores" in prediction
          ? loaded().inferMethod === "ppl"
            ? lowestCrossEntropy(prediction.scores)
            : best(prediction.scores, (score) => score.logprob)
          : extractOptionLabel(prediction.text, new Map(Object.entries(item.options)), options);
      const said =
        "scores" in prediction
          ? prediction.scores.map((score) => `${score.label}: ${describeScore(score)}`).join("\n")
          : prediction.text;
      const prompt =
        item.answers === undefined
          ? promptToText(item.prompt)
          : item.context! || sharedText(Object.values(item.answers));
      const view = { prompt, prediction: `${chosen ?? "no option found"}\n\n${said}` };
      return item.reference === undefined
        ? view
        : { ...view, reference: item.reference, correct: chosen === item.reference };
    },
  });
}

/** What all texts begin with. */
function sharedText(texts: readonly string[]): string {
  let end = 0;
  while (end < texts[0]!.length && texts.every((text) => text[end] === texts[0]![end])) end++;
  return texts[0]!.slice(0, end);
}

function describeScore(score: OptionScore): string {
  if (typeof score.meanCrossEntropy === "number") return `mean cross-entropy ${score.meanCrossEntropy.toFixed(5)}`;
  return `log-probability ${score.logprob.toFixed(5)}`;
}

/** The label of the largest value, the first on ties. */
function best(scores: readonly OptionScore[], value: (score: OptionScore) => number): string {
  let chosen = scores[0]!;
  for (const score of scores) if (value(score) > value(chosen)) chosen = score;
  return chosen.label;
}

/** argmin of mean cross-entropy. Where the shared part was not scored all lengths are equal, so the tail decides alike. */
function lowestCrossEntropy(scores: readonly OptionScore[]): string {
  return best(scores, (score) =>
    typeof score.meanCrossEntropy === "number" ? -score.meanCrossEntropy : score.logprob / score.tokens,
  );
}

function referenceLabel(set: CustomSet, row: Row, labels: readonly string[], i: number): string | undefined {
  if (set.answerColumn === undefined) return undefined;
  const answer = cellText(row, set.answerColumn).trim();
  if (answer === "") return undefined;
  if (labels.includes(answer)) return answer;
  const byText = labels.filter((label) => cellText(row, label).trim() === answer);
  if (byText.length === 1) return byText[0];
  throw new FormatError(
    `[${set.source}] row ${i + 1}: ${set.answerColumn}: expected one of ${labels.join(", ")}, got "${answer}"`,
    {
      row: i + 1,
      answer,
    },
  );
}

function buildItem(
  set: CustomSet,
  row: Row,
  i: number,
  pool: readonly Row[],
  options: Parsed,
  fewShot: number,
  context: TaskContext,
): MultipleChoiceItem {
  const id = String(i);
  const labels = rowLabels(set, row);
  if (labels.length < 2)
    throw new FormatError(
      `[${set.source}] row ${i + 1}: expected at least two options, got ${labels.join(", ") || "none"}`,
      { row: i + 1 },
    );
  const reference = referenceLabel(set, row, labels, i);
  const gen = set.inferMethod === "gen";
  const style = resolvePromptStyle(options.promptStyle ?? (gen ? "auto" : "raw"), context.model);
  const answerColumn = set.answerColumn ?? "answer";
  const render: RenderOptions = {
    style,
    system: options.system,
    keepTrailingSpace: options.keepTrailingSpace,
    columns: set.columns,
    answerColumn,
  };
  const optionTexts = Object.fromEntries(labels.map((label) => [label, cellText(row, label)]));
  const target = (from: Row, label: string): string => (options.target === "label" ? label : cellText(from, label));
  const examples = chooseExamples(pool, row, id, {
    count: fewShot,
    order: options.fewShotOrder ?? "first",
    seed: context.seed,
  });
  const shots = examples.map((example, j) => {
    const exampleLabels = rowLabels(set, example);
    const right = referenceLabel(set, example, exampleLabels, j);
    if (right === undefined) throw new FormatError(`[fewShotFrom] row ${j + 1}: expected an answer`);
    return fillTurns(turnsFor(set, example, exampleLabels, right), withAnswer(example, render, target(example, right)));
  });

  if (gen) {
    if (set.turns instanceof Map)
      throw new FormatError(`[${set.source}] template: templates by label are for ppl, not gen`);
    const prompt = renderPrompt(setTurns(set, row, labels), withAnswer(row, render, ""), shots, render);
    return { id, prompt, options: optionTexts, ...(reference === undefined ? {} : { reference }) };
  }

  const whole = (label: string): string => {
    const turns = turnsFor(set, row, labels, label);
    const values = withAnswer(row, render, target(row, label));
    const prompt = renderPrompt(turns, values, shots, render);
    if (typeof prompt === "string") return prompt;
    const rendered = context.model.tokenizer.applyChatTemplate(prompt.messages, { addGenerationPrompt: true });
    return rendered + answerText(turns, values);
  };
  const texts = new Map(labels.map((label) => [label, whole(label)]));
  let scored = "";
  if (set.inferMethod === "loglikelihood") {
    if (set.turns instanceof Map)
      throw new FormatError(`[${set.source}] template: templates by label are for ppl, not loglikelihood`);
    const turns = setTurns(set, row, labels);
    const asked = renderPrompt(turns, withAnswer(row, render, ""), shots, { ...render, keepTrailingSpace: false });
    if (typeof asked === "string") scored = asked;
    else
      scored =
        context.model.tokenizer.applyChatTemplate(asked.messages, { addGenerationPrompt: true }) +
        answerText(turns, withAnswer(row, render, "")).trimEnd();
    for (const [label, text] of texts)
      if (!text.startsWith(scored) || text.length === scored.length)
        throw new FormatError(
          `[${set.source}] row ${i + 1}: expected the answer at the end of the prompt for loglikelihood`,
          { label },
        );
  }
  return {
    id,
    prompt: scored,
    context: scored,
    answers: Object.fromEntries([...texts].map(([label, text]) => [label, text.slice(scored.length)])),
    addSpecialTokens: style === "raw",
    options: optionTexts,
    ...(reference === undefined ? {} : { reference }),
  };
}

function turnsFor(set: CustomSet, row: Row, labels: readonly string[], label: string): TemplateTurn[] {
  if (!(set.turns instanceof Map)) return setTurns(set, row, labels);
  const turns = set.turns.get(label);
  if (!turns) throw new FormatError(`[${set.source}] template: expected an entry for "${label}"`, { label });
  return turns;
}
