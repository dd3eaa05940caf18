/** Properties of ops that no single call against a reference shows. */
import { defaultDevice, type DType, dtypes, empty, native, type Tensor, tensor } from "@llm/core";
import { philox4x32, uniform01 } from "@llm/models";
import { differentBits, fromTensor, makeNumbers, type Numbers, numbers, toTensor } from "./numbers.js";
import type { OpCheck } from "./op-case.js";
import { quantizeVector } from "./reference-layers.js";
import { softDivergence } from "./reference-loss.js";
import { fusedChecks } from "./checks-fused.js";
import { quantChecks } from "./checks-quant.js";
import { candidates } from "./reference-sampling.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** Sum of (seen − expected)² / expected. */
function chiSquare(seen: readonly number[], expected: readonly number[]): number {
  return seen.reduce(
    (sum, n, i) => sum + (expected[i] === 0 ? (n === 0 ? 0 : Infinity) : (n - expected[i]!) ** 2 / expected[i]!),
    0,
  );
}

/** The 1 − 1e-6 quantile of chi-square with `freedom` degrees (Wilson–Hilferty). Seeds are fixed, so a pass stays a pass. */
const chiSquareLimit = (freedom: number): number =>
  freedom * (1 - 2 / (9 * freedom) + 4.753 * Math.sqrt(2 / (9 * freedom))) ** 3;

const philox: OpCheck = {
  name: "fill_uniform gives the known answers of Philox 4x32-10",
  ops: ["fill_uniform"],
  run() {
    // Random123's known-answer file: all-zero and all-one counters and keys, and the digits of pi.
    const known: readonly [seed: bigint, counter: bigint, words: readonly number[]][] = [
      [0n, 0n, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
      [(1n << 64n) - 1n, (1n << 128n) - 1n, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]],
      [0x299f31d0a4093822n, 0x0370734413198a2e85a308d3243f6a88n, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]],
    ];
    let wrong = 0;
    for (const [seed, counter, words] of known)
      philox4x32(seed, counter).forEach((word, i) => (wrong += word === words[i] ? 0 : 1));
    const x = empty([4 * 7 + 3], "f32");
    for (const [seed, stream] of [
      [0, 0],
      [2 ** 53 - 1, 2 ** 52 + 9],
      [77, 2 ** 32 - 1],
    ] as const) {
      native.fillUniform(x, 0, 1, seed, stream);
      x.dataSync().forEach((value, i) => {
        const word = philox4x32(seed, BigInt(Math.floor(i / 4)) | (BigInt(stream) << 64n))[i % 4]!;
        wrong += value === uniform01(word) ? 0 : 1;
      });
    }
    return { maxError: wrong, tolerance: 0, detail: `${wrong} wrong words` };
  },
};

const normalDistribution: OpCheck = {
  name: "fill_normal is normal, dropout drops p",
  ops: ["fill_normal", "dropout"],
  slow: true,
  run() {
    const n = 40_000;
    const x = empty([n], "f32");
    native.fillNormal(x, 0, 1, 5, 0);
    const seen = new Array<number>(8).fill(0);
    // Octiles of the standard normal distribution.
    const edges = [
      -1.1503493803760079, -0.6744897501960817, -0.31863936396437514, 0, 0.31863936396437514, 0.6744897501960817,
      1.1503493803760079,
    ];
    for (const value of x.dataSync() as Float32Array) seen[edges.filter((edge) => value > edge).length]!++;
    const normal = chiSquare(seen, new Array<number>(8).fill(n / 8)) / chiSquareLimit(7);
    native.fill(x, 1);
    const kept = (native.dropout(x, 0.3, 9, 2).dataSync() as Float32Array).filter((value) => value !== 0).length;
    return {
      maxError: Math.max(normal, chiSquare([kept, n - kept], [0.7 * n, 0.3 * n]) / chiSquareLimit(1)),
      tolerance: 1,
      detail: "chi-square over its limit",
    };
  },
};

const dropoutGradient: OpCheck = {
  name: "dropout with one key has one mask, whatever it multiplies; another step, stream or seed has another",
  ops: ["dropout"],
  run() {
    const ones = tensor(new Float32Array(4096).fill(1));
    const mask = (seed: number, stream: number): Tensor => native.dropout(ones, 0.5, seed, stream);
    const x = toTensor(makeNumbers("f32", [4096], { normal: 1 }, "dropout"));
    const masked = native.mul(x, mask(1, 2)).dataSync() as Float32Array;
    const same = (native.dropout(x, 0.5, 1, 2).dataSync() as Float32Array).filter(
      (value, i) => value !== masked[i],
    ).length;
    const others = [mask(2, 2), mask(1, 3), mask(1 + 2 ** 32, 2), mask(1, 2 + 2 ** 32)].filter(
      (m) => differentBits(m, mask(1, 2)) < 1000,
    ).length;
    return { maxError: same + others, tolerance: 0, detail: `${same} different values, ${others} equal masks` };
  },
};

const sampleDistribution: OpCheck = {
  name: "sample draws from the filtered distribution",
  ops: ["sample"],
  slow: true,
  run() {
    const draws = 20_000;
    const cols = 12;
    const logits = makeNumbers("f32", [cols], { normal: 1.5 }, "sample distribution");
    const settings = [
      [1, 0, 1, 0],
      [0.7, 5, 1, 0],
      [1.4, 0, 0.75, 0],
      [1, 0, 1, 0.15],
      [2, 8, 0.9, 0.1],
    ];
    let worst = 0;
    let detail = "";
    settings.forEach((setting, index) => {
      const row = [...setting, 1, 0, 0, 0];
      const many = (list: number[]): number[] => Array.from({ length: draws }, () => list).flat();
      const [ids] = native.sample(
        tensor(Float32Array.from(many(Array.from(logits.data))), [draws, cols]),
        tensor(Float32Array.from(many(row)), [draws, 8]),
        tensor(Int32Array.from(many([index + 1, 99])), [draws, 2]),
        tensor(Int32Array.from({ length: draws }, (_, i) => i)),
      );
      const seen = new Array<number>(cols).fill(0);
      for (const id of ids.dataSync() as Int32Array) seen[id]!++;
      const list = candidates(logits.data, row);
      const mass = list.reduce((sum, c) => sum + c.weight, 0);
      const expected = new Array<number>(cols).fill(0);
      for (const c of list) expected[c.id] = (draws * c.weight) / mass;
      const value = chiSquare(seen, expected) / chiSquareLimit(Math.max(1, list.length - 1));
      if (value > worst)
        [worst, detail] = [
          value,
          `setting ${setting.join(" ")}: seen ${seen.join(" ")}, expected ${expected.map(Math.round).join(" ")}`,
        ];
    });
    return { maxError: worst, tolerance: 1, detail };
  },
};

const contiguousAnyStrides: OpCheck = {
  name: "contiguous copies any strides: transposed, repeated and inner-strided views",
  ops: ["contiguous"],
  run() {
    const x = makeNumbers("bf16", [3, 4, 5], { normal: 1 }, "contiguous");
    const base = toTensor(x);
    let wrong = 0;
    const look = (shape: number[], strides: number[], offset: number): void => {
      const got = fromTensor(native.contiguous(base.asStrided(shape, strides, offset)));
      got.data.forEach((value, i) => {
        let [at, rest] = [offset, i];
        for (let d = shape.length - 1; d >= 0; d--) {
          at += (rest % shape[d]!) * strides[d]!;
          rest = Math.floor(rest / shape[d]!);
        }
        wrong += Object.is(value, x.data[at]!) ? 0 : 1;
      });
    };
    look([5, 4, 3], [1, 5, 20], 0);
    look([4, 3], [5, 20], 2);
    look([2, 2, 2], [40, 10, 3], 1);
    look([6, 5], [0, 1], 10);
    return { maxError: wrong, tolerance: 0, detail: `${wrong} wrong elements` };
  },
};

/** A paged copy of packed keys or values: blocks of `block`, handed out in a scattered order. */
function paged(
  x: Tensor,
  lengths: readonly number[],
  block: number,
  cacheType: DType,
): { cache: Tensor; scales: Tensor | null; table: Tensor } {
  const columns = Math.max(...lengths.map((n) => Math.ceil(n / block)));
  const blocks = lengths.length * columns;
  const table = Int32Array.from({ length: blocks }, (_, i) => (i * 7 + 3) % blocks);
  if (new Set(table).size !== blocks) throw new Error(`[checks] ${blocks} blocks are not scattered by 7`);
  const slots = lengths.flatMap((n, b) =>
    Array.from({ length: n }, (_, j) => table[b * columns + Math.floor(j / block)]! * block + (j % block)),
  );
  const cache = empty([blocks, block, x.shape[1]!, x.shape[2]!], cacheType);
  native.fill(cache, 0);
  const scales = cacheType === "i8" ? empty([blocks, block, x.shape[1]!, 2], "f32") : null;
  if (scales) native.fill(scales, 0);
  native.kvAppend(cache, scales, x, tensor(Int32Array.from(slots)));
  return { cache, scales, table: tensor(table, [lengths.length, columns]) };
}

const boundaries = (lengths: readonly number[]): Tensor => {
  let at = 0;
  return tensor(Int32Array.from([0, ...lengths.map((n) => (at += n))]));
};

/**
 * Accepted difference between two attention kernels that sum in different orders, in parts of the largest number of a head's output. f32:
 * a softmax and a sum of up to 70 terms in f32; 16 bits: each of the two rounds its result, and may round its probabilities before.
 */
const otherOrder = { f32: 2 ** -18, bf16: 2 ** -7, f16: 2 ** -9 } as const;

/** Largest |a − b| over max |a| of its row (the last dim). NaN counts as infinite. */
function rowDifference(a: Numbers, b: Numbers): number {
  const width = a.shape.at(-1)!;
  let worst = 0;
  for (let at = 0; at < a.data.length; at += width) {
    const row = a.data.subarray(at, at + width);
    const largest = row.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    row.forEach((value, i) => {
      const difference = Math.abs(value - b.data[at + i]!);
      if (difference !== 0) worst = Math.max(worst, Number.isNaN(difference) ? Infinity : difference / largest);
    });
  }
  return worst;
}

/**
 * On the CPU both ops sum in the same order, so the bits are equal. On a GPU the paged kernel splits keys among blocks of threads and the
 * packed one uses tensor cores in tiles of its own: there the difference is measured against `otherOrder`.
 */
const pagedIsContiguous: OpCheck = {
  name: "paged_attention = attention where the cache keeps every bit: bit for bit on the CPU, but for the order of sums on a GPU",
  ops: ["paged_attention", "attention", "kv_append"],
  run() {
    const exact = defaultDevice() === "cpu";
    let [worst, detail] = [0, ""];
    for (const dtype of ["f32", "bf16", "f16"] as const)
      for (const [heads, keyHeads, width] of [
        [4, 2, 8],
        [2, 2, 64],
        [3, 1, 5],
        [8, 2, 128],
      ] as const)
        for (const [queries, lengths, block] of [
          [[5, 1, 3], [5, 9, 8], 4],
          [[1, 1], [33, 70], 16],
          [[40], [40], 16],
          [[1], [1], 4],
        ] as const)
          for (const window of [0, 6]) {
            const [tq, tk] = [queries, lengths].map((list) => list.reduce<number>((a, b) => a + b, 0)) as [
              number,
              number,
            ];
            const name = `${dtype} ${heads}/${keyHeads}x${width} ${queries.join(",")}/${lengths.join(",")} window ${window}`;
            const q = toTensor(makeNumbers(dtype, [tq, heads, width], { normal: 1 }, `q ${name}`));
            const [k, v] = ["k", "v"].map((letter) =>
              toTensor(makeNumbers(dtype, [tk, keyHeads, width], { normal: 1 }, `${letter} ${name}`)),
            ) as [Tensor, Tensor];
            const [o] = native.attention(q, k, v, boundaries(queries), boundaries(lengths), width ** -0.5, 1, window);
            const [keys, values] = [paged(k, lengths, block, dtype), paged(v, lengths, block, dtype)];
            const p = native.pagedAttention(
              q,
              keys.cache,
              values.cache,
              null,
              null,
              keys.table,
              boundaries(queries),
              tensor(Int32Array.from(lengths)),
              width ** -0.5,
              window,
            );
            const error = exact ? differentBits(o, p) : rowDifference(fromTensor(o), fromTensor(p)) / otherOrder[dtype];
            if (error > worst)
              [worst, detail] = [error, `${name}: ${exact ? "bytes that differ" : "difference over what is accepted"}`];
          }
    return { maxError: worst, tolerance: exact ? 0 : 1, detail };
  },
};

const int8Cache: OpCheck = {
  name: "kv_append to int8 stores every element within half a step",
  ops: ["kv_append"],
  run() {
    const x = makeNumbers("f32", [50, 2, 64], { normal: 2 }, "int8 cache");
    x.data.set(new Array(64).fill(0), 0);
    const { cache, scales } = paged(toTensor(x), [50], 16, "i8");
    const slots = Array.from({ length: 50 }, (_, t) => ((Math.floor(t / 16) * 7 + 3) % 4) * 16 + (t % 16));
    const [codes, steps] = [cache.dataSync() as Int8Array, scales!.dataSync() as Float32Array];
    let [worst, wrongScale] = [0, 0];
    for (let t = 0; t < 50; t++)
      for (let h = 0; h < 2; h++) {
        const vector = slots[t]! * 2 + h;
        const row = x.data.subarray((t * 2 + h) * 64, (t * 2 + h + 1) * 64);
        const { scale, minimum } = quantizeVector(row);
        if (steps[2 * vector] !== scale || steps[2 * vector + 1] !== minimum) wrongScale++;
        row.forEach((value, d) => {
          const error = Math.abs((codes[vector * 64 + d]! + 128) * scale + minimum - value);
          worst = Math.max(worst, scale === 0 ? (error === 0 ? 0 : Infinity) : error / scale);
        });
      }
    return {
      maxError: wrongScale > 0 ? Infinity : worst,
      tolerance: 0.5001,
      detail: `${wrongScale} wrong scales; worst error in steps`,
    };
  },
};

const distillGoldens: OpCheck = {
  name: "distill_inplace gives hand-checked divergences",
  ops: ["distill_inplace"],
  run() {
    const [s, t] = [
      [1, 0, -1, 2],
      [2, 1, 0, -1],
    ];
    // Forward and reverse KL at temperature 1 and 2, computed once in f64 by another program.
    const known: readonly [temperature: number, reverse: boolean, value: number][] = [
      [1, false, 0.871766],
      [1, true, 1.575657],
      [2, false, 0.296927],
      [2, true, 0.410108],
    ];
    let worst = 0;
    for (const [temperature, reverse, value] of known) {
      const [kl] = native.distillInplace(
        tensor(s, [1, 4]),
        tensor(t, [1, 4]),
        tensor([0], [1], "i32"),
        null,
        temperature,
        1,
        reverse ? 1 : 0,
        0,
      );
      worst = Math.max(
        worst,
        Math.abs(kl.itemSync() / temperature ** 2 - value),
        Math.abs(softDivergence(s, t, temperature, reverse) - value),
      );
    }
    return { maxError: worst, tolerance: 1e-6 };
  },
};

const aliases: OpCheck = {
  name: "views of one buffer may be read and written by one op",
  ops: ["axpy", "copy", "matmul_acc"],
  run() {
    const x = makeNumbers("f32", [4, 6], { normal: 1 }, "aliases");
    const t = toTensor(x);
    native.axpy(t.columns(0, 3), t.columns(3, 6), 2);
    native.copy(t.columns(3, 5), t.columns(0, 2));
    const want = numbers("f32", [4, 6], x.data);
    for (let r = 0; r < 4; r++) {
      for (let c = 0; c < 3; c++)
        want.data[r * 6 + c] = Math.fround(want.data[r * 6 + c]! + 2 * want.data[r * 6 + c + 3]!);
      for (let c = 0; c < 2; c++) want.data[r * 6 + 3 + c] = want.data[r * 6 + c]!;
    }
    const got = fromTensor(t);
    return { maxError: maxDifference(got, want), tolerance: 2 ** -20 };
  },
};

const maxDifference = (a: Numbers, b: Numbers): number =>
  a.data.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b.data[i]!)), 0);

const castRoundTrip: OpCheck = {
  name: "cast keeps every 16-bit value through f32",
  ops: ["cast"],
  run() {
    let wrong = 0;
    for (const dtype of ["bf16", "f16"] as const) {
      const bits = Uint16Array.from({ length: 65_536 }, (_, i) => i);
      const back = native
        .cast(native.cast(tensor(bits, [65_536], dtype), code("f32")), code(dtype))
        .bitsSync() as Uint16Array;
      const infinity = dtype === "bf16" ? 0x7f80 : 0x7c00;
      back.forEach((value, i) => {
        const nan = (bits[i]! & 0x7fff) > infinity;
        wrong += (nan ? (value & 0x7fff) > infinity : value === bits[i]) ? 0 : 1;
      });
    }
    return { maxError: wrong, tolerance: 0, detail: `${wrong} values changed` };
  },
};

/** Every check; `ops` says what each is about. */
export const opChecks: readonly OpCheck[] = [
  philox,
  normalDistribution,
  dropoutGradient,
  sampleDistribution,
  contiguousAnyStrides,
  pagedIsContiguous,
  int8Cache,
  distillGoldens,
  aliases,
  castRoundTrip,
  ...quantChecks,
  ...fusedChecks,
];
