import type { TokenBatch } from "@llm/models";
import * as v from "valibot";

/** Documents of a packed batch; the tokens that a TokenBatch has. */
export type CalibrationBatch = Pick<TokenBatch, "ids_T" | "cuSeqlens_B1">;

/** A data set read in batches; `Dataset` of @llm/data is one. */
export interface CalibrationSource {
  batches(options: { epochs: number; seed: number }): Iterable<CalibrationBatch>;
}

/** Tokens that the model runs on to see its activations: blocks of ids, packed batches, or a data set. */
export type CalibrationData = readonly Int32Array[] | Iterable<CalibrationBatch> | CalibrationSource;

/** What is being worked on. */
export interface QuantizeProgress {
  /** Block that the linear belongs to, from 0; the output head counts as one more block. */
  layer: number;
  /** Number of blocks. */
  of: number;
  /** Linear that is done. */
  name: string;
}

const isCalibration = (value: unknown): value is CalibrationData =>
  typeof value === "object" &&
  value !== null &&
  (typeof (value as CalibrationSource).batches === "function" || Symbol.iterator in value);

const positive = v.pipe(v.number(), v.integer(), v.minValue(1));

export const QuantizeOptions = v.strictObject({
  /** "awq" searches per-channel scales and clips on calibration data; "rtn" rounds to nearest and needs none. @default "awq" */
  method: v.optional(v.picklist(["rtn", "awq"]), "awq"),
  /** Bits of a weight. @default 4 */
  bits: v.optional(v.literal(4), 4),
  /** Weights along the in features that share a scale; the last group of a row may be shorter. @default 128 */
  groupSize: v.optional(v.picklist([32, 64, 128]), 128),
  /** Zero point fixed at 8 and scale = max|w| / 7, instead of the group's own minimum and maximum. @default false */
  symmetric: v.optional(v.boolean(), false),
  /** For "awq": what the model reads while its activations are measured. */
  calibration: v.optional(
    v.custom<CalibrationData>(isCalibration, "expected blocks of ids (Int32Array[]), packed batches, or a data set"),
  ),
  /** For "awq": longer documents are cut into pieces of this many tokens, shorter ones packed up to it. @default 512 */
  blockTokens: v.optional(positive),
  /** For "awq": blocks of `blockTokens` that are used, the first ones. @default 128 */
  maxBlocks: v.optional(positive),
  /** For "awq": scales tried for each group of linears, no scaling included. @default 20 */
  nGrid: v.optional(v.pipe(v.number(), v.integer(), v.minValue(3), v.maxValue(200))),
  /** For "awq": search a clip of the weights' range for each row and group (not for q and k). @default true */
  clip: v.optional(v.boolean()),
  /** Linears that stay dense: those whose Hugging Face name contains one of these texts. @default [] */
  modulesToNotConvert: v.optional(v.array(v.pipe(v.string(), v.minLength(1))), []),
  /** Store the output head in 8 bits (in memory; a folder holds it dense). A head tied to the embedding gets its own copy. Default dense. */
  headBits: v.optional(v.literal(8)),
  /** How the linears compute: "exact" on f32 weights, "int8" also rounds activations to 8 bits (faster, about 0.4 % error). @default "exact" */
  compute: v.optional(v.picklist(["exact", "int8"]), "exact"),
  signal: v.optional(v.instance(AbortSignal)),
  /** Called after each linear. */
  onProgress: v.optional(
    v.custom<(progress: QuantizeProgress) => void>((value) => typeof value === "function", "expected a function"),
  ),
});
export type QuantizeOptions = v.InferInput<typeof QuantizeOptions>;
