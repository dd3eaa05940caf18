/** Leak checks: what a piece of work leaves behind in the native core. */
import { memory, type MemoryReport, synchronize } from "@llm/core";

export interface LeakOptions {
  /** Runs the work once before measuring, so that what it keeps on purpose (tables, packed weights) does not count. @default true */
  warmup?: boolean;
}

/** Lets finalizers run when the process was started with --expose-gc; without it only what is freed at once counts as freed. */
async function collect(): Promise<void> {
  const { gc } = globalThis as { gc?: () => void };
  for (let round = 0; round < 2; round++) {
    gc?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

async function measure(): Promise<MemoryReport> {
  await collect();
  synchronize();
  return memory();
}

/**
 * Runs `work` and throws when the core holds more tensors or more bytes after it than before. `work` must free what it makes: `scope()`,
 * `dispose()`; its result is not kept.
 * @throws {Error} naming what grew, by tag
 */
export async function expectNoLeaks(work: () => unknown, options: LeakOptions = {}): Promise<void> {
  if (options.warmup ?? true) await work();
  const before = await measure();
  await work();
  const after = await measure();
  const grown = Object.entries(after.byTag)
    .map(([tag, bytes]) => [tag, bytes - before.byTag[tag as keyof typeof before.byTag]] as const)
    .filter(([, bytes]) => bytes > 0)
    .map(([tag, bytes]) => `${tag} +${bytes} bytes`);
  const tensors = after.liveTensors - before.liveTensors;
  if (tensors > 0) grown.unshift(`${tensors} tensors`);
  if (grown.length > 0) throw new Error(`[expectNoLeaks] the work left ${grown.join(", ")} behind`);
}
