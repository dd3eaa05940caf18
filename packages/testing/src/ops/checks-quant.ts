/** Properties of quantized weights: packed linears against dequantized ones, goldens. N out features, C in features. */
import { type DType, dtypes, native, type Tensor, tensor } from "@llm/core";
import { fromTensor, makeNumbers, type Numbers, numbers, roundTo, toTensor } from "./numbers.js";
import type { OpCheck } from "./op-case.js";
import { dequantizedQ8, dequantizedW4, nf4Values } from "./reference-quant.js";
import { largestError } from "./run-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

interface Packed {
  packed: Tensor;
  /** What the packed weights stand for, f32 [N, C]. */
  weight: Numbers;
}

function packW4(n: number, c: number, group: number, symmetric: number, seed: string): Packed {
  const [q, scales, zeros] = native.quantizeW4(
    toTensor(makeNumbers("f32", [n, c], { normal: 0.1 }, seed)),
    group,
    symmetric,
  );
  return {
    packed: native.repackW4(q, scales, zeros, group),
    weight: dequantizedW4(fromTensor(q), fromTensor(scales), fromTensor(zeros), group),
  };
}

function packQ8(n: number, c: number, group: number, seed: string): Packed {
  const [q, scales] = native.quantizeQ8(toTensor(makeNumbers("f32", [n, c], { normal: 0.1 }, seed)), group);
  return { packed: native.repackQ8(q, scales, group), weight: dequantizedQ8(fromTensor(q), fromTensor(scales), group) };
}

/** x Wᵀ + bias in f64; `quantize` first rounds x to 8 bits, scale absmax / 127 by blocks of 32 inside a group. */
function product(x: Numbers, w: Numbers, bias: Numbers | null, group: number, quantize: boolean): Numbers {
  const [rows, c] = x.shape as [number, number];
  const n = w.shape[0]!;
  const seen = quantize ? quantized(x, group) : x;
  const y = numbers(x.dtype, [rows, n]);
  for (let r = 0; r < rows; r++)
    for (let o = 0; o < n; o++) {
      let total = bias?.data[o] ?? 0;
      for (let i = 0; i < c; i++) total += seen.data[r * c + i]! * w.data[o * c + i]!;
      y.data[r * n + o] = total;
    }
  return y;
}

function quantized(x: Numbers, group: number): Numbers {
  const [rows, c] = x.shape as [number, number];
  const y = numbers("f32", x.shape);
  for (let r = 0; r < rows; r++)
    for (let start = 0, end = 0; start < c; start = end) {
      end = Math.min(c, start + 32, Math.floor(start / group) * group + group);
      const [from, to] = [r * c + start, r * c + end];
      const step = Math.max(...Array.from(x.data.subarray(from, to), Math.abs)) / 127;
      for (let i = from; i < to; i++) y.data[i] = step === 0 ? 0 : roundTo("i8", x.data[i]! / step) * step;
    }
  return y;
}

/** Tolerances of a packed linear by activation dtype: f32 accumulation, one rounding at the end. */
const exactMode = { f32: 2 ** -17, bf16: 2 ** -8, f16: 2 ** -11 };

const shapes = [
  [1, 64, 9, 32],
  [3, 34, 5, 16],
  [5, 256, 33, 128],
  [2, 20, 3, 64],
  [17, 128, 65, 32],
  [0, 32, 4, 32],
] as const;

function packedLinear(bits: 4 | 8, mode: 0 | 1): OpCheck {
  const op = bits === 4 ? "w4" : "q8";
  return {
    name: `linear_${op} = the dequantized weights' product${mode === 1 ? ", with activations in 8 bits" : ""}`,
    ops: [`linear_${op}`, `repack_${op}`],
    run() {
      let [worst, detail] = [0, ""];
      for (const dtype of ["f32", "bf16", "f16"] as const)
        for (const [rows, c, n, group] of shapes)
          for (const symmetric of bits === 4 ? [0, 1] : [0]) {
            const name = `${dtype} [${rows}, ${c}] x [${n}, ${c}] group ${group}${symmetric ? " symmetric" : ""}`;
            const { packed, weight } = bits === 4 ? packW4(n, c, group, symmetric, name) : packQ8(n, c, group, name);
            const padding = n % 2 === 0 ? 0 : 6;
            const x = makeNumbers(dtype, [rows, c], { normal: 1 }, `x ${name}`);
            const bias = rows % 2 === 0 ? null : makeNumbers(dtype, [n], { normal: 1 }, `bias ${name}`);
            const wide = numbers(dtype, [rows, c + padding]);
            for (let r = 0; r < rows; r++) wide.data.set(x.data.subarray(r * c, (r + 1) * c), r * (c + padding));
            const view = toTensor(wide).columns(0, c);
            const call = bits === 4 ? native.linearW4 : native.linearQ8;
            const got = fromTensor(call(view, packed, bias && toTensor(bias), n, c, group, mode));
            const want = product(x, weight, bias, group, mode === 1);
            // In 8 bits an activation on the border between two codes may go either way: one step of one term.
            const tolerance = exactMode[dtype] + (mode === 1 ? 2 ** -8 : 0);
            const error = largestError(got, want).error / tolerance;
            if (error > worst) [worst, detail] = [error, name];
          }
      return { maxError: worst, tolerance: 1, detail };
    },
  };
}

const int8Accuracy: OpCheck = {
  name: "8-bit activations cost less than one percent of the result",
  ops: ["linear_w4", "linear_q8"],
  run() {
    const x = makeNumbers("f32", [8, 512], { normal: 1 }, "int8 accuracy");
    let worst = 0;
    for (const bits of [4, 8] as const) {
      const { packed, weight } = bits === 4 ? packW4(64, 512, 128, 0, "w") : packQ8(64, 512, 128, "w");
      const call = bits === 4 ? native.linearW4 : native.linearQ8;
      const got = fromTensor(call(toTensor(x), packed, null, 64, 512, 128, 1));
      const want = product(x, weight, null, 128, false);
      const energy = want.data.reduce((sum, y) => sum + y * y, 0);
      worst = Math.max(worst, Math.sqrt(want.data.reduce((sum, y, i) => sum + (got.data[i]! - y) ** 2, 0) / energy));
    }
    return { maxError: worst, tolerance: 0.01 };
  },
};

const w4Goldens: OpCheck = {
  name: "quantize_w4 packs low nibble first and rounds halves to even",
  ops: ["quantize_w4", "dequantize_w4"],
  run() {
    const problems: string[] = [];
    const expect = (what: string, got: ArrayLike<number>, want: readonly number[]): void => {
      if (Array.from(got).join() !== want.join())
        problems.push(`${what}: ${Array.from(got).join(" ")}, expected ${want.join(" ")}`);
    };
    // A group worked out by hand: scale (1.1 + 0.7) / 15 = 0.12, zero round(0.7 / 0.12) = 6, codes 0 4 6 8 13 15 3 6.
    const [q, scales, zeros] = native.quantizeW4(tensor([-0.7, -0.2, 0.05, 0.29, 0.8, 1.1, -0.4, 0], [1, 8]), 8, 0);
    expect("codes", q.dataSync() as Uint8Array, [0x40, 0x86, 0xfd, 0x63]);
    expect("zero", zeros.dataSync() as Uint8Array, [6]);
    if (Math.abs(scales.itemSync() - 0.12) > 1e-8) problems.push(`scale ${scales.itemSync()}, expected 0.12`);
    // Codes 0..7 in order are bytes 10 32 54 76.
    const [ordered] = native.quantizeW4(
      tensor([-7, -6, -5, -4, -3, -2, -1, 0, 7, 6, 5, 4, 3, 2, 1, 0], [1, 16]),
      16,
      1,
    );
    expect("order", ordered.dataSync() as Uint8Array, [0x21, 0x43, 0x65, 0x87, 0xef, 0xcd, 0xab, 0x89]);
    // Scale 1, zero 0: 2.5 -> 2, 3.5 -> 4; symmetric scale 1, zero 8: -2.5 -> -2.
    const [ties] = native.quantizeW4(tensor([0, 2.5, 3.5, 15], [1, 4]), 4, 0);
    expect("ties", ties.dataSync() as Uint8Array, [0x20, 0xf4]);
    const [negative] = native.quantizeW4(tensor([-2.5, 7, 0.5, -0.5], [1, 4]), 4, 1);
    expect("symmetric ties", negative.dataSync() as Uint8Array, [0xf6, 0x88]);
    const half = native.dequantizeW4(q, scales, zeros, 8, code("f32")).dataSync() as Float32Array;
    expect(
      "values",
      Array.from(half, (x) => Math.round(x * 100)),
      [-72, -24, 0, 24, 84, 108, -36, 0],
    );
    return { maxError: problems.length, tolerance: 0, detail: problems.join("; ") };
  },
};

const nf4Goldens: OpCheck = {
  name: "quantize_nf4 finds every table value, puts the first in the high nibble and midpoints low",
  ops: ["quantize_nf4", "dequantize_nf4"],
  run() {
    const problems: string[] = [];
    const table = Float32Array.from(nf4Values);
    const [q, absmax] = native.quantizeNf4(tensor(Float32Array.from(table, (x) => x * 2)), 16);
    const bytes = Array.from(q.dataSync() as Uint8Array, (b) => b.toString(16).padStart(2, "0")).join("");
    if (bytes !== "0123456789abcdef") problems.push(`codes ${bytes}`);
    if (absmax.itemSync() !== 2) problems.push(`absmax ${absmax.itemSync()}`);
    const back = native.dequantizeNf4(q, absmax, 16, code("f32"), 4, 4).dataSync() as Float32Array;
    back.forEach((x, i) => {
      if (x !== Math.fround(table[i]! * 2)) problems.push(`value ${i}: ${x}`);
    });
    // The first threshold is the midpoint of -1 and -0.6961928; on it the lower code wins, above it the higher one.
    const middle = Math.fround((table[0]! + table[1]!) / 2);
    const above = Math.fround(middle + 2 ** -24);
    const [edge] = native.quantizeNf4(tensor(Float32Array.of(1, middle, 1, above)), 4);
    const edges = Array.from(edge.dataSync() as Uint8Array).join(" ");
    if (edges !== "240 241") problems.push(`midpoints ${edges}`);
    return { maxError: problems.length, tolerance: 0, detail: problems.join("; ") };
  },
};

export const quantChecks: readonly OpCheck[] = [
  packedLinear(4, 0),
  packedLinear(4, 1),
  packedLinear(8, 0),
  packedLinear(8, 1),
  int8Accuracy,
  w4Goldens,
  nf4Goldens,
];
