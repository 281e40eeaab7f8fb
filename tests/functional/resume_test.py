"""kill -9 of every process at many moments, then --resume: the final state is bitwise that of the
undisturbed run. One killed run after another goes on from where the last kill left it."""

import random
import sys
import time

from dd2 import Workspace, expect, expect_same

seed = int(sys.argv[1])
# Where to kill: phase, finished steps, and how much later (s), so that borders and commits are hit.
MOMENTS = [("sample", 0), ("gts", 1), ("gts", 4), ("regress", 1), ("regress", 2), ("csd", 1),
           ("csd", 3), ("align", 1), ("csd-2", 1), ("eval", 0)]

rng = random.Random(seed)
with Workspace() as work:
    calm = work.run("tests/configs/tiny.yaml", "calm", seed=seed)
    victim = work.start("tests/configs/tiny.yaml", "victim", seed=seed, cache=work.path / "cache-2")
    for number, (phase, step) in enumerate(MOMENTS):
        victim.wait_for(phase=phase, step=step)
        time.sleep(rng.random() * 0.3)
        if victim.process.poll() is not None:
            break  # so fast a machine that the run was over before the kill
        victim.kill_all()
        # On another number of ranks each time: the bits do not care.
        victim.start(resume=True, ranks=1 + (number + seed) % 3)
    victim.finish()
    victim.wait_gone()
    expect_same(calm.digest(), victim.digest())
    # Also the quality before distillation, which the victim measured in one of its earlier lives.
    for name in ("fdr_end", "fdr_start", "fd_start", "accuracy_start", "samples_start"):
        expect(calm.result()[name] == victim.result()[name], f"the evaluation differs: {name}")
    expect(calm.result()["samples_start"] == 50, "samples_start is not eval.curve_samples")
    # The record was rewound exactly: the same steps once each, with the same numbers.
    expect(calm.record() == victim.record(), "metrics.jsonl of the two runs differ")
    # Figures of the whole life of a run: the victim repeated some steps and committed no fewer.
    once, again = calm.result()["checkpoints"], victim.result()["checkpoints"]
    expect(once["count"] > 0 and once["bytes"] > 0 and once["stall_seconds"] > 0, f"calm: {once}")
    expect(again["count"] >= once["count"] and again["bytes"] > 0 and again["stall_seconds"] > 0,
           f"calm: {once}, victim: {again}")
    expect("--resume" not in victim.result()["command"], victim.result()["command"])
