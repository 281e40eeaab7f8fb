"""dd2 plan against the truth: the memory of real workers and the bytes of a real checkpoint. And every configuration of
the project passes `dd2 config check`; those of the released teachers can be planned for 1 and 8 nodes.

Memory is the peak resident memory (VmHWM: programs, libraries and snapshots in /dev/shm with it) of the worker that
has most, rank 0, which makes pictures, after teacher_check, sample, gts, regress and the beginning of csd. The last
comparison leaves programs and libraries out: what a run with large networks needs more than one with small ones.
"""

import json
import pathlib

from dd2 import ROOT, Workspace, dd2, expect

CONFIG = "tests/configs/tiny.yaml"
RANKS = 2
TOLERANCE = 0.15
CHECKPOINT_TOLERANCE = 0.01
PATIENCE = ["timeouts.heartbeat_expiry=20", "timeouts.stall=60"]  # on a busy machine
FEW_PICTURES = ["eval.reference_images=100", "eval.samples=50"]  # so that the networks decide
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


def measure(work, name, settings):
    """Peaks of the workers, and the size of the newest checkpoint."""
    run = work.start(CONFIG, name, ranks=RANKS, domains=1, set=settings)
    run.wait_for(phase="csd", step=2, timeout=600)
    peaks = [peak_bytes(pid) for pid in run.workers()]
    expect(dd2("cancel", run.folder).returncode == 0, "dd2 cancel")
    run.finish(exit_code=6)
    expect(len(peaks) == RANKS, f"{peaks}")
    newest = max(path.parent for path in (run.folder / "checkpoints").glob("*/manifest.json"))
    return peaks, sum(path.stat().st_size for path in newest.iterdir())


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
            large = (name, nodes) == ("var-d30", 1)  # a little too large, as its file says
            document = plan(f"configs/{name}.yaml", (), "--teacher", name, "--gpu", "h200", "--nodes", nodes,
                            exit_codes=(4,) if large else (0,))
            expect(document["fits"] != large and document["days"] > 0, f"{document}")
    small = plan("configs/var-d24.yaml", (), "--teacher", "var-d24", "--gpu", "a100-40g", exit_codes=(4,))
    expect(not small["fits"] and any(change["fits"] for change in small["alternatives"]), f"{small}")


def check_memory(work, teacher):
    """What is wrong with the plans of runs on a teacher: as the configuration is, and with a small and a large head."""
    problems, planned, measured = [], {}, {}
    cases = {"as it is": [], **{width: FEW_PICTURES + [f"model.head_width={width}"] for width in (64, 768)}}
    for case, settings in cases.items():
        settings = [f"teacher.path={ROOT}/configs/teachers/{teacher}"] + PATIENCE + settings
        document = plan(CONFIG, settings, "--ranks-per-node", RANKS)
        peaks, checkpoint = measure(work, f"{teacher}-{case}".replace(" ", "-"), settings)
        planned[case], measured[case] = document["memory"]["rank_bytes"], max(peaks)
        problems += compare(f"{teacher}, {case}, memory", planned[case], measured[case], TOLERANCE)
        problems += compare(f"{teacher}, {case}, checkpoint", document["checkpoint"]["bytes"], checkpoint,
                            CHECKPOINT_TOLERANCE)
    return problems + compare(f"{teacher}, what the larger head adds", planned[768] - planned[64],
                              measured[768] - measured[64], TOLERANCE)


check_configs()
with Workspace() as work:
    problems = check_memory(work, "fashion-mnist") + check_memory(work, "fashion-mnist-var")
    expect(not problems, "\n".join(problems))
