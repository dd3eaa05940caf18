"""What the oracle scripts share: random weights with fixed seeds, files, a tokenizer of one token a character."""

import json
import os

import numpy as np
import torch
from safetensors.torch import save_file

VOCAB = 97


def ids(length, seed):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def randomize(model, seed):
    """Weights large enough that attention and every bias matter."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.from_numpy(generator.standard_normal(tuple(p.shape)).astype(np.float32))
            if p.dim() == 1 and not name.endswith("bias"):
                p.copy_(1 + 0.1 * values)
            else:
                p.copy_(values * (1.5 / p.shape[-1] ** 0.5 if p.dim() > 1 and "embed" not in name else 0.3))
    return model.float().eval()


def linear(generator, rows, columns):
    return torch.from_numpy((generator.standard_normal((rows, columns)) * 1.5 / columns**0.5).astype(np.float32))


def table(generator, rows, columns):
    return torch.from_numpy((generator.standard_normal((rows, columns)) * 0.3).astype(np.float32))


def vector(generator, size, around=0.0, spread=0.3):
    return torch.from_numpy((around + spread * generator.standard_normal(size)).astype(np.float32))


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_tensors(path, tensors):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def tokenizer_json():
    """Byte-level BPE without merges: ids 0 … 93 are the characters ! … ~, then the space and two special tokens."""
    vocabulary = {chr(33 + i): i for i in range(94)}
    vocabulary["\u0120"] = 94
    special = {"<s>": 95, "</s>": 96}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for text, i in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {**vocabulary, **special},
            "merges": [],
        },
    }
