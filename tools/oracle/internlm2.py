"""A small InternLM2 checkpoint of random weights, and the Llama that computes the same."""

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

import tiny

HIDDEN, HEADS, KV, INNER, DEPTH = 32, 4, 2, 40, 2
DIM, GROUP = HIDDEN // HEADS, HEADS // KV + 2


def make(seed, bias, **rope_config):
    """config.json and tensors as the model's own code names them."""
    g, w = np.random.default_rng(seed), {}
    w["model.tok_embeddings.weight"] = tiny.table(g, tiny.VOCAB, HIDDEN)
    for i in range(DEPTH):
        p = f"model.layers.{i}."
        w[p + "attention_norm.weight"] = tiny.vector(g, HIDDEN, 1, 0.1)
        w[p + "ffn_norm.weight"] = tiny.vector(g, HIDDEN, 1, 0.1)
        w[p + "attention.wqkv.weight"] = tiny.linear(g, KV * GROUP * DIM, HIDDEN)
        w[p + "attention.wo.weight"] = tiny.linear(g, HIDDEN, HIDDEN)
        if bias:
            w[p + "attention.wqkv.bias"] = tiny.vector(g, KV * GROUP * DIM)
            w[p + "attention.wo.bias"] = tiny.vector(g, HIDDEN)
        w[p + "feed_forward.w1.weight"] = tiny.linear(g, INNER, HIDDEN)
        w[p + "feed_forward.w3.weight"] = tiny.linear(g, INNER, HIDDEN)
        w[p + "feed_forward.w2.weight"] = tiny.linear(g, HIDDEN, INNER)
    w["model.norm.weight"] = tiny.vector(g, HIDDEN, 1, 0.1)
    w["output.weight"] = tiny.linear(g, tiny.VOCAB, HIDDEN)
    config = {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "auto_map": {}, "attn_implementation": "eager", "bias": bias, "hidden_act": "silu",
        "pretraining_tp": 1, "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": tiny.VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_key_value_heads": KV, "rms_norm_eps": 1e-5, **rope_config,
    }
    return config, w


RENAMED = {
    "tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
}


def as_llama(config, checkpoint):
    split = {}
    for name, value in checkpoint.items():
        if ".attention.wqkv." in name:
            # rearrange "(h gs d) … -> h gs d": per key/value head its queries, then its key, then its value
            parts, tail = value.reshape(KV, GROUP, DIM, -1), value.shape[1:]
            for letter, rows in [("q", parts[:, :-2]), ("k", parts[:, -2]), ("v", parts[:, -1])]:
                split[name.replace("attention.wqkv", f"self_attn.{letter}_proj")] = rows.reshape(-1, *tail)
            continue
        if name == "output.weight":
            name = "lm_head.weight"
        for theirs, llamas in RENAMED.items():
            name = name.replace(f".{theirs}.", f".{llamas}.")
        split[name] = value
    llama = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "auto_map", "bias", "torch_dtype")}
    model = LlamaForCausalLM(LlamaConfig.from_dict({**llama, "attention_bias": config["bias"]})).eval()
    model.load_state_dict(split)
    return model
