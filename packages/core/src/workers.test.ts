import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bundle } from "../test/bundle.js";
import { trainTiny } from "../test/training.js";
import type { WorkerTask } from "../test/worker-entry.js";
import { memory, nativeDoctor, synchronize, tensor } from "./index.js";

let packed: Awaited<ReturnType<typeof bundle>>;
beforeAll(async () => {
  packed = await bundle(new URL("../test/worker-entry.ts", import.meta.url));
});
afterAll(() => packed.remove());

/** The bundle lies outside the repository: it is told where the addon is, the one that this thread uses. */
const start = (task: WorkerTask): Worker =>
  new Worker(packed.file, { workerData: task, env: { ...process.env, LLM_NATIVE: nativeDoctor().path } });
const message = async (worker: Worker): Promise<unknown> => ((await once(worker, "message")) as unknown[])[0];
const live = (): { tensors: number; bytes: number } => {
  synchronize();
  const { liveTensors, liveBytes } = memory();
  return { tensors: liveTensors, bytes: liveBytes };
};

describe("worker threads", () => {
  it("use the core at once, with the results of one thread alone, and each frees what it made", async () => {
    const alone = [1, 2].map((seed) => {
      const run = trainTiny(60, seed);
      run.dispose();
      return run.bits;
    });
    const mine = tensor([1, 2, 3]);
    const before = live();
    const workers = [1, 2].map((seed) => start({ kind: "train", seed }));
    const ended = workers.map((worker) => once(worker, "exit"));
    // This thread works too.
    const here = trainTiny(60, 2);
    here.dispose();
    expect(await Promise.all(workers.map(message))).toEqual(alone);
    await Promise.all(ended);
    expect(here.bits).toBe(alone[1]);
    expect(live()).toEqual(before);
    expect(Array.from(mine.dataSync() as Float32Array)).toEqual([1, 2, 3]);
  });

  it("that end with tensors, Plans, an open recording, queued commands and a pending read leave nothing behind", async () => {
    const before = live();
    for (let round = 0; round < 3; round++) {
      const worker = start({ kind: "abandon", seed: round });
      const ended = once(worker, "exit");
      expect(await message(worker)).toBeGreaterThan(before.tensors + 300);
      await ended;
      expect(live()).toEqual(before);
    }
  });

  it("may be terminated in the middle of their work", async () => {
    const before = live();
    const worker = start({ kind: "busy", seed: 1 });
    await message(worker);
    await worker.terminate();
    expect(live()).toEqual(before);
  });

  it("meet their own data errors, not those of others", async () => {
    const worker = start({ kind: "error", seed: 1 });
    expect(await message(worker)).toBe("queued");
    synchronize();
    expect(tensor([5]).itemSync()).toBe(5);
    worker.postMessage("read");
    expect(await message(worker)).toMatch(/^\[embedding\] token id outside/);
    await worker.terminate();
  });
});
