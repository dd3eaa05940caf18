import { FormatError, IoError, LlmError, UnsupportedError } from "@llm/core";
import { gguf } from "@huggingface/gguf";
import { mergesOfList } from "./bpe.js";
import { byteLevelSpec, type PreTokenizerName } from "./byte-level-vocabulary.js";
import { specialToken } from "./config.js";
import { pieceType, sentencePieceSpec } from "./sentencepiece.js";
import { describe, type TokenizerConfig, type TokenizerSpec } from "./spec.js";
import { idsOf, withFrame } from "./tokenizer-json.js";

/** llama.cpp's names of pre-tokenizers that are known here. */
const preTokenizers: Readonly<Record<string, PreTokenizerName>> = {
  "gpt-2": "gpt2",
  "phi-2": "gpt2",
  mpt: "gpt2",
  olmo: "gpt2",
  jais: "gpt2",
  qwen2: "qwen2",
  "deepseek-r1-qwen": "qwen2",
  megrez: "qwen2",
  "llama-bpe": "llama3",
  "llama-v3": "llama3",
  llama3: "llama3",
  starcoder: "starcoder",
  refact: "starcoder",
  "command-r": "starcoder",
  smollm: "starcoder",
  codeshell: "starcoder",
};

/**
 * Reads the vocabulary inside a GGUF file (`tokenizer.ggml.*`): byte-level BPE (`gpt2`), SentencePiece BPE (`llama`) and
 * Unigram (`t5`).
 * @throws {UnsupportedError} another kind, an unknown `tokenizer.ggml.pre`
 * @throws {FormatError} no GGUF file, or one without a vocabulary
 */
export async function readGgufVocabulary(path: string, preTokenizer?: PreTokenizerName): Promise<TokenizerSpec> {
  let metadata: Record<string, unknown>;
  try {
    metadata = (await gguf(path, { allowLocalFile: true })).metadata as Record<string, unknown>;
  } catch (error) {
    if (LlmError.isInstance(error)) throw error;
    if ((error as NodeJS.ErrnoException).code !== undefined) {
      throw new IoError(`[loadTokenizer] could not read ${path}`, { file: path }, error);
    }
    throw new FormatError(
      `[loadTokenizer] ${path}: expected a GGUF file: ${(error as Error).message}`,
      { file: path },
      error,
    );
  }
  return ggufSpec(metadata, path, preTokenizer);
}

/** Turns the metadata of a GGUF file into a pipeline. */
export function ggufSpec(
  metadata: Record<string, unknown>,
  where: string,
  preTokenizer?: PreTokenizerName,
): TokenizerSpec {
  const get = (key: string): unknown => metadata[`tokenizer.ggml.${key}`];
  const texts = list<string>(get("tokens"), "string", "tokens", where);
  const kind = get("model");
  const types =
    get("token_type") === undefined
      ? texts.map(() => 1)
      : list<number>(get("token_type"), "number", "token_type", where);
  if (types.length !== texts.length) {
    throw new FormatError(
      `[${where}] expected ${texts.length} entries in tokenizer.ggml.token_type, got ${types.length}`,
    );
  }
  const flag = (key: string, fallback: boolean): boolean => {
    const value = get(key);
    return typeof value === "boolean" ? value : fallback;
  };
  const id = (key: string): number | undefined => {
    const value = get(key);
    return typeof value === "number" && value < texts.length ? value : undefined;
  };
  const bosId = id("bos_token_id");
  const eosId = id("eos_token_id");
  const padId = id("padding_token_id");
  const unkId = id("unknown_token_id");
  const config: TokenizerConfig = {
    ...(bosId === undefined ? {} : { bosToken: texts[bosId]! }),
    ...(eosId === undefined ? {} : { eosToken: texts[eosId]! }),
    ...(padId === undefined ? {} : { padToken: texts[padId]! }),
    ...(unkId === undefined ? {} : { unkToken: texts[unkId]! }),
    chatTemplates: templates(metadata),
    rest: {},
  };

  if (kind === "llama" || kind === "t5") {
    const scores = list<number>(get("scores"), "number", "scores", where);
    const charsmap = get("precompiled_charsmap");
    const spec = sentencePieceSpec(
      {
        kind: kind === "llama" ? "bpe" : "unigram",
        pieces: texts.map((text, index) => ({ text, score: scores[index] ?? 0, type: types[index]! })),
        addDummyPrefix: flag("add_space_prefix", true),
        removeExtraWhitespaces: flag("remove_extra_whitespaces", false),
        charsmap: Array.isArray(charsmap) ? Uint8Array.from(charsmap as number[]) : undefined,
        unkId: unkId ?? (kind === "llama" ? 0 : 2),
        bosId,
        eosId,
        padId,
      },
      {
        addBos: flag("add_bos_token", kind === "llama"),
        addEos: flag("add_eos_token", kind === "t5"),
        prefixEverySection: true,
      },
    );
    return { ...spec, config: { ...config, unkToken: spec.config.unkToken ?? config.unkToken! } };
  }
  if (kind !== "gpt2") {
    throw new UnsupportedError(
      `[${where}] tokenizer.ggml.model ${describe(kind)} is not supported; supported: gpt2, llama, t5`,
    );
  }
  const pre = get("pre");
  const name = preTokenizer ?? preTokenizers[String(pre)];
  if (name === undefined) {
    throw new UnsupportedError(
      `[${where}] tokenizer.ggml.pre ${describe(pre)} is not known; load the model's tokenizer.json or pass {preTokenizer}. Known: ${Object.keys(preTokenizers).join(", ")}`,
    );
  }
  const merges = mergesOfList(list<string>(get("merges"), "string", "merges", where), idsOf(texts), where);
  const spec: TokenizerSpec = {
    ...byteLevelSpec(texts, merges, name),
    addedTokens: texts.flatMap((content, index) =>
      types[index] === pieceType.control || types[index] === pieceType.userDefined
        ? [specialToken(index, content, types[index] === pieceType.control)]
        : [],
    ),
    config,
  };
  return withFrame(spec, flag("add_bos_token", name === "llama3"), flag("add_eos_token", false));
}

function templates(metadata: Record<string, unknown>): Map<string, string> {
  const found = new Map<string, string>();
  for (const [key, value] of Object.entries(metadata)) {
    if (typeof value !== "string" || !key.startsWith("tokenizer.chat_template")) continue;
    const name = key.slice("tokenizer.chat_template".length);
    if (name === "") found.set("default", value);
    else if (name.startsWith(".")) found.set(name.slice(1), value);
  }
  return found;
}

function list<T extends string | number>(value: unknown, type: "string" | "number", key: string, where: string): T[] {
  if (!Array.isArray(value) || value.length === 0 || typeof value[0] !== type) {
    throw new FormatError(`[${where}] expected an array of ${type}s "tokenizer.ggml.${key}", got ${describe(value)}`);
  }
  return value as T[];
}
