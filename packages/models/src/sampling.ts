/**
 * From logits to a token, in plain TypeScript: what the native sampler is tested against.
 *
 * Order, that of transformers: repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p.
 * Candidates are ranked by logit, equal ones by lower id. Each step sees the distribution that the step before left,
 * renormalized. vLLM applies min-p before top-k and top-p: the tokens that min-p drops are the same, but top-p is then
 * counted over fewer. llama.cpp applies the temperature last: the same numbers mean another distribution there.
 *
 * V: size of the vocabulary.
 */
import { NumericError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";

const finite = v.pipe(v.number(), v.finite());

/** How a token is chosen. Every default leaves the distribution as it is, except the temperature, which is greedy. */
export const SamplingOptions = v.strictObject({
  /** Logits are divided by it; 0 = the likeliest token. ≥ 0. @default 0 */
  temperature: v.optional(v.pipe(finite, v.minValue(0)), 0),
  /** Keep the k likeliest tokens (exactly k: of equal ones those of lower id); 0 = all. @default 0 */
  topK: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0)), 0),
  /** Keep the smallest set of likeliest tokens whose probability reaches p. In (0, 1]. @default 1 */
  topP: v.optional(v.pipe(finite, v.gtValue(0), v.maxValue(1)), 1),
  /** Keep tokens at least minP × as likely as the likeliest. In [0, 1). @default 0 */
  minP: v.optional(v.pipe(finite, v.minValue(0), v.ltValue(1)), 0),
  /** Logits of tokens in prompt or output: positive ones are divided by it, negative ones multiplied. > 0. @default 1 */
  repetitionPenalty: v.optional(v.pipe(finite, v.gtValue(0)), 1),
  /** Subtracted from the logit of every token that the output holds. In [−2, 2]. @default 0 */
  presencePenalty: v.optional(v.pipe(finite, v.minValue(-2), v.maxValue(2)), 0),
  /** Subtracted from a token's logit once for each time that the output holds it. In [−2, 2]. @default 0 */
  frequencyPenalty: v.optional(v.pipe(finite, v.minValue(-2), v.maxValue(2)), 0),
});
export type SamplingOptions = v.InferInput<typeof SamplingOptions>;
type Parsed = v.InferOutput<typeof SamplingOptions>;

/** The tokens so far; the penalties look at them. */
export interface SamplingHistory {
  promptIds: ArrayLike<number>;
  outputIds: ArrayLike<number>;
}

/** A token that may come next; `logprob` is its natural logarithm of probability. */
export interface RankedToken {
  id: number;
  logprob: number;
}

/** What is left to draw from, likeliest first; weights are probabilities up to a common factor. */
interface Candidates {
  ids: Int32Array;
  weights: Float64Array;
  mass: number;
}

const { fround } = Math;

function checkLogits(logits_V: Float32Array, where: string): { best: number; largest: number } {
  let best = -1;
  let largest = -Infinity;
  for (let id = 0; id < logits_V.length; id++) {
    const value = logits_V[id]!;
    if (Number.isNaN(value) || value === Infinity)
      throw new NumericError(`[${where}] expected finite logits (or -Infinity), got ${value} for token ${id}`, {
        id,
        value,
      });
    if (value > largest) {
      largest = value;
      best = id;
    }
  }
  if (best < 0)
    throw new NumericError(`[${where}] expected a token with a finite logit, got none of ${logits_V.length}`, {
      vocabulary: logits_V.length,
    });
  return { best, largest };
}

function applyPenalties(
  logits_V: Float32Array,
  options: Parsed,
  history: SamplingHistory | undefined,
  where: string,
): Float32Array {
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = options;
  const penalized = Float32Array.from(logits_V);
  if (repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0) return penalized;
  if (history === undefined)
    throw new OptionsError(`[${where}] expected the prompt's and the output's tokens, because a penalty is set`);
  const outputCount = new Map<number, number>();
  for (const id of Array.from(history.promptIds)) outputCount.set(id, 0);
  for (const id of Array.from(history.outputIds)) outputCount.set(id, (outputCount.get(id) ?? 0) + 1);
  const [repetition, presence, frequency] = [
    fround(repetitionPenalty),
    fround(presencePenalty),
    fround(frequencyPenalty),
  ];
  for (const [id, count] of outputCount) {
    const value = penalized[id];
    if (value === undefined)
      throw new NumericError(`[${where}] expected history tokens in [0, ${logits_V.length}), got ${id}`, {
        id,
        vocabulary: logits_V.length,
      });
    let result = fround(value > 0 ? value / repetition : value * repetition);
    if (count > 0) result = fround(result - fround(fround(frequency * count) + presence));
    penalized[id] = result;
  }
  return penalized;
}

/** Temperature (> 0), top-k, top-p and min-p over penalized logits. Sums are in f64. */
function selectCandidates(logits_V: Float32Array, largest: number, options: Parsed): Candidates {
  const [temperature, topP, minP] = [fround(options.temperature), fround(options.topP), fround(options.minP)];
  const weight = (logit: number): number => Math.exp((logit - largest) / temperature);
  const ids = Int32Array.from({ length: logits_V.length }, (_, id) => id)
    .filter((id) => logits_V[id] !== -Infinity)
    .sort((a, b) => logits_V[b]! - logits_V[a]! || a - b);
  const weights = Float64Array.from(ids, (id) => weight(logits_V[id]!));
  const sum = (count: number): number => weights.subarray(0, count).reduce((total, each) => total + each, 0);

  let kept = options.topK >= 1 ? Math.min(options.topK, ids.length) : ids.length;
  let mass = sum(kept);
  if (topP < 1) {
    const wanted = topP * mass;
    let above = 0;
    let count = 0;
    while (count < kept && (count === 0 || above < wanted)) above += weights[count++]!;
    [kept, mass] = [count, above];
  }
  if (minP > 0) {
    let count = 1;
    while (count < kept && weights[count]! >= minP) count++;
    [kept, mass] = [count, sum(count)];
  }
  return { ids: ids.subarray(0, kept), weights: weights.subarray(0, kept), mass };
}

/**
 * The logits that a token is drawn from: penalties, ÷ temperature, then −Infinity for every token that top-k, top-p or
 * min-p drops. With temperature 0 only the penalties apply, and the token is the argmax.
 * @param logits_V  f32 [V], not changed
 * @param history  needed when a penalty is set
 * @returns a new f32 [V]
 * @throws {NumericError} NaN or +Infinity among the logits, no finite one, or a history token outside [0, V)
 * @throws {OptionsError} wrong options, or a penalty without history
 */
export function processLogits(
  logits_V: Float32Array,
  options: SamplingOptions = {},
  history?: SamplingHistory,
): Float32Array {
  const parsed = parseOptions(SamplingOptions, options, "processLogits");
  checkLogits(logits_V, "processLogits");
  const penalized = applyPenalties(logits_V, parsed, history, "processLogits");
  if (parsed.temperature === 0) return penalized;
  const { largest } = checkLogits(penalized, "processLogits");
  const { ids } = selectCandidates(penalized, largest, parsed);
  const result = new Float32Array(logits_V.length).fill(-Infinity);
  // A tiny temperature would carry the logits out of f32: then they are counted from the largest.
  const overflows = !ids.every((id) => Number.isFinite(fround(penalized[id]! / fround(parsed.temperature))));
  const origin = overflows ? largest : 0;
  for (const id of ids) result[id] = (penalized[id]! - origin) / fround(parsed.temperature);
  return result;
}

/**
 * Draws a token: the inverse of the cumulative distribution at `random01`, likeliest token first. Temperature 0 takes the
 * likeliest, of equal ones the lowest id.
 * @param logits_V  f32 [V], not changed
 * @param random01  in [0, 1), e.g. `uniform01(philox4x32(seed, step)[0])`; not used when greedy
 * @param history  needed when a penalty is set
 * @returns `logprob` is that of the distribution before temperature, top-k, top-p and min-p (after the penalties)
 * @throws {NumericError} as {@link processLogits}, or `random01` outside [0, 1)
 * @throws {OptionsError} as {@link processLogits}
 */
export function sampleToken(
  logits_V: Float32Array,
  options: SamplingOptions,
  random01: number,
  history?: SamplingHistory,
): RankedToken {
  const parsed = parseOptions(SamplingOptions, options, "sampleToken");
  checkLogits(logits_V, "sampleToken");
  const penalized = applyPenalties(logits_V, parsed, history, "sampleToken");
  const { best, largest } = checkLogits(penalized, "sampleToken");
  const logTotal = logSumExp(penalized, largest);
  const token = (id: number): RankedToken => ({ id, logprob: penalized[id]! - logTotal });
  if (parsed.temperature === 0) return token(best);
  if (!(random01 >= 0 && random01 < 1))
    throw new NumericError(`[sampleToken] expected a random number in [0, 1), got ${random01}`, { random01 });
  const { ids, weights, mass } = selectCandidates(penalized, largest, parsed);
  const target = random01 * mass;
  let sum = 0;
  for (let index = 0; index < ids.length; index++) {
    sum += weights[index]!;
    if (sum > target) return token(ids[index]!);
  }
  return token(ids.at(-1)!);
}

function logSumExp(logits_V: Float32Array, largest: number): number {
  let total = 0;
  for (const value of logits_V) total += Math.exp(value - largest);
  return largest + Math.log(total);
}

/**
 * The n likeliest tokens with their log-probabilities: logit − log Σ exp(logits).
 * @param logits_V  f32 [V]
 * @returns min(n, V) tokens, likeliest first, of equal ones the lower id first
 * @throws {NumericError} NaN or +Infinity among the logits, or no finite one; n is not a whole number ≥ 0
 */
export function topLogprobs(logits_V: Float32Array, n: number): RankedToken[] {
  if (!Number.isSafeInteger(n) || n < 0)
    throw new NumericError(`[topLogprobs] expected a whole number of tokens ≥ 0, got ${n}`, { n });
  const { largest } = checkLogits(logits_V, "topLogprobs");
  const logTotal = logSumExp(logits_V, largest);
  const best: number[] = [];
  for (let id = 0; id < logits_V.length; id++) {
    const value = logits_V[id]!;
    if (best.length === n && (n === 0 || value <= logits_V[best.at(-1)!]!)) continue;
    let place = best.length;
    while (place > 0 && logits_V[best[place - 1]!]! < value) place--;
    best.splice(place, 0, id);
    if (best.length > n) best.pop();
  }
  return best.map((id) => ({ id, logprob: logits_V[id]! - logTotal }));
}
