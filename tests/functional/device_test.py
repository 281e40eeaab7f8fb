"""Training on a device (`device: cuda`): the whole way of a run on the test library whose tensors lie where the host
cannot touch them (tests/support/far_device). Bits do not depend on the number of ranks, on a kill of everything, or on
a domain that is lost while the other trains on; what it learns is what the CPU learns, but for rounding. And the real
library where there is no GPU.

usage: device_test.py
"""

import os
import re
import subprocess

from dd2 import Workspace, binary, dd2, expect, expect_same, wait_until

CONFIGS = ("var-d16", "llamagen-b", "fashion-mnist-quick")
FAR_MEMORY_MIB = "64"
FAR = {"DD2_DEVICE_LIBRARY": binary("libfar_device.so")}


def final(run, metric):
    return [record[metric] for record in run.record() if metric in record][-1]


def start_small(work, config, name, device, **options):
    path = f"configs/{config}.yaml"
    return work.start(path, name, shrink=True, set=[f"device={device}", "checkpoint.memory_every=1"],
                      **options)


def check_near_the_cpu(work):
    """{config: its run on the device}; beside each the same one on the CPU, of one thread as well."""
    calm = {}
    for config in CONFIGS:
        run = calm[config] = start_small(work, config, config, "cuda", ranks=1)
        cpu = start_small(work, config, f"{config}-cpu", "cpu", ranks=1, cache=work.path / "cache-cpu").finish()
        run.finish()
        for metric in ("gts/loss", "csd/dmu"):
            here, there = final(cpu, metric), final(run, metric)
            print(f"{config} {metric}: {there:.6g} on the device, {here:.6g} on the CPU", flush=True)
            expect(abs(there / here - 1) < 1e-3, f"{config}: {metric} {there} on the device, {here} on the CPU")
    return calm


def check_ranks(work, calm):
    two = start_small(work, CONFIGS[0], "two-ranks", "cuda", ranks=2).finish()
    expect_same(calm[CONFIGS[0]].digest(), two.digest())
    expect(calm[CONFIGS[0]].record() == two.record(), "metrics.jsonl differs")


def numbers(run, domain):
    """Of the GPUs that the ranks of a domain compute on, by its log."""
    text = (run.folder / "logs" / f"domain-{domain}.log").read_text()
    return sorted(set(map(int, re.findall(r"computes on GPU (\d+): far device", text))))


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
    expect([numbers(lost, "local-1"), numbers(lost, "local-2")] == [[0], [1]], "each domain has a GPU of its own")
    expect_same(calm[config].digest(), lost.digest())
    expect(calm[config].record() == lost.record(), "metrics.jsonl differs")


def check_too_few(work):
    """The second domain of a machine with one GPU."""
    os.environ["DD2_FAR_DEVICES"] = "1"
    few = work.new_run(f"configs/{CONFIGS[0]}.yaml", "few", shrink=True, ranks=1, domains=2,
                       set=["device=cuda"])
    few.start().finish(exit_code=4)
    del os.environ["DD2_FAR_DEVICES"]
    said = few.tail()
    expect("rank 0 of domain 'local-2', whose GPUs are those from 1 on" in said and
           "there is no GPU 1: this machine shows 1" in said, said)


def check_memory(work):
    """A device that is too small for the training, not for the networks: the run ends, with advice."""
    os.environ["DD2_FAR_MEMORY_MIB"] = FAR_MEMORY_MIB
    small = work.new_run(f"configs/{CONFIGS[0]}.yaml", "small", shrink=True, ranks=1,
                         set=["device=cuda"])
    small.start().finish(exit_code=5)
    del os.environ["DD2_FAR_MEMORY_MIB"]
    said = small.tail()
    expect(f"GPU 0 (far device of the tests, {FAR_MEMORY_MIB} MiB) has no memory left" in said and
           "model.recompute" in said and "dd2 plan" in said, said)


def check_join(work):
    """A domain that joins on the same machine: not on the others' GPUs."""
    run = work.start(f"configs/{CONFIGS[0]}.yaml", "joined", shrink=True, ranks=1,
                     set=["device=cuda", "checkpoint.memory_every=1"])
    run.wait_for(phase="gts", step=1)
    dd2("pause", run.folder)
    same = subprocess.Popen([binary(), "agent", "join", str(run.folder), "--domain", "same"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = run.folder / "logs" / "domain-same.log"
    wait_until(lambda: log.exists() and "computes on the GPU of worker 0 of domain 'local'" in log.read_text(),
               "the domain on a GPU that is taken to be refused", 60)
    same.kill()
    same.wait()
    other = subprocess.Popen([binary(), "agent", "join", str(run.folder), "--domain", "other", "--first-device", "1"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: run.members() == 2, "the other domain at work", 60)
    dd2("resume", run.folder)
    run.finish()
    expect(other.wait(60) == 0, "the domain that joined did not end with the run")
    expect(numbers(run, "other") == [1], f"GPUs {numbers(run, 'other')}")


def check_without_a_gpu(work):
    del os.environ["DD2_DEVICE_LIBRARY"]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    none = work.new_run("configs/var-d16.yaml", "none", shrink=True, set=["device=cuda"])
    none.start().finish(exit_code=4)
    said = none.tail()
    expect(any(words in said for words in ("no NVIDIA driver here", "no GPU that this process may use", "no CUDA part")), said)


os.environ.update(FAR)
with Workspace() as work:
    calm = check_near_the_cpu(work)
    check_ranks(work, calm)
    check_kills(work, calm)
    check_too_few(work)
    check_memory(work)
    check_join(work)
    check_without_a_gpu(work)
