/** The decoder, written once: training runs it under the tape, serving records it into Plans. T tokens, H/K heads, D head width, C channels. */
import {
  add,
  addRmsNorm,
  attention,
  checkpoint,
  denseHead,
  type Device,
  dtypes,
  type Head,
  Linear,
  LinearGroup,
  type NamedTensor,
  embedding,
  native,
  noGrad,
  reshape,
  rmsNorm,
  rope,
  scope,
  splitColumns,
  swiglu,
  type Tensor,
  tensor,
  UnsupportedError,
} from "@llm/core";
import type { DecoderSpec } from "./arch/spec.js";
import { ropeTableLength, ropeTables } from "./rope.js";
import type { AttentionCache } from "./types.js";

/** A norm's weight and its name in checkpoints. */
export interface Norm {
  name: string;
  weight: Tensor;
}

/** One step's token layout as tensors; made by `createInputs` or kept in a Plan's fixed buffers. */
export interface DecoderInputs {
  /** i32 [T] */
  ids_T: Tensor;
  /** i32 [T] */
  positions_T: Tensor;
  /** i32 [B+1] */
  cuSeqlens_B1: Tensor;
  /** Longest position + 1; chooses the rotary table of length-dependent models. */
  length: number;
}

export interface ForwardOptions {
  /** Keys and values of earlier steps; without one, tokens attend within the batch. */
  cache?: AttentionCache;
  /** Recompute each block's intermediates in the backward pass. @default false */
  checkpointing?: boolean;
}

/** Tables in use at a forward pass. */
interface RotaryTables {
  cos: Tensor;
  sin: Tensor;
  qCos: Tensor;
  qSin: Tensor;
}

/** What a {@link Block} is made of. */
export interface BlockParts {
  inputNorm: Norm;
  qkv: LinearGroup;
  o: Linear;
  qNorm?: Norm;
  kNorm?: Norm;
  postNorm: Norm;
  gateUp: LinearGroup;
  down: Linear;
}

/** One layer: x + attention(norm(x)), then + mlp(norm(·)). */
export class Block implements BlockParts {
  readonly index: number;
  readonly inputNorm: Norm;
  readonly qkv: LinearGroup;
  readonly o: Linear;
  readonly qNorm?: Norm;
  readonly kNorm?: Norm;
  readonly postNorm: Norm;
  readonly gateUp: LinearGroup;
  readonly down: Linear;
  private readonly spec: DecoderSpec;

  constructor(spec: DecoderSpec, index: number, parts: BlockParts) {
    this.spec = spec;
    this.index = index;
    this.inputNorm = parts.inputNorm;
    this.qkv = parts.qkv;
    this.o = parts.o;
    if (parts.qNorm) this.qNorm = parts.qNorm;
    if (parts.kNorm) this.kNorm = parts.kNorm;
    this.postNorm = parts.postNorm;
    this.gateUp = parts.gateUp;
    this.down = parts.down;
  }

  /** @param x [T, C]  @returns [T, C] */
  forward(x: Tensor, inputs: DecoderInputs, tables: RotaryTables, cache?: AttentionCache): Tensor {
    const { rmsNormEps } = this.spec;
    const attended = this.o.forward(this.attend(rmsNorm(x, this.inputNorm.weight, rmsNormEps), inputs, tables, cache));
    const [normed, residual] = addRmsNorm(attended, x, this.postNorm.weight, rmsNormEps);
    return add(this.down.forward(swiglu(this.gateUp.forward(normed))), residual);
  }

  /** The input of `o`: heads side by side [T, H·D]. */
  attend(normed: Tensor, inputs: DecoderInputs, tables: RotaryTables, cache?: AttentionCache): Tensor {
    const { heads, kvHeads, headDim, rmsNormEps, windows } = this.spec;
    const [q_, k_, v_] = splitColumns(this.qkv.forward(normed), this.qkv.widths) as [Tensor, Tensor, Tensor];
    let q = reshape(q_, [q_.dim(0), heads, headDim]);
    let k = reshape(k_, [k_.dim(0), kvHeads, headDim]);
    const v = reshape(v_, [v_.dim(0), kvHeads, headDim]);
    if (this.qNorm) q = rmsNorm(q, this.qNorm.weight, rmsNormEps);
    if (this.kNorm) k = rmsNorm(k, this.kNorm.weight, rmsNormEps);
    q = rope(q, tables.qCos, tables.qSin, inputs.positions_T);
    k = rope(k, tables.cos, tables.sin, inputs.positions_T);
    const scale = headDim ** -0.5;
    const window = windows[this.index] ?? 0;
    let o: Tensor;
    if (cache) {
      const meta = { cuSeqlens_B1: inputs.cuSeqlens_B1, positions_T: inputs.positions_T, scale, window };
      cache.append(this.index, k, v, meta);
      o = cache.attend(this.index, q, meta);
    } else o = attention(q, k, v, inputs.cuSeqlens_B1, inputs.cuSeqlens_B1, { scale, window });
    return reshape(o, [o.dim(0), heads * headDim]);
  }

  linears(): Linear[] {
    return [...this.qkv.linears, this.o, ...this.gateUp.linears, this.down];
  }

  /** A block with each linear replaced by `change(linear)`, and each group by `changeGroup(group)`; everything else is shared. */
  mapLinears(
    change: (linear: Linear) => Linear,
    changeGroup = (group: LinearGroup): LinearGroup => group.map(change),
  ): Block {
    return new Block(this.spec, this.index, {
      ...this.parts(),
      qkv: changeGroup(this.qkv),
      o: change(this.o),
      gateUp: changeGroup(this.gateUp),
      down: change(this.down),
    });
  }

  parts(): BlockParts {
    const { inputNorm, qkv, o, qNorm, kNorm, postNorm, gateUp, down } = this;
    return { inputNorm, qkv, o, ...(qNorm ? { qNorm } : {}), ...(kNorm ? { kNorm } : {}), postNorm, gateUp, down };
  }

  norms(): Norm[] {
    return [this.inputNorm, this.qNorm, this.kNorm, this.postNorm].filter((n): n is Norm => n !== undefined);
  }
}

/** What a {@link Decoder} is made of; `head` is null when the embedding is the output projection. */
export interface DecoderParts {
  embed: Norm;
  blocks: Block[];
  norm: Norm;
  /** Absent when the head is the embedding. */
  head: Linear | null;
}

/** Embedding, blocks, final norm and head. Checkpointing, pipelines, calibration and pruning walk `blocks`. */
export class Decoder {
  readonly spec: DecoderSpec;
  /** Embedding table [V, C]. */
  readonly embed: Norm;
  readonly blocks: readonly Block[];
  readonly norm: Norm;
  readonly head: Linear | null;
  private tables: (RotaryTables & { positions: number; length: number }) | undefined;

  constructor(spec: DecoderSpec, parts: DecoderParts) {
    this.spec = spec;
    this.embed = parts.embed;
    this.blocks = parts.blocks;
    this.norm = parts.norm;
    this.head = parts.head;
  }

  /** Where the weights are, and every step runs. */
  get device(): Device {
    return this.embed.weight.device;
  }

  /** @returns final hidden states [T, C], normed: what the head multiplies */
  forward(inputs: DecoderInputs, options: ForwardOptions = {}): Tensor {
    const tables = this.rotary(inputs.length);
    let x = embedding(inputs.ids_T, this.embed.weight);
    for (const block of this.blocks) {
      const run = (h: Tensor): Tensor => block.forward(h, inputs, tables, options.cache);
      // The scope frees what no gradient needs as soon as the block is done.
      x = options.checkpointing ? checkpoint(run, x) : scope(() => run(x));
    }
    return rmsNorm(x, this.norm.weight, this.spec.rmsNormEps);
  }

  /** The output projection as the fused losses take it. */
  headFor(): Head {
    if (!this.head) return denseHead(this.embed.weight);
    const head = this.head;
    const deltas = head.deltas.filter((d) => d.active !== false);
    if (head.storage.kind === "dense" && deltas.length === 0) return denseHead(head.storage.weight);
    return {
      logits: (x) => head.forward(x),
      backward: (dlogits) =>
        scope(() => {
          const dx = native.matmul(dlogits, head.dequantize(dlogits.dtype), null, 0, 0, 0);
          for (const d of deltas) {
            if (d.a.requiresGrad || d.b.requiresGrad)
              throw new UnsupportedError(`[decoder] adapter "${d.name}" on the output head cannot be trained`);
            const [a, b] = [d.a, d.b].map((t) => native.cast(t, dtypes.indexOf(dlogits.dtype))) as [Tensor, Tensor];
            native.matmulAcc(
              dx,
              native.matmul(dlogits, b, null, 0, 0, dtypes.indexOf(dlogits.dtype)),
              a,
              0,
              0,
              d.scale,
              1,
            );
          }
          return dx;
        }),
    };
  }

  /** Logits f32 [t, V] of hidden states [t, C]. */
  logits(hidden: Tensor): Tensor {
    const logits = this.headFor().logits(hidden);
    return logits.dtype === "f32" ? logits : native.cast(logits, 0);
  }

  /** Rotary tables that reach `length` positions; kept, and grown by doubling. */
  rotary(length: number): RotaryTables {
    const { rope: spec, maxPositions } = this.spec;
    const effective = ropeTableLength(spec, length);
    if (this.tables && this.tables.positions >= length && this.tables.length === effective) return this.tables;
    let positions = Math.min(maxPositions, 512);
    while (positions < length) positions *= 2;
    const t = ropeTables(spec, positions, effective);
    const make = (data: Float32Array): Tensor =>
      tensor(data, [positions, spec.headDim / 2], "f32", "weights", this.device).keep();
    const cos = make(t.cos);
    const sin = make(t.sin);
    this.tables = {
      positions,
      length: effective,
      cos,
      sin,
      qCos: t.qCos ? make(t.qCos) : cos,
      qSin: t.qSin ? make(t.qSin) : sin,
    };
    return this.tables;
  }

  /** All linears, the untied head last. */
  linears(): Linear[] {
    return [...this.blocks.flatMap((b) => b.linears()), ...(this.head ? [this.head] : [])];
  }

  /**
   * A decoder that shares all tensors, with each linear (and the head) replaced by `change(linear)`.
   * @param changeGroup  what becomes of q, k, v and of gate, up together; default `change` of each
   */
  mapLinears(change: (linear: Linear) => Linear, changeGroup?: (group: LinearGroup) => LinearGroup): Decoder {
    return new Decoder(this.spec, {
      embed: this.embed,
      blocks: this.blocks.map((b) => b.mapLinears(change, changeGroup)),
      norm: this.norm,
      head: this.head ? change(this.head) : null,
    });
  }

  /**
   * The tensors that full fine-tuning trains: fused groups as one tensor each (named after their members), then the rest under their
   * Hugging Face names. Quantized storages are not listed.
   */
  trainable(): NamedTensor[] {
    const list: NamedTensor[] = [{ name: `${this.embed.name}.weight`, tensor: this.embed.weight }];
    const addLinear = (l: Linear): void => {
      if (l.storage.kind === "dense") list.push({ name: `${l.name}.weight`, tensor: l.storage.weight });
      if (l.bias) list.push({ name: `${l.name}.bias`, tensor: l.bias });
    };
    const addGroup = (g: LinearGroup): void => {
      for (const l of g.fused ? [g.fused] : g.linears) addLinear(l);
    };
    for (const b of this.blocks) {
      addGroup(b.qkv);
      addLinear(b.o);
      addGroup(b.gateUp);
      addLinear(b.down);
      for (const n of b.norms()) list.push({ name: `${n.name}.weight`, tensor: n.weight });
    }
    list.push({ name: `${this.norm.name}.weight`, tensor: this.norm.weight });
    if (this.head) addLinear(this.head);
    return list;
  }

  /** Every weight under its Hugging Face name, quantized linears with their storage's own suffixes. */
  *namedTensors(): Generator<[name: string, tensor: Tensor]> {
    yield [`${this.embed.name}.weight`, this.embed.weight];
    for (const b of this.blocks) {
      for (const l of b.linears()) for (const [suffix, t] of l.storageTensors()) yield [`${l.name}.${suffix}`, t];
      for (const n of b.norms()) yield [`${n.name}.weight`, n.weight];
    }
    yield [`${this.norm.name}.weight`, this.norm.weight];
    if (this.head) for (const [suffix, t] of this.head.storageTensors()) yield [`${this.head.name}.${suffix}`, t];
  }

  /** Bytes of all weights as stored. */
  get weightBytes(): number {
    let bytes = 0;
    for (const [, t] of this.namedTensors()) bytes += t.bytes;
    return bytes;
  }

  /** Number of scalar weights, of the dense model whatever the storage. */
  get parameterCount(): number {
    const linears = this.linears()
      .filter((l) => l !== this.head || !this.spec.tieWordEmbeddings)
      .reduce((n, l) => n + l.outFeatures * l.inFeatures + (l.bias?.size ?? 0), 0);
    const norms = this.blocks
      .flatMap((b) => b.norms())
      .reduce((n, { weight }) => n + weight.size, this.norm.weight.size);
    return linears + norms + this.embed.weight.size;
  }

  /** Frees every weight. Decoders made by mapLinears share weights with this one and die with it. */
  dispose(): void {
    for (const [, t] of this.namedTensors()) t.dispose();
    for (const b of this.blocks) {
      for (const g of [b.qkv, b.gateUp]) {
        for (const [, t] of g.fused?.storageTensors() ?? []) t.dispose();
      }
    }
    for (const l of this.linears()) {
      l.dispose();
      for (const d of l.deltas) {
        d.a.dispose();
        d.b.dispose();
      }
    }
    if (this.tables)
      for (const t of [this.tables.cos, this.tables.sin, this.tables.qCos, this.tables.qSin]) t.dispose();
    this.tables = undefined;
  }
}

/** Uploads a step's layout. */
export function createInputs(ids_T: Int32Array, positions_T: Int32Array, cuSeqlens_B1: Int32Array): DecoderInputs {
  let length = 0;
  for (const p of positions_T) if (p >= length) length = p + 1;
  return noGrad(() => ({
    ids_T: tensor(ids_T),
    positions_T: tensor(positions_T),
    cuSeqlens_B1: tensor(cuSeqlens_B1),
    length,
  }));
}
