"""Safetensors files of fp32 and int64 tensors."""

import json
import struct

import torch

TYPES = {"F32": torch.float32, "I64": torch.int64}


def write_tensors(path, tensors):
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        kind = next(key for key, value in TYPES.items() if value == tensor.dtype)
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(entries).encode()
    data = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def read_tensors(path):
    content = path.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    tensors = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            first, last = (begin + offset for offset in entry["data_offsets"])
            values = torch.frombuffer(bytearray(content[first:last]), dtype=TYPES[entry["dtype"]])
            tensors[name] = values.view(entry["shape"])
    return tensors
