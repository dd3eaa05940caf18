import { UnsupportedError } from "@llm/core";
import type { ChatMessage, ChatTemplateOptions, DecodeStream, EncodeOptions, TokenIds, Tokenizer } from "@llm/models";

export type Template = (messages: readonly ChatMessage[], options: ChatTemplateOptions) => string;

const say = (message: ChatMessage): string =>
  (message.content ?? "") +
  (message.tool_calls ?? []).map((call) => `<tool_call>${JSON.stringify(call.function)}</tool_call>`).join("");

/** Templates with the habits of real ones. */
export const templates = {
  chatml: (messages, { addGenerationPrompt, tools }) =>
    (tools ? `<|im_start|>tools\n${JSON.stringify(tools)}<|im_end|>\n` : "") +
    messages
      .map(
        (message) =>
          `<|im_start|>${message.role}\n${message.reasoning_content ? `<think>\n${message.reasoning_content}\n</think>\n\n` : ""}${say(message)}<|im_end|>\n`,
      )
      .join("") +
    (addGenerationPrompt ? "<|im_start|>assistant\n" : ""),
  /** Begin token, [INST], and the end token after each answer; no generation prompt of its own. */
  llama2: (messages) =>
    messages
      .map((message) => (message.role === "assistant" ? ` ${say(message)}</s>` : `<s>[INST] ${say(message)} [/INST]`))
      .join(""),
  /** Shows thinking (also an empty block) after the last user's message only; `enable_thinking: false` prompts with an empty block. */
  qwen3: (messages, { addGenerationPrompt, tools, variables }) => {
    const lastUser = messages.findLastIndex((message) => message.role === "user");
    return (
      (tools ? `<|im_start|>tools\n${JSON.stringify(tools)}<|im_end|>\n` : "") +
      messages
        .map((message, index) => {
          const last = index === messages.length - 1;
          const thinks = message.role === "assistant" && index > lastUser && (last || message.reasoning_content);
          return `<|im_start|>${message.role}\n${thinks ? `<think>\n${message.reasoning_content ?? ""}\n</think>\n\n` : ""}${say(message)}<|im_end|>\n`;
        })
        .join("") +
      (addGenerationPrompt
        ? `<|im_start|>assistant\n${variables?.["enable_thinking"] === false ? "<think>\n\n</think>\n\n" : ""}`
        : "")
    );
  },
  /** A turn ends where the next one's token stands. */
  glm: (messages, { addGenerationPrompt }) =>
    messages.map((message) => `<|${message.role}|>\n${say(message)}`).join("") +
    (addGenerationPrompt ? "<|assistant|>\n" : ""),
  /** No special tokens at all. */
  plain: (messages, { addGenerationPrompt }) =>
    messages.map((message) => `### ${message.role}:\n${say(message)}\n\n`).join("") +
    (addGenerationPrompt ? "### assistant:\n" : ""),
  /** A generation prompt that completed turns do not contain. */
  r1: (messages, { addGenerationPrompt }) =>
    messages.map((message) => `<|${message.role}|>${say(message)}</s>`).join("") +
    (addGenerationPrompt ? "<|assistant|><think>\n" : ""),
  /** Writes nothing that tells turns apart. */
  bare: (messages) => messages.map((message) => `${message.role === "assistant" ? say(message) : ""}</s>`).join(""),
} satisfies Record<string, Template>;

const specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"];

export interface CharTokenizerOptions {
  template?: Template;
  /** Texts that are one token, e.g. "\n\n". */
  merges?: string[];
  /** Post-processor writes `<s>` in front. */
  bos?: boolean;
  /** Folds upper case, so that the tokens' bytes are not the text's. */
  lowerCase?: boolean;
}

/** A whole, tiny tokenizer: special tokens, merged texts, then one token per code point. */
export class CharTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosTokenId = 1;
  readonly eosTokenId = 2;
  readonly padTokenId = 0;
  readonly unkTokenId = undefined;
  readonly specialTokens: ReadonlyMap<string, number> = new Map(specials.map((text, id) => [text, id]));
  readonly chatTemplate = "(a function)";
  readonly #texts: string[];
  readonly #options: CharTokenizerOptions;

  constructor(options: CharTokenizerOptions = {}) {
    this.#options = options;
    this.#texts = [...specials, ...(options.merges ?? [])];
    this.vocabSize = this.#texts.length + 0x110000;
  }

  encode(text: string, { addSpecialTokens = true, parseSpecial = true }: EncodeOptions = {}): TokenIds {
    const ids: number[] = addSpecialTokens && this.#options.bos ? [this.bosTokenId] : [];
    for (let at = 0; at < text.length;) {
      const known = this.#texts.findIndex(
        (token, id) => (parseSpecial || id >= specials.length) && text.startsWith(token, at),
      );
      if (known >= 0) {
        ids.push(known);
        at += (this.#texts[known] as string).length;
        continue;
      }
      let character = String.fromCodePoint(text.codePointAt(at) as number);
      at += character.length;
      if (this.#options.lowerCase) character = character.toLowerCase();
      ids.push(this.#texts.length + (character.codePointAt(0) as number));
    }
    return Int32Array.from(ids);
  }

  idToToken(id: number): string {
    return this.#texts[id] ?? String.fromCodePoint(id - this.#texts.length);
  }

  decode(ids: ArrayLike<number>): string {
    return Array.from(ids, (id) => this.idToToken(id)).join("");
  }

  decodeStream(): DecodeStream {
    return { push: (id) => this.idToToken(id), end: () => "" };
  }

  tokenToId(token: string): number | undefined {
    const known = this.#texts.indexOf(token);
    return known >= 0 ? known : token.length === 1 ? this.#texts.length + token.charCodeAt(0) : undefined;
  }

  tokenBytes(id: number): Uint8Array {
    return Buffer.from(this.idToToken(id));
  }

  applyChatTemplate(messages: ChatMessage[], options: ChatTemplateOptions = {}): string {
    const template =
      options.template === undefined
        ? this.#options.template
        : (templates as Record<string, Template>)[options.template];
    if (template === undefined) throw new UnsupportedError("[applyChatTemplate] no template");
    return template(messages, options);
  }

  async save(): Promise<void> {
    throw new UnsupportedError("[CharTokenizer.save] nothing to save");
  }
}

/** Texts of the learned runs of a document, joined by "|". */
export function learnedText(tokenizer: Tokenizer, ids: Int32Array, lossWeights: Float32Array): string {
  const runs: string[] = [];
  for (let start = 0; start < ids.length;) {
    let stop = start;
    while (stop < ids.length && (lossWeights[stop] as number) > 0) stop += 1;
    if (stop > start) runs.push(tokenizer.decode(ids.subarray(start, stop)));
    start = stop + 1;
  }
  return runs.join("|");
}
