"""Unpacks an AutoAWQ "gemm" folder with NumPy alone, independently of the SDK: an oracle for its packing.

  python3 tools/oracle/unpack_awq.py FOLDER OUT.json     dequantized weights (f32) of every quantized linear, and the dense tensors
  python3 tools/oracle/unpack_awq.py --golden            the words of some nibble sequences, as the fixture of the test holds them

The layout (AutoAWQ, awq/utils/packing_utils.py and awq/modules/linear/gemm.py):
  qweight i32 [K, N/8]: bits 4i..4i+3 of word [k, c] hold q[k, 8c + order[i]], order = 0 2 4 6 1 3 5 7
  qzeros  i32 [K/g, N/8] likewise; scales f16 [K/g, N]; w[n, k] = (q - zero) * scale
"""

import json
import pathlib
import struct
import sys

import numpy as np

ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32}


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def unpack(words):
    """[rows, columns / 8] words -> [rows, columns] values in 0..15."""
    nibbles = (words.view(np.uint32)[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    values = np.empty_like(nibbles)
    values[..., ORDER] = nibbles
    return values.reshape(words.shape[0], -1)


def pack_word(values):
    word = 0
    for i, place in enumerate(ORDER):
        word |= int(values[place]) << (4 * i)
    return word


def dequantize(qweight, qzeros, scales, group):
    q = unpack(qweight).astype(np.float32)
    zeros = np.repeat(unpack(qzeros).astype(np.float32), group, axis=0)
    return ((q - zeros) * np.repeat(scales.astype(np.float32), group, axis=0)).T


def main():
    if sys.argv[1:] == ["--golden"]:
        sequences = [list(range(8)), [8] * 8, [15, 3, 9, 0, 12, 7, 1, 8]]
        print(json.dumps([{"q": s, "word": f"0x{pack_word(s):08x}"} for s in sequences]))
        return
    folder, out = map(pathlib.Path, sys.argv[1:3])
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "awq" and quantization["version"] == "gemm" and quantization["bits"] == 4
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    result = {}
    for name, value in tensors.items():
        if name.endswith(".qweight"):
            linear = name[: -len(".qweight")]
            assert not any(skip in linear for skip in quantization["modules_to_not_convert"] or []), linear
            weight = dequantize(value, tensors[linear + ".qzeros"], tensors[linear + ".scales"], quantization["group_size"])
            result[linear + ".weight"] = weight
        elif not name.endswith((".qzeros", ".scales")):
            assert value.dtype == np.float16, name
            result[name] = value.astype(np.float32)
    out.write_text(json.dumps({name: {"shape": w.shape, "data": w.ravel().astype(float).tolist()} for name, w in result.items()}))


main()
