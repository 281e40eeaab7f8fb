"""The networks of worker/models/networks.h in PyTorch eager, with the same parameter names.

Shapes: B sequences, n tokens, C channels of a code, V codes, d width of the backbone, w width of the
head, m draws of (t, noise).
"""
import json
import math
import pathlib
import struct

import torch
import torch.nn.functional as F
from torch import nn

TIME_SCALE = 1000.0  # t in [0, 1] -> the range the sinusoids are made for


def read_safetensors(path):
    """{name: tensor} and the metadata of a file with fp32 tensors (storage/FORMAT.md)."""
    data = bytearray(pathlib.Path(path).read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4,
                                    offset=8 + length + begin)
            tensors[name] = flat.view(entry["shape"]).clone()
    return tensors, metadata


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        batch, length, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Backbone(nn.Module):
    """q [B, n, C], labels [B] -> features [B, n, d]; feature i sees q_<i and the class only."""

    def __init__(self, channels=4, d=128, layers=4, heads=4, tokens=49, classes=10):
        super().__init__()
        self.null_class = classes
        self.input = nn.Sequential(nn.Linear(channels, d), nn.SiLU(), nn.Linear(d, d))
        self.positions = nn.Parameter(torch.randn(tokens, d) * 0.02)
        self.class_embed = nn.Embedding(classes + 1, d)
        self.start = nn.Parameter(torch.randn(d) * 0.02)
        self.blocks = nn.ModuleList([Block(d, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(d)

    def forward(self, q, labels):
        batch, tokens, _ = q.shape  # fewer than n tokens: a sequence that is still being sampled
        start = self.start.expand(batch, 1, -1)
        x = torch.cat([start, self.input(q[:, :-1])], 1)
        x = x + (self.positions[:tokens] + self.class_embed(labels)[:, None])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Teacher(nn.Module):
    def __init__(self, codes=128, **shape):
        super().__init__()
        self.backbone = Backbone(**shape)
        self.head = nn.Linear(self.backbone.start.numel(), codes)

    def guided_logits(self, q, labels, cfg_scale):
        """u + w (c - u), combined in front of the output layer, which is linear: half the product."""
        null = torch.full_like(labels, self.backbone.null_class)
        hidden = self.backbone(torch.cat([q, q]), torch.cat([labels, null]))
        with_class, without = hidden.chunk(2)
        return self.head(torch.lerp(without, with_class, cfg_scale))


class Mlp(nn.Module):
    """Holder of a `mlp.0`, `mlp.2` pair."""

    def __init__(self, inputs, w):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, w), nn.SiLU(), nn.Linear(w, w))

    def forward(self, x):
        return self.mlp(x)


class ResBlock(Mlp):
    def __init__(self, w):
        super().__init__(w, w)
        self.in_ln = nn.LayerNorm(w, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(w, 3 * w))

    def forward(self, x, active):
        shift, scale, gate = self.adaLN_modulation[1](active).chunk(3, -1)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.in_ln(x), 1 + scale)))


class FinalLayer(nn.Module):
    def __init__(self, w, channels):
        super().__init__()
        self.linear = nn.Linear(w, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(w, 2 * w))

    def forward(self, x, active):
        shift, scale = self.adaLN_modulation[1](active).chunk(2, -1)
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear(torch.addcmul(shift, normed, 1 + scale))


class MlpHead(nn.Module):
    """MAR's SimpleMLPAdaLN: x [..., C], t [..., 1] (1000 t for t in [0, 1]), f [..., d] -> [..., C].

    SiLU of the condition is taken once, not in each modulation layer.
    """

    def __init__(self, channels=4, condition=128, w=128, depth=3, time_features=64, out=None):
        super().__init__()
        half = time_features // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_embed = Mlp(time_features, w)
        self.cond_embed, self.input_proj = nn.Linear(condition, w), nn.Linear(channels, w)
        self.res_blocks = nn.ModuleList([ResBlock(w) for _ in range(depth)])
        self.final_layer = FinalLayer(w, channels if out is None else out)

    def forward(self, x, t, f):
        angles = t * self.frequencies
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        active = F.silu(time + self.cond_embed(f))
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, active)
        return self.final_layer(h, active)

    def zero_modulation(self):
        """The initial values of MAR: blocks are identities and the head returns 0."""
        layers = [block.adaLN_modulation[1] for block in self.res_blocks]
        for layer in layers + [self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class Network(nn.Module):
    """The AR-diffusion network: generator and guidance network."""

    def __init__(self, shape, head, backbone=Backbone):
        super().__init__()
        self.backbone = backbone(**shape)
        self.head = MlpHead(**head)
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def velocity(self, x, t, f):
        return self.head(x, t * TIME_SCALE, f)

    def generate(self, noise, labels):
        """q = eps - v(eps, 1 | f(eps)): one pass."""
        one = noise.new_ones(1, 1, 1)
        return noise - self.velocity(noise, one, self.backbone(noise, labels))


def load_teacher(folder):
    """Frozen teacher, normalised codebook [V, C] and the shape of the teacher's backbone."""
    tensors, metadata = read_safetensors(pathlib.Path(folder) / "teacher.safetensors")
    number = {key: int(metadata[key])
              for key in ("channels", "width", "layers", "heads", "tokens", "classes", "codes")}
    shape = {"channels": number["channels"], "d": number["width"], "layers": number["layers"],
             "heads": number["heads"], "tokens": number["tokens"], "classes": number["classes"]}
    teacher = Teacher(number["codes"], **shape)
    teacher.load_state_dict(tensors)
    teacher.requires_grad_(False)
    tokenizer, _ = read_safetensors(pathlib.Path(folder) / "tokenizer.safetensors")
    codebook = (tokenizer["codebook"] - tokenizer["mean"]) / tokenizer["std"]
    return teacher, codebook, shape
