"""`--follow`: a job's log as it grows, and its state when that changes, until the job is over."""

import shutil
import signal
import sys
from pathlib import Path

from dist_train.errors import ExitCode
from dist_train.rundir.records import RunState

from ..console import say
from ..job import JobStatus, SubmittedJob
from . import queue

_CODES = {"COMPLETED": ExitCode.DONE, "OUT_OF_MEMORY": ExitCode.OUT_OF_MEMORY}
_ENDED_FROM_OUTSIDE = ("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE")


def follow(submitted: SubmittedJob) -> int:
    """Returns the job's exit code when it is over. Ctrl-C leaves the job alone and returns 130."""
    log, seen, entry = Tail(Path(submitted.log)), "", None
    try:
        for found in queue.until_over([submitted.job], log.show):
            if found is not None:
                entry = found.get(submitted.job)
                state = str(entry or "no longer known to the queue")
                if state != seen:
                    say(f"job {submitted.job}: {state}")
                seen = state
        log.show()
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


class Tail:
    """Copies what is added to a file to stdout; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0

    def show(self) -> None:
        """Prints what was added since the last call."""
        try:
            file = self._path.open("rb")
        except OSError:  # the job has not begun
            return
        with file:
            file.seek(self._shown)
            shutil.copyfileobj(file, sys.stdout.buffer)
            self._shown = file.tell()
        sys.stdout.flush()
