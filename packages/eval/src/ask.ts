import { IoError, LlmError, UnsupportedError } from "@llm/core";
import type { ChatMessage, GenerateOptions, LanguageModel, Prompt, TokenIds, Usage } from "@llm/models";
import type { EvaluatedModel, PromptStyle } from "./task.js";

/** A prompt as tasks store it: JSON. */
export type StoredPrompt = string | { messages: ChatMessage[] };

/** What a generation is kept as. */
export interface Generation {
  text: string;
  reason: "stop" | "length";
  promptTokens: number;
  completionTokens: number;
}

/**
 * Generates one answer and waits for its end.
 * @throws the signal's reason when the generation was aborted
 */
export async function generateText(
  model: LanguageModel,
  prompt: StoredPrompt,
  options: GenerateOptions = {},
): Promise<Generation> {
  for await (const event of model.generate([prompt as Prompt], options)) {
    if (event.type !== "finish") continue;
    if (event.reason === "abort") {
      options.signal?.throwIfAborted();
      throw new IoError("[generateText] the model ended the generation before it was finished");
    }
    const usage: Usage = event.usage;
    return {
      text: event.text,
      reason: event.reason,
      promptTokens: usage.promptTokens,
      completionTokens: usage.completionTokens,
    };
  }
  options.signal?.throwIfAborted();
  throw new LlmError("INTERNAL", "[generateText] expected one finish event per prompt, got none");
}

/** "auto" = what the model says, else chat where its tokenizer has a chat template, else raw. */
export function resolvePromptStyle(style: "auto" | PromptStyle, model: EvaluatedModel): PromptStyle {
  if (style !== "auto") return style;
  return model.promptStyle ?? (model.tokenizer.chatTemplate === undefined ? "raw" : "chat");
}

/** Text to ids as the model would see a document: its begin token in front, never an end token behind. */
export function encodeOpen(model: LanguageModel, text: string, addSpecialTokens: boolean): TokenIds {
  const { tokenizer } = model;
  const ids = tokenizer.encode(text, { addSpecialTokens });
  const end = tokenizer.eosTokenId;
  if (!addSpecialTokens || end === undefined || ids.at(-1) !== end || ids.length < 2) return ids;
  const plain = tokenizer.encode(text, { addSpecialTokens: false });
  return plain.at(-1) === end ? ids : ids.slice(0, -1);
}

/** What a text of several is worth. */
export interface TextScore {
  /** Tokens of the text, the first (BOS) included. */
  tokens: number;
  /** Sum of log-probabilities over the tokens that differ between the texts (all of them after the shared ones). */
  tailLogprob: number;
  /** Sum over the shared tokens after the first; null when it cancels and was therefore not computed. */
  sharedLogprob: number | null;
}

function commonPrefixLength(lists: readonly ArrayLike<number>[]): number {
  const shortest = Math.min(...lists.map((list) => list.length));
  for (let i = 0; i < shortest; i++) if (lists.some((list) => list[i] !== lists[0]![i])) return i;
  return shortest;
}

function checkLength(model: LanguageModel, tokens: number, where: string): void {
  if (tokens <= model.maxTokens) return;
  throw new UnsupportedError(
    `[${where}] expected at most ${model.maxTokens} tokens (the model's context), got ${tokens}; use fewer examples`,
    { tokens, maxTokens: model.maxTokens },
  );
}

/**
 * Scores whole texts that mostly share their beginning (one question, each option filled in). The shared tokens are run
 * once as the prefix. Their own log-probability is only computed when the texts differ in length, since otherwise it
 * cancels in every comparison of means.
 */
export async function scoreTexts(
  model: LanguageModel,
  texts: readonly string[],
  options: { addSpecialTokens: boolean; signal?: AbortSignal | undefined },
): Promise<TextScore[]> {
  const lists = texts.map((text) => encodeOpen(model, text, options.addSpecialTokens));
  for (const ids of lists) checkLength(model, ids.length, "scoreTexts");
  const shortest = Math.min(...lists.map((ids) => ids.length));
  if (shortest < 2)
    throw new UnsupportedError("[scoreTexts] expected texts of at least 2 tokens (the first one cannot be scored)");
  const signal = options.signal === undefined ? {} : { signal: options.signal };
  const shared = Math.min(commonPrefixLength(lists), shortest - 1);
  if (shared === 0) {
    const scores: TextScore[] = [];
    for (const ids of lists) {
      const [score] = await model.score(ids.slice(0, 1), [ids.slice(1)], signal);
      scores.push({ tokens: ids.length, tailLogprob: score!.logprob, sharedLogprob: 0 });
    }
    return scores;
  }
  const prefix = lists[0]!.slice(0, shared);
  const tails = await model.score(
    prefix,
    lists.map((ids) => ids.slice(shared)),
    signal,
  );
  const sameLength = lists.every((ids) => ids.length === lists[0]!.length);
  let sharedLogprob: number | null = null;
  if (!sameLength)
    sharedLogprob = shared > 1 ? (await model.score(prefix.slice(0, 1), [prefix.slice(1)], signal))[0]!.logprob : 0;
  return lists.map((ids, i) => ({ tokens: ids.length, tailLogprob: tails[i]!.logprob, sharedLogprob }));
}

/** What a continuation of a context is worth. */
export interface ContinuationScore {
  logprob: number;
  tokens: number;
  /** Every token was the model's likeliest. */
  greedy: boolean;
}

/**
 * log p(continuation | context) for several continuations. Context and continuation are encoded together; the context's
 * part is what the joined encoding shares with the context's own, so a token that spans the join counts to the
 * continuation and nothing is lost. Without any token before it, the begin (else end) token is the context.
 * @throws {UnsupportedError} an empty context and a tokenizer with neither token
 */
export async function scoreContinuations(
  model: LanguageModel,
  context: string,
  continuations: readonly string[],
  options: { addSpecialTokens: boolean; signal?: AbortSignal | undefined },
): Promise<ContinuationScore[]> {
  const { tokenizer } = model;
  const contextIds = encodeOpen(model, context, options.addSpecialTokens);
  const lists = continuations.map((text) => encodeOpen(model, context + text, options.addSpecialTokens));
  const starts = lists.map((ids) => Math.min(commonPrefixLength([contextIds, ids]), ids.length - 1));
  const signal = options.signal === undefined ? {} : { signal: options.signal };
  const results: ContinuationScore[] = [];
  for (const start of new Set(starts)) {
    const members = lists.map((_, i) => i).filter((i) => starts[i] === start);
    let prefix = lists[members[0]!]!.slice(0, start);
    if (start < 1) {
      const begin = tokenizer.bosTokenId ?? tokenizer.eosTokenId;
      if (begin === undefined)
        throw new UnsupportedError("[scoreContinuations] expected a context or a tokenizer with a begin or end token");
      prefix = Int32Array.of(begin);
    }
    const tails = members.map((i) => lists[i]!.slice(Math.max(start, 0)));
    for (const tail of tails) checkLength(model, prefix.length + tail.length, "scoreContinuations");
    const scores = await model.score(prefix, tails, signal);
    members.forEach((member, i) => {
      const { logprob, greedy } = scores[i]!;
      results[member] = { logprob, greedy, tokens: tails[i]!.length };
    });
  }
  return results;
}
