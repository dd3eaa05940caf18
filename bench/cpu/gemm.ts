/** Matrix products at 1024³ and at shapes of training, GFLOP/s. usage: node tools/run-ts.mjs bench/cpu/gemm.ts */
import { type DType, native, randomNormal, scope } from "@llm/core";
import { machineLine, time } from "./measure.js";

const codes: Record<string, number> = { f32: 0, bf16: 2 };
const shapes = [
  [1024, 1024, 1024],
  [512, 896, 896],
  [512, 4864, 896],
  [512, 896, 4864],
  [512, 16, 896],
] as const;

console.log(machineLine());
const rows: Record<string, string | number>[] = [];
for (const dtype of ["f32", "bf16"] as DType[]) {
  for (const [m, n, k] of shapes) {
    scope(() => {
      const a = randomNormal([m, k], { seed: 1, dtype });
      const b = randomNormal([n, k], { seed: 2, dtype });
      const { best, median } = time(() => scope(() => void native.matmul(a, b, null, 0, 1, codes[dtype]!)), {
        repeats: 20,
      });
      const flops = 2 * m * n * k;
      rows.push({
        dtype,
        shape: `${m}×${n}×${k}`,
        "GFLOP/s best": +(flops / best / 1e9).toFixed(1),
        "GFLOP/s median": +(flops / median / 1e9).toFixed(1),
      });
    });
  }
}
console.table(rows);
