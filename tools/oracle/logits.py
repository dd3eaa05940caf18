"""Writes logits of small random models as transformers computes them: logits.py <fixture folder>."""

import json
import math
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import internlm2
import tiny

torch.set_grad_enabled(False)
torch.set_num_threads(1)
out = sys.argv[1]
cases, logits = [], {}


def saved_config(model):
    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        with open(os.path.join(folder, "config.json")) as file:
            return json.load(file)


def add(name, weights, config, tokens, values):
    cases.append({"name": name, "weights": weights, "config": config, "ids": tokens})
    logits[name] = values.float()
    print(f"{name}: {tuple(values.shape)}, spread {values.std().item():.2f}")


def run(model, tokens):
    return model(torch.tensor([tokens])).logits[0]


def family(name, config_class, model_class, seed, length=21, shard=None, **config):
    """A model, its weights as save_pretrained writes them, and its logits."""
    config = config_class(vocab_size=tiny.VOCAB, num_hidden_layers=2, attn_implementation="eager", **config)
    model = tiny.randomize(model_class(config), seed)
    folder = os.path.join(out, "weights", name)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary, **({"max_shard_size": shard} if shard else {}))
        os.makedirs(folder)
        for file in os.listdir(temporary):
            if file.startswith("model"):
                shutil.copy(os.path.join(temporary, file), folder)
    tokens = tiny.ids(length, seed)
    add(name, name, saved_config(model), tokens, run(model, tokens))
    return model


def variant(name, weights, model, tokens, **change):
    """A model's weights under another config.json, written as older transformers wrote it (rope_theta, rope_scaling)."""
    base, model_class = saved_config(model), type(model)
    config = {k: v for k, v in base.items() if k not in ("rope_parameters", "layer_types", "transformers_version", "dtype")}
    config = {**config, "torch_dtype": "float32", "rope_theta": base["rope_parameters"]["rope_theta"], **change}
    changed = model_class(model_class.config_class.from_dict({**config, "attn_implementation": "eager"})).float().eval()
    changed.load_state_dict(model.state_dict())
    add(name, weights, config, tokens, run(changed, tokens))


# Architectures; odd widths on purpose.
family("qwen2", Qwen2Config, Qwen2ForCausalLM, 1, hidden_size=42, intermediate_size=53, num_attention_heads=7, num_key_value_heads=1, tie_word_embeddings=False)
family("qwen2-tied", Qwen2Config, Qwen2ForCausalLM, 2, hidden_size=36, intermediate_size=44, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1000000.0)
family("qwen2-window", Qwen2Config, Qwen2ForCausalLM, 3, length=30, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1)
family("qwen3", Qwen3Config, Qwen3ForCausalLM, 4, hidden_size=40, intermediate_size=51, num_attention_heads=4, num_key_value_heads=2, head_dim=14, tie_word_embeddings=True)
llama = family("llama", LlamaConfig, LlamaForCausalLM, 5, shard="40KB", hidden_size=48, intermediate_size=47, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
family("llama-biased", LlamaConfig, LlamaForCausalLM, 6, hidden_size=32, intermediate_size=43, num_attention_heads=4, num_key_value_heads=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
family("mistral", MistralConfig, MistralForCausalLM, 7, length=33, hidden_size=32, intermediate_size=45, num_attention_heads=4, num_key_value_heads=2, head_dim=10, sliding_window=7)

# Rotary variants on the Llama weights, each longer than the length that the model was trained on where that matters.
long, short = tiny.ids(41, 50), tiny.ids(13, 51)


def rope(name, tokens=long, positions=64, theta=10000.0, **scaling):
    variant(name, "llama", llama, tokens, max_position_embeddings=positions, rope_theta=theta, rope_scaling=scaling)


rope("linear", type="linear", factor=4.0)
rope("dynamic-beyond", positions=16, rope_type="dynamic", factor=2.0)
rope("dynamic-within", tokens=short, positions=16, rope_type="dynamic", factor=2.0)
rope("llama3", theta=500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
rope("yarn", rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
rope("yarn-attention-factor", rope_type="yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.8)
rope("yarn-mscale", rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.7)
rope("yarn-betas", rope_type="yarn", factor=3.0, original_max_position_embeddings=16, beta_fast=8, beta_slow=2, truncate=False)
rope("yarn-no-original", tokens=short, positions=16, type="yarn", factor=2.0)


# InternLM2: its own checkpoint, split into a Llama for the answer.
def make_internlm2(name, seed, bias, tokens, **rope_config):
    config, checkpoint = internlm2.make(seed, bias, **rope_config)
    tiny.write_tensors(os.path.join(out, "weights", name, "model.safetensors"), checkpoint)
    add(name, name, config, tokens, run(internlm2.as_llama(config, checkpoint), tokens))


make_internlm2("internlm2", 60, False, long, max_position_embeddings=16, rope_theta=1000000, rope_scaling={"type": "dynamic", "factor": 2.0})
make_internlm2("internlm2-biased", 61, True, short, max_position_embeddings=64, rope_theta=10000, rope_scaling=None)


# Qwen 1: its own checkpoint; the forward pass of modeling_qwen.py in evaluation mode by hand, with dynamic NTK and log-n attention.
def qwen1(name, seed, seq_length, runs):
    hidden, heads, inner, depth, eps, theta = 32, 4, 40, 2, 1e-6, 10000.0
    dim, generator = hidden // heads, np.random.default_rng(seed)
    w = {"transformer.wte.weight": tiny.table(generator, tiny.VOCAB, hidden)}
    for i in range(depth):
        p = f"transformer.h.{i}."
        w[p + "ln_1.weight"] = tiny.vector(generator, hidden, 1, 0.1)
        w[p + "attn.c_attn.weight"] = tiny.linear(generator, 3 * hidden, hidden)
        w[p + "attn.c_attn.bias"] = tiny.vector(generator, 3 * hidden)
        w[p + "attn.c_proj.weight"] = tiny.linear(generator, hidden, hidden)
        w[p + "ln_2.weight"] = tiny.vector(generator, hidden, 1, 0.1)
        w[p + "mlp.w1.weight"] = tiny.linear(generator, inner, hidden)
        w[p + "mlp.w2.weight"] = tiny.linear(generator, inner, hidden)
        w[p + "mlp.c_proj.weight"] = tiny.linear(generator, hidden, inner)
    w["transformer.ln_f.weight"] = tiny.vector(generator, hidden, 1, 0.1)
    w["lm_head.weight"] = tiny.linear(generator, tiny.VOCAB, hidden)
    tiny.write_tensors(os.path.join(out, "weights", name, "model.safetensors"), w)

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def forward(tokens, ntk, logn):
        length = len(tokens)
        alpha = max(2 ** math.ceil(math.log(length / seq_length, 2) + 1) - 1, 1) if ntk else 1
        inverse = 1.0 / (theta * alpha ** (dim / (dim - 2))) ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(length).float(), inverse)
        cos, sin = torch.cat([angles.cos()] * 2, -1)[:, None], torch.cat([angles.sin()] * 2, -1)[:, None]

        def rotate(x):
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        x = w["transformer.wte.weight"][torch.tensor(tokens)]
        mask = torch.full((length, length), float("-inf")).triu(1)
        for i in range(depth):
            p = f"transformer.h.{i}."
            mixed = norm(x, w[p + "ln_1.weight"]) @ w[p + "attn.c_attn.weight"].T + w[p + "attn.c_attn.bias"]
            q, k, v = (t.reshape(length, heads, dim) for t in mixed.split(hidden, -1))
            q, k = rotate(q), rotate(k)
            if logn and length > seq_length:
                q = q * torch.tensor([math.log(n, seq_length) if n > seq_length else 1 for n in range(1, length + 1)])[:, None, None]
            scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5 + mask
            x = x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, hidden) @ w[p + "attn.c_proj.weight"].T
            h = norm(x, w[p + "ln_2.weight"])
            up, gate = h @ w[p + "mlp.w1.weight"].T, h @ w[p + "mlp.w2.weight"].T
            x = x + (up * torch.nn.functional.silu(gate)) @ w[p + "mlp.c_proj.weight"].T
        return norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T

    # Within the trained length it is a Qwen2 of other names.
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=tiny.VOCAB, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=heads, rms_norm_eps=eps, attn_implementation="eager")).eval()
    split = {"model.embed_tokens.weight": w["transformer.wte.weight"], "model.norm.weight": w["transformer.ln_f.weight"], "lm_head.weight": w["lm_head.weight"]}
    for i in range(depth):
        p, q = f"transformer.h.{i}.", f"model.layers.{i}."
        for suffix in ("weight", "bias"):
            for part, rows in zip("qkv", w[f"{p}attn.c_attn.{suffix}"].split(hidden)):
                split[f"{q}self_attn.{part}_proj.{suffix}"] = rows
        for theirs, ours in [("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm"), ("attn.c_proj", "self_attn.o_proj"), ("mlp.w2", "mlp.gate_proj"), ("mlp.w1", "mlp.up_proj"), ("mlp.c_proj", "mlp.down_proj")]:
            split[f"{q}{ours}.weight"] = w[f"{p}{theirs}.weight"]
    model.load_state_dict(split)
    within = tiny.ids(seq_length, seed)
    assert (run(model, within) - forward(within, True, True)).abs().max() < 1e-4, "the hand-written forward differs from Qwen2"

    for length, ntk, logn in runs:
        config = {
            "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "auto_map": {}, "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False, "fp32": True,
            "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": 2 * inner, "kv_channels": dim, "layer_norm_epsilon": eps, "max_position_embeddings": 4 * seq_length,
            "no_bias": True, "num_attention_heads": heads, "num_hidden_layers": depth, "onnx_safe": None, "rotary_emb_base": theta, "rotary_pct": 1.0, "scale_attn_weights": True,
            "seq_length": seq_length, "softmax_in_fp32": False, "tie_word_embeddings": False, "tokenizer_class": "QWenTokenizer", "use_cache": True, "use_cache_kernel": False,
            "use_cache_quantization": False, "use_dynamic_ntk": ntk, "use_flash_attn": "auto", "use_logn_attn": logn, "vocab_size": tiny.VOCAB,
        }
        tokens = tiny.ids(length, seed + length)
        add(f"{name}-{length}{'-ntk' if ntk else ''}{'-logn' if logn else ''}", name, config, tokens, forward(tokens, ntk, logn))


qwen1("qwen", 70, 16, [(11, True, True), (17, True, True), (33, True, True), (45, True, True), (45, False, False), (45, True, False), (45, False, True)])

tiny.write_json(os.path.join(out, "tokenizer.json"), tiny.tokenizer_json())
tiny.write_json(os.path.join(out, "logits.json"), cases)
tiny.write_tensors(os.path.join(out, "logits.safetensors"), logits)
