"""Random weights for FID's Inception, by the names and shapes of pt_inception-2015-12-05, as a safetensors file."""

import array
import json
import math
import random
import struct

PATTERN = 65537  # no layer is a multiple of it

# Convolutions as (name, in, out, height, width).
STEM = [("Conv2d_1a_3x3", 3, 32, 3, 3), ("Conv2d_2a_3x3", 32, 32, 3, 3), ("Conv2d_2b_3x3", 32, 64, 3, 3),
        ("Conv2d_3b_1x1", 64, 80, 1, 1), ("Conv2d_4a_3x3", 80, 192, 3, 3)]


def block_a(x, pool):
    return [("branch1x1", x, 64, 1, 1), ("branch5x5_1", x, 48, 1, 1), ("branch5x5_2", 48, 64, 5, 5),
            ("branch3x3dbl_1", x, 64, 1, 1), ("branch3x3dbl_2", 64, 96, 3, 3), ("branch3x3dbl_3", 96, 96, 3, 3),
            ("branch_pool", x, pool, 1, 1)]


def block_b(x):
    return [("branch3x3", x, 384, 3, 3), ("branch3x3dbl_1", x, 64, 1, 1), ("branch3x3dbl_2", 64, 96, 3, 3),
            ("branch3x3dbl_3", 96, 96, 3, 3)]


def block_c(c):
    return [("branch1x1", 768, 192, 1, 1), ("branch7x7_1", 768, c, 1, 1), ("branch7x7_2", c, c, 1, 7),
            ("branch7x7_3", c, 192, 7, 1), ("branch7x7dbl_1", 768, c, 1, 1), ("branch7x7dbl_2", c, c, 7, 1),
            ("branch7x7dbl_3", c, c, 1, 7), ("branch7x7dbl_4", c, c, 7, 1), ("branch7x7dbl_5", c, 192, 1, 7),
            ("branch_pool", 768, 192, 1, 1)]


def block_d(x):
    return [("branch3x3_1", x, 192, 1, 1), ("branch3x3_2", 192, 320, 3, 3), ("branch7x7x3_1", x, 192, 1, 1),
            ("branch7x7x3_2", 192, 192, 1, 7), ("branch7x7x3_3", 192, 192, 7, 1), ("branch7x7x3_4", 192, 192, 3, 3)]


def block_e(x):
    return [("branch1x1", x, 320, 1, 1), ("branch3x3_1", x, 384, 1, 1), ("branch3x3_2a", 384, 384, 1, 3),
            ("branch3x3_2b", 384, 384, 3, 1), ("branch3x3dbl_1", x, 448, 1, 1), ("branch3x3dbl_2", 448, 384, 3, 3),
            ("branch3x3dbl_3a", 384, 384, 1, 3), ("branch3x3dbl_3b", 384, 384, 3, 1), ("branch_pool", x, 192, 1, 1)]


BLOCKS = {"Mixed_5b": block_a(192, 32), "Mixed_5c": block_a(256, 64), "Mixed_5d": block_a(288, 64),
          "Mixed_6a": block_b(288), "Mixed_6b": block_c(128), "Mixed_6c": block_c(160), "Mixed_6d": block_c(160),
          "Mixed_6e": block_c(192), "Mixed_7a": block_d(768), "Mixed_7b": block_e(1280), "Mixed_7c": block_e(2048)}


def tensors():
    """(name, shape, what random numbers from -1 to 1 are multiplied with, what is added then)."""
    convs = STEM + [(f"{block}.{name}", *rest) for block, layers in BLOCKS.items() for name, *rest in layers]
    for name, fan, out, height, width in convs:
        yield f"{name}.conv.weight", (out, fan, height, width), math.sqrt(6 / (fan * height * width)), 0.0
        yield f"{name}.bn.weight", (out,), 0.1, 1.0
        yield f"{name}.bn.bias", (out,), 0.1, 0.0
        yield f"{name}.bn.running_mean", (out,), 0.1, 0.0
        yield f"{name}.bn.running_var", (out,), 0.1, 1.0
    yield "fc.weight", (1008, 2048), 0.05, 0.0


def write_inception(path, seed=1):
    rng = random.Random(seed)
    pattern = [rng.uniform(-1, 1) for _ in range(PATTERN)]
    entries, offset, data = {}, 0, []
    for name, shape, scale, mean in tensors():
        size = math.prod(shape)
        begin = rng.randrange(PATTERN)
        ring = array.array("f", (scale * value + mean for value in pattern[begin:] + pattern[:begin]))
        data.append((ring * (size // PATTERN + 1))[:size].tobytes())
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + 4 * size]}
        offset += 4 * size
    head = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(data))
