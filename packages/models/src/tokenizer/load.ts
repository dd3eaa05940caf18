import { open, readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { FormatError, IoError, UnsupportedError, parseOptions } from "@llm/core";
import * as v from "valibot";
import type { Tokenizer } from "../types.js";
import {
  looksLikeTiktoken,
  preTokenizerNames,
  readTiktokenTokens,
  readVocabMerges,
  tiktokenSpec,
  type PreTokenizerName,
} from "./byte-level-vocabulary.js";
import { readCompanions, specialToken, withCompanions, type CompanionFiles, type Companions } from "./config.js";
import { readGgufVocabulary } from "./gguf-vocabulary.js";
import { compilePostProcessor } from "./post-processor.js";
import { readSentencePiece, sentencePieceSpec } from "./sentencepiece.js";
import { asObject, type TokenizerSpec } from "./spec.js";
import { readTokenizerJson, withConfiguredFrame, withFrame } from "./tokenizer-json.js";
import { PipelineTokenizer } from "./tokenizer.js";

const loadTokenizerOptions = v.strictObject({
  preTokenizer: v.optional(v.picklist(preTokenizerNames)),
  addBosToken: v.optional(v.boolean()),
  addEosToken: v.optional(v.boolean()),
  cacheSize: v.optional(v.pipe(v.number(), v.integer(), v.minValue(2)), 65536),
});

/** Options of {@link loadTokenizer}. */
export interface LoadTokenizerOptions {
  /**
   * How a byte-level vocabulary splits text, for files that do not say (vocab.json + merges.txt, tiktoken, GGUF).
   * @default what tokenizer_config.json, config.json or the vocabulary itself tell
   */
  preTokenizer?: PreTokenizerName;
  /** Put the begin token before every text. @default what the files say */
  addBosToken?: boolean;
  /** Put the end token after every text. @default what the files say */
  addEosToken?: boolean;
  /** Pieces of text whose ids are remembered, at least 2. @default 65536 */
  cacheSize?: number;
}

/**
 * Loads a tokenizer from a Hugging Face folder or from one file. In a folder the first of these is taken:
 * tokenizer.json, tokenizer.model (SentencePiece or tiktoken text), *.tiktoken, vocab.json + merges.txt, *.gguf.
 * tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat_template.jinja beside it are read too.
 * @throws {IoError} nothing to read
 * @throws {FormatError} a file that breaks its format
 * @throws {UnsupportedError} a kind of tokenizer that this version does not run (WordPiece …)
 */
export async function loadTokenizer(path: string, options: LoadTokenizerOptions = {}): Promise<Tokenizer> {
  const { preTokenizer, addBosToken, addEosToken, cacheSize } = parseOptions(
    loadTokenizerOptions,
    options,
    "loadTokenizer",
  );
  const file = await vocabularyFile(path);
  let spec = await readSpec(file, preTokenizer);
  if (addBosToken !== undefined || addEosToken !== undefined) {
    const { prefix, suffix } = compilePostProcessor(spec.postProcessor);
    spec = withFrame(spec, addBosToken ?? prefix.length > 0, addEosToken ?? suffix.length > 0);
  }
  return new PipelineTokenizer(spec, cacheSize);
}

/**
 * Makes a tokenizer from the parsed content of a tokenizer.json and, optionally, of a tokenizer_config.json.
 * @throws {FormatError} a file that breaks its format
 * @throws {UnsupportedError} a kind of tokenizer that this version does not run
 */
export function createTokenizer(tokenizerJson: unknown, tokenizerConfig?: unknown): Tokenizer {
  const companions = readCompanions({ tokenizerConfig });
  return new PipelineTokenizer(jsonSpec(tokenizerJson, companions, "tokenizer.json"));
}

function jsonSpec(json: unknown, companions: Companions, where: string): TokenizerSpec {
  return withConfiguredFrame(withCompanions(readTokenizerJson(json, companions.config, where), companions));
}

async function vocabularyFile(path: string): Promise<string> {
  const info = await stat(path).catch((error: unknown) => {
    throw new IoError(`[loadTokenizer] could not read ${path}`, { path }, error);
  });
  if (!info.isDirectory()) return path;
  const names = await readdir(path);
  const byEnd = (end: string): string | undefined => names.filter((name) => name.endsWith(end)).sort()[0];
  const found =
    ["tokenizer.json", "tokenizer.model"].find((name) => names.includes(name)) ??
    byEnd(".tiktoken") ??
    (names.includes("merges.txt") ? ["vocab.json"].find((name) => names.includes(name)) : undefined) ??
    byEnd(".gguf");
  if (found === undefined) {
    const wordPiece = names.includes("vocab.txt");
    const message = `[loadTokenizer] ${path}: expected tokenizer.json, tokenizer.model, *.tiktoken, vocab.json + merges.txt or *.gguf`;
    if (wordPiece) throw new UnsupportedError(`${message}; WordPiece (vocab.txt) is not supported`, { path });
    throw new IoError(`${message}, found ${names.slice(0, 12).join(", ") || "nothing"}`, { path });
  }
  return join(path, found);
}

async function readSpec(file: string, preTokenizer: PreTokenizerName | undefined): Promise<TokenizerSpec> {
  const name = basename(file);
  const head = await readHead(file);
  if (head.startsWith("GGUF")) return readGgufVocabulary(file, preTokenizer);
  const folder = dirname(file);
  const companions = readCompanions(await companionFiles(folder));
  if (name === "vocab.json" || name === "merges.txt") return vocabMergesSpec(folder, companions, preTokenizer);
  if (name.endsWith(".json")) return jsonSpec(await readJson(file), companions, name);
  if (looksLikeTiktoken(head)) return tiktokenFileSpec(file, companions, preTokenizer);
  if (name.endsWith(".tiktoken")) throw new FormatError(`[${name}] line 1: expected "base64 rank"`, { file });
  return sentencePieceFileSpec(file, companions);
}

async function sentencePieceFileSpec(file: string, companions: Companions): Promise<TokenizerSpec> {
  const { rest, chatTemplates } = companions.config;
  const vocabulary = readSentencePiece(await readBytes(file), basename(file));
  const tokenizerClass = String(rest["tokenizer_class"] ?? "");
  const endsOnly = /^(T5|Pegasus|Mt5|MT5)Tokenizer/.test(tokenizerClass);
  const flag = (key: string, fallback: boolean): boolean =>
    typeof rest[key] === "boolean" ? (rest[key] as boolean) : fallback;
  const spec = sentencePieceSpec(vocabulary, {
    addBos: flag("add_bos_token", !endsOnly),
    addEos: flag("add_eos_token", endsOnly),
    prefixEverySection: rest["legacy"] !== false,
  });
  const merged = withCompanions(spec, companions, true);
  const named = companions.config;
  return { ...merged, config: { ...spec.config, ...named, chatTemplates, rest: withoutClass(rest) } };
}

async function tiktokenFileSpec(
  file: string,
  companions: Companions,
  preTokenizer: PreTokenizerName | undefined,
): Promise<TokenizerSpec> {
  const name = basename(file);
  const tokens = readTiktokenTokens((await readBytes(file)).toString("latin1"), name);
  const known = knownTiktoken.find((entry) => entry.size === tokens.length);
  const split = preTokenizer ?? known?.preTokenizer;
  if (split === undefined) {
    throw new UnsupportedError(
      `[loadTokenizer] ${name}: a tiktoken vocabulary of ${tokens.length} tokens does not tell how text is split; pass {preTokenizer: ${preTokenizerNames.join(" | ")}}`,
      { file },
    );
  }
  let spec = tiktokenSpec(tokens, split, name);
  const config = { ...known?.config, ...companions.config, rest: withoutClass(companions.config.rest) };
  if (companions.addedTokens.length === 0 && known !== undefined) {
    spec = { ...spec, addedTokens: known.special().map((text, index) => specialToken(tokens.length + index, text)) };
  }
  spec = { ...withCompanions(spec, companions), config };
  return known?.addBos === true ? withFrame(spec, companions.config.rest["add_bos_token"] !== false, false) : spec;
}

/** Vocabularies that are published as bare tiktoken files, recognised by their size. */
const knownTiktoken = [
  {
    size: 151643,
    preTokenizer: "qwen2" as const,
    addBos: false,
    config: { eosToken: "<|endoftext|>", padToken: "<|endoftext|>" },
    special: (): string[] => [
      "<|endoftext|>",
      "<|im_start|>",
      "<|im_end|>",
      ...Array.from({ length: 205 }, (_, i) => `<|extra_${i}|>`),
    ],
  },
  {
    size: 128000,
    preTokenizer: "llama3" as const,
    addBos: true,
    config: { bosToken: "<|begin_of_text|>", eosToken: "<|end_of_text|>" },
    special: (): string[] => {
      const named: Record<number, string> = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
      };
      let reserved = 0;
      return Array.from({ length: 256 }, (_, i) => named[i] ?? `<|reserved_special_token_${reserved++}|>`);
    },
  },
];

async function vocabMergesSpec(
  folder: string,
  companions: Companions,
  preTokenizer: PreTokenizerName | undefined,
): Promise<TokenizerSpec> {
  const { rest } = companions.config;
  const vocab = await readJson(join(folder, "vocab.json"));
  const merges = (await readBytes(join(folder, "merges.txt"))).toString("utf8");
  const name = preTokenizer ?? (await splitOfFolder(folder, rest, Object.keys(asObject(vocab, "vocab.json")).length));
  const spec = readVocabMerges(vocab, merges, name, rest["add_prefix_space"] === true);
  const end = "<|endoftext|>";
  const isGpt2 = name === "gpt2" && companions.specialTexts.length === 0 && spec.model.tokens.includes(end);
  if (isGpt2) {
    companions = {
      ...companions,
      specialTexts: [end],
      config: { ...companions.config, bosToken: end, eosToken: end, unkToken: end },
    };
  }
  const merged = withCompanions(spec, companions);
  const framed = rest["add_bos_token"] === true ? withFrame(merged, true, rest["add_eos_token"] === true) : merged;
  return { ...framed, config: { ...framed.config, rest: withoutClass(rest) } };
}

const splitOfClass: readonly [RegExp, PreTokenizerName][] = [
  [/^qwen[23]/i, "qwen2"],
  [/^(gpt2|gptneo|gpt_neo|opt|codegen|phi$|roberta|bart)/i, "gpt2"],
  [/^(starcoder|gptbigcode|gpt_bigcode)/i, "starcoder"],
];

async function splitOfFolder(
  folder: string,
  rest: Readonly<Record<string, unknown>>,
  size: number,
): Promise<PreTokenizerName> {
  const config = (await optionalJson(join(folder, "config.json"))) as { model_type?: unknown } | undefined;
  for (const hint of [rest["tokenizer_class"], config?.model_type]) {
    const found = typeof hint === "string" ? splitOfClass.find(([pattern]) => pattern.test(hint)) : undefined;
    if (found !== undefined) return found[1];
  }
  if (size === 50257) return "gpt2";
  if (size === 151643) return "qwen2";
  throw new UnsupportedError(
    `[loadTokenizer] ${folder}: neither tokenizer_config.json nor config.json tells how text is split before merges.txt; pass {preTokenizer: ${preTokenizerNames.join(" | ")}}`,
    { folder },
  );
}

/** Converted vocabularies are saved under the generic class: the original one would rebuild its own pipeline. */
function withoutClass(rest: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const drop = ["tokenizer_class", "auto_map", "sp_model_kwargs", "legacy", "add_bos_token", "add_eos_token"];
  return Object.fromEntries(Object.entries(rest).filter(([key]) => !drop.includes(key)));
}

async function companionFiles(folder: string): Promise<CompanionFiles> {
  const [tokenizerConfig, specialTokensMap, addedTokens, templateJson, jinja] = await Promise.all([
    optionalJson(join(folder, "tokenizer_config.json")),
    optionalJson(join(folder, "special_tokens_map.json")),
    optionalJson(join(folder, "added_tokens.json")),
    optionalJson(join(folder, "chat_template.json")),
    optionalText(join(folder, "chat_template.jinja")),
  ]);
  const chatTemplates = new Map<string, string>();
  const legacy = (templateJson as { chat_template?: unknown } | undefined)?.chat_template;
  if (typeof legacy === "string") chatTemplates.set("default", legacy);
  if (jinja !== undefined) chatTemplates.set("default", jinja);
  const more = join(folder, "additional_chat_templates");
  const names = await readdir(more).catch(() => [] as string[]);
  for (const name of names.filter((entry) => entry.endsWith(".jinja")).sort()) {
    const text = await optionalText(join(more, name));
    if (text !== undefined) chatTemplates.set(name.slice(0, -".jinja".length), text);
  }
  return { tokenizerConfig, specialTokensMap, addedTokens, chatTemplates };
}

async function readHead(file: string): Promise<string> {
  const handle = await open(file).catch((error: unknown) => {
    throw new IoError(`[loadTokenizer] could not read ${file}`, { file }, error);
  });
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(1024), 0, 1024, 0);
    return buffer.toString("latin1", 0, bytesRead);
  } finally {
    await handle.close();
  }
}

async function readBytes(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new IoError(`[loadTokenizer] could not read ${file}`, { file }, error);
  }
}

async function readJson(file: string): Promise<unknown> {
  const bytes = await readBytes(file);
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (error) {
    throw new FormatError(`[loadTokenizer] ${file}: expected JSON: ${(error as Error).message}`, { file }, error);
  }
}

async function optionalJson(file: string): Promise<unknown> {
  return (await exists(file)) ? readJson(file) : undefined;
}

async function optionalText(file: string): Promise<string | undefined> {
  return (await exists(file)) ? (await readBytes(file)).toString("utf8") : undefined;
}

async function exists(file: string): Promise<boolean> {
  return stat(file).then(
    (info) => info.isFile(),
    () => false,
  );
}
