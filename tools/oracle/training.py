"""Writes what torch and PEFT compute in training: training.py <model fixture folder> <adapter fixture folder>."""

import json
import os
import sys

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

import internlm2
import tiny

torch.set_num_threads(1)
models, adapters = sys.argv[1:3]
with open(os.path.join(models, "logits.json")) as file:
    cases = {c["name"]: c for c in json.load(file)}


def qwen2():
    model = Qwen2ForCausalLM(Qwen2Config.from_dict({**cases["qwen2"]["config"], "attn_implementation": "eager"})).float()
    model.load_state_dict(load_file(os.path.join(models, "weights", "qwen2", "model.safetensors")))
    return model


def packed_batch(seed, documents):
    """A flat token axis of documents, labels shifted inside each, some ignored, each with a weight."""
    g = np.random.default_rng(seed)
    batch = {"ids_T": [], "labels_T": [], "positions_T": [], "lossWeights_T": [], "cuSeqlens_B1": [0]}
    for length in documents:
        ids = g.integers(0, tiny.VOCAB, length)
        labels = np.append(ids[1:], -100)
        labels[g.random(length) < 0.2] = -100
        batch["ids_T"] += ids.tolist()
        batch["labels_T"] += labels.tolist()
        batch["positions_T"] += list(range(length))
        batch["lossWeights_T"] += np.round(g.uniform(0.5, 1.5, length), 2).tolist()
        batch["cuSeqlens_B1"].append(len(batch["ids_T"]))
    return batch


def loss_of(model, batch):
    """Weighted mean of -log p over the labels; a token attends only within its own document."""
    length, ends = len(batch["ids_T"]), batch["cuSeqlens_B1"]
    document = torch.bucketize(torch.arange(length), torch.tensor(ends[1:]), right=True)
    allowed = (document[:, None] == document[None]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    logits = model(input_ids=torch.tensor([batch["ids_T"]]), position_ids=torch.tensor([batch["positions_T"]]), attention_mask=mask, use_cache=False).logits[0]
    labels = torch.tensor(batch["labels_T"])
    weights = torch.tensor(batch["lossWeights_T"]) * (labels != -100)
    nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return (nll * weights).sum() / weights.sum()


# Gradients of every weight.
model = qwen2().train()
batch = packed_batch(100, [9, 5, 14])
loss = loss_of(model, batch)
loss.backward()
tiny.write_json(os.path.join(models, "gradients.json"), {"weights": "qwen2", "batch": batch, "loss": loss.item()})
tiny.write_tensors(os.path.join(models, "gradients.safetensors"), {n: p.grad for n, p in model.named_parameters()})
print("gradients: loss", loss.item())


def save_adapter(model, name):
    folder = os.path.join(adapters, name)
    model.peft_config["default"].base_model_name_or_path = "tiny-qwen2"
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))


def logits_of(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0]


answers, tokens = {}, tiny.ids(19, 101)

# A loss curve of LoRA.
torch.manual_seed(102)
model = get_peft_model(qwen2(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")).train()
save_adapter(model, "peft-initial")
settings = {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01, "maxGradNorm": 0.5}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings["lr"], betas=settings["betas"], eps=settings["eps"], weight_decay=settings["weightDecay"])
lengths = np.random.default_rng(103).integers(4, 12, (6, 3)).tolist()
batches = [packed_batch(200 + i, documents) for i, documents in enumerate(lengths)]
losses, norms = [], []
for step in range(30):
    loss = loss_of(model, batches[step % len(batches)])
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), settings["maxGradNorm"]).item())
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
save_adapter(model, "peft-trained")
answers["peft-trained"] = logits_of(model, tokens)
print("lora: loss", losses[0], "to", losses[-1], "norms", min(norms), max(norms))

# Patterns, a regular expression, rsLoRA, 16-bit tensors.
torch.manual_seed(104)
model = get_peft_model(
    qwen2(),
    LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r".*\.(q_proj|down_proj|k_proj)", exclude_modules=r".*\.0\.self_attn\.k_proj", task_type="CAUSAL_LM",
        rank_pattern={"layers.1.self_attn.q_proj": 3, "down_proj": 5}, alpha_pattern={"down_proj": 7.5},
    ),
)
with torch.no_grad():
    for n, p in model.named_parameters():
        if "lora_" in n:
            p.copy_((p if "lora_A" in n else 0.2 * torch.randn_like(p)).bfloat16().float())
answers["peft-patterns"] = logits_of(model, tokens)
for n, p in model.named_parameters():
    if "lora_" in n:
        p.data = p.data.bfloat16()
save_adapter(model, "peft-patterns")

# An adapter of InternLM2's own modules, wqkv among them; the answer from merged weights.
generator = np.random.default_rng(105)
base = load_file(os.path.join(models, "weights", "internlm2-biased", "model.safetensors"))
targets, rank, alpha, adapter = ["wqkv", "wo", "w1", "w2", "w3"], 3, 5, {}
for name in [n for n in base if n.split(".")[-2] in targets and n.endswith(".weight")]:
    rows, columns = base[name].shape
    a, b = tiny.linear(generator, rank, columns), tiny.linear(generator, rows, rank) * 0.3
    key = f"base_model.model.{name.removesuffix('.weight')}"
    adapter[f"{key}.lora_A.weight"], adapter[f"{key}.lora_B.weight"] = a, b
    base[name] = base[name] + alpha / rank * b @ a
answers["peft-internlm2"] = logits_of(internlm2.as_llama(cases["internlm2-biased"]["config"], base), tokens)
folder = os.path.join(adapters, "peft-internlm2")
tiny.write_tensors(os.path.join(folder, "adapter_model.safetensors"), adapter)
config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", base_model_name_or_path="tiny-internlm2", inference_mode=True)
config.save_pretrained(folder)

tiny.write_json(os.path.join(adapters, "answers.json"), {"ids": tokens, "settings": settings, "losses": losses, "norms": norms, "batches": batches})
tiny.write_tensors(os.path.join(adapters, "answers.safetensors"), answers)
