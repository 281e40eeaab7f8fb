"""dd2 plan against the truth: the memory of real workers, the bytes of a real checkpoint and score cache, the time of real
steps. And every configuration of the project passes `dd2 config check`; those of the released teachers can be planned for 1
and 8 nodes.

Memory is the peak resident memory (VmHWM: programs, libraries and snapshots in /dev/shm with it) of the worker that
has most, rank 0, which makes pictures, after teacher_check, sample, gts, regress and the beginning of csd. Differences leave
programs and libraries out: what a run with larger networks, batches or blocks needs more. Time is that of the fastest step of
gts; a plan is a lower bound, and other work on the machine makes steps slower, so it is compared loosely.
"""

import json
import os
import pathlib

from dd2 import ROOT, Workspace, dd2, expect

CONFIG = "tests/configs/tiny.yaml"
RANKS = 2
TOLERANCE = 0.15
FILE_TOLERANCE = 0.01
TIME_FACTOR = 3
TIMED_STEP = 0.2  # seconds by the plan: in shorter ones ranks mostly wait for each other
PATIENCE = ["timeouts.heartbeat_expiry=20", "timeouts.stall=60"]  # on a busy machine
FEW_PICTURES = ["eval.reference_images=100", "eval.samples=50"]  # so that the networks decide
FEW_STEPS = ["phases.2.steps=2", "phases.3.steps=1"]  # the first one needs what all need
SMALL = FEW_PICTURES + ["model.head_width=64"]
RELEASED = ["var-d16", "var-d20", "var-d24", "var-d30", "llamagen-b", "llamagen-l", "llamagen-xl"]


def plan(config, settings=(), *words, exit_codes=(0,)):
    for setting in settings:
        words += ("--set", setting)
    process = dd2("plan", config, "--json", *words)
    expect(process.returncode in exit_codes, "dd2 plan", process)
    return json.loads(process.stdout)


def peak_bytes(pid):
    for line in (pathlib.Path("/proc") / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmHWM")


def bytes_of(paths):
    return sum(path.stat().st_size for path in paths)


def measure(work, name, settings, phase, step):
    """Of a run until there: the largest peak of a worker, bytes of the newest checkpoint (None: there is none) and of the
    score cache, seconds of the fastest step of gts (None: there was none)."""
    cache = work.path / f"cache-{name}"  # so that the teacher draws its sequences
    run = work.start(CONFIG, name, ranks=RANKS, domains=1, set=settings, cache=cache)
    run.wait_for(phase=phase, step=step, timeout=600)
    peaks = [peak_bytes(pid) for pid in run.workers()]
    expect(dd2("cancel", run.folder).returncode == 0, "dd2 cancel")
    run.finish(exit_code=6)
    expect(len(peaks) == RANKS, f"{peaks}")
    manifests = list((run.folder / "checkpoints").glob("*/manifest.json"))
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "memory": max(peaks),
        "checkpoint": bytes_of(max(manifests).parent.iterdir()) if manifests else None,
        "cache": bytes_of(path for path in cache.glob("slot-*/*") if path.suffix in (".log", ".sst", ".blob")),
        "step": min((line["step_seconds"] for line in metrics if line["kind"] == "gts"), default=None),
    }


def compare(what, planned, measured, tolerance):
    error = planned / measured - 1
    print(f"{what}: plan {planned / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {100 * error:+.2f} %")
    return [] if abs(error) <= tolerance else [f"{what}: the plan is {100 * error:+.1f} % off"]


def check_configs():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        process = dd2("config", "check", path)
        expect(process.returncode == 0, f"{path}", process)
    for name in RELEASED:
        for nodes in (1, 8):
            document = plan(f"configs/{name}.yaml", (), "--teacher", name, "--gpu", "h200", "--nodes", nodes)
            expect(document["fits"] and document["days"] > 0, f"{document}")
    small = plan("configs/var-d24.yaml", (), "--teacher", "var-d24", "--gpu", "a100-40g", exit_codes=(4,))
    expect(not small["fits"] and any(change["fits"] for change in small["alternatives"]), f"{small}")


def compare_time(what, planned, measured):
    busy = max(1.0, os.getloadavg()[0] / os.cpu_count())
    print(f"{what}: plan {planned:.3f} s, measured {measured:.3f} s, on a machine {busy:.1f} times busy")
    good = planned / TIME_FACTOR <= measured <= planned * TIME_FACTOR * busy
    return [] if good else [f"{what}: {measured:.3f} s instead of {planned:.3f} s"]


def check_run(work, teacher, case, settings, phase, step):
    """Plan and truth of one run, and what is wrong with the plan."""
    what = f"{teacher}, {case}"
    settings = [f"teacher.path={ROOT}/configs/teachers/{teacher}"] + PATIENCE + settings
    document = plan(CONFIG, settings, "--ranks-per-node", RANKS)
    planned = {"memory": document["memory"]["rank_bytes"], "checkpoint": document["checkpoint"]["bytes"],
               "cache": document["cache"]["bytes"],
               "step": next(entry["step_seconds"] for entry in document["phases"] if entry["name"] == "gts")}
    truth = measure(work, what.replace(", ", "-").replace(" ", "-"), settings, phase, step)
    problems = compare(f"{what}, memory", planned["memory"], truth["memory"], TOLERANCE)
    problems += compare(f"{what}, cache", planned["cache"], truth["cache"], FILE_TOLERANCE)
    if truth["checkpoint"]:
        problems += compare(f"{what}, checkpoint", planned["checkpoint"], truth["checkpoint"], FILE_TOLERANCE)
    if truth["step"] and planned["step"] >= TIMED_STEP:
        problems += compare_time(f"{what}, a step of gts", planned["step"], truth["step"])
    return document["memory"]["phase"], planned["memory"], truth["memory"], problems


def check_growth(work, teacher, cases, decides, phase, step):
    """Two runs, the second of which needs more; `decides`: the phase that does, by the plan."""
    runs = [check_run(work, teacher, case, settings, phase, step) for case, settings in cases.items()]
    (_, planned, measured, problems), (where, more_planned, more_measured, more_problems) = runs
    expect(decides in (None, where), f"{teacher}: {where} needs most, not {decides}")
    what = " after ".join(reversed(cases))
    return problems + more_problems + compare(f"{teacher}, growth: {what}", more_planned - planned,
                                              more_measured - measured, TOLERANCE)


def check_memory(work):
    problems = []
    for teacher in ("fashion-mnist", "fashion-mnist-var"):
        problems += check_run(work, teacher, "as it is", [], "csd", 2)[3]
        heads = {f"head of {width}": FEW_PICTURES + FEW_STEPS + [f"model.head_width={width}"] for width in (64, 768)}
        problems += check_growth(work, teacher, heads, None, "csd", 2)
    batches = {f"batch of {batch}": SMALL + ["phases.1.block=32", "phases.1.sequences=544", "phases.1.ode_steps=1",
                                             "phases.2.steps=2", f"phases.2.batch={batch}"] for batch in (128, 512)}
    problems += check_growth(work, "fashion-mnist", batches, "gts", "regress", 0)
    # Keys, values and the largest scale of all sequences of a block.
    blocks = {f"block of {block}": SMALL + [f"phases.1.block={block}", f"phases.1.sequences={2 * block}",
                                            "phases.1.ode_steps=1"] for block in (128, 512)}
    return problems + check_growth(work, "fashion-mnist-var", blocks, "sample", "gts", 0)


check_configs()
with Workspace() as work:
    problems = check_memory(work)
    expect(not problems, "\n".join(problems))
