"""VAR and LlamaGen in PyTorch, in small, from their description (models.md 1 and 2): what `dd2 teacher import`,
`logits`, `decode` and `encode` are held against. Weights come into being, at random, where a forward pass asks for
them first, under the names of the released files."""

import math

import torch
import torch.nn.functional as F

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PHI_OF_SCALE = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


class Weights(dict):
    """A state_dict that grows."""

    def __call__(self, name, *shape, spread=None, mean=0.0):
        if name not in self:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
            self[name] = mean + torch.randn(shape) * (spread or fan_in ** -0.5)
        return self[name]

    def linear(self, name, x, out, bias=True):
        return F.linear(x, self(name + ".weight", out, x.shape[-1]), self(name + ".bias", out) if bias else None)

    def conv(self, name, x, out, kernel=3, stride=1, padding=1):
        weight = self(name + ".weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self(name + ".bias", out), stride, padding if kernel > 1 else 0)

    def norm(self, name, x):
        width = x.shape[1]
        return F.group_norm(x, 32, self(name + ".weight", width, mean=1.0), self(name + ".bias", width), 1e-6)


class Vqgan:
    """The convolutional encoder and decoder of both tokenizers."""

    def __init__(self, weights, is_var, width=32, latent=32):
        self.w, self.is_var, self.width, self.latent = weights, is_var, width, latent
        self.widths = [width * m for m in (1, 1, 2, 2, 4)]

    def res(self, name, x, out):
        h = self.w.conv(name + ".conv1", F.silu(self.w.norm(name + ".norm1", x)), out)
        h = self.w.conv(name + ".conv2", F.silu(self.w.norm(name + ".norm2", h)), out)
        return h + (x if x.shape[1] == out else self.w.conv(name + ".nin_shortcut", x, out, kernel=1))

    def attention(self, name, x):
        batch, width, height, _ = x.shape
        h = self.w.norm(name + ".norm", x)
        if self.is_var:
            q, k, v = self.w.conv(name + ".qkv", h, 3 * width, kernel=1).chunk(3, 1)
        else:
            q, k, v = (self.w.conv(f"{name}.{part}", h, width, kernel=1) for part in "qkv")
        q, k, v = (t.reshape(batch, width, -1) for t in (q, k, v))
        mixed = v @ torch.softmax(q.transpose(1, 2) @ k * width ** -0.5, -1).transpose(1, 2)
        return x + self.w.conv(name + ".proj_out", mixed.view(batch, width, height, -1), width, kernel=1)

    def middle(self, part, x):
        names = ("block_1", "attn_1", "block_2") if self.is_var else ("0", "1", "2")
        x = self.res(f"{part}.mid.{names[0]}", x, x.shape[1])
        x = self.attention(f"{part}.mid.{names[1]}", x)
        return self.res(f"{part}.mid.{names[2]}", x, x.shape[1])

    def level(self, part, index, x, out, blocks, attends):
        if self.is_var:
            name = f"{part}.{'down' if part == 'encoder' else 'up'}.{index}"
        else:
            name = f"{part}.conv_blocks.{index if part == 'encoder' else 4 - index}"
        for i in range(blocks):
            x = self.res(f"{name}.{'block' if self.is_var else 'res'}.{i}", x, out)
            if attends:
                x = self.attention(f"{name}.attn.{i}", x)
        return name, x

    def encode(self, images):
        x = self.w.conv("encoder.conv_in", images, self.width)
        for index, out in enumerate(self.widths):
            name, x = self.level("encoder", index, x, out, 2, index == 4)
            if index < 4:
                x = self.w.conv(name + ".downsample.conv", F.pad(x, (0, 1, 0, 1)), out, stride=2, padding=0)
        x = self.middle("encoder", x)
        return self.w.conv("encoder.conv_out", F.silu(self.w.norm("encoder.norm_out", x)), self.latent)

    def decode(self, latents):
        x = self.middle("decoder", self.w.conv("decoder.conv_in", latents, self.widths[-1]))
        for index in reversed(range(5)):
            name, x = self.level("decoder", index, x, self.widths[index], 3, index == 4)
            if index > 0:
                x = self.w.conv(name + ".upsample.conv", F.interpolate(x, scale_factor=2.0), x.shape[1])
        return self.w.conv("decoder.conv_out", F.silu(self.w.norm("decoder.norm_out", x)), 3)


class VarTokenizer:
    CODES, CHANNELS = 64, 32

    def __init__(self):
        self.w = Weights()
        self.net = Vqgan(self.w, is_var=True, latent=self.CHANNELS)
        self.w("quantize.embedding.weight", self.CODES, self.CHANNELS, spread=1.0)

    def grow(self, codes, scale):
        h = codes if scale == 9 else F.interpolate(codes, size=(16, 16), mode="bicubic")
        name = f"quantize.quant_resi.qresi_ls.{PHI_OF_SCALE[scale]}"
        return 0.5 * h + 0.5 * self.w.conv(name, h, self.CHANNELS)

    def map_of(self, ids, scale):
        codes = F.embedding(ids, self.w["quantize.embedding.weight"])
        return codes.transpose(1, 2).reshape(len(ids), self.CHANNELS, SIDES[scale], SIDES[scale])

    def encode(self, images):
        rest = self.w.conv("quant_conv", self.net.encode(images), self.CHANNELS)
        book, found = self.w["quantize.embedding.weight"], []
        for scale, side in enumerate(SIDES):
            z = rest if scale == 9 else F.adaptive_avg_pool2d(rest, side)
            rows = z.permute(0, 2, 3, 1).reshape(-1, self.CHANNELS)
            found.append(torch.cdist(rows.double(), book.double()).argmin(1).view(len(images), -1))
            rest = rest - self.grow(self.map_of(found[-1], scale), scale)
        return torch.cat(found, 1)

    def sums(self, tokens):
        return self.sums_of(F.embedding(tokens, self.w["quantize.embedding.weight"]))

    def sums_of(self, codes):
        """f_hat after each scale, of codes [B, 680, C] that may be any vectors."""
        total, sums = 0, []
        for scale, part in enumerate(codes.split([side * side for side in SIDES], 1)):
            side = SIDES[scale]
            total = total + self.grow(part.transpose(1, 2).reshape(len(codes), self.CHANNELS, side, side), scale)
            sums.append(total)
        return sums

    def rows(self, tokens):
        sums = self.sums(tokens)
        resized = [F.adaptive_avg_pool2d(sums[k], SIDES[k + 1]) for k in range(9)]
        return torch.cat([r.flatten(2).transpose(1, 2) for r in resized], 1)

    def decode(self, f_hat):
        return self.net.decode(self.w.conv("post_quant_conv", f_hat, self.CHANNELS)).clamp(-1, 1)


class Var:
    DEPTH, WIDTH, HEADS, CLASSES = 2, 64, 2, 10

    def __init__(self, vocabulary):
        self.w, self.vocabulary = Weights(), vocabulary

    def attention(self, name, x, mask):
        batch, length, width = x.shape
        bias = torch.cat((self.w(name + ".q_bias", width), torch.zeros(width), self.w(name + ".v_bias", width)))
        qkv = F.linear(x, self.w(name + ".mat_qkv.weight", 3 * width, width), bias)
        q, k, v = qkv.view(batch, length, 3, self.HEADS, -1).permute(2, 0, 3, 1, 4)
        scale = self.w(name + ".scale_mul_1H11", 1, self.HEADS, 1, 1, spread=0.1, mean=math.log(4.0))
        weights = F.normalize(q, dim=-1) * scale.clamp_max(math.log(100)).exp() @ F.normalize(k, dim=-1).transpose(-1, -2)
        mixed = (weights + mask).softmax(-1) @ v
        return self.w.linear(name + ".proj", mixed.transpose(1, 2).reshape(batch, length, width), width)

    def logits(self, rows, labels):
        width, levels = self.WIDTH, torch.cat([torch.full((s * s,), k) for k, s in enumerate(SIDES)])
        of_class = self.w("class_emb.weight", self.CLASSES + 1, width)[labels]
        start = of_class[:, None] + self.w("pos_start", 1, 1, width)
        x = torch.cat((start, self.w.linear("word_embed", rows, width)), 1)
        x = x + self.w("lvl_embed.weight", 10, width)[levels] + self.w("pos_1LC", 1, len(levels), width)
        mask = torch.zeros(len(levels), len(levels)).masked_fill(levels[:, None] < levels, -math.inf)
        condition = F.silu(of_class)
        for i in range(self.DEPTH):
            name = f"blocks.{i}"
            ada = self.w.linear(name + ".ada_lin.1", condition, 6 * width).view(-1, 1, 6, width)
            gate1, gate2, scale1, scale2, shift1, shift2 = ada.unbind(2)
            h = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale1) + shift1
            x = x + self.attention(name + ".attn", h, mask) * gate1
            h = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale2) + shift2
            h = F.gelu(self.w.linear(name + ".ffn.fc1", h, 4 * width), approximate="tanh")
            x = x + self.w.linear(name + ".ffn.fc2", h, width) * gate2
        scale, shift = self.w.linear("head_nm.ada_lin.1", condition, 2 * width).view(-1, 1, 2, width).unbind(2)
        return self.w.linear("head", F.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift, self.vocabulary)

    def guided(self, cond, uncond, cfg):
        ramp = torch.cat([torch.full((s * s, 1), cfg * k / 9) for k, s in enumerate(SIDES)])
        return (1 + ramp) * cond - ramp * uncond

    def state_dict(self):
        """With the buffers that the files hold beside the weights."""
        levels = torch.cat([torch.full((s * s,), k) for k, s in enumerate(SIDES)])
        buffers = {"lvl_1L": levels[None], "attn_bias_for_masking": torch.zeros(1, 1, 680, 680)}
        for i in range(self.DEPTH):
            buffers[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(self.WIDTH)
        return {**self.w, **buffers}


class LlamaGenTokenizer:
    CODES, CHANNELS, LATENT = 64, 8, 32

    def __init__(self):
        self.w = Weights()
        self.net = Vqgan(self.w, is_var=False, latent=self.LATENT)
        self.w("quantize.embedding.weight", self.CODES, self.CHANNELS, spread=1.0)

    def book(self):
        return F.normalize(self.w["quantize.embedding.weight"], dim=-1)

    def encode(self, images):
        z = self.w.conv("quant_conv", self.net.encode(images), self.CHANNELS, kernel=1)
        rows = F.normalize(z.permute(0, 2, 3, 1).reshape(-1, self.CHANNELS), dim=-1)
        return torch.cdist(rows.double(), self.book().double()).argmin(1).view(len(images), -1)

    def codes(self, tokens):
        return self.book()[tokens].transpose(1, 2).reshape(len(tokens), self.CHANNELS, 16, 16)

    def decode(self, codes):
        return self.net.decode(self.w.conv("post_quant_conv", codes, self.LATENT, kernel=1))


class LlamaGen:
    LAYERS, WIDTH, HEADS, HIDDEN, CLASSES = 2, 64, 2, 256, 10

    def __init__(self, vocabulary):
        self.w, self.vocabulary = Weights(), vocabulary

    def rms(self, name, x):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return normed * self.w(name + ".weight", self.WIDTH, mean=1.0)

    def turn(self, x):
        """2-D rotary embedding of [B, n, heads, 32]; that of the class token is zero."""
        pairs = self.WIDTH // self.HEADS // 4
        steps = 10000.0 ** (-torch.arange(pairs) / pairs)
        cell = torch.arange(x.shape[1] - 1)
        angles = torch.cat(((cell // 16)[:, None] * steps, (cell % 16)[:, None] * steps), 1)
        table = torch.cat((torch.zeros(1, 2 * pairs, dtype=torch.complex64), torch.polar(torch.ones_like(angles), angles)))
        turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * table[:, None]
        return torch.view_as_real(turned).flatten(-2)

    def logits(self, tokens, labels):
        of_class = self.w("cls_embedding.embedding_table.weight", self.CLASSES + 1, self.WIDTH)[labels]
        table = self.w("tok_embeddings.weight", self.vocabulary, self.WIDTH)
        x = torch.cat((of_class[:, None], table[tokens[:, :-1]]), 1)
        batch, length, width = x.shape
        for i in range(self.LAYERS):
            name = f"layers.{i}"
            qkv = self.w.linear(name + ".attention.wqkv", self.rms(name + ".attention_norm", x), 3 * width, bias=False)
            q, k, v = qkv.view(batch, length, 3, self.HEADS, -1).unbind(2)
            q, k, v = (t.transpose(1, 2) for t in (self.turn(q), self.turn(k), v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
            x = x + self.w.linear(name + ".attention.wo", mixed, width, bias=False)
            h = self.rms(name + ".ffn_norm", x)
            gate = F.silu(self.w.linear(name + ".feed_forward.w1", h, self.HIDDEN, bias=False))
            up = self.w.linear(name + ".feed_forward.w3", h, self.HIDDEN, bias=False)
            x = x + self.w.linear(name + ".feed_forward.w2", gate * up, width, bias=False)
        return self.w.linear("output", self.rms("norm", x), self.vocabulary, bias=False)

    def guided(self, cond, uncond, scale):
        return uncond + scale * (cond - uncond)
