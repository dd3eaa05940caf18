"""Peer of lora-step.ts: the same step with torch, transformers and PEFT on two threads.
usage: python bench/cpu/lora_step_torch.py"""
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(2)
T = 512
config = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=4, num_attention_heads=14,
                     num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True)
print("torch", torch.__version__)
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    model = get_peft_model(Qwen2ForCausalLM(config).to(dtype), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = (torch.arange(T) * 7919 % 150000).unsqueeze(0)
    seconds = []
    for i in range(8):
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if i >= 2:
            seconds.append(time.perf_counter() - begin)
    seconds.sort()
    median = seconds[len(seconds) // 2]
    print(f"{dtype}: {median * 1e3:.0f} ms a step median, {seconds[0] * 1e3:.0f} ms best, {T / median:.0f} tokens/s median")
