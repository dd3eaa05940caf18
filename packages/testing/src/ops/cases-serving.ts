/** Cases: the paged cache, attention over it, penalties and the sampler. */
import {
  arithmetic,
  attentionSums,
  exact,
  floats,
  input,
  opCase,
  type CaseInput,
  type OpCase,
  transcendental,
} from "./op-case.js";

const cases: OpCase[] = [];
const add = (...args: Parameters<typeof opCase>): void => void cases.push(opCase(...args));

const cacheShape = [4, 3, 2, 8];
/** Block 1 offset 2, skip, the first slot, the last slot, block 2 offset 0. */
const slots = [5, -1, 0, 11, 6];
for (const dtype of floats) {
  for (const cache of floats) {
    add(
      "kv_append",
      "",
      [input(cache, cacheShape), null, input(dtype, [5, 2, 8]), input("i32", [5], slots)],
      [],
      exact,
    );
    add(
      "kv_append",
      "strided",
      [input(cache, cacheShape), null, input(dtype, [5, 2, 8], { normal: 1 }, 16), input("i32", [5], slots)],
      [],
      exact,
    );
  }
  add(
    "kv_append",
    "no tokens",
    [input(dtype, cacheShape), null, input(dtype, [0, 2, 8]), input("i32", [0], [])],
    [],
    exact,
  );
}
add(
  "kv_append",
  "a constant vector",
  [
    input("i8", [1, 1, 1, 4], { integers: [-128, 127] }),
    input("f32", [1, 1, 1, 2]),
    input("f32", [1, 1, 4], [3, 3, 3, 3]),
    input("i32", [1], [0]),
  ],
  [],
  exact,
);

/** Sequences of a paged step: queries (this step's tokens) and tokens in the cache with them. */
interface Paged {
  note: string;
  queries: readonly number[];
  lengths: readonly number[];
  heads: number;
  keyHeads: number;
  width: number;
  block: number;
  window?: number;
  padding?: number;
}

const steps: readonly Paged[] = [
  { note: "decode", queries: [1, 1, 1], lengths: [1, 7, 12], heads: 4, keyHeads: 2, width: 16, block: 4 },
  { note: "prefill and decode", queries: [5, 1, 3], lengths: [5, 9, 8], heads: 2, keyHeads: 1, width: 8, block: 4 },
  { note: "a slot without tokens", queries: [1, 0, 1], lengths: [3, 0, 6], heads: 2, keyHeads: 2, width: 8, block: 2 },
  { note: "window", queries: [1, 4], lengths: [13, 9], heads: 4, keyHeads: 1, width: 8, block: 4, window: 5 },
  { note: "strided queries", queries: [2, 1], lengths: [6, 4], heads: 4, keyHeads: 2, width: 8, block: 4, padding: 32 },
  { note: "blocks of one", queries: [1], lengths: [5], heads: 1, keyHeads: 1, width: 5, block: 1 },
  { note: "wide heads", queries: [1, 17], lengths: [150, 90], heads: 14, keyHeads: 2, width: 128, block: 16 },
  { note: "long", queries: [1, 17], lengths: [150, 90], heads: 4, keyHeads: 2, width: 64, block: 16 },
];

for (const s of steps) {
  const perSequence = Math.max(...s.lengths.map((n) => Math.ceil(n / s.block)));
  const sequences = s.queries.length;
  const blocks = sequences * perSequence + 1;
  // Blocks scattered over the cache, backwards; entries past a sequence's end are −1.
  const table = Array.from({ length: sequences * perSequence }, (_, i) => {
    const [b, j] = [Math.floor(i / perSequence), i % perSequence];
    return j * s.block < s.lengths[b]! ? blocks - 1 - (j * sequences + b) : -1;
  });
  const cuQ = [0];
  for (const n of s.queries) cuQ.push(cuQ[cuQ.length - 1]! + n);
  const tokens = cuQ[cuQ.length - 1]!;
  const shape = [blocks, s.block, s.keyHeads, s.width];
  const rest = [
    input("i32", [sequences, perSequence], table),
    input("i32", [sequences + 1], cuQ),
    input("i32", [sequences], s.lengths),
  ];
  for (const dtype of floats) {
    const q = input(dtype, [tokens, s.heads, s.width], { normal: 1 }, s.padding ?? 0);
    const attributes = [1 / Math.sqrt(s.width), s.window ?? 0];
    add(
      "paged_attention",
      s.note,
      [q, input(dtype, shape), input(dtype, shape), null, null, ...rest],
      attributes,
      attentionSums,
    );
    const scales = (): CaseInput => input("f32", [...shape.slice(0, 3), 2], { uniform: [0.001, 0.01] });
    const codes = (): CaseInput => input("i8", shape, { integers: [-128, 127] });
    add(
      "paged_attention",
      `${s.note}, int8 cache`,
      [q, codes(), codes(), scales(), scales(), ...rest],
      attributes,
      attentionSums,
    );
  }
}
add(
  "paged_attention",
  "bf16 queries, f32 cache",
  [
    input("bf16", [1, 2, 8]),
    input("f32", [2, 4, 1, 8]),
    input("f32", [2, 4, 1, 8]),
    null,
    null,
    input("i32", [1, 2], [1, 0]),
    input("i32", [2], [0, 1]),
    input("i32", [1], [6]),
  ],
  [0.3, 0],
  attentionSums,
);

/** Rows of sampling parameters: temperature, top-k, top-p, min-p, repetition, presence, frequency, unused. */
const params = (...rows: readonly (readonly number[])[]): CaseInput =>
  input(
    "f32",
    [rows.length, 8],
    rows.flatMap((r) => [...r, ...new Array<number>(8 - r.length).fill(0)]),
  );
const history = input("i32", [3, 6], [0, 1, 1, 4, 4, 4, 2, 3, 2, 3, 0, 0, 5, 5, 5, 5, 5, 5]);
const lengths = [input("i32", [3], [6, 4, 0]), input("i32", [3], [2, 4, 0])];
const neutral = [1, 0, 1, 0, 1, 0, 0];
add(
  "apply_penalties",
  "",
  [
    input("f32", [3, 7], { normal: 3 }),
    history,
    ...lengths,
    params([1, 0, 1, 0, 1.3, 0.5, 0.25], [1, 0, 1, 0, 2, 1, 1], [1, 0, 1, 0, 2, 1, 1]),
  ],
  [],
  arithmetic,
);
add(
  "apply_penalties",
  "off",
  [input("f32", [3, 7], { normal: 3 }), history, ...lengths, params(neutral, neutral, neutral)],
  [],
  exact,
);
add(
  "apply_penalties",
  "-inf stays",
  [
    input("f32", [1, 4], [-Infinity, 1, -1, 0]),
    input("i32", [1, 4], [0, 1, 2, 3]),
    input("i32", [1], [4]),
    input("i32", [1], [0]),
    params([1, 0, 1, 0, 1.5, 0.5, 0.5]),
  ],
  [],
  arithmetic,
);

const settings = [
  [0, 0, 1, 0, 1, 0, 0],
  [1, 0, 1, 0, 1, 0, 0],
  [0.7, 5, 1, 0, 1, 0, 0],
  [1.3, 0, 0.8, 0, 1, 0, 0],
  [1, 0, 1, 0.2, 1, 0, 0],
  [0.9, 40, 0.95, 0.02, 1, 0, 0],
  [1, 1, 1, 0, 1, 0, 0],
  [5, 0, 0.01, 0, 1, 0, 0],
];
for (const dtype of floats) {
  add(
    "sample",
    "every filter",
    [
      input(dtype, [8, 101], { normal: 2 }),
      params(...settings),
      input("i32", [8, 2], { integers: [-2_000_000_000, 2_000_000_000] }),
      input("i32", [8], { integers: [0, 1000] }),
    ],
    [],
    transcendental,
  );
  add(
    "sample",
    "ties",
    [
      input(dtype, [2, 5], [1, 1, 1, 1, 1, 0, 2, 2, 0, 2]),
      params([1, 3, 1, 0, 1], [0, 0, 1, 0, 1]),
      input("i32", [2, 2], [1, 2, 3, 4]),
      input("i32", [2], [0, 9]),
    ],
    [],
    transcendental,
  );
  add(
    "sample",
    "-inf",
    [
      input(dtype, [2, 4], [-Infinity, 0, -Infinity, 0, -Infinity, -Infinity, 3, -Infinity]),
      params([1, 0, 1, 0, 1], [1, 0, 1, 0, 1]),
      input("i32", [2, 2], [5, 6, 7, 8]),
      input("i32", [2], [1, 2]),
    ],
    [],
    transcendental,
  );
}
add(
  "sample",
  "a real vocabulary",
  [
    input("f32", [8, 4001], { normal: 2 }),
    params(...settings),
    input("i32", [8, 2], { integers: [-2_000_000_000, 2_000_000_000] }),
    input("i32", [8], { integers: [0, 1000] }),
  ],
  [],
  transcendental,
);
add(
  "sample",
  "a large vocabulary",
  [
    input("bf16", [8, 32_003], { normal: 3 }),
    params(...settings),
    input("i32", [8, 2], { integers: [-2_000_000_000, 2_000_000_000] }),
    input("i32", [8], { integers: [0, 1000] }),
  ],
  [],
  transcendental,
);
add(
  "sample",
  "no rows",
  [input("f32", [0, 5]), input("f32", [0, 8]), input("i32", [0, 2], []), input("i32", [0], [])],
  [],
  exact,
);

export const servingCases: readonly OpCase[] = cases;
