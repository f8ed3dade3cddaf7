"""Deals with a run directory that refuses, or is gone, between generations. Nothing begins from zero by accident."""

import errno
import time

from dist_train.errors import DiskError, ResumeError, UserError
from dist_train.rundir.layout import GenerationDir, RunDir
from dist_train.rundir.runs import has_checkpoints

from ..console import mark, say
from ..plan import LaunchPlan
from ..signals import ReceivedSignals
from .generation import begin_generation

PATIENCE_S = 60.0
"""Seconds that a disk has to come back before a generation is given up: a server that restarts takes about that."""
MOST_PAUSE_S = 5.0


def when_writable(plan: LaunchPlan, signals: ReceivedSignals, saved: str | None) -> GenerationDir | None:
    """The folder of the next generation, once the disk takes it. None when a stop was asked for meanwhile.

    Args:
        saved: the newest checkpoint that was there before.

    Raises:
        UserError: (exit 14) when it still refuses after a minute; (exit 4) when what was saved is gone.
    """
    began, pause, is_told = time.monotonic(), 0.1, False
    while True:
        try:
            if not RunDir(plan.folder).generations.is_dir():  # it is never made anew: this may be the bare mount point
                raise FileNotFoundError(errno.ENOENT, "it is gone")
            if saved is not None and not has_checkpoints(plan.folder):
                raise FileNotFoundError(errno.ENOENT, "its checkpoints are gone")
            return begin_generation(plan)
        except OSError as error:
            if time.monotonic() - began > PATIENCE_S:
                raise _given_up(plan, error, saved) from None
            if not is_told:
                say(
                    f"{mark('!', 'yellow')} {plan.folder}: {error.strerror}; waiting {PATIENCE_S:g} s for it to be back"
                )
            is_told = True
        if signals.stop is not None:
            return None
        signals.wait(pause)
        pause = min(2 * pause, MOST_PAUSE_S)


def begin_first(plan: LaunchPlan) -> GenerationDir:
    """The folder of the first generation. Nothing has begun yet, so nothing is waited for.

    Raises:
        UserError: (exit 14) when the disk refuses.
    """
    try:
        return begin_generation(plan)
    except OSError as error:
        raise _given_up(plan, error, None) from None


def _given_up(plan: LaunchPlan, error: OSError, saved: str | None) -> UserError:
    if error.errno == errno.ENOENT and saved is not None:
        return ResumeError(
            f"{plan.folder}: {error.strerror}, and {saved} was saved there: nothing begins from zero. Bring it back "
            "(is the file system mounted?), then go on with --resume"
        )
    return DiskError(f"cannot write into {plan.folder}: {error.strerror}. Mend the disk, then start again")


def refuse_a_lost_directory(plan: LaunchPlan) -> None:
    """A job that a scheduler starts again finds the directory that it had made, or somebody has taken it away.

    Raises:
        UserError: (exit 4) when it is not there.
    """
    if plan.place is not None and plan.place.restarts > 0 and plan.is_training and not plan.folder.exists():
        raise ResumeError(
            f"{plan.folder} is not there, and this job was started before: nothing begins from zero. Bring it back (is "
            "the file system mounted?), then submit the job again; also if it had never begun to train"
        )
