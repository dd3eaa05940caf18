import { createHash } from "node:crypto";
import { FormatError, OptionsError } from "@llm/core";
import type { ChatMessage } from "@llm/models";
import type { StoredPrompt } from "./ask.js";
import { cellText, type Row } from "./rows.js";
import type { PromptStyle } from "./task.js";

/** One turn of a template; `{column}` is replaced by the row's value. */
export interface TemplateTurn {
  role: "system" | "user" | "assistant";
  text: string;
}

/** Replaces `{column}` for the columns given (values are not searched again); other braces stay as they are. */
export function fillTemplate(template: string, values: ReadonlyMap<string, string>): string {
  return template.replace(/\{([^{}]+)\}/g, (whole, name: string) => values.get(name) ?? whole);
}

/** The values of the named columns of a row. */
export function rowValues(row: Row, columns: readonly string[]): Map<string, string> {
  return new Map(columns.map((column) => [column, cellText(row, column)]));
}

function fillTurns(turns: readonly TemplateTurn[], values: ReadonlyMap<string, string>): TemplateTurn[] {
  return turns.map(({ role, text }) => ({ role, text: fillTemplate(text, values) }));
}

/** Plain text: the turns one per line, empty ones left out. */
function joinTurns(turns: readonly TemplateTurn[]): string {
  return turns
    .map((turn) => turn.text)
    .filter((text) => text !== "")
    .join("\n");
}

/** Conversation: turns of one role in a row become one message; a last assistant turn is left for the model. */
function toMessages(turns: readonly TemplateTurn[], keepLast: boolean): ChatMessage[] {
  const messages: ChatMessage[] = [];
  const kept = !keepLast && turns.at(-1)?.role === "assistant" ? turns.slice(0, -1) : turns;
  for (const { role, text } of kept) {
    const last = messages.at(-1);
    if (last && last.role === role) last.content = `${last.content}\n${text}`;
    else messages.push({ role, content: text });
  }
  return messages;
}

export interface RenderOptions {
  style: PromptStyle;
  /** A first message (chat) or first paragraph (raw). */
  system?: string | undefined;
  /** Raw only: leave the spaces that end the prompt, as OpenCompass does ("Answer: "). Tokens of answers usually carry the space themselves. */
  keepTrailingSpace: boolean;
  columns: readonly string[];
  answerColumn: string;
}

/** Values of a row with its answer set to a text ("" to ask for it). */
export function withAnswer(row: Row, options: RenderOptions, answer: string): Map<string, string> {
  return rowValues(row, options.columns).set(options.answerColumn, answer);
}

/**
 * The prompt of a question after worked examples. Raw: examples and question as text, a blank line between; chat: the
 * examples as turns of the conversation.
 * @param shots  turns of the examples, filled in
 */
export function renderPrompt(
  turns: readonly TemplateTurn[],
  values: ReadonlyMap<string, string>,
  shots: readonly TemplateTurn[][],
  options: RenderOptions,
): StoredPrompt {
  const asked = fillTurns(turns, values);
  if (options.style === "chat") {
    const system: ChatMessage[] = options.system === undefined ? [] : [{ role: "system", content: options.system }];
    return { messages: [...system, ...shots.flatMap((shot) => toMessages(shot, true)), ...toMessages(asked, false)] };
  }
  const text = [
    ...(options.system === undefined ? [] : [options.system]),
    ...shots.map(joinTurns),
    joinTurns(asked),
  ].join("\n\n");
  return options.keepTrailingSpace ? text : text.trimEnd();
}

/** The text that a template's last assistant turn stands for, with the row's values. */
export function answerText(turns: readonly TemplateTurn[], values: ReadonlyMap<string, string>): string {
  const last = turns.at(-1);
  return last?.role === "assistant" ? fillTemplate(last.text, values) : "";
}

export { fillTurns };

/** Where worked examples come from and how they are chosen. */
export interface FewShotOptions {
  count: number;
  order: "first" | "random";
  seed: number;
}

/**
 * Chooses the examples of one question: the first ones, or random ones that depend on (seed, question id) only, so they
 * are the same whatever the order and number of the questions. A row equal to the question's own is never its example.
 * @throws {OptionsError} fewer examples than asked for
 */
export function chooseExamples(pool: readonly Row[], own: Row, id: string, options: FewShotOptions): Row[] {
  if (options.count === 0) return [];
  const ownText = JSON.stringify(own);
  const chosen: Row[] = [];
  /** A shuffle that stores only the places it touched. */
  const moved = new Map<number, number>();
  let state = createHash("sha256").update(`${options.seed}\n${id}`).digest().readUInt32LE(0);
  const below = (n: number): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n);
  };
  for (let i = 0; i < pool.length && chosen.length < options.count; i++) {
    const j = options.order === "random" ? i + below(pool.length - i) : i;
    const row = pool[moved.get(j) ?? j]!;
    moved.set(j, moved.get(i) ?? i);
    if (JSON.stringify(row) !== ownText) chosen.push(row);
  }
  if (chosen.length < options.count)
    throw new OptionsError(`[fewShot] expected ${options.count} examples, got ${chosen.length}`, {
      count: options.count,
    });
  return chosen;
}

/**
 * A template in OpenCompass's form as turns: a text, or `{round: [{role: "HUMAN" | "BOT" | "SYSTEM", prompt}]}` (with
 * `begin` in front).
 * @throws {FormatError} another shape
 */
export function parseTemplate(template: unknown, where: string): TemplateTurn[] {
  if (typeof template === "string") return [{ role: "user", text: template }];
  const fail = (got: string): never => {
    throw new FormatError(
      `[${where}] template: expected a text or {round: [{role: "HUMAN"|"BOT"|"SYSTEM", prompt}]}, got ${got}`,
    );
  };
  if (typeof template !== "object" || template === null) return fail(String(template));
  const { begin, round, ...rest } = template as { begin?: unknown; round?: unknown };
  if (!Array.isArray(round) || Object.keys(rest).length > 0) return fail(JSON.stringify(template));
  const turns: unknown[] = [...(begin === undefined ? [] : Array.isArray(begin) ? begin : [begin]), ...round];
  return turns.map((turn): TemplateTurn => {
    if (typeof turn === "string") return { role: "user", text: turn };
    const { role, prompt } = (turn ?? {}) as { role?: unknown; prompt?: unknown };
    const known = { HUMAN: "user", BOT: "assistant", SYSTEM: "system" } as const;
    if (typeof prompt !== "string" || typeof role !== "string" || !(role in known)) return fail(JSON.stringify(turn));
    return { role: known[role as keyof typeof known], text: prompt };
  });
}

/** Shows a stored prompt to a reader. */
export function promptToText(prompt: StoredPrompt): string {
  if (typeof prompt === "string") return prompt;
  return prompt.messages.map((message) => `[${message.role}]\n${message.content ?? ""}`).join("\n\n");
}
