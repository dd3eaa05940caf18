/** Weights of a Hugging Face folder → a Decoder. checkpoint.ts goes the other way. */
import {
  type Device,
  type DType,
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
  type Tensor,
  tensor,
  tensorLike,
  full,
} from "@llm/core";
import type { DecoderSpec, FusedRows, ModelDefinition } from "./arch/spec.js";
import { type AwqConfig, awqObstacle, type CanonicalW4, selectW4Rows, unpackAwq } from "./awq-format.js";
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
function build(
  definition: ModelDefinition,
  spec: DecoderSpec,
  source: Source,
  factory?: (linear: Linear) => Linear,
): Decoder {
  const { names } = definition;
  const C = spec.hiddenSize;
  const norm = (name: string, width: number): Norm => ({ name, weight: source.dense(`${name}.weight`, [width]) });
  const linear = (name: string, outFeatures: number, inFeatures: number, bias: boolean): Linear => {
    const storage = source.quantized(name, outFeatures, inFeatures) ?? {
      kind: "dense" as const,
      weight: source.dense(`${name}.weight`, [outFeatures, inFeatures]),
    };
    const made = new Linear({
      name,
      outFeatures,
      inFeatures,
      storage,
      bias: bias ? source.dense(`${name}.bias`, [outFeatures]) : null,
    });
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
      qkv: group([
        linear(n.q, width, C, spec.qkvBias),
        linear(n.k, kvWidth, C, spec.qkvBias),
        linear(n.v, kvWidth, C, spec.qkvBias),
      ]),
      o: linear(n.o, C, width, spec.oBias),
      ...(spec.qkNorm ? { qNorm: norm(n.qNorm!, spec.headDim), kNorm: norm(n.kNorm!, spec.headDim) } : {}),
      postNorm: norm(n.postNorm, C),
      gateUp: group([
        linear(n.gate, spec.intermediateSize, C, spec.mlpBias),
        linear(n.up, spec.intermediateSize, C, spec.mlpBias),
      ]),
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
export function randomDecoder(
  definition: ModelDefinition,
  spec: DecoderSpec,
  options: { seed: number; dtype: DType; std?: number },
): Decoder {
  let stream = 0;
  return noGrad(() =>
    build(definition, spec, {
      has: () => true,
      quantized: () => undefined,
      dense: (name, shape) => {
        stream++;
        if (shape.length === 1) return full(shape, name.endsWith(".bias") ? 0 : 1, options.dtype, "weights").keep();
        return randomNormal(shape, {
          seed: options.seed,
          stream,
          std: options.std ?? 0.02,
          dtype: options.dtype,
          tag: "weights",
        }).keep();
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
  private readonly device: Device;
  /** Linear name → the fused tensor and the rows in it. */
  private readonly parts = new Map<string, { fused: string; rows: Int32Array }>();
  /** The fused W4 tensor read last: its parts are asked for one after the other. */
  private fusedW4: { name: string; w: CanonicalW4 } | undefined;

  constructor(
    handle: SafetensorsHandle,
    dtype: DType | undefined,
    fused: readonly FusedRows[],
    awq: AwqConfig | undefined,
    device: Device,
  ) {
    this.device = device;
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
    if (!entry)
      throw new FormatError(
        `[loadModel] the checkpoint has no tensor "${name}" (expected ${shape ? `[${shape.join(", ")}]` : "one"})`,
        { name },
      );
    if (shape && (entry.shape.length !== shape.length || shape.some((n, i) => n !== entry.shape[i]))) {
      throw new ShapeError(
        `[loadModel] "${name}" must be [${shape.join(", ")}], got [${entry.shape.join(", ")}] in ${entry.file}`,
        { name },
      );
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
      t = scope(() => native.gatherRows(whole, tensorLike(whole, part.rows))).keep();
      whole.dispose();
      if (t.shape.length !== shape.length || shape.some((n, i) => n !== t.shape[i])) {
        throw new ShapeError(
          `[loadModel] rows of "${part.fused}" for "${name}" must be [${shape.join(", ")}], got [${t.shape.join(", ")}]`,
          { name },
        );
      }
    } else t = this.mapped(name, shape);
    if (this.device !== t.device) {
      const moved = t.to(this.device, "weights").keep();
      t.dispose();
      t = moved;
    }
    if (this.dtype && t.dtype !== this.dtype) {
      const cast = native.cast(t, code(this.dtype)).keep();
      t.dispose();
      return cast;
    }
    return t;
  }

  quantized(name: string, outFeatures: number, inFeatures: number): Linear["storage"] | undefined {
    if (!this.awq) return undefined;
    const { group } = this.awq;
    const part = this.parts.get(name);
    let w: CanonicalW4;
    if (this.has(`${name}.qweight`)) w = this.readAwq(name, outFeatures, inFeatures, group);
    else if (part && this.has(`${part.fused}.qweight`)) {
      if (this.fusedW4?.name !== part.fused) {
        const shape = this.handle.tensors.get(`${part.fused}.qweight`)!.shape;
        this.fusedW4 = { name: part.fused, w: this.readAwq(part.fused, (shape[1] ?? 0) * 8, inFeatures, group) };
      }
      w = selectW4Rows(this.fusedW4.w, part.rows);
    } else return undefined;
    const groups = inFeatures / group;
    return {
      kind: "w4",
      group,
      q: tensor(w.q, [outFeatures, inFeatures / 2], "u8", "weights", this.device).keep(),
      scales: tensor(w.scales, [outFeatures, groups], "f32", "weights", this.device).keep(),
      zeros: tensor(w.zeros, [outFeatures, groups], "u8", "weights", this.device).keep(),
    };
  }

  private readAwq(name: string, outFeatures: number, inFeatures: number, group: number): CanonicalW4 {
    const obstacle = awqObstacle(outFeatures, inFeatures, group);
    if (obstacle) throw new FormatError(`[loadModel] "${name}" cannot be in AWQ form: ${obstacle}`, { name });
    const read = (suffix: string, shape: number[]): Tensor => this.mapped(`${name}.${suffix}`, shape);
    const qweight = read("qweight", [inFeatures, outFeatures / 8]);
    const qzeros = read("qzeros", [inFeatures / group, outFeatures / 8]);
    const scales = read("scales", [inFeatures / group, outFeatures]);
    const w = unpackAwq(
      qweight.bitsSync() as Int32Array,
      qzeros.bitsSync() as Int32Array,
      scales.dataSync() as Float32Array,
      inFeatures,
      outFeatures,
      group,
    );
    for (const t of [qweight, qzeros, scales]) t.dispose();
    return w;
  }
}

/**
 * Reads a folder's safetensors into a decoder. On the CPU weights stay mapped on the file where no cast or fusing is needed.
 * @param dtype  cast floats to this; default as stored
 * @throws {FormatError} a tensor is missing, or one is left over that the model does not know
 */
export function readDecoder(
  folder: string,
  definition: ModelDefinition,
  spec: DecoderSpec,
  options: { dtype?: DType | undefined; awq?: AwqConfig | undefined; device: Device },
): Decoder {
  const handle = openSafetensors(folder);
  try {
    const fused = definition.fused
      ? Array.from({ length: spec.layers }, (_, i) => definition.fused!(spec, i)).flat()
      : [];
    const source = new FileSource(handle, options.dtype, fused, options.awq, options.device);
    const decoder = noGrad(() => build(definition, spec, source));
    const leftover = [...handle.tensors.keys()].filter(
      (name) =>
        !source.used.has(name) &&
        !name.endsWith("rotary_emb.inv_freq") &&
        !(spec.tieWordEmbeddings && name === `${definition.names.head}.weight`),
    );
    if (leftover.length > 0) {
      decoder.dispose();
      throw new FormatError(
        `[loadModel] ${leftover.length} tensors of the checkpoint belong to nothing in this model: ${leftover.slice(0, 4).join(", ")}${leftover.length > 4 ? " …" : ""}`,
        { leftover },
      );
    }
    return decoder;
  } finally {
    handle.close();
  }
}
