/** AWQ's search on one block: scales of each group of linears that share an input, then clips. T tokens of a chunk, C hidden, I inner width. */
import {
  addRmsNorm,
  Linear,
  LinearGroup,
  native,
  NumericError,
  rmsNorm,
  scope,
  swiglu,
  noGrad,
  type Tensor,
  tensorLike,
} from "@llm/core";
import { Block, type Decoder, type DecoderInputs, type DecoderSpec, type Norm } from "@llm/models";
import { type BlockScales, foldNorm, linearRoles, type LinearRole, scaleColumns } from "./fold.js";
import { clampGroups, fakeQuantize, type Rounding } from "./rounding.js";
import { duoScales, gridRatios, meanGroupWeight, tieHeads, untieHeads } from "./scales.js";

type RotaryTables = ReturnType<Decoder["rotary"]>;

/** One calibration block's hidden states before a decoder block, f32 [T, C], and its layout. */
export interface Chunk {
  x: Tensor;
  inputs: DecoderInputs;
}

export interface SearchOptions extends Rounding {
  nGrid: number;
  clip: boolean;
  signal: AbortSignal | undefined;
  /** Whether a linear becomes W4. */
  quantized: (linear: Linear) => boolean;
}

/** What was found for a linear. */
export interface Found {
  ratio: number | null;
  errorRtn: number;
  errorAwq: number;
  /** Limits [N · G] for the scaled weight; Infinity = no clip. */
  limits?: Float32Array;
}

export interface BlockFindings {
  scales: BlockScales;
  linears: Map<LinearRole, Found>;
}

/** Tokens that a clip is searched on. */
const clipTokens = 512;
/** The clip search tries max|w| · (1 − i / 20), i = 0 … 9. */
const clipGrid = 20;
const clipShrink = 0.5;

/** A group of linears that share an input, and how the error of rounding them is seen. */
interface SearchGroup {
  key: keyof BlockScales;
  members: [role: LinearRole, linear: Linear][];
  /** Input of the linears, f32 [T, K] a chunk. */
  inputs: Tensor[];
  /** ‖output − target‖ of the inspected module when the members' weights are these: f32 [1] a chunk. */
  errors(weights: readonly Tensor[]): Tensor[];
  /** Elements of the module's output over all chunks. */
  elements: number;
  /** Statistics of channels → those that scales are chosen for (query heads are tied). */
  tie?: (channels: Float64Array) => Float64Array;
  /** Scales as chosen → one a channel. */
  untie?: (scales: Float32Array) => Float32Array;
  /** Norm that the scales are folded into: only scales that its dtype can express are tried. */
  norm?: Norm;
}

const weightOf = (l: Linear): Tensor => (l.storage as { weight: Tensor }).weight;
const dense = (l: Linear, weight: Tensor): Linear => l.with({ storage: { kind: "dense", weight } });

/** A dense block in f32; `made` are the tensors that it does not share with `block`. */
export function f32Block(spec: DecoderSpec, block: Block): { block: Block; made: Tensor[] } {
  const made: Tensor[] = [];
  const wide = (t: Tensor): Tensor => {
    if (t.dtype === "f32") return t;
    const cast = native.cast(t, 0).keep();
    made.push(cast);
    return cast;
  };
  const linear = (l: Linear): Linear =>
    l.with({ storage: { kind: "dense", weight: wide(weightOf(l)) }, bias: l.bias ? wide(l.bias) : null });
  const norm = (n: Norm): Norm => ({ name: n.name, weight: wide(n.weight) });
  const parts = block.parts();
  return {
    block: new Block(spec, block.index, {
      inputNorm: norm(parts.inputNorm),
      qkv: new LinearGroup(parts.qkv.linears.map(linear)),
      o: linear(parts.o),
      ...(parts.qNorm ? { qNorm: norm(parts.qNorm) } : {}),
      ...(parts.kNorm ? { kNorm: norm(parts.kNorm) } : {}),
      postNorm: norm(parts.postNorm),
      gateUp: new LinearGroup(parts.gateUp.linears.map(linear)),
      down: linear(parts.down),
    }),
    made,
  };
}

/** Tensors of each chunk that outlive the function's scope. */
const each = (chunks: readonly Chunk[], fn: (chunk: Chunk) => Tensor): Tensor[] =>
  noGrad(() => chunks.map((chunk) => scope(() => fn(chunk)).keep()));
const dispose = (tensors: readonly Tensor[]): void => tensors.forEach((t) => t.dispose());
const total = (tensors: readonly Tensor[]): number => tensors.reduce((n, t) => n + t.size, 0);

const distance = (a: Tensor, b: Tensor): Tensor => native.globalNorm([native.sub(a, b)]);

/** ‖x (W − Ŵ)ᵀ‖ of each chunk. */
const linearErrors = (inputs: readonly Tensor[], l: Linear, weight: Tensor): Tensor[] => {
  const difference = native.sub(weight, weightOf(l));
  return inputs.map((x) => scope(() => native.globalNorm([native.matmul(x, difference, null, 0, 1, 0)])));
};

/**
 * Searches a block on the unrounded inputs. Each group is searched with all else in full precision; the order does not matter.
 * @param block  dense, f32
 * @param stored the block that the scales will be folded into (its norms' dtype)
 */
export async function searchBlock(
  spec: DecoderSpec,
  block: Block,
  stored: Block,
  chunks: readonly Chunk[],
  tables: RotaryTables,
  options: SearchOptions,
): Promise<BlockFindings> {
  const eps = spec.rmsNormEps;
  const findings: BlockFindings = { scales: {}, linears: new Map() };
  const roles = linearRoles(block);
  const members = (...wanted: LinearRole[]): [LinearRole, Linear][] => roles.filter(([role]) => wanted.includes(role));
  const any = (list: [LinearRole, Linear][]): boolean => list.some(([, l]) => options.quantized(l));

  const run = async (make: () => SearchGroup, extra: () => Tensor[]): Promise<void> => {
    const group = make();
    try {
      await searchGroup(group, options, findings);
    } finally {
      dispose([...group.inputs, ...extra()]);
    }
  };

  const attended = (c: Chunk): Tensor => block.attend(rmsNorm(c.x, block.inputNorm.weight, eps), c.inputs, tables);
  const mlpInput = (c: Chunk): Tensor => addRmsNorm(block.o.forward(attended(c)), c.x, block.postNorm.weight, eps)[0];

  const qkv = members("q", "k", "v");
  if (any(qkv)) {
    let targets: Tensor[] = [];
    await run(
      () => {
        const inputs = each(chunks, (c) => rmsNorm(c.x, block.inputNorm.weight, eps));
        targets = each(chunks, (c) => block.o.forward(attended(c)));
        return {
          key: "qkv",
          members: qkv,
          inputs,
          norm: stored.inputNorm,
          elements: total(targets),
          errors: (weights) => {
            const changed = new Block(spec, block.index, {
              ...block.parts(),
              qkv: new LinearGroup(qkv.map(([, l], i) => dense(l, weights[i]!))),
            });
            return chunks.map((c, i) =>
              scope(() => distance(block.o.forward(changed.attend(inputs[i]!, c.inputs, tables)), targets[i]!)),
            );
          },
        };
      },
      () => targets,
    );
  }

  const o = members("o");
  if (any(o)) {
    const { heads, kvHeads, headDim } = spec;
    await run(
      () => {
        const inputs = each(chunks, attended);
        return {
          key: "o",
          members: o,
          inputs,
          elements: (total(inputs) / (heads * headDim)) * spec.hiddenSize,
          errors: ([weight]) => linearErrors(inputs, block.o, weight!),
          tie: (channels) => tieHeads(channels, heads, kvHeads, headDim),
          untie: (scales) => untieHeads(scales, heads, kvHeads, headDim),
        };
      },
      () => [],
    );
  }

  const gateUp = members("gate", "up");
  if (any(gateUp)) {
    let targets: Tensor[] = [];
    await run(
      () => {
        const inputs = each(chunks, mlpInput);
        targets = noGrad(() =>
          inputs.map((x) => scope(() => block.down.forward(swiglu(block.gateUp.forward(x)))).keep()),
        );
        return {
          key: "gateUp",
          members: gateUp,
          inputs,
          norm: stored.postNorm,
          elements: total(targets),
          errors: (weights) => {
            const changed = new LinearGroup(gateUp.map(([, l], i) => dense(l, weights[i]!)));
            return inputs.map((x, i) =>
              scope(() => distance(block.down.forward(swiglu(changed.forward(x))), targets[i]!)),
            );
          },
        };
      },
      () => targets,
    );
  }

  const down = members("down");
  if (any(down)) {
    await run(
      () => {
        const inputs = each(chunks, (c) => swiglu(block.gateUp.forward(mlpInput(c))));
        return {
          key: "down",
          members: down,
          inputs,
          elements: (total(inputs) / spec.intermediateSize) * spec.hiddenSize,
          errors: ([weight]) => linearErrors(inputs, block.down, weight!),
        };
      },
      () => [],
    );
  }
  return findings;
}

/** Values of one-element tensors, which are disposed. */
async function read(tensors: readonly Tensor[]): Promise<Float32Array> {
  const joined = noGrad(() => scope(() => native.concatRows(tensors)));
  dispose(tensors);
  const values = (await joined.data()) as Float32Array;
  joined.dispose();
  return values;
}

/** Channel means of |x| over all tokens. */
async function meanAbsolute(inputs: readonly Tensor[]): Promise<Float64Array> {
  const K = inputs[0]!.dim(1);
  const mean = new Float64Array(K);
  let tokens = 0;
  for (const x of inputs) {
    const part = noGrad(() => native.meanAbsCols(x));
    const values = (await part.data()) as Float32Array;
    part.dispose();
    for (let c = 0; c < K; c++) mean[c]! += values[c]! * x.dim(0);
    tokens += x.dim(0);
  }
  return mean.map((sum) => sum / tokens);
}

/** Calls `change` on the weight of each member that is quantized; the others stay. */
function weights(group: SearchGroup, options: SearchOptions, change: (w: Tensor, index: number) => Tensor): Tensor[] {
  return group.members.map(([, l], i) => (options.quantized(l) ? change(weightOf(l), i) : weightOf(l)));
}

/** Rounded weights in the space of the unscaled input: Q(clamp(W · s)) / s. */
function rounded(
  group: SearchGroup,
  options: SearchOptions,
  columns: Float32Array | undefined,
  limits: readonly (Float32Array | undefined)[],
): Tensor[] {
  return weights(group, options, (w, i) => {
    const scaled = scaleColumns(w, columns);
    const limited = limits[i] ? clampGroups(scaled, limits[i]!, options.group).clamped : scaled;
    const back = fakeQuantize(limited, options);
    return columns ? native.mulCols(back, tensorLike(back, columns), 1) : back;
  });
}

async function searchGroup(group: SearchGroup, options: SearchOptions, findings: BlockFindings): Promise<void> {
  const { members } = group;
  const K = group.inputs[0]!.dim(1);
  const loss = async (
    columns: Float32Array | undefined,
    limits: readonly (Float32Array | undefined)[],
  ): Promise<number> => {
    options.signal?.throwIfAborted();
    const errors = noGrad(() => scope(() => group.errors(rounded(group, options, columns, limits))));
    return (await read(errors)).reduce((sum, root) => sum + root * root, 0) / group.elements;
  };

  const quantized = members.filter(([, l]) => options.quantized(l));
  const data = quantized.map(([, l]) => {
    const values = weightOf(l).dataSync() as Float32Array;
    if (!values.every(Number.isFinite))
      throw new NumericError(`[quantize] ${l.name}.weight: expected finite numbers, got NaN or infinity`, {
        name: l.name,
      });
    return { data: values, rows: l.outFeatures };
  });
  const tie = group.tie ?? ((channels: Float64Array) => channels);
  const untie = group.untie ?? ((scales: Float32Array) => scales);
  const x = tie(await meanAbsolute(group.inputs));
  const w = tie(meanGroupWeight(data, K, options.group));
  const none = members.map(() => undefined);

  const errorRtn = await loss(undefined, none);
  let best: {
    ratio: number | null;
    error: number;
    scales: Float32Array | undefined;
    columns: Float32Array | undefined;
  } = { ratio: null, error: errorRtn, scales: undefined, columns: undefined };
  for (const ratio of gridRatios(options.nGrid)) {
    let scales: Float32Array = duoScales(x, w, ratio);
    if (group.norm) {
      const folded = foldNorm(group.norm, scales);
      folded.norm.weight.dispose();
      scales = folded.scales!;
    }
    const columns = untie(scales);
    const error = await loss(columns, none);
    if (error < best.error) best = { ratio, error, scales, columns };
  }
  if (best.scales) findings.scales[group.key] = best.scales;

  const limits: (Float32Array | undefined)[] = members.map(() => undefined);
  let error = best.error;
  if (options.clip) {
    const sample = clipSample(group.inputs, best.columns);
    try {
      for (const [i, [role, l]] of members.entries()) {
        if (role === "q" || role === "k" || !options.quantized(l)) continue;
        const found = await searchClip(l, group.inputs, sample, best.columns, options);
        if (!found) continue;
        const attempt = limits.with(i, found);
        const clipped = await loss(best.columns, attempt);
        if (clipped < error) {
          error = clipped;
          limits[i] = found;
        }
      }
    } finally {
      sample.dispose();
    }
  }
  for (const [i, [role, l]] of members.entries()) {
    if (options.quantized(l))
      findings.linears.set(role, {
        ratio: best.ratio,
        errorRtn,
        errorAwq: error,
        ...(limits[i] ? { limits: limits[i] } : {}),
      });
  }
}

/** At most 512 evenly spaced tokens of all chunks, as the scaled linears see them. */
function clipSample(inputs: readonly Tensor[], columns: Float32Array | undefined): Tensor {
  const tokens = inputs.reduce((n, x) => n + x.dim(0), 0);
  const step = Math.max(1, Math.floor(tokens / clipTokens));
  return noGrad(() =>
    scope(() => {
      const parts: Tensor[] = [];
      let start = 0;
      for (const x of inputs) {
        const rows: number[] = [];
        for (let t = 0; t < x.dim(0); t++)
          if ((start + t) % step === 0 && (start + t) / step < clipTokens) rows.push(t);
        if (rows.length > 0) parts.push(native.gatherRows(x, tensorLike(x, Int32Array.from(rows))));
        start += x.dim(0);
      }
      const sample = native.concatRows(parts);
      return columns ? native.mulCols(sample, tensorLike(sample, columns), 1) : sample;
    }),
  ).keep();
}

/**
 * Limits [N · G] that make the linear's own output better, row by row, over all tokens; undefined when no row gains.
 * Output rows do not depend on each other's weights, so choosing by row can only lower the linear's error.
 */
async function searchClip(
  l: Linear,
  inputs: readonly Tensor[],
  sample: Tensor,
  columns: Float32Array | undefined,
  options: SearchOptions,
): Promise<Float32Array | undefined> {
  options.signal?.throwIfAborted();
  const { group } = options;
  const found = noGrad(() =>
    scope(() => native.awqClipSearch(scaleColumns(weightOf(l), columns), sample, group, clipGrid, clipShrink)),
  );
  const limits = (await found.data()) as Float32Array;
  found.dispose();

  const rowErrors = async (clip: boolean): Promise<Float64Array> => {
    const parts = noGrad(() =>
      scope(() => {
        const scaled = scaleColumns(weightOf(l), columns);
        const limited = clip ? clampGroups(scaled, limits, group).clamped : scaled;
        const back = fakeQuantize(limited, options);
        const difference = native.sub(columns ? native.mulCols(back, tensorLike(back, columns), 1) : back, weightOf(l));
        return inputs.map((x) =>
          scope(() => {
            const d = native.matmul(x, difference, null, 0, 1, 0);
            return native.sumRows(native.mul(d, d));
          }),
        );
      }),
    );
    const sums = new Float64Array(l.outFeatures);
    for (const part of parts) {
      const values = (await part.data()) as Float32Array;
      part.dispose();
      for (let n = 0; n < sums.length; n++) sums[n]! += values[n]!;
    }
    return sums;
  };
  const [plain, clipped] = [await rowErrors(false), await rowErrors(true)];
  const G = limits.length / l.outFeatures;
  let gains = 0;
  for (let n = 0; n < l.outFeatures; n++) {
    if (clipped[n]! < plain[n]!) gains++;
    else limits.fill(Infinity, n * G, (n + 1) * G);
  }
  return gains > 0 ? limits : undefined;
}
