/** Cases: embedding, norms, rotary embedding, gated activation, attention and its gradient. */
import { attentionForward } from "./reference-layers.js";
import { type Numbers, makeNumbers } from "./numbers.js";
import {
  arithmetic,
  attentionGradients,
  attentionSums,
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

/** Norm gradients need the forward's rstd; any positive numbers prove the formula. */
const rstd = (rows: number): CaseInput => input("f32", [rows], { uniform: [0.5, 2] });

for (const dtype of floats) {
  add("embedding", "", [input("i32", [5], [6, 0, 3, 3, 1]), input(dtype, [7, 9])], [], exact);
  add("embedding", "no tokens", [input("i32", [0], []), input(dtype, [7, 9])], [], exact);
  for (const weight of ["f32", "bf16"] as const)
    add(
      "embedding_bwd",
      "repeated ids, in order",
      [input(dtype, [6, 5]), input("i32", [6], [2, 0, 2, 2, 1, 2]), input(weight, [4, 5])],
      [],
      { ...exact, f32: 2 ** -22, bf16: 2 ** -7, reason: "adds in the order of the tokens, rounding each time" },
    );
  for (const [rows, cols] of [
    [1, 1],
    [5, 7],
    [3, 64],
    [9, 129],
  ] as const) {
    add("rms_norm", "", [input(dtype, [rows, cols]), input(dtype, [cols])], [1e-5], transcendental);
    add(
      "add_rms_norm",
      "",
      [input(dtype, [rows, cols]), input(dtype, [rows, cols]), input(dtype, [cols])],
      [1e-6],
      transcendental,
    );
    add(
      "rms_norm_bwd",
      "",
      [input(dtype, [rows, cols]), input(dtype, [rows, cols]), input(dtype, [cols]), rstd(rows), null],
      [1],
      summation,
    );
    add(
      "rms_norm_bwd",
      "dsum",
      [
        input(dtype, [rows, cols]),
        input(dtype, [rows, cols]),
        input(dtype, [cols]),
        rstd(rows),
        input(dtype, [rows, cols]),
      ],
      [0],
      summation,
    );
  }
  add(
    "rms_norm",
    "heads, strided",
    [input(dtype, [3, 4, 8], { normal: 1 }, 6), input(dtype, [8])],
    [1e-6],
    transcendental,
  );
  add(
    "rms_norm",
    "zeros",
    [input(dtype, [2, 4], new Array<number>(8).fill(0)), input(dtype, [4])],
    [1e-5],
    transcendental,
  );
  add("rms_norm", "no rows", [input(dtype, [0, 4]), input(dtype, [4])], [1e-5], transcendental);
  add(
    "rms_norm_bwd",
    "strided",
    [input(dtype, [3, 6]), input(dtype, [3, 6], { normal: 1 }, 3), input(dtype, [6]), rstd(3), null],
    [1],
    summation,
  );
  add(
    "rms_norm_bwd",
    "no rows",
    [input(dtype, [0, 6]), input(dtype, [0, 6]), input(dtype, [6]), rstd(0), null],
    [1],
    summation,
  );
  for (const inverse of [0, 1]) {
    const table = (): CaseInput => input("f32", [6, 4], { uniform: [-1, 1] });
    add(
      "rope",
      "",
      [input(dtype, [5, 3, 8]), table(), table(), input("i32", [5], [0, 5, 2, 2, 1])],
      [inverse],
      arithmetic,
    );
    add(
      "rope",
      "strided",
      [input(dtype, [3, 2, 8], { normal: 1 }, 10), table(), table(), input("i32", [3], [4, 0, 3])],
      [inverse],
      arithmetic,
    );
  }
  add(
    "rope",
    "no tokens",
    [input(dtype, [0, 3, 2]), input("f32", [1, 1]), input("f32", [1, 1]), input("i32", [0], [])],
    [0],
    arithmetic,
  );
  add(
    "rope",
    "wide",
    [
      input(dtype, [17, 4, 64]),
      input("f32", [20, 32], { uniform: [-1, 1] }),
      input("f32", [20, 32], { uniform: [-1, 1] }),
      input("i32", [17], { integers: [0, 19] }),
    ],
    [0],
    arithmetic,
  );
  for (const [rows, width] of [
    [3, 2],
    [5, 34],
    [2, 256],
    [0, 4],
  ] as const) {
    add("swiglu", "", [input(dtype, [rows, width], { normal: 2 })], [], transcendental);
    add(
      "swiglu_bwd",
      "",
      [input(dtype, [rows, width / 2]), input(dtype, [rows, width], { normal: 2 })],
      [],
      transcendental,
    );
  }
  add("swiglu", "strided", [input(dtype, [3, 14], { normal: 2 }, 5)], [], transcendental);
  add("swiglu_bwd", "strided", [input(dtype, [3, 7]), input(dtype, [3, 14], { normal: 2 }, 5)], [], transcendental);
}
add("rms_norm", "many chunks", [input("bf16", [70, 513]), input("bf16", [513])], [1e-5], transcendental);
add(
  "rms_norm_bwd",
  "many chunks",
  [input("f32", [90, 257]), input("f32", [90, 257]), input("f32", [257]), rstd(90), null],
  [1],
  summation,
);
add("swiglu", "many chunks", [input("f32", [40, 1026], { normal: 2 })], [], transcendental);

/** Shapes of an attention call; sequence lengths of queries and keys. */
interface Attention {
  note: string;
  queries: readonly number[];
  keys?: readonly number[];
  heads: number;
  keyHeads: number;
  width: number;
  causal?: boolean;
  window?: number;
  padding?: number;
  /** Scales the inputs, for peaked distributions. */
  normal?: number;
}

const shapes: readonly Attention[] = [
  { note: "one token", queries: [1], heads: 1, keyHeads: 1, width: 4 },
  { note: "causal", queries: [7], heads: 2, keyHeads: 2, width: 8 },
  { note: "grouped heads, packed", queries: [3, 5, 1], heads: 6, keyHeads: 2, width: 16 },
  { note: "empty sequences", queries: [0, 4, 0, 2, 0], heads: 2, keyHeads: 1, width: 8 },
  { note: "nothing at all", queries: [0], heads: 2, keyHeads: 1, width: 8 },
  { note: "queries shorter than keys", queries: [1, 3], keys: [9, 5], heads: 4, keyHeads: 2, width: 8 },
  { note: "more queries than keys", queries: [5], keys: [2], heads: 2, keyHeads: 1, width: 8 },
  { note: "a sequence without keys", queries: [2, 2], keys: [0, 3], heads: 2, keyHeads: 1, width: 8 },
  { note: "not causal", queries: [5, 2], heads: 4, keyHeads: 4, width: 12, causal: false },
  { note: "cross, not causal", queries: [2], keys: [6], heads: 2, keyHeads: 1, width: 10, causal: false },
  { note: "window", queries: [11, 6], heads: 2, keyHeads: 1, width: 8, window: 3 },
  { note: "window of one", queries: [4], heads: 2, keyHeads: 2, width: 8, window: 1 },
  { note: "window, queries shorter than keys", queries: [2], keys: [20], heads: 2, keyHeads: 1, width: 8, window: 6 },
  { note: "strided", queries: [6, 3], heads: 4, keyHeads: 2, width: 8, padding: 24 },
  { note: "odd width", queries: [6], heads: 3, keyHeads: 1, width: 5 },
  { note: "peaked", queries: [9], heads: 2, keyHeads: 1, width: 16, normal: 6 },
  { note: "many tiles", queries: [70, 37], heads: 2, keyHeads: 1, width: 64 },
  { note: "many keys", queries: [2, 1], keys: [300, 131], heads: 2, keyHeads: 1, width: 32 },
  { note: "many keys, window", queries: [5], keys: [290], heads: 2, keyHeads: 1, width: 16, window: 140 },
  { note: "width 128", queries: [33], keys: [65], heads: 2, keyHeads: 1, width: 128 },
];

const boundaries = (lengths: readonly number[]): CaseInput => {
  const list = [0];
  for (const n of lengths) list.push(list[list.length - 1]! + n);
  return input("i32", [list.length], list);
};

const total = (lengths: readonly number[]): number => lengths.reduce((a, b) => a + b, 0);

for (const dtype of floats) {
  for (const s of shapes) {
    const keys = s.keys ?? s.queries;
    const values = { normal: s.normal ?? 1 };
    const q = input(dtype, [total(s.queries), s.heads, s.width], values, s.padding ?? 0);
    const [k, v] = [0, 1].map(() => input(dtype, [total(keys), s.keyHeads, s.width], values, s.padding ?? 0)) as [
      CaseInput,
      CaseInput,
    ];
    const [cuQ, cuK] = [boundaries(s.queries), boundaries(keys)];
    const attributes = [1 / Math.sqrt(s.width), s.causal === false ? 0 : 1, s.window ?? 0];
    add("attention", s.note, [q, k, v, cuQ, cuK], attributes, attentionSums);
    // The gradient's inputs o and lse belong to its q, k, v: all are made together, when the case runs.
    let made: Numbers[] | undefined;
    const given = (i: number, type: CaseInput["dtype"], shape: readonly number[], padding = 0): CaseInput =>
      input(
        type,
        shape,
        () => {
          if (!made) {
            const inputs = [q, k, v, cuQ, cuK].map((x, j) =>
              makeNumbers(x.dtype, x.shape, x.values, `attention_bwd ${s.note} ${dtype} ${j}`),
            );
            made = [...inputs, ...attentionForward(inputs, attributes)];
          }
          return made[i]!.data;
        },
        padding,
      );
    const [gq, gk, gv] = [q, k, v].map((x, i) => given(i, dtype, x.shape, s.padding ?? 0)) as [
      CaseInput,
      CaseInput,
      CaseInput,
    ];
    const [o, lse] = [given(5, dtype, q.shape), given(6, "f32", [s.heads, total(s.queries)])];
    add("attention_bwd", s.note, [input(dtype, q.shape), gq, gk, gv, o, lse, cuQ, cuK], attributes, attentionGradients);
  }
}

export const layerCases: readonly OpCase[] = cases;
