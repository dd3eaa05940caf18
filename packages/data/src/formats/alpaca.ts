import * as v from "valibot";
import type { TrainMessage } from "../example.js";
import { defineFormat, jsonColumn, optionalText, requiredText } from "./define-format.js";

/** Earlier turns as pairs [question, answer]. */
export const historyColumn = v.optional(jsonColumn(v.nullish(v.array(v.tuple([v.string(), v.string()])))));

/** Messages of a system prompt, pairs of earlier turns, and the last question and answer. */
export function toTurns(
  system: string | undefined,
  history: readonly (readonly [string, string])[] | null | undefined,
  question: string,
  answer: string,
): TrainMessage[] {
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...(history ?? []).flatMap(([user, assistant]) => [
      { role: "user", content: user },
      { role: "assistant", content: assistant },
    ]),
    { role: "user", content: question },
    { role: "assistant", content: answer },
  ];
}

/** Stanford Alpaca and LLaMA-Factory: instruction and input, joined by a line break, are the user's turn. */
export const alpaca = defineFormat({
  name: "alpaca",
  summary: "instruction, input?, output, system?, history? [[question, answer]]",
  columns: { instruction: "required", output: "required", input: "optional", system: "optional", history: "optional" },
  schema: v.looseObject({
    instruction: v.string(),
    input: optionalText,
    output: requiredText,
    system: optionalText,
    history: historyColumn,
  }),
  toExample(row) {
    const question = row.input ? (row.instruction ? `${row.instruction}\n${row.input}` : row.input) : row.instruction;
    return { kind: "chat", messages: toTurns(row.system, row.history, question, row.output) };
  },
});
