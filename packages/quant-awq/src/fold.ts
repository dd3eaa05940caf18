/** Moving per-channel scales from activations into weights; without rounding the model computes the same. C hidden, I inner width. */
import {
  dtypes,
  fuseLinears,
  type Linear,
  LinearGroup,
  native,
  noGrad,
  scope,
  ShapeError,
  type Tensor,
  tensorLike,
  UnsupportedError,
} from "@llm/core";
import { Block, type CausalLM, Decoder, type DecoderSpec, type Norm } from "@llm/models";
import { untieHeads } from "./scales.js";

/** What the inputs of a block's linears are divided by, channel by channel; absent = 1. All positive. */
export interface BlockScales {
  /** [C] input of q, k, v; folded into the input norm. */
  qkv?: Float32Array;
  /** [kvHeads · headDim] input of o, shared by the query heads of a key/value head; folded into v. */
  o?: Float32Array;
  /** [C] input of gate and up; folded into the norm before them. */
  gateUp?: Float32Array;
  /** [I] input of down; folded into up. */
  down?: Float32Array;
}

/** The linears of a block by what they are. */
export type LinearRole = "q" | "k" | "v" | "o" | "gate" | "up" | "down";

/** Each linear of a block with its role. */
export function linearRoles(block: Block): [role: LinearRole, linear: Linear][] {
  const [q, k, v] = block.qkv.linears as [Linear, Linear, Linear];
  const [gate, up] = block.gateUp.linears as [Linear, Linear];
  return [
    ["q", q],
    ["k", k],
    ["v", v],
    ["o", block.o],
    ["gate", gate],
    ["up", up],
    ["down", block.down],
  ];
}

/** What a weight's columns are multiplied by, and its rows (and bias) divided by. */
export interface Factors {
  columns?: Float32Array | undefined;
  rows?: Float32Array | undefined;
}

/** @throws {ShapeError} scales of another length */
export function linearFactors(spec: DecoderSpec, scales: BlockScales, role: LinearRole): Factors {
  const { hiddenSize: C, intermediateSize: I, heads, kvHeads, headDim } = spec;
  const check = (key: keyof BlockScales, length: number): Float32Array | undefined => {
    const s = scales[key];
    if (s && s.length !== length)
      throw new ShapeError(`[foldScales] scales of ${key} must be [${length}], got [${s.length}]`);
    return s;
  };
  const o = check("o", kvHeads * headDim);
  switch (role) {
    case "q":
    case "k":
      return { columns: check("qkv", C) };
    case "v":
      return { columns: check("qkv", C), rows: o };
    case "o":
      return { columns: o && untieHeads(o, heads, kvHeads, headDim) };
    case "gate":
      return { columns: check("gateUp", C) };
    case "up":
      return { columns: check("gateUp", C), rows: check("down", I) };
    case "down":
      return { columns: check("down", I) };
  }
}

/** W[n, k] · columns[k], f32; the weight itself (as f32) without columns. */
export function scaleColumns(w: Tensor, columns: Float32Array | undefined): Tensor {
  return columns ? native.mulCols(w, tensorLike(w, columns), 0) : w;
}

/** W[n, k] / rows[n], f32. */
export function divideRows(w: Tensor, rows: Float32Array | undefined): Tensor {
  if (!rows) return w;
  return native.transpose(native.mulCols(native.transpose(w), tensorLike(w, rows), 1));
}

const cast = (t: Tensor, like: Tensor): Tensor =>
  t.dtype === like.dtype ? t : native.cast(t, dtypes.indexOf(like.dtype));
const toF32 = (t: Tensor): Tensor => (t.dtype === "f32" ? t : native.cast(t, 0));

/** A second reference on a tensor, which outlives its first owner. */
export function shared(t: Tensor): Tensor {
  const alias = t.alias();
  alias.freeWhenCollected();
  return alias;
}

const sharedNorm = (n: Norm): Norm => ({ name: n.name, weight: shared(n.weight) });

/** The bias of a linear whose output is divided by `rows`; a new reference or tensor. */
export function foldBias(l: Linear, rows: Float32Array | undefined): Tensor | null {
  const { bias } = l;
  if (!bias) return null;
  if (!rows) return shared(bias);
  return scope(() => cast(native.mulCols(toF32(bias), tensorLike(bias, rows), 1), bias)).keep();
}

/**
 * A norm whose output is divided by scales, and the scales that the rounded weight really divides by: the linears behind it are
 * multiplied by these, so that a 16-bit norm weight costs no exactness.
 */
export function foldNorm(
  norm: Norm,
  scales: Float32Array | undefined,
): { norm: Norm; scales: Float32Array | undefined } {
  if (!scales) return { norm: sharedNorm(norm), scales: undefined };
  if (norm.weight.size !== scales.length)
    throw new ShapeError(`[foldScales] scales of ${norm.name} must be [${norm.weight.size}], got [${scales.length}]`);
  return noGrad(() => {
    const before = scope(() => toF32(norm.weight).dataSync() as Float32Array);
    const weight = scope(() =>
      cast(
        tensorLike(
          norm.weight,
          before.map((w, c) => w / scales[c]!),
        ),
        norm.weight,
      ),
    );
    const after = weight.dataSync() as Float32Array;
    const real = Float32Array.from(scales, (s, c) => {
      const ratio = before[c]! / after[c]!;
      return before[c] === 0 ? s : ratio;
    });
    // A weight that underflowed or overflowed stays as it was.
    const lost = real.map((s) => (Number.isFinite(s) && s > 0 ? 0 : 1));
    if (lost.some((l) => l === 1)) {
      weight.dispose();
      return foldNorm(
        norm,
        scales.map((s, c) => (lost[c] ? 1 : s)),
      );
    }
    return { norm: { name: norm.name, weight: weight.keep() }, scales: real };
  });
}

/** How the weight of a linear becomes its new form: dense in its own dtype here, rounded in quantize(). */
export type MakeLinear = (role: LinearRole, linear: Linear, factors: Factors) => Linear;

const sharedLinear = (l: Linear, weight: Tensor): Linear =>
  l.with({ storage: { kind: "dense", weight: shared(weight) }, bias: foldBias(l, undefined) });

/** A dense linear with scales moved into it; shares its tensors when there are none. */
export const foldedLinear: MakeLinear = (_role, l, { columns, rows }) => {
  if (l.storage.kind !== "dense")
    throw new ShapeError(`[foldScales] ${l.name} is stored as ${l.storage.kind}, expected dense`, { name: l.name });
  if (l.deltas.length > 0)
    throw new UnsupportedError(`[foldScales] ${l.name} carries an adapter: merge it first (mergeLora)`, {
      name: l.name,
    });
  const { weight } = l.storage;
  if (!columns && !rows) return sharedLinear(l, weight);
  const scaled = noGrad(() => scope(() => cast(divideRows(scaleColumns(toF32(weight), columns), rows), weight)));
  return l.with({ storage: { kind: "dense", weight: scaled.keep() }, bias: foldBias(l, rows) });
};

function group(before: LinearGroup, linears: readonly Linear[], changed: boolean): LinearGroup {
  if (linears.some((l) => l.storage.kind !== "dense")) return new LinearGroup(linears);
  if (!changed && before.fused?.storage.kind === "dense")
    return new LinearGroup(linears, sharedLinear(before.fused, before.fused.storage.weight));
  const fused = fuseLinears(linears);
  // The group's buffer holds copies now.
  if (fused.fused) for (const l of linears) for (const [, t] of l.storageTensors()) t.dispose();
  return fused;
}

/** A block with scales moved into its norms and linears; shares no owner with `block`, only memory. */
export function foldBlock(
  spec: DecoderSpec,
  block: Block,
  scales: BlockScales,
  make: MakeLinear = foldedLinear,
): Block {
  const input = foldNorm(block.inputNorm, scales.qkv);
  const post = foldNorm(block.postNorm, scales.gateUp);
  const real: BlockScales = {
    ...scales,
    ...(input.scales ? { qkv: input.scales } : {}),
    ...(post.scales ? { gateUp: post.scales } : {}),
  };
  const made = new Map(linearRoles(block).map(([role, l]) => [role, make(role, l, linearFactors(spec, real, role))]));
  const members = (...roles: LinearRole[]): Linear[] => roles.map((role) => made.get(role)!);
  return new Block(spec, block.index, {
    inputNorm: input.norm,
    qkv: group(block.qkv, members("q", "k", "v"), real.qkv !== undefined || real.o !== undefined),
    o: made.get("o")!,
    ...(block.qNorm ? { qNorm: sharedNorm(block.qNorm) } : {}),
    ...(block.kNorm ? { kNorm: sharedNorm(block.kNorm) } : {}),
    postNorm: post.norm,
    gateUp: group(block.gateUp, members("gate", "up"), real.gateUp !== undefined || real.down !== undefined),
    down: made.get("down")!,
  });
}

/** A decoder with other blocks; embedding, norm and head are shared. */
export function withBlocks(decoder: Decoder, blocks: Block[], head?: Linear): Decoder {
  const kept =
    decoder.head?.storage.kind === "dense" ? sharedLinear(decoder.head, decoder.head.storage.weight) : decoder.head;
  return new Decoder(decoder.spec, {
    embed: sharedNorm(decoder.embed),
    blocks,
    norm: sharedNorm(decoder.norm),
    head: head ?? kept,
  });
}

/**
 * A dense model that computes the same with other weights: the inputs of linears are divided by scales and their columns multiplied by
 * them. norm.weight /= s and consumers' columns ·= s; v rows and bias /= s and o columns ·= s; up rows and bias /= s and down columns ·= s
 * (gate stands inside the activation and cannot take a scale). What SmoothQuant and AWQ have in common. `model` is not changed.
 * @param scales one entry a block
 * @throws {ShapeError} a missing block, scales of another length, or a linear that is not dense
 * @see Lin et al. 2023 (AWQ), arXiv:2306.00978, section 3.2; Xiao et al. 2022 (SmoothQuant), arXiv:2211.10438
 */
export function foldScales(model: CausalLM, scales: readonly BlockScales[]): CausalLM {
  const { decoder } = model;
  if (scales.length !== decoder.blocks.length)
    throw new ShapeError(`[foldScales] expected scales of ${decoder.blocks.length} blocks, got ${scales.length}`);
  return model.withDecoder(
    noGrad(() =>
      withBlocks(
        decoder,
        decoder.blocks.map((b, i) => foldBlock(decoder.spec, b, scales[i]!)),
      ),
    ),
  );
}
