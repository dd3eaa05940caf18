/**
 * The contracts that packages meet in. Nothing here computes anything.
 * Shape letters: T tokens of a packed batch, B sequences, H query heads, K key/value heads, D head width, V vocabulary.
 */
import type { Tensor } from "@llm/core";

/** Token ids, each in [0, vocabSize). */
export type TokenIds = Int32Array;

/** A message in OpenAI's form, the one form in which conversations travel between packages. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool" | (string & {});
  content: string | null;
  name?: string;
  reasoning_content?: string;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
}

/** A call that the assistant makes; `arguments` is JSON as text, or the object itself. */
export interface ToolCall {
  id?: string;
  type?: "function";
  function: { name: string; arguments: string | Record<string, unknown> };
}

/** A tool that the model may call: OpenAI's `{type: "function", function: {name, description, parameters}}`. */
export interface Tool {
  type: "function";
  function: { name: string; description?: string; parameters?: Record<string, unknown> };
}

export interface EncodeOptions {
  /** Add the model's own begin/end tokens as its post-processor does. @default true */
  addSpecialTokens?: boolean;
  /** Recognise special tokens written in the text (`<|im_end|>`). Turn off for text from users. @default true */
  parseSpecial?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out. @default false */
  skipSpecialTokens?: boolean;
}

/** Decodes a stream of ids; never emits half a character: bytes of an unfinished UTF-8 sequence wait for the next id. */
export interface DecodeStream {
  /** Text that this id completes; "" while a character is unfinished. */
  push(id: number): string;
  /** What is left at the end; unfinished bytes become U+FFFD. */
  end(): string;
}

export interface ChatTemplateOptions {
  /** Append the tokens that open the assistant's turn. @default false */
  addGenerationPrompt?: boolean;
  tools?: Tool[];
  /** Name of a built-in template (chatml, llama3, …) or Jinja source, instead of the model's own. */
  template?: string;
  /** Further variables for the template (`enable_thinking`, …). */
  variables?: Record<string, unknown>;
}

/** Text to ids and back, exactly as the model was trained. */
export interface Tokenizer {
  /** Ids are in [0, vocabSize). May be smaller than the rows of the model's embedding. */
  readonly vocabSize: number;
  readonly bosTokenId: number | undefined;
  readonly eosTokenId: number | undefined;
  readonly padTokenId: number | undefined;
  readonly unkTokenId: number | undefined;
  /** Special tokens by their text. */
  readonly specialTokens: ReadonlyMap<string, number>;
  /** Jinja source of the model's own template, if it has one. */
  readonly chatTemplate: string | undefined;
  encode(text: string, options?: EncodeOptions): TokenIds;
  decode(ids: ArrayLike<number>, options?: DecodeOptions): string;
  decodeStream(options?: DecodeOptions): DecodeStream;
  /** Text of a vocabulary entry as the file spells it, e.g. `Ġthe`, `▁the`, `<0x0A>`. */
  idToToken(id: number): string | undefined;
  tokenToId(token: string): number | undefined;
  /** The exact bytes that the id stands for (a special token gives its text). */
  tokenBytes(id: number): Uint8Array;
  /** Renders a conversation to text; encode it with `{addSpecialTokens: false}`. @throws {UnsupportedError} no template */
  applyChatTemplate(messages: ChatMessage[], options?: ChatTemplateOptions): string;
  /** Writes the files that make a Hugging Face folder's tokenizer (tokenizer.json, tokenizer_config.json …). */
  save(folder: string): Promise<void>;
}

/** What to continue: text, ids, or a conversation (rendered by the model's chat template with a generation prompt). */
export type Prompt = string | TokenIds | { messages: ChatMessage[]; tools?: Tool[]; template?: string };

export interface GenerateOptions {
  /** Most tokens to generate per prompt. @default 256 */
  maxTokens?: number;
  /** 0 = greedy. @default 0 */
  temperature?: number;
  /** Keep the k likeliest tokens; 0 = all. @default 0 */
  topK?: number;
  /** Keep the smallest set whose probability reaches p. In (0, 1]. @default 1 */
  topP?: number;
  /** Drop tokens less likely than minP × the likeliest. In [0, 1). @default 0 */
  minP?: number;
  /** Divide positive / multiply negative logits of tokens seen in prompt or output. @default 1 */
  repetitionPenalty?: number;
  /** Subtracted from logits of tokens already generated (OpenAI). @default 0 */
  presencePenalty?: number;
  /** Subtracted per occurrence in the output (OpenAI). @default 0 */
  frequencyPenalty?: number;
  /** Generation ends before any of these texts; they are not part of the output. */
  stop?: string[];
  /** Generation ends at these ids besides the model's own end tokens. */
  stopTokenIds?: number[];
  /** Do not stop at the model's end tokens. @default false */
  ignoreEos?: boolean;
  /** Same seed, same prompt, same options: same tokens. @default 0 */
  seed?: number;
  /** Report the log-probability of each token and of this many alternatives. Absent = none. */
  logprobs?: number;
  signal?: AbortSignal;
}

/** A chosen token's natural log-probability and the likeliest alternatives: the model's own, before temperature and penalties. */
export interface TokenLogprob {
  id: number;
  logprob: number;
  top: { id: number; logprob: number }[];
}

/** Tokens of one generation. */
export interface Usage {
  promptTokens: number;
  completionTokens: number;
  /** Prompt tokens that came from the prefix cache. */
  cachedTokens?: number;
}

/** Events of a generation; `index` is the prompt's place in the list. Each prompt ends with exactly one `finish`. */
export type GenerateEvent =
  | { type: "text-delta"; index: number; text: string; tokenIds: number[]; logprobs?: TokenLogprob[] }
  | {
      type: "finish";
      index: number;
      reason: "stop" | "length" | "abort";
      text: string;
      tokenIds: number[];
      usage: Usage;
    };

/** How likely a continuation is after a prefix, by the model. Natural logarithms. */
export interface Score {
  /** Sum over the continuation's tokens. */
  logprob: number;
  /** Every token of the continuation is the likeliest one. */
  greedy: boolean;
  tokenLogprobs: Float64Array;
}

/** A local model, an engine, an ONNX session or a URL: evaluation and distillation need nothing else. */
export interface LanguageModel {
  readonly tokenizer: Tokenizer;
  /** Most tokens of prompt and output together. */
  readonly maxTokens: number;
  generate(prompts: Prompt[], options?: GenerateOptions): AsyncIterable<GenerateEvent>;
  /**
   * Scores continuations of one prefix (ids; the prefix holds at least one token, usually BOS).
   * @returns one Score per continuation, in order
   */
  score(prefix: TokenIds, continuations: TokenIds[], options?: { signal?: AbortSignal }): Promise<Score[]>;
}

/**
 * A packed training batch: one flat token axis and the boundaries of its documents.
 * `labels_T[t]` is the id to predict AT position t (already shifted), −100 where nothing is learned.
 */
export interface TokenBatch {
  ids_T: Int32Array;
  labels_T: Int32Array;
  /** Weight of each label; absent = 1. */
  lossWeights_T?: Float32Array;
  /** Position in its own document. */
  positions_T: Int32Array;
  /** Document boundaries, cuSeqlens[0] = 0, last = T. */
  cuSeqlens_B1: Int32Array;
}

/** Where attention finds its keys and values; implemented by `ContiguousCache` here and `PagedCache` in @llm/kvcache. */
export interface AttentionCache {
  /** Stores this step's keys and values [T, K, D] of a layer. */
  append(layer: number, k_TKD: Tensor, v_TKD: Tensor, meta: AttentionMeta): void;
  /** Attention of q [T, H, D] over everything stored for its sequences, causal; returns [T, H, D]. */
  attend(layer: number, q_THD: Tensor, meta: AttentionMeta): Tensor;
}

/** The step's layout, as tensors so that a Plan can be replayed with other values. */
export interface AttentionMeta {
  /** i32 [B+1] boundaries of this step's query tokens. */
  cuSeqlens_B1: Tensor;
  /** i32 [T] position of each query token in its sequence. */
  positions_T: Tensor;
  /** Softmax scale, usually 1/√D. */
  scale: number;
  /** Attend to at most this many previous tokens; 0 = all. */
  window: number;
}
