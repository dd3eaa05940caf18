import { FormatError } from "@llm/core";
import { asObject, describe, type AddedToken, type TokenizerConfig, type TokenizerSpec } from "./spec.js";
import { readAddedToken } from "./tokenizer-json.js";

/** The parsed companions of a vocabulary in a Hugging Face folder; absent ones are undefined. */
export interface CompanionFiles {
  /** tokenizer_config.json */
  tokenizerConfig?: unknown;
  /** special_tokens_map.json */
  specialTokensMap?: unknown;
  /** added_tokens.json */
  addedTokens?: unknown;
  /** chat_template.jinja, and the files of additional_chat_templates/ by name */
  chatTemplates?: ReadonlyMap<string, string>;
}

/** What the companions say. */
export interface Companions {
  config: TokenizerConfig;
  /** Tokens with ids of their own. */
  addedTokens: AddedToken[];
  /** Texts that are special wherever they are in the vocabulary. */
  specialTexts: string[];
}

const roles = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;
const ownKeys = new Set<string>([...roles, "chat_template", "added_tokens_decoder"]);

/**
 * Reads tokenizer_config.json and its companions; the config wins over special_tokens_map.json, chat_template.jinja over
 * both.
 * @throws {FormatError} a key of the wrong kind
 */
export function readCompanions(files: CompanionFiles): Companions {
  const config = asObject(files.tokenizerConfig ?? {}, "tokenizer_config.json");
  const map = asObject(files.specialTokensMap ?? {}, "special_tokens_map.json");
  const role = (key: string): string | undefined =>
    tokenText(key in config && config[key] !== null ? config[key] : map[key], key);
  const templates = new Map<string, string>();
  const own = config["chat_template"];
  if (typeof own === "string") templates.set("default", own);
  else if (Array.isArray(own)) {
    for (const entry of own) {
      const { name, template } = asObject(entry, "tokenizer_config.json: chat_template");
      if (typeof name !== "string" || typeof template !== "string") {
        throw new FormatError(
          `[tokenizer_config.json] chat_template: expected {name, template}, got ${describe(entry)}`,
        );
      }
      templates.set(name, template);
    }
  } else if (own !== undefined && own !== null) {
    throw new FormatError(`[tokenizer_config.json] chat_template: expected a string or an array, got ${describe(own)}`);
  }
  for (const [name, template] of files.chatTemplates ?? []) templates.set(name, template);

  const [bosToken, eosToken, padToken, unkToken] = roles.map(role);
  const specialTexts = [bosToken, eosToken, padToken, unkToken].filter((text) => text !== undefined);
  for (const source of [config, map]) {
    for (const key of ["additional_special_tokens", "extra_special_tokens"]) {
      const list = source[key];
      const entries = Array.isArray(list) ? list : typeof list === "object" && list !== null ? Object.values(list) : [];
      for (const entry of entries) {
        const text = tokenText(entry, key);
        if (text !== undefined) specialTexts.push(text);
      }
    }
  }

  const addedTokens: AddedToken[] = [];
  for (const [id, token] of Object.entries(asObject(config["added_tokens_decoder"] ?? {}, "added_tokens_decoder"))) {
    const where = `tokenizer_config.json: added_tokens_decoder[${id}]`;
    addedTokens.push(readAddedToken(Number(id), asObject(token, where), where));
  }
  for (const [content, id] of Object.entries(asObject(files.addedTokens ?? {}, "added_tokens.json"))) {
    if (addedTokens.some((token) => token.content === content)) continue;
    const special = specialTexts.includes(content);
    addedTokens.push(readAddedToken(id, { content, special }, `added_tokens.json: ${JSON.stringify(content)}`));
  }
  return {
    config: {
      ...(bosToken === undefined ? {} : { bosToken }),
      ...(eosToken === undefined ? {} : { eosToken }),
      ...(padToken === undefined ? {} : { padToken }),
      ...(unkToken === undefined ? {} : { unkToken }),
      chatTemplates: templates,
      rest: Object.fromEntries(Object.entries(config).filter(([key]) => !ownKeys.has(key))),
    },
    addedTokens,
    specialTexts: [...new Set(specialTexts)],
  };
}

function tokenText(value: unknown, key: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  const text = typeof value === "object" ? (value as { content?: unknown }).content : value;
  if (typeof text !== "string")
    throw new FormatError(`[tokenizer_config.json] ${key}: expected a token, got ${describe(value)}`);
  return text;
}

/**
 * Adds the companions' tokens to those of the vocabulary. A token with the id and text of one that is there replaces its
 * flags; special texts that are plain entries of the vocabulary become added tokens.
 * @param raw  look for all of them in the raw text (vocabularies whose normaliser would change them)
 * @throws {FormatError} an id that belongs to another token
 */
export function withCompanions(spec: TokenizerSpec, companions: Companions, raw = false): TokenizerSpec {
  const byId = new Map(spec.addedTokens.map((token) => [token.id, token]));
  for (const token of companions.addedTokens) {
    const there = byId.get(token.id)?.content ?? spec.model.tokens[token.id];
    if (there !== undefined && there !== token.content) {
      throw new FormatError(
        `[loadTokenizer] added token ${JSON.stringify(token.content)} has id ${token.id}, which belongs to ${JSON.stringify(there)}`,
      );
    }
    byId.set(token.id, raw ? { ...token, normalized: false } : token);
  }
  const added = new Set([...byId.values()].map((token) => token.content));
  for (const content of companions.specialTexts) {
    if (added.has(content)) continue;
    const id = spec.model.tokens.indexOf(content);
    if (id >= 0) byId.set(id, specialToken(id, content));
  }
  return { ...spec, addedTokens: [...byId.values()].sort((a, b) => a.id - b.id), config: companions.config };
}

/** A special token that is looked for in the raw text. */
export function specialToken(id: number, content: string, special = true): AddedToken {
  return { id, content, singleWord: false, lstrip: false, rstrip: false, normalized: false, special };
}
