"""lives.jsonl: every launch of a run, with its nodes and what ended it. Node 0 writes it.

A launch that is killed cannot say so; the next one closes its entry. A scheduler may start a job again for ever, so the
record also decides when that has to end: after three launches in a row that saved nothing new.
"""

import signal
import time
from dataclasses import fields
from typing import Any

from dist_train.errors import ExitCode
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import LaunchRow, RunState, read_launches
from dist_train.rundir.runs import newest_checkpoint

from ..console import mark, say
from ..plan import LaunchPlan
from ..signals import ReceivedSignals
from .run_files import RunFiles

MAX_BARREN_LAUNCHES = 3
"""Launches of a job in a row without a newer checkpoint, after which the job is not started again."""
_IN_ORDER = (0, ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


class Launch:
    """This launch, as the record has it."""

    def __init__(self, plan: LaunchPlan, files: RunFiles) -> None:
        self._plan, self._files = plan, files
        self._earlier = read_launches(plan.folder)
        self._number = 1 + max((launch.number for launch in self._earlier), default=0)
        self._began, self._state_before = time.time(), RunState.of(plan.folder)
        self._checkpoint = newest_checkpoint(plan.folder)

    def made_no_progress(self) -> bool:
        """Whether this job was started again and again, saved nothing new, and was not asked to stop in between."""
        place = self._plan.place
        if place is None:
            return False
        barren = 0
        for launch in reversed(self._earlier):
            if launch.began.job != place.job or launch.began.restarts >= place.restarts:
                continue
            if launch.in_order or launch.began.checkpoint != self._checkpoint:
                break
            barren += 1
        return barren >= MAX_BARREN_LAUNCHES

    def begin(self) -> None:
        """Writes that this launch has begun, and what became of the one before."""
        if self._earlier and self._earlier[-1].ended is None:
            reason = "left no word: its launcher was killed, or its node lost"
            self._append("lost", life=self._earlier[-1].number, reason=reason, in_order=False)
        place = self._plan.place
        job = {"job": place.job, "restarts": place.restarts} if place else {}
        hosts = list(place.hosts) if place else [ProcessId.myself().host]
        size = {"nodes": self._plan.nodes, "ranks": self._plan.world_size}
        self._append("began", **job, hosts=hosts, **size, checkpoint=self._checkpoint, unix=self._began)

    def end(self, code: int, signals: ReceivedSignals) -> None:
        """Writes what ended the launch."""
        reason, in_order = self._reason(code, signals)
        took = round(time.monotonic() - signals.since, 3) if signals.since is not None else None
        saved = newest_checkpoint(self._plan.folder)
        self._append_end(code, reason, in_order=in_order, seconds_to_stop=took, saved=saved)

    def give_up(self) -> int:
        """The exit code of a launch that must not begin. The record calls it in order: a person may try again."""
        reason = f"{MAX_BARREN_LAUNCHES} launches in a row saved nothing new: not started again"
        say(f"{mark('✗', 'red')} {reason}; what ended them is in {RunDir(self._plan.folder).launches}")
        self.begin()
        self._append_end(ExitCode.USER_CODE, reason, in_order=True)
        return ExitCode.USER_CODE

    def _reason(self, code: int, signals: ReceivedSignals) -> tuple[str, bool]:
        """What ended the launch, in words; and whether it was in order, and so no reason to give up."""
        state = RunState.of(self._plan.folder)
        is_fresh = state != self._state_before  # clocks may jump
        if signals.stop is None:
            if code == 0:
                return ("done" if state.status == "done" else "stopped, as the config says"), True
            if code == ExitCode.REQUEUE:
                return "another node was lost", False
            return ExitCode(code).name.lower().replace("_", " "), False
        name = signal.Signals(signals.stop).name
        if signals.kill is not None and is_fresh:
            return f"{name}, and once more: ended at once", True
        if code not in _IN_ORDER:
            return f"{name}, and then {ExitCode(code).name.lower().replace('_', ' ')}", False
        if not is_fresh:
            return f"{name}, before training began", True
        if state.status in ("stopped", "done"):
            return f"{name}: saved and stopped", True
        return f"{name}: not saved in time", False

    def _append_end(self, code: int, reason: str, **facts: Any) -> None:
        self._append("ended", exit_code=int(code), reason=reason, **facts, unix=time.time())

    def _append(self, event: str, **facts: Any) -> None:
        """A LaunchRow, of this launch where `facts` name no other, without what has no value."""
        if self._plan.node != 0:
            return
        row = LaunchRow(**{"life": self._number, "event": event, **facts})
        written = {one.name: value for one in fields(row) if (value := getattr(row, one.name)) != one.default}
        self._files.append(RunDir(self._plan.folder).launches, written)
