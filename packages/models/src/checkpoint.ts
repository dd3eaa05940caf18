/** A Decoder → the tensors of a Hugging Face folder: dense, or AutoAWQ "gemm" where linears are W4. N out, K in features. */
import {
  type DType,
  dtypeBytes,
  dtypes,
  type Linear,
  native,
  noGrad,
  OptionsError,
  type SafetensorsSource,
  scope,
  type Tensor,
  tensor,
  toSafetensorsDType,
  UnsupportedError,
  type W4Storage,
} from "@llm/core";
import type { FusedRows, ModelDefinition } from "./arch/spec.js";
import { awqObstacle, type CanonicalW4, packAwq, selectW4Rows } from "./awq-format.js";
import type { Block, Decoder } from "./decoder.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** A linear that is quantized in memory and dense (or absent) in the files, and why. */
export interface DenseInFile {
  /** Hugging Face name. */
  name: string;
  reason: string;
}

/** What a folder will hold, before anything is written. */
export interface CheckpointPlan {
  /** What to write, in order. */
  sources: SafetensorsSource[];
  /** Dtype of the dense tensors. */
  dtype: DType;
  /** `quantization_config` for config.json; undefined for a dense folder. */
  quantization: Record<string, unknown> | undefined;
  denseInFile: DenseInFile[];
}

export interface CheckpointOptions {
  /** Dtype of dense weights; default as they are, f16 in an AWQ folder. */
  dtype?: DType | undefined;
  /** Write W + Σ s·B·A where linears carry active adapters, one tensor at a time. @default false */
  merge?: boolean;
}

/** A source whose tensor is made when its turn comes and freed after. */
function lazy(name: string, dtype: DType, shape: readonly number[], make: () => Tensor): SafetensorsSource {
  return {
    name,
    dtype: toSafetensorsDType(dtype)!,
    shape,
    byteLength: shape.reduce((a, b) => a * b, 1) * dtypeBytes(dtype),
    bytes: async () => {
      const made = noGrad(() =>
        scope(() => {
          const t = make();
          return t.dtype === dtype ? t : native.cast(t, code(dtype));
        }),
      );
      try {
        await made.data();
        const bits = made.bitsSync();
        return new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);
      } finally {
        made.dispose();
      }
    },
  };
}

/** Where each of the members' stacked rows goes in a fused tensor: place → stacked row. */
function fusedOrder(f: FusedRows): Int32Array {
  const where = new Int32Array(f.parts.reduce((n, p) => n + p.rows.length, 0));
  let at = 0;
  for (const p of f.parts) for (const row of p.rows) where[row] = at++;
  return where;
}

/** Stacks the members of a fused tensor in the checkpoint's row order. */
const joinRows = (f: FusedRows, members: readonly Tensor[]): Tensor =>
  native.gatherRows(native.concatRows(members), tensor(fusedOrder(f)));

/** @throws {UnsupportedError} adapters that are not to be merged, or cannot be */
function checkAdapters(l: Linear, merge: boolean): void {
  if (l.deltas.length === 0) return;
  if (!merge) {
    throw new UnsupportedError(
      `[saveModel] ${l.name} carries an adapter: merge it (mergeLora, or the option adapters: "merge") or save the adapter alone (saveLora)`,
      { name: l.name },
    );
  }
  if (l.storage.kind !== "dense" && l.deltas.some((d) => d.active !== false)) {
    throw new UnsupportedError(
      `[saveModel] ${l.name} is stored as ${l.storage.kind}: merge its adapter with mergeLora(model, { base: "dequantized" }) first`,
      { name: l.name },
    );
  }
}

/** Linears that readers fuse (q, k, v; gate, up): they are all W4 in a folder, or all dense. */
interface Unit {
  linears: readonly Linear[];
  /** The one tensor that holds them in the file, if any. */
  fused: FusedRows | undefined;
}

function units(block: Block, fused: readonly FusedRows[]): Unit[] {
  const unit = (linears: readonly Linear[]): Unit => {
    const whole = fused.find((f) => f.parts.some((p) => linears.some((l) => l.name === p.linear)));
    return {
      linears: whole ? whole.parts.map((p) => linears.find((l) => l.name === p.linear)!) : linears,
      fused: whole,
    };
  };
  return [unit(block.qkv.linears), unit([block.o]), unit(block.gateUp.linears), unit([block.down])];
}

const isW4 = (l: Linear): boolean => l.storage.kind === "w4";

/** Why the unit cannot be W4 in an AWQ folder, for each linear in its turn; undefined when it can. */
function unitObstacles(unit: Unit, group: number): (string | undefined)[] | undefined {
  const N = unit.linears.reduce((n, l) => n + l.outFeatures, 0);
  const own = unit.linears.map((l): string | undefined => {
    if (l.storage.kind !== "w4") return "it is not quantized to 4 bits";
    if (l.storage.group !== group) return `its group size is ${l.storage.group}, the folder's is ${group}`;
    return awqObstacle(unit.fused ? N : l.outFeatures, l.inFeatures, group);
  });
  const first = own.findIndex((o) => o !== undefined);
  if (first < 0) return undefined;
  return own.map(
    (o) => o ?? `it is read as one with ${unit.linears[first]!.name}, which must stay dense: ${own[first]!}`,
  );
}

function canonical(l: Linear): CanonicalW4 {
  const s = l.storage as W4Storage;
  return {
    outFeatures: l.outFeatures,
    inFeatures: l.inFeatures,
    group: s.group,
    q: s.q.bitsSync() as Uint8Array,
    scales: s.scales.bitsSync() as Float32Array,
    zeros: s.zeros.bitsSync() as Uint8Array,
  };
}

function stack(parts: readonly CanonicalW4[]): CanonicalW4 {
  const [first] = parts as [CanonicalW4];
  if (parts.length === 1) return first;
  const all = <T extends Uint8Array | Float32Array>(out: T, pick: (w: CanonicalW4) => T): T => {
    let at = 0;
    for (const p of parts) {
      out.set(pick(p), at);
      at += pick(p).length;
    }
    return out;
  };
  const length = (pick: (w: CanonicalW4) => { length: number }): number =>
    parts.reduce((n, p) => n + pick(p).length, 0);
  return {
    ...first,
    outFeatures: parts.reduce((n, p) => n + p.outFeatures, 0),
    q: all(new Uint8Array(length((w) => w.q)), (w) => w.q),
    scales: all(new Float32Array(length((w) => w.scales)), (w) => w.scales),
    zeros: all(new Uint8Array(length((w) => w.zeros)), (w) => w.zeros),
  };
}

/** qweight, qzeros and scales of one tensor; packed when the first is asked for, let go after the last. */
function* awqSources(
  name: string,
  outFeatures: number,
  inFeatures: number,
  group: number,
  read: () => CanonicalW4,
): Generator<SafetensorsSource> {
  const groups = inFeatures / group;
  let packed: ReturnType<typeof packAwq> | undefined;
  const part = <K extends keyof ReturnType<typeof packAwq>>(key: K, last: boolean): ReturnType<typeof packAwq>[K] => {
    packed ??= packAwq(read());
    const value = packed[key];
    if (last) packed = undefined;
    return value;
  };
  yield lazy(`${name}.qweight`, "i32", [inFeatures, outFeatures / 8], () =>
    tensor(part("qweight", false), [inFeatures, outFeatures / 8]),
  );
  yield lazy(`${name}.qzeros`, "i32", [groups, outFeatures / 8], () =>
    tensor(part("qzeros", false), [groups, outFeatures / 8]),
  );
  yield lazy(`${name}.scales`, "f16", [groups, outFeatures], () =>
    tensor(part("scales_GN", true), [groups, outFeatures]),
  );
}

/**
 * Every weight as the checkpoint stores it: fused forms joined again, and linears in the AWQ layout when the decoder holds W4 linears.
 * Such a folder is f16; what its layout cannot hold is written dense and listed in `modules_to_not_convert` and `denseInFile`.
 * @throws {UnsupportedError} a storage that no checkpoint format here holds (nf4; q8 without W4), or an adapter that is not to be merged
 * @throws {OptionsError} another dtype than f16 for an AWQ folder
 */
export function planCheckpoint(
  decoder: Decoder,
  definition: ModelDefinition,
  options: CheckpointOptions = {},
): CheckpointPlan {
  const merge = options.merge ?? false;
  const { spec } = decoder;
  const group = decoder.blocks
    .flatMap((b) => b.linears())
    .map((l) => (l.storage.kind === "w4" ? l.storage.group : undefined))
    .find((g) => g !== undefined);
  if (group !== undefined && options.dtype !== undefined && options.dtype !== "f16") {
    throw new OptionsError(`[saveModel] dtype: an AWQ folder is f16, got "${options.dtype}"; leave it out`);
  }
  const dtype = group !== undefined ? "f16" : options.dtype;
  const sources: SafetensorsSource[] = [];
  const denseInFile: DenseInFile[] = [];
  const notConverted: string[] = [];

  const plain = (name: string, t: Tensor): number =>
    sources.push(lazy(name, dtype ?? t.dtype, t.shape, () => t.detach()));
  const weightDtype = (l: Linear): DType =>
    dtype ?? (l.storage.kind === "dense" ? l.storage.weight.dtype : decoder.embed.weight.dtype);
  /** Checks that a linear can be written dense, and notes it when that changes its form. */
  const dense = (l: Linear, reason: string | undefined): void => {
    checkAdapters(l, merge);
    const { kind } = l.storage;
    const known = kind === "dense" || (group !== undefined && (kind === "w4" || kind === "q8"));
    if (!known)
      throw new UnsupportedError(`[saveModel] ${l.name} is stored as ${kind}; dense and w4 (AWQ) can be saved`, {
        name: l.name,
      });
    if (kind !== "dense") denseInFile.push({ name: l.name, reason: reason ?? `it is stored as ${kind}` });
    if (group !== undefined) notConverted.push(l.name);
  };
  const biasOf = (l: Linear): void => {
    if (l.bias) plain(`${l.name}.bias`, l.bias);
  };

  plain(`${decoder.embed.name}.weight`, decoder.embed.weight);
  for (const [i, b] of decoder.blocks.entries()) {
    for (const unit of units(b, definition.fused?.(spec, i) ?? [])) {
      const { linears, fused } = unit;
      const K = linears[0]!.inFeatures;
      const N = linears.reduce((n, l) => n + l.outFeatures, 0);
      const obstacles =
        group !== undefined && linears.some(isW4) ? unitObstacles(unit, group) : linears.map(() => undefined);
      if (obstacles) linears.forEach((l, m) => dense(l, obstacles[m]));
      else for (const l of linears) checkAdapters(l, merge);
      if (!fused) {
        for (const l of linears) {
          if (obstacles)
            sources.push(
              lazy(`${l.name}.weight`, weightDtype(l), [l.outFeatures, K], () =>
                l.mergedWeight(weightDtype(l)).detach(),
              ),
            );
          else sources.push(...awqSources(l.name, l.outFeatures, K, group!, () => canonical(l)));
          biasOf(l);
        }
        continue;
      }
      if (obstacles)
        sources.push(
          lazy(`${fused.name}.weight`, weightDtype(linears[0]!), [N, K], () =>
            joinRows(
              fused,
              linears.map((l) => l.mergedWeight(weightDtype(l))),
            ),
          ),
        );
      else
        sources.push(
          ...awqSources(fused.name, N, K, group!, () => selectW4Rows(stack(linears.map(canonical)), fusedOrder(fused))),
        );
      if (obstacles && group !== undefined) notConverted.push(fused.name);
      const biases = linears.map((l) => l.bias);
      if (biases.every((t) => t !== null))
        sources.push(
          lazy(`${fused.name}.bias`, dtype ?? biases[0]!.dtype, [N], () => joinRows(fused, biases as Tensor[])),
        );
    }
    for (const n of b.norms()) plain(`${n.name}.weight`, n.weight);
  }
  plain(`${decoder.norm.name}.weight`, decoder.norm.weight);
  const { head } = decoder;
  if (head && spec.tieWordEmbeddings) {
    checkAdapters(head, merge);
    if (head.storage.kind !== "dense")
      denseInFile.push({
        name: head.name,
        reason: `it is tied to ${decoder.embed.name}, which is stored in its place`,
      });
  } else if (head) {
    dense(head, head.storage.kind === "w4" ? "readers of the layout expect a dense output head" : undefined);
    sources.push(
      lazy(`${head.name}.weight`, weightDtype(head), [head.outFeatures, head.inFeatures], () =>
        head.mergedWeight(weightDtype(head)).detach(),
      ),
    );
    biasOf(head);
  }
  if (group !== undefined && !notConverted.includes(definition.names.head)) notConverted.push(definition.names.head);
  return {
    sources,
    dtype: dtype ?? decoder.embed.weight.dtype,
    quantization:
      group === undefined
        ? undefined
        : {
            quant_method: "awq",
            version: "gemm",
            bits: 4,
            group_size: group,
            zero_point: true,
            modules_to_not_convert: notConverted,
          },
    denseInFile,
  };
}
