import { DisposedError, LlmError } from "@llm/core";
import type { GenerateEvent, GenerateOptions, Prompt, Score, TokenIds, TokenLogprob } from "@llm/models";
import type { Engine, EngineEvent, EngineHealth, EngineRequest, EngineStats } from "../src/engine-types.js";
import type { ScheduleRequest, Sequence } from "../src/scheduler-sequence.js";
import { Scheduler } from "../src/scheduler.js";
import { ByteTokenizer } from "./byte-tokenizer.js";

interface Job extends ScheduleRequest {
  engineRequest: EngineRequest;
  replies: Uint8Array[];
  channel: Channel;
  texts: TextState[];
  aborted: boolean;
}

interface TextState {
  decoder: ReturnType<ByteTokenizer["decodeStream"]>;
  text: string;
  emitted: number;
  heldIds: number[];
  heldLogprobs: TokenLogprob[];
  ids: number[];
}

/** A queue between the step loop and one reader. */
class Channel {
  #events: EngineEvent[] = [];
  #ended = false;
  #error: unknown;
  #wake: (() => void) | undefined;
  push(event: EngineEvent): void {
    this.#events.push(event);
    this.#wake?.();
  }
  end(error?: unknown): void {
    this.#ended = true;
    this.#error = error;
    this.#wake?.();
  }
  async *read(): AsyncGenerator<EngineEvent> {
    while (true) {
      yield* this.#events.splice(0);
      if (this.#events.length > 0) continue;
      if (this.#error !== undefined) throw this.#error;
      if (this.#ended) return;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

/**
 * The real scheduler with a model that recites: it answers `reply(prompt, index, seed)` byte by byte, then its end token. Shows
 * servers and clients everything an engine can do, without a tensor.
 */
export class SimulatedEngine implements Engine {
  readonly tokenizer: ByteTokenizer;
  readonly maxTokens: number;
  readonly scheduler: Scheduler<Job>;
  /** Requests as they came in. */
  readonly requests: EngineRequest[] = [];
  /** Requests that ended by abort. */
  abortCount = 0;
  reply: (prompt: string, index: number, seed: number) => string = (prompt) => `You said: ${prompt}`;
  /** Called in front of each step; may throw, which fails all that runs. */
  beforeStep: () => void | Promise<void> = () => undefined;
  #health: EngineHealth = { status: "ok" };
  #disposed = false;
  #looping = false;
  #ids = 0;
  readonly #jobs = new Set<Job>();

  constructor(
    options: {
      maxQueue?: number;
      maxBatchSize?: number;
      maxTokens?: number;
      blockCount?: number;
      chatTemplate?: boolean;
    } = {},
  ) {
    this.tokenizer = new ByteTokenizer(options.chatTemplate);
    this.maxTokens = options.maxTokens ?? 512;
    const maxBatchSize = options.maxBatchSize ?? 8;
    this.scheduler = new Scheduler<Job>({
      blockCount: options.blockCount ?? 512,
      blockSize: 4,
      maxBatchSize,
      maxBatchTokens: 64,
      maxSequenceTokens: this.maxTokens,
      maxQueue: options.maxQueue ?? 256,
    });
  }

  async *stream(request: EngineRequest): AsyncGenerator<EngineEvent> {
    if (this.#disposed) throw new DisposedError("[SimulatedEngine] disposed");
    if (this.#health.status === "dead") throw new LlmError("ENGINE_DEAD", `[SimulatedEngine] ${this.#health.error}`);
    this.requests.push(request);
    const promptIds = this.#encode(request.prompt);
    const text = this.tokenizer.decode(promptIds);
    const spoken = /<\|user\|>([^]*?)<\|end\|><\|assistant\|>$/.exec(text)?.[1] ?? text.replace(/^<\|bos\|>/, "");
    const n = request.n ?? 1;
    const job: Job = {
      id: String(this.#ids++),
      promptIds,
      n,
      maxTokens: request.maxTokens ?? 256,
      stopTokenIds: new Set([
        ...(request.ignoreEos === true ? [] : [this.tokenizer.eosTokenId]),
        ...(request.stopTokenIds ?? []),
      ]),
      priority: request.priority ?? 0,
      promptLogits: request.promptLogprobs !== undefined,
      engineRequest: request,
      replies: Array.from({ length: n }, (_, i) => Buffer.from(this.reply(spoken, i, request.seed ?? 0))),
      channel: new Channel(),
      texts: Array.from({ length: n }, () => ({
        decoder: this.tokenizer.decodeStream({ skipSpecialTokens: true }),
        text: "",
        emitted: 0,
        heldIds: [],
        heldLogprobs: [],
        ids: [],
      })),
      aborted: false,
    };
    this.scheduler.add(job);
    this.#jobs.add(job);
    const abort = () => {
      if (!this.#jobs.delete(job)) return;
      job.aborted = true;
      this.abortCount++;
      this.scheduler.abort(job.id);
      job.channel.end();
    };
    request.signal?.addEventListener("abort", abort, { once: true });
    if (request.signal?.aborted === true) abort();
    if (request.promptLogprobs !== undefined) {
      job.channel.push({
        type: "prompt-logprobs",
        logprobs: Array.from(promptIds, (id, i) => (i === 0 ? null : logprobOf(id, request.promptLogprobs!))),
      });
    }
    void this.#loop();
    try {
      yield* job.channel.read();
    } finally {
      request.signal?.removeEventListener("abort", abort);
      abort();
    }
  }

  async *generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncGenerator<GenerateEvent> {
    for (const [index, prompt] of prompts.entries()) {
      for await (const event of this.stream({ ...options, prompt }))
        if (event.type !== "prompt-logprobs") yield { ...event, index };
    }
  }

  score(_prefix: TokenIds, continuations: TokenIds[]): Promise<Score[]> {
    return Promise.resolve(
      continuations.map((ids) => ({
        logprob: -ids.length,
        greedy: true,
        tokenLogprobs: new Float64Array(ids.length).fill(-1),
      })),
    );
  }

  stats(): EngineStats {
    const { finished: _, ...stats } = this.scheduler.stats();
    return {
      ...stats,
      prefixHitRate: stats.prefixQueriedTokens === 0 ? 0 : stats.prefixHitTokens / stats.prefixQueriedTokens,
    };
  }

  health(): EngineHealth {
    return this.#health;
  }

  /** The engine stops for good. */
  die(error: string): void {
    this.#health = { status: "dead", error };
    this.#failAll(new LlmError("ENGINE_DEAD", `[SimulatedEngine] ${error}`));
  }

  dispose(): Promise<void> {
    this.#disposed = true;
    this.#failAll(new DisposedError("[SimulatedEngine] disposed"));
    return Promise.resolve();
  }

  #failAll(error: unknown): void {
    for (const job of this.#jobs) {
      this.scheduler.abort(job.id);
      job.channel.end(error);
    }
    this.#jobs.clear();
  }

  #encode(prompt: Prompt): TokenIds {
    if (typeof prompt === "string") return this.tokenizer.encode(prompt);
    if (prompt instanceof Int32Array) return prompt;
    return this.tokenizer.encode(
      this.tokenizer.applyChatTemplate(prompt.messages, { addGenerationPrompt: true, tools: prompt.tools }),
      { addSpecialTokens: false },
    );
  }

  async #loop(): Promise<void> {
    if (this.#looping) return;
    this.#looping = true;
    try {
      while (this.scheduler.hasWork) {
        const plan = this.scheduler.schedule();
        try {
          await new Promise((resolve) => setImmediate(resolve));
          await this.beforeStep();
        } catch (error) {
          this.scheduler.rollback();
          this.#failAll(error);
          continue;
        }
        if (plan === undefined) continue;
        const sampled = plan.entries
          .filter(({ samplesToken }) => samplesToken)
          .map(({ sequence }) => this.#next(sequence));
        for (const { sequence, tokenId, finishReason } of this.scheduler.commit(sampled))
          this.#deliver(sequence, tokenId, finishReason);
      }
    } finally {
      this.#looping = false;
    }
  }

  #next({ request, index, generatedCount }: Sequence<Job>): number {
    return request.replies[index]![generatedCount] ?? this.tokenizer.eosTokenId;
  }

  #deliver(sequence: Sequence<Job>, tokenId: number, finish: "stop" | "length" | "abort" | undefined): void {
    const { request: job, index } = sequence;
    const { logprobs, stop = [] } = job.engineRequest;
    const state = job.texts[index]!;
    const isEnd = finish === "stop";
    if (tokenId >= 0 && !isEnd) {
      state.ids.push(tokenId);
      state.heldIds.push(tokenId);
      if (logprobs !== undefined) state.heldLogprobs.push(logprobOf(tokenId, logprobs));
      state.text += state.decoder.push(tokenId);
    }
    let reason = finish;
    if (reason !== undefined) state.text += state.decoder.end();
    for (const text of stop) {
      const at = state.text.indexOf(text);
      if (at < 0) continue;
      state.text = state.text.slice(0, at);
      reason = "stop";
    }
    if (reason !== undefined && finish === undefined) this.scheduler.finish(sequence, reason);
    let safe = state.text.length;
    if (reason === undefined) {
      for (const text of stop)
        for (let k = Math.min(text.length - 1, state.text.length); k > 0; k--)
          if (state.text.endsWith(text.slice(0, k))) safe = Math.min(safe, state.text.length - k);
    }
    const delta = state.text.slice(state.emitted, safe);
    if (state.heldIds.length > 0 && (delta !== "" || reason !== undefined || logprobs !== undefined)) {
      state.emitted = Math.max(state.emitted, safe);
      job.channel.push({
        type: "text-delta",
        index,
        text: delta,
        tokenIds: state.heldIds,
        ...(logprobs !== undefined && { logprobs: state.heldLogprobs }),
      });
      state.heldIds = [];
      state.heldLogprobs = [];
    }
    if (reason === undefined) return;
    job.channel.push({
      type: "finish",
      index,
      reason,
      text: state.text,
      tokenIds: state.ids,
      usage: {
        promptTokens: sequence.promptLength,
        completionTokens: sequence.generatedCount,
        cachedTokens: job.promptLogits === true ? 0 : sequence.leader.cachedTokens,
      },
    });
    if (sequence.request.n === 1 || job.texts.every((_, i) => this.#finished(job, i, index))) {
      this.#jobs.delete(job);
      job.channel.end();
    }
  }

  readonly #done = new WeakMap<Job, Set<number>>();

  #finished(job: Job, i: number, justNow: number): boolean {
    const done = this.#done.get(job) ?? new Set<number>();
    this.#done.set(job, done);
    done.add(justNow);
    return done.has(i);
  }
}

function logprobOf(id: number, count: number): TokenLogprob {
  return {
    id,
    logprob: -0.25,
    top: Array.from({ length: count }, (_, i) => ({ id: (id + i) % 256, logprob: -0.25 - 1.5 * i })),
  };
}
