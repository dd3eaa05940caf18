import { FormatError, OptionsError, parseOptions } from "@llm/core";
import type { Tokenizer } from "@llm/models";
import * as v from "valibot";
import { Dataset, type TokenDocument } from "./dataset.js";
import { permutation } from "./order.js";

const positive = v.pipe(v.number(), v.integer(), v.minValue(1));
const tokenizerField = v.optional(
  v.custom<Tokenizer>((value) => typeof (value as Tokenizer | null)?.encode === "function", "expected a Tokenizer"),
);

export const tokenBlocksSchema = v.strictObject({
  /** Encodes text sources; not used for a Dataset or ids. */
  tokenizer: tokenizerField,
  /** Tokens of a block. @default 512 */
  tokens: v.optional(positive, 512),
  /** Blocks to return, picked by `seed`. @default all */
  count: v.optional(positive),
  /** Tokens from one block's start to the next. @default tokens (no overlap) */
  stride: v.optional(positive),
  /** Picks blocks, and the order of a Dataset's documents. @default 0 */
  seed: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0)), 0),
});

export type TokenBlocksOptions = v.InferInput<typeof tokenBlocksSchema>;

/** Text, texts, token ids, or a data set. */
export type TokenSource = string | readonly string[] | Int32Array | Dataset;

/**
 * Blocks of exactly `tokens` ids for quantization's calibration: the source's ids one after the other, cut every `stride`; with `count`,
 * that many blocks chosen by `seed` without repetition, in the source's order. An incomplete last block is not returned.
 * Documents of a Dataset are taken in an order that `seed` decides; texts are joined by the tokenizer's end token.
 * @throws {FormatError} fewer tokens than one block, or fewer blocks than `count`
 */
export function tokenBlocks(source: TokenSource, options: TokenBlocksOptions = {}): Int32Array[] {
  const parsed = parseOptions(tokenBlocksSchema, options, "tokenBlocks");
  const { tokens, count, seed } = parsed;
  const stride = parsed.stride ?? tokens;
  const ids = sourceIds(source, parsed.tokenizer, seed, "tokenBlocks");
  const available = ids.length < tokens ? 0 : Math.floor((ids.length - tokens) / stride) + 1;
  if (available < (count ?? 1))
    throw new FormatError(
      `[tokenBlocks] expected enough text for ${count ?? 1} blocks of ${tokens} tokens, got ${ids.length} tokens (${available} blocks)`,
      {
        tokens: ids.length,
        blocks: available,
      },
    );
  const chosen =
    count === undefined
      ? Int32Array.from({ length: available }, (_, index) => index)
      : permutation(available, seed, 0).slice(0, count).sort();
  return Array.from(chosen, (index) => ids.slice(index * stride, index * stride + tokens));
}

export const perplexityWindowsSchema = v.strictObject({
  /** Encodes text sources; not used for a Dataset or ids. */
  tokenizer: tokenizerField,
  /** Most tokens of a window, at least 2. @default 512 */
  tokens: v.optional(v.pipe(positive, v.minValue(2)), 512),
  /** New tokens per window, in [1, tokens − 1]; smaller gives each token more context. @default tokens − 1 */
  stride: v.optional(positive),
});

export type PerplexityWindowsOptions = v.InferInput<typeof perplexityWindowsSchema>;

/** Ids to run through the model, and from which index on they are scored: ids[t] for t ≥ scoredFrom, each given ids[0, t). */
export interface PerplexityWindow {
  ids: Int32Array;
  scoredFrom: number;
}

/**
 * Sliding windows over a text such that every token but the very first is scored exactly once, with at least
 * tokens − stride tokens of context after the first window; the short end is kept. Perplexity = exp(−Σ log p ÷ (N − 1)).
 * @throws {FormatError} fewer than two tokens
 */
export function perplexityWindows(source: TokenSource, options: PerplexityWindowsOptions = {}): PerplexityWindow[] {
  const parsed = parseOptions(perplexityWindowsSchema, options, "perplexityWindows");
  const { tokens } = parsed;
  const stride = parsed.stride ?? tokens - 1;
  if (stride > tokens - 1)
    throw new OptionsError(`[perplexityWindows] stride: expected at most tokens − 1 = ${tokens - 1}, got ${stride}`);
  const ids = sourceIds(source, parsed.tokenizer, undefined, "perplexityWindows");
  if (ids.length < 2) throw new FormatError(`[perplexityWindows] expected at least 2 tokens, got ${ids.length}`);
  const windows: PerplexityWindow[] = [{ ids: ids.slice(0, tokens), scoredFrom: 1 }];
  for (let scored = Math.min(tokens, ids.length); scored < ids.length;) {
    const end = Math.min(scored + stride, ids.length);
    const start = end - Math.min(tokens, end);
    windows.push({ ids: ids.slice(start, end), scoredFrom: scored - start });
    scored = end;
  }
  return windows;
}

function sourceIds(
  source: TokenSource,
  tokenizer: Tokenizer | undefined,
  seed: number | undefined,
  where: string,
): Int32Array {
  if (source instanceof Int32Array) return source;
  if (source instanceof Dataset) {
    const order = seed === undefined ? source.documents.keys() : permutation(source.documents.length, seed, 1);
    return concatenate(Array.from(order, (index) => (source.documents[index] as TokenDocument).ids));
  }
  if (tokenizer === undefined) throw new OptionsError(`[${where}] tokenizer: expected one for a text source, got none`);
  if (typeof source === "string") return tokenizer.encode(source);
  const { eosTokenId } = tokenizer;
  return concatenate(
    source.flatMap((text, index) => [
      ...(index > 0 && eosTokenId !== undefined ? [Int32Array.of(eosTokenId)] : []),
      tokenizer.encode(text),
    ]),
  );
}

function concatenate(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}
