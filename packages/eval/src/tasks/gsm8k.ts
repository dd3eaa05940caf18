import { stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { FormatError, IoError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { resolvePromptStyle, type StoredPrompt } from "../ask.js";
import { extractNumber, referenceNumber, sameNumber, type NumberExtractor } from "../extract/final-number.js";
import {
  chooseExamples,
  fillTurns,
  promptToText,
  renderPrompt,
  withAnswer,
  type RenderOptions,
  type TemplateTurn,
} from "../prompt.js";
import { cellText, readRows, type Row } from "../rows.js";
import { defineTask, type Task, type TaskItem } from "../task.js";
import { askForText, generationEntries, promptEntries, type GeneratedPrediction } from "./generation.js";

export const gsm8kOptionsSchema = v.strictObject({
  /** Folder with test.jsonl (and train.jsonl, for examples), or the test file itself. */
  path: v.pipe(v.string(), v.minLength(1)),
  /** @default "gsm8k" */
  name: v.optional(v.string(), "gsm8k"),
  ...promptEntries,
  ...generationEntries,
  /** File of worked examples. Default: train.jsonl beside the test file. */
  fewShotFrom: v.optional(v.string()),
  /** The question's turn. @default "Question: {question}\nAnswer:" */
  humanPrompt: v.optional(v.string(), "Question: {question}\nAnswer:"),
  /** The extractor whose metric stands first; all three are reported. @default "flexible" */
  extractor: v.optional(v.picklist(["flexible", "strict", "opencompass"]), "flexible"),
});

export type Gsm8kOptions = v.InferInput<typeof gsm8kOptionsSchema>;

/** One GSM8K question, rendered; `reference` is the number after "####". */
export interface Gsm8kItem extends TaskItem {
  prompt: StoredPrompt;
  reference: string;
}

const METRICS: Record<NumberExtractor, string> = {
  flexible: "flexible_match",
  strict: "strict_match",
  opencompass: "opencompass_match",
};

/**
 * Grade-school mathematics: 1319 test problems with a worked answer that ends in "#### number".
 * Five random worked examples by default, as lm-evaluation-harness asks it; raw answers end at a next "Question:".
 *
 * Metrics: `flexible_match`, `strict_match`, `opencompass_match` (see `NumberExtractor`), and `answered`, the share of
 * answers in which the first of them found a number.
 * @see Cobbe et al., Training Verifiers to Solve Math Word Problems (2021); EleutherAI/lm-evaluation-harness lm_eval/tasks/gsm8k
 */
export function gsm8k(options: Gsm8kOptions): Task<Gsm8kItem, GeneratedPrediction> {
  const parsed = parseOptions(gsm8kOptionsSchema, options, "gsm8k");
  const fewShot = parsed.fewShot ?? 5;
  const generation = {
    maxTokens: parsed.maxTokens ?? 512,
    temperature: parsed.temperature,
    stop: parsed.stop,
    rawStop: ["Question:", "</s>", "<|im_end|>"],
  };
  const order = [
    parsed.extractor,
    ...(["flexible", "strict", "opencompass"] as const).filter((name) => name !== parsed.extractor),
  ];
  const turns: TemplateTurn[] = [
    { role: "user", text: parsed.humanPrompt },
    { role: "assistant", text: "{answer}" },
  ];
  let file = parsed.path;
  let rows: Row[] = [];
  let pool: Row[] = [];

  return defineTask<Gsm8kItem, GeneratedPrediction>({
    name: parsed.name,
    mode: "gen",
    config: { task: "gsm8k", ...generation },
    async load() {
      const information = await stat(parsed.path).catch((error: Error) => {
        throw new IoError(`[gsm8k] path: expected a folder or file: ${error.message}`, { path: parsed.path }, error);
      });
      file = information.isDirectory() ? join(parsed.path, "test.jsonl") : parsed.path;
      rows = await readRows(file);
      rows.forEach((row, i) => checkRow(file, row, i));
      if (fewShot === 0) return;
      const from = parsed.fewShotFrom ?? join(dirname(file), "train.jsonl");
      pool = await readRows(from).catch((error: unknown) => {
        if (!IoError.isInstance(error)) throw error;
        throw new OptionsError(
          `[gsm8k] fewShot: expected examples in ${from}; give fewShotFrom or fewShot: 0`,
          { file: from },
          error,
        );
      });
      pool.forEach((row, i) => checkRow(from, row, i));
    },
    items(context) {
      const render: RenderOptions = {
        style: resolvePromptStyle(parsed.promptStyle ?? "auto", context.model),
        system: parsed.system,
        keepTrailingSpace: parsed.keepTrailingSpace,
        columns: ["question"],
        answerColumn: "answer",
      };
      const choice = { count: fewShot, order: parsed.fewShotOrder ?? "random", seed: context.seed } as const;
      return rows.map((row, i): Gsm8kItem => {
        const shots = chooseExamples(pool, row, String(i), choice).map((example) => {
          const filled = fillTurns(turns, withAnswer(example, render, cellText(example, "answer")));
          if (render.style === "chat") return filled;
          return [{ role: "user" as const, text: filled.map((turn) => turn.text).join(" ") }];
        });
        const prompt = renderPrompt(turns, withAnswer(row, render, ""), shots, render);
        return { id: String(i), prompt, reference: referenceNumber(cellText(row, "answer"))! };
      });
    },
    ask: (item, context) => askForText(item.prompt, generation, context),
    score(item, prediction) {
      const scores: Record<string, number> = {};
      for (const name of order)
        scores[METRICS[name]] = sameNumber(extractNumber(prediction.text, name), item.reference, name) ? 1 : 0;
      scores["answered"] = extractNumber(prediction.text, parsed.extractor) === undefined ? 0 : 1;
      return scores;
    },
    view(item, prediction) {
      const found = extractNumber(prediction.text, parsed.extractor);
      return {
        prompt: promptToText(item.prompt),
        prediction: `${found ?? "no number found"}\n\n${prediction.text}`,
        reference: item.reference,
        correct: sameNumber(found, item.reference, parsed.extractor),
      };
    },
  });
}

function checkRow(file: string, row: Row, i: number): void {
  if (
    typeof row["question"] === "string" &&
    typeof row["answer"] === "string" &&
    referenceNumber(row["answer"]) !== undefined
  )
    return;
  throw new FormatError(`[gsm8k] ${file}: row ${i + 1}: expected {question, answer} with "#### number" in the answer`, {
    file,
    row: i + 1,
  });
}
