import { parseOptions, UnsupportedError } from "@llm/core";
import type { GenerateOptions } from "@llm/models";
import * as v from "valibot";

const samplingSchema = v.object({
  temperature: v.optional(v.pipe(v.number(), v.minValue(0)), 0),
  topK: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
  topP: v.optional(v.pipe(v.number(), v.gtValue(0), v.maxValue(1)), 1),
  minP: v.optional(v.pipe(v.number(), v.minValue(0), v.ltValue(1)), 0),
  repetitionPenalty: v.optional(v.pipe(v.number(), v.gtValue(0)), 1),
  presencePenalty: v.optional(v.number(), 0),
  frequencyPenalty: v.optional(v.number(), 0),
  seed: v.optional(v.pipe(v.number(), v.integer()), 0),
});

/**
 * Chooses the next id from a row of logits. In order: repetition, presence and frequency penalties; temperature (0 = the
 * first largest, done); top-k; min-p; top-p; a draw by a counter-based number, so the same seed, prompt place and step
 * give the same id.
 * @throws {OptionsError} a parameter out of range
 * @throws {UnsupportedError} logprobs
 */
export function makeTokenChooser(
  options: GenerateOptions,
  promptIds: ArrayLike<number>,
  promptIndex: number,
): (logits: Float32Array, generated: readonly number[]) => number {
  if (options.logprobs !== undefined)
    throw new UnsupportedError("[onnxModel] logprobs: use score()", { option: "logprobs" });
  const sampling = parseOptions(samplingSchema, options, "onnxModel");
  const { temperature, topK, topP, minP } = sampling;
  const fromPrompt = new Set(Array.from(promptIds));
  return (logits, generated) => {
    penalize(logits, fromPrompt, generated, sampling);
    if (temperature === 0) return argmax(logits);
    const peak = logits[argmax(logits)]!;
    let kept = Array.from(logits, (_, id) => id);
    if (topK > 0 || topP < 1) kept.sort((a, b) => logits[b]! - logits[a]! || a - b);
    if (topK > 0) kept = kept.slice(0, topK);
    const weight = (id: number): number => Math.exp((logits[id]! - peak) / temperature);
    if (minP > 0) kept = kept.filter((id) => weight(id) >= minP);
    let total = kept.reduce((sum, id) => sum + weight(id), 0);
    if (topP < 1) {
      let mass = 0;
      const enough = topP * total;
      kept = kept.slice(0, kept.findIndex((id) => (mass += weight(id)) >= enough) + 1 || kept.length);
      total = kept.reduce((sum, id) => sum + weight(id), 0);
    }
    let left = uniform(sampling.seed, promptIndex, generated.length) * total;
    for (const id of kept) {
      left -= weight(id);
      if (left < 0) return id;
    }
    return kept.at(-1)!;
  };
}

function argmax(values: Float32Array): number {
  let top = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[top]!) top = i;
  return top;
}

function penalize(
  logits: Float32Array,
  fromPrompt: ReadonlySet<number>,
  generated: readonly number[],
  options: { repetitionPenalty: number; presencePenalty: number; frequencyPenalty: number },
): void {
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = options;
  if (repetitionPenalty !== 1)
    for (const id of new Set([...fromPrompt, ...generated])) {
      const value = logits[id];
      if (value !== undefined) logits[id] = value > 0 ? value / repetitionPenalty : value * repetitionPenalty;
    }
  if (presencePenalty === 0 && frequencyPenalty === 0) return;
  const counts = new Map<number, number>();
  for (const id of generated) counts.set(id, (counts.get(id) ?? 0) + 1);
  for (const [id, count] of counts) logits[id] = logits[id]! - presencePenalty - frequencyPenalty * count;
}

/** A number in [0, 1) from counters (a 32-bit mixing function over each in turn). */
function uniform(...counters: number[]): number {
  let state = 0x9e3779b9;
  for (const counter of counters) {
    state = Math.imul(state ^ counter, 0x85ebca6b);
    state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35);
    state = (state ^ (state >>> 16)) + 0x9e3779b9;
  }
  return (state >>> 0) / 2 ** 32;
}
