"""Runs points on this machine, some at a time. Each is its own `dist-train train`, and none outlives this process.

Ctrl-C and SIGTERM are passed on to the points, which save and stop; a second one ends all of them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_train.config.problems import printable
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserError

from ..children import PACKAGE, child_environment
from ..console import mark, say
from ..diagnosis.explain import signal_name
from ..diagnosis.native_crash import tail
from ..plan import LaunchPlan, make_plan
from ..plan.flags import Flags
from ..plan.host import Host
from ..processes import become_subreaper, die_with_parent, end_descendants, send
from ..signals import ReceivedSignals
from .points import Point
from .store import Sweep

POLL_S = 0.5
"""Between two looks at the points; the end of a point or a signal wakes it at once."""
_LONGEST_REASON = 160
_STOPPED = (ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of this machine that each concurrent point gets."""

    ranks: Mapping[str, int]
    """Number of ranks, by the name of the point."""
    slots: Sequence[Mapping[str, str]]
    """Variables to add to the environment, for each place that points run in at the same time."""


def divide(configs: Mapping[str, RunConfig], jobs: int, ranks: str | None, machine: Host) -> Share:
    """Divides cores and GPUs among `jobs`. The plan decides on ranks as it would on a machine of that size.

    Args:
        configs: of each point, by its name.

    Raises:
        UserError: naming the problems of all points that cannot run on their share.
    """
    jobs = min(jobs, len(configs))
    alone = replace(machine, place=None)
    part = replace(alone, cores=max(1, machine.cores // jobs), gpus=machine.gpus // jobs)
    counts, problems, on_gpu = dict[str, int](), dict[str, None](), False
    for name, config in configs.items():
        try:
            wants_gpu = _plan(config, ranks, alone, resume=None).device == "gpu"
            if wants_gpu and not part.gpus:
                there = f"{machine.gpus} GPU{'s' * (machine.gpus > 1)} here"
                advice = f"--jobs {machine.gpus}, or --nproc-per-node cpu"
                raise UserError(f"--jobs {jobs}: {there}, and each point needs its own: {advice}")
            on_gpu = on_gpu or wants_gpu
            counts[name] = _plan(config, ranks, part, resume="none").ranks_per_node
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("\n".join(problems))
    if not machine.gpus:
        return Share(ranks=counts, slots=[{}] * jobs)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = listed.split(",") if listed is not None else [str(number) for number in range(machine.gpus)]
    own = [ids[: machine.gpus][number * part.gpus :][: part.gpus] if on_gpu else [] for number in range(jobs)]
    return Share(ranks=counts, slots=[{"CUDA_VISIBLE_DEVICES": ",".join(gpus)} for gpus in own])


def _plan(config: RunConfig, ranks: str | None, machine: Host, *, resume: str | None) -> LaunchPlan:
    """A plan that is made for its counts only; with `resume`, the ranks must also fit the batch of a training."""
    flags = Flags(nproc_per_node=ranks, standalone=True)
    return make_plan(config, flags, machine, folder=Path(), program=(), arguments=(), resume=resume)


def run_points(sweep_: Sweep, points: Sequence[Point], share: Share, flags: Sequence[str]) -> int:
    """Runs the points to their end. Returns 0, the one exit code of all failed points, or 10; after a signal, its code.

    Args:
        flags: for each `dist-train train`.
    """
    become_subreaper()
    with ReceivedSignals() as signals:
        try:
            return _Runner(sweep_, points, share, flags, signals).run()
        finally:
            end_descendants(patience=0)


class _Runner:
    def __init__(
        self, sweep_: Sweep, points: Sequence[Point], share: Share, flags: Sequence[str], signals: ReceivedSignals
    ) -> None:
        self._sweep, self._share, self._flags, self._signals = sweep_, share, flags, signals
        self._waiting, self._free = list(points), list(share.slots)
        self._running: dict[subprocess.Popen, tuple[Point, Mapping[str, str], float]] = {}
        """Processes with their point, their place, and when they began."""
        self._codes: list[int] = []
        self._total = len(points)
        self._handed_on = False

    def run(self) -> int:
        while self._running or (self._waiting and self._signals.stop is None):
            while self._waiting and self._free and self._signals.stop is None:
                self._start(self._waiting.pop(0), self._free.pop(0))
            self._hand_on_signals()
            if self._signals.kill is not None:
                return 128 + self._signals.kill
            self._signals.wait(POLL_S)
            for process in [process for process in self._running if process.poll() is not None]:
                self._ended(process.returncode, *self._running.pop(process))
        return self._code()

    def _start(self, point: Point, slot: Mapping[str, str]) -> None:
        words = [str(self._sweep.config_of(point)), "--run-dir", str(self._sweep.run_dir(point))]
        words += ["--trust", "--standalone", "--nproc-per-node", str(self._share.ranks[point.name])]  # checked before
        with open(self._sweep.log(point), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PACKAGE, "train", *words, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._sweep.cwd,
                env=child_environment(**slot),
                start_new_session=True,  # so that Ctrl-C reaches this process only
                preexec_fn=die_with_parent,
            )
        self._running[process] = (point, slot, time.monotonic())
        say(f"  {point.name} started ({self._total - len(self._waiting)}/{self._total})")

    def _hand_on_signals(self) -> None:
        asked = self._signals.take_others()
        if self._signals.stop is not None and not self._handed_on:
            self._handed_on = True
            asked.append(self._signals.stop)
            say(f"  {len(self._running)} running, each saves and stops … once more to kill at once")
        for number in asked:
            for process in self._running:
                send(process.pid, number)

    def _ended(self, code: int, point: Point, slot: Mapping[str, str], begun: float) -> None:
        self._free.append(slot)
        self._codes.append(code)
        took = f"{time.monotonic() - begun:.0f} s"
        if code == ExitCode.DONE:
            say(f"{mark('✓', 'green')} {point.name} done in {took}")
        elif self._signals.stop is not None or code in _STOPPED:
            say(f"  {point.name} stopped after {took}")
        else:
            how = signal_name(-code) if code < 0 else f"exit {code}"
            log = self._sweep.log(point)
            said = next((line for line in reversed(tail(log, 40)) if line.startswith("✗")), "")  # by its launcher
            why = f": {printable(said.lstrip('✗ '), _LONGEST_REASON)}" if said else ""
            say(f"{mark('✗', 'red')} {point.name} failed after {took}, {how}{why}\n  its log: {log}")

    def _code(self) -> int:
        failed = {code if code > 0 else int(ExitCode.USER_CODE) for code in self._codes if code != ExitCode.DONE}
        if self._signals.stop is not None and (failed or self._waiting):
            requeue = self._signals.stop == signal.SIGUSR1
            return ExitCode.REQUEUE if requeue else 128 + self._signals.stop
        return failed.pop() if len(failed) == 1 else ExitCode.USER_CODE if failed else ExitCode.DONE
