/** Rounding weights to 4 bits. N out features, K in features, G = ceil(K / group). */
import { dtypes, native, type Tensor, tensorLike } from "@llm/core";

const f32 = dtypes.indexOf("f32");
const f16 = dtypes.indexOf("f16");

export interface Rounding {
  group: number;
  symmetric: boolean;
}

/**
 * Rounds to the nearest of 16 levels a group, half to even: asymmetric scale = max(max − min, 1e-5) / 15, zero = clamp(−round(min /
 * scale), 0, 15); symmetric scale = max|w| / 7, zero = 8; q = clamp(round(w / scale) + zero, 0, 15). Scales are then rounded to f16, as
 * the AWQ folder holds them: w ≈ (q − zero) · scale is the same in memory and on disk.
 * @param w f32 [N, K], K even
 * @returns q u8 [N, K/2], scales f32 [N, G], zeros u8 [N, G]
 * @see AutoAWQ awq/quantize/quantizer.py, pseudo_quantize_tensor
 */
export function roundToNearest(
  w: Tensor,
  { group, symmetric }: Rounding,
): { q: Tensor; scales: Tensor; zeros: Tensor } {
  const [q, scales, zeros] = native.quantizeW4(w, group, symmetric ? 1 : 0);
  return { q, scales: native.cast(native.cast(scales, f16), f32), zeros };
}

/** w rounded to 4 bits and back: f32 [N, K]. */
export function fakeQuantize(w: Tensor, rounding: Rounding): Tensor {
  const { q, scales, zeros } = roundToNearest(w, rounding);
  return native.dequantizeW4(q, scales, zeros, rounding.group, f32);
}

/**
 * w with each group clamped to ±limit.
 * @param w      f32 [N, K]
 * @param limits [N · G]; Infinity = not clamped
 * @returns the new tensor and the number of groups in which a weight was cut
 */
export function clampGroups(w: Tensor, limits: Float32Array, group: number): { clamped: Tensor; cut: number } {
  const [N, K] = w.shape as [number, number];
  const G = Math.ceil(K / group);
  const data = w.dataSync() as Float32Array;
  let cut = 0;
  for (let n = 0; n < N; n++) {
    for (let g = 0; g < G; g++) {
      const limit = limits[n * G + g]!;
      if (limit === Infinity) continue;
      let touched = false;
      for (let i = n * K + g * group; i < n * K + Math.min(K, (g + 1) * group); i++) {
        const value = data[i]!;
        if (value > limit) data[i] = limit;
        else if (value < -limit) data[i] = -limit;
        else continue;
        touched = true;
      }
      if (touched) cut++;
    }
  }
  return { clamped: tensorLike(w, data, [N, K]), cut };
}
