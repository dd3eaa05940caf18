import type { Engine, EngineEvent, EngineRequest } from "../engine-types.js";
import { ApiError, contextLengthExceeded } from "./errors.js";
import type { ChatRequest, CompletionRequest } from "./requests.js";
import type { WireUsage } from "./responses.js";

/** Fields that every object of one answer carries. */
export interface AnswerHead {
  id: string;
  created: number;
  model: string;
  systemFingerprint: string;
}

/** Told what happens to a request's text, for metrics. Times are the listener's own. */
export interface GenerationObserver {
  tokens(choice: number, count: number): void;
  finish(choice: number, reason: "stop" | "length" | "abort", promptTokens: number, completionTokens: number): void;
}

/** A request that passed every check: what the engine is asked, and how the answer is written. */
export interface GenerationJob {
  engine: Engine;
  head: AnswerHead;
  /** One per prompt; choices are numbered prompt × n + continuation. */
  requests: EngineRequest[];
  n: number;
  stream: boolean;
  includeUsage: boolean;
  observer: GenerationObserver;
}

export interface ChoiceEvent {
  prompt: number;
  /** Absent for `prompt-logprobs`, which belongs to all choices of its prompt. */
  choice: number;
  event: EngineEvent;
}

/** Maps the wire's sampling fields to the engine's; refuses prompts and outputs longer than the model. */
export function engineRequest(
  engine: Engine,
  promptIds: Int32Array,
  body: ChatRequest | CompletionRequest,
  defaultMaxTokens: number,
  param: string,
): EngineRequest {
  const chat = body as ChatRequest;
  const asked = chat.max_completion_tokens ?? body.max_tokens;
  const room = engine.maxTokens - promptIds.length;
  if (room < Math.max(asked ?? 1, 0))
    throw contextLengthExceeded(engine.maxTokens, promptIds.length, asked ?? 1, param);
  return {
    prompt: promptIds,
    n: body.n,
    maxTokens: asked ?? Math.min(defaultMaxTokens, room),
    temperature: body.temperature,
    topK: body.top_k,
    topP: body.top_p,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    stop: body.stop === undefined ? [] : typeof body.stop === "string" ? [body.stop] : body.stop,
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    seed: body.seed ?? Math.floor(Math.random() * 2 ** 32),
  };
}

/**
 * Runs a job's prompts at once and gives their events as they come. Ends after the last `finish`; the work ends with it,
 * also when the reader leaves early or a prompt fails.
 * @throws {ApiError} the signal's reason, or 503 when the engine gave up by itself
 */
export async function* runJob(job: GenerationJob, signal: AbortSignal): AsyncGenerator<ChoiceEvent> {
  const controller = new AbortController();
  const onAbort = () => controller.abort(signal.reason);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  let unfinished = job.requests.length * job.n;
  try {
    const streams = job.requests.map((request) => job.engine.stream({ ...request, signal: controller.signal }));
    for await (const { prompt, event } of streams.length === 1 ? only(streams[0]!) : merge(streams)) {
      if (event.type === "prompt-logprobs") {
        yield { prompt, choice: -1, event };
        continue;
      }
      const choice = prompt * job.n + event.index;
      if (event.type === "text-delta") {
        job.observer.tokens(choice, event.tokenIds.length);
      } else {
        if (event.reason === "abort") break;
        unfinished--;
        job.observer.finish(
          choice,
          event.reason,
          event.index === 0 ? event.usage.promptTokens : 0,
          event.usage.completionTokens,
        );
      }
      yield { prompt, choice, event };
    }
    if (unfinished > 0)
      throw signal.aborted
        ? abortError(signal)
        : new ApiError(503, "the engine aborted the request", { code: "aborted" });
  } catch (error) {
    throw signal.aborted ? abortError(signal) : error;
  } finally {
    signal.removeEventListener("abort", onAbort);
    controller.abort();
    if (unfinished > 0) job.observer.finish(-1, "abort", 0, 0);
  }
}

function abortError(signal: AbortSignal): ApiError {
  return signal.reason instanceof ApiError
    ? signal.reason
    : new ApiError(499, "the client closed the connection", { code: "client_closed" });
}

interface PromptEvent {
  prompt: number;
  event: EngineEvent;
}

async function* only(stream: AsyncIterable<EngineEvent>): AsyncGenerator<PromptEvent> {
  for await (const event of stream) yield { prompt: 0, event };
}

/** Events of several streams in the order of their arrival; the first failure fails the whole. */
async function* merge(streams: AsyncIterable<EngineEvent>[]): AsyncGenerator<PromptEvent> {
  const queue: PromptEvent[] = [];
  let live = streams.length;
  let failure: { error: unknown } | undefined;
  let wake = (): void => undefined;
  for (const [prompt, stream] of streams.entries()) {
    void (async () => {
      try {
        for await (const event of stream) {
          queue.push({ prompt, event });
          wake();
        }
      } catch (error) {
        failure ??= { error };
      } finally {
        live--;
        wake();
      }
    })();
  }
  while (true) {
    const batch = queue.splice(0);
    yield* batch;
    if (failure !== undefined) throw failure.error;
    if (queue.length > 0) continue;
    if (live === 0) return;
    await new Promise<void>((resolve) => (wake = resolve));
  }
}

/** Adds up the usages of a job's choices: each prompt counts once, each answer by itself. */
export class UsageTotal {
  #prompt = 0;
  #completion = 0;
  #cached = 0;

  add({ event }: ChoiceEvent): void {
    if (event.type !== "finish") return;
    this.#completion += event.usage.completionTokens;
    if (event.index !== 0) return;
    this.#prompt += event.usage.promptTokens;
    this.#cached += event.usage.cachedTokens ?? 0;
  }

  toWire(): WireUsage {
    return {
      prompt_tokens: this.#prompt,
      completion_tokens: this.#completion,
      total_tokens: this.#prompt + this.#completion,
      prompt_tokens_details: { cached_tokens: this.#cached },
    };
  }
}

/** The fields that an answer and each of its chunks begin with. */
export function wireHead<TObject extends string>(head: AnswerHead, object: TObject) {
  const { id, created, model, systemFingerprint } = head;
  return { id, object, created, model, system_fingerprint: systemFingerprint };
}

/** The JSON that all chunks of an answer begin with, up to and without `"choices"`. Built once, reused for every chunk. */
export function chunkHead(head: AnswerHead, object: string): string {
  return `data: ${JSON.stringify(wireHead(head, object)).slice(0, -1)},`;
}

export const streamEnd = "data: [DONE]\n\n";
