/** One optimizer step on one device: micro-batches forward and backward, then one update divided by the weight of all of them. */
import { type NamedTensor, native, noGrad } from "@llm/core";
import type { TokenBatch } from "@llm/models";
import { type Execution, type Queued, readAndFree } from "./execution.js";
import { batchWeight, type ObjectiveContext } from "./objective.js";

export interface StepSettings {
  parameters: readonly NamedTensor[];
  lr: number;
  maxGradNorm: number;
  /** Look at the gradient before the update and leave it out when it is not finite. */
  skipNonFinite: boolean;
  seed: number;
}

/** What a step gives, once its numbers have arrived. */
export interface StepNumbers {
  lossSum: number;
  weight: number;
  /** Norm of the divided gradient. */
  gradNorm: number;
  metricSums: Record<string, number>;
  skipped?: "no-labels" | "non-finite";
}

/** Room for micro-batches between two steps' random numbers. */
const maxMicroBatches = 4096;

/**
 * The number that dropout of a micro-batch depends on (`setRandomStep`): distinct for every micro-batch of a run of up to 2²⁴ steps, in
 * another range for another seed.
 * @see Steele et al. 2014 (SplitMix64's finalizer, for the range's beginning)
 */
export function microBatchNumber(seed: number, step: number, microBatch: number): number {
  let h = BigInt.asUintN(64, BigInt(seed) * 0x9e3779b97f4a7c15n);
  h = BigInt.asUintN(64, (h ^ (h >> 30n)) * 0xbf58476d1ce4e5b9n);
  h = BigInt.asUintN(64, (h ^ (h >> 27n)) * 0x94d049bb133111ebn);
  h ^= h >> 31n;
  return Number(h >> 28n) + step * maxMicroBatches + (microBatch % maxMicroBatches);
}

/**
 * Queues steps. At most two micro-batches are under way: the host prepares one while the device computes the other, and never runs
 * further ahead, because queued work holds its memory.
 */
export class StepRunner {
  readonly #execution: Execution;
  #ahead: Promise<unknown>[] = [];

  constructor(execution: Execution) {
    this.#execution = execution;
  }

  /**
   * Queues one step: gradient = Σ over micro-batches of d lossSum / Σ weightSum.
   * @returns resolves when the step is queued, with a promise of its numbers
   */
  async queue(
    micros: readonly TokenBatch[],
    context: ObjectiveContext,
    settings: StepSettings,
  ): Promise<{ numbers: Promise<StepNumbers>; updated: boolean }> {
    const execution = this.#execution;
    const queued: Queued[] = [];
    for (const [i, batch] of micros.entries()) {
      // Nothing to learn here means no gradient from here.
      if (batchWeight(batch) === 0) continue;
      while (this.#ahead.length >= 2) await this.#ahead.shift();
      const q = execution.micro(batch, context, microBatchNumber(settings.seed, context.step, i));
      this.#ahead.push(q.values);
      queued.push(q);
    }
    let weight = 0;
    for (const q of queued) weight += typeof q.weight === "number" ? q.weight : await q.weight;
    if (!(weight > 0)) {
      execution.discard();
      const numbers = Promise.resolve<StepNumbers>({
        lossSum: Number.NaN,
        weight: 0,
        gradNorm: 0,
        metricSums: {},
        skipped: "no-labels",
      });
      return { numbers, updated: false };
    }
    const update = { lr: settings.lr, gradScale: 1 / weight, maxGradNorm: settings.maxGradNorm };
    let norm: Promise<Float32Array>;
    let updated = true;
    if (settings.skipNonFinite) {
      norm = readAndFree(noGrad(() => native.globalNorm(settings.parameters.map((p) => p.tensor.grad!))));
      updated = Number.isFinite((await norm)[0]!) && (await allFinite(queued));
      if (updated) void execution.update(update);
      else execution.discard();
    } else norm = execution.update(update);
    const numbers = collect(queued, norm, weight, updated);
    numbers.catch(() => {});
    return { numbers, updated };
  }

  /** Waits until everything queued has run. @throws what a queued command met */
  async drain(): Promise<void> {
    const waiting = this.#ahead;
    this.#ahead = [];
    await Promise.all(waiting);
  }
}

async function allFinite(queued: readonly Queued[]): Promise<boolean> {
  for (const q of queued) if (!Number.isFinite((await q.values)[0]!)) return false;
  return true;
}

/** Sums the micro-batches' numbers in double precision. */
async function collect(
  queued: readonly Queued[],
  norm: Promise<Float32Array>,
  weight: number,
  updated: boolean,
): Promise<StepNumbers> {
  let lossSum = 0;
  const metricSums: Record<string, number> = {};
  for (const q of queued) {
    const values = await q.values;
    lossSum += values[0]!;
    q.names.forEach((name, i) => (metricSums[name] = (metricSums[name] ?? 0) + values[i + 1]!));
  }
  const gradNorm = (await norm)[0]! / weight;
  return { lossSum, weight, gradNorm, metricSums, ...(updated ? {} : { skipped: "non-finite" as const }) };
}
