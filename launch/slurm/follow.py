"""`--follow`: a job's log as it grows, and its state when that changes, until the job is over."""

import signal
import sys
import time
from pathlib import Path

from dist_train.errors import ExitCode
from dist_train.rundir.records import RunState
from launch.console import say
from launch.slurm import queue
from launch.slurm.jobs import SubmittedJob

LOG_POLL_S = 0.5
QUEUE_POLL_S = (1.0, 10.0)
"""Rises from the first to the last while nothing changes, to spare the controller."""
_CODES = {"COMPLETED": ExitCode.DONE, "OUT_OF_MEMORY": ExitCode.OUT_OF_MEMORY}
_ENDED_FROM_OUTSIDE = ("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE")


def follow(submitted: SubmittedJob) -> int:
    """Returns the job's exit code when it is over. Ctrl-C leaves the job alone and returns 130."""
    try:
        return _until_its_end(submitted, Tail(Path(submitted.log)))
    except KeyboardInterrupt:
        say(f"\njob {submitted.job} goes on. To stop it: dist-train stop {submitted.run_dir}")
        return ExitCode.INTERRUPTED


def _until_its_end(submitted: SubmittedJob, log: "Tail") -> int:
    seen, finished, next_look, pause = "", 0, 0.0, QUEUE_POLL_S[0]
    while True:
        log.show()
        if time.monotonic() >= next_look:
            found = queue.look([submitted.job])
            entry = found.get(submitted.job) if found is not None else None
            state = str(entry) if entry else "" if found is None else "gone"
            if state and state != seen:
                seen, pause = state, QUEUE_POLL_S[0]
                say(f"job {submitted.job}: {state if entry else 'no longer known to the queue'}")
            # A job that is about to be requeued may look finished once.
            finished = finished + 1 if (entry and not entry.active) or state == "gone" else 0
            if finished == 2:
                log.show()
                return exit_code_of_job(entry, Path(submitted.run_dir))
            next_look, pause = time.monotonic() + pause, min(2 * pause, QUEUE_POLL_S[1])
            if finished:
                next_look = time.monotonic() + QUEUE_POLL_S[0]
        time.sleep(LOG_POLL_S)


def exit_code_of_job(entry: queue.JobStatus | None, run_dir: Path) -> int:
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
            while chunk := file.read(65_536):
                sys.stdout.buffer.write(chunk)
            self._shown = file.tell()
        sys.stdout.flush()
