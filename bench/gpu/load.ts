/**
 * Weights from disk to the GPU: loadModel of a bf16 folder against the two halves of the way, reading the file and copying pinned memory.
 * usage: load --model 1.5b --folder model-folder      (writes the folder first)
 */
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { empty, requireDevice, synchronize } from "@llm/core";
import { createModel, loadModel } from "@llm/models";
import { argument, type ShapeName, shapes, tokenizer } from "./shapes.js";

requireDevice("cuda");
const folder = argument("folder", join(tmpdir(), "llm-bench-model"));
const random = createModel(shapes[argument("model", "1.5b") as ShapeName], tokenizer, {
  dtype: "bf16",
  device: "cuda",
});
let start = performance.now();
const { files, totalBytes } = await random.save(folder);
console.log(`saved ${(totalBytes / 2 ** 30).toFixed(2)} GiB in ${((performance.now() - start) / 1000).toFixed(2)} s`);
random.dispose();
const gbps = (bytes: number, ms: number): string => `${(bytes / ms / 1e6).toFixed(2)} GB/s`;

const path = join(folder, files[0]!);
const size = Math.min(statSync(path).size, 2 ** 30);
const source = new Uint8Array(size);
const fd = openSync(path, "r");
readSync(fd, source, 0, size, 0); // into the page cache
start = performance.now();
readSync(fd, source, 0, size, 0);
console.log(`read of the cached file: ${gbps(size, performance.now() - start)}`);
closeSync(fd);
const target = empty([size], "u8");
target.write(source);
synchronize();
start = performance.now();
target.write(source);
synchronize();
console.log(`write of host bytes to the GPU: ${gbps(size, performance.now() - start)}`);
for (let i = 0; i < 3; i++) {
  const before = process.memoryUsage().rss;
  start = performance.now();
  const model = await loadModel(folder, { device: "cuda" });
  synchronize();
  const ms = performance.now() - start;
  console.log(
    `RESULT loadModel: ${gbps(totalBytes, ms)}, ${(ms / 1000).toFixed(2)} s, host memory +${((process.memoryUsage().rss - before) / 2 ** 20).toFixed(0)} MiB`,
  );
  model.dispose();
}
process.exit(0);
