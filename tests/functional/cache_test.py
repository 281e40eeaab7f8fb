"""The score cache: a second run finds every entry and asks the teacher for none; a damaged byte is
noticed and recomputed, and the final bits stay the same."""

import pathlib
import sys

from dd2 import Workspace, expect, expect_same

seed = int(sys.argv[1])
CONFIG = "tests/configs/tiny.yaml"


def cache_of(run):
    return run.result()["cache"]


def damage(folder):
    """Flips one bit in the middle of every blob file and table that holds scores; returns how many."""
    damaged = 0
    for path in sorted(pathlib.Path(folder).glob("slot-*/*")):
        if path.suffix not in (".blob", ".sst", ".log") or path.stat().st_size < 4096:
            continue
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        damaged += 1
    return damaged


with Workspace() as work:
    first = work.run(CONFIG, "first", seed=seed)
    # All count sequences with their scores; tiny.yaml takes 64.
    expect(cache_of(first) == {"hits": 0, "misses": 64, "corrupt": 0, "written": 64},
           f"the first run: {cache_of(first)}")
    second = work.run(CONFIG, "second", seed=seed, ranks=1)
    expect(cache_of(second) == {"hits": 64, "misses": 0, "corrupt": 0, "written": 0},
           f"the second run asked the teacher again: {cache_of(second)}")
    expect_same(first.digest(), second.digest())
    both = work.run(CONFIG, "both", seed=seed)  # each rank reads what both had written
    expect(cache_of(both) == {"hits": 64, "misses": 0, "corrupt": 0, "written": 0},
           f"the run on two ranks asked the teacher again: {cache_of(both)}")
    expect(damage(work.cache) > 0, "nothing to damage in the cache")
    third = work.run(CONFIG, "third", seed=seed)
    cache = cache_of(third)
    expect(cache["misses"] > 0 and cache["hits"] + cache["misses"] == 64,
           f"the damage was not noticed: {cache}")
    expect_same(first.digest(), third.digest())
