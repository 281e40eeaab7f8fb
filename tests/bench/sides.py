"""Starts the two sides of a benchmark: `dd2 run`, and rival.py in one process or under torchrun."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = pathlib.Path(os.environ.get("DD2_BIN_DIR", ROOT / "build" / "release" / "bin"))
RUN_SECONDS_MAX = 1800
END_SECONDS_MAX = 30
# Large tensors stay on the heap instead of being mapped and unmapped with every use, as PyTorch's
# tuning guide advises.
RIVAL_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1073741824",
                     "MALLOC_TRIM_THRESHOLD_": "1073741824", "CUDA_VISIBLE_DEVICES": ""}
# Number of processes, 2 threads in all. Threads that wait by spinning (the default) are the faster
# ones on an idle machine, and hopeless on a busy one.
LAYOUTS = {"2 processes x 1 thread": (2, {}),
           "1 process x 2 threads": (1, {}),
           "1 process x 2 threads, passive": (1, {"OMP_WAIT_POLICY": "PASSIVE"})}


def execute(command, log, environment=None):
    """Runs a program to its end, output into `log`. Ended with us, whatever ends us."""
    with open(log, "ab") as sink:
        process = subprocess.Popen([str(word) for word in command], stdout=sink, stderr=sink,
                                   env={**os.environ, **(environment or {})},
                                   start_new_session=True)
    try:
        code = process.wait(RUN_SECONDS_MAX)
    finally:
        if process.poll() is None:
            process.terminate()  # dd2 and torchrun end their own processes
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS_MAX)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        tail = "\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{command[0]} ended with exit code {code}\n{tail}")


def number(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings_of(config, kind, overrides):
    """The effective settings of a phase, from `dd2 config show`, with what the rival needs besides."""
    command = [BIN / "dd2", "config", "show", config, *set_options(overrides)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        raise RuntimeError(shown.stderr)
    sections, section = {}, ""
    for line in shown.stdout.splitlines():
        key, _, value = line.split(" #")[0].strip().removeprefix("- ").partition(":")
        if not value.strip() or not line.startswith(" "):
            section = key
        elif key == "kind":
            section = value.strip()
        sections.setdefault(section, {})[key] = number(value.strip())
    model = sections["model"]
    return {**sections[kind], "cfg_scale": sections["teacher"]["cfg_scale"],
            "teacher": str((HERE / sections["teacher"]["path"]).resolve()),
            "sequences": sections["sample"]["sequences"],
            "head": {"w": model["head_width"], "depth": model["head_depth"],
                     "time_features": model["time_features"]}}


def set_options(overrides):
    return [word for setting in overrides for word in ("--set", setting)]


def ours(config, work, name, overrides=()):
    """A whole `dd2 run` with its cache in `work`: {kind of phase: records}, and result.json."""
    run = work / name
    execute([BIN / "dd2", "run", config, "--run", run,
             *set_options([f"cache.path={work / 'cache'}", *overrides])], work / f"{name}.log")
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        records = {}
        for record in map(json.loads, file):
            records.setdefault(record["kind"], []).append(record)
    result = run / "result.json"
    return records, json.loads(result.read_text()) if result.exists() else {}


def rival(job, work, layout):
    """What rival.py measures in one of LAYOUTS."""
    processes, wait = LAYOUTS[layout]
    job_file, output, log = (work / f"rival.{end}" for end in ("job", "json", "log"))
    job = {**job, "threads": 2 if processes == 1 else 1}
    job_file.write_text(json.dumps(job))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    execute([*launcher, HERE / "rival.py", job_file, output], log,
            {**RIVAL_ENVIRONMENT, **wait, "OMP_NUM_THREADS": str(job["threads"])})
    return json.loads(output.read_text())
