/** Reading config.json strictly: every key is either used, known to be harmless, or an error. */
import { FormatError, UnsupportedError } from "@llm/core";
import * as v from "valibot";
import { parseRope, ropeKeys } from "../rope.js";
import type { DecoderSpec } from "./spec.js";

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const ids = v.nullish(v.union([v.number(), v.array(v.number())]));

/** Keys that say nothing about the computation of a forward pass, or are defaults that transformers writes out. */
const harmless = new Set(
  (
    "architectures model_type torch_dtype dtype transformers_version _name_or_path use_cache auto_map initializer_range attention_dropout " +
    "pretraining_tp attn_implementation _attn_implementation attn_pdrop embd_pdrop resid_pdrop emb_dropout_prob attn_dropout_prob quantization_config id2label label2id " +
    "output_attentions output_hidden_states return_dict torchscript use_bfloat16 pruned_heads is_encoder_decoder is_decoder " +
    "cross_attention_hidden_size add_cross_attention tie_encoder_decoder max_length min_length do_sample early_stopping num_beams " +
    "num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size " +
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences chunk_size_feed_forward output_scores return_dict_in_generate " +
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens " +
    "finetuning_task tokenizer_class prefix pad_token_id sep_token_id decoder_start_token_id task_specific_params problem_type tf_legacy_loss " +
    "use_flash_attn bf16 fp16 fp32 onnx_safe softmax_in_fp32 use_cache_quantization use_cache_kernel tie_embeddings_and_input_output max_window_layers " +
    "unsloth_version unsloth_fixed layer_types visual_config"
  ).split(" "),
);

/** Keys shared by Llama-like configs. */
const common = {
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: v.nullish(count),
  head_dim: v.nullish(count),
  rms_norm_eps: v.optional(v.number(), 1e-6),
  max_position_embeddings: v.optional(count, 2048),
  tie_word_embeddings: v.optional(v.boolean(), false),
  hidden_act: v.optional(v.string(), "silu"),
  bos_token_id: ids,
  eos_token_id: ids,
};

/**
 * Parses the shared keys plus `extra`; the rest must be harmless.
 * @throws {FormatError} a wrong type  @throws {UnsupportedError} a key that this version does not know
 */
export function parseConfig<T extends v.ObjectEntries>(
  config: Record<string, unknown>,
  modelType: string,
  extra: T,
): v.InferOutput<v.ObjectSchema<typeof common & T, undefined>> {
  const schema = v.object({ ...common, ...extra });
  const result = v.safeParse(schema, config);
  if (!result.success) {
    const issue = result.issues[0];
    throw new FormatError(`[config.json] ${v.getDotPath(issue) ?? "config"}: ${issue.message}`, {
      modelType,
      issues: result.issues.map((i) => i.message),
    });
  }
  const known = new Set([...Object.keys(schema.entries), ...ropeKeys]);
  const unknown = Object.keys(config).filter(
    (key) => !known.has(key) && !harmless.has(key) && !key.startsWith("_") && config[key] !== null,
  );
  if (unknown.length > 0) {
    throw new UnsupportedError(
      `[config.json] model_type "${modelType}" does not know ${unknown.map((k) => `"${k}"`).join(", ")}: it may change the computation, so it is not ignored`,
      { modelType, unknown },
    );
  }
  const output = result.output as v.InferOutput<v.ObjectSchema<typeof common & T, undefined>>;
  const act = (output as { hidden_act: string }).hidden_act;
  if (act !== "silu" && act !== "swish")
    throw new UnsupportedError(`[config.json] hidden_act "${act}" is not supported, "silu" is`);
  return output;
}

type Common = v.InferOutput<v.ObjectSchema<typeof common, undefined>>;

/** The part of a spec that Llama-like configs share. */
export function commonSpec(
  config: Record<string, unknown>,
  c: Common,
): Omit<DecoderSpec, "qkvBias" | "oBias" | "mlpBias" | "qkNorm" | "windows"> {
  const headDim = c.head_dim ?? c.hidden_size / c.num_attention_heads;
  const kvHeads = c.num_key_value_heads ?? c.num_attention_heads;
  if (!Number.isInteger(headDim) || headDim % 2)
    throw new FormatError(
      `[config.json] hidden_size ${c.hidden_size} / num_attention_heads ${c.num_attention_heads} must be an even integer`,
    );
  if (c.num_attention_heads % kvHeads)
    throw new FormatError(
      `[config.json] num_key_value_heads ${kvHeads} must divide num_attention_heads ${c.num_attention_heads}`,
    );
  return {
    vocabSize: c.vocab_size,
    hiddenSize: c.hidden_size,
    intermediateSize: c.intermediate_size,
    layers: c.num_hidden_layers,
    heads: c.num_attention_heads,
    kvHeads,
    headDim,
    rmsNormEps: c.rms_norm_eps,
    rope: parseRope(config, headDim, c.max_position_embeddings),
    tieWordEmbeddings: c.tie_word_embeddings,
    maxPositions: c.max_position_embeddings,
  };
}

/**
 * Sliding windows by layer: `layer_types` when given, else layers from `max_window_layers` on when `use_sliding_window` is set.
 */
export function slidingWindows(
  config: Record<string, unknown>,
  layers: number,
  window: number | null | undefined,
  enabled: boolean,
  firstLayer: number,
): number[] {
  const types = config["layer_types"];
  if (types !== undefined && (!Array.isArray(types) || types.length !== layers))
    throw new FormatError(`[config.json] layer_types must list ${layers} layers`);
  return Array.from({ length: layers }, (_, i) => {
    if (Array.isArray(types)) {
      if (types[i] === "full_attention") return 0;
      if (types[i] === "sliding_attention" && window) return window;
      throw new UnsupportedError(`[config.json] layer_types[${i}] "${String(types[i])}" is not supported`);
    }
    return enabled && window && i >= firstLayer ? window : 0;
  });
}
