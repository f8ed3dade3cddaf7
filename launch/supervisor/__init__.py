"""The launcher's own process: opens one generation after another, passes signals on, and leaves nothing behind."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.layout import RunDir, rank_log
from dist_train.rundir.ownership import refuse_owned
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.reading import open_regular
from dist_train.rundir.runs import make_run_dir, newest_checkpoint
from dist_train.rundir.snapshot import IN_LOG_DIR, FolderSnapshot

from ..console import mark, open_standard_streams, say
from ..plan import LaunchPlan
from ..processes import become_subreaper, end_descendants
from ..scheduler import end_older_launches
from ..signals import ReceivedSignals
from .agent_starter import AgentStarter
from .generation import Generation, begin_generation
from .launch_log import Launch
from .node_loss import agreed_code

MAX_BARREN_GENERATIONS = 3
"""Generations in a row without a newer checkpoint, after which restarting is given up."""
OTHERS_END_S = 10.0
"""Seconds that the other nodes' launchers have to end after this one."""
_LAST_S = 1.0
"""Seconds that the first one takes to remove the folders that it has emptied."""
RESTARTABLE = (ExitCode.USER_CODE, ExitCode.HANG)


def supervise(plan: LaunchPlan, at_end: Callable[[LaunchPlan, int], None] | None = None) -> int:
    """Runs the plan to its end, restarts included. Returns the exit code for the launcher.

    A training that ends with exit code 2 has not begun, and its directory is left as it was before.

    Args:
        at_end: called with the exit code, while all that was written is still there.

    Raises:
        UserError: when the run directory belongs to a live run, or the file system does not let us work.
    """
    open_standard_streams()
    become_subreaper()
    if plan.place:
        end_older_launches(plan.place)
    if plan.node == 0:  # where rank 0 will be, whose lease it is
        refuse_owned(plan.folder.resolve())
    before = _before(plan)
    try:
        make_run_dir(plan.folder)
    except UserError:
        for place in before:
            place.remove_empty()
        raise
    with owning(plan), ReceivedSignals() as signals:
        for place in before if plan.nodes == 1 else ():  # of several, another may have begun to write
            place.look_again()
        starter = AgentStarter(plan)
        try:
            code = _supervise_on_record(plan, signals, starter)
        finally:
            starter.close()
            end_descendants(patience=0)
        try:
            if at_end is not None:
                at_end(plan, code)
        finally:
            if code == ExitCode.CONFIG and plan.node == 0:
                _await_others(plan)
                _restore(before)
            elif code == ExitCode.CONFIG and plan.node:
                _await_first(plan, before)
    return code


def _before(plan: LaunchPlan) -> list[FolderSnapshot]:
    """The places of a training that the first node may put back, and another may have made."""
    if not plan.is_training:
        return []
    return [FolderSnapshot(plan.folder), *[FolderSnapshot(plan.logs, IN_LOG_DIR)] * (plan.log_dir is not None)]


def _restore(before: list[FolderSnapshot]) -> None:
    for place in reversed(before):
        place.restore()


def _await_first(plan: LaunchPlan, before: list[FolderSnapshot]) -> None:
    """Removes this node's logs, its claim while that is ours, and what else it has made once the first node is done."""
    first, deadline = RunDir(plan.folder).lock(0), time.monotonic() + OTHERS_END_S
    own = {RunDir(plan.folder).lock(plan.node).name, plan.agent_log.name, plan.preload_log.name}
    for rank in range((plan.node or 0) * plan.ranks_per_node, ((plan.node or 0) + 1) * plan.ranks_per_node):
        own |= {name := rank_log(plan.logs, rank).name, f"{name}.1"}
    for place in before:
        place.remove(own)
    while not all([place.remove_empty() for place in before]) and time.monotonic() < deadline:
        if not first.exists():  # which goes last
            deadline = min(deadline, time.monotonic() + _LAST_S)
        time.sleep(0.1)


def _await_others(plan: LaunchPlan) -> None:
    """Returns when the launchers of the other nodes, which write in the same directory, have let go of it."""
    deadline = time.monotonic() + OTHERS_END_S
    for path in RunDir(plan.folder).locks():
        with contextlib.suppress(OSError), open(open_regular(path, links=False)) as lock:
            while path != RunDir(plan.folder).lock(0) and time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)


def _supervise_on_record(plan: LaunchPlan, signals: ReceivedSignals, starter: AgentStarter) -> int:
    """This launch, on record."""
    launch = Launch(plan)
    if launch.is_in_vain():
        return launch.give_up()
    if plan.node == 0:
        launch.begin()
    code = _generations(plan, signals, starter)
    if plan.node == 0:
        launch.end(code, signals)
    return code


def _generations(plan: LaunchPlan, signals: ReceivedSignals, starter: AgentStarter) -> int:
    barren, ended = 0, None
    for attempt in itertools.count(1):
        before = newest_checkpoint(plan.folder)
        current = plan.of_attempt(attempt)
        folder = begin_generation(current)
        ended = Generation(current, folder, signals, starter, ended).run()
        code = ended.code
        if signals.stop is None and ended.knows_no_cause:
            code = agreed_code(plan, folder, code, last=attempt > plan.max_restarts)
        barren = barren + 1 if plan.is_training and newest_checkpoint(plan.folder) == before else 0
        if code == ExitCode.CONFIG and attempt > 1 and plan.is_training:
            return ExitCode.CANNOT_RESUME  # something of it has been written, as 2 would deny
        if code not in RESTARTABLE or signals.stop is not None or attempt > plan.max_restarts:
            return code
        if barren == MAX_BARREN_GENERATIONS:
            say(f"{mark('✗', 'red')} {barren} generations in a row saved nothing new: not started again")
            return code
        say(f"{mark('!', 'yellow')} starting again, generation {attempt + 1} of at most {plan.max_restarts + 1} …")
    raise AssertionError("itertools.count never ends")


@contextlib.contextmanager
def owning(plan: LaunchPlan) -> Iterator[None]:
    """Holds the run directory for this node; the kernel lets go of it however this process ends.

    Raises:
        UserError: when another live supervisor holds it (exit code 3), or it cannot be opened.
    """
    path = RunDir(plan.folder).lock(plan.node)
    with _open_lock(path) as lock:
        if _takes(lock, plan):
            me, job = ProcessId.myself(), plan.place
            lock.truncate(0)
            lock.write(f"process {me.pid} on {me.host}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            lock.write(json.dumps({"job": job.job, "restarts": job.restarts} if job else {}))
            lock.flush()
        yield


def _open_lock(path: Path) -> TextIO:
    """The file, made where there is none. A link is never followed: what it leads to would be emptied."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o666), "a+")
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(f"cannot open {path}: {reason}") from None


def _takes(lock: TextIO, plan: LaunchPlan) -> bool:
    """Whether it is ours now; False where there is nothing to take."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner, _, written = lock.read().strip().partition("\n")
        if plan.node is None:  # several nodes of one start may share a host
            return False
        if not _is_older_launch(written, plan):
            raise UserError(f"{plan.folder} belongs to a live run: {owner}", ExitCode.OWNED) from None
    except OSError:  # a file system without locks
        return False
    return True


def _is_older_launch(written: str, plan: LaunchPlan) -> bool:
    """Whether the owner is an earlier start of the same job. SLURM takes that for ended, but what is frozen on a node
    that has lost touch keeps its lock; if it ever wakes up, the checkpoints' fence keeps it out."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(written)
        if plan.place is not None and facts["job"] == plan.place.job:
            return int(facts["restarts"]) < plan.place.restarts
    return False
