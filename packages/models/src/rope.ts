/** Rotary position embedding tables: plain, linear, dynamic NTK, llama3, yarn, and Qwen's dynamic NTK with log-n attention. P positions, D head width. */
import { FormatError, UnsupportedError } from "@llm/core";

/** A rotary embedding: kind, base, width and the numbers that its kind needs. */
export interface RopeSpec {
  kind: "default" | "linear" | "dynamic" | "llama3" | "yarn" | "qwen-dynamic";
  theta: number;
  headDim: number;
  /** Length the model was trained on. */
  maxPositions: number;
  factor: number;
  /** llama3: */
  lowFreqFactor?: number;
  highFreqFactor?: number;
  /** llama3, yarn: length before extension. */
  originalMaxPositions?: number;
  /** yarn: */
  betaFast?: number;
  betaSlow?: number;
  attentionFactor?: number;
  mscale?: number;
  mscaleAllDim?: number;
  truncate?: boolean;
  /** Qwen 1: queries beyond the trained length are scaled by log_L(position + 1). */
  logn?: boolean;
}

/** Keys of config.json that this file reads. */
export const ropeKeys = ["rope_theta", "rope_scaling", "rope_parameters", "rope_interleaved", "partial_rotary_factor"];

/**
 * Reads rope_theta with rope_scaling, or the newer rope_parameters.
 * @throws {UnsupportedError} a type that is not listed above  @throws {FormatError} a missing number
 */
export function parseRope(config: Record<string, unknown>, headDim: number, maxPositions: number): RopeSpec {
  const scaling = (config["rope_parameters"] ?? config["rope_scaling"] ?? {}) as Record<string, unknown>;
  if (config["rope_interleaved"]) throw new UnsupportedError("[config.json] rope_interleaved is not supported");
  const partial = config["partial_rotary_factor"] ?? scaling["partial_rotary_factor"] ?? 1;
  if (partial !== 1)
    throw new UnsupportedError(`[config.json] partial_rotary_factor ${String(partial)} is not supported, 1 is`);
  const kind = String(scaling["rope_type"] ?? scaling["type"] ?? "default");
  const theta = Number(scaling["rope_theta"] ?? config["rope_theta"] ?? 10000);
  const number = (key: string, fallback?: number): number => {
    const value = scaling[key] ?? fallback;
    if (typeof value !== "number" || !Number.isFinite(value))
      throw new FormatError(
        `[config.json] rope_scaling.${key} must be a number for type "${kind}", got ${JSON.stringify(scaling[key])}`,
      );
    return value;
  };
  const base = { theta, headDim, maxPositions, factor: 1 };
  switch (kind) {
    case "default":
    case "mrope":
      if (kind === "mrope") break;
      return { ...base, kind };
    case "linear":
    case "dynamic":
      return { ...base, kind, factor: number("factor") };
    case "llama3":
      return {
        ...base,
        kind,
        factor: number("factor"),
        lowFreqFactor: number("low_freq_factor"),
        highFreqFactor: number("high_freq_factor"),
        originalMaxPositions: number("original_max_position_embeddings", maxPositions),
      };
    case "yarn": {
      const original = number("original_max_position_embeddings", maxPositions);
      const optional = (key: string): number | undefined =>
        scaling[key] === undefined || scaling[key] === null ? undefined : number(key);
      const spec: RopeSpec = {
        ...base,
        kind,
        factor:
          scaling["factor"] === undefined || scaling["factor"] === null ? maxPositions / original : number("factor"),
        originalMaxPositions: original,
        betaFast: number("beta_fast", 32),
        betaSlow: number("beta_slow", 1),
        truncate: scaling["truncate"] !== false,
      };
      const attentionFactor = optional("attention_factor");
      const mscale = optional("mscale");
      const mscaleAllDim = optional("mscale_all_dim");
      if (attentionFactor !== undefined) spec.attentionFactor = attentionFactor;
      if (mscale !== undefined) spec.mscale = mscale;
      if (mscaleAllDim !== undefined) spec.mscaleAllDim = mscaleAllDim;
      return spec;
    }
  }
  throw new UnsupportedError(
    `[config.json] rope type "${kind}" is not supported; default, linear, dynamic, llama3 and yarn are`,
    { kind },
  );
}

/** Whether the angles depend on how long the sequence is. */
export const ropeDependsOnLength = (spec: RopeSpec): boolean => spec.kind === "dynamic" || spec.kind === "qwen-dynamic";

/** A length that gives the same angles as `length`: equal for lengths that can share a table, 0 where the length does not matter. */
export function ropeTableLength(spec: RopeSpec, length: number): number {
  if (spec.kind === "dynamic") return Math.max(length, spec.maxPositions);
  // Qwen's base changes where the length passes a power of two times the trained length.
  if (spec.kind === "qwen-dynamic")
    return spec.maxPositions * 2 ** Math.max(0, Math.ceil(Math.log2(length / spec.maxPositions)));
  return 0;
}

/**
 * Inverse frequencies [D/2] and the factor on cos and sin.
 * @param length  longest position + 1 of the forward pass; matters for the dynamic kinds only
 * @see transformers modeling_rope_utils.py; Peng et al. 2023 (YaRN), arXiv:2309.00071, sections 3.2 and 3.4
 */
export function ropeFrequencies(spec: RopeSpec, length: number): { frequencies: Float64Array; factor: number } {
  const { headDim, maxPositions } = spec;
  const inverse = (theta: number): Float64Array =>
    Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** (-(2 * i) / headDim));
  switch (spec.kind) {
    case "default":
      return { frequencies: inverse(spec.theta), factor: 1 };
    case "linear":
      return { frequencies: inverse(spec.theta).map((f) => f / spec.factor), factor: 1 };
    case "dynamic": {
      const n = Math.max(length, maxPositions);
      const stretch = (spec.factor * n) / maxPositions - (spec.factor - 1);
      return { frequencies: inverse(spec.theta * stretch ** (headDim / (headDim - 2))), factor: 1 };
    }
    case "qwen-dynamic": {
      const alpha = length <= maxPositions ? 1 : Math.max(1, 2 ** Math.ceil(Math.log2(length / maxPositions) + 1) - 1);
      return { frequencies: inverse(spec.theta * alpha ** (headDim / (headDim - 2))), factor: 1 };
    }
    case "llama3": {
      const original = spec.originalMaxPositions!;
      const low = original / spec.lowFreqFactor!;
      const high = original / spec.highFreqFactor!;
      return {
        frequencies: inverse(spec.theta).map((f) => {
          const wavelength = (2 * Math.PI) / f;
          if (wavelength < high) return f;
          if (wavelength > low) return f / spec.factor;
          const smooth = (original / wavelength - spec.lowFreqFactor!) / (spec.highFreqFactor! - spec.lowFreqFactor!);
          return ((1 - smooth) * f) / spec.factor + smooth * f;
        }),
        factor: 1,
      };
    }
    case "yarn": {
      const mscale = (scale: number, m = 1): number => (scale <= 1 ? 1 : 0.1 * m * Math.log(scale) + 1);
      const factor =
        spec.attentionFactor ??
        (spec.mscale && spec.mscaleAllDim
          ? mscale(spec.factor, spec.mscale) / mscale(spec.factor, spec.mscaleAllDim)
          : mscale(spec.factor));
      // Dim at which a frequency turns `rotations` times over the original length.
      const dimOf = (rotations: number): number =>
        (headDim * Math.log(spec.originalMaxPositions! / (rotations * 2 * Math.PI))) / (2 * Math.log(spec.theta));
      let low = dimOf(spec.betaFast!);
      let high = dimOf(spec.betaSlow!);
      if (spec.truncate) {
        low = Math.floor(low);
        high = Math.ceil(high);
      }
      low = Math.max(low, 0);
      high = Math.min(high, headDim - 1);
      if (low === high) high += 0.001;
      return {
        frequencies: inverse(spec.theta).map((f, i) => {
          const interpolate = Math.min(1, Math.max(0, (i - low) / (high - low)));
          return (f / spec.factor) * interpolate + f * (1 - interpolate);
        }),
        factor,
      };
    }
  }
}

/** cos and sin, each f32 [positions, D/2]; `q` differs from `k` only with log-n attention. */
export function ropeTables(
  spec: RopeSpec,
  positions: number,
  length: number,
): { cos: Float32Array; sin: Float32Array; qCos?: Float32Array; qSin?: Float32Array } {
  const { frequencies, factor } = ropeFrequencies(spec, length);
  const half = frequencies.length;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      // transformers multiplies position and frequency in f32.
      const angle = Math.fround(p * Math.fround(frequencies[i]!));
      cos[p * half + i] = Math.cos(angle) * factor;
      sin[p * half + i] = Math.sin(angle) * factor;
    }
  }
  if (!spec.logn) return { cos, sin };
  const scale = (p: number): number => (p >= spec.maxPositions ? Math.log(p + 1) / Math.log(spec.maxPositions) : 1);
  return {
    cos,
    sin,
    qCos: cos.map((x, i) => x * scale(Math.floor(i / half))),
    qSin: sin.map((x, i) => x * scale(Math.floor(i / half))),
  };
}
