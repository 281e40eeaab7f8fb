"""Run by import_test.py in a Python with PyTorch.

make_checkpoint.py write LIST.tsv OUT.pth SEED     random weights with the tensors of the list, as the
                                                   reference's state_dict() would be saved
make_checkpoint.py compare FILE.pth FOLDER.safetensors    every parameter, bit for bit
"""

import collections
import json
import mmap
import struct
import sys

import torch

BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV", "codebook_used")


def write(list_file, out, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = collections.OrderedDict()
    with open(list_file) as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    for name, shape, dtype, _ in rows:
        sizes = [int(size) for size in shape.split("x")]
        if name == "lvl_1L":
            sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
            tensors[name] = torch.cat([torch.full((n * n,), k) for k, n in enumerate(sides)]).view(1, -1)
            continue
        tensors[name] = torch.randn(sizes, generator=generator, dtype=getattr(torch, dtype)) * 0.02
    tensors._metadata = {"": {"version": 1}}  # as module.state_dict() has it
    torch.save(tensors, out)


def compare(source, safetensors):
    expected = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    with open(safetensors, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    compared = 0
    for name, tensor in expected.items():
        if name.split(".")[-1] in BUFFERS:
            assert name not in header, name
            continue
        entry = header.pop(name)
        begin, end = (8 + length + at for at in entry["data_offsets"])
        assert entry["dtype"] == "F32" and entry["shape"] == list(tensor.shape), (name, entry)
        assert begin % 64 == 0, (name, begin)
        assert data[begin:end] == tensor.contiguous().numpy().tobytes(), f"{name} differs"
        compared += 1
    left = [name for name in header if not name.startswith("__")]
    assert not left, left
    print(compared)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        compare(sys.argv[2], sys.argv[3])
