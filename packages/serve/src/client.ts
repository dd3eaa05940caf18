import { abortableFetch, NetworkError, parseOptions } from "@llm/core";
import type { ChatMessage, Tool } from "@llm/models";
import * as v from "valibot";
import { readServerSentEvents } from "./client-sse.js";

export const clientSchema = v.strictObject({
  /** Address of the server, with or without `/v1`. @default "http://127.0.0.1:23333" */
  baseUrl: v.optional(v.pipe(v.string(), v.url()), "http://127.0.0.1:23333"),
  /** Sent as `Authorization: Bearer …`. */
  apiKey: v.optional(v.string()),
  /** Name of the model. @default the first one that the server lists */
  model: v.optional(v.string()),
});

export type ClientOptions = v.InferInput<typeof clientSchema>;

export const clientRequestSchema = v.strictObject({
  /** Most tokens to generate. @default the server's: up to the model's length for chat, 16 for text */
  maxTokens: v.optional(v.number()),
  /** 0 = greedy. @default the server's: 1 */
  temperature: v.optional(v.number()),
  topK: v.optional(v.number()),
  topP: v.optional(v.number()),
  minP: v.optional(v.number()),
  repetitionPenalty: v.optional(v.number()),
  presencePenalty: v.optional(v.number()),
  frequencyPenalty: v.optional(v.number()),
  /** Up to 4 texts that end the answer. */
  stop: v.optional(v.array(v.string())),
  stopTokenIds: v.optional(v.array(v.number())),
  ignoreEos: v.optional(v.boolean()),
  seed: v.optional(v.number()),
  /** Shown to the model by its chat template; only for chat. */
  tools: v.optional(v.custom<Tool[]>(Array.isArray, "expected an array of tools")),
  signal: v.optional(v.instance(AbortSignal)),
});

export type ClientRequestOptions = v.InferInput<typeof clientRequestSchema>;

/** What an answer consists of; the last event is `finish`. */
export type ClientEvent =
  | { type: "text-delta"; text: string }
  | { type: "finish"; reason: string; usage: { promptTokens: number; completionTokens: number; cachedTokens: number } };

/** A server of OpenAI's API: ours, or another one that knows the same fields. */
export interface Client {
  readonly baseUrl: string;
  /** Names of the served models. @throws {NetworkError} */
  models(): Promise<string[]>;
  /** Continues a conversation. @throws {NetworkError} at the first `next()` or in the middle; `data.status`, `data.code` */
  chat(messages: ChatMessage[], options?: ClientRequestOptions): AsyncGenerator<ClientEvent>;
  /** Continues a text. @throws {NetworkError} */
  complete(prompt: string, options?: ClientRequestOptions): AsyncGenerator<ClientEvent>;
  /** Whether the server says that it can compute. @throws {NetworkError} nobody answers */
  healthy(): Promise<boolean>;
}

interface WireChunk {
  error?: { message?: string; code?: string | null };
  choices?: { delta?: { content?: string | null }; text?: string; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number };
  } | null;
}

/** A small streaming client. @throws {OptionsError} */
export function createClient(options: ClientOptions = {}): Client {
  const { baseUrl, apiKey, model } = parseOptions(clientSchema, options, "createClient");
  const root = baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
  const headers = {
    "content-type": "application/json",
    ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
  };
  let firstModel: Promise<string> | undefined;

  async function send(path: string, init: RequestInit): Promise<Response> {
    const url = root + path;
    try {
      return await abortableFetch(url, { ...init, headers });
    } catch (error) {
      if (init.signal?.aborted === true) throw error;
      const cause = (error as { cause?: { message?: string } }).cause?.message ?? String(error);
      throw new NetworkError(`[client] cannot reach ${url}: ${cause}`, { url }, error);
    }
  }

  async function fail(path: string, response: Response): Promise<never> {
    const text = await response.text();
    let error: WireChunk["error"];
    try {
      error = (JSON.parse(text) as WireChunk).error;
    } catch {
      // Not JSON: a proxy's page, perhaps. Its beginning is the message.
    }
    throw new NetworkError(`[client] ${path} answered ${response.status}: ${error?.message ?? text.slice(0, 200)}`, {
      url: root + path,
      status: response.status,
      code: error?.code ?? undefined,
    });
  }

  async function models(): Promise<string[]> {
    const response = await send("/v1/models", {});
    if (!response.ok) return fail("/v1/models", response);
    return ((await response.json()) as { data: { id: string }[] }).data.map(({ id }) => id);
  }

  async function modelName(): Promise<string> {
    if (model !== undefined) return model;
    firstModel ??= models().then(
      ([first]) => first ?? Promise.reject(new NetworkError(`[client] ${root} serves no model`, { url: root })),
    );
    firstModel.catch(() => (firstModel = undefined));
    return firstModel;
  }

  async function* stream(
    path: string,
    body: Record<string, unknown>,
    requestOptions: ClientRequestOptions,
  ): AsyncGenerator<ClientEvent> {
    const parsed = parseOptions(clientRequestSchema, requestOptions, "client");
    const response = await send(path, {
      method: "POST",
      signal: parsed.signal ?? null,
      body: JSON.stringify({
        model: await modelName(),
        ...body,
        max_tokens: parsed.maxTokens,
        temperature: parsed.temperature,
        top_k: parsed.topK,
        top_p: parsed.topP,
        min_p: parsed.minP,
        repetition_penalty: parsed.repetitionPenalty,
        presence_penalty: parsed.presencePenalty,
        frequency_penalty: parsed.frequencyPenalty,
        stop: parsed.stop,
        stop_token_ids: parsed.stopTokenIds,
        ignore_eos: parsed.ignoreEos,
        seed: parsed.seed,
        tools: parsed.tools,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok || response.body === null) return fail(path, response);
    let reason: string | undefined;
    let usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 };
    for await (const data of readServerSentEvents(response.body as unknown as AsyncIterable<Uint8Array>)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data) as WireChunk;
      if (chunk.error !== undefined)
        throw new NetworkError(`[client] the answer broke off: ${chunk.error.message ?? "unknown error"}`, {
          url: root + path,
          code: chunk.error.code ?? undefined,
        });
      if (chunk.usage != null) {
        usage = {
          promptTokens: chunk.usage.prompt_tokens,
          completionTokens: chunk.usage.completion_tokens,
          cachedTokens: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
        };
      }
      const choice = chunk.choices?.[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      if (text !== "") yield { type: "text-delta", text };
      reason = choice?.finish_reason ?? reason;
    }
    if (reason === undefined)
      throw new NetworkError("[client] the connection closed in the middle of the answer", { url: root + path });
    yield { type: "finish", reason, usage };
  }

  return {
    baseUrl: root,
    models,
    chat: (messages, requestOptions = {}) => stream("/v1/chat/completions", { messages }, requestOptions),
    complete: (prompt, requestOptions = {}) => stream("/v1/completions", { prompt }, requestOptions),
    healthy: async () => (await send("/health", {})).ok,
  };
}
