/** References: weight quantizers. Codes depend on the last bit, so scales are computed in f32 steps (`fround`). */
import { dtypes } from "@llm/core";
import { matrixOf } from "./reference-elementwise.js";
import { type Numbers, numbers, roundEven } from "./numbers.js";
import type { Reference } from "./reference.js";

const { fround } = Math;
const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x));

/** 4-bit codes of one group. */
function w4Group(w: readonly number[], symmetric: boolean): { scale: number; zero: number; codes: number[] } {
  let [scale, zero] = [0, 8];
  if (symmetric) {
    const absmax = Math.max(...w.map(Math.abs));
    scale = absmax === 0 ? fround(1e-5) : fround(absmax / 7);
  } else {
    const [low, high] = [Math.min(...w), Math.max(...w)];
    scale = fround(Math.max(fround(high - low), fround(1e-5)) / 15);
    zero = clamp(-roundEven(fround(low / scale)), 0, 15);
  }
  return { scale, zero, codes: w.map((x) => clamp(roundEven(fround(x / scale)) + zero, 0, 15)) };
}

/** NF4's 16 values: quantiles of a normal distribution. @see Dettmers et al. 2023, arXiv:2305.14314, appendix E */
export const nf4Values: readonly number[] = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
];

/** Weights [N, C] of canonical W4. */
export function dequantizedW4(q: Numbers, scales: Numbers, zeros: Numbers, group: number): Numbers {
  const [rows, half] = q.shape as [number, number];
  const groups = scales.shape[1]!;
  const w = numbers("f32", [rows, 2 * half]);
  w.data.forEach((_, i) => {
    const [r, c] = [Math.floor(i / (2 * half)), i % (2 * half)];
    const g = r * groups + Math.floor(c / group);
    const code = (q.data[r * half + (c >> 1)]! >> ((c % 2) * 4)) & 15;
    w.data[i] = fround((code - zeros.data[g]!) * scales.data[g]!);
  });
  return w;
}

/** Weights [N, C] of canonical Q8. */
export function dequantizedQ8(q: Numbers, scales: Numbers, group: number): Numbers {
  const { cols } = matrixOf(q);
  const groups = scales.shape[1]!;
  return {
    ...numbers("f32", q.shape),
    data: q.data.map((code, i) =>
      fround(code * scales.data[Math.floor(i / cols) * groups + Math.floor((i % cols) / group)]!),
    ),
  };
}

/** Rows cut into groups along the columns. */
function groupsOf(w: Numbers, group: number): { row: number; index: number; start: number; values: number[] }[] {
  const { rows, cols } = matrixOf(w);
  const found = [];
  for (let row = 0; row < rows; row++)
    for (let start = 0, index = 0; start < cols; start += group, index++)
      found.push({
        row,
        index,
        start,
        values: Array.from(w.data.subarray(row * cols + start, row * cols + Math.min(cols, start + group))),
      });
  return found;
}

export const quantization: Record<string, Reference> = {
  quantize_w4: ([w], [group, symmetric]) => {
    const { rows, cols } = matrixOf(w!);
    const groups = Math.ceil(cols / group!);
    const [q, scales, zeros] = [
      numbers("u8", [rows, cols / 2]),
      numbers("f32", [rows, groups]),
      numbers("u8", [rows, groups]),
    ];
    for (const { row, index, start, values } of groupsOf(w!, group!)) {
      const { scale, zero, codes } = w4Group(values, symmetric !== 0);
      scales.data[row * groups + index] = scale;
      zeros.data[row * groups + index] = zero;
      codes.forEach((code, i) => (q.data[(row * cols + start + i) >> 1]! += code << (((start + i) % 2) * 4)));
    }
    return [q, scales, zeros];
  },
  dequantize_w4: ([q, scales, zeros], [group, code]) => [
    { ...dequantizedW4(q!, scales!, zeros!, group!), dtype: dtypes[code!]! },
  ],
  quantize_q8: ([w], [group]) => {
    const { rows, cols } = matrixOf(w!);
    const groups = Math.ceil(cols / group!);
    const [q, scales] = [numbers("i8", [rows, cols]), numbers("f32", [rows, groups])];
    for (const { row, index, start, values } of groupsOf(w!, group!)) {
      const absmax = Math.max(...values.map(Math.abs));
      const scale = absmax === 0 ? fround(1e-5) : fround(absmax / 127);
      scales.data[row * groups + index] = scale;
      values.forEach((x, i) => (q.data[row * cols + start + i] = clamp(roundEven(fround(x / scale)), -127, 127)));
    }
    return [q, scales];
  },
  dequantize_q8: ([q, scales], [group, code]) => [{ ...dequantizedQ8(q!, scales!, group!), dtype: dtypes[code!]! }],
  quantize_nf4: ([x], [block]) => {
    const n = x!.data.length;
    const [q, absmax] = [numbers("u8", [n / 2]), numbers("f32", [Math.ceil(n / block!)])];
    x!.data.forEach((value, i) => {
      const b = Math.floor(i / block!);
      absmax.data[b] = Math.max(absmax.data[b]!, Math.abs(value));
    });
    x!.data.forEach((value, i) => {
      const scaled = fround(value * fround(1 / absmax.data[Math.floor(i / block!)]!));
      let code = 0;
      for (let j = 0; j < 15; j++) if (scaled > fround((fround(nf4Values[j]!) + fround(nf4Values[j + 1]!)) / 2)) code++;
      q.data[i >> 1]! += i % 2 === 0 ? code << 4 : code;
    });
    return [q, absmax];
  },
  dequantize_nf4: ([q, absmax], [block, code, rows, cols]) => {
    const y = numbers(dtypes[code!]!, [rows!, cols!]);
    y.data.forEach((_, i) => {
      const byte = q!.data[i >> 1]!;
      y.data[i] = fround(
        fround(nf4Values[i % 2 === 0 ? byte >> 4 : byte & 15]!) * absmax!.data[Math.floor(i / block!)]!,
      );
    });
    return [y];
  },
  awq_clip_search: ([w, x], [group, grid, shrink]) => {
    const { rows, cols } = matrixOf(w!);
    const groups = Math.ceil(cols / group!);
    const best = numbers("f32", [rows, groups]);
    for (const { row, index, start, values } of groupsOf(w!, group!)) {
      const absmax = Math.max(...values.map(Math.abs));
      let smallest = Infinity;
      for (let step = 0; step < Math.max(1, Math.floor(grid! * shrink!)); step++) {
        const clip = fround(absmax * (1 - step / grid!));
        const clipped = values.map((value) => clamp(value, -clip, clip));
        const { scale, zero, codes } = w4Group(clipped, false);
        let error = 0;
        for (let s = 0; s < x!.shape[0]!; s++) {
          let d = 0;
          codes.forEach((code, i) => (d += x!.data[s * cols + start + i]! * ((code - zero) * scale - values[i]!)));
          error += d * d;
        }
        if (error < smallest) [smallest, best.data[row * groups + index]] = [error, clip];
      }
    }
    return [best];
  },
};
