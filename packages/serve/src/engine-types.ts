import type { GenerateEvent, GenerateOptions, LanguageModel, Prompt, TokenLogprob } from "@llm/models";

/** One request to an engine: a prompt, how to continue it, and how many continuations to grow. */
export interface EngineRequest extends GenerateOptions {
  prompt: Prompt;
  /** Continuations; events carry `index` 0 … n−1. Continuation i draws its random numbers from (seed, i). @default 1 */
  n?: number;
  /** Lower runs earlier; equal priorities run in order of arrival. @default 0 */
  priority?: number;
  /** Report the log-probability of each prompt token and of this many alternatives, before any text. Absent = none. */
  promptLogprobs?: number;
}

/** A generation's events, and once per request, before them, the prompt's log-probabilities when they were asked for. */
export type EngineEvent =
  | GenerateEvent
  | {
      type: "prompt-logprobs";
      /** One entry per prompt token; the first has no context, hence null. */
      logprobs: (TokenLogprob | null)[];
    };

/** State now and counters since the start. Tokens are counted once per request for prompts, per continuation for output. */
export interface EngineStats {
  /** Sequences being computed. */
  running: number;
  /** Sequences waiting for a place. */
  waiting: number;
  kvBlocksUsed: number;
  kvBlocksTotal: number;
  /** prefixHitTokens / prefixQueriedTokens, 0 before the first query. In [0, 1]. */
  prefixHitRate: number;
  prefixQueriedTokens: number;
  prefixHitTokens: number;
  promptTokens: number;
  generatedTokens: number;
  /** Times a sequence lost its blocks and was computed again. */
  preemptions: number;
  /** Forward passes. */
  steps: number;
}

/** `dead`: the engine can compute nothing any more; every request fails with ENGINE_DEAD. */
export interface EngineHealth {
  status: "ok" | "dead";
  error?: string;
}

/**
 * A language model that runs many requests at once. The server needs nothing else.
 *
 * `stream` promises:
 * - a request that is refused (queue full, prompt too long, bad options) fails at the call or at the first `next()`, without
 *   waiting for other requests: LlmError QUEUE_FULL, or OptionsError with `data.reason` = "context_length_exceeded";
 * - each continuation ends with exactly one `finish`; the last one ends the iteration;
 * - an aborted `signal`, or ending the iteration early, ends the work within one step and frees its memory; what the iterator
 *   then does (finish with "abort", or just end) is not specified, but it ends;
 * - a reader that stops reading holds up nobody else: its events wait;
 * - when the engine dies, every open iteration rejects with ENGINE_DEAD.
 */
export interface Engine extends LanguageModel {
  stream(request: EngineRequest): AsyncIterable<EngineEvent>;
  stats(): EngineStats;
  health(): EngineHealth;
  /** Aborts what runs and frees everything. Later calls reject with DISPOSED. */
  dispose(): Promise<void>;
}
