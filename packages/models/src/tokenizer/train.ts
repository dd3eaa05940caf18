import { OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import type { Tokenizer } from "../types.js";
import { byteChar, unspell } from "./byte-level.js";
import { byteLevelSpec, namedPreTokenizer } from "./byte-level-vocabulary.js";
import { specialToken } from "./config.js";
import { compileNormalizer } from "./normalizer.js";
import { compilePreTokenizer } from "./pre-tokenizer.js";
import type { MergeTable, TokenizerConfig } from "./spec.js";
import { PipelineTokenizer } from "./tokenizer.js";

const encoder = new TextEncoder();
/** The 256 bytes come first in the vocabulary, in the order of the characters that spell them. */
const alphabet = Array.from({ length: 256 }, (_, byte) => byteChar(byte)).sort();

const trainBpeOptions = v.strictObject({
  vocabSize: v.pipe(v.number(), v.integer(), v.minValue(256)),
  specialTokens: v.optional(v.array(v.pipe(v.string(), v.nonEmpty())), []),
  minFrequency: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 2),
  bosToken: v.optional(v.string()),
  eosToken: v.optional(v.string()),
  padToken: v.optional(v.string()),
  chatTemplate: v.optional(v.string()),
});

/** Options of {@link trainBpe}. */
export interface TrainBpeOptions {
  /** Tokens in all: 256 bytes, merges, special tokens. At least 256 + the number of special tokens. */
  vocabSize: number;
  /** Special tokens; they take the last ids, in this order. @default [] */
  specialTokens?: string[];
  /** Pairs that occur less often are not merged. @default 2 */
  minFrequency?: number;
  /** One of the special tokens. @default none */
  bosToken?: string;
  /** One of the special tokens. @default none */
  eosToken?: string;
  /** One of the special tokens. @default none */
  padToken?: string;
  /** Jinja source of the model's chat template. @default none */
  chatTemplate?: string;
}

/**
 * Trains a byte-level BPE vocabulary with Qwen2's way to split text, in which every digit is a token of its own: merges the
 * most frequent pair of neighbours (the smallest ids among equals) until the vocabulary is full or no pair is left.
 * Deterministic; text is normalised to NFC.
 * @returns a tokenizer; `save(folder)` writes its tokenizer.json. Its vocabulary is smaller than asked for when the text is short.
 * @throws {OptionsError} a vocabulary too small for the bytes and special tokens, a role that is no special token
 * @see https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/models/bpe/trainer.rs (same merges)
 */
export function trainBpe(texts: Iterable<string>, options: TrainBpeOptions): Tokenizer {
  const { vocabSize, specialTokens, minFrequency, chatTemplate, ...roles } = parseOptions(
    trainBpeOptions,
    options,
    "trainBpe",
  );
  const target = vocabSize - specialTokens.length;
  if (target < 256) {
    throw new OptionsError(`[trainBpe] vocabSize: expected at least ${256 + specialTokens.length}, got ${vocabSize}`);
  }
  if (new Set(specialTokens).size !== specialTokens.length)
    throw new OptionsError("[trainBpe] specialTokens: a token is there twice");
  for (const [role, token] of Object.entries(roles)) {
    if (token !== undefined && !specialTokens.includes(token)) {
      throw new OptionsError(`[trainBpe] ${role}: expected one of specialTokens, got ${JSON.stringify(token)}`);
    }
  }
  const tokens = alphabet.slice();
  const merges = learn(countWords(texts), tokens, target, minFrequency);
  const spec = byteLevelSpec(tokens, merges, "qwen2");
  const config: TokenizerConfig = {
    ...roles,
    chatTemplates: new Map(chatTemplate === undefined ? [] : [["default", chatTemplate]]),
    rest: {},
  };
  const addedTokens = specialTokens.map((text, index) => specialToken(tokens.length + index, text));
  return new PipelineTokenizer({ ...spec, addedTokens, config });
}

interface Word {
  symbols: number[];
  count: number;
}

function countWords(texts: Iterable<string>): Word[] {
  const { normalizer, preTokenizer } = namedPreTokenizer("qwen2");
  const normalize = compileNormalizer(normalizer);
  const { split } = compilePreTokenizer(preTokenizer);
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const piece of split(normalize(text), true)) counts.set(piece, (counts.get(piece) ?? 0) + 1);
  }
  const idOfByte = new Int32Array(256);
  alphabet.forEach((character, id) => {
    idOfByte[unspell(character)![0]!] = id;
  });
  return Array.from(counts, ([piece, count]) => ({
    symbols: Array.from(encoder.encode(piece), (byte) => idOfByte[byte]!),
    count,
  }));
}

/** Left and right id in one exact double. */
const width = 2 ** 24;

/** Appends the learnt tokens to `tokens`. */
function learn(words: Word[], tokens: string[], target: number, minFrequency: number): MergeTable {
  const counts = new Map<number, number>();
  const places = new Map<number, Set<Word>>();
  const note = (left: number, right: number, word: Word, change: number): void => {
    const pair = left * width + right;
    const count = (counts.get(pair) ?? 0) + change;
    if (count === 0) counts.delete(pair);
    else counts.set(pair, count);
    if (change > 0) {
      const place = places.get(pair);
      if (place === undefined) places.set(pair, new Set([word]));
      else place.add(word);
    }
  };
  for (const word of words) {
    for (let i = 1; i < word.symbols.length; i++) note(word.symbols[i - 1]!, word.symbols[i]!, word, word.count);
  }
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const learnt: [number, number, number][] = [];
  while (tokens.length < target) {
    let best = -1;
    let bestCount = minFrequency - 1;
    for (const [pair, count] of counts) {
      if (count > bestCount || (count === bestCount && best >= 0 && pair < best)) {
        best = pair;
        bestCount = count;
      }
    }
    if (best < 0) break;
    const left = Math.floor(best / width);
    const right = best % width;
    const text = tokens[left]! + tokens[right]!;
    const merged = ids.get(text) ?? tokens.push(text) - 1;
    ids.set(text, merged);
    learnt.push([left, right, merged]);
    for (const word of places.get(best)!) merge(word, left, right, merged, note);
    counts.delete(best);
    places.delete(best);
  }
  return {
    left: Int32Array.from(learnt, (row) => row[0]),
    right: Int32Array.from(learnt, (row) => row[1]),
    merged: Int32Array.from(learnt, (row) => row[2]),
    rank: Int32Array.from(learnt, (_, index) => index),
  };
}

/** Replaces every (left, right) of a word and keeps the counts of its pairs right. */
function merge(
  word: Word,
  left: number,
  right: number,
  merged: number,
  note: (left: number, right: number, word: Word, change: number) => void,
): void {
  const { symbols, count } = word;
  const next: number[] = [];
  let found = false;
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) {
      next.push(merged);
      found = true;
      i++;
    } else next.push(symbols[i]!);
  }
  if (!found) return;
  for (let i = 1; i < symbols.length; i++) note(symbols[i - 1]!, symbols[i]!, word, -count);
  for (let i = 1; i < next.length; i++) note(next[i - 1]!, next[i]!, word, count);
  word.symbols = next;
}
