/** Which per-channel scales AWQ tries. K in features of the linears that share an input. */

/**
 * Mean over rows of |w| / (max|w| of its group + 1e-6), all linears of a group stacked on rows.
 * @param weights f32 [N, K] each
 * @returns f64 [K]
 */
export function meanGroupWeight(
  weights: readonly { data: Float32Array; rows: number }[],
  K: number,
  group: number,
): Float64Array {
  const mean = new Float64Array(K);
  let rows = 0;
  for (const { data, rows: N } of weights) {
    rows += N;
    for (let n = 0; n < N; n++) {
      for (let first = 0; first < K; first += group) {
        const begin = n * K + first;
        const end = n * K + Math.min(K, first + group);
        let largest = 0;
        for (let i = begin; i < end; i++) largest = Math.max(largest, Math.abs(data[i]!));
        const inverse = 1 / (largest + 1e-6);
        for (let i = begin; i < end; i++) mean[i - n * K]! += Math.abs(data[i]!) * inverse;
      }
    }
  }
  return mean.map((sum) => sum / rows);
}

/**
 * Averages channels of query heads that share a key/value head: [H · D] → [K · D]. The scale of o's input is folded into v, whose rows
 * serve H / K query heads, so they must share it; tying before the search makes the searched and the folded scale the same.
 */
export function tieHeads(channels: Float64Array, heads: number, kvHeads: number, headDim: number): Float64Array {
  const repeat = heads / kvHeads;
  const tied = new Float64Array(kvHeads * headDim);
  for (let h = 0; h < heads; h++) {
    const kv = Math.floor(h / repeat);
    for (let d = 0; d < headDim; d++) tied[kv * headDim + d]! += channels[h * headDim + d]! / repeat;
  }
  return tied;
}

/** The inverse of tieHeads: each key/value head's scales for all its query heads, [K · D] → [H · D]. */
export function untieHeads(scales: Float32Array, heads: number, kvHeads: number, headDim: number): Float32Array {
  const repeat = heads / kvHeads;
  const out = new Float32Array(heads * headDim);
  for (let h = 0; h < heads; h++) {
    const kv = Math.floor(h / repeat);
    out.set(scales.subarray(kv * headDim, (kv + 1) * headDim), h * headDim);
  }
  return out;
}

/**
 * s = max(x^r / (w^(1−r) + 1e-4), 1e-4), divided by √(max s · min s). Channels that were always zero keep s = 1: nothing is known of them.
 * @param x mean |activation| by channel  @param w meanGroupWeight  @param ratio r in [0, 1]
 * @see Lin et al. 2023 (AWQ), arXiv:2306.00978, eq. 4; AutoAWQ awq/quantize/quantizer.py, duo_scaling
 */
export function duoScales(x: Float64Array, w: Float64Array, ratio: number): Float32Array {
  const s = new Float64Array(x.length).fill(1);
  let low = Infinity;
  let high = 0;
  for (let c = 0; c < x.length; c++) {
    if (x[c] === 0) continue;
    s[c] = Math.max(x[c]! ** ratio / (w[c]! ** (1 - ratio) + 1e-4), 1e-4);
    low = Math.min(low, s[c]!);
    high = Math.max(high, s[c]!);
  }
  const middle = Math.sqrt(low * high);
  return Float32Array.from(s, (value, c) => {
    const scaled = value / middle;
    return x[c] === 0 || !Number.isFinite(scaled) || scaled <= 0 ? 1 : scaled;
  });
}

/** Ratios to try besides no scaling: nGrid − 1 points from 0 to 1, both included. */
export const gridRatios = (nGrid: number): number[] => Array.from({ length: nGrid - 1 }, (_, j) => j / (nGrid - 2));
