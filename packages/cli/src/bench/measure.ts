/** How `llm bench` takes times: events on the GPU, the wall clock on the CPU. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { type Device, LlmError, onDevice, scope, startProfile, stopProfile, synchronize, trimMemory } from "@llm/core";
import type { KernelBench } from "./kernels.js";

export interface Timing {
  medianMs: number;
  bestMs: number;
  runs: number;
}

export function timingOf(milliseconds: readonly number[]): Timing {
  const sorted = [...milliseconds].sort((a, b) => a - b);
  return { medianMs: sorted[Math.floor(sorted.length / 2)]!, bestMs: sorted[0]!, runs: sorted.length };
}

const warmups = 3;

/**
 * Times one kernel: a few runs to warm up (libraries choose their algorithms then), `runs` that count.
 * @throws {OutOfMemoryError} its tensors do not fit
 */
export async function measureKernel(
  bench: KernelBench,
  device: Device,
  runs: number,
  signal: AbortSignal,
): Promise<Timing> {
  const prepared = onDevice(device, () => scope(() => bench.prepare()));
  const once = (): void => onDevice(device, () => scope(() => prepared.run()));
  try {
    for (let i = 0; i < warmups; i++) once();
    synchronize();
    return timingOf(device === "cuda" ? gpuTimes(bench, once, runs) : await wallTimes(once, runs, signal));
  } finally {
    for (const tensor of prepared.tensors) tensor.dispose();
    trimMemory(device);
  }
}

/** Milliseconds of each run, by the GPU's own clock: what the host does meanwhile does not count. */
function gpuTimes(bench: KernelBench, once: () => void, runs: number): number[] {
  startProfile();
  let records: ReturnType<typeof stopProfile>;
  try {
    for (let i = 0; i < runs; i++) once();
  } finally {
    records = stopProfile();
  }
  const own = records.filter(({ op }) => op === bench.op);
  if (own.length !== runs)
    throw new LlmError("INTERNAL", `[llm bench] expected ${runs} timings of ${bench.op}, got ${own.length}`, {
      ops: [...new Set(records.map(({ op }) => op))],
    });
  return own.map(({ durationUs }) => durationUs / 1000);
}

async function wallTimes(once: () => void, runs: number, signal: AbortSignal): Promise<number[]> {
  const times: number[] = [];
  while (times.length < runs) {
    const began = performance.now();
    once();
    synchronize();
    times.push(performance.now() - began);
    await nextTurn(); // so that Ctrl-C is heard
    signal.throwIfAborted();
  }
  return times;
}
