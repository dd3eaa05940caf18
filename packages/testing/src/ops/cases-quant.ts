/** Cases: quantizers and their inverses. Packed linears are in checks-quant.ts: their layout is the device's own. */
import { type DType, dtypes } from "@llm/core";
import { arithmetic, exact, floats, input, opCase, type OpCase } from "./op-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);
const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));

for (const dtype of floats) {
  for (const symmetric of [0, 1]) {
    for (const [rows, cols, group] of [
      [3, 16, 8],
      [5, 34, 16],
      [2, 128, 128],
      [1, 2, 2],
      [0, 8, 4],
      [4, 130, 64],
    ] as const) {
      add("quantize_w4", "", [input(dtype, [rows, cols], { normal: 0.1 })], [group, symmetric], exact);
    }
    add(
      "quantize_w4",
      "zeros, equal, one outlier, all positive, all negative",
      [input(dtype, [5, 4], [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 100, 0.25, 1, 2, 3, 4, -1, -2, -3, -4])],
      [4, symmetric],
      exact,
    );
  }
  for (const [rows, cols, group] of [
    [3, 16, 8],
    [5, 33, 16],
    [2, 128, 128],
    [0, 8, 4],
  ] as const)
    add("quantize_q8", "", [input(dtype, [rows, cols], { normal: 0.1 })], [group], exact);
  add("quantize_q8", "zeros and an outlier", [input(dtype, [2, 4], [0, 0, 0, 0, 1, -100, 0.3, 0])], [4], exact);
  for (const [size, block] of [
    [128, 64],
    [66, 64],
    [2, 64],
    [0, 64],
    [1000, 64],
    [100, 20],
  ] as const)
    add("quantize_nf4", "", [input(dtype, [size], { normal: 0.1 })], [block], exact);
  add(
    "quantize_nf4",
    "a block of zeros, an outlier",
    [input(dtype, [2, 4], [0, 0, 0, 0, 1, -100, 0.3, 50])],
    [4],
    exact,
  );
  add(
    "dequantize_w4",
    "",
    [
      input("u8", [3, 9], { integers: [0, 255] }),
      input("f32", [3, 3], { uniform: [0.01, 0.1] }),
      input("u8", [3, 3], { integers: [0, 15] }),
    ],
    [8, code(dtype)],
    exact,
  );
  add(
    "dequantize_q8",
    "",
    [input("i8", [3, 9], { integers: [-127, 127] }), input("f32", [3, 3], { uniform: [0.01, 0.1] })],
    [4, code(dtype)],
    exact,
  );
  add(
    "dequantize_nf4",
    "",
    [input("u8", [15], { integers: [0, 255] }), input("f32", [4], { uniform: [0.01, 2] })],
    [8, code(dtype), 5, 6],
    exact,
  );
}
add(
  "quantize_w4",
  "hand-made: scale 0.12, zero 6",
  [input("f32", [1, 8], [-0.7, -0.2, 0.05, 0.3, 0.8, 1.1, -0.4, 0])],
  [8, 0],
  exact,
);
for (const [rows, cols, samples, group] of [
  [3, 16, 5, 8],
  [2, 20, 3, 16],
  [1, 4, 1, 4],
] as const) {
  add(
    "awq_clip_search",
    "",
    [input("f32", [rows, cols], { normal: 0.3 }), input("f32", [samples, cols])],
    [group, 20, 0.5],
    arithmetic,
  );
  add(
    "awq_clip_search",
    "strided inputs",
    [input("f32", [rows, cols], { normal: 0.3 }), input("f32", [samples, cols], { normal: 1 }, 3)],
    [group, 10, 0.5],
    arithmetic,
  );
}

export const quantCases: readonly OpCase[] = cases;
