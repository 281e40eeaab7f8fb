"""A real Slurm on this machine for tests: munged, slurmctld and several slurmd, each with its own folder and
port, started and ended by us. Needs root (slurmd does) and the packages slurm-wlm and munge."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

from dd2 import expect, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd")
FIRST_NODE = 1
MEMORY = 1600  # MiB of a node, by its configuration; not enforced


def missing():
    """Why there can be no cluster here; empty: there can be one."""
    if os.geteuid() != 0:
        return "slurmd wants root"
    absent = [name for name in PROGRAMS if not program(name)]
    return f"missing programs: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else ""


def program(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_ports(count):
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Cluster:
    """with Cluster(folder, nodes=4) as cluster: its nodes are n1 ... n4."""

    def __init__(self, folder, nodes=4, cpus=8, slurmd_timeout=10, settings=()):
        self.folder, self.cpus = pathlib.Path(folder), cpus
        self.names = [f"n{i}" for i in range(FIRST_NODE, FIRST_NODE + nodes)]
        self.slurmd_timeout, self.settings = slurmd_timeout, settings
        self.daemons = {}  # name -> Popen
        self.conf = self.folder / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}

    # ---- configuration ----------------------------------------------------------------------

    def write(self):
        self.folder.mkdir(mode=0o755)
        for name in ("state", "spool", "log", "munge"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        control, *ports = free_ports(1 + len(self.names))
        host = socket.gethostname().split(".")[0]
        lines = [f"ClusterName=dd2-{os.getpid()}", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={control}",
                 "SlurmUser=root", "SlurmdUser=root", "AuthType=auth/munge",
                 f"AuthInfo=socket={self.folder}/munge/socket,cred_expire=10", "CredType=cred/munge", "MpiDefault=none",
                 f"StateSaveLocation={self.folder}/state", f"SlurmdSpoolDir={self.folder}/spool/%n",
                 f"SlurmctldPidFile={self.folder}/slurmctld.pid", f"SlurmdPidFile={self.folder}/%n.pid",
                 f"SlurmctldLogFile={self.folder}/log/slurmctld.log", f"SlurmdLogFile={self.folder}/log/%n.log",
                 "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "SwitchType=switch/none",
                 "SelectType=select/cons_res", "SelectTypeParameters=CR_CPU", "SchedulerType=sched/backfill",
                 "SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_setup_env_fail,bf_interval=2",
                 "ReturnToService=2", f"SlurmdTimeout={self.slurmd_timeout}", "InactiveLimit=0", "KillWait=5",
                 "MinJobAge=3600", "JobRequeue=1", "AccountingStorageType=accounting_storage/none",
                 "JobAcctGatherType=jobacct_gather/none", "PreemptType=preempt/partition_prio",
                 "PreemptMode=REQUEUE", "SlurmdParameters=config_overrides", *self.settings]
        for name, port in zip(self.names, ports):
            lines.append(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                         f"RealMemory={MEMORY} State=UNKNOWN")
        nodes = ",".join(self.names)
        lines += [f"PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20",
                  f"PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10"]
        self.conf.write_text("\n".join(lines) + "\n")

    # ---- daemons ------------------------------------------------------------------------------

    def start(self, name):
        if name == "munged":
            words = [program("munged"), "--foreground", "--force", "--key-file", self.folder / "munge.key",
                     "--socket", self.folder / "munge" / "socket", "--pid-file", self.folder / "munge" / "pid",
                     "--log-file", self.folder / "log" / "munged.log", "--seed-file", self.folder / "munge" / "seed"]
        elif name == "slurmctld":
            words = [program("slurmctld"), "-D", "-f", self.conf]
        else:
            words = [program("slurmd"), "-D", "-N", name, "-f", self.conf]
        with open(self.folder / "log" / f"{name}.out", "ab") as sink:
            self.daemons[name] = subprocess.Popen([str(word) for word in words], env=self.env, stdin=subprocess.DEVNULL,
                                                  stdout=sink, stderr=sink, start_new_session=True)

    def kill(self, name, sign=signal.SIGKILL):
        """The daemon alone, not what it started."""
        self.daemons[name].send_signal(sign)
        self.daemons[name].wait(30)

    def __enter__(self):
        self.write()
        self.start("munged")
        wait_until(lambda: (self.folder / "munge" / "socket").exists(), "munged", 20)
        self.start("slurmctld")
        for name in self.names:
            self.start(name)
        wait_until(lambda: self.idle() == set(self.names), f"idle nodes; logs in {self.folder}/log", 60)
        return self

    def __exit__(self, *_):
        self.call("scancel", "--user", "root", check=False)
        deadline = time.monotonic() + 20
        while self.call("squeue", "-h", "-o", "%i", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.3)
        for name in reversed(list(self.daemons)):
            process = self.daemons[name]
            if process.poll() is None:
                process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # ---- questions ----------------------------------------------------------------------------

    def call(self, *words, check=True):
        done = subprocess.run([str(word) for word in words], env=self.env, capture_output=True, text=True,
                              check=False, timeout=60)
        if check:
            expect(done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def idle(self):
        lines = self.call("sinfo", "-h", "-N", "-o", "%N %t", check=False).split("\n")
        return {line.split()[0] for line in lines if line.endswith(" idle")}

    def state(self, job):
        """'RUNNING', 'PENDING' ...; '' for a job that is forgotten."""
        return self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).strip()

    def nodes(self, job):
        listed = self.call("squeue", "-h", "-j", job, "-o", "%N").strip()
        return self.call("scontrol", "show", "hostnames", listed).split() if listed else []

    def lose(self, node):
        """The machine is off: SIGKILL to its slurmd, to its steps and to all that they have started; they are gone."""
        gone = [self.daemons[node].pid]
        for step, below in self.steps():
            words = [commands(pid) for pid in below]
            script = any(f"{self.folder}/spool/{node}/".encode() in line for line in words)
            # Not its srun, which works on the batch host.
            agent = any(line.split(b"\0")[0].endswith(b"dd2-agent") and str(self.folder.parent).encode() in line and
                        any(f"--domain\0{node}{end}".encode() in line for end in ("\0", "-")) for line in words)
            if script or agent:
                gone += [step, *below]
        # All stand still before the first one ends, and children end before their parents (the kernel wakes a stopped
        # group that is orphaned): none has time to report the end of another, as the watcher of srun does.
        for sign, pids in ((signal.SIGSTOP, gone), (signal.SIGKILL, reversed(gone))):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
        self.daemons[node].wait(30)
        # One that has ended has no command line any more, even where nobody has waited for it.
        wait_until(lambda: not any(commands(pid) for pid in gone), f"the end of all on {node}", 30)

    def steps(self):
        """[(pid of a slurmstepd of any cluster, pids of all below it)]"""
        parents = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        found = []
        for pid in parents:
            if not commands(pid).startswith(b"slurmstepd"):
                continue
            below, frontier = [], {pid}
            while frontier:
                frontier = {child for child, parent in parents.items() if parent in frontier}
                below += frontier
            found.append((pid, below))
        return found


def commands(pid):
    """The command line of a process, words ended by zeros; empty when it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
