/** Cases: matrix products. M rows, K inner, N columns. */
import { type DType, dtypes } from "@llm/core";
import { floats, input, opCase, type OpCase, summation } from "./op-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);
const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));

const sides = (m: number, k: number, n: number, transA: number, transB: number): [a: number[], b: number[]] => [
  transA ? [k, m] : [m, k],
  transB ? [n, k] : [k, n],
];

for (const dtype of floats) {
  for (const transA of [0, 1])
    for (const transB of [0, 1]) {
      for (const [m, k, n] of [
        [3, 5, 7],
        [1, 33, 17],
        [37, 65, 41],
      ] as const) {
        const [a, b] = sides(m, k, n, transA, transB);
        add("matmul", "", [input(dtype, a), input(dtype, b), null], [transA, transB, code(dtype)], summation);
        add(
          "matmul_acc",
          "",
          [input("f32", [m, n]), input(dtype, a), input(dtype, b)],
          [transA, transB, 0.5, 1],
          summation,
        );
      }
      const [a, b] = sides(5, 9, 6, transA, transB);
      add(
        "matmul",
        "strided, bias",
        [input(dtype, a, { normal: 1 }, 3), input(dtype, b, { normal: 1 }, 5), input(dtype, [6])],
        [transA, transB, code(dtype)],
        summation,
      );
      add(
        "matmul_acc",
        "strided",
        [input(dtype, [5, 6], { normal: 1 }, 2), input(dtype, a, { normal: 1 }, 1), input(dtype, b, { normal: 1 }, 4)],
        [transA, transB, -1, 0.25],
        summation,
      );
    }
  add(
    "matmul",
    "f32 result",
    [input(dtype, [4, 40]), input(dtype, [12, 40]), input("f32", [12])],
    [0, 1, code("f32")],
    summation,
  );
  add("matmul", "f32 weights", [input(dtype, [4, 8]), input("f32", [6, 8]), null], [0, 1, code(dtype)], summation);
  add(
    "matmul",
    "no inner dim: the bias",
    [input(dtype, [3, 0]), input(dtype, [0, 4]), input(dtype, [4])],
    [0, 0, code(dtype)],
    summation,
  );
  add(
    "matmul",
    "no inner dim: zeros",
    [input(dtype, [3, 0]), input(dtype, [4, 0]), null],
    [0, 1, code(dtype)],
    summation,
  );
  add("matmul", "no rows", [input(dtype, [0, 5]), input(dtype, [5, 4]), null], [0, 0, code(dtype)], summation);
  add("matmul", "no columns", [input(dtype, [3, 5]), input(dtype, [0, 5]), null], [0, 1, code(dtype)], summation);
  add(
    "matmul",
    "one token, long",
    [input(dtype, [1, 1024]), input(dtype, [65, 1024]), null],
    [0, 1, code(dtype)],
    summation,
  );
  add(
    "matmul",
    "blocks and edges",
    [input(dtype, [67, 259]), input(dtype, [131, 259]), input(dtype, [131])],
    [0, 1, code(dtype)],
    summation,
  );
  add(
    "matmul_acc",
    "beta 0 never reads c",
    [input("f32", [2, 3], [NaN, NaN, NaN, Infinity, NaN, NaN]), input(dtype, [2, 4]), input(dtype, [4, 3])],
    [0, 0, 1, 0],
    summation,
  );
  add(
    "matmul_acc",
    "no inner dim: beta c",
    [input("f32", [2, 3]), input(dtype, [2, 0]), input(dtype, [0, 3])],
    [0, 0, 1, 0.5],
    summation,
  );
  add(
    "matmul_acc",
    "weight gradient",
    [input("f32", [35, 67]), input(dtype, [130, 35]), input(dtype, [130, 67])],
    [1, 0, 1, 1],
    summation,
  );
  add(
    "matmul_acc",
    "16-bit columns",
    [input(dtype, [9, 8], { normal: 1 }, 8), input(dtype, [9, 4]), input(dtype, [8, 4])],
    [0, 1, 2, 1],
    summation,
  );
}
add("matmul", "deep", [input("f32", [2, 4099]), input("f32", [4099, 3]), null], [0, 0, code("f32")], summation);
add("matmul", "deep", [input("bf16", [2, 4099]), input("bf16", [3, 4099]), null], [0, 1, code("f32")], summation);
for (const dtype of ["f32", "bf16"] as const) {
  add(
    "matmul",
    "several cache blocks",
    [input(dtype, [97, 700]), input(dtype, [110, 700]), null],
    [0, 1, code(dtype)],
    summation,
  );
  add(
    "matmul",
    "several cache blocks",
    [input(dtype, [97, 530]), input(dtype, [530, 70]), null],
    [0, 0, code("f32")],
    summation,
  );
}

export const matmulCases: readonly OpCase[] = cases;
