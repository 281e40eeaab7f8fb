"""Bad input on the real dd2: each mistake has its exit code (docs/CLI.md) and a message that names what
is wrong, and leaves nothing half-written. Programs that need LibTorch are not started here."""

import os
import pathlib
import shutil
import socket
import subprocess

from dd2 import ROOT, Workspace, binary, dd2, expect, expect_fails

TINY = ROOT / "tests" / "configs" / "tiny.yaml"
TEACHER = ROOT / "configs" / "teachers" / "fashion-mnist"


def config(work, name, text=None, teacher=TEACHER):
    """A copy of tiny.yaml in the workspace, with `text` instead of its own if given."""
    path = work.path / name
    text = TINY.read_text() if text is None else text
    path.write_text(text.replace("../../configs/teachers/fashion-mnist", str(teacher)))
    return path


def run(work, path, *more, env=None, folder="run"):
    return dd2("run", path, "--run", work.path / folder, "--set", f"cache.path={work.cache}", *more, env=env)


def nothing_left(work, folder="run"):
    expect(not (work.path / folder).exists(), f"{folder} was left behind")


def check_command_line():
    process = dd2("--help")
    expect(process.returncode == 0, "--help failed", process)
    for command in ("run", "status", "watch", "pause", "resume", "cancel", "checkpoint", "config", "cache",
                    "teacher", "sample", "eval", "export", "report", "version"):
        expect(f"\n  {command} " in process.stdout, f"--help does not list {command}", process)
        if command not in ("sample", "eval", "export"):
            one = dd2(command, "--help")
            expect(one.returncode == 0 and "Usage" in one.stdout, f"{command} --help", one)
    expect_fails(dd2("stauts", "runs/x"), 2, "stauts.*'status'")
    expect_fails(dd2("run"), 2, "config is required")
    expect_fails(dd2("run", TINY, "--rank", "2"), 2, "--rank")
    expect_fails(dd2("run", TINY, "--ranks", "two"), 2, "two")
    expect(dd2("version").stdout.startswith("dd2 0."), "version")


def check_configuration(work):
    broken = config(work, "broken.yaml", TINY.read_text().replace("seed: 1", "sed: 1").replace(
        "  curve_samples: 50", "  curve_samples: many") + "extra:\n  thing: 1\n")
    seed_line = 1 + broken.read_text().splitlines().index("sed: 1")
    # All three at once, with file:line and the nearest known key.
    expect_fails(run(work, broken), 2, rf"broken\.yaml:{seed_line}: .*sed.*seed", "curve_samples", "extra")
    expect_fails(dd2("config", "check", broken), 2, rf"broken\.yaml:{seed_line}:")
    expect_fails(run(work, config(work, "fine.yaml"), "--set", "phases.99.steps=1"), 2, "phases.99")
    expect_fails(run(work, config(work, "fine.yaml"), "--set", "checkpoint.interval=often"), 2,
                 r"checkpoint\.interval.*neither auto, off")
    expect_fails(run(work, work.path / "none.yaml"), 7, r"none\.yaml")
    shown = dd2("config", "show", config(work, "fine.yaml"))
    expect(shown.returncode == 0 and "curve_samples: 50" in shown.stdout, "config show", shown)
    nothing_left(work)


def check_teacher(work):
    missing = config(work, "missing.yaml", teacher=work.path / "nobody")
    expect_fails(run(work, missing), 7, "nobody", "dd2 teacher train")
    copy = work.path / "teacher"
    shutil.copytree(TEACHER, copy)
    truncated = config(work, "truncated.yaml", teacher=copy)
    weights = copy / "teacher.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:len(whole) // 2])
    expect_fails(run(work, truncated), 8, r"teacher\.safetensors")
    weights.write_bytes(b"\x89PNG\r\n\x1a\n" + whole[8:])
    expect_fails(run(work, truncated), 8, r"teacher\.safetensors")
    weights.unlink()
    expect_fails(run(work, truncated), 7, r"teacher\.safetensors")
    nothing_left(work)


def check_machine(work):
    fine = config(work, "fine.yaml")
    env = {**os.environ, "PATH": str(work.path)}
    expect_fails(run(work, fine, env=env), 4, "mpirun", "openmpi-bin")
    nothing_left(work)
    alone = work.path / "alone"
    alone.mkdir()
    shutil.copy(binary(), alone / "dd2")
    process = subprocess.run([alone / "dd2", "run", fine, "--run", work.path / "run"], capture_output=True,
                             text=True, check=False, timeout=60)
    expect_fails(process, 4, "dd2-coordinator is missing", "scripts/build")
    nothing_left(work)
    (work.path / "file").write_text("x")
    expect_fails(run(work, fine, folder="file/run"), 4, "file/run")
    if os.geteuid() != 0:  # root may write anywhere
        locked = work.path / "locked"
        locked.mkdir(mode=0o500)
        expect_fails(run(work, fine, folder="locked/run"), 4, "locked/run")


def check_port(work):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expect_fails(run(work, config(work, "fine.yaml"), "--set", f"api.port={port}"), 4, str(port), "api.port")
    nothing_left(work)


def check_folder(work):
    fine = config(work, "fine.yaml")
    folder = work.path / "held"
    folder.mkdir()
    (folder / "config.yaml").write_text(dd2("config", "show", fine).stdout)
    expect_fails(run(work, fine, folder="held"), 3, "--resume")
    expect_fails(run(work, fine, "--resume", "--set", "phases.2.steps=7", folder="held"), 2,
                 r"phases\.2\.steps: 6 in the run, 7 now")
    expect_fails(run(work, fine, "--resume", folder="nothing"), 7, "--resume")
    nothing_left(work, "nothing")
    other = work.path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("x")
    expect_fails(run(work, fine, folder="letters"), 4, "letters is not empty")
    expect([p.name for p in other.iterdir()] == ["letter.txt"], "a foreign folder was touched")


def check_no_run(work):
    nowhere = work.path / "nowhere"
    for words in (["status"], ["watch"], ["pause"], ["resume"], ["cancel"], ["checkpoint"], ["checkpoint", "ls"],
                  ["checkpoint", "verify"], ["checkpoint", "digest"], ["checkpoint", "show"],
                  ["checkpoint", "prune"], ["report"]):
        expect_fails(dd2(*words, nowhere), 7, "nowhere")
    held = work.path / "held"  # it holds a configuration, but nothing ever ran
    status = dd2("status", held, "--json")
    expect(status.returncode == 0 and '"interrupted"' in status.stdout, "status of a dead run", status)
    for action in ("pause", "resume", "cancel", "checkpoint"):
        expect_fails(dd2(action, held), 9, "coordinator")
    expect_fails(dd2("checkpoint", "digest", held), 7, "no committed checkpoint")


with Workspace() as workspace:
    check_command_line()
    for check in (check_configuration, check_teacher, check_machine, check_port, check_folder, check_no_run):
        check(workspace)
        print(f"{check.__name__}: ok")
    expect(not pathlib.Path(workspace.cache).exists(), "a refused run made a cache")
