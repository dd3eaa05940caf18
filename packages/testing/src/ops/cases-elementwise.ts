/** Cases: arithmetic, movement, reductions, rows of probabilities, random numbers. */
import { type DType, dtypes } from "@llm/core";
import { arithmetic, exact, floats, input, opCase, type OpCase, summation, transcendental } from "./op-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);
const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));

for (const op of ["add", "sub", "mul"]) {
  for (const dtype of floats) {
    add(op, "same shape", [input(dtype, [3, 5]), input(dtype, [3, 5])], [], arithmetic);
    add(op, "a row", [input(dtype, [2, 3, 7]), input(dtype, [7])], [], arithmetic);
    add(op, "one element", [input(dtype, [5, 3]), input(dtype, [1])], [], arithmetic);
  }
  add(op, "empty", [input("f32", [0, 4]), input("f32", [4])], [], arithmetic);
  add(op, "many chunks", [input("f32", [67, 517]), input("f32", [517])], [], arithmetic);
  add(
    op,
    "strided, copied first",
    [input("f32", [4, 6], { normal: 1 }, 3), input("f32", [4, 6], { normal: 1 }, 5)],
    [],
    arithmetic,
  );
}

const bits = [
  0,
  1,
  -1,
  0.1,
  65504,
  65519,
  65520,
  -70000,
  3.3895314e38,
  3.4e38,
  1e-45,
  6e-8,
  2.98e-8,
  6.1e-5,
  1.00390625,
  1.01171875,
  1.00048828125,
  1.00146484375,
  Infinity,
  -Infinity,
  NaN,
];
for (const from of floats) {
  for (const to of floats) {
    add("cast", "special values", [input(from, [3, 7], bits)], [code(to)], exact);
    add("copy", "", [input(to, [3, 5]), input(from, [3, 5])], [], exact);
    add("copy", "strided", [input(to, [3, 5], { normal: 1 }, 2), input(from, [3, 5], { normal: 1 }, 4)], [], exact);
    add("axpy", "", [input(to, [7, 9]), input(from, [7, 9])], [0.5], arithmetic);
  }
  add("cast", "many chunks", [input(from, [33, 1031])], [code("bf16")], exact);
  add("scale", "", [input(from, [3, 11])], [-0.3], arithmetic);
  add("scale", "empty", [input(from, [0])], [2], arithmetic);
  add("mul_scalar_tensor", "", [input(from, [3, 11]), input("f32", [1])], [], arithmetic);
  add(
    "silu",
    "",
    [input(from, [3, 7], [-100, -20, -5, -1, -0.1, 0, 0.1, 1, 5, 20, 100, -88, 88, 0.5, -0.5, 2, -2, 3, -3, 4, -4])],
    [],
    transcendental,
  );
  add("silu", "many", [input(from, [1000], { normal: 3 })], [], transcendental);
  add("silu_bwd", "", [input(from, [41]), input(from, [41], { normal: 3 })], [], transcendental);
  add("mul_cols", "multiply", [input(from, [3, 2, 5]), input("f32", [5])], [0], arithmetic);
  add("mul_cols", "divide", [input(from, [4, 5]), input("f32", [5], { uniform: [0.5, 2] })], [1], arithmetic);
  add("mse", "", [input(from, [5, 7]), input("f32", [5, 7])], [], summation);
  add("sum", "", [input(from, [9, 113])], [], summation);
  for (const op of ["sum_rows", "mean_abs_cols", "max_abs_cols"]) {
    add(op, "", [input(from, [13, 5])], [], summation);
    add(op, "strided", [input(from, [13, 5], { normal: 1 }, 3)], [], summation);
  }
  for (const op of ["softmax", "log_softmax"]) {
    add(op, "", [input(from, [5, 33], { normal: 4 })], [], transcendental);
    add(op, "one column", [input(from, [3, 1])], [], transcendental);
    add(
      op,
      "-inf",
      [
        input(
          from,
          [3, 4],
          [0, -Infinity, 2, -Infinity, -Infinity, -Infinity, -Infinity, -Infinity, -Infinity, 1, 100, -100],
        ),
      ],
      [],
      transcendental,
    );
    add(op, "three dims", [input(from, [2, 3, 17], { normal: 30 })], [], transcendental);
  }
  add(
    "argmax",
    "ties",
    [
      input(
        from,
        [4, 5],
        [1, 3, 3, 2, 3, -1, -1, -2, -1, -3, 0, 0, 0, 0, 0, -Infinity, -Infinity, -Infinity, -Infinity, -Infinity],
      ),
    ],
    [],
    exact,
  );
  add("argmax", "", [input(from, [7, 301])], [], exact);
  add("topk", "ties go to the lower index", [input(from, [2, 6], [1, 3, 3, 2, 3, 1, 0, 0, 0, 0, 0, 0])], [4], exact);
  add("topk", "", [input(from, [5, 200], { normal: 2 })], [7], exact);
  add("topk", "a vocabulary", [input(from, [2, 6001], { normal: 2 })], [50], exact);
  add("argmax", "a vocabulary", [input(from, [2, 6001], { normal: 2 })], [], exact);
  add("topk", "more than there are", [input(from, [2, 3])], [5], exact);
  add("topk", "-inf", [input(from, [1, 4], [-Infinity, 2, -Infinity, 1])], [3], exact);
  add("transpose", "", [input(from, [5, 7])], [], exact);
  add("contiguous", "", [input(from, [5, 2, 3], { normal: 1 }, 4)], [], exact);
  add("concat_rows", "", [input(from, [2, 3]), input(from, [0, 3]), input(from, [4, 3])], [], exact);
  add("concat_cols", "", [input(from, [3, 2]), input(from, [3, 5], { normal: 1 }, 2), input(from, [3, 1])], [], exact);
  add("gather_rows", "", [input(from, [5, 7]), input("i32", [6], [4, 0, 0, 3, 4, 1])], [], exact);
  add("fill", "", [input(from, [3, 5])], [-1.5], exact);
  for (const size of [1, 4, 7, 1003]) {
    add("fill_normal", "", [input(from, [size])], [0.5, 2, 2 ** 40 + 5, 2 ** 33 + 1], transcendental);
    add("fill_uniform", "", [input(from, [size])], [-2, 3, 7, 0], arithmetic);
  }
  add("dropout", "", [input(from, [3, 101])], [0.3, 11, 3], arithmetic);
  add("dropout", "none", [input(from, [9])], [0, 11, 3], exact);
}

for (const dtype of ["i32", "i8", "u8", "i64"] as const) {
  add("fill", "", [input(dtype, [5], { integers: [0, 9] })], [7], exact);
  add(
    "copy",
    "strided",
    [input(dtype, [3, 4], { integers: [0, 99] }, 2), input(dtype, [3, 4], { integers: [0, 99] }, 1)],
    [],
    exact,
  );
  add("contiguous", "", [input(dtype, [3, 4], { integers: [0, 99] }, 1)], [], exact);
  add(
    "concat_rows",
    "",
    [input(dtype, [2, 3], { integers: [0, 99] }), input(dtype, [1, 3], { integers: [0, 99] })],
    [],
    exact,
  );
  add("gather_rows", "", [input(dtype, [3, 2, 2], { integers: [0, 99] }), input("i32", [2], [2, 0])], [], exact);
}
add(
  "axpy",
  "strided",
  [input("f32", [5, 3], { normal: 1 }, 2), input("bf16", [5, 3], { normal: 1 }, 4)],
  [-2],
  arithmetic,
);
add("axpy", "empty", [input("f32", [0, 3]), input("f32", [0, 3])], [1], arithmetic);
add("axpy", "many chunks", [input("f32", [70, 501]), input("f32", [70, 501])], [0.25], arithmetic);
add("transpose", "strided", [input("f32", [3, 4], { normal: 1 }, 2)], [], exact);
add("transpose", "empty", [input("f32", [0, 4])], [], exact);
add("transpose", "many tiles", [input("bf16", [131, 67])], [], exact);
add("concat_rows", "one", [input("f32", [2, 2, 2])], [], exact);
add("concat_cols", "no rows", [input("f32", [0, 2]), input("f32", [0, 3])], [], exact);
add("gather_rows", "no rows", [input("f32", [5, 7]), input("i32", [0], [])], [], exact);
add("sum", "empty", [input("f32", [0])], [], exact);
add("sum", "many", [input("f32", [100_003], { uniform: [0, 1] })], [], summation);
add("mse", "empty", [input("f32", [0, 3]), input("f32", [0, 3])], [], exact);
for (const op of ["sum_rows", "mean_abs_cols", "max_abs_cols"]) {
  add(op, "no rows", [input("f32", [0, 3])], [], exact);
  add(op, "many", [input("f32", [300, 129])], [], summation);
}
for (const op of ["softmax", "log_softmax"]) {
  add(op, "empty", [input("f32", [0, 5])], [], transcendental);
  add(op, "many", [input("f32", [37, 1501], { normal: 5 })], [], transcendental);
}
add("fill_uniform", "unit, to the bit", [input("f32", [10_001])], [0, 1, 123456789, 42], exact);
add("fill_normal", "empty", [input("f32", [0])], [0, 1, 1, 1], exact);

export const elementwiseCases: readonly OpCase[] = cases;
