"""`--profile STEPS`: what a rank does in these steps, operator by operator, as torch.profiler writes it down."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dist_train.parallel.ranks import Ranks
from dist_train.rundir.layout import RunDir
from dist_train.rundir.runs import shown_path

OPENS_IT = "https://ui.perfetto.dev or chrome://tracing opens it"


class NullProfile:
    """Where none is asked for."""

    def begin(self, step: int) -> None:
        """`step`, counted from 1, begins with loading."""

    def end(self, step: int) -> None:
        """Its update is done."""

    def close(self) -> None:
        """The session is over, maybe in the middle of them."""


class Profile(NullProfile):
    """One rank's: of a rank that is not chosen, it only says where the others' are.

    Args:
        steps: consecutive; those that the session has behind it are left out.
        chosen: ranks.
        tell: shows the user a line, on rank 0.
    """

    def __init__(self, steps: range, chosen: list[int], ranks: Ranks, run: RunDir, tell: Callable[[str], None]) -> None:
        self._steps, self._chosen, self._ranks, self._run, self._tell = steps, chosen, ranks, run, tell
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells of each start
        self._profile: profile | None = None
        self._first = 0
        self._step = ExitStack()

    def begin(self, step: int) -> None:
        if step not in self._steps:
            return
        self._first = self._first or step
        if self._ranks.rank in self._chosen:
            if self._profile is None:
                kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
                self._profile = profile(activities=kinds)
                self._profile.start()
            self._step.enter_context(record_function(f"step {step}"))

    def end(self, step: int) -> None:
        self._step.close()
        if step == self._steps[-1]:
            self._write(step)

    def close(self) -> None:
        self._step.close()
        self._profile = None

    def _write(self, last: int) -> None:
        """No failure here is worth a training."""
        paths = [self._path(last, rank) for rank in self._chosen]
        try:
            if self._profile is not None:
                self._profile.stop()
                own = self._path(last, self._ranks.rank)
                own.parent.mkdir(exist_ok=True)
                self._profile.export_chrome_trace(str(own))
        except (OSError, RuntimeError) as error:
            self._tell(f"! no profile was written: {' '.join(str(error).split())}")
        else:
            which = f"ranks {', '.join(map(str, self._chosen))}" if len(paths) > 1 else f"rank {self._chosen[0]}"
            where = paths[0] if len(paths) == 1 else paths[0].parent
            self._tell(f"profile of steps {self._first} to {last} of {which}: {shown_path(where)}; {OPENS_IT}")
        self._profile = None

    def _path(self, last: int, rank: int) -> Path:
        return self._run.profile(self._first, last, rank)
