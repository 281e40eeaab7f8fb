"""How `dd2 run` looks after its children, with scripts in place of coordinator and agents: who is
started again, with which arguments, what is said, and that nothing is left behind at the end.

The scripts write a line for each start into RUN/started; the real programs have their own tests."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

from dd2 import ROOT, Workspace, binary, expect, wait_until

COORDINATOR = r'''#!/usr/bin/env python3
import http.server, json, os, pathlib, sys, threading, time
run = pathlib.Path(sys.argv[sys.argv.index("--run") + 1])
with open(run / "started", "a") as log:
    log.write(f"coordinator {os.getpid()} {' '.join(sys.argv[3:])}\n")
known = run / "coordinator.json"
if "--recover" in sys.argv:
    if (run / "full").exists():
        time.sleep(1)
        sys.exit(11)
    http_port = json.loads(known.read_text())["http_port"]
    known.unlink()
    if (run / "refuse").exists():
        print("this run cannot be recovered")
        sys.exit(4)
    time.sleep(1)
else:
    http_port = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass
    def answer(self, document, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(document.encode())
        self.wfile.flush()
    def do_GET(self):
        state = json.dumps({"name": "fake", "state": "running", "seed": 1, "ranks": 1, "generation": 1,
                            "phase_count": 0})
        if not self.path.endswith("events"):
            return self.answer(state)
        self.answer(f"event: state\ndata: {state}\n\n", "text/event-stream")
        while True:
            time.sleep(0.1)
            self.wfile.write(b": alive\n\n")
    def do_POST(self):
        with open(run / "started", "a") as log:
            log.write(f"post {os.getpid()} {self.path}\n")
        self.answer("{}")


def fill():
    while not (run / "full").exists():
        time.sleep(0.05)
    os._exit(11)
threading.Thread(target=fill, daemon=True).start()
server = http.server.ThreadingHTTPServer(("127.0.0.1", http_port), Handler)
(run / "token").write_text("t")
# By rename: a reader must not find half of it.
draft = run / "coordinator.draft"
draft.write_text(json.dumps({"pid": os.getpid(), "control_port": 4711,
                             "http_port": server.server_address[1]}))
draft.rename(known)
server.serve_forever()
'''
# --run DIR --domain NAME --coordinator ADDRESS
AGENT = '#!/bin/sh\necho "agent $$ $4 $6" >> "$2/started"\nexec sleep 300\n'


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Fake:
    def __init__(self, work, name, *words):
        self.folder, self.output = work.path / name, work.path / f"{name}.out"
        with open(self.output, "w", encoding="utf-8") as sink:
            self.process = subprocess.Popen(
                [work.path / "bin" / "dd2", "run", ROOT / "tests/configs/tiny.yaml", "--run", self.folder, *words],
                stdout=sink, stderr=subprocess.STDOUT)
        work.runs.append(self)

    def kill(self, _):
        """For the workspace, when a check failed."""
        self.process.kill()

    def starts(self, kind):
        """[[pid, words...]] of the scripts of that kind, oldest first."""
        try:
            lines = (self.folder / "started").read_text().splitlines()
        except OSError:
            return []
        return [line.split()[1:] for line in lines if line.startswith(kind + " ")]

    def wait_for(self, kind, count):
        return wait_until(lambda: (found := self.starts(kind))[count - 1:] and found, f"{count} of {kind}", 30)

    def says(self, text, timeout=30):
        wait_until(lambda: text in self.output.read_text(), f"{text!r} in {self.output}", timeout)

    def ends(self, exit_code):
        code = self.process.wait(60)
        expect(code == exit_code, f"exit code {code}, expected {exit_code}\n{self.output.read_text()}")
        pids = [words[0] for kind in ("coordinator", "agent") for words in self.starts(kind)]
        wait_until(lambda: not any(map(alive, pids)), "the children to end", 10)


def kill(words, sign=signal.SIGKILL):
    os.kill(int(words[0]), sign)


def check_restarts(work):
    run = Fake(work, "restarts", "--domains", "2", "--ranks", "1")
    agents = sorted(run.wait_for("agent", 2), key=lambda words: words[1])
    expect([words[1] for words in agents] == ["local-1", "local-2"], f"domains: {agents}")
    run.says("started ")
    kill(agents[1])
    again = run.wait_for("agent", 3)[2]
    expect(again[1] == "local-2", f"the other domain was started: {again}")
    run.says("dd2-agent of domain local-2 ended with status 137 (killed by signal 9); it is started again in 0.5 s")

    kill(run.starts("coordinator")[0])
    second = run.wait_for("coordinator", 2)[1]
    expect("--recover" in second and "--command" in second, f"{second}")
    run.says("the coordinator died (signal 9); restarted, the workers kept training")
    expect(all(alive(words[0]) for words in (agents[0], again)), "an agent did not survive the coordinator")

    # Asked to stop while it is away: it hears of it when it is back. A second time: everything ends.
    kill(second)
    third = run.wait_for("coordinator", 3)[2]
    run.process.send_signal(signal.SIGINT)
    run.says("the run is asked to stop once it is back")
    asked = run.wait_for("post", 1)[0]
    expect(asked == [third[0], "/api/v1/run:cancel"], f"{asked}")
    run.process.send_signal(signal.SIGINT)
    run.ends(5)
    run.says("stopped at once")


def check_refusal(work):
    """A coordinator that ends by itself had a reason."""
    run = Fake(work, "refusal")
    run.says("started ")
    expect(run.wait_for("agent", 1)[0][1] == "local", "the name of a single domain")
    (run.folder / "refuse").touch()
    kill(run.starts("coordinator")[0])
    run.ends(5)
    expect(len(run.starts("coordinator")) == 2, "it was started again after it had refused")
    run.says("dd2-coordinator ended with status 4")
    run.says("this run cannot be recovered")


def check_full_disk(work):
    """The run outlives it, as often as the coordinator finds no space."""
    run = Fake(work, "full")
    run.says("started ")
    agent = run.wait_for("agent", 1)[0]
    (run.folder / "full").touch()
    run.says("full: free some space; it waits for that, the workers train on")
    third = run.wait_for("coordinator", 3)[2]
    expect("--recover" in third, f"{third}")
    (run.folder / "full").unlink()
    run.says("full; restarted, the workers kept training")
    expect(alive(agent[0]), "the agent did not survive the full disk")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("post", 1)  # two at once may be one
    run.process.send_signal(signal.SIGINT)
    run.ends(5)


def check_limit(work):
    run = Fake(work, "limit")
    run.says("started ")
    for life in range(6):
        run.wait_for("coordinator", life + 1)
        # Only one that was up is worth another life at all.
        wait_until(lambda: run.output.read_text().count("restarted,") == life, f"life {life + 1}", 30)
        time.sleep(0.2)
        kill(run.starts("coordinator")[life])
    run.ends(5)
    expect(len(run.starts("coordinator")) == 6, "the limit of 5 restarts in a row")
    run.says("again and is not started any more")
    run.says("dd2-coordinator ended with status 137 (killed by signal 9)")


def check_kill(work):
    """kill -9 of dd2 in the middle of a restart."""
    run = Fake(work, "kill", "--domains", "2", "--ranks", "1")
    run.wait_for("agent", 2)
    run.says("started ")
    kill(run.starts("agent")[0])
    kill(run.starts("coordinator")[0])
    run.wait_for("coordinator", 2)
    run.process.kill()
    run.ends(-9)


with Workspace() as workspace:
    programs = workspace.path / "bin"
    programs.mkdir()
    shutil.copy(binary(), programs / "dd2")
    for name, text in (("dd2-coordinator", COORDINATOR), ("dd2-agent", AGENT), ("dd2-worker", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for check in (check_restarts, check_refusal, check_full_disk, check_limit, check_kill):
        check(workspace)
