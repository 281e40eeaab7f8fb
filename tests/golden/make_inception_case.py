#!/usr/bin/env python3
"""Writes inception_fid.json: the FID Inception of torch-fidelity with weights made by a formula.

Needs torch, torchvision and torch-fidelity. Parameter j (in the order of the network, without
num_batches_tracked and fc.bias) has at flat index k the value s = sin(0.013 k^2 + 0.7 k + 1.3 j + 0.5),
in double, then 2 s / sqrt(fan_in) for convolutions, 1 + 0.1 s for bn.weight and running_var, 0.1 s
for bn.bias and running_mean, s / 16 for fc.weight, rounded to fp32. Pixel (n, y, x, c) is
(7 y^2 + 3 x^2 (c + 1) + 5 x y + 31 n + 11 c) mod 256.
"""
import json
import pathlib
import tempfile

import numpy as np
import torch
from torch_fidelity import feature_extractor_inceptionv3 as reference

SHAPES = [(2, 70, 90), (1, 320, 310)]  # images, height, width: enlarged and reduced
VALUES = 40                            # of each output, at equal strides


def weight(name, index, shape):
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    s = np.sin(0.013 * (k * k) + 0.7 * k + 1.3 * index + 0.5)
    if name.endswith("conv.weight"):
        s = 2 * s / np.sqrt(np.prod(shape[1:]))
    elif name == "fc.weight":
        s = s / 16
    elif name.endswith(("bn.weight", "running_var")):
        s = 1 + 0.1 * s
    else:
        s = 0.1 * s
    return torch.from_numpy(s.astype(np.float32).reshape(shape))


def network():
    # The class wants a file; building it without one would fetch the real weights.
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        kept = reference.load_state_dict_from_url, reference.FeatureExtractorInceptionV3.load_state_dict
        reference.load_state_dict_from_url = lambda *_, **__: {}
        reference.FeatureExtractorInceptionV3.load_state_dict = lambda *_, **__: None
        build = lambda path: reference.FeatureExtractorInceptionV3(
            "formula", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
        state = build(None).state_dict()
        reference.load_state_dict_from_url, reference.FeatureExtractorInceptionV3.load_state_dict = kept
        names = [n for n in state if not n.endswith("num_batches_tracked") and n != "fc.bias"]
        for index, name in enumerate(names):
            state[name] = weight(name, index, tuple(state[name].shape))
        torch.save(state, file.name)
        return build(file.name)


def image(count, height, width):
    n, y, x, c = np.ogrid[:count, :height, :width, :3]
    return ((7 * y * y + 3 * x * x * (c + 1) + 5 * x * y + 31 * n + 11 * c) % 256).astype(np.uint8)


def strided(tensor):
    flat = tensor.double().flatten().numpy()
    return {"shape": list(tensor.shape), "l2": float(np.sqrt((flat * flat).sum())),
            "largest": float(np.abs(flat).max()),
            "values": [float(flat[i * flat.size // VALUES]) for i in range(VALUES)]}


def main():
    net = network()
    spatial = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: spatial.append(out))
    cases = []
    for shape in SHAPES:
        pixels = torch.from_numpy(image(*shape)).permute(0, 3, 1, 2)
        pool, logits = net(pixels)
        rows = spatial.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        cases.append({"images": shape, "pool": strided(pool), "spatial": strided(rows),
                      "logits": strided(logits)})
        print(shape, "spread over channels", pool.std().item(), "mean", pool.mean().item())
    path = pathlib.Path(__file__).with_name("inception_fid.json")
    path.write_text(json.dumps({"parameters": len(net.state_dict()), "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
