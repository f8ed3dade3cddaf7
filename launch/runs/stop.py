"""`dist-train stop`: ends runs with a save, whether their launchers are here or jobs of a queue."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.config.stdout import tell
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import read_records
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import NodeRecord, RunState
from dist_train.rundir.runs import newest_checkpoint

from .. import scheduler
from ..console import mark, say
from ..job import JobStatus, jobs_of, newest_launchers
from ..processes import send
from .listing import is_copy, list_runs

LOOK_S = 0.2
"""Seconds between two looks at a process."""
QUEUE_LOOK_S = (1.0, 10.0)
"""Seconds between two looks at the queue, rising from the first to the last."""
SLOW_S = 15.0
"""Seconds of waiting after which the user is told what a second request does."""


@dataclass(kw_only=True)
class Target:
    """A run that is to end."""

    folder: Path
    leader: ProcessId | None
    """The process of a sweep here that it is a point of, and that hands on what it is asked."""
    launchers: list[NodeRecord] = field(default_factory=list)
    """Of its newest generation, one for each node, and those that wait for another node's."""
    entries: list[JobStatus] = field(default_factory=list)
    """Its jobs that are in the queue."""
    was: str | None = None
    """How it was found: running, or waiting in the queue; None when neither."""
    asked: set[str] = field(default_factory=set)
    """Jobs that have been asked, and need not be asked again."""

    @property
    def here(self) -> list[NodeRecord]:
        """Its launchers on this host that live."""
        return [one for one in self.launchers if one.lives()]

    @property
    def over(self) -> bool:
        led = self.leader is not None and bool(self.leader.lives())
        return not self.entries and not self.here and not led


def stop(places: Sequence[Path], leader: Callable[[Path], ProcessId | None], *, wait: bool, as_json: bool) -> int:
    """Asks all runs of `places`, then waits for them. Returns the exit code: 0 when none of them runs any more.

    Args:
        leader: the process here that leads the sweep in a folder, if there is one.

    Raises:
        UserError: when a place holds no run, or SLURM refuses.
    """
    targets = [Target(folder=folder, leader=leader(place)) for place in places for folder in runs_of(place)]
    look_at_all(targets)
    for target in targets:
        waits = target.entries and all(entry.is_pending for entry in target.entries)
        target.was = "waiting" if waits else "running" if target.here or target.entries else None
    ask_all(targets)
    beyond = [target for target in targets if target.was is None and _runs_elsewhere(target)]
    if wait:
        _wait(targets)
    for target in targets:
        if target in beyond:
            there = target.launchers[0]
            where = f"{target.folder} runs on {there.host} (process {there.pid})"
            say(f"{mark('✗', 'red')} {where}, which this host cannot reach: call dist-train stop there")
        else:
            say(outcome(target, waited=wait))
    if as_json:
        tell(json.dumps([as_row(target) for target in targets], indent=2))
    return ExitCode.CONFIG if beyond else ExitCode.DONE


def runs_of(place: Path) -> list[Path]:
    """The run that a path means, or all of an array's or a name's.

    Raises:
        UserError: when there is none.
    """
    if RunDir(place).is_run():
        return [place]
    found = [Path(run.path) for run in list_runs(place)] if place.is_dir() else []
    if not found:
        raise UserError(f"{place}: no run there; what there is, and where: dist-train runs")
    return found


# ---------------------------------------------------------------- asking


def look_at_all(targets: list[Target]) -> None:
    """What is so now: one question to the queue for all of them."""
    targets = [target for target in targets if not is_copy(target.folder)]
    ids = {target.folder: jobs_of(target.folder) for target in targets}
    found = scheduler.look(job for own in ids.values() for job in own)
    for target in targets:
        waiting = read_records(NodeRecord, RunDir(target.folder).nodes)  # for another node's, in no generation yet
        target.launchers = [*newest_launchers(target.folder), *waiting]
        if found is not None:  # else what was known stands
            known = [found[job] for job in ids[target.folder] if job in found]
            target.entries = [entry for entry in known if entry.active]


def ask_all(targets: list[Target]) -> None:
    """All that can be asked now, each once: a second time would mean "at once, unsaved"."""
    leaders = {target.leader.pid: target for target in targets if target.leader is not None}
    for target in leaders.values():
        _ask_processes(target)
    new = [entry for target in targets for entry in target.entries if entry.job not in target.asked]
    if new:
        scheduler.keep_out([entry.job for entry in new])
    for target in targets:
        for entry in target.entries:
            if entry.is_running and entry.job not in target.asked:
                scheduler.interrupt(entry, target.launchers)
                target.asked.add(entry.job)
        if not target.entries and target.leader is None:
            _ask_processes(target)


def _ask_processes(target: Target) -> None:
    processes: Sequence[ProcessId] = target.here if target.leader is None else [target.leader]
    for one in processes:
        if (key := f"process {one.pid}") not in target.asked:
            target.asked.add(key)
            # Under a scheduler SIGTERM means that it wants the nodes back, and the launcher would ask to be requeued.
            has_job = isinstance(one, NodeRecord) and one.job is not None
            send(one.pid, signal.SIGINT if has_job else signal.SIGTERM)


def _runs_elsewhere(target: Target) -> bool:
    """Whether it may run where neither this host nor the queue reaches it."""
    others = [one for one in target.launchers if one.lives() is None and not one.job]
    return bool(others) and RunState.of(target.folder).status in (None, "running")


# ---------------------------------------------------------------- waiting and telling


def _wait(targets: list[Target]) -> None:
    pause, next_look = QUEUE_LOOK_S[0], time.monotonic()
    if not all(target.over for target in targets):
        say("saving, then stopping … Ctrl-C ends the waiting, not the saving")
    slow_at = time.monotonic() + SLOW_S
    while not all(target.over for target in targets):
        if time.monotonic() >= slow_at:
            slow_at = float("inf")
            say("  not ended yet: a long step, or a rank that is stuck. To end it unsaved: Ctrl-C, then stop it again")
        time.sleep(LOOK_S)
        if any(target.entries for target in targets) and time.monotonic() >= next_look:
            look_at_all(targets)
            ask_all(targets)  # one that was waiting may have begun in the meantime
            next_look, pause = time.monotonic() + pause, min(2 * pause, QUEUE_LOOK_S[1])


def as_row(target: Target) -> dict[str, str | int | bool | None]:
    state, newest = RunState.of(target.folder), newest_checkpoint(target.folder)
    said = {"run": str(target.folder), "was": target.was, "over": target.over and not _runs_elsewhere(target)}
    return {**said, "status": state.status, "step": state.step, "checkpoint": str(newest) if newest else None}


def outcome(target: Target, *, waited: bool) -> str:
    """One line for a run."""
    state, newest = RunState.of(target.folder), newest_checkpoint(target.folder)
    saved = f"last checkpoint {newest}" if newest else "there is no checkpoint"
    if target.was is None:
        return f"{target.folder}: not running ({state.status or 'never began'}); {saved}"
    sign = mark("✓", "green")
    if not waited:
        return f"{sign} {target.folder}: asked to stop ({target.was})"
    if target.was == "waiting" and not target.asked:
        end = "taken out of the queue"
    elif state.status == "done":
        end = "came to its end before it could be stopped"
    elif state.status == "stopped":
        end = "stopped" if state.step is None else f"stopped at step {state.step:,}"
    else:
        sign, end = mark("!", "yellow"), "ended, and did not say that it had saved"
    return f"{sign} {target.folder}: {end}; {saved}"
