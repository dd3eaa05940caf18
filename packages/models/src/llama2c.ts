import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { FormatError, writeSafetensors } from "@llm/core";
import type { SafetensorsSource } from "@llm/core";
import { isTorchTensor, readTorchFile } from "./torch-file.js";
import type { TorchTensor, TorchValue } from "./torch-file.js";

/** Names of llama2.c (and of Meta's own checkpoints) and what Hugging Face's Llama calls them. */
const names: [RegExp, string][] = [
  [/^tok_embeddings\.weight$/, "model.embed_tokens.weight"],
  [/^norm\.weight$/, "model.norm.weight"],
  [/^output\.weight$/, "lm_head.weight"],
  [/^layers\.(\d+)\.attention\.w([qkvo])\.weight$/, "model.layers.$1.self_attn.$2_proj.weight"],
  [/^layers\.(\d+)\.feed_forward\.w1\.weight$/, "model.layers.$1.mlp.gate_proj.weight"],
  [/^layers\.(\d+)\.feed_forward\.w2\.weight$/, "model.layers.$1.mlp.down_proj.weight"],
  [/^layers\.(\d+)\.feed_forward\.w3\.weight$/, "model.layers.$1.mlp.up_proj.weight"],
  [/^layers\.(\d+)\.attention_norm\.weight$/, "model.layers.$1.input_layernorm.weight"],
  [/^layers\.(\d+)\.ffn_norm\.weight$/, "model.layers.$1.post_attention_layernorm.weight"],
];

/** Tables that are computed, not learned. */
const computed = /^(freqs_cos|freqs_sin|freqs_cis|rope\.freqs|layers\.\d+\.attention\.mask)$/;

/**
 * Rows of a q or k projection from interleaved rotary pairs (2i, 2i+1) to half-split ones (i, i + D/2), head by head:
 * out[h·D + s·D/2 + i] = in[h·D + 2i + s], s ∈ {0, 1}.
 * @param rows  [heads × D, columns], row-major
 * @param rowBytes  bytes of one row
 */
function splitRotaryHalves(rows: Uint8Array, heads: number, headDim: number, rowBytes: number): Uint8Array {
  const result = new Uint8Array(rows.length);
  for (let head = 0; head < heads; head++) {
    for (let half = 0; half < 2; half++) {
      for (let pair = 0; pair < headDim / 2; pair++) {
        const from = (head * headDim + 2 * pair + half) * rowBytes;
        result.set(rows.subarray(from, from + rowBytes), (head * headDim + (half * headDim) / 2 + pair) * rowBytes);
      }
    }
  }
  return result;
}

/**
 * Converts a checkpoint of llama2.c's `train.py` (`{"model": state dict, "model_args": {...}}`) into a Hugging Face folder:
 * `config.json` and `model.safetensors`. Prefixes of `torch.compile` are dropped, q and k rows go from interleaved to
 * half-split rotary pairs, and an output layer that equals the embedding is tied to it. Weights keep their dtype and bits.
 * The tokenizer is a file of its own, which stays with the caller.
 * @throws {FormatError} a key is missing or unknown, or a shape does not fit
 * @see https://github.com/karpathy/llama2.c/blob/master/export.py (hf_export)
 */
export async function convertLlama2cCheckpoint(ptFile: string, outFolder: string): Promise<void> {
  const fail = (message: string, key: string): FormatError =>
    new FormatError(`[convertLlama2cCheckpoint] ${ptFile}: ${message}`, { file: ptFile, key });
  const root = readTorchFile(ptFile);
  const part = (key: string): Map<TorchValue, TorchValue> => {
    const value = root instanceof Map ? root.get(key) : undefined;
    if (!(value instanceof Map)) throw fail(`expected a dict under "${key}"`, key);
    return value;
  };
  const modelArgs = part("model_args");
  const number = (key: string, fallback?: number): number => {
    const value = modelArgs.get(key) ?? fallback;
    if (typeof value !== "number" || !(value > 0))
      throw fail(`expected a number in model_args.${key}, got ${String(value)}`, `model_args.${key}`);
    return value;
  };

  const tensors = new Map<string, TorchTensor>();
  for (const [key, value] of part("model")) {
    const source = String(key).replace(/^(_orig_mod\.|module\.)+/, "");
    if (computed.test(source)) continue;
    const rule = names.find(([pattern]) => pattern.test(source));
    if (rule === undefined || !isTorchTensor(value))
      throw fail(`expected a weight of a Llama, got ${String(key)}`, String(key));
    tensors.set(source.replace(rule[0], rule[1]), value);
  }

  const dim = number("dim");
  const layers = number("n_layers");
  const heads = number("n_heads");
  const keyHeads = number("n_kv_heads", heads);
  const vocabulary = number("vocab_size");
  const headDim = dim / heads;
  const hidden = tensors.get("model.layers.0.mlp.gate_proj.weight")?.shape[0] ?? 0;
  const expected: Record<string, number[]> = {
    "model.embed_tokens.weight": [vocabulary, dim],
    "model.norm.weight": [dim],
  };
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `model.layers.${layer}`;
    Object.assign(expected, {
      [`${prefix}.input_layernorm.weight`]: [dim],
      [`${prefix}.self_attn.q_proj.weight`]: [heads * headDim, dim],
      [`${prefix}.self_attn.k_proj.weight`]: [keyHeads * headDim, dim],
      [`${prefix}.self_attn.v_proj.weight`]: [keyHeads * headDim, dim],
      [`${prefix}.self_attn.o_proj.weight`]: [dim, heads * headDim],
      [`${prefix}.post_attention_layernorm.weight`]: [dim],
      [`${prefix}.mlp.gate_proj.weight`]: [hidden, dim],
      [`${prefix}.mlp.up_proj.weight`]: [hidden, dim],
      [`${prefix}.mlp.down_proj.weight`]: [dim, hidden],
    });
  }
  if (tensors.has("lm_head.weight")) expected["lm_head.weight"] = [vocabulary, dim];
  for (const [name, shape] of Object.entries(expected)) {
    const found = tensors.get(name)?.shape;
    if (String(found) !== String(shape))
      throw fail(`expected ${name} to be [${shape}], got ${found === undefined ? "none" : `[${found}]`}`, name);
  }
  for (const name of tensors.keys())
    if (!Object.hasOwn(expected, name)) throw fail(`${name} is beyond the ${layers} layers of model_args`, name);

  const embedding = tensors.get("model.embed_tokens.weight")!;
  const output = tensors.get("lm_head.weight");
  const tied =
    output === undefined || (output.dtype === embedding.dtype && Buffer.compare(output.read(), embedding.read()) === 0);
  if (tied) tensors.delete("lm_head.weight");
  const dtypeName = { F32: "float32", F16: "float16", BF16: "bfloat16" }[embedding.dtype as string];
  if (dtypeName === undefined) throw fail(`expected weights of F32, F16 or BF16, got ${embedding.dtype}`, "model");

  const sources = [...tensors].map(([name, tensor]): SafetensorsSource => {
    const rotaryHeads = name.endsWith("q_proj.weight") ? heads : name.endsWith("k_proj.weight") ? keyHeads : undefined;
    return {
      name,
      dtype: tensor.dtype,
      shape: tensor.shape,
      byteLength: tensor.byteLength,
      bytes: () =>
        rotaryHeads === undefined
          ? tensor.read()
          : splitRotaryHalves(tensor.read(), rotaryHeads, headDim, tensor.byteLength / tensor.shape[0]!),
    };
  });
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: dim,
    intermediate_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: keyHeads,
    head_dim: headDim,
    vocab_size: vocabulary,
    max_position_embeddings: number("max_seq_len", 2048),
    rms_norm_eps: number("norm_eps", 1e-5),
    rope_theta: 10000,
    hidden_act: "silu",
    tie_word_embeddings: tied,
    bos_token_id: 1,
    eos_token_id: 2,
    torch_dtype: dtypeName,
    attention_bias: false,
    mlp_bias: false,
  };
  await mkdir(outFolder, { recursive: true });
  await writeSafetensors(outFolder, sources);
  const temporary = join(outFolder, `.config.json.tmp-${process.pid}`);
  await writeFile(temporary, `${JSON.stringify(config, undefined, 2)}\n`);
  await rename(temporary, join(outFolder, "config.json"));
}
