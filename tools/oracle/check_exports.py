"""Loads the folders of write-exports.ts in transformers and PEFT and compares logits: check_exports.py <folder>."""

import glob
import json
import math
import os
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import internlm2

torch.set_grad_enabled(False)
torch.set_num_threads(1)
folder, worst = sys.argv[1], 0.0


def tensors(path):
    return {k: v for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))) for k, v in load_file(file).items()}


def merged_by_hand(base, adapter, config):
    """W + s B A for a model whose code transformers does not ship."""
    for key in [k for k in adapter if k.endswith("lora_A.weight")]:
        a, b = adapter[key], adapter[key.replace("lora_A", "lora_B")]
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank, alpha = config["rank_pattern"].get(module, config["r"]), config["alpha_pattern"].get(module, config["lora_alpha"])
        assert rank == a.shape[0], (module, rank, a.shape)
        base[module + ".weight"] = base[module + ".weight"] + alpha / (math.sqrt(rank) if config["use_rslora"] else rank) * b @ a
    return base


for name in sorted(os.listdir(folder)):
    path = os.path.join(folder, name)
    with open(os.path.join(path, "logits.json")) as file:
        ours = json.load(file)
    with open(os.path.join(path, "base", "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(path, "adapter", "adapter_config.json")) as file:
        adapter_config = json.load(file)
    ids = torch.tensor([ours["ids"]])
    if config["model_type"] == "internlm2":
        base = tensors(os.path.join(path, "base"))
        models = {
            "base": internlm2.as_llama(config, base),
            "adapter": internlm2.as_llama(config, merged_by_hand(dict(base), tensors(os.path.join(path, "adapter")), adapter_config)),
            "merged": internlm2.as_llama(config, tensors(os.path.join(path, "merged"))),
        }
    else:
        load = lambda part: AutoModelForCausalLM.from_pretrained(os.path.join(path, part), attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
        models = {}
        for part in ("base", "merged"):
            models[part], info = load(part)
            assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, part, info)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PEFT only warns of missing and unexpected keys
            models["adapter"] = PeftModel.from_pretrained(load("base")[0], os.path.join(path, "adapter"))
        loaded = sum("lora_" in n for n, _ in models["adapter"].named_parameters())
        assert loaded == len(tensors(os.path.join(path, "adapter"))), (name, loaded)
        tokenizer = AutoTokenizer.from_pretrained(os.path.join(path, "merged"))
        assert tokenizer.encode(ours["text"]) == ours["textIds"], name
    for part, model in models.items():
        theirs = model.eval()(ids).logits[0].flatten()
        difference = (theirs - torch.tensor(ours[part])).abs().max().item()
        worst = max(worst, difference)
        print(f"{name:18} {part:8} largest difference {difference:.1e}, logits up to {theirs.abs().max().item():.1f}, {len(os.listdir(os.path.join(path, part)))} files")

print(f"worst {worst:.1e}")
sys.exit(worst > 1e-4)
