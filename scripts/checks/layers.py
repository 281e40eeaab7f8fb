#!/usr/bin/env python3
"""Fails when an #include points up the layer order, or a library leaks out of its one home.

usage: layers.py ROOT
"""
import re
import sys

from source import read, source_files

# What a folder may include besides itself. The longest prefix of a file's path counts.
MAY_INCLUDE = {
    "common": (),
    "proto": ("common",),
    "storage": ("common", "proto"),
    "coordinator": ("common", "proto", "storage"),
    "worker/agent": ("common", "proto", "storage"),
    "worker/kernels": ("common", "worker/torch.h"),
    "worker/models": ("common", "proto", "storage", "worker/kernels", "worker/torch.h"),
    "worker/distill": ("common", "proto", "storage", "worker/models", "worker/kernels", "worker/torch.h"),
    "worker/parallel": ("common", "proto", "storage", "worker/models", "worker/kernels", "worker/torch.h"),
    "worker/engine": ("common", "proto", "storage", "worker/models", "worker/distill",
                      "worker/parallel", "worker/kernels", "worker/torch.h"),
    "worker": ("common", "proto", "storage"),
    "cli": ("common", "proto", "storage"),
    "tests": ("common", "proto", "storage", "coordinator", "worker", "cli"),
}
# Library -> prefixes of the files that may include it.
HOMES = {
    r"rocksdb/": ("storage/rocks_",),
    r"(torch|ATen|c10)/": ("worker/torch.h", "worker/models/", "worker/distill/",
                           "worker/parallel/", "worker/engine/", "tests/unit/", "tests/bench/",
                           "tests/support/far_device/"),
    r"torch/csrc/distributed/|gloo/": ("worker/parallel/gloo_",),
    r"mpi\.h": ("worker/parallel/mpi_",),
    r"cuda_|nccl\.h": ("worker/kernels/",),
    r"boost/asio": ("common/asio.h",),
    r"boost/json": ("common/json.h",),
    r"boost/beast": ("coordinator/http_", "cli/http_client"),
    r"google/protobuf/": ("proto/wire.",),
    r"yaml-cpp/": ("common/config",),
    r"spdlog/|fmt/": ("common/log.",),
    r"xxh": ("common/hash.cc",),
    r"CLI/": ("cli/",),
    r"png\.h": ("worker/engine/png.", "tests/"),
    r"zlib\.h": ("storage/npz", "storage/torch_file.", "worker/engine/dataset.", "tests/"),
    r"tl/": ("common/result.h",),
    r"gtest/|gmock/": ("tests/",),
}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.M)


def room_of(path):
    return max((room for room in MAY_INCLUDE if path.startswith(room + "/")), key=len, default="")


def may_include(room, target):
    return any(target == allowed or target.startswith(allowed + "/")
               for allowed in (room,) + MAY_INCLUDE[room])


def problems(root):
    for path in source_files(root):
        text, room = read(root, path), room_of(path)
        for match in INCLUDE.finditer(text):
            target = match.group(1)
            where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
            if room_of(target) and not may_include(room, target):
                yield f"{where}: {room}/ may not include {target}"
            for library, homes in HOMES.items():
                if re.match(library, target) and not path.startswith(homes):
                    yield f"{where}: <{target}> has its home in {' or '.join(homes)}"


if __name__ == "__main__":
    found = list(problems(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
