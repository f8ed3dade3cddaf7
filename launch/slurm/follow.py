"""`--follow`: a job's log as it grows, and its state when that changes, until the job is over."""

import signal
import sys
from functools import partial
from pathlib import Path

from dist_train.errors import ExitCode
from dist_train.rundir.growing import GrowingFile
from dist_train.rundir.records import RunState

from ..console import say
from ..job import JobStatus, SubmittedJob
from . import queue

_CODES = {"COMPLETED": ExitCode.DONE, "OUT_OF_MEMORY": ExitCode.OUT_OF_MEMORY}
_ENDED_FROM_OUTSIDE = ("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE")


def follow(submitted: SubmittedJob) -> int:
    """Returns the job's exit code when it is over. Ctrl-C leaves the job alone and returns 130."""
    log, seen, entry = GrowingFile(Path(submitted.log)), "", None
    try:
        for found in queue.until_over([submitted.job], partial(_show, log)):
            if found is not None:
                entry = found.get(submitted.job)
                state = str(entry or "no longer known to the queue")
                if state != seen:
                    say(f"job {submitted.job}: {state}")
                seen = state
        _show(log)
        return exit_code_of_job(entry, Path(submitted.run_dir))
    except KeyboardInterrupt:
        say(f"\njob {submitted.job} goes on. To stop it: dist-train stop {submitted.run_dir}")
        return ExitCode.INTERRUPTED


def exit_code_of_job(entry: JobStatus | None, run_dir: Path) -> int:
    """The exit code of the job's script. If the queue no longer knows the job, the run's state decides."""
    if entry is None:
        status = RunState.of(run_dir).status
        return {"done": ExitCode.DONE, "stopped": ExitCode.TERMINATED}.get(str(status), ExitCode.USER_CODE)
    if entry.state in _CODES:
        return _CODES[entry.state]
    if entry.state in _ENDED_FROM_OUTSIDE:
        return 128 + signal.SIGTERM
    return entry.exit_code or ExitCode.USER_CODE


def _show(log: GrowingFile) -> None:
    """Copies to stdout what was added since the last call."""
    sys.stdout.buffer.write(log.news(whole_lines=False))
    sys.stdout.flush()
