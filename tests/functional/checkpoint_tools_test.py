"""What people do with checkpoints: show, reshard, export, prune, the rule of what is kept, the interval,
quarantine, and a disk that is too small. None of it changes the bits of the run."""

import json
import os
import re
import shutil
import struct

from dd2 import Workspace, dd2, expect, expect_fails, expect_same, wait_until

TINY = "tests/configs/tiny.yaml"


def answer(*words):
    """What `dd2 checkpoint WORDS --json` prints."""
    process = dd2("checkpoint", *words, "--json")
    expect(process.returncode == 0, f"dd2 checkpoint {words[0]} failed", process)
    return json.loads(process.stdout)


def committed(folder):
    return [row["id"] for row in answer("ls", folder) if row["state"] == "committed"]


def digest(folder, identity=None):
    return answer("digest", folder, *(["--id", identity] if identity else []))["groups"]


def tensors(path):
    """{name: bytes} of a safetensors file, without our padding; read as anybody would."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8:8 + length]), content[8 + length:]
    return {name: data[entry["data_offsets"][0]:entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__" and not name.startswith("__pad__.")}


def check_disk(work):
    # Far more checkpoints and scores than any disk holds.
    process = dd2("run", TINY, "--run", work.path / "large", "--set", f"cache.path={work.cache}", "--set",
                  "checkpoint.keep_last=1000000000", "--set", "phases.1.sequences=100000000")
    expect_fails(process, 4, "the score cache may need [0-9.]+ [GT]B", "set cache.path to a folder on a larger disk")
    expect_fails(process, 4, "not enough space for the next checkpoints", "1000000001 of [0-9.]+ MB each",
                 re.escape(str(work.path / "large")), "lower checkpoint.keep_last")
    expect(not committed(work.path / "large"), "it began all the same")


def check_retention(run):
    """The run kept its last one, every fourth and the one with the best FDr, and nothing else."""
    shown = [answer("show", run.folder, "--id", identity) for identity in committed(run.folder)]
    count = run.result()["checkpoints"]["count"]
    ordinals = [one["ordinal"] for one in shown]
    expect(ordinals[-1] == count, f"the newest is number {ordinals[-1]} of {count}")
    expect([o for o in range(1, count + 1) if o % 4 == 0] == [o for o in ordinals if o % 4 == 0],
           f"every fourth: {ordinals}")
    curve = {(line["phase"], line["step"]): line["eval/fdr"]
             for line in run.record() if "eval/fdr" in line and line["kind"] != "eval"}
    expect(len(curve) >= 3, f"evaluations: {curve}")
    for one in shown:
        before = [at for at in curve if at <= (one["phase"], one["step"])]
        expect((one["evaluation"] is None) == (not before), f"{one}: {curve}")
        if before:
            expect(one["evaluation"] == {"phase": max(before)[0], "step": max(before)[1],
                                         "fdr": curve[max(before)]}, f"{one['evaluation']}: {curve}")
    best = min(curve, key=lambda at: (curve[at], [-x for x in at]))
    kept = [one for one in shown if one["evaluation"] and one["evaluation"]["fdr"] == curve[best]]
    expect(kept, f"the checkpoint of the best evaluation {best} is gone: {curve}, {ordinals}")
    more = [o for o in ordinals if o % 4 != 0 and o != count and o not in [one["ordinal"] for one in kept]]
    expect(not more, f"kept without a reason: {more} of {ordinals}")


def check_show(run):
    shown = answer("show", run.folder)
    expect(shown["world_size"] == 2 and len(shown["parts"]) == 2, f"{shown['parts']}")
    for part in shown["parts"]:
        path = run.folder / "checkpoints" / shown["id"] / part["file"]
        expect(path.stat().st_size == part["bytes"] and re.fullmatch("[0-9a-f]{32}", part["xxh3_128"]), f"{part}")
    expect(len(shown["groups"]) == 8 and len({g["elements"] for g in shown["groups"].values()}) == 1,
           f"{shown['groups']}")
    expect(shown["counters"]["generator_updates"] > 0 and shown["numeric_mode"], f"{shown}")
    text = dd2("checkpoint", "show", run.folder)
    expect(shown["config_digest"] in text.stdout and "generator.ema" in text.stdout, "show", text)
    expect_fails(dd2("checkpoint", "show", run.folder, "--id", "p9"), 7, "dd2 checkpoint ls")


def check_reshard(work, run):
    source = run.folder
    for ranks in (1, 3, 5):
        out = work.path / f"resharded-{ranks}"
        expect(answer("reshard", source, "--ranks", ranks, "--out", out)["parts"] == ranks, "parts")
        expect(digest(out) == digest(run.folder), f"{ranks} ranks: other digests")
        expect(len(answer("show", out)["parts"]) == ranks, "parts on the disk")
        expect(dd2("checkpoint", "verify", out).returncode == 0, "verify")
        source = out
    expect_fails(dd2("checkpoint", "reshard", run.folder, "--ranks", "2", "--out", source), 4, "there already")
    expect_fails(dd2("checkpoint", "reshard", source, "--ranks", "2", "--out", run.folder), 4, "holds a run")
    expect_fails(dd2("checkpoint", "reshard", run.folder, "--ranks", "0", "--out", work.path / "x"), 2, "ranks")


def check_export(work, run):
    out = work.path / "ema.safetensors"
    answer("export", run.folder, "--out", out)
    expect(dd2("export", run.folder, "--out", work.path / "model").returncode == 0, "dd2 export")
    whole = tensors(work.path / "model" / "generator.safetensors")
    network = {name: data for name, data in whole.items() if not name.startswith("tokenizer.")}
    expect(tensors(out) == network, "dd2 export has another network")
    answer("export", run.folder, "--out", out, "--network", "guidance", "--what", "param")
    expect(set(tensors(out)) == set(network) and tensors(out) != network, "guidance")
    expect_fails(dd2("checkpoint", "export", run.folder, "--out", out, "--network", "teacher"), 2, "teacher")
    early = next(i for i in committed(run.folder) if i.startswith("p001"))
    expect_fails(dd2("checkpoint", "export", run.folder, "--id", early, "--out", out), 4, "no generator")


def check_stopped_run(work, calm):
    """Of a run that was stopped in csd: prune, another layout of the newest checkpoint, a damaged one."""
    run = work.start(TINY, "stopped", seed=1, set=["checkpoint.keep_last=50", "checkpoint.interval=1"])
    run.wait_for(phase="csd", step=1)
    expect(dd2("pause", run.folder).returncode == 0, "pause")  # it is a short one
    expect_fails(dd2("checkpoint", "prune", run.folder), 3, "in use", "dd2 cancel")
    expect(run.status()["checkpoint_interval"]["seconds"] == 1, "checkpoint_interval")
    text = dd2("status", run.folder)
    expect("a checkpoint at least every 0:01" in text.stdout, "dd2 status", text)
    expect(dd2("cancel", run.folder).returncode == 0, "cancel")
    run.finish(6)
    ids = committed(run.folder)
    dry = answer("prune", run.folder, "--keep", "2", "--dry-run")
    expect(dry["deleted"] == ids[:-2] and committed(run.folder) == ids, f"dry run: {dry}")
    pruned = answer("prune", run.folder, "--keep", "2")
    expect(pruned["deleted"] == ids[:-2] and pruned["freed_bytes"] > 0, f"{pruned}")
    expect(committed(run.folder) == ids[-2:], "what is left")
    # The newest is damaged, the one before it is cut in three.
    bad = next((run.folder / "checkpoints" / ids[-1]).glob("rank-1-*"))
    content = bytearray(bad.read_bytes())
    content[-5] ^= 4
    bad.write_bytes(content)
    answer("reshard", run.folder, "--id", ids[-2], "--ranks", "3", "--out", work.path / "cut")
    shutil.rmtree(run.folder / "checkpoints" / ids[-2])
    os.rename(work.path / "cut" / "checkpoints" / ids[-2], run.folder / "checkpoints" / ids[-2])
    run.resume()
    expect_same(calm.digest(), run.digest())
    log = (run.folder / "logs" / "coordinator.log").read_text()
    expect(f"resumed from checkpoint {ids[-2]}" in log, "it did not resume from the resharded one")
    bad_ones = [row for row in answer("ls", run.folder) if row["state"] == "quarantined"]
    expect([row["id"] for row in bad_ones] == [ids[-1]] and "bytes changed" in bad_ones[0]["reason"], f"{bad_ones}")
    text = dd2("checkpoint", "ls", run.folder)
    expect(re.search(f"{ids[-1]} +quarantined .*bytes changed", text.stdout), "ls", text)


def check_interval(work):
    """Checkpoints that no phase asked for. That they leave the bits alone is shown by check_stopped_run."""
    run = work.start(TINY, "interval", seed=1, set=[*(f"phases.{i}.checkpoint_every=0" for i in range(2, 7)),
                                                    "phases.4.cycles=1000", "phases.4.eval_every=0",
                                                    "checkpoint.interval=1", "checkpoint.keep_last=1000"])
    run.wait_for(phase="csd", step=1)

    def inside():
        return [i for i in committed(run.folder) if i.startswith("p004")]

    wait_until(lambda: len(inside()) >= 3, "three checkpoints inside csd")
    expect(dd2("cancel", run.folder).returncode == 0, "cancel")
    run.finish(6)
    expect("checkpoint.interval = 1" in (run.folder / "logs" / "coordinator.log").read_text(), "it was not asked for")


with Workspace() as workspace:
    check_disk(workspace)
    kept = workspace.run(TINY, "kept", seed=1, set=["checkpoint.keep_last=1", "checkpoint.keep_every=4",
                                                    "checkpoint.keep_best=1"])
    undisturbed = workspace.run(TINY, "calm", seed=1, set=["checkpoint.keep_last=100"])
    for check, arguments in ((check_retention, (kept,)), (check_show, (undisturbed,)),
                             (check_reshard, (workspace, undisturbed)), (check_export, (workspace, undisturbed)),
                             (check_stopped_run, (workspace, undisturbed)),
                             (check_interval, (workspace,))):
        check(*arguments)
        print(f"{check.__name__}: ok", flush=True)
