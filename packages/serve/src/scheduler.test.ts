import { LlmError } from "@llm/core";
import { afterAll, describe, expect, test } from "vitest";
import type { StepPlan } from "./scheduler-plan.js";
import type { ScheduleRequest, Sequence } from "./scheduler-sequence.js";
import { Scheduler } from "./scheduler.js";

/** mulberry32: a small seeded generator, so that a failing workload can be run again. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const VOCABULARY = 97;
const STOP = 96;

/** Next token of the simulated model: depends on every token of the context and its place, and on the sequence's index. */
function nextToken(context: Iterable<number>, index: number): number {
  let h = 0x9e3779b9 ^ index;
  for (const id of context) h = Math.imul(h ^ id, 0x01000193) ^ (h >>> 13);
  return (h >>> 0) % VOCABULARY;
}

function runAlone(request: ScheduleRequest, index: number): { ids: number[]; reason: string } {
  const context = [...request.promptIds];
  const ids: number[] = [];
  while (ids.length < request.maxTokens) {
    const id = nextToken(context, index);
    context.push(id);
    ids.push(id);
    if (request.stopTokenIds?.has(id)) return { ids, reason: "stop" };
  }
  return { ids, reason: "length" };
}

/** A "device" whose cache holds the token ids themselves; it reads contexts only through slots and block tables. */
class SimulatedDevice {
  readonly memory: Int32Array;
  readonly blockSize: number;
  /** Prompt positions whose logits were reported, by request. */
  readonly promptRows = new Map<string, Set<number>>();

  constructor(scheduler: Scheduler) {
    this.blockSize = scheduler.blockSize;
    this.memory = new Int32Array(scheduler.pool.blockCount * scheduler.blockSize).fill(-1);
  }

  run(plan: StepPlan): number[] {
    const { blockSize, memory } = this;
    for (const { source, target } of plan.copies)
      memory.copyWithin(target * blockSize, source * blockSize, (source + 1) * blockSize);
    expect(new Set(plan.slots).size).toBe(plan.slots.length);
    plan.slots.forEach((slot, t) => (memory[slot] = plan.ids[t]!));
    const sampled: number[] = [];
    plan.entries.forEach((entry, row) => {
      expect(plan.cuSeqlens[row + 1]! - plan.cuSeqlens[row]!).toBe(entry.tokenCount);
      expect(plan.positions[plan.cuSeqlens[row]!]).toBe(entry.startToken);
      expect(plan.kvLengths[row]).toBe(entry.startToken + entry.tokenCount);
      if (row < plan.decodeCount) expect(entry.tokenCount).toBe(1);
      if (entry.promptLogits) {
        const rows = this.promptRows.get(entry.sequence.request.id) ?? new Set();
        this.promptRows.set(entry.sequence.request.id, rows);
        for (let i = 0; i < entry.tokenCount; i++) rows.add(entry.startToken + i);
      }
      if (!entry.samplesToken) return;
      expect(plan.sampleRows[sampled.length]).toBe(plan.cuSeqlens[row + 1]! - 1);
      const context: number[] = [];
      for (let position = 0; position < plan.kvLengths[row]!; position++) {
        const block = plan.blockTables[row * plan.blockTableWidth + Math.floor(position / blockSize)]!;
        context.push(memory[block * blockSize + (position % blockSize)]!);
      }
      sampled.push(nextToken(context, entry.sequence.index));
    });
    return sampled;
  }
}

function checkLeakFree(scheduler: Scheduler): void {
  scheduler.pool.checkIntegrity();
  scheduler.prefixCache?.checkIntegrity();
  expect(scheduler.pool.usedCount).toBe(0);
  expect(scheduler.pool.freeCount).toBe(scheduler.pool.blockCount);
  scheduler.prefixCache?.clear();
  expect(scheduler.prefixCache?.nodeCount ?? 0).toBe(0);
  scheduler.pool.checkIntegrity();
}

function prompt(...ids: number[]): Int32Array {
  return Int32Array.from(ids);
}

const sequentialIds = (count: number, from = 0) =>
  Int32Array.from({ length: count }, (_, i) => (from + i) % VOCABULARY);

/** Steps until nothing is left. */
function drain(scheduler: Scheduler, device = new SimulatedDevice(scheduler), maxSteps = 100_000): Sequence[] {
  const ended: Sequence[] = [];
  for (let step = 0; scheduler.hasWork; step++) {
    if (step > maxSteps) throw new Error("the scheduler makes no progress");
    const plan = scheduler.schedule();
    expect(plan).toBeDefined();
    for (const result of scheduler.commit(device.run(plan!)))
      if (result.finishReason !== undefined) ended.push(result.sequence);
  }
  return ended;
}

describe("random workloads", () => {
  /** What happened over all seeds: a workload that never preempts or shares would prove nothing. */
  const seen = { preemptions: 0, prefixHits: 0, aborts: 0, copies: 0, chunks: 0 };
  afterAll(() => {
    for (const count of Object.values(seen)) expect(count).toBeGreaterThan(20);
  });
  for (let seed = 1; seed <= 60; seed++) {
    test(`equal one-by-one execution (seed ${seed})`, () => {
      const next = random(seed);
      const integer = (low: number, high: number) => low + Math.floor(next() * (high - low + 1));
      const blockSize = [1, 2, 4, 8, 16][integer(0, 4)]!;
      const maxSequenceTokens = integer(24, 96);
      const needed = Math.ceil(maxSequenceTokens / blockSize);
      const maxBatchSize = integer(1, 12);
      const scheduler = new Scheduler({
        blockCount: needed + integer(0, needed * 3),
        blockSize,
        maxBatchSize,
        maxBatchTokens: maxBatchSize + integer(0, 40),
        maxSequenceTokens,
        prefixCaching: next() < 0.7,
      });
      const device = new SimulatedDevice(scheduler);
      const shared = Array.from({ length: 3 }, () => Array.from({ length: 40 }, () => integer(0, VOCABULARY - 1)));
      const requests: ScheduleRequest[] = Array.from({ length: 40 }, (_, i) => {
        const prefix = shared[integer(0, 2)]!.slice(0, integer(0, 40));
        const tail = Array.from({ length: integer(1, 12) }, () => integer(0, VOCABULARY - 1));
        const promptIds = Int32Array.from([...prefix, ...tail].slice(0, maxSequenceTokens - 1));
        return {
          id: `r${i}`,
          promptIds,
          maxTokens: Math.min(integer(0, 30), maxSequenceTokens - promptIds.length),
          n: next() < 0.2 ? integer(2, 4) : 1,
          stopTokenIds: next() < 0.5 ? new Set([STOP, 11, 12, 13]) : new Set<number>(),
          priority: next() < 0.2 ? integer(-1, 1) : 0,
          salt: next() < 0.2 ? "other" : "",
          promptLogits: next() < 0.15,
        };
      });
      const ended = new Map<string, Sequence>();
      const aborted = new Set<string>();
      const queue = [...requests];
      const live: string[] = [];
      for (let step = 0; queue.length > 0 || scheduler.hasWork; step++) {
        expect(step).toBeLessThan(20_000);
        for (let k = integer(0, 3); k > 0 && queue.length > 0; k--) {
          const request = queue.shift()!;
          scheduler.add(request);
          live.push(request.id);
        }
        const abortOne = () => {
          if (next() > 0.05 || live.length === 0) return;
          const id = live[integer(0, live.length - 1)]!;
          if (scheduler.abort(id).length > 0) aborted.add(id);
        };
        abortOne();
        const plan = scheduler.schedule();
        if (plan === undefined) continue;
        expect(plan.ids.length).toBeLessThanOrEqual(scheduler.maxBatchTokens);
        expect(plan.entries.length).toBeLessThanOrEqual(maxBatchSize);
        seen.copies += plan.copies.length;
        seen.chunks += plan.entries.filter(({ isPrefill, samplesToken }) => isPrefill && !samplesToken).length;
        const sampled = device.run(plan);
        abortOne(); // while the step is in flight
        if (next() < 0.02) {
          scheduler.rollback();
        } else {
          for (const { sequence, finishReason } of scheduler.commit(sampled)) {
            if (finishReason !== undefined) ended.set(`${sequence.request.id}/${sequence.index}`, sequence);
          }
        }
        scheduler.pool.checkIntegrity();
        scheduler.prefixCache?.checkIntegrity();
      }
      for (const request of requests) {
        for (let index = 0; index < (request.n ?? 1); index++) {
          const sequence = ended.get(`${request.id}/${index}`);
          if (sequence === undefined) {
            expect(aborted).toContain(request.id);
            continue;
          }
          const alone = runAlone(request, index);
          expect([...sequence.outputIds]).toEqual(alone.ids);
          expect(sequence.finishReason).toBe(alone.reason);
          if (request.promptLogits === true)
            expect(device.promptRows.get(request.id)!.size).toBe(request.promptIds.length);
        }
      }
      seen.aborts += aborted.size;
      seen.preemptions += scheduler.stats().preemptions;
      seen.prefixHits += scheduler.stats().prefixHitTokens;
      checkLeakFree(scheduler);
    });
  }
});

test("a long prompt is split over steps while running sequences get a token in each", () => {
  const scheduler = new Scheduler({
    blockCount: 64,
    blockSize: 4,
    maxBatchTokens: 8,
    maxBatchSize: 4,
    maxSequenceTokens: 100,
  });
  const device = new SimulatedDevice(scheduler);
  scheduler.add({ id: "a", promptIds: prompt(1, 2), maxTokens: 40 });
  scheduler.commit(device.run(scheduler.schedule()!));
  scheduler.add({ id: "b", promptIds: sequentialIds(30), maxTokens: 1 });
  const chunks: number[] = [];
  for (let i = 0; i < 5; i++) {
    const plan = scheduler.schedule()!;
    expect(plan.entries[0]).toMatchObject({ tokenCount: 1, samplesToken: true, isPrefill: false });
    chunks.push(plan.entries[1]!.tokenCount);
    expect(plan.entries[1]!.samplesToken).toBe(i === 4);
    scheduler.commit(device.run(plan));
  }
  expect(chunks).toEqual([7, 7, 7, 7, 2]);
});

test("a second request with the same beginning computes only the rest", () => {
  const scheduler = new Scheduler({ blockCount: 64, blockSize: 4, maxSequenceTokens: 100 });
  const [first] = scheduler.add({ id: "a", promptIds: sequentialIds(18), maxTokens: 3 });
  drain(scheduler);
  const [second] = scheduler.add({ id: "b", promptIds: sequentialIds(18), maxTokens: 3 });
  const plan = scheduler.schedule()!;
  expect(plan.entries[0]).toMatchObject({ startToken: 16, tokenCount: 2 });
  expect(second!.cachedTokens).toBe(16);
  scheduler.rollback();
  drain(scheduler);
  expect(first!.cachedTokens).toBe(0);
  const [salted] = scheduler.add({ id: "c", promptIds: sequentialIds(18), maxTokens: 3, salt: "adapter" });
  drain(scheduler);
  expect(salted!.cachedTokens).toBe(0);
  expect(scheduler.stats().promptTokens).toBe(54);
});

test("when blocks run out the latest arrival is recomputed later and the first goes on", () => {
  const scheduler = new Scheduler({
    blockCount: 8,
    blockSize: 2,
    maxBatchTokens: 16,
    maxBatchSize: 4,
    maxSequenceTokens: 16,
    prefixCaching: false,
  });
  const sequences = ["a", "b", "c"].flatMap((id, i) =>
    scheduler.add({ id, promptIds: prompt(i, 1, 2), maxTokens: 13 }),
  );
  const ended = drain(scheduler);
  expect(ended.map(({ request }) => request.id)).toEqual(["a", "b", "c"]);
  expect(sequences[0]!.preemptions).toBe(0);
  expect(sequences[1]!.preemptions + sequences[2]!.preemptions).toBeGreaterThan(0);
  for (const sequence of sequences) expect([...sequence.outputIds]).toEqual(runAlone(sequence.request, 0).ids);
  checkLeakFree(scheduler);
});

test("lower priority values run earlier, equal ones in order of arrival", () => {
  const scheduler = new Scheduler({
    blockCount: 64,
    blockSize: 4,
    maxBatchSize: 1,
    maxBatchTokens: 64,
    maxSequenceTokens: 32,
  });
  for (const [id, priority] of [
    ["a", 1],
    ["b", 0],
    ["c", 0],
    ["d", -1],
  ] as const)
    scheduler.add({ id, priority, promptIds: prompt(1), maxTokens: 2 });
  expect(drain(scheduler).map(({ request }) => request.id)).toEqual(["d", "b", "c", "a"]);
});

test("n sequences read the prompt once and diverge", () => {
  const scheduler = new Scheduler({ blockCount: 64, blockSize: 4, maxSequenceTokens: 64 });
  const device = new SimulatedDevice(scheduler);
  const sequences = scheduler.add({ id: "a", promptIds: sequentialIds(10), maxTokens: 6, n: 3 });
  expect(scheduler.schedule()!.entries.map(({ tokenCount }) => tokenCount)).toEqual([10]);
  scheduler.rollback();
  scheduler.commit(device.run(scheduler.schedule()!));
  const plan = scheduler.schedule()!;
  expect(plan.entries.map(({ tokenCount }) => tokenCount)).toEqual([1, 1, 1]);
  expect(plan.copies).toHaveLength(2);
  scheduler.commit(device.run(plan));
  drain(scheduler, device);
  for (const sequence of sequences)
    expect([...sequence.outputIds]).toEqual(runAlone(sequence.request, sequence.index).ids);
  expect(new Set(sequences.map(({ outputIds }) => outputIds.join())).size).toBe(3);
  expect(scheduler.stats().promptTokens).toBe(10);
  checkLeakFree(scheduler);
});

test("the stop id at the very last allowed token still counts as stop", () => {
  const scheduler = new Scheduler({ blockCount: 8, blockSize: 4, maxSequenceTokens: 32 });
  const [sequence] = scheduler.add({
    id: "a",
    promptIds: prompt(5),
    maxTokens: 1,
    stopTokenIds: new Set([nextToken([5], 0)]),
  });
  drain(scheduler);
  expect(sequence!.finishReason).toBe("stop");
});

test("a full queue refuses with QUEUE_FULL and queues nothing", () => {
  const scheduler = new Scheduler({ blockCount: 8, blockSize: 4, maxSequenceTokens: 32, maxQueue: 3 });
  scheduler.add({ id: "a", promptIds: prompt(1), maxTokens: 1, n: 2 });
  let error: unknown;
  try {
    scheduler.add({ id: "b", promptIds: prompt(1), maxTokens: 1, n: 2 });
  } catch (thrown) {
    error = thrown;
  }
  expect(LlmError.isInstance(error, "QUEUE_FULL")).toBe(true);
  expect(scheduler.stats().waiting).toBe(2);
  scheduler.add({ id: "b", promptIds: prompt(1), maxTokens: 1 });
});

test("a prompt that can never fit is refused at once, with the reason as data", () => {
  const scheduler = new Scheduler({ blockCount: 4, blockSize: 4, maxSequenceTokens: 1000 });
  expect(scheduler.maxSequenceTokens).toBe(16);
  expect(() => scheduler.add({ id: "a", promptIds: sequentialIds(16), maxTokens: 1 })).toThrow(/at most 16 tokens/);
  const [sequence] = scheduler.add({ id: "a", promptIds: sequentialIds(15), maxTokens: 100 });
  drain(scheduler);
  expect(sequence!.finishReason).toBe("length");
  expect(sequence!.generatedCount).toBe(1);
  expect(() => scheduler.add({ id: "b", promptIds: prompt(), maxTokens: 1 })).toThrow(/at least one id/);
});

test("aborting during a step keeps the blocks until the step is committed", () => {
  const scheduler = new Scheduler({ blockCount: 8, blockSize: 4, maxSequenceTokens: 32 });
  const device = new SimulatedDevice(scheduler);
  scheduler.add({ id: "a", promptIds: sequentialIds(9), maxTokens: 5 });
  const plan = scheduler.schedule()!;
  expect(scheduler.abort("a")).toHaveLength(1);
  expect(scheduler.abort("a")).toHaveLength(0);
  expect(scheduler.pool.usedCount).toBe(3);
  expect(scheduler.commit(device.run(plan))).toEqual([]);
  expect(scheduler.hasWork).toBe(false);
  checkLeakFree(scheduler);
});

test("maxTokens 0 computes the prompt and ends", () => {
  const scheduler = new Scheduler({ blockCount: 8, blockSize: 4, maxSequenceTokens: 32 });
  const [sequence] = scheduler.add({ id: "a", promptIds: sequentialIds(9), maxTokens: 0, promptLogits: true });
  const plan = scheduler.schedule()!;
  expect(plan.sampleRows).toHaveLength(0);
  expect(scheduler.commit([])).toEqual([{ sequence, tokenId: -1, finishReason: "length" }]);
});

test("plans cannot overlap and commits must match", () => {
  const scheduler = new Scheduler({ blockCount: 8, blockSize: 4, maxSequenceTokens: 32 });
  expect(scheduler.schedule()).toBeUndefined();
  scheduler.add({ id: "a", promptIds: prompt(1), maxTokens: 2 });
  scheduler.schedule();
  expect(() => scheduler.schedule()).toThrow(/commit/);
  expect(() => scheduler.commit([1, 2])).toThrow(/expected 1 ids, got 2/);
  expect(() => scheduler.add({ id: "a", promptIds: prompt(1), maxTokens: 2 })).toThrow(/in use/);
  expect(() => new Scheduler({ blockCount: 8, maxSequenceTokens: 32, maxBatchSize: 8, maxBatchTokens: 4 })).toThrow(
    /maxBatchTokens/,
  );
});
