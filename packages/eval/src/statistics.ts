/**
 * The estimators behind every number of a report. All of them treat items as independent draws.
 */

/** A mean with its standard error; `standardError` is undefined where one observation alone cannot give it. */
export interface Estimate {
  value: number;
  standardError: number | undefined;
  /** Observations (items, or blocks of tokens). */
  n: number;
}

/**
 * Mean x̄ and its standard error s/√n, with s² = Σ(xᵢ − x̄)²/(n − 1).
 * For zeros and ones this is √(p(1 − p)/(n − 1)), what lm-evaluation-harness prints.
 * @returns undefined for an empty list
 * @see EleutherAI/lm-evaluation-harness lm_eval/api/metrics.py (mean_stderr)
 */
export function meanEstimate(values: readonly number[]): Estimate | undefined {
  return weightedMeanEstimate(
    values,
    values.map(() => 1),
  );
}

/**
 * Ratio estimator R = Σ wᵢxᵢ / Σ wᵢ with its linearised standard error
 * √( n/(n − 1) · Σ wᵢ²(xᵢ − R)² ) / Σ wᵢ. With equal weights it is `meanEstimate`.
 * Used for token-weighted means, where a block of w tokens has the mean x.
 * @returns undefined when the weights sum to 0
 * @see Cochran, Sampling Techniques, 3rd ed., 2.11 and 6.3
 */
export function weightedMeanEstimate(values: readonly number[], weights: readonly number[]): Estimate | undefined {
  let weightSum = 0;
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    weightSum += weights[i]!;
    sum += weights[i]! * values[i]!;
  }
  if (weightSum <= 0) return undefined;
  const n = values.length;
  const value = sum / weightSum;
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (weights[i]! * (values[i]! - value)) ** 2;
  const standardError = n > 1 ? Math.sqrt((n / (n - 1)) * squares) / weightSum : undefined;
  return { value, standardError, n };
}

/**
 * The complementary error function, 1 - 2/√π ∫₀ˣ exp(-t²) dt; relative error below 1e-12 for x < 26.
 * @see Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 (series) and 7.1.14 (continued fraction)
 */
export function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x);
  const density = Math.exp(-x * x) / Math.sqrt(Math.PI);
  if (x < 2) {
    let sum = x;
    for (let n = 1, term = x; term > sum * 1e-17; n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return 1 - 2 * density * sum;
  }
  let fraction = x;
  for (let k = 60; k > 0; k--) fraction = x + k / 2 / fraction;
  return density / fraction;
}

/** Probability that a standard normal variable is at least |z| away from 0. */
export function twoSidedPValue(z: number): number {
  return Number.isNaN(z) ? Number.NaN : erfc(Math.abs(z) / Math.SQRT2);
}
