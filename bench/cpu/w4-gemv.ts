/**
 * One token through 4-bit linears: 32 matrices of 4096×4096 in turn, so that weights come from memory, against onnxruntime's
 * MatMulNBits on the same shapes and threads. usage: node tools/run-ts.mjs bench/cpu/w4-gemv.ts
 */
import { empty, native, nativeDoctor, randomNormal, scope, type Tensor } from "@llm/core";
import { machineLine, time } from "./measure.js";
import { matMulNBitsModel } from "./onnx-matmul-nbits.js";

const count = 32;
const N = 4096;
const K = 4096;

console.log(machineLine());

/** GB/s of reading memory that no cache holds: the sum of 1 GiB. */
function readBandwidth(): number {
  return scope(() => {
    const big = empty([1 << 28], "f32");
    native.fill(big, 1);
    const { best } = time(() => scope(() => void native.sum(big)), { repeats: 5, warmups: 1 });
    return big.bytes / best / 1e9;
  });
}

const bandwidth = readBandwidth();
console.log(`read bandwidth (sum of 1 GiB f32): ${bandwidth.toFixed(1)} GB/s`);
const rows: Record<string, string | number>[] = [];
for (const group of [32, 128]) {
  scope(() => {
    const w = randomNormal([N, K], { seed: 1, std: 0.02 });
    const [q, scales, zeros] = native.quantizeW4(w, group, 0);
    const packed: Tensor[] = Array.from({ length: count }, () => native.repackW4(q, scales, zeros, group));
    const x = randomNormal([1, K], { seed: 2 });
    for (const [mode, name] of [
      [1, "int8 activations"],
      [0, "exact"],
    ] as const) {
      const { best, median } = time(
        () => scope(() => packed.forEach((p) => void native.linearW4(x, p, null, N, K, group, mode))),
        { repeats: 10 },
      );
      const bytes = count * packed[0]!.bytes;
      rows.push({
        what: `ours, ${name}`,
        group,
        "ms a matrix (best)": +((best / count) * 1e3).toFixed(3),
        "ms (median)": +((median / count) * 1e3).toFixed(3),
        "GB/s (packed)": +(bytes / best / 1e9).toFixed(1),
        "of bandwidth": +(bytes / best / 1e9 / bandwidth).toFixed(2),
      });
    }
  });
  const ort = await import("onnxruntime-node");
  for (const level of [4, 0]) {
    const session = await ort.InferenceSession.create(matMulNBitsModel(count, K, N, group, level), {
      intraOpNumThreads: nativeDoctor().threads,
      logSeverityLevel: 3,
    });
    const feeds = { x: new ort.Tensor("float32", new Float32Array(K).fill(0.5), [1, K]) };
    const seconds: number[] = [];
    for (let i = 0; i < 12; i++) {
      const begin = performance.now();
      await session.run(feeds);
      if (i >= 2) seconds.push((performance.now() - begin) / 1000);
    }
    seconds.sort((a, b) => a - b);
    rows.push({
      what: `onnxruntime ${level === 4 ? "accuracy 4 (int8)" : "accuracy 0 (f32)"}`,
      group,
      "ms a matrix (best)": +((seconds[0]! / count) * 1e3).toFixed(3),
      "ms (median)": +((seconds[5]! / count) * 1e3).toFixed(3),
    });
    await session.release();
  }
}
console.table(rows);
