#!/usr/bin/env python3
"""Writes torch_files/: what torch.save makes of every structure that a checkpoint may have, with real
PyTorch (2.11.0), and a few files that nobody should open with it.

usage: make_torch_files.py    (a Python with torch; scripts/torch_venv.sh makes one)

Values follow a formula, so that a test needs no Python: element k (row-major) of the tensor number j
that a file holds is value(j, k) below, in every type exact except 'double'.
"""
import argparse
import collections
import os
import pathlib
import pickle
import struct
import zipfile

import torch

FOLDER = pathlib.Path(__file__).with_name("torch_files")


def value(j, k):
    return (k * 7 + j * 3) % 32 - 8 + 0.25 * (k % 4)


def filled(j, *shape, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    return torch.tensor([value(j, k) for k in range(count)], dtype=torch.float64).reshape(shape).to(dtype)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        with torch.no_grad():
            for j, (name, tensor) in enumerate(self.state_dict().items()):
                tensor.copy_(filled(j, *tensor.shape))


def state(module=None):
    return (module or Net()).state_dict()


def plain(names=("a.weight", "a.bias")):
    return {name: filled(j, 2 + j, 3) for j, name in enumerate(names)}


def save(name, content, **options):
    torch.save(content, FOLDER / name, **options)


def optimizer_state():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.5)
    for j, parameter in enumerate(net.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def attributed():
    tensor = filled(0, 2, 3)
    tensor.note = "as FSDP does"
    return tensor


def types():
    return {name: filled(j, 3, 5, dtype=getattr(torch, name)) for j, name in enumerate(
        ["float32", "float16", "bfloat16", "float64"])} | {
            "int64": torch.arange(6) - 2, "int32": torch.arange(6, dtype=torch.int32) - 2,
            "uint8": torch.arange(6, dtype=torch.uint8), "bool": torch.tensor([True, False, True])}


def special():
    """Corners of fp16 and bf16: the smallest, subnormal ones, both zeros, the largest, infinities."""
    bits = torch.tensor([0x0001, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0x7c00, -0x8000, -0x7fff, -0x0400],
                        dtype=torch.int16)
    return {"half": bits.view(torch.float16).clone(), "brain": bits.view(torch.bfloat16).clone()}


def strided():
    base = filled(0, 4, 6)
    return {"transposed": base.t(), "columns": base[:, 1:5:2], "rows": base[1:3], "row": base[2],
            "permuted": filled(1, 2, 3, 4).permute(2, 0, 1), "scalar": base[3, 2], "empty": torch.zeros(0, 4)}


def namespace():
    # What LlamaGen's trainer keeps beside the weights.
    return {"model": state(), "ema": state(), "steps": 300000, "optimizer": optimizer_state(),
            "args": argparse.Namespace(lr=1e-4, image_size=256, betas=(0.9, 0.95), note=None, big=2 ** 70)}


class Calls:
    """Unpickled, it calls a function."""
    def __init__(self, function, *arguments):
        self.way = (function, arguments)

    def __reduce__(self):
        return self.way


def global_of(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def zipped(name, program, compression=zipfile.ZIP_STORED, byteorder=b"little", more=()):
    """A zip archive as torch.save lays it out, around a pickle made by hand."""
    data = struct.pack("<6f", *[value(0, k) for k in range(6)])
    with zipfile.ZipFile(FOLDER / name, "w") as archive:
        for path, content in [("x/data.pkl", program), ("x/byteorder", byteorder), ("x/data/0", data),
                              ("x/version", b"3\n"), *more]:
            archive.writestr(zipfile.ZipInfo(path), content, compression)  # without the time of day


def zip64(name, source):
    """The archive `source` with all offsets and sizes of its directory in 64 bits, as above 4 GB."""
    raw = (FOLDER / source).read_bytes()
    directory, count = b"", 0
    with zipfile.ZipFile(FOLDER / source) as archive:
        for info in archive.infolist():
            path, full = info.filename.encode(), 0xffffffff
            extra = struct.pack("<HHQQQ", 1, 24, info.file_size, info.file_size, info.header_offset)
            directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, info.flag_bits, 0, 0, 0, info.CRC, full,
                                     full, len(path), len(extra), 0, 0, 0, 0, full) + path + extra
            count += 1
        begin = archive.start_dir
    end = begin + len(directory)
    (FOLDER / name).write_bytes(
        raw[:begin] + directory +
        struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), begin) +
        struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1) +
        struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xffff, 0xffff, 0xffffffff, 0xffffffff, 0))


def tensor_program(offset=0, shape=(2, 3), stride=(3, 1), elements=6, storage=global_of("torch", "FloatStorage"),
                   rebuild="_rebuild_tensor_v2", tail=b""):
    """The pickle of {"t": tensor} over storage "0"."""
    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)
    def text(t):
        return b"X" + struct.pack("<I", len(t)) + t.encode()
    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"
    persistent = b"(" + text("storage") + storage + text("0") + text("cpu") + number(elements) + b"tQ"
    return (b"\x80\x02}" + text("t") + global_of("torch._utils", rebuild) + b"(" + persistent + number(offset) +
            numbers(shape) + numbers(stride) + b"\x89" + global_of("collections", "OrderedDict") + b")R" + tail +
            b"tRs.")


SMALLER = {
    # Sizes of the tensor lists in tensors/, and what they become; blocks from the third on are left out.
    "var_d16": {1024: 8, 3072: 24, 4096: 32, 6144: 48, 2048: 16, 16: 2, 680: 14, 10: 3, 1001: 4, 32: 4},
    "vae_ch160v4096z32": {160: 2, 320: 4, 640: 8, 1920: 24, 32: 4, 4096: 32},
    "llamagen_GPT-B": {768: 8, 2304: 24, 2048: 12, 16384: 16, 1001: 4},
    "llamagen_vq_ds16": {128: 2, 256: 4, 512: 8, 16384: 16, 65536: 64, 8: 3},
}


def small(network, shift=0):
    """A network of the exact structure with tiny sizes; tensor j of its parameters has the values of j + shift."""
    tensors = collections.OrderedDict()
    j = shift
    for line in (pathlib.Path(__file__).with_name("tensors") / f"{network}.tsv").read_text().splitlines()[1:]:
        name, shape, _, kind = line.split("\t")
        if name.split(".")[0] in ("blocks", "layers") and int(name.split(".")[1]) > 1:
            continue
        sizes = [SMALLER[network].get(int(size), int(size)) for size in shape.split("x")]
        if name == "lvl_1L":
            tensors[name] = torch.tensor([[k for k, side in enumerate((1, 2, 3)) for _ in range(side * side)]])
        elif kind == "buffer":
            tensors[name] = torch.full(sizes, float("-inf"))
        else:
            tensors[name] = filled(j, *sizes)
            j += 1
    return tensors


def teachers():
    save("small_var.pt", small("var_d16"))
    save("small_var_vq.pt", small("vae_ch160v4096z32"))
    save("small_var_trainer.pt", {"epoch": 1, "trainer": {
        "var_wo_ddp": small("var_d16"), "vae_local": small("vae_ch160v4096z32")}, "args": {}})
    save("small_gpt_384.pt", {"model": small("llamagen_GPT-B")})
    save("small_gpt_both.pt", {"model": small("llamagen_GPT-B"), "ema": small("llamagen_GPT-B", 5), "steps": 7,
                               "args": argparse.Namespace(lr=1e-4)})
    save("small_gpt_half.pt", {name: tensor.half() for name, tensor in small("llamagen_GPT-B").items()})
    save("small_vq.pt", {"model": small("llamagen_vq_ds16")})
    bad = small("llamagen_GPT-B")
    bad["layers.1.attention.wo.weight"][3, 2] = float("nan")
    save("bad_nan.pt", bad)
    bad = small("llamagen_GPT-B")
    del bad["layers.1.attention.wo.weight"]
    bad["layers.1.attention.new"] = torch.zeros(2)
    bad["norm.weight"] = torch.zeros(9)
    save("bad_nearly.pt", bad)


def hostile():
    save("bad_system.pt", {"model": plain(), "hook": Calls(os.system, "touch /tmp/dd2-was-run")})
    save("bad_eval_legacy.pt", [Calls(eval, "1 + 1"), filled(0, 2)], _use_new_zipfile_serialization=False)
    save("bad_module.pt", Net())
    save("bad_sparse.pt", {"s": torch.eye(3).to_sparse()})
    save("bad_expanded.pt", {"e": filled(0, 1, 3).expand(1000, 3)})
    save("bad_protocol4.pt", plain(), pickle_protocol=4)
    save("bad_int16.pt", {"s": torch.arange(3, dtype=torch.int16)})
    zipped("bad_compressed.pt", tensor_program(), compression=zipfile.ZIP_DEFLATED)
    zipped("bad_big_endian.pt", tensor_program(), byteorder=b"big")
    zipped("bad_script.pt", tensor_program(), more=[("x/constants.pkl", b"\x80\x02).")])
    zipped("bad_two_roots.pt", tensor_program(), more=[("y/data.pkl", b"\x80\x02).")])
    zipped("bad_offset.pt", tensor_program(offset=1))
    zipped("bad_negative_offset.pt", tensor_program(offset=-1))
    zipped("bad_stride.pt", tensor_program(stride=(4, 1)))
    zipped("bad_negative_stride.pt", tensor_program(offset=5, stride=(-3, -1)))
    zipped("bad_overflow.pt", tensor_program(shape=(2 ** 40, 2 ** 40), stride=(2 ** 40, 1)))
    zipped("bad_elements.pt", tensor_program(elements=2 ** 62))
    zipped("bad_more_elements.pt", tensor_program(elements=7))
    zipped("bad_dimensions.pt", tensor_program(shape=(1,) * 200, stride=(1,) * 200))
    zipped("bad_called_dict.pt", b"\x80\x02" + global_of("torch", "Size") + b"}R.")
    zipped("bad_text_length.pt", b"\x80\x02X\xff\xff\xff\xffabc.")
    zipped("bad_deep_lists.pt", b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".")
    zipped("bad_cycle.pt", b"\x80\x02]q\x00h\x00a.")
    # 28 lists, each twice in the next: 2^28 values when it is unfolded, over nothing at all.
    zipped("bad_unfolds.pt", b"\x80\x02(]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(28)) + b"t.")
    zipped("bad_two_names.pt", tensor_program()[:-1] + tensor_program()[3:])


def main():
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    torch.manual_seed(0)
    save("state_dict.pt", state())
    ordered = collections.OrderedDict(plain())
    save("ordered_dict.pt", ordered)
    save("plain_dict.pt", plain())
    save("one_entry.pt", plain(["only"]))
    save("model.pt", {"model": state()})
    save("model_plain.pt", {"model": plain()})
    save("namespace.pt", namespace())
    save("parameters.pt", {name: torch.nn.Parameter(tensor) for name, tensor in plain().items()})
    save("optimizer.pt", optimizer_state())
    save("types.pt", types())
    save("special.pt", special())
    save("list.pt", [filled(0, 2), filled(1, 3), (filled(2, 4),)])
    save("single.pt", filled(0, 3, 2))
    shared = filled(0, 4, 3)
    save("shared.pt", {"tied": shared, "again": shared, "half": shared[2:]})
    save("strided.pt", strided())
    save("from_type.pt", {"t": attributed()})
    save("trainer.pt", {"epoch": 3, "iter": 0, "trainer": {
        "var_wo_ddp": plain(["v"]), "vae_local": plain(["w"]), "var_opt": optimizer_state(),
        "config": {"label_smooth": 0.0}}, "args": collections.OrderedDict(bs=768, note="x", amp=True)})
    save("legacy.pt", state(), _use_new_zipfile_serialization=False)
    save("legacy_types.pt", types() | {"size": torch.Size([3, 2])}, _use_new_zipfile_serialization=False)
    save("legacy_shared.pt", {"tied": shared, "again": shared.t()}, _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    save("no_sums.pt", plain())
    torch.serialization.set_crc32_options(True)
    zipped("untyped.pt", tensor_program(
        storage=global_of("torch.storage", "UntypedStorage"), elements=24, rebuild="_rebuild_tensor_v3",
        tail=global_of("torch", "float32")))
    zip64("zip64.pt", "plain_dict.pt")
    teachers()
    hostile()


if __name__ == "__main__":
    main()
