/**
 * Neighbours that a device may do by one kernel when a Plan holds them: the Plan gives the bits of the ops one by one, whether they were
 * fused or not. C channels, I inner width, D head width, T tokens.
 */
import {
  defaultDevice,
  type DType,
  dtypes,
  native,
  nativeDoctor,
  recordPlan,
  reshape,
  scope,
  startProfile,
  stopProfile,
  synchronize,
  tensor,
  type Tensor,
} from "@llm/core";
import { differentBits, makeNumbers, type Numbers, toTensor } from "./numbers.js";
import type { OpCheck } from "./op-case.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);
const made = new Map<string, Numbers>();
/** The same numbers for the same seed, on memory of its own. */
function noise(dtype: DType, shape: number[], seed: string, size = 1): Tensor {
  const key = `${seed} ${dtype} ${shape.join(" ")}`;
  const numbers = made.get(key) ?? makeNumbers(dtype, shape, { normal: size }, seed);
  made.set(key, numbers);
  return toTensor(numbers);
}

/** One step as a program writes it, on memory of its own. */
interface Step {
  name: string;
  /** Launches on a GPU that fuses. @default not looked at */
  launches?: number;
  /** Called once for the ops one by one and once for the Plan; the returned function is the step and gives all its results. */
  build(): () => Tensor[];
}

/** Whether the device fuses at all. */
const fuses = (): boolean => defaultDevice() === "cuda" && nativeDoctor().cuda!.compute >= 90;

function compare(step: Step): string[] {
  return scope(() => {
    const problems: string[] = [];
    const [eager, recorded] = [step.build(), step.build()];
    const { plan, result } = recordPlan(() => scope(recorded));
    // Run by run: the commands themselves, their capture, a replay.
    for (let run = 0; run < 3; run++) {
      const count = run === 0 && step.launches !== undefined && fuses();
      const want = scope(eager);
      synchronize();
      if (count) startProfile();
      plan.run();
      synchronize();
      const launches = count ? stopProfile().length : step.launches;
      if (launches !== step.launches) problems.push(`${step.name}: ${launches} launches, expected ${step.launches}`);
      want.forEach((t, i) => {
        const bytes = differentBits(result[i]!, t);
        if (bytes > 0) problems.push(`${step.name}: run ${run}, ${bytes} bytes of result ${i} differ`);
      });
    }
    plan.dispose();
    return problems;
  });
}

const fusedCheck = (name: string, ops: string[], steps: () => Step[]): OpCheck => ({
  name: `a Plan of ${name} = the ops one by one`,
  ops,
  run() {
    const problems = steps().flatMap(compare);
    return { maxError: problems.length, tolerance: 0, detail: problems.slice(0, 5).join("; ") };
  },
});

interface Shape {
  dtype: DType;
  rows?: number;
  c: number;
  n: number;
}

/** The first ones one kernel takes. */
const shapes: Shape[] = [
  { dtype: "bf16", c: 1536, n: 130 },
  { dtype: "f16", c: 896, n: 64 },
  { dtype: "bf16", c: 3584, n: 34 },
  { dtype: "bf16", c: 64, n: 6 },
  { dtype: "f16", c: 8, n: 2 },
  { dtype: "bf16", c: 5120, n: 10 },
];
const fused = 3;
/** Shapes that one kernel does not take, or not always. */
const others: Shape[] = [
  { dtype: "bf16", c: 20, n: 10 },
  { dtype: "f32", c: 64, n: 32 },
  { dtype: "bf16", rows: 2, c: 256, n: 64 },
  { dtype: "f16", rows: 5, c: 128, n: 96 },
  { dtype: "bf16", rows: 20, c: 64, n: 64 },
];
const all = [...shapes, ...others];
const label = ({ dtype, rows = 1, c, n }: Shape): string => `${dtype} [${rows}, ${c}] to ${n}`;

const product = (x: Tensor, w: Tensor, bias: Tensor | null = null, dtype = x.dtype): Tensor =>
  native.matmul(x, w, bias, 0, 1, code(dtype));

/** Inputs of a normed product of `shape`. */
function inputs(shape: Shape) {
  const { dtype, rows = 1, c, n } = shape;
  const make = (dims: number[], seed: string, size?: number): Tensor =>
    noise(dtype, dims, `${label(shape)} ${seed}`, size);
  return {
    x: make([rows, c], "x"),
    residual: make([rows, c], "residual"),
    weight: make([c], "norm"),
    w: make([n, c], "w", c ** -0.5),
    bias: make([n], "bias"),
    other: make([rows, n], "other"),
  };
}

const products = fusedCheck(
  "norms, a product and what follows it",
  ["rms_norm", "add_rms_norm", "matmul", "swiglu", "add"],
  () =>
    all.flatMap((shape, at): Step[] => {
      const one = at < fused ? { launches: 1 } : {};
      const step = (
        what: string,
        run: (t: ReturnType<typeof inputs>) => Tensor[],
        launches: { launches?: number } = one,
      ): Step => ({
        name: `${what} ${label(shape)}`,
        ...launches,
        build() {
          const t = inputs(shape);
          return () => run(t);
        },
      });
      const steps = [
        step("norm, product, gate", (t) => {
          const [normed, rstd] = native.rmsNorm(t.x, t.weight, 1e-6);
          const y = product(normed, t.w, t.bias);
          return [normed, rstd, y, native.swiglu(y)];
        }),
        step("norm with addition, product, gate", (t) => {
          const [normed, sum, rstd] = native.addRmsNorm(t.x, t.residual, t.weight, 1e-6);
          const y = product(normed, t.w);
          return [normed, sum, rstd, y, native.swiglu(y)];
        }),
        step("norm, product with bias", (t) => {
          const [normed, rstd] = native.rmsNorm(t.x, t.weight, 1e-6);
          return [normed, rstd, product(normed, t.w, t.bias)];
        }),
        step("norm, product in f32", (t) => {
          const [normed, rstd] = native.rmsNorm(t.x, t.weight, 1e-6);
          return [normed, rstd, product(normed, t.w, null, "f32")];
        }),
        step("product, addition", (t) => {
          const y = product(t.x, t.w, t.bias);
          return [y, native.add(y, t.other)];
        }),
        step("product, addition the other way around", (t) => {
          const y = product(t.x, t.w);
          return [y, native.add(t.other, y)];
        }),
        step("norm, product, addition", (t) => {
          const [normed, rstd] = native.rmsNorm(t.x, t.weight, 1e-6);
          const y = product(normed, t.w);
          return [normed, rstd, y, native.add(y, t.other)];
        }),
      ];
      return steps;
    }),
);

const lookalikes = fusedCheck(
  "what only looks like neighbours",
  ["rms_norm", "add_rms_norm", "matmul", "swiglu", "add", "copy"],
  () => {
    const shape: Shape = { dtype: "bf16", c: 256, n: 256 };
    const step = (name: string, run: (t: ReturnType<typeof inputs>) => Tensor[]): Step => ({
      name,
      build() {
        const t = inputs(shape);
        return () => run(t);
      },
    });
    return [
      step("a result where its input was", (t) => {
        const x = native.add(t.x, t.residual);
        const [normed] = native.rmsNorm(x, t.weight, 1e-6);
        x.dispose();
        const y = product(normed, t.w);
        normed.dispose();
        return [y, native.add(y, t.other)];
      }),
      step("a gate where the product's input was", (t) => {
        const [normed, rstd] = native.rmsNorm(t.x, t.weight, 1e-6);
        const y = product(normed, t.w);
        normed.dispose();
        return [rstd, y, native.swiglu(y)];
      }),
      step("a sum where its other operand was", (t) => {
        const other = native.add(t.other, t.residual);
        const y = product(t.x, t.w);
        const sum = native.add(y, other);
        other.dispose();
        return [y, sum, native.silu(sum)];
      }),
      step("an addition to itself", (t) => {
        const y = product(t.x, t.w);
        return [y, native.add(y, y)];
      }),
      step("an addition of the norm's own sum", (t) => {
        const [normed, sum] = native.addRmsNorm(t.x, t.residual, t.weight, 1e-6);
        const y = product(normed, t.w);
        return [sum, y, native.add(y, sum)];
      }),
      step("a product of the input, not of the norm", (t) => {
        const [normed] = native.rmsNorm(t.x, t.weight, 1e-6);
        const y = product(t.x, t.w);
        return [normed, y, native.swiglu(y)];
      }),
      step("a product of the sum, not of the norm", (t) => {
        const [normed, sum] = native.addRmsNorm(t.x, t.residual, t.weight, 1e-6);
        return [normed, product(sum, t.w)];
      }),
      step("a norm that is overwritten", (t) => {
        const [normed] = native.rmsNorm(t.x, t.weight, 1e-6);
        native.copy(normed, t.residual);
        const y = product(normed, t.w);
        native.copy(y, t.other);
        return [normed, y, native.swiglu(y)];
      }),
      step("a weight on its side", (t) => {
        const [normed] = native.rmsNorm(t.x, t.weight, 1e-6);
        return [native.matmul(normed, t.w, null, 0, 0, code("bf16"))];
      }),
      step("an added row of one element", (t) => {
        const y = product(t.x, t.w);
        return [native.add(y, t.bias), native.add(y, t.bias.rows(3, 4))];
      }),
      {
        name: "a weight that the Plan itself makes",
        build() {
          const t = inputs(shape);
          return () => {
            native.axpy(t.w, t.w, 0.5);
            const [normed] = native.rmsNorm(t.x, t.weight, 1e-6);
            const y = product(normed, t.w);
            native.copy(t.x, y);
            return [y, native.swiglu(y)];
          };
        },
      },
    ];
  },
);

interface Attention {
  dtype: DType;
  cache?: DType;
  heads: number;
  kvHeads: number;
  d: number;
  /** Tokens of each sequence after this step. */
  lengths: number[];
  window?: number;
  launches?: number;
}

const attentions: Attention[] = [
  { dtype: "bf16", heads: 12, kvHeads: 2, d: 128, lengths: [513], launches: 1 },
  { dtype: "bf16", heads: 12, kvHeads: 2, d: 128, lengths: [1], launches: 1 },
  { dtype: "f16", heads: 14, kvHeads: 2, d: 64, lengths: [130, 0, 16, 700], launches: 1 },
  { dtype: "bf16", heads: 12, kvHeads: 1, d: 128, lengths: [65, 64], launches: 1 },
  { dtype: "bf16", heads: 4, kvHeads: 4, d: 64, lengths: [300, 257, 40], window: 100, launches: 1 },
  { dtype: "bf16", heads: 8, kvHeads: 2, d: 128, lengths: [20, 30, 40, 50, 60], launches: 5 },
  { dtype: "f32", heads: 4, kvHeads: 2, d: 64, lengths: [33] },
  { dtype: "bf16", cache: "f16", heads: 4, kvHeads: 2, d: 64, lengths: [33] },
  { dtype: "bf16", heads: 4, kvHeads: 2, d: 32, lengths: [33] },
];

const attention = fusedCheck("rope, kv_append and paged_attention", ["rope", "kv_append", "paged_attention"], () =>
  attentions.map(({ dtype, cache = dtype, heads, kvHeads, d, lengths, window = 0, launches }): Step => {
    const name = `${dtype}, cache ${cache}, ${heads}/${kvHeads} heads of ${d}, lengths ${lengths.join(" ")}, window ${window}`;
    return {
      name,
      ...(launches === undefined ? {} : { launches }),
      build() {
        const [t, block, columns] = [lengths.length, 16, Math.ceil(Math.max(...lengths, 1) / 16) + 1];
        const qkv = noise(dtype, [t, (heads + 2 * kvHeads) * d], `qkv ${name}`);
        const part = (from: number, count: number): Tensor =>
          reshape(qkv.columns(from * d, (from + count) * d), [t, count, d]);
        const [q, k, v] = [part(0, heads), part(heads, kvHeads), part(heads + kvHeads, kvHeads)];
        const dims = [t * columns, block, kvHeads, d];
        const [keys, values] = [noise(cache, dims, `keys ${name}`), noise(cache, dims, `values ${name}`)];
        const [cos, sin] = [noise("f32", [1024, d / 2], "cos"), noise("f32", [1024, d / 2], "sin")];
        const ints = (x: number[], shape = [x.length]): Tensor => tensor(Int32Array.from(x), shape);
        // Blocks in a scattered order; a sequence without tokens puts nothing into the cache.
        const blockOf = (row: number, column: number): number =>
          (column * t + ((row * 3 + column) % t)) % (t * columns);
        const table = ints(
          Array.from({ length: t * columns }, (_, i) => blockOf(Math.floor(i / columns), i % columns)),
          [t, columns],
        );
        const slots = ints(
          lengths.map((n, row) =>
            n === 0 ? -1 : blockOf(row, Math.floor((n - 1) / block)) * block + ((n - 1) % block),
          ),
        );
        const positions = ints(lengths.map((n) => Math.max(0, n - 1)));
        const [cu, kv] = [ints(Array.from({ length: t + 1 }, (_, i) => i)), ints(lengths)];
        return () => {
          const [q2, k2] = [native.rope(q, cos, sin, positions, 0), native.rope(k, cos, sin, positions, 0)];
          native.kvAppend(keys, null, k2, slots);
          native.kvAppend(values, null, v, slots);
          const o = native.pagedAttention(q2, keys, values, null, null, table, cu, kv, d ** -0.5, window);
          return [q2, k2, o, keys, values];
        };
      },
    };
  }),
);

export const fusedChecks: readonly OpCheck[] = [products, lookalikes, attention];
