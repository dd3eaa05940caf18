/**
 * The kernels that `llm bench` measures, at sizes of real models.
 * T tokens, C channels, I inner width, H query heads, K key/value heads, D head width, N elements.
 */
import {
  type Device,
  type DType,
  dtypeBytes,
  dtypes,
  empty,
  full,
  native,
  randomNormal,
  tensor,
  type Tensor,
} from "@llm/core";

export type BenchGroup = "copy" | "matmul" | "attention" | "rms-norm" | "swiglu" | "adamw" | "lora";
export type BenchUnit = "GB/s" | "GFLOP/s" | "TFLOP/s" | "tokens/s";

/** How much work a unit counts as one, a second. */
export const unitSize: Readonly<Record<BenchUnit, number>> = {
  "GB/s": 1e9,
  "GFLOP/s": 1e9,
  "TFLOP/s": 1e12,
  "tokens/s": 1,
};

/** Tensors of a measurement, and the one op that is measured. */
export interface Prepared {
  tensors: readonly Tensor[];
  run(): void;
}

export interface KernelBench {
  /** Key of the recorded numbers. */
  id: string;
  group: BenchGroup;
  title: string;
  /** Name of the op in a profile. */
  op: string;
  unit: BenchUnit;
  /** Bytes moved, or floating-point operations, of one run. */
  work: number;
  prepare(): Prepared;
}

const codeOf = (dtype: DType): number => dtypes.indexOf(dtype);
let stream = 0;
const normal = (shape: readonly number[], dtype: DType): Tensor =>
  randomNormal(shape, { seed: 1, stream: stream++, dtype });

function copy(n: number): KernelBench {
  return {
    id: "copy",
    group: "copy",
    title: `copy of ${Math.round((4 * n) / 2 ** 20)} MiB`,
    op: "copy",
    unit: "GB/s",
    work: 8 * n,
    prepare() {
      const source = full([n], 1);
      const target = empty([n], "f32");
      return { tensors: [source, target], run: () => native.copy(target, source) };
    },
  };
}

/** y [M, N] = a [M, K] · b [N, K]ᵀ in bf16, as a linear layer does it. */
function matmul(id: string, [m, n, k]: readonly [number, number, number], unit: BenchUnit): KernelBench {
  return {
    id,
    group: "matmul",
    title: `matmul ${m} × ${n} × ${k} bf16`,
    op: "matmul",
    unit,
    work: 2 * m * n * k,
    prepare() {
      const a = normal([m, k], "bf16");
      const b = normal([n, k], "bf16");
      return { tensors: [a, b], run: () => void native.matmul(a, b, null, 0, 1, codeOf("bf16")) };
    },
  };
}

interface AttentionSize {
  sequences: number;
  length: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  dtype: DType;
}

/** Causal attention over packed sequences; half of the products are masked and not counted. The backward pass counts 2.5 times. */
function attention(id: string, label: string, size: AttentionSize, unit: BenchUnit): KernelBench[] {
  const { sequences, length, heads, kvHeads, headDim, dtype } = size;
  const T = sequences * length;
  const forwardWork = 2 * sequences * heads * length * length * headDim;
  const scale = 1 / Math.sqrt(headDim);
  const inputs = (): [q: Tensor, k: Tensor, v: Tensor, cu: Tensor] => [
    normal([T, heads, headDim], dtype),
    normal([T, kvHeads, headDim], dtype),
    normal([T, kvHeads, headDim], dtype),
    tensor(Int32Array.from({ length: sequences + 1 }, (_, i) => i * length)),
  ];
  const title = `attention ${label}, ${heads} heads of ${headDim}, ${dtype}`;
  return [
    {
      id,
      group: "attention",
      title,
      op: "attention",
      unit,
      work: forwardWork,
      prepare() {
        const [q, k, v, cu] = inputs();
        return { tensors: [q, k, v, cu], run: () => void native.attention(q, k, v, cu, cu, scale, 1, 0) };
      },
    },
    {
      id: `${id}-backward`,
      group: "attention",
      title: `${title}, backward`,
      op: "attention_bwd",
      unit,
      work: 2.5 * forwardWork,
      prepare() {
        const [q, k, v, cu] = inputs();
        const [o, lse] = native.attention(q, k, v, cu, cu, scale, 1, 0);
        const dO = normal([T, heads, headDim], dtype);
        return {
          tensors: [q, k, v, cu, o, lse, dO],
          run: () => void native.attentionBwd(dO, q, k, v, o, lse, cu, cu, scale, 1, 0),
        };
      },
    },
  ];
}

function rmsNorm(T: number, C: number, dtype: DType): KernelBench[] {
  const row = C * dtypeBytes(dtype);
  const title = `rms_norm ${T} × ${C} ${dtype}`;
  return [
    {
      id: "rms-norm",
      group: "rms-norm",
      title,
      op: "rms_norm",
      unit: "GB/s",
      work: T * (2 * row + 4),
      prepare() {
        const x = normal([T, C], dtype);
        const weight = full([C], 1, dtype);
        return { tensors: [x, weight], run: () => void native.rmsNorm(x, weight, 1e-6) };
      },
    },
    {
      id: "rms-norm-backward",
      group: "rms-norm",
      title: `${title}, backward`,
      op: "rms_norm_bwd",
      unit: "GB/s",
      work: T * (3 * row + 4),
      prepare() {
        const x = normal([T, C], dtype);
        const weight = full([C], 1, dtype);
        const [, rstd] = native.rmsNorm(x, weight, 1e-6);
        const dy = normal([T, C], dtype);
        return {
          tensors: [x, weight, rstd, dy],
          run: () => void native.rmsNormBwd(dy, x, weight, rstd, null, 0),
        };
      },
    },
  ];
}

function swiglu(T: number, I: number, dtype: DType): KernelBench[] {
  const row = I * dtypeBytes(dtype);
  const title = `swiglu ${T} × ${I} ${dtype}`;
  return [
    {
      id: "swiglu",
      group: "swiglu",
      title,
      op: "swiglu",
      unit: "GB/s",
      work: 3 * T * row,
      prepare() {
        const x = normal([T, 2 * I], dtype);
        return { tensors: [x], run: () => void native.swiglu(x) };
      },
    },
    {
      id: "swiglu-backward",
      group: "swiglu",
      title: `${title}, backward`,
      op: "swiglu_bwd",
      unit: "GB/s",
      work: 5 * T * row,
      prepare() {
        const x = normal([T, 2 * I], dtype);
        const dy = normal([T, I], dtype);
        return { tensors: [x, dy], run: () => void native.swigluBwd(dy, x) };
      },
    },
  ];
}

/** One f32 parameter: reads p, g, m, v and writes p, m, v. */
function adamw(n: number): KernelBench {
  return {
    id: "adamw",
    group: "adamw",
    title: `adamw ${Math.round(n / 2 ** 20)} Mi parameters f32`,
    op: "adamw",
    unit: "GB/s",
    work: 28 * n,
    prepare() {
      // lr, beta1, beta2, eps, weight decay, 1 − beta1^t, 1 − beta2^t
      const hyper = tensor(Float32Array.of(1e-4, 0.9, 0.999, 1e-8, 0, 0.1, 0.001));
      const coefficient = full([1], 1);
      const [p, g, m, v] = [full([n], 1), full([n], 0.01), full([n], 0), full([n], 0)];
      return {
        tensors: [hyper, coefficient, p, g, m, v],
        run: () => native.adamw(hyper, coefficient, p, g, m, v, null),
      };
    },
  };
}

/** What is measured on a device, in order. */
export function kernelBenches(device: Device): KernelBench[] {
  if (device === "cpu")
    return [
      copy(64 << 20),
      matmul("matmul-1024", [1024, 1024, 1024], "GFLOP/s"),
      matmul("matmul-512x4864x896", [512, 4864, 896], "GFLOP/s"),
      ...attention(
        "attention",
        "512",
        { sequences: 1, length: 512, heads: 14, kvHeads: 2, headDim: 64, dtype: "f32" },
        "GFLOP/s",
      ),
      ...rmsNorm(16_384, 896, "f32"),
      ...swiglu(2048, 4864, "f32"),
      adamw(32 << 20),
    ];
  const heads = { heads: 28, kvHeads: 28, headDim: 128, dtype: "bf16" } as const;
  return [
    copy(256 << 20),
    matmul("matmul-8192", [8192, 8192, 8192], "TFLOP/s"),
    matmul("matmul-8192x18944x3584", [8192, 18_944, 3584], "TFLOP/s"),
    ...attention("attention-2k", "8 × 2048", { sequences: 8, length: 2048, ...heads }, "TFLOP/s"),
    ...attention("attention-8k", "2 × 8192", { sequences: 2, length: 8192, ...heads }, "TFLOP/s"),
    ...rmsNorm(16_384, 3584, "bf16"),
    ...swiglu(8192, 18_944, "bf16"),
    adamw(128 << 20),
  ];
}
