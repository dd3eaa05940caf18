import { NetworkError, parseOptions, UnsupportedError } from "@llm/core";
import type { GenerateEvent, GenerateOptions, Prompt, Score, TokenIds, Tokenizer, Usage } from "@llm/models";
import * as v from "valibot";
import type { EvaluatedModel, PromptStyle } from "../task.js";
import { causeText, postJson, type RequestSettings } from "./http-request.js";
import { serverSentEvents } from "./server-sent-events.js";

export const openaiModelOptionsSchema = v.strictObject({
  /** Up to and with the version: `http://127.0.0.1:23333/v1`. */
  baseUrl: v.pipe(v.string(), v.url("expected an absolute URL such as http://127.0.0.1:23333/v1")),
  /** Name of the model on the server. */
  model: v.pipe(v.string(), v.minLength(1)),
  /** Sent as a bearer token. Absent = none. */
  apiKey: v.optional(v.string()),
  /** The served model's own tokenizer; scoring (ppl, loglikelihood, perplexity) needs it. */
  tokenizer: v.optional(
    v.custom<Tokenizer>((value) => typeof (value as Tokenizer | null)?.encode === "function", "expected a Tokenizer"),
  ),
  /** Context of the served model, in tokens. Absent = unknown; then only the server refuses what is too long. */
  maxTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** What "auto" prompts are: chat completions or plain completions. @default "chat" */
  promptStyle: v.optional(v.picklist(["chat", "raw"]), "chat"),
  /** Answers arrive as they are written (server-sent events). @default true */
  stream: v.optional(v.boolean(), true),
  /** Text that changes when the served weights change. @default base URL and model name */
  fingerprint: v.optional(v.string()),
  /** Prompts of one `generate` call that are asked at once. @default 8 */
  concurrency: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 8),
  /** Further tries after a refused connection or status 408, 425, 429, 5xx. @default 4 */
  retries: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 4),
  /** First pause before a further try, in milliseconds; doubled each time. @default 500 */
  retryDelayMs: v.optional(v.pipe(v.number(), v.minValue(0)), 500),
  /** Longest wait for a whole answer, in milliseconds. @default 600000 */
  timeoutMs: v.optional(v.pipe(v.number(), v.minValue(1)), 600_000),
  /** Further request headers. */
  headers: v.optional(v.record(v.string(), v.string()), {}),
  /** Further members of every request's body, e.g. `{chat_template_kwargs: {enable_thinking: false}}`. */
  extraBody: v.optional(v.record(v.string(), v.unknown()), {}),
});

export type OpenaiModelOptions = v.InferInput<typeof openaiModelOptionsSchema>;
type Parsed = v.InferOutput<typeof openaiModelOptionsSchema>;

/**
 * A model behind an OpenAI-compatible URL. Conversations go to `/chat/completions`, text and ids to `/completions`.
 * Scoring asks `/completions` with `echo` and `logprobs`, which vLLM, LMDeploy, llama.cpp and others answer; a server that
 * does not makes it throw, naming gen mode as the way out. Token ids of answers are only known with a `tokenizer`
 * (by encoding the text again); token counts are the server's.
 * @throws {OptionsError} bad options
 */
export function openaiModel(options: OpenaiModelOptions): EvaluatedModel {
  return new OpenaiModel(parseOptions(openaiModelOptionsSchema, options, "openaiModel"));
}

interface Choice {
  index?: number;
  text?: string;
  delta?: { content?: string | null };
  message?: { content?: string | null };
  finish_reason?: string | null;
  logprobs?: {
    token_logprobs?: (number | null)[];
    top_logprobs?: (Record<string, number> | null)[];
  } | null;
}

interface Completion {
  choices?: Choice[];
  usage?: {
    prompt_tokens?: number;
    completion_tokens?: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  error?: { message?: string } | string;
}

class OpenaiModel implements EvaluatedModel {
  readonly tokenizer: Tokenizer;
  readonly maxTokens: number;
  readonly fingerprint: string;
  readonly promptStyle: PromptStyle;
  private readonly options: Parsed;
  private readonly base: string;
  private readonly request: RequestSettings;

  constructor(options: Parsed) {
    this.options = options;
    this.base = options.baseUrl.replace(/\/+$/, "");
    this.tokenizer = options.tokenizer ?? unknownTokenizer(options.model);
    this.maxTokens = options.maxTokens ?? Number.POSITIVE_INFINITY;
    this.promptStyle = options.promptStyle;
    this.fingerprint = options.fingerprint ?? `${this.base} ${options.model}`;
    this.request = {
      headers: {
        ...(options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` }),
        ...options.headers,
      },
      retries: options.retries,
      retryDelayMs: options.retryDelayMs,
      timeoutMs: options.timeoutMs,
    };
  }

  async *generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncIterable<GenerateEvent> {
    if (options.logprobs !== undefined)
      throw new UnsupportedError("[openaiModel] logprobs: a server names tokens by text, not by id; use score()");
    const queue: GenerateEvent[] = [];
    let wake: (() => void) | undefined;
    let failure: { error: unknown } | undefined;
    let next = 0;
    const emit = (event: GenerateEvent): void => {
      queue.push(event);
      wake?.();
    };
    const stopped = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, stopped.signal]) : stopped.signal;
    const worker = async (): Promise<void> => {
      while (next < prompts.length && !failure) {
        const index = next++;
        try {
          await this.one(prompts[index]!, index, options, signal, emit);
        } catch (error) {
          failure ??= { error };
          stopped.abort();
        }
      }
    };
    let running = true;
    const all = Promise.all(Array.from({ length: Math.min(this.options.concurrency, prompts.length) }, worker)).then(
      () => {
        running = false;
        wake?.();
      },
    );
    try {
      while (running || queue.length > 0) {
        while (queue.length > 0) yield queue.shift()!;
        if (running && queue.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      }
      if (failure) throw failure.error;
    } finally {
      stopped.abort();
      await all;
    }
  }

  private async one(
    prompt: Prompt,
    index: number,
    options: GenerateOptions,
    signal: AbortSignal,
    emit: (event: GenerateEvent) => void,
  ): Promise<void> {
    const chat = typeof prompt === "object" && "messages" in prompt;
    const url = `${this.base}${chat ? "/chat/completions" : "/completions"}`;
    const { stream } = this.options;
    const body = {
      model: this.options.model,
      ...(chat
        ? { messages: prompt.messages, ...(prompt.tools ? { tools: prompt.tools } : {}) }
        : { prompt: typeof prompt === "string" ? prompt : [...prompt] }),
      ...samplingBody(options),
      ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
      ...this.options.extraBody,
    };
    if (chat && prompt.template !== undefined)
      throw new UnsupportedError("[openaiModel] template: the server renders conversations with its own template");
    let text = "";
    let finish: string | undefined;
    let usage: Usage | undefined;
    const take = (completion: Completion): void => {
      if (completion.error) {
        const message = typeof completion.error === "string" ? completion.error : completion.error.message;
        throw new NetworkError(`[openaiModel] ${url}: ${message}`, { url });
      }
      if (completion.usage) usage = readUsage(completion.usage);
      const choice = completion.choices?.[0];
      if (!choice) return;
      const piece = choice.delta?.content ?? choice.message?.content ?? choice.text ?? "";
      if (piece !== "") {
        text += piece;
        emit({ type: "text-delta", index, text: piece, tokenIds: [] });
      }
      finish = choice.finish_reason ?? finish;
    };
    let reason: "stop" | "length" | "abort" | undefined;
    try {
      const response = await postJson(url, body, this.request, signal);
      if (!stream) take((await response.json()) as Completion);
      else if (!response.body) throw new NetworkError(`[openaiModel] ${url}: expected a stream, got no body`, { url });
      else
        for await (const data of serverSentEvents(response.body as unknown as AsyncIterable<Uint8Array>)) {
          if (data.trim() === "[DONE]") break;
          take(parseJson(data, url));
        }
    } catch (error) {
      if (options.signal?.aborted) reason = "abort";
      else if (NetworkError.isInstance(error) || UnsupportedError.isInstance(error) || signal.aborted) throw error;
      else throw new NetworkError(`[openaiModel] ${url}: ${causeText(error)}`, { url }, error);
    }
    if (reason === undefined && finish === undefined)
      throw new NetworkError(`[openaiModel] ${url}: expected a finish_reason before the end of the answer`, {
        url,
        text,
      });
    const tokenIds = this.options.tokenizer ? [...this.tokenizer.encode(text, { addSpecialTokens: false })] : [];
    emit({
      type: "finish",
      index,
      reason: reason ?? (finish === "length" ? "length" : "stop"),
      text,
      tokenIds,
      usage: usage ?? { promptTokens: 0, completionTokens: tokenIds.length },
    });
  }

  async score(prefix: TokenIds, continuations: TokenIds[], options: { signal?: AbortSignal } = {}): Promise<Score[]> {
    const scores: Score[] = [];
    for (const continuation of continuations)
      scores.push(await this.scoreOne([...prefix, ...continuation], prefix.length, options.signal));
    return scores;
  }

  private async scoreOne(ids: number[], from: number, signal: AbortSignal | undefined): Promise<Score> {
    const url = `${this.base}/completions`;
    const body = {
      model: this.options.model,
      prompt: ids,
      max_tokens: 1,
      temperature: 0,
      echo: true,
      logprobs: 1,
      ...this.options.extraBody,
    };
    const unsupported = (why: string, cause?: unknown): UnsupportedError =>
      new UnsupportedError(
        `[openaiModel] ${url}: the server does not score prompts (echo with logprobs): ${why}; use mode "gen" for this model`,
        { url },
        cause,
      );
    let completion: Completion;
    try {
      const response = await postJson(url, body, this.request, signal);
      completion = (await response.json()) as Completion;
    } catch (error) {
      signal?.throwIfAborted();
      if (!NetworkError.isInstance(error))
        throw new NetworkError(`[openaiModel] ${url}: ${causeText(error)}`, { url }, error);
      if ([400, 404, 405, 422, 501].includes(error.data["status"] as number)) throw unsupported(error.message, error);
      throw error;
    }
    const logprobs = completion.choices?.[0]?.logprobs;
    const values = logprobs?.token_logprobs;
    if (!values) throw unsupported("it answered without token_logprobs");
    const promptTokens = completion.usage?.prompt_tokens;
    if (values.length < ids.length || (promptTokens !== undefined && promptTokens !== ids.length))
      throw unsupported(
        `expected log-probabilities of ${ids.length} prompt tokens, got ${promptTokens ?? values.length}`,
      );
    const tokenLogprobs = new Float64Array(ids.length - from);
    let greedy = true;
    let logprob = 0;
    for (let i = from; i < ids.length; i++) {
      const value = values[i];
      const top = logprobs.top_logprobs?.[i];
      if (typeof value !== "number" || !top)
        throw unsupported("it left prompt tokens without logprobs or top_logprobs");
      tokenLogprobs[i - from] = value;
      logprob += value;
      if (value < Math.max(...Object.values(top))) greedy = false;
    }
    return { logprob, greedy, tokenLogprobs };
  }
}

function parseJson(data: string, url: string): Completion {
  try {
    return JSON.parse(data) as Completion;
  } catch (error) {
    throw new NetworkError(
      `[openaiModel] ${url}: expected JSON in the stream, got ${data.slice(0, 100)}`,
      { url },
      error,
    );
  }
}

function readUsage(usage: NonNullable<Completion["usage"]>): Usage {
  const cached = usage.prompt_tokens_details?.cached_tokens;
  return {
    promptTokens: usage.prompt_tokens ?? 0,
    completionTokens: usage.completion_tokens ?? 0,
    ...(cached === undefined ? {} : { cachedTokens: cached }),
  };
}

/** GenerateOptions under the names of the wire; what OpenAI does not define is only sent when it is set. */
function samplingBody(options: GenerateOptions): Record<string, unknown> {
  const body: Record<string, unknown> = {
    max_tokens: options.maxTokens ?? 256,
    temperature: options.temperature ?? 0,
    seed: options.seed ?? 0,
  };
  const put = (key: string, value: unknown): void => {
    if (value !== undefined) body[key] = value;
  };
  put("top_p", options.topP);
  put("top_k", options.topK === 0 ? undefined : options.topK);
  put("min_p", options.minP);
  put("repetition_penalty", options.repetitionPenalty);
  put("presence_penalty", options.presencePenalty);
  put("frequency_penalty", options.frequencyPenalty);
  put("stop", options.stop?.length ? options.stop : undefined);
  put("stop_token_ids", options.stopTokenIds?.length ? options.stopTokenIds : undefined);
  put("ignore_eos", options.ignoreEos === true ? true : undefined);
  return body;
}

/** Stands where the served model's tokenizer was not given: every use says so. */
function unknownTokenizer(model: string): Tokenizer {
  const missing = (): never => {
    throw new UnsupportedError(
      `[openaiModel] ${model}: expected the option tokenizer; without it only mode "gen" works`,
      { model },
    );
  };
  return {
    vocabSize: 0,
    bosTokenId: undefined,
    eosTokenId: undefined,
    padTokenId: undefined,
    unkTokenId: undefined,
    specialTokens: new Map(),
    chatTemplate: undefined,
    encode: missing,
    decode: missing,
    decodeStream: missing,
    idToToken: missing,
    tokenToId: missing,
    tokenBytes: missing,
    applyChatTemplate: missing,
    save: missing,
  };
}
