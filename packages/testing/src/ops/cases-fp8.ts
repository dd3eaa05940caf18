/** Cases: 8-bit floats (e4m3) with a scale a row, and products of them. */
import { type DType, dtypes } from "@llm/core";
import { exact, floats, input, opCase, type OpCase, type Tolerance } from "./op-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);
const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));

/** All codes but those of NaN, in an order without a pattern. */
const codes = (n: number) => (): number[] =>
  Array.from({ length: n }, (_, i) => {
    const k = (i * 101 + (i >> 5) * 37) % 254;
    return k < 127 ? k : k + 1;
  });

const products: Tolerance = {
  f32: 2 ** -17,
  bf16: 2 ** -8,
  f16: 2 ** -9,
  reason:
    "codes are the same everywhere and their products exact; sums of up to 25,000 of them are f32 in any order, or those of FP8 tensor cores, which line up groups of 32 at about 13 bits below the largest; one rounding at the end",
};

for (const dtype of floats) {
  for (const [rows, cols, padding] of [
    [3, 16, 0],
    [5, 33, 0],
    [2, 160, 32],
    [4, 5000, 0],
    [3, 4992, 16],
    [1, 70000, 0],
    [2, 37888, 0],
    [2, 7, 3],
    [0, 8, 0],
    [3, 0, 0],
  ] as const)
    add("quantize_fp8", "", [input(dtype, [rows, cols], { normal: 0.1 }, padding)], [], exact);
  add(
    "quantize_fp8",
    "zeros, halves between codes, below the smallest normal, negative zero",
    [
      input(
        dtype,
        [4, 4],
        [0, 0, 0, 0, 448, 17, 19, -27, 448, 0.00390625, -0.001, 0.0009, 448, -0, 0.0146484375, 0.0029],
      ),
    ],
    [],
    exact,
  );
  add("quantize_fp8", "not finite", [input(dtype, [2, 4], [1, NaN, -2, 0.5, Infinity, 1, -1, 0])], [], exact);
  for (const [rows, cols] of [
    [3, 16],
    [5, 33],
    [0, 8],
  ] as const)
    add(
      "dequantize_fp8",
      "",
      [input("u8", [rows, cols], codes(rows * cols)), input("f32", [rows], { uniform: [0.01, 2] })],
      [code(dtype)],
      exact,
    );
  for (const [T, N, C, padding] of [
    [5, 32, 48, 0],
    [33, 48, 512, 16],
    [3, 7, 33, 0],
    [1, 16, 16, 0],
    [130, 144, 272, 0],
    [0, 16, 16, 0],
    [2, 16, 0, 0],
    [3, 9232, 16, 0],
    [2, 24592, 1, 16],
  ] as const) {
    const weight = [input("u8", [N, C], codes(N * C)), input("f32", [N], { uniform: [0.001, 0.002] })] as const;
    add("linear_fp8", "", [input(dtype, [T, C], { normal: 1 }, padding), ...weight, null], [], products);
    add("linear_fp8", "", [input(dtype, [T, C], { normal: 1 }), ...weight, input(dtype, [N])], [], products);
    add("linear_fp8_bwd", "", [input(dtype, [T, N], { normal: 1 }, padding), ...weight], [], products);
  }
}

// Rows that go through shared memory on a GPU, and more of them than it has multiprocessors.
add(
  "linear_fp8_bwd",
  "",
  [input("bf16", [134, 8208]), input("u8", [8208, 1], codes(8208)), input("f32", [8208], { uniform: [0.001, 0.002] })],
  [],
  products,
);

export const fp8Cases: readonly OpCase[] = cases;
