import { FormatError } from "@llm/core";
import { mergesOfList, mergesOfVocabulary } from "./bpe.js";
import { byteChar, spellBytes } from "./byte-level.js";
import { llama3Pattern, qwen2Pattern } from "./pattern.js";
import { asObject, emptyConfig, type ComponentJson, type MergeTable, type TokenizerSpec } from "./spec.js";
import { idsOf, tokensById } from "./tokenizer-json.js";

/** Ways to split text before a byte-level vocabulary, where its file does not say. */
export const preTokenizerNames = ["gpt2", "qwen2", "llama3", "starcoder"] as const;
/** One of `preTokenizerNames`. */
export type PreTokenizerName = (typeof preTokenizerNames)[number];

const byteLevel = (useRegex: boolean, prefixSpace = false): ComponentJson => ({
  type: "ByteLevel",
  add_prefix_space: prefixSpace,
  trim_offsets: true,
  use_regex: useRegex,
});

const split = (pattern: string): ComponentJson => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: false,
});

/** Steps of each named split. */
export function namedPreTokenizer(
  name: PreTokenizerName,
  addPrefixSpace = false,
): { normalizer: ComponentJson | null; preTokenizer: ComponentJson; ignoreMerges: boolean } {
  const sequence = (...steps: ComponentJson[]): ComponentJson => ({ type: "Sequence", pretokenizers: steps });
  switch (name) {
    case "gpt2":
      return { normalizer: null, preTokenizer: byteLevel(true, addPrefixSpace), ignoreMerges: false };
    case "qwen2":
      return {
        normalizer: { type: "NFC" },
        preTokenizer: sequence(split(qwen2Pattern), byteLevel(false)),
        ignoreMerges: false,
      };
    case "llama3":
      return {
        normalizer: null,
        preTokenizer: sequence(split(llama3Pattern), byteLevel(false)),
        ignoreMerges: true,
      };
    case "starcoder":
      return {
        normalizer: null,
        preTokenizer: sequence({ type: "Digits", individual_digits: true }, byteLevel(true, addPrefixSpace)),
        ignoreMerges: false,
      };
  }
}

/** A byte-level tokenizer without added tokens. */
export function byteLevelSpec(
  tokens: (string | undefined)[],
  merges: MergeTable,
  name: PreTokenizerName,
  addPrefixSpace = false,
): TokenizerSpec {
  const { normalizer, preTokenizer, ignoreMerges } = namedPreTokenizer(name, addPrefixSpace);
  return {
    model: { type: "BPE", tokens, merges, unkToken: undefined, byteFallback: false, fuseUnk: false, ignoreMerges },
    addedTokens: [],
    normalizer,
    preTokenizer,
    postProcessor: byteLevel(false),
    decoder: byteLevel(false),
    config: emptyConfig,
  };
}

/**
 * Reads vocab.json (`{token: id}`) and merges.txt (one `left right` a line after an optional `#version` line).
 * @throws {FormatError} what does not fit, with the line
 */
export function readVocabMerges(
  vocab: unknown,
  mergesText: string,
  name: PreTokenizerName,
  addPrefixSpace: boolean,
): TokenizerSpec {
  const tokens = tokensById(asObject(vocab, "vocab.json"), "vocab.json");
  const lines = mergesText.split("\n").map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
  const header = lines[0]!.startsWith("#version") ? 1 : 0;
  while (lines.length > header && lines.at(-1) === "") lines.pop();
  const merges = mergesOfList(lines.slice(header), idsOf(tokens), "merges.txt", header + 1);
  return byteLevelSpec(tokens, merges, name, addPrefixSpace);
}

/** Whether the start of a file looks like a tiktoken file: `base64 rank` on its first line. */
export function looksLikeTiktoken(head: string): boolean {
  return /^[A-Za-z0-9+/]+={0,2} \d+\r?\n/.test(head);
}

/** Tokens of a tiktoken file, spelled byte-level, by rank. @throws {FormatError} a bad line */
export function readTiktokenTokens(text: string, where: string): (string | undefined)[] {
  const tokens: (string | undefined)[] = [];
  text.split("\n").forEach((line, index) => {
    if (line === "" || line === "\r") return;
    const match = /^([A-Za-z0-9+/]+={0,2}) (\d+)\r?$/.exec(line);
    const rank = match === null ? NaN : Number(match[2]);
    if (match === null || rank > 2 ** 24) {
      throw new FormatError(
        `[${where}] line ${index + 1}: expected "base64 rank", got ${JSON.stringify(line.slice(0, 60))}`,
        {
          file: where,
          line: index + 1,
        },
      );
    }
    if (tokens[rank] !== undefined) {
      throw new FormatError(`[${where}] line ${index + 1}: rank ${rank} is there twice`, {
        file: where,
        line: index + 1,
      });
    }
    tokens[rank] = spellBytes(Buffer.from(match[1]!, "base64"));
  });
  return Array.from(tokens);
}

/** A byte-level tokenizer from tiktoken's ranks: neighbours merge wherever their bytes together are a token, lowest rank first. */
export function tiktokenSpec(tokens: (string | undefined)[], name: PreTokenizerName, where: string): TokenizerSpec {
  const ids = idsOf(tokens);
  for (let byte = 0; byte < 256; byte++) {
    if (!ids.has(byteChar(byte)))
      throw new FormatError(`[${where}] expected a token for each byte, byte ${byte} has none`);
  }
  const mergeable = tokens.flatMap((text, id) =>
    text === undefined || text.length < 2 ? [] : [{ text, id, rank: id }],
  );
  const spec = byteLevelSpec(tokens, mergesOfVocabulary(mergeable, ids), name);
  // tiktoken looks a whole piece up before it merges.
  return { ...spec, model: { ...spec.model, ignoreMerges: true } as TokenizerSpec["model"] };
}
