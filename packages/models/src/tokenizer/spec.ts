/**
 * The one form that every tokenizer file is turned into before it runs: the fields of Hugging Face's tokenizer.json, with
 * the vocabulary and the merges in compact tables instead of JSON.
 */
import { FormatError } from "@llm/core";

/** A step of the pipeline as tokenizer.json writes it: `{type: "Split", …}`. */
export interface ComponentJson {
  type: string;
  [key: string]: unknown;
}

/** What a Split or Replace looks for: a literal or an Oniguruma regular expression. */
export type PatternJson = { String: string } | { Regex: string };

/** A token that is cut out of the text before the model sees it. */
export interface AddedToken {
  id: number;
  content: string;
  /** Matches only where no word character touches it. */
  singleWord: boolean;
  /** Swallows white space before it. */
  lstrip: boolean;
  /** Swallows white space after it. */
  rstrip: boolean;
  /** Is looked for in the normalised text, not in the raw one. */
  normalized: boolean;
  /** Left out by `skipSpecialTokens`, not recognised with `parseSpecial: false`. */
  special: boolean;
}

/** Merges of a byte-pair vocabulary, one per index. Lower rank merges first; equal ranks merge from left to right. */
export interface MergeTable {
  left: Int32Array;
  right: Int32Array;
  merged: Int32Array;
  rank: Int32Array;
}

export interface BpeSpec {
  type: "BPE";
  /** Token text by id; holes are undefined. */
  tokens: (string | undefined)[];
  merges: MergeTable;
  unkToken: string | undefined;
  /** Characters outside the vocabulary become `<0xHH>` tokens. */
  byteFallback: boolean;
  /** A run of unknown characters gives one unknown token. */
  fuseUnk: boolean;
  /** A whole pre-token that is in the vocabulary is taken as it is. */
  ignoreMerges: boolean;
  /** Ids that text never forms (control tokens of a SentencePiece vocabulary). */
  unmatchable?: ReadonlySet<number>;
}

export interface UnigramSpec {
  type: "Unigram";
  tokens: (string | undefined)[];
  /** Log-probability of each piece. */
  scores: Float64Array;
  unkId: number | undefined;
  byteFallback: boolean;
  /** Ids that text never forms. */
  unmatchable?: ReadonlySet<number>;
  /** Adds scores in single precision, as SentencePiece does. */
  singlePrecision?: boolean;
}

/** Everything that a tokenizer does. */
export interface TokenizerSpec {
  model: BpeSpec | UnigramSpec;
  addedTokens: AddedToken[];
  normalizer: ComponentJson | null;
  preTokenizer: ComponentJson | null;
  postProcessor: ComponentJson | null;
  decoder: ComponentJson | null;
  config: TokenizerConfig;
}

/** What tokenizer_config.json and its companions say. */
export interface TokenizerConfig {
  bosToken?: string;
  eosToken?: string;
  padToken?: string;
  unkToken?: string;
  /** Jinja sources by name; the model's own template is `default`. */
  chatTemplates: ReadonlyMap<string, string>;
  /** The other keys of tokenizer_config.json, written back by `save`. */
  rest: Readonly<Record<string, unknown>>;
}

export const emptyConfig: TokenizerConfig = { chatTemplates: new Map(), rest: {} };

/** Turns an unknown JSON value into an object or says where it is not one. */
export function asObject(value: unknown, where: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FormatError(`[${where}] expected an object, got ${describe(value)}`, { where });
  }
  return value as Record<string, unknown>;
}

/** Turns an unknown JSON value into a pipeline step (or null). */
export function asComponent(value: unknown, where: string): ComponentJson | null {
  if (value === null || value === undefined) return null;
  const object = asObject(value, where);
  if (typeof object["type"] !== "string") {
    throw new FormatError(`[${where}] expected a step with a "type", got ${describe(object["type"])}`, { where });
  }
  return object as ComponentJson;
}

/** A short name for a JSON value in messages. */
export function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object") return "an object";
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
