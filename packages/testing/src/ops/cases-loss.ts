/** Cases: losses and optimizer steps. */
import {
  arithmetic,
  exact,
  floats,
  input,
  opCase,
  type CaseInput,
  type OpCase,
  summation,
  transcendental,
} from "./op-case.js";

const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));
const logs = {
  ...transcendental,
  f32: 2 ** -19,
  reason: `${transcendental.reason}; a logarithm of a sum of up to 4096 of them`,
};

const labels = (list: number[]): CaseInput => input("i32", [list.length], list);
const hard = [0, -Infinity, 3, 1, -Infinity, -Infinity, -Infinity, -Infinity, 5, 5, 5, 5];

for (const dtype of floats) {
  for (const op of ["cross_entropy", "cross_entropy_inplace"]) {
    add(op, "", [input(dtype, [5, 33], { normal: 3 }), labels([0, 32, -100, 7, 7]), null], [], logs);
    add(
      op,
      "weights, some 0",
      [input(dtype, [4, 7], { normal: 2 }), labels([1, 2, -100, 6]), input("f32", [4], [0.5, 0, 1, 2])],
      [],
      logs,
    );
    add(op, "-inf logits", [input(dtype, [3, 4], hard), labels([2, -100, 1]), null], [], logs);
    add(op, "an impossible label", [input(dtype, [2, 4], hard.slice(0, 8)), labels([1, 0]), null], [], logs);
    add(op, "no rows", [input(dtype, [0, 4]), labels([]), null], [], logs);
    add(op, "all ignored", [input(dtype, [3, 5]), labels([-100, -100, -100]), null], [], logs);
  }
  add("token_logprobs", "", [input(dtype, [5, 33], { normal: 3 }), labels([0, 32, 5, -100, 7])], [], logs);
  add("token_logprobs", "greedy, ties, -inf", [input(dtype, [3, 4], hard), labels([2, 0, 0])], [], logs);
  for (const kind of [0, 1])
    for (const hardLabels of [0, 1]) {
      const both = (cols: number): CaseInput[] => [
        input(dtype, [4, 9], { normal: 2 }),
        input(dtype, [4, cols], { normal: 2 }),
      ];
      add("distill_inplace", "", [...both(9), labels([1, 8, -100, 0]), null], [2, 0.5, kind, hardLabels], logs);
      add(
        "distill_inplace",
        "weights, longer teacher",
        [...both(12), labels([1, 8, 3, 0]), input("f32", [4], [1, 0, 0.25, 2])],
        [1, 0.9, kind, hardLabels],
        logs,
      );
      add(
        "distill_inplace",
        "shorter teacher",
        [...both(7), labels([1, 2, 3, 0]), null],
        [4, 0.3, kind, hardLabels],
        logs,
      );
      add(
        "distill_inplace",
        "no rows",
        [input(dtype, [0, 5]), input(dtype, [0, 5]), labels([]), null],
        [2, 0.5, kind, hardLabels],
        logs,
      );
    }
  for (const alpha of [0, 1])
    add(
      "distill_inplace",
      "one term alone",
      [input(dtype, [3, 65], { normal: 2 }), input(dtype, [3, 65], { normal: 2 }), labels([1, 2, 3]), null],
      [2, alpha, 0, 0],
      logs,
    );
}
add(
  "distill_inplace",
  "-inf in both",
  [input("f32", [1, 4], [0, -Infinity, 1, 2]), input("f32", [1, 4], [1, -Infinity, 0, -1]), labels([3]), null],
  [2, 0.5, 0, 0],
  logs,
);
for (const op of ["cross_entropy", "cross_entropy_inplace"])
  add(
    op,
    "a real vocabulary",
    [input("f32", [6, 4001], { normal: 3 }), labels([0, 4000, 1, 2, -100, 77]), null],
    [],
    logs,
  );
add(
  "token_logprobs",
  "a real vocabulary",
  [input("bf16", [6, 4001], { normal: 3 }), labels([0, 4000, 1, 2, 3, 77])],
  [],
  logs,
);

add("global_norm", "", [input("f32", [5, 7]), input("f32", [3]), input("f32", [0]), input("f32", [1])], [], summation);
add("global_norm", "many", [input("f32", [300, 101])], [], summation);
for (const [norm, maxNorm, scale] of [
  [3, 1, 1],
  [0.5, 1, 1],
  [8, 1, 0.25],
  [8, 0, 0.25],
  [0, 1, 1],
  [4, 1, 0.25],
] as const)
  add(
    "clip_coefficient",
    `norm ${norm}, at most ${maxNorm}, scale ${scale}`,
    [input("f32", [1], [norm]), input("f32", [2], [maxNorm, scale])],
    [],
    arithmetic,
  );

const adam = input("f32", [7], [1e-2, 0.9, 0.95, 1e-8, 0.1, 1 - 0.9 ** 3, 1 - 0.95 ** 3]);
const one = input("f32", [1], [0.5]);
/** A master's values rounded to 16 bits are not the parameter's: the step must start from the master. */
const stepTolerance = {
  ...arithmetic,
  f32: 2 ** -21,
  reason: "a handful of f32 roundings and a root; the parameter is the master rounded",
};
for (const dtype of floats) {
  const master = dtype === "f32" ? null : input("f32", [3, 11]);
  const [m, v] = [input("f32", [3, 11]), input("f32", [3, 11], { uniform: [0, 1] })];
  add("adamw", "", [adam, one, input(dtype, [3, 11]), input("f32", [3, 11]), m, v, master], [], stepTolerance);
  add(
    "sgd",
    "momentum, decay",
    [input("f32", [3], [0.1, 0.9, 0.01]), one, input(dtype, [3, 11]), input("f32", [3, 11]), m, master],
    [],
    stepTolerance,
  );
  add(
    "sgd",
    "plain",
    [input("f32", [3], [0.1, 0, 0]), one, input(dtype, [3, 11]), input("f32", [3, 11]), null, master],
    [],
    stepTolerance,
  );
}
add(
  "adamw",
  "first step, zero moments",
  [
    input("f32", [7], [1e-3, 0.9, 0.999, 1e-8, 0, 0.1, 0.001]),
    one,
    input("f32", [9]),
    input("f32", [9]),
    input("f32", [9], new Array<number>(9).fill(0)),
    input("f32", [9], new Array<number>(9).fill(0)),
    null,
  ],
  [],
  stepTolerance,
);
add(
  "adamw",
  "zero gradient",
  [adam, one, input("f32", [2]), input("f32", [2], [0, 0]), input("f32", [2], [0, 0]), input("f32", [2], [0, 0]), null],
  [],
  stepTolerance,
);
add(
  "adamw",
  "empty",
  [adam, one, input("f32", [0]), input("f32", [0]), input("f32", [0]), input("f32", [0]), null],
  [],
  exact,
);
add(
  "adamw",
  "many chunks",
  [
    adam,
    one,
    input("f32", [33_001]),
    input("f32", [33_001]),
    input("f32", [33_001]),
    input("f32", [33_001], { uniform: [0, 1] }),
    null,
  ],
  [],
  stepTolerance,
);

export const lossCases: readonly OpCase[] = cases;
