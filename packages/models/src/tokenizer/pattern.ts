import { FormatError, UnsupportedError } from "@llm/core";
import * as huggingface from "@huggingface/tokenizers";
import { asObject, describe } from "./spec.js";

/** The package's declarations do not resolve under NodeNext; this is the part of them that is used. */
const { SplitPreTokenizer } = huggingface as unknown as {
  SplitPreTokenizer: new (config: object) => { pattern: RegExp | null };
};

/** The split that GPT-2's byte-level step has built in. */
export const gpt2Pattern = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
/** The split of Qwen, Qwen2, Qwen2.5 and Qwen3: every digit stands alone. */
export const qwen2Pattern = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
/** The split of Llama 3 and cl100k: digits in groups of at most three. */
export const llama3Pattern = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/**
 * Compiles an Oniguruma regular expression, the dialect of tokenizer.json, to a global JavaScript one.
 * @throws {UnsupportedError} a construct that has no equivalent
 */
export function compileRegex(source: string): RegExp {
  let pattern: RegExp | null;
  try {
    pattern = new SplitPreTokenizer({
      type: "Split",
      pattern: { Regex: source },
      behavior: "Isolated",
      invert: true,
    }).pattern;
  } catch (error) {
    throw new UnsupportedError(
      `[loadTokenizer] the regular expression ${describe(source)} cannot be expressed in JavaScript`,
      { source },
      error,
    );
  }
  if (pattern === null) throw new FormatError(`[loadTokenizer] expected a regular expression, got ${describe(source)}`);
  // Unicode case folding: LONG S folds to s and KELVIN SIGN to k; the translation folds ASCII only.
  if (!source.includes("(?i:")) return pattern;
  return new RegExp(pattern.source.replaceAll("[sS]", "[sS\u017f]").replaceAll("[kK]", "[kK\u212a]"), pattern.flags);
}

/** Compiles `{String}` or `{Regex}` to a global regular expression. */
export function compilePattern(value: unknown, where: string): RegExp {
  const object = asObject(value, where);
  if (typeof object["Regex"] === "string") return compileRegex(object["Regex"]);
  if (typeof object["String"] === "string") return new RegExp(escapeRegex(object["String"]), "gu");
  throw new FormatError(
    `[${where}] expected a pattern {String} or {Regex}, got keys ${Object.keys(object).join(", ")}`,
  );
}

/** Escapes a literal for use in a regular expression with the `u` flag. */
export function escapeRegex(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}

/** Cuts a text into matches of a global pattern and what lies between them; nothing is lost. */
export function splitAround(text: string, pattern: RegExp): { text: string; match: boolean }[] {
  const parts: { text: string; match: boolean }[] = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (match[0].length === 0) continue;
    if (match.index > end) parts.push({ text: text.slice(end, match.index), match: false });
    parts.push({ text: match[0], match: true });
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), match: false });
  return parts;
}

/** The pieces of `splitAround`, in a faster way when the matches cover the whole text. */
export function isolate(text: string, pattern: RegExp): string[] {
  const matches = text.match(pattern);
  if (matches === null) return [text];
  let covered = 0;
  for (const match of matches) covered += match.length;
  return covered === text.length ? matches : splitAround(text, pattern).map((part) => part.text);
}
