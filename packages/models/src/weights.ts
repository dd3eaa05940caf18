/** Weights of a Hugging Face folder ↔ a Decoder. */
import {
  type DType,
  dtypeBytes,
  dtypes,
  FormatError,
  fuseLinears,
  Linear,
  mapTensor,
  native,
  noGrad,
  openSafetensors,
  randomNormal,
  type SafetensorsHandle,
  safetensorsDType,
  scope,
  ShapeError,
  type SafetensorsSource,
  type Tensor,
  tensor,
  toSafetensorsDType,
  UnsupportedError,
  full,
} from "@llm/core";
import type { DecoderSpec, FusedRows, ModelDefinition } from "./arch/spec.js";
import { type AwqConfig, awqObstacle, packAwq, unpackAwq } from "./awq-format.js";
import { Block, Decoder, type Norm } from "./decoder.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** Where a decoder's tensors come from: a file, or a random generator. */
interface Source {
  /** A tensor of given shape in the wanted dtype; undefined when optional and absent. */
  dense(name: string, shape: readonly number[]): Tensor;
  has(name: string): boolean;
  /** A quantized linear, when the checkpoint stores it so. */
  quantized(name: string, outFeatures: number, inFeatures: number): Linear["storage"] | undefined;
}

/** Builds the decoder; `factory` may replace each linear (adapters, quantization, shards). */
function build(definition: ModelDefinition, spec: DecoderSpec, source: Source, factory?: (linear: Linear) => Linear): Decoder {
  const { names } = definition;
  const C = spec.hiddenSize;
  const norm = (name: string, width: number): Norm => ({ name, weight: source.dense(`${name}.weight`, [width]) });
  const linear = (name: string, outFeatures: number, inFeatures: number, bias: boolean): Linear => {
    const storage = source.quantized(name, outFeatures, inFeatures) ?? { kind: "dense" as const, weight: source.dense(`${name}.weight`, [outFeatures, inFeatures]) };
    const made = new Linear({ name, outFeatures, inFeatures, storage, bias: bias ? source.dense(`${name}.bias`, [outFeatures]) : null });
    return factory ? factory(made) : made;
  };
  const group = (linears: Linear[]): Block["qkv"] => {
    const fused = fuseLinears(linears);
    // The members now view the group's buffer: the tensors that they were read into go.
    if (fused.fused) {
      for (const l of linears) for (const [, t] of l.storageTensors()) t.dispose();
    }
    return fused;
  };
  const blocks = Array.from({ length: spec.layers }, (_, i) => {
    const n = names.layer(i);
    const width = spec.heads * spec.headDim;
    const kvWidth = spec.kvHeads * spec.headDim;
    return new Block(spec, i, {
      inputNorm: norm(n.inputNorm, C),
      qkv: group([linear(n.q, width, C, spec.qkvBias), linear(n.k, kvWidth, C, spec.qkvBias), linear(n.v, kvWidth, C, spec.qkvBias)]),
      o: linear(n.o, C, width, spec.oBias),
      ...(spec.qkNorm ? { qNorm: norm(n.qNorm!, spec.headDim), kNorm: norm(n.kNorm!, spec.headDim) } : {}),
      postNorm: norm(n.postNorm, C),
      gateUp: group([linear(n.gate, spec.intermediateSize, C, spec.mlpBias), linear(n.up, spec.intermediateSize, C, spec.mlpBias)]),
      down: linear(n.down, C, spec.intermediateSize, spec.mlpBias),
    });
  });
  return new Decoder(spec, {
    embed: { name: names.embed, weight: source.dense(`${names.embed}.weight`, [spec.vocabSize, C]) },
    blocks,
    norm: norm(names.norm, C),
    head: spec.tieWordEmbeddings ? null : linear(names.head, spec.vocabSize, C, false),
  });
}

/** Normal weights (std 0.02, as transformers' initializer_range), norms of one, biases of zero; a pure function of the seed. */
export function randomDecoder(definition: ModelDefinition, spec: DecoderSpec, options: { seed: number; dtype: DType; std?: number }): Decoder {
  let stream = 0;
  return noGrad(() =>
    build(definition, spec, {
      has: () => true,
      quantized: () => undefined,
      dense: (name, shape) => {
        stream++;
        if (shape.length === 1) return full(shape, name.endsWith(".bias") ? 0 : 1, options.dtype, "weights").keep();
        return randomNormal(shape, { seed: options.seed, stream, std: options.std ?? 0.02, dtype: options.dtype, tag: "weights" }).keep();
      },
    }),
  );
}

/** Reads a folder's tensors by name, splitting fused rows, casting to the wanted dtype; counts what was used. */
class FileSource implements Source {
  readonly used = new Set<string>();
  private readonly handle: SafetensorsHandle;
  private readonly dtype: DType | undefined;
  private readonly awq: AwqConfig | undefined;
  /** Linear name → the fused tensor and the rows in it. */
  private readonly parts = new Map<string, { fused: string; rows: Int32Array }>();

  constructor(handle: SafetensorsHandle, dtype: DType | undefined, fused: readonly FusedRows[], awq: AwqConfig | undefined) {
    this.handle = handle;
    this.dtype = dtype;
    this.awq = awq;
    for (const f of fused) for (const p of f.parts) this.parts.set(p.linear, { fused: f.name, rows: p.rows });
  }

  has(name: string): boolean {
    return this.handle.tensors.has(name);
  }

  private mapped(name: string, shape?: readonly number[]): Tensor {
    const entry = this.handle.tensors.get(name);
    if (!entry) throw new FormatError(`[loadModel] the checkpoint has no tensor "${name}" (expected ${shape ? `[${shape.join(", ")}]` : "one"})`, { name });
    if (shape && (entry.shape.length !== shape.length || shape.some((n, i) => n !== entry.shape[i]))) {
      throw new ShapeError(`[loadModel] "${name}" must be [${shape.join(", ")}], got [${entry.shape.join(", ")}] in ${entry.file}`, { name });
    }
    this.used.add(name);
    return mapTensor(entry.file, entry.offset, entry.shape, safetensorsDType(entry)).keep();
  }

  dense(name: string, shape: readonly number[]): Tensor {
    const dot = name.lastIndexOf(".");
    const part = this.parts.get(name.slice(0, dot));
    let t: Tensor;
    if (part && !this.has(name)) {
      const whole = this.mapped(`${part.fused}${name.slice(dot)}`);
      t = scope(() => native.gatherRows(whole, tensor(part.rows))).keep();
      whole.dispose();
      if (t.shape.length !== shape.length || shape.some((n, i) => n !== t.shape[i])) {
        throw new ShapeError(`[loadModel] rows of "${part.fused}" for "${name}" must be [${shape.join(", ")}], got [${t.shape.join(", ")}]`, { name });
      }
    } else t = this.mapped(name, shape);
    if (this.dtype && t.dtype !== this.dtype) {
      const cast = native.cast(t, code(this.dtype)).keep();
      t.dispose();
      return cast;
    }
    return t;
  }

  quantized(name: string, outFeatures: number, inFeatures: number): Linear["storage"] | undefined {
    if (!this.awq || !this.has(`${name}.qweight`)) return undefined;
    const { group } = this.awq;
    const obstacle = awqObstacle(outFeatures, inFeatures, group);
    if (obstacle) throw new FormatError(`[loadModel] "${name}" cannot be in AWQ form: ${obstacle}`, { name });
    const read = (suffix: string, shape: number[]): Tensor => this.mapped(`${name}.${suffix}`, shape);
    const qweight = read("qweight", [inFeatures, outFeatures / 8]);
    const qzeros = read("qzeros", [inFeatures / group, outFeatures / 8]);
    const scales = read("scales", [inFeatures / group, outFeatures]);
    const w = unpackAwq(qweight.bitsSync() as Int32Array, qzeros.bitsSync() as Int32Array, scales.dataSync() as Float32Array, inFeatures, outFeatures, group);
    for (const t of [qweight, qzeros, scales]) t.dispose();
    const groups = inFeatures / group;
    return {
      kind: "w4",
      group,
      q: tensor(w.q, [outFeatures, inFeatures / 2], "u8", "weights").keep(),
      scales: tensor(w.scales, [outFeatures, groups], "f32", "weights").keep(),
      zeros: tensor(w.zeros, [outFeatures, groups], "u8", "weights").keep(),
    };
  }
}

/**
 * Reads a folder's safetensors into a decoder. Weights stay mapped on the file where no cast or fusing is needed.
 * @param dtype  cast floats to this; default as stored
 * @throws {FormatError} a tensor is missing, or one is left over that the model does not know
 */
export function readDecoder(folder: string, definition: ModelDefinition, spec: DecoderSpec, options: { dtype?: DType | undefined; awq?: AwqConfig | undefined }): Decoder {
  const handle = openSafetensors(folder);
  try {
    const fused = definition.fused ? Array.from({ length: spec.layers }, (_, i) => definition.fused!(spec, i)).flat() : [];
    const source = new FileSource(handle, options.dtype, fused, options.awq);
    const decoder = noGrad(() => build(definition, spec, source));
    const leftover = [...handle.tensors.keys()].filter(
      (name) => !source.used.has(name) && !name.endsWith("rotary_emb.inv_freq") && !(spec.tieWordEmbeddings && name === `${definition.names.head}.weight`),
    );
    if (leftover.length > 0) {
      decoder.dispose();
      throw new FormatError(`[loadModel] ${leftover.length} tensors of the checkpoint belong to nothing in this model: ${leftover.slice(0, 4).join(", ")}${leftover.length > 4 ? " …" : ""}`, { leftover });
    }
    return decoder;
  } finally {
    handle.close();
  }
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

/** Stacks the members of a fused tensor in the checkpoint's row order. */
function joinRows(f: FusedRows, members: readonly Tensor[]): Tensor {
  const where = new Int32Array(members.reduce((n, t) => n + t.dim(0), 0));
  let at = 0;
  for (const p of f.parts) for (const row of p.rows) where[row] = at++;
  return native.gatherRows(native.concatRows(members), tensor(where));
}

/** @throws {UnsupportedError} adapters that are not to be merged, or cannot be */
function checkAdapters(l: Linear, merge: boolean): void {
  if (l.deltas.length === 0) return;
  if (!merge) {
    throw new UnsupportedError(`[saveModel] ${l.name} carries an adapter: merge it (mergeLora, or the option adapters: "merge") or save the adapter alone (saveLora)`, { name: l.name });
  }
  if (l.storage.kind !== "dense" && l.deltas.some((d) => d.active !== false)) {
    throw new UnsupportedError(`[saveModel] ${l.name} is stored as ${l.storage.kind}: merge its adapter with mergeLora(model, { base: "dequantized" }) first`, { name: l.name });
  }
}

function* linearSources(l: Linear, dtype: DType | undefined, merge: boolean): Generator<SafetensorsSource> {
  checkAdapters(l, merge);
  const s = l.storage;
  if (s.kind === "dense") yield lazy(`${l.name}.weight`, dtype ?? s.weight.dtype, s.weight.shape, () => l.mergedWeight(dtype ?? s.weight.dtype).detach());
  else if (s.kind === "w4") {
    const { outFeatures: N, inFeatures: K } = l;
    const groups = K / s.group;
    const pack = (): ReturnType<typeof packAwq> =>
      packAwq({ outFeatures: N, inFeatures: K, group: s.group, q: s.q.bitsSync() as Uint8Array, scales: s.scales.bitsSync() as Float32Array, zeros: s.zeros.bitsSync() as Uint8Array });
    const obstacle = awqObstacle(N, K, s.group);
    if (obstacle) throw new UnsupportedError(`[saveModel] ${l.name} cannot be stored in the AWQ layout: ${obstacle}`, { name: l.name });
    yield lazy(`${l.name}.qweight`, "i32", [K, N / 8], () => tensor(pack().qweight, [K, N / 8]));
    yield lazy(`${l.name}.qzeros`, "i32", [groups, N / 8], () => tensor(pack().qzeros, [groups, N / 8]));
    yield lazy(`${l.name}.scales`, "f16", [groups, N], () => tensor(pack().scales_GN, [groups, N]));
  } else throw new UnsupportedError(`[saveModel] ${l.name} is stored as ${s.kind}; dense and w4 (AWQ) can be saved`, { name: l.name });
  const { bias } = l;
  if (bias) yield lazy(`${l.name}.bias`, dtype ?? bias.dtype, bias.shape, () => bias.detach());
}

/**
 * Every weight as the checkpoint stores it, for writeSafetensors: fused forms joined again, W4 linears in the AWQ layout.
 * @param dtype  of dense weights; default as they are
 * @param merge  write W + Σ s·B·A where linears carry active adapters, one tensor at a time
 * @throws {UnsupportedError} a storage that no checkpoint format here holds (q8, nf4), or an adapter that is not to be merged
 */
export function* checkpointTensors(decoder: Decoder, definition: ModelDefinition, dtype?: DType, merge = false): Generator<SafetensorsSource> {
  const plain = (name: string, t: Tensor): SafetensorsSource => lazy(name, dtype ?? t.dtype, t.shape, () => t.detach());
  yield plain(`${decoder.embed.name}.weight`, decoder.embed.weight);
  for (const [i, b] of decoder.blocks.entries()) {
    const fused = definition.fused?.(decoder.spec, i) ?? [];
    const inFused = new Set(fused.flatMap((f) => f.parts.map((p) => p.linear)));
    const byName = new Map(b.linears().map((l) => [l.name, l]));
    for (const f of fused) {
      const members = f.parts.map((p) => byName.get(p.linear)!);
      const odd = members.find((l) => l.storage.kind !== "dense");
      if (odd) throw new UnsupportedError(`[saveModel] ${odd.name} is part of the fused tensor ${f.name} and must be dense`, { name: odd.name });
      for (const l of members) checkAdapters(l, merge);
      const weights = members.map((l) => (l.storage as { weight: Tensor }).weight);
      const rows = weights.reduce((n, t) => n + t.dim(0), 0);
      yield lazy(`${f.name}.weight`, dtype ?? weights[0]!.dtype, [rows, weights[0]!.dim(1)], () => joinRows(f, members.map((l, m) => l.mergedWeight(weights[m]!.dtype))));
      const biases = members.map((l) => l.bias);
      if (biases.every((t) => t !== null)) yield lazy(`${f.name}.bias`, dtype ?? biases[0]!.dtype, [rows], () => joinRows(f, biases as Tensor[]));
    }
    for (const l of b.linears()) if (!inFused.has(l.name)) yield* linearSources(l, dtype, merge);
    for (const n of b.norms()) yield plain(`${n.name}.weight`, n.weight);
  }
  yield plain(`${decoder.norm.name}.weight`, decoder.norm.weight);
  if (decoder.head) yield* linearSources(decoder.head, dtype, merge);
}
