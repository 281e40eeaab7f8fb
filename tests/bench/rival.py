#!/usr/bin/env python3
"""Times the PyTorch eager rival in one process, or in several under torchrun; rank 0 writes JSON.

usage: rival.py JOB OUTPUT, JOB a JSON file with
    what      "csd", "gts" or "peak"
    threads   compute threads of each process
    settings  of the phase, with teacher (folder), cfg_scale and head; gts: with sequences and table
              (true: logits of the teacher from a table in memory, false: asked every step)
    count     cycles or steps
"""
import json
import math
import os
import sys
import time

import torch
import torch.distributed as dist

import networks
import steps

STEPS_MIN = 10
SECONDS_MAX = 120.0
PEAK_SIZE = 2048
PEAK_SECONDS = 3.0


def make_network(settings, shape, teacher):
    """Same start on every process: the teacher's backbone, a random head that is not the identity."""
    torch.manual_seed(settings.get("seed", 1))
    head = dict(settings["head"], channels=shape["channels"], condition=shape["d"])
    network = networks.Network(shape, head)
    network.backbone.load_state_dict(teacher.backbone.state_dict())
    return network


def csd(settings, draw, teacher, codebook, shape):
    """The i-th cycle as a function of i."""
    generator = steps.Trained(make_network(settings, shape, teacher), settings, ema=True)
    guidance = steps.Trained(make_network(settings, shape, teacher), settings, ema=False)
    return lambda i: steps.csd_cycle(guidance, generator, teacher, codebook, settings, draw, i)


def gts(settings, draw, teacher, codebook, shape):
    """The i-th step as a function of i."""
    trained = steps.Trained(make_network(settings, shape, teacher), settings, ema=True)
    tokens = torch.randint(len(codebook), (settings["sequences"], shape["tokens"]))
    labels = torch.randint(shape["classes"], (settings["sequences"],))
    table = None
    if settings["table"]:
        with torch.no_grad():
            table = torch.cat([teacher.guided_logits(codebook[ids], classes, settings["cfg_scale"])
                               for ids, classes in zip(tokens.split(100), labels.split(100))])
    data = (tokens, labels, table)
    return lambda i: steps.gts_step(trained, teacher, codebook, data, settings, draw, i)


def timed(step, count):
    """Seconds and values of each step; fewer than `count` when that takes very long."""
    seconds, values = [], []
    for i in range(count):
        # Not with several processes, which have to make the same number.
        if i >= STEPS_MIN and sum(seconds) > SECONDS_MAX and not dist.is_initialized():
            break
        begin = time.perf_counter()
        values.append(step(i))
        seconds.append(time.perf_counter() - begin)
    return seconds, values


def peak():
    """This process's rate of large fp32 products while the others do the same, summed: GFLOP/s."""
    a, b = torch.randn(PEAK_SIZE, PEAK_SIZE), torch.randn(PEAK_SIZE, PEAK_SIZE)
    out = torch.mm(a, b)
    if dist.is_initialized():
        dist.barrier()
    begin, products = time.perf_counter(), 0
    while time.perf_counter() - begin < PEAK_SECONDS:
        torch.mm(a, b, out=out)
        products += 1
    rate = torch.tensor(2.0e-9 * PEAK_SIZE ** 3 * products / (time.perf_counter() - begin),
                        dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(rate)
    return rate.item()


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    torch.set_num_threads(job["threads"])
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    result = {"processes": world, "threads": job["threads"], "torch": torch.__version__,
              "capability": torch.backends.cpu.get_cpu_capability()}
    if job["what"] == "peak":
        result["gflops"] = peak()
    else:
        settings = job["settings"]
        teacher, codebook, shape = networks.load_teacher(settings["teacher"])
        draw = steps.Draws(settings["batch"] // world, shape)
        step = {"csd": csd, "gts": gts}[job["what"]](settings, draw, teacher, codebook, shape)
        torch.manual_seed(100 + rank)
        result["seconds"], values = timed(step, job["count"])
        assert all(math.isfinite(v) for value in values for v in value.values()), values
        result.update(last=values[-1], shape={**shape, "codes": len(codebook)})
    if rank == 0:
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            json.dump(result, file)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
