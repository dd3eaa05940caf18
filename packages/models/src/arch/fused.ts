/** Models whose checkpoints store q, k, v in one tensor. */
import { UnsupportedError } from "@llm/core";
import * as v from "valibot";
import { commonSpec, parseConfig } from "./config.js";
import type { DecoderSpec, LayerNames, ModelDefinition } from "./spec.js";

const range = (start: number, length: number): Int32Array => Int32Array.from({ length }, (_, i) => start + i);

/**
 * InternLM2 and 2.5. `wqkv` rows are grouped by key/value head: its query heads, then its key head, then its value head.
 * @see InternLM/InternLM modeling_internlm2.py, `rearrange(qkv, "b q (h gs d) -> b q h gs d")`
 */
export const internlm2: ModelDefinition = {
  modelType: "internlm2",
  architecture: "InternLM2ForCausalLM",
  names: {
    embed: "model.tok_embeddings",
    norm: "model.norm",
    head: "output",
    layer: (i): LayerNames => {
      const p = `model.layers.${i}`;
      return {
        inputNorm: `${p}.attention_norm`,
        q: `${p}.attention.q_proj`,
        k: `${p}.attention.k_proj`,
        v: `${p}.attention.v_proj`,
        o: `${p}.attention.wo`,
        postNorm: `${p}.ffn_norm`,
        gate: `${p}.feed_forward.w1`,
        up: `${p}.feed_forward.w3`,
        down: `${p}.feed_forward.w2`,
      };
    },
  },
  parse(config) {
    const c = parseConfig(config, "internlm2", { bias: v.optional(v.boolean(), false) });
    return {
      ...commonSpec(config, c),
      qkvBias: c.bias,
      oBias: c.bias,
      mlpBias: false,
      qkNorm: false,
      windows: new Array(c.num_hidden_layers).fill(0),
    };
  },
  fused(spec, layer) {
    const { heads, kvHeads, headDim } = spec;
    const group = heads / kvHeads;
    const rowsOf = (slots: (kv: number) => number[]): Int32Array => {
      const rows: number[] = [];
      for (let kv = 0; kv < kvHeads; kv++)
        for (const slot of slots(kv))
          for (let d = 0; d < headDim; d++) rows.push((kv * (group + 2) + slot) * headDim + d);
      return Int32Array.from(rows);
    };
    const p = `model.layers.${layer}.attention`;
    return [
      {
        name: `${p}.wqkv`,
        parts: [
          { linear: `${p}.q_proj`, rows: rowsOf(() => Array.from({ length: group }, (_, i) => i)) },
          { linear: `${p}.k_proj`, rows: rowsOf(() => [group]) },
          { linear: `${p}.v_proj`, rows: rowsOf(() => [group + 1]) },
        ],
      },
    ];
  },
};

/**
 * Qwen (1): c_attn holds q, k, v in order with a bias; w2 is the gate, w1 the up projection; `intermediate_size` counts both.
 * @see QwenLM/Qwen modeling_qwen.py
 */
export const qwen: ModelDefinition = {
  modelType: "qwen",
  architecture: "QWenLMHeadModel",
  names: {
    embed: "transformer.wte",
    norm: "transformer.ln_f",
    head: "lm_head",
    layer: (i): LayerNames => {
      const p = `transformer.h.${i}`;
      return {
        inputNorm: `${p}.ln_1`,
        q: `${p}.attn.q_proj`,
        k: `${p}.attn.k_proj`,
        v: `${p}.attn.v_proj`,
        o: `${p}.attn.c_proj`,
        postNorm: `${p}.ln_2`,
        gate: `${p}.mlp.w2`,
        up: `${p}.mlp.w1`,
        down: `${p}.mlp.c_proj`,
      };
    },
  },
  parse(config) {
    const c = parseConfig(
      {
        ...config,
        rms_norm_eps: config["layer_norm_epsilon"] ?? config["rms_norm_eps"] ?? 1e-6,
        head_dim: config["kv_channels"] ?? config["head_dim"],
        max_position_embeddings: config["seq_length"] ?? config["max_position_embeddings"],
        rope_theta: config["rotary_emb_base"] ?? config["rope_theta"] ?? 10000,
      },
      "qwen",
      {
        layer_norm_epsilon: v.optional(v.number(), 1e-6),
        kv_channels: v.optional(v.number(), 128),
        seq_length: v.optional(v.number(), 8192),
        rotary_emb_base: v.optional(v.number(), 10000),
        rotary_pct: v.optional(v.number(), 1),
        no_bias: v.optional(v.boolean(), true),
        scale_attn_weights: v.optional(v.boolean(), true),
        use_dynamic_ntk: v.optional(v.boolean(), true),
        use_logn_attn: v.optional(v.boolean(), true),
      },
    );
    if (c.rotary_pct !== 1)
      throw new UnsupportedError(`[config.json] rotary_pct ${c.rotary_pct} is not supported, 1 is`);
    if (!c.scale_attn_weights) throw new UnsupportedError("[config.json] scale_attn_weights false is not supported");
    if (c.kv_channels * c.num_attention_heads !== c.hidden_size)
      throw new UnsupportedError("[config.json] kv_channels × num_attention_heads must equal hidden_size");
    const spec: DecoderSpec = {
      ...commonSpec(
        { ...config, rope_theta: c.rotary_emb_base },
        {
          ...c,
          head_dim: c.kv_channels,
          intermediate_size: c.intermediate_size / 2,
          num_key_value_heads: c.num_attention_heads,
          max_position_embeddings: c.seq_length,
        },
      ),
      qkvBias: true,
      oBias: !c.no_bias,
      mlpBias: !c.no_bias,
      qkNorm: false,
      windows: new Array(c.num_hidden_layers).fill(0),
    };
    return {
      ...spec,
      rope: { ...spec.rope, ...(c.use_dynamic_ntk ? { kind: "qwen-dynamic" as const } : {}), logn: c.use_logn_attn },
    };
  },
  fused(spec, layer) {
    const width = spec.heads * spec.headDim;
    const p = `transformer.h.${layer}.attn`;
    return [
      {
        name: `${p}.c_attn`,
        parts: [
          { linear: `${p}.q_proj`, rows: range(0, width) },
          { linear: `${p}.k_proj`, rows: range(width, width) },
          { linear: `${p}.v_proj`, rows: range(2 * width, width) },
        ],
      },
    ];
  },
};
