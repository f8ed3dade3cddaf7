"""One life of the run, to do something to: in ranks of the pool, which start in a moment, or by the real launcher."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import read_record
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import RankRecord
from launch.processes import catches
from tests.distributed.training import train
from tests.faults.fixture import PLAIN, STEPS_FOLDER, Record, record
from tests.rank_pool import Rank, at_work

ROOT = Path(__file__).parents[2]
LEFT_BEHIND_S = 5.0
"""How long what belonged to a killed process may take to be gone."""
GRACE_S = 3.0
"""As the launcher has it: how long the others may take to end by themselves once one has failed."""
HANG_S = 60.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def life_of_a_rank(ranks: Any, folder: Path, config: str, run: str, *arguments: str) -> int:
    """Runs in the rank. Signals that come before or after the training are lost, as under the launcher's agent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return train(ranks, folder, config, run, *arguments)


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came to hold in time."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def is_running(pid: int) -> bool:
    found = stat(pid)
    return found is not None and found.state not in "ZX"


def kill(pids: list[int], number: int = signal.SIGKILL) -> bool:
    """Sends a signal to all of them at once. Returns whether one was there to receive it."""
    received = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            was_running = is_running(pid)
            os.kill(pid, number)
            received.append(was_running)
    return any(received)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """At once, unlike a look through all of /proc: what the kernel lists may lack one while others end."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def family_of(rank: int) -> dict[str, list[int]]:
    """Loading processes, which are forks of their rank, and the process that writes checkpoints, which is not."""
    own = command_of(rank)
    children = children_of(rank)
    forks = [child for child in children if command_of(child) == own]
    return {"loader": forks, "writer": [child for child in children if child not in forks]}


# ---------------------------------------------------------------- in the pool


class PooledLife:
    """Ranks of the pool at work. There is no launcher here: who is left after a death is ended as one would."""

    def __init__(self, ranks: list[Rank]) -> None:
        self.ranks = ranks
        self.pids = [rank.process.pid or 0 for rank in ranks]

    def processes(self) -> dict[str, list[int]]:
        """Process ids by what they are; "launcher" is empty."""
        families = [family_of(pid) for pid in self.pids]
        return {
            "rank": self.pids,
            "loader": [pid for family in families for pid in family["loader"]],
            "writer": families[0]["writer"],
        }

    def ends_within(self, seconds: float) -> bool:
        """Whether a rank ended, well or not, before the time was over."""
        return bool(wait(self.endings(), max(0.0, seconds)))

    def endings(self) -> list[Any]:
        """To wait for: each is ready when its rank has ended."""
        return [rank.answers for rank in self.ranks if not rank.done]

    def ready_for_signals(self) -> list[int]:
        return [pid for pid in self.pids if catches(pid, signal.SIGUSR2)]

    def wait(self, seconds: float = HANG_S) -> list[int | None]:
        """Exit codes by rank, None for one that failed or was killed. Who has not ended soon after the first failure,
        such as a rank that waits for a dead one to join, is killed.

        Raises:
            TimeoutError: when none ended.
        """
        deadline = time.monotonic() + seconds
        while waiting := [rank for rank in self.ranks if not rank.done]:
            ready = wait([rank.answers for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for rank in waiting:
                if rank.answers in ready:
                    rank.take_answer()
                    if rank.failure is not None:
                        deadline = min(deadline, time.monotonic() + GRACE_S)
        if not any(rank.done for rank in self.ranks):
            raise TimeoutError(f"no rank ended within {seconds:g} s")
        kill([rank.process.pid or 0 for rank in waiting])
        return [rank.value for rank in self.ranks]

    def failures(self) -> str:
        """What the ranks say went wrong, to be shown."""
        return "\n".join(f"rank {rank.number}: {rank.failure}" for rank in self.ranks if rank.failure)

    def left(self) -> list[int]:
        """What still lives in the ranks' sessions."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) in self.pids]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid) if is_running(pid) else None
    except ProcessLookupError:
        return None


@contextlib.contextmanager
def pooled(folder: Path, config: str, run: str, world_size: int, *arguments: str) -> Iterator[PooledLife]:
    """A life of folder/run. What it leaves in the block is killed at the end of it."""
    steps = folder / "steps" / run
    steps.mkdir(parents=True, exist_ok=True)
    environment = {STEPS_FOLDER: str(steps)}
    with at_work(life_of_a_rank, world_size, folder, config, run, *arguments, environment=environment) as ranks:
        yield PooledLife(ranks)


def undisturbed(
    folder: Path,
    config: str = PLAIN,
    *overrides: str,
    look: Callable[[PooledLife], None] = lambda life: None,
    seconds: float = HANG_S,
) -> Record:
    """Trains once from beginning to end on two ranks; the run is left in folder/undisturbed.

    Args:
        look: called while it is at work, to take measures.
        seconds: it may take.
    """
    with pooled(folder, config, "undisturbed", 2, *overrides) as life:
        look(life)
        codes = life.wait(seconds)
        assert codes == [0, 0], f"the undisturbed run ended with {codes}:\n{life.failures()}"
    return record(folder / "undisturbed")


# ---------------------------------------------------------------- by the launcher


class LaunchedLife:
    """`dist-train train`, and all below it, known by a mark in their environment."""

    def __init__(
        self,
        folder: Path,
        run: str,
        *words: str,
        before: Sequence[str] = (),
        run_dir: Path | None = None,
        limit: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.run_dir = folder, run_dir or folder / run
        self._mark = f"DIST_TRAIN_FAULTS_LIFE={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        steps = folder / "steps" / run
        steps.mkdir(parents=True, exist_ok=True)
        self.said = folder / f"{run}.said"
        with open(self.said, "ab") as said:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "dist_train.launch", "train", *words],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "GLOO_SOCKET_IFNAME": "lo",
                    "PYTHONPATH": str(ROOT),
                    STEPS_FOLDER: str(steps),
                    name: value,
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                start_new_session=True,
                preexec_fn=limit,
            )

    def __enter__(self) -> "LaunchedLife":
        return self

    def __exit__(self, *exception: object) -> None:
        kill([self.process.pid, *self.left()])
        self.process.wait()

    def server(self) -> int | None:
        """The fork server, from which agents and ranks come."""
        found = [pid for pid in children_of(self.process.pid) if "launch/node/fork_server.py" in command_of(pid)]
        return found[0] if found else None

    def agent(self) -> int | None:
        """The agent of the generation under way: the oldest child of the fork server; ranks lead sessions."""
        server = self.server()
        found = [pid for pid in children_of(server) if _session(pid) not in (None, pid)] if server else []
        return found[0] if found else None

    def processes(self) -> dict[str, list[int]]:
        """Process ids by what they are."""
        server, agent = self.server(), self.agent()
        ranks = self.ranks(agent)
        families = [family_of(pid) for pid in ranks]
        return {
            "launcher": [self.process.pid],
            "server": [server] if server else [],
            "agent": [agent] if agent else [],
            "rank": ranks,
            "loader": [pid for family in families for pid in family["loader"]],
            "writer": families[0]["writer"] if families else [],
        }

    def ranks(self, agent: int | None) -> list[int]:
        """Living ranks, in the order of their numbers, that the agent has started."""
        found = (read_record(RankRecord, path) for path in self.run_dir.glob("generations/*/ranks/*.json"))
        own = sorted((one for one in found if one and one.agent == agent), key=lambda one: one.rank)
        return [one.pid for one in own if one.lives()]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, seconds))
        return self.ended()

    def wait(self, seconds: float = HANG_S) -> int:
        """The exit code.

        Raises:
            TimeoutError: when it does not end.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the launcher did not end within {seconds:g} s") from None

    def left(self) -> list[int]:
        """Processes of this launch that still run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            marks = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return self._mark.encode() in marks and is_running(pid)

    def tail(self) -> str:
        return self.said.read_text(errors="replace")[-2000:]
