/** quantize(): a model with 4-bit linears from a dense one. */
import {
  Linear,
  native,
  noGrad,
  onDevice,
  NumericError,
  OptionsError,
  parseOptions,
  scope,
  type Tensor,
  UnsupportedError,
  embedding,
} from "@llm/core";
import { type Block, CausalLM, type CausalLMInit, createInputs, type Decoder } from "@llm/models";
import { type CalibrationBlock, calibrationBlocks } from "./calibration.js";
import { type BlockScales, divideRows, foldBias, foldBlock, foldedLinear, scaleColumns, withBlocks } from "./fold.js";
import { QuantizeOptions } from "./options.js";
import type { LinearReport, QuantizationReport } from "./report.js";
import { clampGroups, roundToNearest, type Rounding } from "./rounding.js";
import { type BlockFindings, type Chunk, f32Block, searchBlock } from "./search.js";

/** A model with quantized linears, and how they came out. Use and save it as any other. */
export class QuantizedModel extends CausalLM {
  readonly quantization: QuantizationReport;

  constructor(init: CausalLMInit, quantization: QuantizationReport) {
    super(init);
    this.quantization = quantization;
  }
}

/** Why a dense linear cannot be held in 4 bits, or undefined. */
function obstacleOf(l: Linear): string | undefined {
  return l.inFeatures % 2 ? `its ${l.inFeatures} in features are odd: two weights share a byte` : undefined;
}

type ParsedOptions = ReturnType<typeof readOptions>;

function readOptions(options: QuantizeOptions) {
  const o = parseOptions(QuantizeOptions, options, "quantize");
  if (o.method === "rtn") {
    const unused = (["calibration", "blockTokens", "maxBlocks", "nGrid", "clip"] as const).find(
      (key) => o[key] !== undefined,
    );
    if (unused)
      throw new OptionsError(`[quantize] ${unused}: method "rtn" does not use it; leave it out or choose "awq"`);
  } else if (o.calibration === undefined) {
    throw new OptionsError(
      '[quantize] calibration: method "awq" needs blocks of token ids (tokenBlocks of @llm/data), packed batches or a data set; "rtn" needs none',
    );
  }
  return o;
}

/**
 * A model whose linears hold 4-bit weights; everything else is shared with `model`, which is not changed and may be disposed of
 * independently. "awq" searches, for each group of linears that share an input, scales that protect the channels with large
 * activations and are folded into the layer before (norms, v, up), then clips of the weights' range; each choice is kept only where it
 * lowers the error on the calibration data, so it is never worse than rounding. Search runs in f32, block by block on the unrounded
 * model's activations, and is deterministic. The embedding, norms and (unless `headBits`) the output head keep their dtype.
 * @throws {OptionsError} options that do not fit together  @throws {UnsupportedError} the model is quantized already or carries adapters
 * @throws {NumericError} weights that are not finite or that f16 scales cannot hold, naming the tensor
 * @see Lin et al. 2023, arXiv:2306.00978
 */
export async function quantize(model: CausalLM, options: QuantizeOptions = {}): Promise<QuantizedModel> {
  const o = readOptions(options);
  const { decoder } = model;
  const { spec } = decoder;
  for (const l of decoder.linears()) {
    if (l.deltas.length > 0)
      throw new UnsupportedError(`[quantize] ${l.name} carries an adapter: merge it first (mergeLora)`, {
        name: l.name,
      });
    if (l.storage.kind !== "dense")
      throw new UnsupportedError(
        `[quantize] ${l.name} is stored as ${l.storage.kind} already; quantize the dense model`,
        { name: l.name },
      );
  }
  const skipped = (name: string): boolean => o.modulesToNotConvert.some((text) => name.includes(text));
  const quantized = (l: Linear): boolean => !skipped(l.name) && obstacleOf(l) === undefined;
  const headName = decoder.head?.name ?? model.definition.names.head;
  if (o.headBits !== undefined && skipped(headName))
    throw new OptionsError(`[quantize] headBits: "${headName}" is among modulesToNotConvert`);
  const rounding: Rounding = { group: o.groupSize, symmetric: o.symmetric };

  const blocks =
    o.method === "awq"
      ? calibrationBlocks(
          o.calibration!,
          Math.min(o.blockTokens ?? 512, model.maxTokens),
          o.maxBlocks ?? 128,
          spec.vocabSize,
        )
      : [];
  const reports: LinearReport[] = [];
  const done: Block[] = [];
  let chunks: Chunk[] = [];
  let head: Linear | undefined;
  try {
    chunks = startChunks(decoder, blocks);
    for (const block of decoder.blocks) {
      o.signal?.throwIfAborted();
      const found = chunks.length > 0 ? await searchStep(decoder, block, chunks, o, rounding, quantized) : undefined;
      done.push(makeBlock(decoder, block, found, o, rounding, quantized, reports));
      for (const { name } of block.linears()) o.onProgress?.({ layer: block.index, of: spec.layers, name });
      // Lets timers and aborts through between blocks.
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (o.headBits !== undefined) {
      head = eightBitHead(decoder, headName, o);
      reports.push(plainReport(head, "q8", o.groupSize));
      o.onProgress?.({ layer: spec.layers, of: spec.layers, name: headName });
    }
    const made = noGrad(() => withBlocks(decoder, done, head));
    const report: QuantizationReport = {
      method: o.method,
      group: o.groupSize,
      symmetric: o.symmetric,
      calibration:
        o.method === "awq"
          ? { tokens: blocks.reduce((n, b) => n + b.ids_T.length, 0), blocks: blocks.length }
          : undefined,
      linears: reports,
      bytesBefore: decoder.weightBytes,
      bytesAfter: made.weightBytes,
    };
    const { quantization_config: _stale, ...config } = model.config;
    return new QuantizedModel(
      {
        definition: model.definition,
        config,
        decoder: made,
        tokenizer: model.tokenizer,
        eosTokenIds: model.eosTokenIds,
        generationConfig: { ...model.generationConfig },
        ...(model.path ? { path: model.path } : {}),
      },
      report,
    );
  } catch (error) {
    for (const block of done) for (const l of block.linears()) for (const [, t] of l.storageTensors()) t.dispose();
    throw error;
  } finally {
    for (const { x, inputs } of chunks)
      for (const t of [x, inputs.ids_T, inputs.positions_T, inputs.cuSeqlens_B1]) t.dispose();
  }
}

/** Embedded calibration blocks in f32. */
function startChunks(decoder: Decoder, blocks: readonly CalibrationBlock[]): Chunk[] {
  return noGrad(() =>
    blocks.map((b) => {
      const inputs = onDevice(decoder.device, () => createInputs(b.ids_T, b.positions_T, b.cuSeqlens_B1));
      const x = scope(() => {
        const embedded = embedding(inputs.ids_T, decoder.embed.weight);
        return embedded.dtype === "f32" ? embedded : native.cast(embedded, 0);
      });
      return { x, inputs };
    }),
  );
}

/** Searches one block, then moves the chunks behind it. */
async function searchStep(
  decoder: Decoder,
  block: Block,
  chunks: Chunk[],
  o: ParsedOptions,
  rounding: Rounding,
  quantized: (l: Linear) => boolean,
): Promise<BlockFindings> {
  const tables = decoder.rotary(Math.max(...chunks.map((c) => c.inputs.length)));
  const { block: wide, made } = noGrad(() => f32Block(decoder.spec, block));
  try {
    const found = await searchBlock(decoder.spec, wide, block, chunks, tables, {
      ...rounding,
      nGrid: o.nGrid ?? 20,
      clip: o.clip ?? true,
      signal: o.signal,
      quantized,
    });
    for (const chunk of chunks) {
      const next = noGrad(() => scope(() => wide.forward(chunk.x, chunk.inputs, tables)));
      chunk.x.dispose();
      chunk.x = next;
    }
    return found;
  } finally {
    for (const t of made) t.dispose();
  }
}

const plainReport = (l: Linear, stored: LinearReport["stored"], group: number, reason?: string): LinearReport => ({
  name: l.name,
  stored,
  group,
  ratio: null,
  errorRtn: undefined,
  errorAwq: undefined,
  clipped: 0,
  ...(reason ? { reason } : {}),
});

/** Scales folded, weights clipped and rounded. */
function makeBlock(
  decoder: Decoder,
  block: Block,
  found: BlockFindings | undefined,
  o: ParsedOptions,
  rounding: Rounding,
  quantized: (l: Linear) => boolean,
  reports: LinearReport[],
): Block {
  const scales: BlockScales = found?.scales ?? {};
  return noGrad(() =>
    foldBlock(decoder.spec, block, scales, (role, l, factors) => {
      if (!quantized(l)) {
        reports.push(plainReport(l, "dense", 0, obstacleOf(l)));
        return foldedLinear(role, l, factors);
      }
      const finding = found?.linears.get(role);
      const { storage, cut } = w4Storage(l, factors, finding?.limits, rounding, o.compute);
      reports.push({
        ...plainReport(l, "w4", rounding.group),
        ...(finding ? { ratio: finding.ratio, errorRtn: finding.errorRtn, errorAwq: finding.errorAwq } : {}),
        clipped: cut / storage.scales.size,
      });
      return l.with({ storage, bias: foldBias(l, factors.rows) });
    }),
  );
}

function w4Storage(
  l: Linear,
  factors: Parameters<typeof foldedLinear>[2],
  limits: Float32Array | undefined,
  rounding: Rounding,
  compute: "exact" | "int8",
) {
  const { weight } = l.storage as { weight: Tensor };
  let cut = 0;
  const made = scope(() => {
    const wide = weight.dtype === "f32" ? weight : native.cast(weight, 0);
    let w = scaleColumns(wide, factors.columns);
    if (limits) ({ clamped: w, cut } = clampGroups(w, limits, rounding.group));
    w = divideRows(w, factors.rows);
    if (!Number.isFinite(native.sum(w).itemSync()))
      throw new NumericError(`[quantize] ${l.name}.weight: expected finite numbers, got NaN or infinity`, {
        name: l.name,
      });
    return roundToNearest(w, rounding);
  });
  const largest = (made.scales.dataSync() as Float32Array).reduce((a, b) => Math.max(a, b), 0);
  if (!(largest <= 65504))
    throw new NumericError(`[quantize] ${l.name}.weight: its scales pass the range of f16 (65504)`, { name: l.name });
  const storage = {
    kind: "w4" as const,
    group: rounding.group,
    q: made.q.keep(),
    scales: made.scales.keep(),
    zeros: made.zeros.keep(),
    ...(compute === "int8" ? { compute } : {}),
  };
  return { storage, cut };
}

/** The output head in 8 bits; of tied models a copy of the embedding. */
function eightBitHead(decoder: Decoder, name: string, o: ParsedOptions): Linear {
  const weight = decoder.head ? (decoder.head.storage as { weight: Tensor }).weight : decoder.embed.weight;
  const [q, scales] = noGrad(() => native.quantizeQ8(weight, o.groupSize));
  return new Linear({
    name,
    outFeatures: weight.dim(0),
    inFeatures: weight.dim(1),
    storage: {
      kind: "q8",
      q: q.keep(),
      scales: scales.keep(),
      group: o.groupSize,
      ...(o.compute === "int8" ? { compute: o.compute } : {}),
    },
    bias: decoder.head?.bias ?? null,
  });
}
