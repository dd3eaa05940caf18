import type { GenerateOptions } from "@llm/models";
import * as v from "valibot";
import { generateText, type Generation, type StoredPrompt } from "../ask.js";
import type { TaskContext } from "../task.js";

/** Options that every task which lets the model write has. */
export const generationEntries = {
  /** Most tokens of an answer. @default 256 */
  maxTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** 0 = greedy. @default 0 */
  temperature: v.optional(v.pipe(v.number(), v.minValue(0)), 0),
  /** Answers end before any of these texts. Default: raw prompts end at a blank line or a next question, chat has none. */
  stop: v.optional(v.array(v.string())),
};

/** Options about how the prompt is given. */
export const promptEntries = {
  /** "chat" renders the model's chat template, "raw" is plain text; "auto" asks the model (`resolvePromptStyle`). */
  promptStyle: v.optional(v.picklist(["auto", "chat", "raw"])),
  /** A system message (chat) or first paragraph (raw). Absent = none. */
  system: v.optional(v.string()),
  /** Worked examples before the question. @default 0 */
  fewShot: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0))),
  /** The first examples, or random ones that depend on seed and question only. @default "first" */
  fewShotOrder: v.optional(v.picklist(["first", "random"])),
  /** Raw prompts keep the spaces they end with, as OpenCompass's do ("Answer: "). @default false */
  keepTrailingSpace: v.optional(v.boolean(), false),
};

/** A stored answer. */
export interface GeneratedPrediction extends Generation {}

export interface GenerationSettings {
  maxTokens: number;
  temperature: number;
  /** Used as given; undefined = `rawStop` for raw prompts, nothing for chat. */
  stop: string[] | undefined;
  rawStop: string[];
}

/** Asks one prompt. Sampling is seeded by the run's seed, so equal runs give equal answers. */
export async function askForText(
  prompt: StoredPrompt,
  settings: GenerationSettings,
  context: TaskContext,
): Promise<GeneratedPrediction> {
  const stop = settings.stop ?? (typeof prompt === "string" ? settings.rawStop : []);
  const options: GenerateOptions = {
    maxTokens: settings.maxTokens,
    temperature: settings.temperature,
    seed: context.seed,
  };
  if (stop.length > 0) options.stop = stop;
  if (context.signal) options.signal = context.signal;
  return generateText(context.model, prompt, options);
}
