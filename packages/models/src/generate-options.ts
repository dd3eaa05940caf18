import { parseOptions } from "@llm/core";
import * as v from "valibot";

const integer = (min: number) => v.pipe(v.number(), v.integer(), v.minValue(min));
const between = (min: number, max: number) => v.pipe(v.number(), v.minValue(min), v.maxValue(max));

/** Schema of GenerateOptions (types.ts documents the keys). */
export const GenerateOptionsSchema = v.strictObject({
  maxTokens: v.optional(integer(0), 256),
  temperature: v.optional(between(0, 100), 0),
  topK: v.optional(integer(0), 0),
  topP: v.optional(v.pipe(v.number(), v.gtValue(0), v.maxValue(1)), 1),
  minP: v.optional(v.pipe(v.number(), v.minValue(0), v.ltValue(1)), 0),
  repetitionPenalty: v.optional(v.pipe(v.number(), v.gtValue(0)), 1),
  presencePenalty: v.optional(between(-2, 2), 0),
  frequencyPenalty: v.optional(between(-2, 2), 0),
  stop: v.optional(v.array(v.pipe(v.string(), v.minLength(1))), []),
  stopTokenIds: v.optional(v.array(integer(0)), []),
  ignoreEos: v.optional(v.boolean(), false),
  seed: v.optional(v.pipe(v.number(), v.integer()), 0),
  logprobs: v.optional(v.pipe(integer(0), v.maxValue(100))),
  signal: v.optional(v.instance(AbortSignal)),
});
export type ResolvedGenerateOptions = v.InferOutput<typeof GenerateOptionsSchema>;

/** @throws {OptionsError} an unknown key or a value out of range */
export function parseGenerateOptions(options: unknown, where: string): ResolvedGenerateOptions {
  return parseOptions(GenerateOptionsSchema, options, where);
}

/** A row of the native sampler's parameters, f32 [8]. */
export function samplingParameters(o: ResolvedGenerateOptions): number[] {
  return [o.temperature, o.topK, o.topP, o.minP, o.repetitionPenalty, o.presencePenalty, o.frequencyPenalty, 0];
}

/** A seed as the two 32-bit words that Philox takes. */
export function seedWords(seed: number): [number, number] {
  const big = BigInt.asUintN(64, BigInt(seed));
  return [Number(BigInt.asIntN(32, big)), Number(BigInt.asIntN(32, big >> 32n))];
}
