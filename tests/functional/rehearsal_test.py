"""Every configuration of the project goes its whole way, small (`dd2 run --shrink`). One of them on one rank too, and
killed in or right after the phase that trains the head alone: the same bits."""

from dd2 import ROOT, Workspace, dd2, expect, expect_fails, expect_same

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
MANY_PHASES = "var-d16"


def check_all(work):
    runs = {}
    for name in CONFIGS:
        runs[name] = run = work.run(f"configs/{name}.yaml", name, shrink=True)
        expect((run.folder / "export" / "generator.safetensors").exists(), f"{name} exported nothing")
        steps = {record["phase"] for record in run.record()}
        print(f"{name}: {len(steps)} phases", flush=True)
    return runs


def check_bits(work, calm):
    path = f"configs/{MANY_PHASES}.yaml"
    one = work.run(path, "one-rank", shrink=True, ranks=1)
    killed = work.start(path, "killed", shrink=True)
    killed.wait_for(phase="gts", step=1)
    killed.kill_all()
    expect_fails(dd2("run", path, "--run", killed.folder, "--resume", "--set", f"teacher.path={killed.folder}/teacher",
                     "--set", f"eval.inception={ROOT / path}", "--set", f"eval.reference={ROOT / 'tests/golden/npz/arrays.npz'}"),
                 2, "another result", "phases.1.sequences")
    killed.config, killed.options = killed.folder / "config.yaml", {}  # as an interrupted one says
    killed.resume()
    for run in (one, killed):
        expect_same(calm.digest(), run.digest())
        expect(run.record() == calm.record(), "metrics.jsonl differs")


def check_pass_modes(work, name, calm):
    """The configurations of large models compute blocks in bf16 and run them again: the same bits on one rank and with
    blocks that are kept; near those of fp32."""
    def run(label, ranks, *settings):
        return work.run(f"configs/{name}.yaml", f"{name}-{label}", shrink=True, ranks=ranks, set=settings)

    kept = run("kept", 1, "model.recompute=false")
    expect_same(calm.digest(), kept.digest())
    expect(kept.record() == calm.record(), "metrics.jsonl differs")
    exact = run("fp32", 2, "model.precision=fp32", "teacher.precision=fp32", "model.recompute=false")
    judged = run("exact-teacher", 2, "teacher.precision=fp32")
    rough, exact, judged = (one.record()[-1]["csd/dmu"] for one in (calm, exact, judged))
    expect(len({rough, exact, judged}) == 3, f"{rough} in bf16, {judged} by a teacher in fp32, {exact} in fp32")
    for one in (rough, judged):
        expect(abs(one / exact - 1) < 0.02, f"{one} in bf16 for {exact}")


def check_refusal(work):
    refused = work.new_run("configs/var-d16.yaml", "refused", shrink=True, set=["teacher.path=teachers/mine"])
    refused.start().finish(exit_code=2)
    for setting in ("model", "teacher"):
        raster = work.new_run("configs/fashion-mnist-quick.yaml", f"raster-{setting}", shrink=True, set=[f"{setting}.precision=bf16"])
        raster.start().finish(exit_code=2)
        expect("is none: take them out" in raster.tail(), raster.tail())
    expect("none of var-d16" in refused.tail() and not refused.folder.exists(), refused.tail())


with Workspace() as work:
    check_refusal(work)
    calm = check_all(work)
    check_bits(work, calm[MANY_PHASES])
    for name in (MANY_PHASES, "llamagen-b"):
        check_pass_modes(work, name, calm[name])
