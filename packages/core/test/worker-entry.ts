/** The other side of workers.test.ts: runs in a worker thread, started from a bundle. */
import { parentPort, workerData } from "node:worker_threads";
import { matmul, memory, native, randomNormal, recordPlan, tensor, type Tensor } from "../src/index.js";
import { trainTiny } from "./training.js";

/** What a worker is told to do. */
export interface WorkerTask {
  kind: "train" | "abandon" | "busy" | "error";
  seed: number;
}

const { kind, seed } = workerData as WorkerTask;
const say = (message: unknown): void => parentPort!.postMessage(message);
const held: Tensor[] = [];

switch (kind) {
  case "train": {
    say(trainTiny(60, seed).bits);
    break;
  }
  case "abandon": {
    for (let i = 0; i < 100; i++) held.push(randomNormal([64, 64], { seed, stream: i }).keep());
    const { plan } = recordPlan(() => matmul(held[0]!, held[1]!));
    for (let i = 0; i < 50; i++) plan.run();
    let y = held[2]!;
    for (let i = 0; i < 200; i++) held.push((y = matmul(y, held[3]!)));
    // Neither awaited nor settled when the thread ends.
    void y.data().catch(() => undefined);
    recordPlan(() => {
      say(memory().liveTensors);
      process.exit(0);
    });
    break;
  }
  case "busy": {
    const w = randomNormal([96, 96], { seed });
    say("busy");
    for (let y = w; ; y = matmul(y, w)) held.push(y);
  }
  case "error": {
    const bad = native.embedding(tensor(Int32Array.of(9)), randomNormal([5, 2], { seed }));
    held.push(bad);
    say("queued");
    parentPort!.once("message", () => {
      let text = "nothing";
      try {
        bad.dataSync();
      } catch (error) {
        text = (error as Error).message;
      }
      say(text);
    });
  }
}
