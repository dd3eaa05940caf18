import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { IoError, NumericError, UnsupportedError } from "@llm/core";
import { namedTemplates, renderChatTemplate, resolveTemplate } from "../chat-template.js";
import type {
  ChatMessage,
  ChatTemplateOptions,
  DecodeOptions,
  DecodeStream,
  EncodeOptions,
  TokenIds,
  Tokenizer,
} from "../types.js";
import { AddedTokenMatcher } from "./added-tokens.js";
import { BytePairModel } from "./bpe.js";
import { compileDecoder, Utf8Reader, type DecodePlan } from "./decoder.js";
import { compileNormalizer, type Normalizer } from "./normalizer.js";
import { IdBuffer } from "./piece-cache.js";
import { compilePostProcessor, type Frame } from "./post-processor.js";
import { compilePreTokenizer, type PreTokenizer } from "./pre-tokenizer.js";
import { tokenizerConfigText, tokenizerJsonText } from "./save.js";
import type { AddedToken, TokenizerSpec } from "./spec.js";
import { idsOf } from "./tokenizer-json.js";
import { UnigramModel } from "./unigram.js";

const encoder = new TextEncoder();
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const noBytes = new Uint8Array(0);
/** SentencePiece's mark of a space. */
const mark = "▁";

/**
 * A tokenizer that runs the pipeline of a tokenizer.json: added tokens are cut out, the rest is normalised, split and
 * encoded by the model; the post-processor's ids go around it. Every file form is turned into this one by its loader.
 */
export class PipelineTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosTokenId: number | undefined;
  readonly eosTokenId: number | undefined;
  readonly padTokenId: number | undefined;
  readonly unkTokenId: number | undefined;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly chatTemplate: string | undefined;

  readonly #spec: TokenizerSpec;
  readonly #model: BytePairModel | UnigramModel;
  readonly #normalize: Normalizer;
  readonly #preTokenizer: PreTokenizer;
  readonly #frame: Frame;
  readonly #plan: DecodePlan;
  readonly #tokens: (string | undefined)[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #addedIds = new Map<string, number>();
  readonly #added = new Map<number, AddedToken>();
  readonly #rawMatcher: Record<"all" | "plain", AddedTokenMatcher>;
  readonly #normalizedMatcher: Record<"all" | "plain", AddedTokenMatcher>;
  /** Text may be cut before a run of marks without changing any merge. (Sums of a Unigram path would round in another way.) */
  readonly #cutAtMarks: boolean;
  readonly #bytes: (Uint8Array | undefined)[] = [];
  /** Text of tokens that are whole characters; null for those that are not. */
  readonly #texts: (string | null | undefined)[] = [];

  /**
   * @param cacheSize  most pieces whose ids are remembered
   * @throws {UnsupportedError} a step of the pipeline that language models do not use
   */
  constructor(spec: TokenizerSpec, cacheSize = 65536) {
    this.#spec = spec;
    this.#normalize = compileNormalizer(spec.normalizer);
    this.#preTokenizer = compilePreTokenizer(spec.preTokenizer);
    this.#frame = compilePostProcessor(spec.postProcessor);
    this.#plan = compileDecoder(spec.decoder);

    const own = idsOf(spec.model.tokens);
    this.#model =
      spec.model.type === "BPE"
        ? new BytePairModel(spec.model, own, this.#preTokenizer.byteLevel, cacheSize)
        : new UnigramModel(spec.model, own, cacheSize);
    this.#cutAtMarks =
      spec.model.type === "BPE" &&
      !this.#preTokenizer.byteLevel &&
      !spec.model.tokens.some((token) => token !== undefined && /[^▁]▁/.test(token));

    this.#tokens = spec.model.tokens.slice();
    this.#ids = own;
    const special = new Map<string, number>();
    for (const token of spec.addedTokens) {
      this.#tokens[token.id] = token.content;
      this.#addedIds.set(token.content, token.id);
      this.#added.set(token.id, token);
      if (token.special) special.set(token.content, token.id);
    }
    this.vocabSize = this.#tokens.length;
    const { bosToken, eosToken, padToken, unkToken } = spec.config;
    const idOf = (token: string | undefined): number | undefined =>
      token === undefined ? undefined : this.tokenToId(token);
    this.bosTokenId = idOf(bosToken);
    this.eosTokenId = idOf(eosToken);
    this.padTokenId = idOf(padToken);
    this.unkTokenId = idOf(unkToken) ?? (spec.model.type === "BPE" ? idOf(spec.model.unkToken) : spec.model.unkId);
    this.specialTokens = special;
    this.chatTemplate = spec.config.chatTemplates.get("default");

    const matchers = (normalized: boolean): Record<"all" | "plain", AddedTokenMatcher> => {
      const tokens = spec.addedTokens.filter((token) => token.normalized === normalized);
      const textOf = normalized ? this.#normalize : (content: string): string => content;
      return {
        all: new AddedTokenMatcher(tokens, textOf),
        plain: new AddedTokenMatcher(
          tokens.filter((token) => !token.special),
          textOf,
        ),
      };
    };
    this.#rawMatcher = matchers(false);
    this.#normalizedMatcher = matchers(true);
  }

  encode(text: string, options: EncodeOptions = {}): TokenIds {
    const which = options.parseSpecial === false ? "plain" : "all";
    const out = new IdBuffer((text.length >> 2) + 16);
    const framed = options.addSpecialTokens !== false;
    if (framed) out.pushAll(this.#frame.prefix);
    const whole = /\p{Cs}/u.test(text) ? text.replace(/\p{Cs}/gu, "\ufffd") : text;
    let first = true;
    for (const section of this.#rawMatcher[which].split(whole)) {
      if (typeof section === "number") out.push(section);
      else {
        for (const part of this.#normalizedMatcher[which].split(this.#normalize(section))) {
          if (typeof part === "number") out.push(part);
          else this.#encodePart(part, first, out);
          first = false;
        }
      }
      first = false;
    }
    if (framed) out.pushAll(this.#frame.suffix);
    return out.slice();
  }

  #encodePart(text: string, first: boolean, out: IdBuffer): void {
    for (const piece of this.#preTokenizer.split(text, first)) {
      if (!this.#cutAtMarks) {
        if (piece !== "") this.#model.encode(piece, out);
        continue;
      }
      let start = 0;
      for (let at = piece.indexOf(mark, 1); at > 0; at = piece.indexOf(mark, at + 1)) {
        if (piece[at - 1] === mark) continue;
        this.#model.encode(piece.slice(start, at), out);
        start = at;
      }
      if (start < piece.length) this.#model.encode(start === 0 ? piece : piece.slice(start), out);
    }
  }

  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const stream = this.decodeStream(options);
    let text = "";
    for (let i = 0; i < ids.length; i++) text += stream.push(ids[i]!);
    return text + stream.end();
  }

  decodeStream(options: DecodeOptions = {}): DecodeStream {
    const reader = new Utf8Reader(this.#plan.replaceEachByte);
    const skip = options.skipSpecialTokens === true;
    const { content, count } = this.#plan.strip;
    let left = count;
    const trim = (text: string): string => {
      if (left === 0 || text === "") return text;
      let drop = 0;
      while (drop < left && text.startsWith(content, drop)) drop++;
      left = drop < text.length ? 0 : left - drop;
      return text.slice(drop);
    };
    return {
      push: (id) => {
        this.#check(id);
        if (skip && this.#added.get(id)?.special === true) return "";
        const text = reader.unfinished ? null : this.#text(id);
        return trim(text ?? reader.push(this.#bytesOf(id)));
      },
      end: () => trim(reader.end()),
    };
  }

  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  tokenToId(token: string): number | undefined {
    return this.#addedIds.get(token) ?? this.#ids.get(token);
  }

  tokenBytes(id: number): Uint8Array {
    this.#check(id);
    return this.#bytesOf(id).slice();
  }

  applyChatTemplate(messages: ChatMessage[], options: ChatTemplateOptions = {}): string {
    const own = this.#spec.config.chatTemplates;
    const tools = options.tools !== undefined && options.tools.length > 0 ? options.tools : undefined;
    const source =
      options.template === undefined
        ? ((tools ? own.get("tool_use") : undefined) ?? own.get("default"))
        : resolveTemplate(options.template, own);
    if (source === undefined) {
      const known = [...own.keys(), ...Object.keys(namedTemplates)].join(", ");
      throw new UnsupportedError(
        `[applyChatTemplate] the model has no chat template; pass {template}: Jinja source or one of ${known}`,
      );
    }
    const { bosToken, eosToken, padToken, unkToken } = this.#spec.config;
    return renderChatTemplate(source, {
      messages,
      tools,
      addGenerationPrompt: options.addGenerationPrompt ?? false,
      bosToken,
      eosToken,
      variables: {
        ...(padToken === undefined ? {} : { pad_token: padToken }),
        ...(unkToken === undefined ? {} : { unk_token: unkToken }),
        ...options.variables,
      },
    });
  }

  async save(folder: string): Promise<void> {
    const files = {
      "tokenizer.json": tokenizerJsonText(this.#spec),
      "tokenizer_config.json": tokenizerConfigText(this.#spec),
    };
    try {
      await mkdir(folder, { recursive: true });
      for (const [name, text] of Object.entries(files)) {
        const path = join(folder, name);
        const partial = `${path}.${process.pid}.partial`;
        await writeFile(partial, text);
        await rename(partial, path);
      }
    } catch (error) {
      throw new IoError(`[save] could not write the tokenizer to ${folder}`, { folder }, error);
    }
  }

  #check(id: number): void {
    if (!Number.isInteger(id) || id < 0) {
      throw new NumericError(`[decode] expected token ids in [0, ${this.vocabSize}), got ${id}`, { id });
    }
  }

  /** Ids beyond the vocabulary (padding rows of an embedding) stand for nothing. */
  #bytesOf(id: number): Uint8Array {
    const known = this.#bytes[id];
    if (known !== undefined) return known;
    const token = this.#tokens[id];
    if (token === undefined) return noBytes;
    const added = this.#added.get(id);
    const plain = added !== undefined && (added.special || this.#plan.byteLevel);
    const bytes = plain ? encoder.encode(token) : this.#plan.bytesOf(token);
    this.#bytes[id] = bytes;
    return bytes;
  }

  #text(id: number): string | null {
    let text = this.#texts[id];
    if (text === undefined) {
      const bytes = this.#bytesOf(id);
      try {
        text = strictDecoder.decode(bytes);
      } catch {
        text = null;
      }
      if (id < this.vocabSize) this.#texts[id] = text;
    }
    return text;
  }
}
