"""lives.jsonl: every start of the launcher in a run directory, with its nodes and what ended it. Node 0 writes it.

A life that is killed cannot say so; the next one closes its entry. A scheduler may start a job again for ever, so the
record also decides when that has to end: after three lives in a row that saved nothing new.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dist_train.errors import ExitCode
from dist_train.rundir.reading import is_number
from dist_train.rundir.records import read_rows, state_of
from launch.console import mark, say
from launch.plan import LaunchPlan
from launch.plan.run_choice import newest_checkpoint
from launch.processes import myself
from launch.signals import Inbox

FILE = "lives.jsonl"
PATIENCE = 3
"""Lives of a job in a row without a newer checkpoint, after which it is not to be started again."""
_IN_ORDER = (0, ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


class Life:
    """One start of the launcher."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.plan = plan
        self.before = read(plan.folder)
        self.number = 1 + max((life["life"] for life in self.before), default=0)
        self.began = time.time()
        self.checkpoint = newest_checkpoint(plan.folder)

    def is_in_vain(self) -> bool:
        """Whether this job was started again and again, saved nothing new, and was not asked to stop in between."""
        slurm = self.plan.slurm
        if slurm is None:
            return False
        older = [one for one in self.before if one["job"] == slurm.job and one["restarts"] < slurm.restarts]
        vain = 0
        for one in reversed(older):
            if one["in_order"] or one["checkpoint"] != self.checkpoint:
                break
            vain += 1
        return vain >= PATIENCE

    def begin(self) -> None:
        """Writes that it is there, and what has become of the one before."""
        if self.before and self.before[-1]["ended"] is None:
            reason = "left no word: its launcher was killed, or its node lost"
            self._append(life=self.before[-1]["life"], event="lost", reason=reason, in_order=False)
        slurm = self.plan.slurm
        self._append(
            life=self.number,
            event="began",
            job=slurm.job if slurm else None,
            restarts=slurm.restarts if slurm else 0,
            hosts=list(slurm.hosts) if slurm else [myself()["host"]],
            nodes=self.plan.nodes,
            ranks=self.plan.world_size,
            checkpoint=self.checkpoint,
            unix=self.began,
        )

    def end(self, code: int, inbox: Inbox) -> None:
        """Writes what ended it."""
        reason, in_order = self._reason(code, inbox)
        took = round(time.monotonic() - inbox.since, 3) if inbox.since is not None else None
        self._append(
            life=self.number,
            event="ended",
            exit_code=int(code),
            reason=reason,
            in_order=in_order,
            seconds_to_stop=took,
            saved=newest_checkpoint(self.plan.folder),
            unix=time.time(),
        )

    def give_up(self) -> int:
        """The exit code of a life that is not to begin. It is on record as in order, so that a person may try again."""
        reason = f"{PATIENCE} lives in a row saved nothing new: not started again"
        say(f"{mark('✗', 'red')} {reason}; what ended them is in {self.plan.folder / FILE}")
        if self.plan.node == 0:
            self.begin()
            row = {"exit_code": int(ExitCode.USER_CODE), "reason": reason, "in_order": True}
            self._append(life=self.number, event="ended", **row, unix=time.time())
        return ExitCode.USER_CODE

    def _reason(self, code: int, inbox: Inbox) -> tuple[str, bool]:
        """In words, and whether it was in order: not a reason to give up."""
        state = state_of(self.plan.folder)
        fresh = state.get("updated", 0) >= self.began
        if inbox.stop is None:
            if code == 0:
                return ("done" if state.get("status") == "done" else "stopped, as the config says"), True
            if code == ExitCode.REQUEUE:
                return "another node was lost", False
            return ExitCode(code).name.lower().replace("_", " "), False
        name = signal.Signals(inbox.stop).name
        if inbox.kill is not None and fresh:
            return f"{name}, and once more: ended at once", True
        if code not in _IN_ORDER:
            return f"{name}, and then {ExitCode(code).name.lower().replace('_', ' ')}", False
        if not fresh:
            return f"{name}, before training began", True
        if state.get("status") in ("stopped", "done"):
            return f"{name}: saved and stopped", True
        return f"{name}: not saved in time", False

    def _append(self, **row: Any) -> None:
        with suppress(OSError), open(self.plan.folder / FILE, "a") as file:  # a full disk is told by what matters more
            file.write(json.dumps(row) + "\n")


@contextmanager
def on_record(plan: LaunchPlan, inbox: Inbox) -> Iterator[Life]:
    """This life, begun on record; its `end` is for who knows the exit code."""
    life = Life(plan)
    if plan.node == 0 and not life.is_in_vain():
        life.begin()
    yield life


def read(folder: Path) -> list[dict[str, Any]]:
    """Each life of the run, the oldest first: what is known of its beginning, and of its end under `ended`."""
    lives: dict[int, dict[str, Any]] = {}
    for row in filter(_is_row, read_rows(folder / FILE)):
        empty = {"job": None, "restarts": 0, "checkpoint": None, "in_order": False, "ended": None}
        life = lives.setdefault(row["life"], {**empty, "life": row["life"]})
        if row["event"] == "began":
            life |= row
        else:
            life["ended"] = row
            life["in_order"] = row["in_order"]
    return [lives[number] for number in sorted(lives)]


def _is_row(row: Any) -> bool:
    """Whether it could be one of ours."""
    if not isinstance(row, dict) or not is_number(row.get("life")) or not isinstance(row.get("event"), str):
        return False
    return is_number(row.get("restarts", 0)) and isinstance(row.get("in_order", row["event"] == "began"), bool)
