import { LlmError, OptionsError, parseOptions } from "@llm/core";
import { BlockPool, PrefixCache, SequenceBlocks } from "@llm/kvcache";
import type { BlockCopy } from "@llm/kvcache";
import * as v from "valibot";
import { StepBuilder, wantsPromptLogits } from "./scheduler-plan.js";
import type { StepPlan } from "./scheduler-plan.js";
import { RankedList, Sequence } from "./scheduler-sequence.js";
import type { FinishReason, ScheduleRequest } from "./scheduler-sequence.js";

const noCopies: readonly BlockCopy[] = [];

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1));

export const schedulerSchema = v.strictObject({
  /** Blocks of the paged cache. */
  blockCount: positive,
  /** Tokens a block. @default 16 */
  blockSize: v.optional(positive, 16),
  /** Most tokens a step computes, over all sequences; longer prompts are split over steps. ≥ maxBatchSize. @default 2048 */
  maxBatchTokens: v.optional(positive, 2048),
  /** Most sequences that run at once. @default 64 */
  maxBatchSize: v.optional(positive, 64),
  /** Most tokens of one sequence, prompt and output; also bounded by what all blocks hold. */
  maxSequenceTokens: positive,
  /** Most sequences that wait; `add` beyond it throws QUEUE_FULL. @default 1024 */
  maxQueue: v.optional(positive, 1024),
  /** Reuse the blocks of known prefixes. @default true */
  prefixCaching: v.optional(v.boolean(), true),
});

export type SchedulerOptions = v.InferInput<typeof schedulerSchema>;

/** A token that a step produced, or the end of a sequence that wanted none (`tokenId` −1). */
export interface StepResult<TRequest extends ScheduleRequest = ScheduleRequest> {
  sequence: Sequence<TRequest>;
  tokenId: number;
  /** Set when the sequence ended with this token. */
  finishReason: FinishReason | undefined;
}

/** Counters since the start, and the state now. */
export interface SchedulerStats {
  running: number;
  waiting: number;
  kvBlocksUsed: number;
  kvBlocksTotal: number;
  steps: number;
  preemptions: number;
  /** Prompt tokens of admitted requests, each request once. */
  promptTokens: number;
  generatedTokens: number;
  /** Tokens looked up in the prefix cache, and those of them that were found. */
  prefixQueriedTokens: number;
  prefixHitTokens: number;
  finished: Record<FinishReason, number>;
}

/**
 * Continuous batching over a paged cache: which tokens of which sequences the next forward pass computes. Pure bookkeeping,
 * no tensors, no clock: the same calls give the same plans.
 *
 * A step gives every running sequence its next token, then continues half-read prompts, then admits waiting sequences in
 * order (priority, arrival) while batch size, token budget and blocks last; a sequence is admitted with blocks for all
 * its known tokens and only if one spare block remains for each running sequence. When a running sequence finds no block, the
 * last one in order loses its blocks and waits again, to be recomputed later; nothing is admitted in such a step. The first
 * sequence in order can always go on, so every request ends.
 *
 * The further sequences of a request (n > 1) wait for the first one to read the prompt, then share its blocks, copy on write.
 *
 * Call `schedule()`, compute, `commit(ids)`, and so on; `add` and `abort` may come at any time.
 * @see Yu et al. 2022, "Orca", §3 (iteration-level scheduling); Agrawal et al. 2024, "Sarathi-Serve", §4 (chunked prefill)
 */
export class Scheduler<TRequest extends ScheduleRequest = ScheduleRequest> {
  readonly pool: BlockPool;
  readonly prefixCache: PrefixCache | undefined;
  readonly blockSize: number;
  readonly maxBatchTokens: number;
  readonly maxBatchSize: number;
  /** Most tokens of one sequence: the option, or what all blocks hold. */
  readonly maxSequenceTokens: number;
  readonly #maxQueue: number;
  readonly #waiting = new RankedList<Sequence<TRequest>>();
  readonly #running = new RankedList<Sequence<TRequest>>();
  readonly #requests = new Map<string, Sequence<TRequest>[]>();
  readonly #builder: StepBuilder<TRequest>;
  /** Sequences that were aborted while a step that uses their blocks was being computed. */
  #zombies: Sequence<TRequest>[] = [];
  #plan: StepPlan<TRequest> | undefined;
  #arrivals = 0;
  readonly #counters = {
    steps: 0,
    preemptions: 0,
    promptTokens: 0,
    generatedTokens: 0,
    prefixQueriedTokens: 0,
    prefixHitTokens: 0,
    finished: { stop: 0, length: 0, abort: 0 } as Record<FinishReason, number>,
  };

  /** @throws {OptionsError} */
  constructor(options: SchedulerOptions) {
    const parsed = parseOptions(schedulerSchema, options, "Scheduler");
    if (parsed.maxBatchTokens < parsed.maxBatchSize) {
      throw new OptionsError(
        `[Scheduler] maxBatchTokens must be at least maxBatchSize ${parsed.maxBatchSize}, got ${parsed.maxBatchTokens}`,
      );
    }
    this.pool = new BlockPool(parsed.blockCount);
    this.prefixCache = parsed.prefixCaching ? new PrefixCache(this.pool, parsed.blockSize) : undefined;
    this.blockSize = parsed.blockSize;
    this.maxBatchTokens = parsed.maxBatchTokens;
    this.maxBatchSize = parsed.maxBatchSize;
    this.maxSequenceTokens = Math.min(parsed.maxSequenceTokens, parsed.blockCount * parsed.blockSize);
    this.#maxQueue = parsed.maxQueue;
    this.#builder = new StepBuilder(
      parsed.maxBatchTokens,
      parsed.maxBatchSize,
      Math.ceil(this.maxSequenceTokens / parsed.blockSize),
    );
  }

  /** Some sequence waits or runs. */
  get hasWork(): boolean {
    return this.#waiting.size + this.#running.size > 0;
  }

  /** A plan was made and not yet committed. */
  get inFlight(): boolean {
    return this.#plan !== undefined;
  }

  /**
   * Queues a request.
   * @returns its n sequences
   * @throws {LlmError} QUEUE_FULL; nothing was queued
   * @throws {OptionsError} an empty prompt, a prompt that leaves no room (`data.reason` = "context_length_exceeded"), a live id
   */
  add(request: TRequest): Sequence<TRequest>[] {
    const n = request.n ?? 1;
    const { promptIds, maxTokens } = request;
    if (promptIds.length < 1) throw new OptionsError("[Scheduler.add] promptIds must hold at least one id, got none");
    if (!Number.isSafeInteger(n) || n < 1) throw new OptionsError(`[Scheduler.add] n must be an integer ≥ 1, got ${n}`);
    if (!Number.isSafeInteger(maxTokens) || maxTokens < 0)
      throw new OptionsError(`[Scheduler.add] maxTokens must be an integer ≥ 0, got ${maxTokens}`);
    if (promptIds.length + Math.min(maxTokens, 1) > this.maxSequenceTokens) {
      throw new OptionsError(
        `[Scheduler.add] expected at most ${this.maxSequenceTokens} tokens of prompt and output, got a prompt of ${promptIds.length}`,
        { reason: "context_length_exceeded", promptTokens: promptIds.length, maxTokens: this.maxSequenceTokens },
      );
    }
    if (this.#requests.has(request.id)) throw new OptionsError(`[Scheduler.add] request id ${request.id} is in use`);
    if (this.#waiting.size + n > this.#maxQueue) {
      throw new LlmError(
        "QUEUE_FULL",
        `[Scheduler.add] the queue holds ${this.#waiting.size} of ${this.#maxQueue} sequences, got ${n} more`,
        {
          waiting: this.#waiting.size,
          maxQueue: this.#maxQueue,
        },
      );
    }
    const maxLength = Math.min(promptIds.length + maxTokens, this.maxSequenceTokens);
    const sequences: Sequence<TRequest>[] = [];
    for (let index = 0; index < n; index++) {
      const sequence = new Sequence(request, index, this.#arrivals++, maxLength, sequences[0]);
      sequences.push(sequence);
      this.#waiting.insert(sequence);
    }
    this.#requests.set(request.id, sequences);
    return sequences;
  }

  /**
   * Plans the next step; `undefined` when nothing is to be done.
   * @throws {LlmError} INTERNAL when the last plan was not committed
   */
  schedule(): StepPlan<TRequest> | undefined {
    if (this.#plan !== undefined)
      throw new LlmError("INTERNAL", "[Scheduler.schedule] expected commit() or rollback() of the last plan first");
    this.#builder.begin();
    const preempted = this.#scheduleDecodes();
    const decodeCount = this.#builder.tokenCount;
    for (const sequence of this.#running.items) {
      const left = sequence.length - sequence.computed;
      const budget = this.maxBatchTokens - this.#builder.tokenCount;
      if (left === 1) continue;
      if (budget === 0) break;
      this.#builder.add(sequence, Math.min(left, budget), noCopies);
    }
    if (!preempted) this.#admit();
    const plan = this.#builder.finish(decodeCount);
    if (plan.entries.length === 0) return undefined;
    this.#plan = plan;
    return plan;
  }

  /**
   * Takes the step's samples, one id for each entry with `samplesToken`, in order.
   * @returns one result per sampled token, and one per sequence that ended without
   * @throws {LlmError} INTERNAL without a plan or with another number of ids
   */
  commit(sampledIds: ArrayLike<number>): StepResult<TRequest>[] {
    const plan = this.#plan;
    if (plan === undefined) throw new LlmError("INTERNAL", "[Scheduler.commit] expected a plan from schedule() first");
    if (sampledIds.length !== plan.sampleRows.length) {
      throw new LlmError(
        "INTERNAL",
        `[Scheduler.commit] expected ${plan.sampleRows.length} ids, got ${sampledIds.length}`,
      );
    }
    this.#plan = undefined;
    this.#counters.steps++;
    const results: StepResult<TRequest>[] = [];
    let sample = 0;
    for (const entry of plan.entries) {
      const { sequence } = entry;
      const tokenId = entry.samplesToken ? sampledIds[sample++]! : -1;
      sequence.computed = entry.startToken + entry.tokenCount;
      sequence.blocks!.registerComputed(sequence.tokens, sequence.computed);
      if (sequence.computed >= sequence.promptLength) sequence.promptLogitsDone = true;
      if (sequence.state === "finished") continue;
      if (entry.samplesToken) {
        sequence.append(tokenId);
        this.#counters.generatedTokens++;
        const stopped = sequence.request.stopTokenIds?.has(tokenId) === true;
        const finishReason = stopped ? "stop" : sequence.length >= sequence.maxLength ? "length" : undefined;
        if (finishReason !== undefined) this.finish(sequence, finishReason);
        results.push({ sequence, tokenId, finishReason });
      } else if (sequence.computed === sequence.length && sequence.length >= sequence.maxLength) {
        this.finish(sequence, "length");
        results.push({ sequence, tokenId: -1, finishReason: "length" });
      }
    }
    this.#buryZombies();
    return results;
  }

  /** Drops a plan that could not be computed: its sequences lose their blocks and wait to be computed again. */
  rollback(): void {
    const plan = this.#plan;
    if (plan === undefined) return;
    this.#plan = undefined;
    for (const { sequence } of plan.entries) if (sequence.state === "running") this.#preempt(sequence);
    this.#buryZombies();
  }

  /** Ends a sequence between steps (a stop string, a failed grammar …). No effect on one that has ended. */
  finish(sequence: Sequence<TRequest>, reason: FinishReason): void {
    if (sequence.state === "finished") return;
    if (sequence.state === "running") this.#running.remove(sequence);
    else this.#waiting.remove(sequence);
    sequence.state = "finished";
    sequence.finishReason = reason;
    this.#counters.finished[reason]++;
    const live = this.#requests.get(sequence.request.id);
    if (live?.every(({ state }) => state === "finished")) this.#requests.delete(sequence.request.id);
    if (this.#plan?.entries.some((entry) => entry.sequence === sequence)) this.#zombies.push(sequence);
    else this.#releaseBlocks(sequence);
  }

  /**
   * Ends all live sequences of a request with "abort". Their blocks come back now, or at `commit` when a step uses them.
   * @returns the sequences that it ended; empty for an unknown id
   */
  abort(requestId: string): Sequence<TRequest>[] {
    const ended = (this.#requests.get(requestId) ?? []).filter(({ state }) => state !== "finished");
    for (const sequence of ended) this.finish(sequence, "abort");
    return ended;
  }

  stats(): SchedulerStats {
    return {
      running: this.#running.size,
      waiting: this.#waiting.size,
      kvBlocksUsed: this.pool.usedCount,
      kvBlocksTotal: this.pool.blockCount,
      ...this.#counters,
      finished: { ...this.#counters.finished },
    };
  }

  /** Gives every running sequence that has one token to compute a place; @returns whether any sequence was preempted */
  #scheduleDecodes(): boolean {
    let preempted = false;
    const items = this.#running.items;
    // `items` shrinks from its end while victims leave; entries already planned are before the victim in order.
    for (let i = 0; i < items.length; i++) {
      const sequence = items[i]!;
      if (sequence.length - sequence.computed !== 1) continue;
      let copies = sequence.blocks!.reserve(sequence.length, sequence.computed);
      while (copies === undefined) {
        const victim = this.#running.last()!;
        this.#preempt(victim);
        preempted = true;
        if (victim === sequence) break;
        copies = sequence.blocks!.reserve(sequence.length, sequence.computed);
      }
      if (copies === undefined) break;
      this.#builder.add(sequence, 1, copies);
    }
    return preempted;
  }

  #admit(): void {
    const items = this.#waiting.items;
    for (let i = 0; i < items.length;) {
      const budget = this.maxBatchTokens - this.#builder.tokenCount;
      if (budget === 0 || this.#running.size >= this.maxBatchSize) return;
      const sequence = items[i]!;
      const { leader } = sequence;
      const fresh = leader !== sequence && sequence.length === sequence.promptLength && leader.state !== "finished";
      if (fresh && !(leader.state === "running" && leader.computed >= sequence.promptLength)) {
        i++; // The leader reads the prompt first; meanwhile others may pass.
        continue;
      }
      const copies = this.#allocate(sequence, fresh ? leader : undefined);
      if (copies === undefined) return;
      this.#waiting.remove(sequence);
      sequence.state = "running";
      this.#running.insert(sequence);
      if (!sequence.admitted) {
        sequence.admitted = true;
        sequence.cachedTokens = sequence.computed;
        if (leader === sequence) this.#counters.promptTokens += sequence.promptLength;
      }
      this.#builder.add(sequence, Math.min(sequence.length - sequence.computed, budget), copies);
    }
  }

  /** Gives a waiting sequence blocks for all its tokens and sets `computed`; `undefined` and no change when there are too few. */
  #allocate(sequence: Sequence<TRequest>, leader: Sequence<TRequest> | undefined): readonly BlockCopy[] | undefined {
    let blocks: SequenceBlocks;
    let computed: number;
    if (leader !== undefined) {
      // The last prompt token is computed again: its logits are what the sequence samples first.
      computed = sequence.promptLength - 1;
      blocks = leader.blocks!.fork(computed);
    } else {
      blocks = new SequenceBlocks(this.pool, this.blockSize, this.prefixCache, sequence.request.salt);
      computed = wantsPromptLogits(sequence) ? 0 : blocks.matchPrefix(sequence.tokens, sequence.length);
    }
    const copies = blocks.reserve(sequence.length, computed);
    if (copies === undefined || (this.#running.size > 0 && this.pool.freeCount < this.#running.size)) {
      blocks.release();
      return undefined;
    }
    if (leader === undefined && this.prefixCache !== undefined) {
      this.#counters.prefixQueriedTokens += sequence.length;
      this.#counters.prefixHitTokens += computed;
    }
    sequence.blocks = blocks;
    sequence.computed = computed;
    return copies;
  }

  #preempt(sequence: Sequence<TRequest>): void {
    this.#running.remove(sequence);
    this.#releaseBlocks(sequence);
    sequence.state = "waiting";
    sequence.preemptions++;
    this.#counters.preemptions++;
    this.#waiting.insert(sequence);
  }

  #releaseBlocks(sequence: Sequence<TRequest>): void {
    sequence.blocks?.release();
    sequence.blocks = undefined;
    sequence.computed = 0;
  }

  #buryZombies(): void {
    for (const sequence of this.#zombies) this.#releaseBlocks(sequence);
    this.#zombies = [];
  }
}
