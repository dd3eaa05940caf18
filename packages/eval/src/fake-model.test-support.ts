import { UnsupportedError } from "@llm/core";
import type { ChatMessage, GenerateEvent, GenerateOptions, Prompt, Score, TokenIds, Tokenizer } from "@llm/models";
import type { EvaluatedModel, PromptStyle } from "./task.js";

/** One id per UTF-8 byte; 256 = begin, 257 = end. */
export function byteTokenizer(options: { bos?: boolean; chat?: boolean } = {}): Tokenizer {
  const bos = options.bos === false ? undefined : 256;
  const encode = (text: string): number[] => [...Buffer.from(text)];
  const decode = (ids: ArrayLike<number>): string => Buffer.from(Array.from(ids).filter((id) => id < 256)).toString();
  return {
    vocabSize: 258,
    bosTokenId: bos,
    eosTokenId: options.bos === false ? undefined : 257,
    padTokenId: undefined,
    unkTokenId: undefined,
    specialTokens: new Map(),
    chatTemplate: options.chat ? "fake" : undefined,
    encode: (text, { addSpecialTokens = true } = {}) =>
      Int32Array.from([...(addSpecialTokens && bos !== undefined ? [bos] : []), ...encode(text)]),
    decode,
    decodeStream: () => {
      const decoder = new TextDecoder();
      return {
        push: (id) => (id < 256 ? decoder.decode(Uint8Array.of(id), { stream: true }) : ""),
        end: () => decoder.decode(),
      };
    },
    idToToken: (id) => String(id),
    tokenToId: (token) => Number(token),
    tokenBytes: (id) => Uint8Array.of(id),
    applyChatTemplate: (messages, { addGenerationPrompt = false } = {}) =>
      `${messages.map((message) => `<${message.role}>${message.content}</>`).join("")}${addGenerationPrompt ? "<assistant>" : ""}`,
    save: async () => {
      throw new UnsupportedError("[byteTokenizer] cannot be saved");
    },
  };
}

export interface FakeModelOptions {
  answer?: (prompt: string, options: GenerateOptions) => string | Promise<string>;
  /** Log-probability of the id after the ids. Default: depends on (previous id, id) only. */
  logprob?: (before: readonly number[], id: number) => number;
  tokenizer?: Tokenizer;
  maxTokens?: number;
  fingerprint?: string;
  promptStyle?: PromptStyle;
}

/** A deterministic LanguageModel that counts what it is asked. */
export class FakeModel implements EvaluatedModel {
  readonly tokenizer: Tokenizer;
  readonly maxTokens: number;
  readonly fingerprint?: string;
  readonly promptStyle?: PromptStyle;
  readonly asked: string[] = [];
  readonly conversations: ChatMessage[][] = [];
  readonly generateOptions: GenerateOptions[] = [];
  scoreCalls = 0;
  scoredTokens = 0;
  private readonly answer: NonNullable<FakeModelOptions["answer"]>;
  private readonly logprob: NonNullable<FakeModelOptions["logprob"]>;

  constructor(options: FakeModelOptions = {}) {
    this.tokenizer = options.tokenizer ?? byteTokenizer();
    this.maxTokens = options.maxTokens ?? 4096;
    this.answer = options.answer ?? (() => "A");
    this.logprob = options.logprob ?? ((before, id) => -1 - ((before.at(-1)! * 31 + id * 17) % 97) / 50);
    if (options.fingerprint !== undefined) this.fingerprint = options.fingerprint;
    if (options.promptStyle !== undefined) this.promptStyle = options.promptStyle;
  }

  async *generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncIterable<GenerateEvent> {
    for (const [index, prompt] of prompts.entries()) {
      let text: string;
      if (typeof prompt === "object" && "messages" in prompt) {
        this.conversations.push(prompt.messages);
        text = prompt.messages.at(-1)!.content!;
      } else text = typeof prompt === "string" ? prompt : this.tokenizer.decode(prompt);
      this.asked.push(text);
      this.generateOptions.push(options);
      const answer = await this.answer(text, options);
      const reason = options.signal?.aborted ? "abort" : "stop";
      yield {
        type: "finish",
        index,
        reason,
        text: answer,
        tokenIds: [],
        usage: { promptTokens: text.length, completionTokens: answer.length },
      };
    }
  }

  async score(prefix: TokenIds, continuations: TokenIds[]): Promise<Score[]> {
    this.scoreCalls++;
    return continuations.map((continuation) => {
      const before = [...prefix];
      const tokenLogprobs = new Float64Array(continuation.length);
      continuation.forEach((id, i) => {
        tokenLogprobs[i] = this.logprob(before, id);
        before.push(id);
      });
      this.scoredTokens += prefix.length + continuation.length;
      return { logprob: tokenLogprobs.reduce((sum, value) => sum + value, 0), greedy: false, tokenLogprobs };
    });
  }
}
