/** Model shapes of the GPU benches; random weights: speed does not depend on their values. */
import { trainBpe } from "@llm/models";

const qwen2 = {
  model_type: "qwen2",
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  max_position_embeddings: 32768,
  hidden_act: "silu",
};

export const shapes = {
  "0.5b": {
    ...qwen2,
    hidden_size: 896,
    intermediate_size: 4864,
    num_hidden_layers: 24,
    num_attention_heads: 14,
    num_key_value_heads: 2,
    vocab_size: 151936,
    tie_word_embeddings: true,
  },
  "1.5b": {
    ...qwen2,
    hidden_size: 1536,
    intermediate_size: 8960,
    num_hidden_layers: 28,
    num_attention_heads: 12,
    num_key_value_heads: 2,
    vocab_size: 151936,
    tie_word_embeddings: true,
  },
  "7b": {
    ...qwen2,
    hidden_size: 3584,
    intermediate_size: 18944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    vocab_size: 152064,
    tie_word_embeddings: false,
  },
} as const;
export type ShapeName = keyof typeof shapes;

/** For models of random weights, whose tokens mean nothing. */
export const tokenizer = trainBpe(["a"], {
  vocabSize: 257,
  specialTokens: ["<|endoftext|>"],
  eosToken: "<|endoftext|>",
});

/** `--name value` of the command line. */
export function argument(name: string, fallback: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? fallback : process.argv[at + 1]!;
}
export const flag = (name: string): boolean => process.argv.includes(`--${name}`);
