/** Models of random weights, small enough for tests. */
import type { DType } from "@llm/core";
import { type CausalLM, createModel, type TokenBatch, type Tokenizer, trainBpe } from "@llm/models";

const chatml =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** One token a byte (ids 0 to 255) and three special tokens: <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258; ChatML template. */
export function byteTokenizer(): Tokenizer {
  const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
  return trainBpe([], {
    vocabSize: 256 + specialTokens.length,
    specialTokens,
    eosToken: "<|im_end|>",
    padToken: "<|endoftext|>",
    chatTemplate: chatml,
  });
}

export interface TinyModelOptions {
  /** @default "qwen2" */
  modelType?: "qwen2" | "qwen3" | "llama" | "mistral";
  /** @default 0 */
  seed?: number;
  /** @default "f32" */
  dtype?: DType & ("f32" | "bf16" | "f16");
  /** @default 2 */
  layers?: number;
  /** @default 32 */
  hidden?: number;
  /** Inner width of the MLP. @default 2 × hidden */
  intermediate?: number;
  /** @default 4 */
  heads?: number;
  /** @default 2 */
  kvHeads?: number;
  /** Rows of the embedding; at least the tokenizer's. @default 259 */
  vocabSize?: number;
  /** Share the embedding with the head. @default true */
  tied?: boolean;
  /** Standard deviation of the weights. @default 0.1 */
  std?: number;
  tokenizer?: Tokenizer;
}

/** A decoder of random weights: the same options give the same bits. */
export function tinyModel(options: TinyModelOptions = {}): CausalLM {
  const {
    modelType = "qwen2",
    seed = 0,
    dtype = "f32",
    layers = 2,
    hidden = 32,
    heads = 4,
    kvHeads = 2,
    tied = true,
    std = 0.1,
  } = options;
  const tokenizer = options.tokenizer ?? byteTokenizer();
  return createModel(
    {
      model_type: modelType,
      vocab_size: options.vocabSize ?? tokenizer.vocabSize,
      hidden_size: hidden,
      intermediate_size: options.intermediate ?? 2 * hidden,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      ...(modelType === "qwen3" ? { head_dim: hidden / heads } : {}),
      hidden_act: "silu",
      max_position_embeddings: 512,
      rms_norm_eps: 1e-6,
      rope_theta: 10000,
      tie_word_embeddings: tied,
    },
    tokenizer,
    { seed, dtype, initStd: std },
  );
}

/** Lays documents of ids on one token axis; every next id is a label, the last position of a document has none. */
export function packIds(
  documents: readonly ArrayLike<number>[],
  options: { learn?: (document: number, position: number) => boolean } = {},
): TokenBatch {
  const total = documents.reduce((n, d) => n + d.length, 0);
  const batch = {
    ids_T: new Int32Array(total),
    labels_T: new Int32Array(total).fill(-100),
    positions_T: new Int32Array(total),
    cuSeqlens_B1: new Int32Array(documents.length + 1),
  };
  let offset = 0;
  documents.forEach((ids, b) => {
    for (let t = 0; t < ids.length; t++) {
      batch.ids_T[offset + t] = ids[t]!;
      batch.positions_T[offset + t] = t;
      if (t + 1 < ids.length && (options.learn?.(b, t) ?? true)) batch.labels_T[offset + t] = ids[t + 1]!;
    }
    offset += ids.length;
    batch.cuSeqlens_B1[b + 1] = offset;
  });
  return batch;
}

/** Documents of pseudo-random ids with given lengths; a pure function of the seed. */
export function randomDocuments(
  lengths: readonly number[],
  options: { vocabSize: number; seed?: number },
): Int32Array[] {
  let state = (options.seed ?? 0) * 2654435761 + 12345;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
  return lengths.map((length) => Int32Array.from({ length }, () => next() % options.vocabSize));
}
