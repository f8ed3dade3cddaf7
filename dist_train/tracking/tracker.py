"""The tracker: one object that the loop reports to, and that passes it on to every sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.config.schema import RunConfig
from dist_train.parallel.ranks import Ranks
from dist_train.report.budget import Times
from dist_train.report.live import summarised
from dist_train.rundir.layout import RunDir, rank_log
from dist_train.tracking.base import Interval, Own, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.jsonl import JsonlSink, SamplesSink
from dist_train.tracking.log_file import LogFileSink
from dist_train.tracking.pace import Pace
from dist_train.tracking.pictures import PictureSink
from dist_train.tracking.report_sink import ReportSink
from dist_train.tracking.spent_time import SpentTime
from dist_train.tracking.tensorboard import TensorboardSink, require_tensorboard
from dist_train.tracking.terminal import console
from dist_train.tracking.wandb_sink import WandbSink, wandb_mode

if TYPE_CHECKING:
    import numpy as np


class NullTracker:
    """The tracker of every rank but the first, which shows nothing."""

    def begin(self, facts: RunFacts) -> None:
        """Opens every sink; on a resumed run, what lies after its first step is dropped."""

    def tick(self, step: int) -> None:
        """`step` steps are done; called after each, and takes microseconds."""

    def busy(self, what: str) -> None:
        """Something other than steps goes on until the next tick: "evaluating 42 %". May be called before begin."""

    def log_steps(self, rows: list[Row], figures: Mapping[str, float] | None = None, times: Times = ()) -> None:
        """Rows of consecutive steps: {"step", "epoch", "samples_seen", "loss", "lr", "grad_norm", …}; the task's
        figures over all of them; and what each rank spent its time on."""

    def log_samples(self, rows: list[Row]) -> None:
        """Rows of the same steps: {"step", "epoch", "indices": V lists of places in the training set}."""

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        """A finished evaluation: {"step", "epoch", "samples_seen", "split", metrics…, "per_class"}.

        `confusion` holds counts, int64 [actual class, predicted class].
        """

    def log_checkpoint(self, path: Path, row: Row, *, is_best: bool) -> None:
        """A checkpoint is complete. `row` has "step" and the figures of the last evaluation."""

    def log_own(self, own: Own) -> None:
        """What a callback has to log."""

    def note(self, line: str) -> None:
        """One line for the console and the log."""

    def finish(self, outcome: SessionOutcome) -> None:
        """Reports how it ended and closes every sink; takes seconds at most."""

    def close(self) -> None:
        """Closes every sink without a report, after an error."""

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class Tracker(NullTracker):
    """The first rank's tracker. No failure of a sink ends or slows the run: the sink is dropped with one line."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._pace: Pace | None = None
        self._tokens: int | None = None
        self._spent: SpentTime | None = None

    def begin(self, facts: RunFacts) -> None:
        self._pace, self._tokens, self._spent = Pace(facts), facts.tokens, SpentTime(facts)
        self._each(lambda sink: sink.begin(facts, self.note))

    def tick(self, step: int) -> None:
        assert self._pace is not None
        self._pace.tick(step)
        self._each(lambda sink: sink.tick(step))

    def busy(self, what: str) -> None:
        self._each(lambda sink: sink.busy(what))

    def log_steps(self, rows: list[Row], figures: Mapping[str, float] | None = None, times: Times = ()) -> None:
        assert self._pace is not None and self._spent is not None
        if not rows:
            return
        speed = self._pace.samples_per_s()
        clock = {"unix": time.time(), "samples_per_s": speed}
        spent, budget, notes = self._spent.add(times)
        interval = Interval(
            rows=[*({**row, "time": clock} for row in rows[:-1]), {**rows[-1], "time": clock | spent}],
            summary=summarised(rows) | dict(figures or {}),
            samples_per_s=speed,
            seconds_left=self._pace.seconds_left(),
            tokens_per_s=None if speed is None or self._tokens is None else speed * self._tokens,
            budget=budget,
        )
        self._each(lambda sink: sink.log_steps(interval))
        for line in notes:
            self.note(line)

    def log_samples(self, rows: list[Row]) -> None:
        if rows:
            self._each(lambda sink: sink.log_samples(rows))

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        assert self._pace is not None
        self._pace.evaluated()
        timed = {**row, "time": {"unix": time.time()}}
        self._each(lambda sink: sink.log_evaluation(timed, confusion))

    def log_checkpoint(self, path: Path, row: Row, *, is_best: bool) -> None:
        self._each(lambda sink: sink.log_checkpoint(path, row, is_best=is_best))

    def log_own(self, own: Own) -> None:
        self._each(lambda sink: sink.log_own(own))

    def note(self, line: str) -> None:
        self._each(lambda sink: sink.note(line))

    def finish(self, outcome: SessionOutcome) -> None:
        told = outcome if self._spent is None else replace(outcome, time=self._spent.worth_saying())
        self._each(lambda sink: sink.finish(told))
        self.close()

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks.copy():
            if sink not in self._sinks:  # dropped by a note that an earlier sink of this round gave
                continue
            try:
                call(sink)
            except Exception as error:  # no error of a sink's library is worth a training
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        try:
            sink.close()
        except Exception as second:
            error.add_note(str(second))
        reason = " ".join(str(error).split()) or type(error).__name__
        self.note(f"! {sink.name} stopped: {reason}; training goes on, {self._what_is_left(sink)}")

    def _what_is_left(self, dropped: Sink) -> str:
        if isinstance(dropped, JsonlSink):
            return "its last rows are missing"
        if any(isinstance(sink, JsonlSink) for sink in self._sinks):
            return "metrics.jsonl is complete"
        return "and metrics.jsonl had stopped before"


def build_tracker(config: RunConfig, ranks: Ranks, run_dir: Path, *, supervised: bool = False) -> NullTracker:
    """The tracker of this rank; sinks open nothing before begin. The console is last, so its last word is the last.

    Args:
        supervised: a launcher says how the run has ended.

    Raises:
        UserError: on every rank, when a tracker is asked for whose package is missing.
    """
    if config.tracking.tensorboard:
        require_tensorboard()
    if not ranks.is_first:
        return NullTracker()
    run = RunDir(run_dir)
    sinks: list[Sink] = [JsonlSink(run.metrics), LogFileSink(rank_log(run.logs, 0))]
    if config.callbacks:
        sinks.append(PictureSink())
    if config.tracking.samples:
        sinks.append(SamplesSink(run.samples))
    if config.tracking.tensorboard:
        sinks.append(TensorboardSink(run.tensorboard))
    mode = wandb_mode(config.tracking.wandb.mode)
    if mode != "disabled":
        sinks.append(WandbSink(mode, rank_log(run.logs, 0)))
    sinks.append(ReportSink(run, makes_the_last=not supervised))
    return Tracker([*sinks, console()])
