import * as v from "valibot";

const name = v.pipe(v.string(), v.regex(/^[\w-]+$/, "expected letters, digits, _ and -"));
const seed = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 40 - 1));

export const LoraOptions = v.strictObject({
  /** Rank r of the update B·A: rows of A, columns of B. @default 8 */
  rank: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 8),
  /** The update is multiplied by alpha / rank (alpha / √rank with rsLora). Default 2 · rank, so that the factor is 2 at every rank. */
  alpha: v.optional(v.pipe(v.number(), v.finite(), v.gtValue(0))),
  /** Probability of dropping each element of the adapter's input while training. @default 0 */
  dropout: v.optional(v.pipe(v.number(), v.minValue(0), v.ltValue(1)), 0),
  /**
   * Which linears get an adapter. "all-linear" = every one but the output head. A list names them by the end of their Hugging Face
   * name at a dot ("q_proj", "layers.3.mlp.down_proj"); a RegExp is searched in the whole name. Where a checkpoint stores q, k and v
   * in one tensor (InternLM2 `wqkv`, Qwen `c_attn`) that name means one adapter on the whole, as PEFT makes it: one A, with a B for each
   * part; the parts are also q_proj, k_proj and v_proj. @default "all-linear"
   */
  targets: v.optional(
    v.union([
      v.literal("all-linear"),
      v.pipe(v.array(v.pipe(v.string(), v.minLength(1))), v.minLength(1)),
      v.instance(RegExp),
    ]),
    "all-linear",
  ),
  /** Scale by alpha / √rank instead of alpha / rank. @default false */
  rsLora: v.optional(v.boolean(), false),
  /** Name of the adapter; several may be attached to one model. @default "default" */
  name: v.optional(name, "default"),
  /** Of the initial A and of dropout. Same seed and model: same A, whatever the other targets are. @default 0 */
  seed: v.optional(seed, 0),
});
export type LoraOptions = v.InferInput<typeof LoraOptions>;

export const SaveLoraOptions = v.strictObject({
  /** Which adapter. Default the only one. */
  adapter: v.optional(name),
  /** What `base_model_name_or_path` says: hub name or folder of the base model. Default where the model was loaded from. */
  baseModel: v.optional(v.string()),
});
export type SaveLoraOptions = v.InferInput<typeof SaveLoraOptions>;

export const LoadLoraOptions = v.strictObject({
  /** Name of the adapter in the model. @default "default" */
  name: v.optional(name, "default"),
  /** Whether training changes the adapter (and dropout acts). @default false */
  trainable: v.optional(v.boolean(), false),
  /** Of dropout, when trainable. @default 0 */
  seed: v.optional(seed, 0),
});
export type LoadLoraOptions = v.InferInput<typeof LoadLoraOptions>;

export const MergeLoraOptions = v.strictObject({
  /** Names of the adapters to add. Default the active ones. The result carries no adapters; the others are left out. */
  adapters: v.optional(v.array(name)),
  /**
   * What adapters are added to when the base is quantized. "stored" refuses, because quantizing the sum again would change the model;
   * "dequantized" makes every quantized linear dense first: what the adapter was trained on. @default "stored"
   */
  base: v.optional(v.picklist(["stored", "dequantized"]), "stored"),
});
export type MergeLoraOptions = v.InferInput<typeof MergeLoraOptions>;
