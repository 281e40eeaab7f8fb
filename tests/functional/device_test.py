"""Training on a device (`device: cuda`): the whole way of a run on the test library whose tensors lie where the host
cannot touch them (tests/support/far_device). Bits do not depend on the number of ranks, on a kill of everything, or on
a domain that is lost while the other trains on; what it learns is what the CPU learns, but for rounding. And the real
library where there is no GPU.

usage: device_test.py
"""

import os

from dd2 import Workspace, binary, expect, expect_same

CONFIGS = ("var-d16", "llamagen-b", "fashion-mnist-quick")
FAR = {"DD2_DEVICE_LIBRARY": binary("libfar_device.so")}


def final(run, metric):
    return [record[metric] for record in run.record() if metric in record][-1]


def run_small(work, config, name, device, **options):
    path = f"configs/{config}.yaml"
    return work.run(path, name, shrink=True, set=[f"device={device}", "checkpoint.memory_every=1"], **options)


def check_near_the_cpu(work, calm):
    for config, run in calm.items():
        cpu = run_small(work, config, f"{config}-cpu", "cpu", ranks=1)
        for metric in ("gts/loss", "csd/dmu"):
            here, there = final(cpu, metric), final(run, metric)
            print(f"{config} {metric}: {there:.6g} on the device, {here:.6g} on the CPU", flush=True)
            expect(abs(there / here - 1) < 1e-3, f"{config}: {metric} {there} on the device, {here} on the CPU")


def check_ranks(work, calm):
    two = run_small(work, CONFIGS[0], "two-ranks", "cuda", ranks=2)
    expect_same(calm[CONFIGS[0]].digest(), two.digest())
    expect(calm[CONFIGS[0]].record() == two.record(), "metrics.jsonl differs")


def check_kills(work, calm):
    config = CONFIGS[0]
    path = f"configs/{config}.yaml"
    settings = ["device=cuda", "checkpoint.memory_every=1"]
    killed = work.start(path, "killed", shrink=True, set=settings)
    killed.wait_for(phase="gts", step=1)
    killed.kill_all()
    killed.config, killed.options = killed.folder / "config.yaml", {}  # as an interrupted one says
    killed.resume()
    expect_same(calm[config].digest(), killed.digest())
    lost = work.start(path, "lost", shrink=True, ranks=1, domains=2, set=settings)
    lost.wait_for(phase="gts", step=1)
    lost.signal(lost.agents("local-2") + lost.workers("local-2"))
    lost.finish()
    expect_same(calm[config].digest(), lost.digest())
    expect(calm[config].record() == lost.record(), "metrics.jsonl differs")


def check_without_a_gpu(work):
    del os.environ["DD2_DEVICE_LIBRARY"]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    none = work.new_run("configs/var-d16.yaml", "none", shrink=True, set=["device=cuda"])
    none.start().finish(exit_code=4)
    said = none.tail()
    expect(any(words in said for words in ("no NVIDIA driver here", "no GPU that this process may use", "no CUDA part")), said)


os.environ.update(FAR)
with Workspace() as work:
    calm = {config: run_small(work, config, config, "cuda", ranks=1) for config in CONFIGS}
    check_near_the_cpu(work, calm)
    check_ranks(work, calm)
    check_kills(work, calm)
    check_without_a_gpu(work)
