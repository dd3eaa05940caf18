/** The engine: many requests over one model, continuous batching on a paged cache. */
import { freemem } from "node:os";
import { DisposedError, LlmError, onDevice, parseOptions } from "@llm/core";
import { kvDtypes, PagedCache, planKvBudget } from "@llm/kvcache";
import {
  type CausalLM,
  Generation,
  type GenerateEvent,
  type GenerateOptions,
  parseGenerateOptions,
  type Prompt,
  type Score,
  type TokenIds,
  type TokenLogprob,
  type Tokenizer,
} from "@llm/models";
import * as v from "valibot";
import type { Engine, EngineEvent, EngineHealth, EngineRequest, EngineStats } from "./engine-types.js";
import { EventQueue } from "./event-queue.js";
import { Runner, type RunnerRequest, type StepOutput } from "./runner.js";
import type { Sequence } from "./scheduler-sequence.js";
import { Scheduler } from "./scheduler.js";
import type { StepPlan } from "./scheduler-plan.js";

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1));

export const EngineOptions = v.strictObject({
  kvCache: v.optional(
    v.strictObject({
      /** "auto" = the model's dtype. @default "auto" */
      dtype: v.optional(v.picklist(["auto", ...kvDtypes]), "auto"),
      /** In (0, 1): fraction of the memory that is free after the weights. ≥ 1: number of blocks. @default what maxBatchSize full sequences need, at most 0.5 */
      maxEntryCount: v.optional(v.pipe(v.number(), v.gtValue(0))),
      /** Tokens a block. @default 16 */
      blockSize: v.optional(positive, 16),
      /** Reuse the blocks of known prefixes. @default true */
      prefixCaching: v.optional(v.boolean(), true),
    }),
    {},
  ),
  /** Most sequences computed at once. @default 32 */
  maxBatchSize: v.optional(positive, 32),
  /** Most tokens a step computes. @default 1024 */
  maxBatchTokens: v.optional(positive, 1024),
  /** Most tokens of a sequence, prompt and output; default what the model takes. */
  maxTokens: v.optional(positive),
  /** Most sequences that wait; more are refused with QUEUE_FULL. @default 256 */
  maxQueue: v.optional(positive, 256),
  /** Replay recorded Plans for decode steps. Same tokens either way. @default true */
  plans: v.optional(v.boolean(), true),
});
export type EngineOptions = v.InferInput<typeof EngineOptions>;

/** A request on its way: what the scheduler needs, how its text grows, where its events go. */
interface Request extends RunnerRequest {
  readonly generations: Generation[];
  readonly queue: EventQueue<EngineEvent>;
  /** Index of continuation 0 in events. */
  readonly baseIndex: number;
  sequences: Sequence<Request>[];
  promptLogprobsSeen: (TokenLogprob | null)[];
  /** Continuations that have not finished. */
  open: number;
  /** Listens to the caller's signal while the request lives. */
  readonly onAbort: () => void;
}

/**
 * Makes an engine over a model; the model stays the caller's and must outlive the engine.
 * @throws {OptionsError | OutOfMemoryError}
 */
export async function createEngine(model: CausalLM, options: EngineOptions = {}): Promise<LocalEngine> {
  return new LocalEngine(model, options);
}

/** The engine over a model in this process; made by {@link createEngine}. @see Engine */
export class LocalEngine implements Engine {
  readonly tokenizer: Tokenizer;
  readonly maxTokens: number;
  readonly model: CausalLM;
  private readonly scheduler: Scheduler<Request>;
  private readonly cache: PagedCache;
  private readonly runner: Runner;
  private readonly requests = new Set<Request>();
  private nextId = 0;
  private loop: Promise<void> | undefined;
  private death: Error | undefined;
  private closed = false;

  constructor(model: CausalLM, options: EngineOptions) {
    const o = parseOptions(EngineOptions, options, "createEngine");
    const { spec } = model;
    this.model = model;
    this.tokenizer = model.tokenizer;
    const maxTokens = Math.min(o.maxTokens ?? model.maxTokens, model.maxTokens);
    const dtype = o.kvCache.dtype === "auto" ? (model.dtype as "f32" | "bf16" | "f16") : o.kvCache.dtype;
    const { blockSize } = o.kvCache;
    const shape = { blockSize, layers: spec.layers, kvHeads: spec.kvHeads, headDim: spec.headDim, dtype };
    const needed = Math.ceil(maxTokens / blockSize) * o.maxBatchSize;
    const blockCount =
      o.kvCache.maxEntryCount === undefined
        ? Math.min(needed, planKvBudget({ ...shape, freeBytes: freemem(), maxEntryCount: 0.5 }))
        : planKvBudget({ ...shape, freeBytes: freemem(), maxEntryCount: o.kvCache.maxEntryCount });
    this.scheduler = new Scheduler<Request>({
      blockCount,
      blockSize,
      maxBatchSize: o.maxBatchSize,
      maxBatchTokens: Math.max(o.maxBatchTokens, o.maxBatchSize),
      maxSequenceTokens: maxTokens,
      maxQueue: o.maxQueue,
      prefixCaching: o.kvCache.prefixCaching,
    });
    this.maxTokens = this.scheduler.maxSequenceTokens;
    this.cache = onDevice(model.device, () => new PagedCache(spec, { blockCount, blockSize, dtype }));
    this.runner = new Runner(model, this.cache, Math.ceil(this.maxTokens / blockSize), o.plans);
  }

  stream(request: EngineRequest): AsyncIterable<EngineEvent> {
    const { prompt, n = 1, priority, promptLogprobs, ...generate } = request;
    const queue = new EventQueue<EngineEvent>();
    this.submit(prompt, generate, queue, 0, n, priority, promptLogprobs);
    return queue.iterate(() => this.abortQueue(queue));
  }

  generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncIterable<GenerateEvent> {
    const queue = new EventQueue<EngineEvent>(prompts.length);
    try {
      prompts.forEach((prompt, i) => this.submit(prompt, { ...options, seed: (options.seed ?? 0) + i }, queue, i));
    } catch (error) {
      this.abortQueue(queue);
      throw error;
    }
    return queue.iterate(() => this.abortQueue(queue)) as AsyncIterable<GenerateEvent>;
  }

  /** Scores as it serves: an int8 cache's rounding is in the result. Without one the model scores by itself, which is faster and equal. */
  async score(prefix: TokenIds, continuations: TokenIds[], options: { signal?: AbortSignal } = {}): Promise<Score[]> {
    this.checkAlive();
    if (this.cache.dtype !== "int8") return this.model.score(prefix, continuations, options);
    const scores: Score[] = [];
    for (const continuation of continuations) scores.push(await this.scoreThroughCache(prefix, continuation, options));
    return scores;
  }

  stats(): EngineStats {
    const s = this.scheduler.stats();
    return { ...s, prefixHitRate: s.prefixQueriedTokens > 0 ? s.prefixHitTokens / s.prefixQueriedTokens : 0 };
  }

  health(): EngineHealth {
    return this.death ? { status: "dead", error: this.death.message } : { status: "ok" };
  }

  async dispose(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const r of this.requests) this.abort(r);
    await this.loop;
    this.runner.dispose();
    this.cache.dispose();
  }

  private async scoreThroughCache(
    prefix: TokenIds,
    continuation: TokenIds,
    options: { signal?: AbortSignal },
  ): Promise<Score> {
    const prompt = new Int32Array(prefix.length + continuation.length);
    prompt.set(prefix);
    prompt.set(continuation, prefix.length);
    for await (const event of this.stream({ ...options, prompt, maxTokens: 0, promptLogprobs: 1 })) {
      if (event.type !== "prompt-logprobs") continue;
      const tokens = event.logprobs.slice(prefix.length) as TokenLogprob[];
      const tokenLogprobs = Float64Array.from(tokens, (t) => t.logprob);
      return {
        logprob: tokenLogprobs.reduce((a, b) => a + b, 0),
        greedy: tokens.every((t) => t.top[0]!.id === t.id),
        tokenLogprobs,
      };
    }
    options.signal?.throwIfAborted();
    throw new DisposedError("[engine] the engine was disposed while it scored");
  }

  private checkAlive(): void {
    if (this.closed) throw new DisposedError("[engine] the engine was disposed");
    if (this.death)
      throw new LlmError("ENGINE_DEAD", `[engine] the engine failed before: ${this.death.message}`, {}, this.death);
  }

  private submit(
    prompt: Prompt,
    options: GenerateOptions,
    queue: EventQueue<EngineEvent>,
    baseIndex: number,
    n = 1,
    priority?: number,
    promptLogprobs?: number,
  ): void {
    this.checkAlive();
    const sampling = parseGenerateOptions(options, "engine");
    const promptIds = this.model.encodePrompt(prompt);
    const stopTokenIds = new Set([...(sampling.ignoreEos ? [] : this.model.eosTokenIds), ...sampling.stopTokenIds]);
    const limits = { tokenizer: this.tokenizer, eosTokenIds: this.model.eosTokenIds, maxTokens: this.maxTokens };
    const request: Request = {
      id: String(this.nextId++),
      promptIds,
      maxTokens: sampling.maxTokens,
      n,
      stopTokenIds,
      sampling,
      ...(priority === undefined ? {} : { priority }),
      ...(promptLogprobs === undefined ? {} : { promptLogits: true, promptLogprobs }),
      generations: Array.from({ length: n }, (_, i) => new Generation(limits, baseIndex + i, promptIds, sampling)),
      queue,
      baseIndex,
      sequences: [],
      promptLogprobsSeen: [null],
      open: n,
      onAbort: () => this.abort(request),
    };
    if (sampling.signal?.aborted) {
      for (const g of request.generations) queue.push(g.finish());
      queue.closeOne();
      return;
    }
    request.sequences = this.scheduler.add(request);
    this.requests.add(request);
    sampling.signal?.addEventListener("abort", request.onAbort, { once: true });
    this.loop ??= this.run();
  }

  private abortQueue(queue: EventQueue<EngineEvent>): void {
    for (const r of this.requests) if (r.queue === queue) this.abort(r);
  }

  private abort(request: Request): void {
    for (const sequence of this.scheduler.abort(request.id)) {
      const g = request.generations[sequence.index]!;
      g.reason = "abort";
      this.finish(request, g, sequence);
    }
  }

  private finish(request: Request, g: Generation, sequence: Sequence<Request>): void {
    const event = g.finish();
    if (event.type === "finish" && sequence.cachedTokens > 0 && sequence.index === 0)
      event.usage.cachedTokens = sequence.cachedTokens;
    request.queue.push(event);
    if (--request.open > 0) return;
    this.forget(request);
    request.queue.closeOne();
  }

  private forget(request: Request): void {
    this.requests.delete(request);
    request.sampling.signal?.removeEventListener("abort", request.onAbort);
  }

  /** Steps until there is nothing to do. Every exit but idleness fails all requests. */
  private async run(): Promise<void> {
    // Requests of the same turn of the event loop share the first step.
    await Promise.resolve();
    try {
      while (this.scheduler.hasWork) {
        const plan = this.scheduler.schedule();
        if (!plan) throw new LlmError("INTERNAL", "[engine] sequences wait and none of them can run");
        let output: StepOutput;
        try {
          output = await this.runner.run(plan);
        } catch (error) {
          if (!LlmError.isInstance(error, "OUT_OF_MEMORY")) throw error;
          this.failStep(plan, error);
          continue;
        }
        this.take(plan, output);
      }
    } catch (error) {
      this.death = error as Error;
      const failure = new LlmError("ENGINE_DEAD", `[engine] the engine failed: ${this.death.message}`, {}, error);
      for (const r of this.requests) {
        this.forget(r);
        r.queue.fail(failure);
      }
    } finally {
      this.loop = undefined;
    }
  }

  /** Out of memory fails the requests of the step, not the engine. */
  private failStep(plan: StepPlan<Request>, error: Error): void {
    this.scheduler.rollback();
    for (const request of new Set(plan.entries.map((e) => e.sequence.request))) {
      this.scheduler.abort(request.id);
      this.forget(request);
      request.queue.fail(error);
    }
  }

  private take(plan: StepPlan<Request>, output: StepOutput): void {
    for (const [index, logprobs] of output.promptLogprobs) {
      const { request } = plan.entries[index]!.sequence;
      request.promptLogprobsSeen.push(...logprobs);
      if (request.promptLogprobsSeen.length === request.promptIds.length)
        request.queue.push({ type: "prompt-logprobs", logprobs: request.promptLogprobsSeen });
    }
    for (const { sequence } of plan.entries) {
      const { request } = sequence;
      if (
        request.promptLogits &&
        request.promptIds.length === 1 &&
        sequence.index === 0 &&
        request.promptLogprobsSeen.length === 1 &&
        sequence.generatedCount === 0
      ) {
        request.queue.push({ type: "prompt-logprobs", logprobs: request.promptLogprobsSeen });
      }
    }
    // The order of samples is that of the entries; commit keeps it.
    const logprobOf = new Map<Sequence<Request>, TokenLogprob | undefined>();
    plan.entries.filter((e) => e.samplesToken).forEach((e, i) => logprobOf.set(e.sequence, output.logprobs[i]));
    for (const { sequence, tokenId, finishReason } of this.scheduler.commit(output.ids)) {
      const { request } = sequence;
      const g = request.generations[sequence.index]!;
      if (tokenId >= 0) {
        const event = g.push(tokenId, logprobOf.get(sequence));
        if (event) request.queue.push(event);
      }
      if (!finishReason && !g.finished) continue;
      g.reason ??= finishReason;
      if (!finishReason) this.scheduler.finish(sequence, "stop");
      this.finish(request, g, sequence);
    }
  }
}
