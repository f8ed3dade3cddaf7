"""A real SLURM on this machine: munged, slurmctld and two slurmd, our children on free ports in a scratch folder.

Nothing system-wide is touched: munge has its own key and socket. `proctrack/linuxproc` is the setup in which SLURM is
least able to sweep up what a job leaves behind, so it is the one to test on.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import leaks

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("127.0.0.1", "127.0.0.2")
FINISHED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}
REQUEUE_WAIT = 5
"""Seconds after which SLURM starts a requeued job again, and in which a node must have started a step; 120 unless told
otherwise."""
PATH_WITH_DAEMONS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

CONFIGURATION = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_wait}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={controller_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
KillWait=30
SlurmdTimeout=20
JobRequeue=1
LaunchParameters=use_interactive_step
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs=4 RealMemory=2000 State=UNKNOWN"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `scontrol show job` says of a job: its state (`COMPLETED`) and the exit code of its batch script."""

    id: int
    state: str
    exit_code: int
    restarts: int
    fields: Mapping[str, str]

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class Cluster:
    """Starts on entering, is gone without a trace on leaving.

    Raises:
        RuntimeError: on entering, when the nodes do not come up (with the end of every daemon's log); on leaving, when
            a process of the cluster or of its jobs was still alive after everything had been ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.environment = _clean_environment() | {"SLURM_CONF": str(self.configuration), "PATH": PATH_WITH_DAEMONS}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self._write_files()
        try:
            munge = self.folder / "munge"
            names = {"key": "key-file", "socket": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
            paths = [f"--{option}={munge / name}" for name, option in names.items()]
            self._start("munged", "munged", "--foreground", "--force", "--num-threads=2", *paths)
            wait_until((munge / "socket").exists, 20, "munged's socket")
            self._start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
            for name in NODES:
                self.start_node(name)
            wait_until(self._is_up, 60, "both nodes to be idle")
        except BaseException as error:
            logs = self._logs()
            self._stop()
            raise RuntimeError(f"the test cluster did not come up: {error}\n{logs}") from error
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.cancel_all()
        finally:
            left = self._stop()
        if left:
            raise RuntimeError(f"the cluster left behind: {left}")

    def cancel_all(self) -> None:
        """Returns when no job is left and both nodes are idle. Raises TimeoutError."""
        for daemon in self._daemons.values():
            daemon.send_signal(signal.SIGCONT)  # a test may have held a node
        self.run(["scancel", "--user", getpass.getuser()])
        wait_until(lambda: not self.run(["squeue", "--noheader"]).stdout.strip(), 30, "the queue to be empty")
        wait_until(self._is_up, 30, "both nodes to be idle")

    def run(self, command: Sequence[str], *, check: bool = True, timeout: float = 60, **more: object) -> "Finished":
        """Runs a command inside the cluster (SLURM_CONF set), and returns it finished, with its output as text.

        Raises:
            AssertionError: when it fails and `check` is set; the message has its output.
        """
        done = subprocess.run(  # type: ignore[call-overload]
            list(command), env=self.environment, text=True, capture_output=True, timeout=timeout, **more
        )
        assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> int:
        """Gives `sbatch ARGUMENTS` from folder `cwd`; returns the job's id."""
        command = ["env", *(f"{name}={value}" for name, value in (environment or {}).items())]
        done = self.run([*command, "sbatch", "--parsable", *arguments], cwd=cwd)
        return int(done.stdout.strip().split(";")[0])

    def job(self, job: int | str) -> Job:
        """What the controller knows of a job; `12_3` is task 3 of array 12."""
        line = self.run(["scontrol", "--oneliner", "show", "job", str(job)]).stdout.splitlines()[0]
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        code, by_signal = (int(number) for number in fields["ExitCode"].split(":"))
        return Job(
            id=int(fields["JobId"]),
            state=fields["JobState"],
            exit_code=code or (128 + by_signal if by_signal else 0),
            restarts=int(fields["Restarts"]),
            fields=fields,
        )

    def wait(self, job: int | str, state: str | None = None, *, timeout: float = 90) -> Job:
        """Waits until the job is over, or has reached `state`, and returns it.

        Raises:
            TimeoutError: naming the state it was last seen in.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = self.job(job)
            if seen.state == state or seen.finished:
                return seen
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {seen.state} after {timeout:.0f} s: {seen.fields}\n{self._logs()}")
            time.sleep(0.4)  # each look is a process

    def start_node(self, name: str) -> None:
        """Starts a node's slurmd, which brings it back if it was killed."""
        self._start(f"slurmd-{name}", "slurmd", "-D", "-f", str(self.configuration), "-N", name)

    def hold_nodes(self, *names: str) -> str:
        """A line of bash that keeps nodes from answering until the permission to start a step has expired."""
        pids = " ".join(str(self._daemons[f"slurmd-{name}"].pid) for name in names)
        return f"kill -STOP {pids}; (sleep {REQUEUE_WAIT + 2}; kill -CONT {pids}) &"

    def kill_node(self, name: str, *, spare: Sequence[int] = ()) -> None:
        """What a power loss leaves of a node: slurmd, its step daemons and the jobs' processes on it are gone at once.

        The controller finds out by itself, some SlurmdTimeout later. Those to `spare` live on.
        """
        daemon = self._daemons.pop(f"slurmd-{name}")
        victims = {pid for pid, _ in _tagged(f"SLURMD_NODENAME={name}")} & {pid for pid, _ in self._tagged()} - {*spare}
        above = {ancestor for pid in victims for ancestor in _ancestors(pid)}
        steps = {pid for pid, command in self._tagged() if pid in above and "slurmstepd" in command}
        for number in (signal.SIGSTOP, signal.SIGKILL):  # nobody sees another one die
            for pid in (daemon.pid, *steps, *victims):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        daemon.wait()

    def pids_on(self, name: str, command: str) -> list[int]:
        """Processes of jobs on a node whose command line has these words in it, the oldest first."""
        here = {pid for pid, _ in _tagged(f"SLURMD_NODENAME={name}")}
        return sorted(pid for pid, line in self._tagged() if pid in here and command in line)

    def processes(self) -> list[str]:
        """`pid command` of everything alive that the cluster or one of its jobs started, wherever it has gone since."""
        return [f"{pid} {command}" for pid, command in self._tagged()]

    def _tagged(self) -> list[tuple[int, str]]:
        return _tagged(f"SLURM_CONF={self.configuration}")

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        controller, *others = _free_ports(1 + len(NODES))
        nodes = [NODE.format(name=n, host=socket.gethostname(), port=p) for n, p in zip(NODES, others, strict=True)]
        values = {"folder": self.folder, "user": getpass.getuser(), "controller_port": controller}
        values["requeue_wait"] = REQUEUE_WAIT
        values["first_job"] = 1 + secrets.randbelow(2_000)  # a training's port follows from it: not another cluster's
        text = CONFIGURATION.format(**values, nodes="\n".join(nodes), names=",".join(NODES))
        self.configuration.write_text(text)

    def _start(self, name: str, *command: str) -> None:
        command = ("setpriv", "--pdeathsig", "KILL", *command)  # a pytest that is killed leaves no daemon behind
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        leaks.SERVERS.add(self._daemons[name].pid)

    def _is_up(self) -> bool:
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                raise RuntimeError(f"{name} ended with {daemon.returncode}")
        states = self.run(
            ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%t"], check=False
        ).stdout.split()
        return states == ["idle"] * len(NODES)

    def _stop(self) -> list[str]:
        """Ends the daemons, newest first, and then whatever else carries our tag; returns what that was."""
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in reversed(self._daemons.values()):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        leaks.SERVERS.difference_update(daemon.pid for daemon in self._daemons.values())
        _becomes_true(lambda: not self.processes(), 5)
        left = self._tagged()
        for pid, _ in left:
            os.kill(pid, signal.SIGKILL)
        return [f"{pid} {command}" for pid, command in left]

    def account(self) -> str:
        """The queue, the jobs as the controller has them, the nodes, and the end of every daemon's log."""
        asked = (["squeue", "--all"], ["scontrol", "--oneliner", "show", "job"], ["sinfo", "--Node", "--long"])
        told = [f"--- {' '.join(command)}\n{self.run(command, check=False).stdout}" for command in asked]
        return "\n".join([*told, *map(_end_of, sorted(self.folder.glob("slurm*.log")))])

    def _logs(self) -> str:
        paths = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.glob("munge/log")])
        return "\n".join(map(_end_of, paths))


Finished = subprocess.CompletedProcess[str]


def missing_programs() -> list[str]:
    """The programs of a SLURM installation that are not on this machine."""
    return [name for name in NEEDED if shutil.which(name, path=PATH_WITH_DAEMONS) is None]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls `condition`. Raises TimeoutError, saying that it waited for `what`."""
    if not _becomes_true(condition, seconds):
        raise TimeoutError(f"waited {seconds:.0f} s for {what}")


def _becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)  # many conditions ask a process or read a whole file
    return True


def _end_of(log: Path) -> str:
    return f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"


def _clean_environment() -> dict[str, str]:
    """Ours, without an allocation that these tests may themselves be running in."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def _free_ports(count: int) -> list[int]:
    """Ports below the range that the kernel hands out for outgoing connections, so that none is taken in between."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            break
        found.append(pid)
    return found


def _tagged(tag: str) -> list[tuple[int, str]]:
    """Every process with this variable; with our slurm.conf: daemons, steps, jobs and their orphans."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if tag.encode() in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((int(entry.name), command))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
