#!/usr/bin/env python3
"""PyTorch DCP's side of `scripts/bench checkpoint`; answers commands as dd2-bench-checkpoint does.

usage: checkpoint_rival.py FOLDER SHAPES, alone or under torchrun; SHAPES a JSON file {name: shape} of one network
    step N        N matrix products
    save STAGER N async_save: until the call returns, until the state may change (without what the N matrix products
                  of a step between the two took), until it is on the disk
    make ID       a checkpoint by all processes
    load ID       into tensors that were touched before
"""
import json
import os
import pathlib
import shutil
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._state_dict_utils import _create_cpu_state_dict
from torch.distributed.checkpoint.staging import (BlockingAsyncStager, DefaultStager,
                                                  StagingOptions)
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def state_of(shapes):
    """The same state as ours: two networks; parameters on every process, moments and EMA sharded."""
    mesh = init_device_mesh("cpu", (WORLD,)) if WORLD > 1 else None

    def slice_of(shape):
        if mesh is None:
            return torch.randn(shape)
        rows = -(-shape[0] // WORLD)
        begin, end = min(RANK * rows, shape[0]), min((RANK + 1) * rows, shape[0])
        local = torch.randn([end - begin, *shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape),
                                  stride=stride)

    state = {}
    for network in ("generator", "guidance"):
        for name, shape in shapes.items():
            state[f"{network}.param/{name}"] = torch.randn(shape)
            for group in ("adam_m", "adam_v", "ema"):
                state[f"{network}.{group}/{name}"] = slice_of(shape)
    return state


def stager_of(kind, state):
    """In PyTorch 2.11 a DefaultStager serves one save: its close() after the copy leaves nothing to go on with."""
    if kind == "default":
        return None  # what async_save makes itself
    if kind == "async":
        return DefaultStager(StagingOptions(use_pinned_memory=False, use_shared_memory=False,
                                            use_async_staging=True, use_non_blocking_copy=False))
    if kind == "cached":
        # Its cache wants pinned memory, which wants a GPU; ordinary memory put there by hand does as well.
        stager = BlockingAsyncStager(cache_staged_state_dict=True)
        stager.state_dict_cache = _create_cpu_state_dict(state)
        return stager
    raise SystemExit(f"no stager: {kind}")


class Side:
    def __init__(self, folder, shapes):
        self.folder, self.state, self.saves = folder, state_of(shapes), 0
        self.cached = None
        self.factor, self.product = torch.ones(1024, 1024), torch.empty(1024, 1024)

    def compute(self, products):
        """On one thread; the other core is free for the copy, as on our side. Seconds."""
        begin, threads = time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(products):
            torch.mm(self.factor, self.factor, out=self.product)
        torch.set_num_threads(threads)
        return time.perf_counter() - begin

    def step(self, products):
        return {"seconds": self.compute(int(products))}

    def save(self, kind, products):
        stager = self.cached if kind == "cached" and self.cached else stager_of(kind, self.state)
        if kind == "cached":
            self.cached = stager  # kept over all saves
        self.saves += 1
        path = self.folder / f"dcp-{self.saves}"
        begin = time.perf_counter()
        response = dcp.async_save(self.state, storage_writer=dcp.FileSystemWriter(path),
                                  async_stager=stager, no_dist=True)
        returned = time.perf_counter()
        computed = self.compute(int(products))
        if isinstance(response, AsyncSaveResponse):
            response.staging_completion.result()
            upload = response.upload_completion
        else:
            upload = response
        free = time.perf_counter()
        upload.result()
        done = time.perf_counter()
        shutil.rmtree(path)
        return {"call": returned - begin, "stall": free - begin - computed, "step": computed, "write": done - free}

    def make(self, name):
        dcp.save(self.state, checkpoint_id=self.folder / name)
        return {}

    def load(self, name):
        if WORLD > 1:
            dist.barrier()
        begin = time.perf_counter()
        dcp.load(self.state, checkpoint_id=self.folder / name)
        if WORLD > 1:
            dist.barrier()
        return {"seconds": time.perf_counter() - begin}


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if WORLD > 1:
        dist.init_process_group("gloo")
    side = Side(pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text()))
    if RANK == 0:
        print(json.dumps({"ready": True}), flush=True)
    while True:
        # Only rank 0 has our input.
        line = [sys.stdin.readline().split() if RANK == 0 else None]
        if WORLD > 1:
            dist.broadcast_object_list(line)
        if not line[0]:
            break
        answer = getattr(side, line[0][0])(*line[0][1:])
        if RANK == 0:
            print(json.dumps(answer), flush=True)
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
