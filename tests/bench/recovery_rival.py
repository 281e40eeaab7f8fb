#!/usr/bin/env python3
"""The rival of `scripts/bench recovery`: guidance updates under torchrun with restarts.

usage: torchrun ... recovery_rival.py JOB FOLDER. It is what PyTorch's own elastic example does: every process
loads the last checkpoint, trains, and rank 0 saves every `checkpoint_every` updates; when a process dies,
torchrun ends the others and starts all of them again. Rank 0 writes a line {"update", "time"} into
FOLDER/updates.jsonl for each finished update, every process its pid into FOLDER/pid-RANK.
"""
import datetime
import json
import os
import pathlib
import sys
import time

import torch
import torch.distributed as dist

import networks
import rival
import steps


def save(path, update, trained):
    state = {"update": update}
    for name, one in trained.items():
        state[name] = {"flat": one.flat, "adam": one.adam.state_dict(), "updates": one.updates, "ema": one.ema}
    torch.save(state, path.with_suffix(".partial"))
    with open(path.with_suffix(".partial"), "rb") as file:
        os.fsync(file.fileno())
    path.with_suffix(".partial").rename(path)


@torch.no_grad()
def load(path, trained):
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, one in trained.items():
        one.flat.copy_(state[name]["flat"])
        one.adam.load_state_dict(state[name]["adam"])
        one.updates = state[name]["updates"]
        if one.ema is not None:
            one.ema.copy_(state[name]["ema"])
    return state["update"]


def main():
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    folder = pathlib.Path(sys.argv[2])
    torch.set_num_threads(job["threads"])
    # After some restarts Gloo's processes do not find each other: then torchrun shall start them again.
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    rank, world = dist.get_rank(), dist.get_world_size()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    settings = job["settings"]
    teacher, codebook, shape = networks.load_teacher(settings["teacher"])
    draw = steps.Draws(settings["batch"] // world, shape)
    trained = {"generator": steps.Trained(rival.make_network(settings, shape, teacher), settings, ema=True),
               "guidance": steps.Trained(rival.make_network(settings, shape, teacher), settings, ema=False)}
    path = folder / "checkpoint.pt"
    update = load(path, trained)
    torch.manual_seed(100 + rank)
    while True:
        rate = steps.scheduled(settings["guidance_lr"], settings["guidance_final_lr_ratio"], settings["warmup"],
                               update, settings["steps"])
        steps.guidance_update(trained["guidance"], trained["generator"], settings, draw, rate)
        update += 1
        if rank != 0:
            continue
        with open(folder / "updates.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"update": update, "time": time.time()}) + "\n")
        if update % job["checkpoint_every"] == 0:
            save(path, update, trained)


if __name__ == "__main__":
    main()
