"""Faults on real processes: `scripts/chaos --faults N --seed S`.

Runs one undisturbed run on one rank, then runs on several domains into which it throws faults until there
were N of them. Each faulted run must end with the bits and the record of the undisturbed one; what an
operator would do after a dead run (`dd2 run --resume`) is done here, too. At the end a table: faults by
kind, time until the coordinator noticed, time until the next finished step, steps done again, goodput.

Standard library only; see faults.py for the faults, ../functional/dd2.py for the helpers."""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "functional"))

from dd2 import Workspace, expect, expect_same  # noqa: E402
import faults as kinds  # noqa: E402

CONFIG = "tests/configs/chaos.yaml"
RESUMES_IN_A_ROW = 8


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=40, help="faults in all (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the training")
    parser.add_argument("--domains", type=int, default=2, help="failure domains (default 2)")
    parser.add_argument("--ranks", type=int, default=1, help="workers of each domain (default 1)")
    parser.add_argument("--per-run", type=int, default=25, help="faults in one run at most (25)")
    parser.add_argument("--kinds", default="", help="only these, with commas between: "
                        + ", ".join(kinds.ALL))
    parser.add_argument("--logs", help="copy the logs and incidents of every run into this folder")
    parser.add_argument("--json", help="write the faults and figures into this file as well")
    return parser.parse_args()


class Chaos:
    """Throws faults at one run until it is over or has had enough of them."""

    def __init__(self, run, rng, deck):
        self.run, self.rng, self.deck = run, rng, deck
        self.done = []      # what was thrown, with its times
        self.resumes = 0

    def alive(self):
        return self.run.process.poll() is None

    def throw(self, most):
        """Until the run is over; at most `most` faults. The run may need to be resumed meanwhile."""
        idle_resumes = 0
        while True:
            before = kinds.position(self.run)
            while self.alive() and len(self.done) < most:
                self.one()
            code = self.run.process.wait(600)
            if code == 0:
                return
            idle_resumes = idle_resumes + 1 if kinds.position(self.run) == before else 0
            expect(idle_resumes < RESUMES_IN_A_ROW, f"no progress over {idle_resumes} resumes\n{self.run.tail()}")
            kinds.heal(self.run)
            self.run.wait_gone()
            self.resumes += 1
            self.run.start(resume=True)

    def one(self):
        for domain in getattr(self.run, "far", []):
            domain.keep()
        kind = self.deck.next()
        moment = self.rng.choice(("any", "any", "border", "commit"))
        if not kinds.wait_for_moment(self.run, moment, self.rng):
            return
        fault = {"kind": kind, "moment": moment, "position": kinds.position(self.run),
                 "members": self.run.members(), "unix": time.time()}
        detail = kinds.ALL[kind](self.run, self.rng)
        if detail is None:
            return  # nothing there to hit just now
        fault["detail"] = detail
        print(f"  {len(self.done) + 1:3d} {kind:18s} {moment:7s} at {fault['position']}  {detail}", flush=True)
        self.done.append(fault)
        # Mostly a fault is survived before the next; sometimes they come together.
        if self.rng.random() < 0.75:
            kinds.wait_for_progress(self.run, fault["position"], self.rng)


class Deck:
    """Every kind as often as every other, in random order."""

    def __init__(self, names, rng):
        self.names, self.rng, self.cards = names, rng, []

    def next(self):
        if not self.cards:
            self.cards = list(self.names)
            self.rng.shuffle(self.cards)
        return self.cards.pop()


NOTICED_SECONDS_MAX = 30


def caused(fault, incident, until):
    """Whether the incident is about the process or domain that was hit; where the fault names none, whether
    it came before the next fault."""
    noticed = incident["unix_ms"] / 1000 - fault["unix"]
    if incident["kind"] == "joined" or not -0.05 <= noticed <= NOTICED_SECONDS_MAX:
        return False
    pid = re.search(r"pid (\d+)", fault["detail"])
    domain = re.match(r"(local|far)-\d+", fault["detail"])
    if fault["kind"] == "kill coordinator":
        return incident["kind"] == "coordinator"
    if domain:
        return incident["domain"] == domain.group()
    if pid and "agent" not in fault["kind"]:
        return f"(pid {pid.group(1)})" in incident["reason"]
    return incident["unix_ms"] / 1000 <= until


def join_incidents(run, done):
    """Gives each fault the first incident that it has caused."""
    incidents = run.incidents()
    for number, fault in enumerate(done):
        until = done[number + 1]["unix"] if number + 1 < len(done) else float("inf")
        for incident in incidents:
            if incident.get("taken") or not caused(fault, incident, until):
                continue
            incident["taken"] = True
            fault["noticed"] = max(0, incident["unix_ms"] / 1000 - fault["unix"])
            if incident["resumed_seconds"] is not None:  # else the run ended before it could go on
                fault["resumed"] = fault["noticed"] + incident["resumed_seconds"]
            fault["steps_lost"] = incident["steps_lost"]
            fault["reason"] = incident["reason"].splitlines()[0]
            break


def column(values, form="{:.2f}"):
    if not values:
        return "-"
    return f"{form.format(statistics.median(values))} / {form.format(max(values))}"


def table(done):
    print(f"\n{'fault':20s} {'count':>5s} {'noticed, s':>14s} {'next step, s':>14s} {'steps again':>14s}")
    print(f"{'':26s} {'med / max':>14s} {'med / max':>14s} {'sum / max':>14s}")
    for kind in kinds.ALL:
        of_kind = [fault for fault in done if fault["kind"] == kind]
        if not of_kind:
            continue
        lost = [fault["steps_lost"] for fault in of_kind if "steps_lost" in fault]
        print(f"{kind:20s} {len(of_kind):5d} {column([f['noticed'] for f in of_kind if 'noticed' in f]):>14s} "
              f"{column([f['resumed'] for f in of_kind if 'resumed' in f]):>14s} "
              f"{f'{sum(lost)} / {max(lost)}' if lost else '-':>14s}")


def main():
    options = arguments()
    rng = random.Random(options.seed)
    names = [name for name in kinds.ALL if not options.kinds or name in options.kinds.split(",")]
    isolated = os.environ.get("DD2_CHAOS_ISOLATED") == "1"
    if isolated:
        kinds.make_network()
    else:
        for name in set(names) & set(kinds.NEED_NAMESPACES):
            kinds.NOT_POSSIBLE.append(f"{name}: this machine gives no mount and network namespace of our own")
        names = [name for name in names if name not in kinds.NEED_NAMESPACES]
    expect(names, f"--kinds: choose from {', '.join(kinds.ALL)}")
    deck = Deck(names, rng)
    figures = {"faults": [], "runs": []}
    with Workspace() as work:
        begun = time.time()
        calm = work.run(CONFIG, "calm", seed=options.seed, ranks=1, domains=1, timeout=900)
        print(f"undisturbed run on one rank: {time.time() - begun:.1f} s", flush=True)
        while len(figures["faults"]) < options.faults:
            name = f"run-{len(figures['runs']) + 1}"
            left = options.faults - len(figures["faults"])
            victim = work.new_run(CONFIG, name, seed=options.seed, ranks=options.ranks, domains=options.domains,
                                  cache=work.path / f"cache-{name}",
                                  set=[f"api.host={kinds.HERE}"] if isolated else [])
            if isolated:
                kinds.give_disk(victim)
                victim.far = [kinds.FarDomain(victim, 1)]
            victim.start()
            print(f"{name}:", flush=True)
            chaos = Chaos(victim, rng, deck)
            begun = time.time()
            chaos.throw(min(left, options.per_run))
            seconds = time.time() - begun
            victim.wait_gone()
            join_incidents(victim, chaos.done)
            if options.logs:
                shutil.copytree(victim.folder / "logs", pathlib.Path(options.logs) / name, dirs_exist_ok=True)
                shutil.copy(victim.folder / "incidents.jsonl", pathlib.Path(options.logs) / name)
            for number, fault in enumerate(chaos.done, 1):
                if fault.get("steps_lost"):
                    print(f"  fault {number} ({fault['kind']}, {fault['members']} ranks in the generation) cost "
                          f"{fault['steps_lost']} finished steps: {fault['reason']}", flush=True)
            busy = sum(line["step_seconds"] for line in kinds.lines(victim))
            expect_same(calm.digest(), victim.digest())
            expect(calm.record() == victim.record(), f"metrics.jsonl of {name} differs from the undisturbed one")
            figures["faults"] += chaos.done
            figures["runs"].append({"name": name, "faults": len(chaos.done), "resumes": chaos.resumes,
                                    "seconds": seconds, "busy_seconds": busy})
            print(f"{name}: {len(chaos.done)} faults, {chaos.resumes} resumes, {seconds:.1f} s "
                  f"({busy / seconds:.0%} of it in steps that count); state and record are those of the "
                  "undisturbed run", flush=True)
            expect(chaos.done, "no fault met the run")
            if isolated:
                kinds.take_disk(victim)
    table(figures["faults"])
    for skipped in kinds.NOT_POSSIBLE:
        print(f"NOT DONE: {skipped}")
    print(f"\n{len(figures['faults'])} faults in {len(figures['runs'])} runs: every final state and record "
          "is bitwise that of the undisturbed run")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
