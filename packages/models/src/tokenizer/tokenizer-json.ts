import { FormatError, UnsupportedError } from "@llm/core";
import { mergesOfList } from "./bpe.js";
import { framePostProcessor } from "./post-processor.js";
import {
  asComponent,
  asObject,
  describe,
  type AddedToken,
  type BpeSpec,
  type ComponentJson,
  type TokenizerConfig,
  type TokenizerSpec,
  type UnigramSpec,
} from "./spec.js";

/**
 * Reads the parsed content of a tokenizer.json.
 * @param where  name of the file, for messages
 * @throws {FormatError} a key of the wrong kind, a merge outside the vocabulary
 * @throws {UnsupportedError} WordPiece, WordLevel, subword affixes, dropout
 */
export function readTokenizerJson(value: unknown, config: TokenizerConfig, where: string): TokenizerSpec {
  const json = asObject(value, where);
  const model = asObject(json["model"], `${where}: model`);
  const added = json["added_tokens"] ?? [];
  if (!Array.isArray(added))
    throw new FormatError(`[${where}] expected an array "added_tokens", got ${describe(added)}`);
  return {
    model: readModel(model, where),
    addedTokens: added.map((token, index) => {
      const object = asObject(token, `${where}: added_tokens[${index}]`);
      return readAddedToken(object["id"], object, `${where}: added_tokens[${index}]`);
    }),
    normalizer: asComponent(json["normalizer"], `${where}: normalizer`),
    preTokenizer: asComponent(json["pre_tokenizer"], `${where}: pre_tokenizer`),
    postProcessor: asComponent(json["post_processor"], `${where}: post_processor`),
    decoder: asComponent(json["decoder"], `${where}: decoder`),
    config,
  };
}

/** Reads one added token as tokenizer.json and `added_tokens_decoder` write it. */
export function readAddedToken(id: unknown, object: Record<string, unknown>, where: string): AddedToken {
  const content = object["content"];
  if (typeof id !== "number" || !Number.isInteger(id) || id < 0) {
    throw new FormatError(`[${where}] expected an id of at least 0, got ${describe(id)}`);
  }
  if (typeof content !== "string")
    throw new FormatError(`[${where}] expected a string "content", got ${describe(content)}`);
  const special = object["special"] === true;
  return {
    id,
    content,
    singleWord: object["single_word"] === true,
    lstrip: object["lstrip"] === true,
    rstrip: object["rstrip"] === true,
    normalized: typeof object["normalized"] === "boolean" ? object["normalized"] : !special,
    special,
  };
}

function readModel(model: Record<string, unknown>, where: string): BpeSpec | UnigramSpec {
  const vocab = model["vocab"];
  const type = model["type"] ?? (Array.isArray(vocab) ? "Unigram" : Array.isArray(model["merges"]) ? "BPE" : undefined);
  if (type === "Unigram") return readUnigram(model, where);
  if (type !== "BPE") {
    throw new UnsupportedError(
      `[loadTokenizer] ${where}: model ${describe(type)} is not supported; supported: BPE, Unigram`,
      {
        type,
      },
    );
  }
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix", "dropout"]) {
    if (model[key]) {
      throw new UnsupportedError(
        `[loadTokenizer] ${where}: a BPE model with ${key} = ${describe(model[key])} is not supported`,
      );
    }
  }
  const tokens = tokensById(asObject(vocab, `${where}: model.vocab`), `${where}: model.vocab`);
  const ids = idsOf(tokens);
  const merges = model["merges"];
  if (!Array.isArray(merges))
    throw new FormatError(`[${where}] expected an array "model.merges", got ${describe(merges)}`);
  return {
    type: "BPE",
    tokens,
    merges: mergesOfList(merges, ids, where),
    unkToken: typeof model["unk_token"] === "string" ? model["unk_token"] : undefined,
    byteFallback: model["byte_fallback"] === true,
    fuseUnk: model["fuse_unk"] === true,
    ignoreMerges: model["ignore_merges"] === true,
  };
}

function readUnigram(model: Record<string, unknown>, where: string): UnigramSpec {
  const vocab = model["vocab"];
  if (!Array.isArray(vocab))
    throw new FormatError(`[${where}] expected an array "model.vocab", got ${describe(vocab)}`);
  const scores = new Float64Array(vocab.length);
  const tokens = vocab.map((entry: unknown, id) => {
    const [token, score] = Array.isArray(entry) ? (entry as unknown[]) : [];
    if (typeof token !== "string" || typeof score !== "number") {
      throw new FormatError(`[${where}] model.vocab[${id}]: expected [piece, score], got ${describe(entry)}`);
    }
    scores[id] = score;
    return token;
  });
  const unkId = model["unk_id"];
  return {
    type: "Unigram",
    tokens,
    scores,
    unkId: typeof unkId === "number" ? unkId : undefined,
    byteFallback: model["byte_fallback"] === true,
  };
}

/** `{token: id}` → tokens by id. */
export function tokensById(vocab: Record<string, unknown>, where: string): (string | undefined)[] {
  const texts = Object.keys(vocab);
  const tokens = new Array<string | undefined>(texts.length).fill(undefined);
  for (const token of texts) {
    const id = vocab[token];
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 2 ** 24) {
      throw new FormatError(
        `[${where}] token ${JSON.stringify(token)}: expected an id of at least 0, got ${describe(id)}`,
      );
    }
    if (tokens[id] !== undefined) {
      throw new FormatError(
        `[${where}] id ${id} belongs to ${JSON.stringify(tokens[id])} and ${JSON.stringify(token)}`,
      );
    }
    while (tokens.length < id) tokens.push(undefined);
    tokens[id] = token;
  }
  return tokens;
}

const known = new WeakMap<readonly (string | undefined)[], Map<string, number>>();

/** Tokens by id → token → id. Remembered with the list, which must not change afterwards. */
export function idsOf(tokens: readonly (string | undefined)[]): ReadonlyMap<string, number> {
  let ids = known.get(tokens);
  if (ids === undefined) {
    ids = new Map();
    for (let id = 0; id < tokens.length; id++) {
      const token = tokens[id];
      if (token !== undefined) ids.set(token, id);
    }
    known.set(tokens, ids);
  }
  return ids;
}

/** Classes of transformers that build the begin and end tokens from `add_bos_token` / `add_eos_token`. */
const framedByConfig = /^(Llama|CodeLlama|Gemma|Cohere)Tokenizer(Fast)?$/;

/** Lets `add_bos_token` and `add_eos_token` of tokenizer_config.json overrule the file's post-processor where transformers does. */
export function withConfiguredFrame(spec: TokenizerSpec): TokenizerSpec {
  const { add_bos_token: addBos, add_eos_token: addEos, tokenizer_class: tokenizerClass } = spec.config.rest;
  if (!framedByConfig.test(String(tokenizerClass)) || (typeof addBos !== "boolean" && typeof addEos !== "boolean")) {
    return spec;
  }
  return withFrame(spec, addBos !== false, addEos === true);
}

/** Replaces what the post-processor adds: the begin token, the end token, both or none (those that the model has). */
export function withFrame(spec: TokenizerSpec, addBos: boolean, addEos: boolean): TokenizerSpec {
  const find = (content: string | undefined): { content: string; id: number } | undefined => {
    if (content === undefined) return undefined;
    const id = spec.addedTokens.find((token) => token.content === content)?.id ?? spec.model.tokens.indexOf(content);
    return id < 0 ? undefined : { content, id };
  };
  const { bosToken, eosToken } = spec.config;
  const frame = framePostProcessor(addBos ? find(bosToken) : undefined, addEos ? find(eosToken) : undefined);
  const kept = byteLevelStep(spec.postProcessor);
  return { ...spec, postProcessor: kept && frame ? { type: "Sequence", processors: [kept, frame] } : (frame ?? kept) };
}

function byteLevelStep(component: ComponentJson | null): ComponentJson | null {
  if (component === null || component.type === "ByteLevel") return component;
  const steps = component["processors"];
  if (component.type !== "Sequence" || !Array.isArray(steps)) return null;
  return (steps as ComponentJson[]).find((step) => step.type === "ByteLevel") ?? null;
}
