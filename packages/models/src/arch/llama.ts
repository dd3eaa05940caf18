import { UnsupportedError } from "@llm/core";
import * as v from "valibot";
import { commonSpec, parseConfig, slidingWindows } from "./config.js";
import type { LayerNames, ModelDefinition } from "./spec.js";

/** Names that Llama, Mistral, Qwen2 and Qwen3 checkpoints share. */
export const llamaNames: ModelDefinition["names"] = {
  embed: "model.embed_tokens",
  norm: "model.norm",
  head: "lm_head",
  layer: (i): LayerNames => {
    const p = `model.layers.${i}`;
    return {
      inputNorm: `${p}.input_layernorm`,
      q: `${p}.self_attn.q_proj`,
      k: `${p}.self_attn.k_proj`,
      v: `${p}.self_attn.v_proj`,
      o: `${p}.self_attn.o_proj`,
      qNorm: `${p}.self_attn.q_norm`,
      kNorm: `${p}.self_attn.k_norm`,
      postNorm: `${p}.post_attention_layernorm`,
      gate: `${p}.mlp.gate_proj`,
      up: `${p}.mlp.up_proj`,
      down: `${p}.mlp.down_proj`,
    };
  },
};

/** Llama 2 and 3. @see transformers models/llama/modeling_llama.py */
export const llama: ModelDefinition = {
  modelType: "llama",
  architecture: "LlamaForCausalLM",
  names: llamaNames,
  parse(config) {
    const c = parseConfig(config, "llama", {
      attention_bias: v.optional(v.boolean(), false),
      mlp_bias: v.optional(v.boolean(), false),
    });
    return {
      ...commonSpec(config, c),
      qkvBias: c.attention_bias,
      oBias: c.attention_bias,
      mlpBias: c.mlp_bias,
      qkNorm: false,
      windows: new Array(c.num_hidden_layers).fill(0),
    };
  },
};

/** Mistral: Llama with an optional sliding window. @see transformers models/mistral/modeling_mistral.py */
export const mistral: ModelDefinition = {
  modelType: "mistral",
  architecture: "MistralForCausalLM",
  names: llamaNames,
  parse(config) {
    const c = parseConfig(config, "mistral", { sliding_window: v.nullish(v.number()) });
    const windows = slidingWindows(config, c.num_hidden_layers, c.sliding_window, true, 0);
    return { ...commonSpec(config, c), qkvBias: false, oBias: false, mlpBias: false, qkNorm: false, windows };
  },
};

/** Qwen2 and Qwen2.5: biases on q, k, v. @see transformers models/qwen2/modeling_qwen2.py */
export const qwen2: ModelDefinition = {
  modelType: "qwen2",
  architecture: "Qwen2ForCausalLM",
  names: llamaNames,
  parse(config) {
    const c = parseConfig(config, "qwen2", {
      use_sliding_window: v.optional(v.boolean(), false),
      sliding_window: v.nullish(v.number()),
      use_mrope: v.optional(v.boolean(), false),
    });
    if (c.use_mrope)
      throw new UnsupportedError(
        '[config.json] use_mrope is for multimodal models; text models have "use_mrope": false',
      );
    const first = Number(config["max_window_layers"] ?? c.num_hidden_layers);
    return {
      ...commonSpec(config, c),
      qkvBias: true,
      oBias: false,
      mlpBias: false,
      qkNorm: false,
      windows: slidingWindows(config, c.num_hidden_layers, c.sliding_window, c.use_sliding_window, first),
    };
  },
};

/** Qwen3 (dense): RMS norm on each query and key head. @see transformers models/qwen3/modeling_qwen3.py */
export const qwen3: ModelDefinition = {
  modelType: "qwen3",
  architecture: "Qwen3ForCausalLM",
  names: llamaNames,
  parse(config) {
    const c = parseConfig(config, "qwen3", {
      attention_bias: v.optional(v.boolean(), false),
      use_sliding_window: v.optional(v.boolean(), false),
      sliding_window: v.nullish(v.number()),
    });
    const first = Number(config["max_window_layers"] ?? c.num_hidden_layers);
    return {
      ...commonSpec({ head_dim: 128, ...config }, { ...c, head_dim: c.head_dim ?? 128 }),
      qkvBias: c.attention_bias,
      oBias: c.attention_bias,
      mlpBias: false,
      qkNorm: true,
      windows: slidingWindows(config, c.num_hidden_layers, c.sliding_window, c.use_sliding_window, first),
    };
  },
};
