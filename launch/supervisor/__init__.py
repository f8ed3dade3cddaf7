"""The launcher's own process: opens one generation after another, passes signals on, and leaves nothing behind."""

import signal
from collections.abc import Callable
from contextlib import suppress

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.files import remove_tree
from dist_train.rundir.ownership import refuse_owned
from dist_train.rundir.runs import make_run_dir, newest_checkpoint

from ..console import mark, open_standard_streams, say
from ..plan import LaunchPlan
from ..processes import become_subreaper, end_descendants
from ..scheduler import end_older_launches
from ..signals import ReceivedSignals
from .agent_starter import AgentStarter
from .ending import Ended, agreed_code, stopped_code
from .generation import Generation
from .launch_log import Launch
from .other_nodes import NoOtherNodes
from .rounds import OtherNodes
from .run_files import RunFiles
from .run_lock import owning
from .storage import begin_first, refuse_a_lost_directory, when_writable
from .taking_back import FoldersBefore

MAX_BARREN_GENERATIONS = 3
"""Generations in a row without a newer checkpoint, after which restarting is given up."""
RESTARTABLE = (ExitCode.USER_CODE, ExitCode.HANG, ExitCode.DATA)
DATA_PAUSE_S = 5.0
"""Seconds before data that could not be read is tried a third time; twice as long each time after that."""


def supervise(plan: LaunchPlan, at_end: Callable[[LaunchPlan, int], None] | None = None) -> int:
    """Runs the plan to its end, restarts included. Returns the launcher's exit code.

    A training that ends with exit code 2 has not begun, and its directory is left as it was before.

    Args:
        at_end: called with the plan and the exit code, before anything that was written is taken back.

    Raises:
        UserError: when the run directory belongs to a live run, or the file system does not let us work.
    """
    open_standard_streams()
    become_subreaper()
    if plan.place:
        end_older_launches(plan.place)
    if plan.node == 0:  # rank 0 runs on node 0 and takes the lease
        refuse_owned(plan.folder.resolve())
    folders_before = FoldersBefore(plan)
    refuse_a_lost_directory(plan)
    try:
        make_run_dir(plan.folder)
    except UserError:
        folders_before.remove_empty()
        raise
    with owning(plan), ReceivedSignals() as signals:
        folders_before.look_again()
        starter, code = AgentStarter(plan), None
        try:
            code = _supervise_on_record(plan, signals, starter)
        finally:
            starter.close()
            if plan.is_training or code != ExitCode.DONE:
                end_descendants(patience=0)
        try:
            if at_end is not None:
                at_end(plan, code)
        finally:
            if code == ExitCode.CONFIG:
                folders_before.take_back()
    return code


def _supervise_on_record(plan: LaunchPlan, signals: ReceivedSignals, starter: AgentStarter) -> int:
    """Runs the generations, and records in lives.jsonl how the launch began and ended."""
    files = RunFiles()
    launch = Launch(plan, files)
    if launch.made_no_progress():
        return launch.give_up()
    launch.begin()
    others = OtherNodes(plan, signals) if plan.nodes > 1 and plan.place is None else NoOtherNodes(plan)
    try:
        code = _generations(others.plan, signals, starter, files, others)
    except UserError as error:
        say(f"{mark('✗', 'red')} {error}")
        code = error.code
    others.leave(code)
    launch.end(code, signals)
    write_report(plan, code)
    if left := files.left():
        say(f"{mark('!', 'yellow')} the disk has refused {', '.join(left)} in {plan.folder} to the end")
    return code


def _generations(
    plan: LaunchPlan, signals: ReceivedSignals, starter: AgentStarter, files: RunFiles, others: NoOtherNodes
) -> int:
    """Starts generations until one ends well, or there is no point in another. Returns the exit code of the last.

    Args:
        others: the other nodes, if there are any. It counts the restarts, which all nodes count together.
    """
    barren, ended = 0, Ended(code=ExitCode.DONE)
    saved, has_begun = newest_checkpoint(plan.folder), False
    while True:
        current = others.next_plan()
        if current is None:
            return stopped_code(plan, signals.stop or signal.SIGTERM)
        folder = when_writable(current, signals, saved) if has_begun else begin_first(current)
        if folder is None:
            return stopped_code(plan, signals.stop or signal.SIGTERM)
        has_begun = True
        if not others.all_came(folder):
            continue
        before = newest_checkpoint(plan.folder)
        ended = Generation(current, folder, signals, starter, files, ended, others).run()
        code, saved = ended.code, newest_checkpoint(plan.folder) or saved
        if others.is_void and not any(folder.ranks.glob("*")):
            remove_tree(folder.path)
        if ended.is_no_failure:
            continue
        restart = others.restarts + 1
        if signals.stop is None and ended.cause_unknown:
            code = agreed_code(plan, folder, code, last=restart > plan.flags.max_restarts)
        barren = barren + 1 if plan.is_training and newest_checkpoint(plan.folder) == before else 0
        if code == ExitCode.CONFIG and restart > 1 and plan.is_training:
            return ExitCode.CANNOT_RESUME  # exit code 2 promises that nothing was written
        # A generation that ended well ends the loop here, too: DONE is not in RESTARTABLE.
        if code not in RESTARTABLE or signals.stop is not None or restart > plan.flags.max_restarts:
            return code
        if barren == MAX_BARREN_GENERATIONS:
            say(f"{mark('✗', 'red')} {barren} generations in a row saved nothing new: not started again")
            return code
        if code == ExitCode.DATA and restart > 1:  # the first restart waits for nothing
            signals.wait(DATA_PAUSE_S * 2 ** (restart - 2))
        others.restarts, others.code = restart, None if ended.cause_unknown else code
        say(f"{mark('!', 'yellow')} starting again, attempt {restart + 1} of at most {plan.flags.max_restarts + 1} …")


def write_report(plan: LaunchPlan, code: int) -> None:
    """Writes the report of a run whose launch has ended, on the first node, if the training has begun. An error in it
    is one line, and changes no exit code."""
    if not plan.is_training or plan.node not in (0, None) or code == ExitCode.CONFIG:
        return
    from dist_train import report

    try:
        with suppress(OSError):  # the user was told of a disk that refuses
            report.write(plan.folder)
    except Exception as error:
        say(f"{mark('!', 'yellow')} there is no report: {type(error).__name__}: {error}")
