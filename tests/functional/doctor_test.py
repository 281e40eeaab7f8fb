"""`dd2 doctor` on this machine: what it finds, what it says where something is wrong, and nothing is left behind."""

import json
import os

from dd2 import Workspace, dd2, expect, expect_fails

CONFIG = "tests/configs/tiny.yaml"


def main():
    with Workspace() as work:
        folder = work.path / "runs"
        folder.mkdir()
        before = sorted(os.listdir(work.path))
        fine = dd2("doctor", CONFIG, "--run", folder, "--host", "127.0.0.1", "--json")
        expect(fine.returncode == 0, "dd2 doctor", fine)
        found = {one["what"]: one for one in json.loads(fine.stdout)["findings"]}
        for what in ("programs", "mpirun", "address", "open files", "/dev/shm", "disk", "space", "locks", "timeouts"):
            expect(found[what]["grade"] == "ok", f"{what}: {found.get(what)}")
        expect_fails(dd2("doctor", "--run", folder, "--host", "no-such-interface"), 4,
                     r"fail address +api.host: 'no-such-interface' is neither", "set api.host")
        expect_fails(dd2("doctor", "--run", "/proc/nothing", "--host", "127.0.0.1"), 4, "fail run folder",
                     "choose another with --run")
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "ib77"}
        expect_fails(dd2("doctor", "--run", folder, "--host", "127.0.0.1", env=environment), 4,
                     "fail GLOO_SOCKET_IFNAME", "unset it")
        expect_fails(dd2("doctor", CONFIG + ".none", "--run", folder), 7, "tiny.yaml.none")
        expect(sorted(os.listdir(work.path)) == before and not os.listdir(folder), "nothing is left")


main()
