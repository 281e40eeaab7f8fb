"""The final weights, moments and EMA of both networks are bitwise the same on 1, 2, 3 and 4 ranks.

usage: world_size_test.py SEED [TEACHER]   a folder in configs/teachers instead of the configuration's"""

import sys

from dd2 import ROOT, Workspace, expect, expect_same

seed = int(sys.argv[1])
teacher = [f"teacher.path={ROOT}/configs/teachers/{sys.argv[2]}"] if len(sys.argv) > 2 else []
with Workspace() as work:
    runs = {ranks: work.run("tests/configs/tiny.yaml", f"ranks-{ranks}", ranks=ranks, seed=seed, set=teacher)
            for ranks in (2, 1, 4, 3)}
    for ranks, run in runs.items():
        run.wait_gone()
        expect_same(runs[2].digest(), run.digest())
        expect(run.record() == runs[2].record(), f"metrics.jsonl of {ranks} ranks differs")
        print(f"{ranks} ranks: as 2 ranks")
    # The loss on held-out sequences, at every checkpoint of gts and at its end (tiny.yaml: 3 and 6).
    held_out = [line["step"] for line in runs[2].record() if "gts/validation_loss" in line]
    expect(held_out == [3, 6], f"validation losses at steps {held_out}")
    other = work.run("tests/configs/tiny.yaml", "other-seed", ranks=2, seed=seed + 1, set=teacher)
    # The test can fail: another seed gives other weights.
    assert other.digest() != runs[2].digest(), "another seed gave the same weights"
