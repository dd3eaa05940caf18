/** The one linear layer: what it stores, what is added to it, where it is placed are three fields, not subclasses. */
import { noGrad, record } from "../autograd.js";
import { type DType, dtypes } from "../dtype.js";
import { ShapeError, UnsupportedError } from "../errors.js";
import * as raw from "../gen/ops.js";
import { scope } from "../memory.js";
import { concatRows, reshape } from "../ops/elementwise.js";
import { linear as linearOp, type LinearBase, type LowRank } from "../ops/linear.js";
import type { Tensor } from "../tensor.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** Full-precision weight [N, C]. */
export interface DenseStorage {
  kind: "dense";
  weight: Tensor;
}

/**
 * 4-bit weights in groups along C: w = (q − zero) · scale.
 * q u8 [N, C/2], low nibble first; scales f32 [N, ceil(C/group)]; zeros u8, same shape (8 when symmetric).
 */
export interface W4Storage {
  kind: "w4";
  q: Tensor;
  scales: Tensor;
  zeros: Tensor;
  group: number;
  /** "exact" dequantizes to f32; "int8" also quantizes activations to 8 bits on the fly (faster, about 0.4 % relative error). @default "exact" */
  compute?: "exact" | "int8";
}

/** 8-bit symmetric weights in groups along C: w = q · scale. q i8 [N, C], scales f32 [N, ceil(C/group)]. */
export interface Q8Storage {
  kind: "q8";
  q: Tensor;
  scales: Tensor;
  group: number;
  compute?: "exact" | "int8";
}

/** NF4 codes of the flattened weight in blocks, with the largest magnitude of each (Dettmers et al. 2023, arXiv:2305.14314). */
export interface Nf4Storage {
  kind: "nf4";
  /** u8 [N·C/2], first element in the high nibble. */
  q: Tensor;
  /** f32 [blocks], or quantized itself ("double quantization", section 3): absmax = q · scales + offset. */
  absmax: Tensor | { q: Tensor; scales: Tensor; offset: Tensor; group: number };
  block: number;
}

/**
 * 8-bit floats (e4m3) with a scale for each out feature: w = q · scale. Products quantize their other operand in the same way, row by row, and
 * run on the FP8 tensor cores of NVIDIA's Hopper (compute capability 9.0, with cuBLASLt 12.9 or later) where N and C are multiples of 16 and x is
 * 16-bit. Everywhere else the numbers are the same, from products of wider floats.
 * @see Micikevicius et al. 2022, arXiv:2209.05433
 */
export interface Fp8Storage {
  kind: "fp8";
  /** u8 [N, C], codes of e4m3. */
  q: Tensor;
  /** f32 [N] */
  scale: Tensor;
}

/** How a linear holds its weight. */
export type LinearStorage = DenseStorage | W4Storage | Q8Storage | Nf4Storage | Fp8Storage;

/** A trainable low-rank update: y += scale · dropout(x) Aᵀ Bᵀ. */
export interface LoraDelta {
  kind: "lora";
  name: string;
  /** [r, C] */
  a: Tensor;
  /** [N, r] */
  b: Tensor;
  /** alpha / r, or alpha / √r for rsLoRA. */
  scale: number;
  /** Applied to x before A. Absent = no dropout. Called in every forward; returns x itself where dropout does not act. */
  dropout?: (x: Tensor) => Tensor;
  /** False keeps the adapter with the linear but leaves it out of the output. @default true */
  active?: boolean;
}

/** What may be added to a linear's output. */
export type LinearDelta = LoraDelta;

/** How a weight is spread over a mesh axis; used by tensor parallelism. */
export interface Placement {
  kind: "column" | "row" | "vocab";
  axis: string;
}

/** What a factory is told about a linear that it makes. */
export interface LinearShape {
  outFeatures: number;
  inFeatures: number;
  bias: boolean;
}

/** The one seam where adapters, quantized weights and shards come in. `name` is the Hugging Face name without ".weight". */
export type LinearFactory = (name: string, shape: LinearShape) => Linear;

/** Fields of a new {@link Linear}; name, shape and storage are required. */
export interface LinearInit {
  name: string;
  outFeatures: number;
  inFeatures: number;
  storage: LinearStorage;
  bias?: Tensor | null;
  deltas?: readonly LinearDelta[];
  placement?: Placement;
}

/** y = x Wᵀ + bias + Σ deltas. */
export class Linear {
  /** Hugging Face name, e.g. "model.layers.0.self_attn.q_proj". */
  readonly name: string;
  readonly outFeatures: number;
  readonly inFeatures: number;
  storage: LinearStorage;
  bias: Tensor | null;
  /** Adapters; several may be active at once. */
  deltas: readonly LinearDelta[];
  placement: Placement | undefined;
  /** The kernels' own layout of the storage, shared by every linear of that storage. */
  private packing: { tensor: Tensor | undefined } = { tensor: undefined };

  constructor(init: LinearInit) {
    this.name = init.name;
    this.outFeatures = init.outFeatures;
    this.inFeatures = init.inFeatures;
    this.storage = init.storage;
    this.bias = init.bias ?? null;
    this.deltas = init.deltas ?? [];
    this.placement = init.placement;
    const { storage } = init;
    if (storage.kind === "dense")
      expectShape(`${init.name}.weight`, storage.weight, [init.outFeatures, init.inFeatures]);
    if (init.bias) expectShape(`${init.name}.bias`, init.bias, [init.outFeatures]);
  }

  /** A linear that shares this one's tensors by reference, with some fields replaced. */
  with(change: Partial<LinearInit>): Linear {
    const made = new Linear({
      name: this.name,
      outFeatures: this.outFeatures,
      inFeatures: this.inFeatures,
      storage: this.storage,
      bias: this.bias,
      deltas: this.deltas,
      ...(this.placement ? { placement: this.placement } : {}),
      ...change,
    });
    if (made.storage === this.storage) made.packing = this.packing;
    return made;
  }

  /** @param x [T, C]  @returns [T, N] in x's dtype */
  forward(x: Tensor): Tensor {
    return linearOp(x, this.base(), lowRanks(x, [this], [0]));
  }

  /** What linearOp multiplies with; kernels' own layouts are made on first use and kept. */
  base(): { weight: Tensor; bias: Tensor | null } | LinearBase {
    const s = this.storage;
    if (s.kind === "dense") return { weight: s.weight, bias: this.bias };
    return {
      forward: (x) => this.quantizedForward(x),
      backward: (dy) =>
        s.kind === "fp8"
          ? raw.linearFp8Bwd(dy, s.q, s.scale)
          : scope(() => raw.matmul(dy, this.dequantize(dy.dtype), null, 0, 0, code(dy.dtype))),
    };
  }

  private quantizedForward(x: Tensor): Tensor {
    const s = this.storage;
    const bias = this.bias && this.bias.dtype !== x.dtype ? raw.cast(this.bias, code(x.dtype)) : this.bias;
    switch (s.kind) {
      case "w4":
        this.packing.tensor ??= noGrad(() => raw.repackW4(s.q, s.scales, s.zeros, s.group)).keep();
        return raw.linearW4(
          x,
          this.packing.tensor,
          bias,
          this.outFeatures,
          this.inFeatures,
          s.group,
          s.compute === "int8" ? 1 : 0,
        );
      case "q8":
        this.packing.tensor ??= noGrad(() => raw.repackQ8(s.q, s.scales, s.group)).keep();
        return raw.linearQ8(
          x,
          this.packing.tensor,
          bias,
          this.outFeatures,
          this.inFeatures,
          s.group,
          s.compute === "int8" ? 1 : 0,
        );
      case "nf4":
        return scope(() => raw.matmul(x, this.dequantize(x.dtype), bias, 0, 1, code(x.dtype)));
      case "fp8":
        return raw.linearFp8(x, s.q, s.scale, bias);
      case "dense":
        throw new UnsupportedError("[linear] a dense weight has no quantized forward");
    }
  }

  /** The weight as a dense tensor [N, C]; the stored one itself when dense. */
  dequantize(dtype: DType): Tensor {
    const s = this.storage;
    switch (s.kind) {
      case "dense":
        return s.weight.dtype === dtype ? s.weight : raw.cast(s.weight, code(dtype));
      case "w4":
        return raw.dequantizeW4(s.q, s.scales, s.zeros, s.group, code(dtype));
      case "q8":
        return raw.dequantizeQ8(s.q, s.scales, s.group, code(dtype));
      case "nf4":
        return raw.dequantizeNf4(s.q, absmaxOf(s), s.block, code(dtype), this.outFeatures, this.inFeatures);
      case "fp8":
        return raw.dequantizeFp8(s.q, s.scale, code(dtype));
    }
  }

  /**
   * The weight with adapters added, W + Σ scale · B·A: dense [N, C], summed in f32 and rounded once.
   * @param deltas  which of them; default the active ones
   * @returns a new tensor, or the stored one when there is nothing to add and it has that dtype
   */
  mergedWeight(dtype: DType, deltas: readonly LinearDelta[] = this.deltas.filter((d) => d.active !== false)): Tensor {
    if (deltas.length === 0) return this.dequantize(dtype);
    return noGrad(() =>
      scope(() => {
        const dense = this.dequantize("f32");
        const sum = this.storage.kind === "dense" && dense === this.storage.weight ? raw.scale(dense, 1) : dense;
        for (const d of deltas) {
          const [a, b] = [d.a, d.b].map((t) => (t.dtype === "f32" ? t : raw.cast(t, code("f32")))) as [Tensor, Tensor];
          raw.matmulAcc(sum, b, a, 0, 0, d.scale, 1);
        }
        return dtype === "f32" ? sum : raw.cast(sum, code(dtype));
      }),
    );
  }

  /** Tensors that make up the storage, by the suffix of their name. */
  storageTensors(): [suffix: string, tensor: Tensor][] {
    const list = tensorsOf(this.storage);
    if (this.bias) list.push(["bias", this.bias]);
    return list;
  }

  /** Bytes of weights as stored (without the kernels' own layout and without adapters). */
  get storageBytes(): number {
    return this.storageTensors().reduce((n, [, t]) => n + t.bytes, 0);
  }

  /** Frees the kernels' own layout; the stored tensors belong to the model. */
  dispose(): void {
    this.packing.tensor?.dispose();
    this.packing.tensor = undefined;
  }
}

function tensorsOf(s: LinearStorage): [suffix: string, tensor: Tensor][] {
  switch (s.kind) {
    case "dense":
      return [["weight", s.weight]];
    case "w4":
      return [
        ["q", s.q],
        ["scales", s.scales],
        ["zeros", s.zeros],
      ];
    case "q8":
      return [
        ["q", s.q],
        ["scales", s.scales],
      ];
    case "fp8":
      return [
        ["q", s.q],
        ["scale", s.scale],
      ];
    case "nf4":
      return "isTensor" in s.absmax
        ? [
            ["q", s.q],
            ["absmax", s.absmax],
          ]
        : [
            ["q", s.q],
            ["absmax.q", s.absmax.q],
            ["absmax.scales", s.absmax.scales],
            ["absmax.offset", s.absmax.offset],
          ];
  }
}

/** Some rows of a storage; `part` takes them of a tensor. */
function viewOf(s: LinearStorage, part: (t: Tensor) => Tensor): LinearStorage {
  if (s.kind === "dense") return { kind: "dense", weight: part(s.weight) };
  if (s.kind === "fp8") return { kind: "fp8", q: part(s.q), scale: part(s.scale) };
  throw new UnsupportedError(`[linear] rows of a weight stored as ${s.kind} are no view of it`);
}

/** f32 [blocks] */
function absmaxOf({ absmax }: Nf4Storage): Tensor {
  if ("isTensor" in absmax) return absmax;
  const { q, scales, offset, group } = absmax;
  return reshape(raw.add(raw.dequantizeQ8(q, scales, group, code("f32")), offset), [q.size]);
}

function expectShape(name: string, tensor: Tensor, shape: readonly number[]): void {
  if (tensor.shape.length === shape.length && shape.every((n, i) => n === tensor.shape[i])) return;
  throw new ShapeError(`[linear] ${name} must be [${shape.join(", ")}], got [${tensor.shape.join(", ")}]`, {
    name,
    expected: shape,
    got: tensor.shape,
  });
}

function lowRanks(x: Tensor, linears: readonly Linear[], offsets: readonly number[]): LowRank[] {
  return linears.flatMap((l, i) =>
    l.deltas
      .filter((d) => d.active !== false)
      .map((d): LowRank => {
        const base = { a: d.a, b: d.b, scale: d.scale, offset: offsets[i]! };
        const dropped = d.dropout?.(x) ?? x;
        return dropped === x ? base : { ...base, x: dropped };
      }),
  );
}

/**
 * Linears that read the same input and whose outputs stand side by side: q, k, v; gate, up. Weights that are all dense, or all in 8-bit
 * floats, are kept in one buffer of ΣN rows, of which each linear has a view, so that the group is one matrix product.
 */
export class LinearGroup {
  readonly linears: readonly Linear[];
  /** The members as one linear, [ΣN, C]: its tensors are the buffers that theirs are views of, and what full fine-tuning trains. */
  readonly fused: Linear | undefined;
  readonly widths: readonly number[];
  private readonly offsets: readonly number[];

  /** @param fused the members as one; without it they run one by one */
  constructor(linears: readonly Linear[], fused?: Linear) {
    this.linears = linears;
    this.fused = fused;
    this.widths = linears.map((l) => l.outFeatures);
    let at = 0;
    this.offsets = this.widths.map((n) => (at += n) - n);
  }

  /** The group with its members replaced by `change`; the fused buffers stay while the members' storages are the same. */
  map(change: (linear: Linear) => Linear): LinearGroup {
    const linears = this.linears.map(change);
    const untouched = linears.every(
      (l, i) => l.storage === this.linears[i]!.storage && l.bias === this.linears[i]!.bias,
    );
    return new LinearGroup(linears, untouched ? this.fused : undefined);
  }

  /**
   * The group with its members' weights, and biases where `fused` has others than now, as views of the rows of `fused`.
   * @param fused  [ΣN, C], dense or in 8-bit floats
   */
  over(fused: Linear): LinearGroup {
    const { storage, bias } = fused;
    const linears = this.linears.map((l, i) => {
      const part = (t: Tensor): Tensor => t.rows(this.offsets[i]!, this.offsets[i]! + this.widths[i]!).keep();
      return l.with({
        storage: viewOf(storage, part),
        bias: bias && bias !== this.fused?.bias ? part(bias) : l.bias,
      });
    });
    return new LinearGroup(linears, fused);
  }

  /** @param x [T, C]  @returns [T, ΣN] */
  forward(x: Tensor): Tensor {
    if (this.fused) return linearOp(x, this.fused.base(), lowRanks(x, this.linears, this.offsets));
    return concatColumns(this.linears.map((l) => l.forward(x)));
  }
}

/** Places [T, Nᵢ] side by side: [T, ΣN]; differentiable. */
export function concatColumns(parts: readonly Tensor[]): Tensor {
  if (parts.length === 1) return parts[0]!;
  const y = raw.concatCols(parts);
  const widths = parts.map((p) => p.dim(1));
  record("concatColumns", [y], parts, [], ([dy]) => {
    let at = 0;
    return widths.map((n) => raw.contiguous(dy!.columns(at, (at += n))));
  });
  return y;
}

/**
 * Makes a group from dense linears: copies their weights into one buffer and gives each a view of it.
 * Linears of other storages are grouped without a fused buffer.
 */
export function fuseLinears(linears: readonly Linear[]): LinearGroup {
  const group = new LinearGroup(linears);
  const dense = linears.every((l) => l.storage.kind === "dense" && l.deltas.length === 0);
  const biases = linears.map((l) => l.bias);
  const dtype = dense ? (linears[0]!.storage as DenseStorage).weight.dtype : undefined;
  const alike = linears.every((l) => l.storage.kind === "dense" && l.storage.weight.dtype === dtype);
  if (!dense || !alike || (biases.some(Boolean) && !biases.every(Boolean))) return group;
  return noGrad(() =>
    group.over(
      new Linear({
        name: linears.map((l) => l.name).join("+"),
        outFeatures: group.widths.reduce((n, w) => n + w, 0),
        inFeatures: linears[0]!.inFeatures,
        storage: {
          kind: "dense",
          weight: concatRows(linears.map((l) => (l.storage as DenseStorage).weight)).keep(),
        },
        bias: biases[0] ? concatRows(biases as Tensor[]).keep() : null,
      }),
    ),
  );
}
