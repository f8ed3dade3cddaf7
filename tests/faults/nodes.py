"""Two nodes without a scheduler: a launcher is killed and started again with the same command, over and over.

Both share a run directory and meet over loopback. A kill comes at a random moment of a start, of training, of a save or
of an evaluation, and the next start at once or when the other node has noticed. Some runs have the second node in a PID
namespace of its own, where Linux allows that: neither node can see then whether the other one's processes live, as on
two machines. Every third run meets by c10d, where the nodes have no numbers.
"""

import itertools
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.rundir.records import RunState
from tests.faults.fixture import EVALUATE_EVERY, PLAIN, record
from tests.faults.kill_plan import Damage, Lost, last_step
from tests.faults.kills import MOST_FAILURES, START_S, TRAINING_S, make_checkpoints, nothing_left, prepare
from tests.faults.lives import HANG_S, LaunchedLife, kill, until
from tests.faults.tally import Order, Tally
from tests.faults.watch import CREATED, Watch

KILLS_PER_RUN = 4
"""Then both are left alone, and the run must end equal."""
MOMENTS = ("start", "step", "save", "evaluation")
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
AWAY_S = 4.0
"""Seconds that a killed launcher stays away at the most: its ranks' peers have noticed by then."""


@dataclass(frozen=True, kw_only=True)
class NodeKill:
    """One kill, as it is planned: of one node, or of both."""

    nodes: tuple[int, ...]
    moment: str
    part: float
    away: float
    """Seconds until it is started again."""

    @classmethod
    def drawn(cls, dice: random.Random, node: int) -> "NodeKill":
        nodes = (0, 1) if dice.random() < 0.15 else (node,)
        away = dice.choice((0.0, dice.random() * AWAY_S))
        return cls(nodes=nodes, moment=dice.choice(MOMENTS), part=dice.random(), away=away)

    def __str__(self) -> str:
        return f"node {self.nodes} at {self.part:.2f} of a {self.moment}, {self.away:.1f} s away"


def campaign(order: Order) -> Tally:
    """At least `order.count` kills of the launcher of each node."""
    tally = Tally(campaign="nodes", seed=order.seed)
    expected, measured = prepare(order.folder)
    struck, back = [0, 0], list[float]()
    for number in itertools.count() if order.only is None else iter([order.only]):
        dice = order.dice("nodes", number)
        nodes = [node for node in (0, 1) for _ in range(min(KILLS_PER_RUN // 2, order.count - struck[node]))]
        dice.shuffle(nodes)
        plan = [NodeKill.drawn(dice, node) for node in nodes]
        c10d = number % 3 == 2
        with TwoNodes(order.folder, f"run{number}", c10d=c10d, apart=number % 2 == 1 and not c10d) as run:
            try:
                run.live_through(plan, measured)
                if different := expected.difference(record(run.folder)):
                    tally.lose(number, f"{different}; {run.told}", unequal=True)
            except (Lost, TimeoutError) as loss:
                tally.lose(number, f"{loss}; {run.told}\n{run.tail()}")
            struck = [before + now for before, now in zip(struck, run.struck, strict=True)]
            back += run.back
        if min(struck) >= order.count or len(tally.failures) >= MOST_FAILURES or order.only is not None:
            break
    tally.injections = sum(struck)
    tally.facts = {"of node 0": struck[0], "of node 1": struck[1]}
    if back:
        tally.facts["median s from the start to the next step"] = f"{sorted(back)[len(back) // 2]:.1f}"
    return tally


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def can_be_apart() -> bool:
    found = shutil.which(NAMESPACE[0])
    return found is not None and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


@dataclass
class TwoNodes:
    """A run on two nodes of one rank each. A context manager, which ends what is left.

    Attributes:
        c10d: they meet at an endpoint, and not by numbers.
        apart: the second has a PID namespace of its own.
        told: what was done.
        struck: kills of each node.
        back: for each kill, seconds from the start again to the next step.
    """

    parent: Path
    name: str
    c10d: bool = False
    apart: bool = False
    words: Sequence[str] = ()
    told: list[str] = field(default_factory=list)
    struck: list[int] = field(default_factory=lambda: [0, 0])
    back: list[float] = field(default_factory=list)
    lives: list[LaunchedLife] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.parent / self.name
        self._port = free_port()
        self._before = NAMESPACE if self.apart and can_be_apart() else ()

    def __enter__(self) -> "TwoNodes":
        make_checkpoints(self.folder)
        self.lives = [self.start(0), self.start(1)]
        return self

    def __exit__(self, *exception: object) -> None:
        for life in self.lives:
            life.__exit__()

    def start(self, node: int) -> LaunchedLife:
        """The same command each time."""
        meet = ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(self._port)]
        if self.c10d:
            meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self._port}", "--rdzv-id", self.name]
        words = [PLAIN, "--run-dir", self.name, "--nproc-per-node", "1", "--nnodes", "2", *meet, *self.words]
        before = self._before if node == 1 else ()
        return LaunchedLife(self.parent, f"{self.name}.node{node}", *words, run_dir=self.folder, before=before)

    def strike(self, nodes: Sequence[int]) -> None:
        """Kills the launchers of these nodes; nothing that was theirs is left."""
        kill([self.lives[node].process.pid for node in nodes])
        for node in nodes:
            self.lives[node].wait()
            nothing_left(self.lives[node], self.told)
            self.struck[node] += 1

    def live_through(self, plan: Sequence[NodeKill], measured: Damage) -> None:
        """Kills and starts again as planned, and then lets the run end.

        Raises:
            Lost: when a launcher that was left alone ended, or one did not end well.
            TimeoutError: when one does not end.
        """
        last: Sequence[int] = ()
        for one in plan:
            if not self._await_moment(one, measured):
                break
            self.strike(one.nodes)
            self.told.append(str(one))
            last = one.nodes
            if self._ended_within(one.away, [node for node in (0, 1) if node not in last]):
                break
            for node in last:
                self.lives[node] = self.start(node)
        for node in sorted((0, 1), key=lambda node: node in last):
            # One that was killed when the other had done its part has nobody to meet: that run is over.
            if node in last and len(last) == 1 and self.lives[1 - node].ended():
                self.lives[node].ended_within(START_S * 2)
                if RunState.of(self.folder).status == "done":
                    kill([self.lives[node].process.pid], signal.SIGTERM)
                    continue
            if code := self.lives[node].wait():
                raise Lost(f"node {node} ended with {code}")

    def _await_moment(self, one: NodeKill, measured: Damage) -> bool:
        """False when the run was over before it came."""
        if one.moment == "start":
            return not self._ended_within(one.part * 2 * START_S, (0, 1))
        began, step = time.monotonic(), last_step(self.folder)
        if not until(lambda: last_step(self.folder) > step or self._ended((0, 1)), HANG_S):
            raise Lost(f"no step within {HANG_S:g} s")
        if self.struck != [0, 0]:
            self.back.append(time.monotonic() - began)
        wait_s = one.part * TRAINING_S
        if one.moment == "save":
            with Watch(self.folder / "checkpoints") as saves:
                if not until(lambda: saves.count(CREATED, ".tmp-") > 0 or self._ended((0, 1)), HANG_S):
                    raise Lost(f"no save within {HANG_S:g} s")
            wait_s = one.part * measured.save_s
        elif one.moment == "evaluation":
            due = (last_step(self.folder) // EVALUATE_EVERY + 1) * EVALUATE_EVERY
            until(lambda: last_step(self.folder) >= due or self._ended((0, 1)), HANG_S)
            wait_s = one.part * 0.1
        return not self._ended_within(wait_s, (0, 1))

    def _ended(self, nodes: Sequence[int]) -> bool:
        return any(self.lives[node].ended() for node in nodes)

    def _ended_within(self, seconds: float, nodes: Sequence[int]) -> bool:
        return until(lambda: self._ended(nodes), seconds)

    def tail(self) -> str:
        return "\n".join(f"node {node}:\n{life.tail()}" for node, life in enumerate(self.lives))
