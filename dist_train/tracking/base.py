"""What a tracker receives, and what a sink is. No torch and no wandb here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_train.report.words import Row

if TYPE_CHECKING:
    import numpy as np

    from dist_train.config.schema import RunConfig
    from dist_train.report.bottleneck import Setting
    from dist_train.rundir.records import Best

Note = Callable[[str], None]

OF_THE_NEWEST = ("worst", "pairs")
"""The keys of an evaluation's row that are kept of the newest one alone, and not in metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the process found when it started; with the config, all that describes a run."""

    run_dir: Path
    config: RunConfig
    name: str
    model: str
    parameters: int
    world_size: int
    nodes: int
    backend: str
    device: str
    threads: int
    global_batch: int
    microbatches: int
    train_samples: int
    evaluation_samples: int
    steps_per_epoch: int
    total_steps: int
    first_step: int
    """Steps done before this session: 0, or the checkpoint's."""
    resumed_from: str | None
    generation: int
    classes: tuple[str, ...] | None
    tokens: int | None = None
    """Of one sample, where it is a text."""
    stop_step: int | None = None
    """Where this session ends when it is to end before total_steps."""
    setting: Setting | None = None
    """What its speed depends on."""
    best_value: float | None = None
    """Of the metric that picks the best checkpoint, before this session."""

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch that holds `step`, both counted from 1; step 0 is at the start of the first."""
        return max(step - 1, 0) // self.steps_per_epoch + 1


@dataclass(frozen=True, kw_only=True)
class SessionOutcome:
    """How a session ended.

    Attributes:
        status: done, stopped (saved, to be resumed) or failed.
        metrics: the last evaluation's row, empty where there was none.
        best: the best evaluation, if any.
        seconds: from begin to here.
        checkpoint: the newest one, if any.
        broken: training samples that could not be read; others were taken in their place.
        cached: what data.cache did for all ranks, as data/cache/survey.py counts it.
        time: what much of the time was lost to, where that is worth a line.
    """

    status: Literal["done", "stopped", "failed"]
    metrics: Row
    best: Best | None
    seconds: float
    checkpoint: Path | None
    broken: int = 0
    cached: dict[str, int] = field(default_factory=dict)
    time: str | None = None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Consecutive training rows, and their summary for one line.

    Attributes:
        rows: the rows as metrics.jsonl gets them, "time" included.
        summary: the last row, with the loss averaged over all of them; without "time".
        samples_per_s: of all ranks together, evaluations not counted; None before there are two steps to compare.
        tokens_per_s: the same, where a sample is a text.
        seconds_left: to the end of this session, evaluations counted; None while that would be a guess.
        budget: seconds of the mean rank by phase, as report/budget.py names them: of one step, and in `evaluation` and
            `save` of the whole interval. Empty where nothing is known.
    """

    rows: list[Row]
    summary: Row
    samples_per_s: float | None
    seconds_left: float | None
    tokens_per_s: float | None = None
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def times(self) -> dict[str, float]:
        """The speeds, and the seconds of a step by what they went into, where that is known."""
        return {**self.speeds, **self.budget}

    @property
    def speeds(self) -> dict[str, float]:
        """What is known of these, by name."""
        found = {"samples_per_s": self.samples_per_s, "tokens_per_s": self.tokens_per_s}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a callback has logged in one call.

    Attributes:
        key: the callback's own, which all of it stands under.
        position: {"step", "epoch", "samples_seen"}.
        values: numbers and texts by name.
        pictures: by name, the file that it is kept in, and uint8 [H, W, 3].
    """

    key: str
    position: Row
    values: dict[str, int | float | str]
    pictures: dict[str, tuple[Path, np.ndarray]]


class Sink:
    """One place that metrics go to. Does nothing by itself: a sink overrides what concerns it.

    Any method may raise: the tracker then reports it once and goes on without this sink. None may block for more than a
    moment, finish and close apart, which may take some seconds.
    """

    name = "sink"

    def begin(self, facts: RunFacts, note: Note) -> None:
        """Opens the sink. `note` shows the user one line, and may be called during any later call."""

    def tick(self, step: int) -> None:
        """A step was done; called for every step, so it takes microseconds."""

    def busy(self, what: str) -> None:
        """Something other than steps goes on until the next tick, in a few words; may be called before begin."""

    def log_steps(self, interval: Interval) -> None:
        """One tracking interval has passed."""

    def log_samples(self, rows: list[Row]) -> None:
        """Which samples the interval's steps were made of, where the config asks for it; before its log_steps."""

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        """An evaluation is finished. `row` carries "time", "texts" that a language model has written, and what there is
        of "worst", the samples of the highest losses, and "pairs", truth and prediction; `confusion` is int64 [actual
        class, predicted class]."""

    def log_checkpoint(self, path: Path, row: Row, *, is_best: bool) -> None:
        """A checkpoint is complete. `row` has "step" and the figures of the last evaluation; the folder may be gone
        when later ones are."""

    def log_own(self, own: Own) -> None:
        """What a callback has to log. Its pictures are in their files already, where the disk has taken them."""

    def note(self, line: str) -> None:
        """One line for people."""

    def finish(self, outcome: SessionOutcome) -> None:
        """The session is over; called at most once, close follows."""

    def close(self) -> None:
        """Gives back files, processes and the terminal; may be called again, and without finish after an error."""


def prefix_of(split: str) -> str:
    """The group that an evaluation's metrics are shown under: `eval`, or the name of another split."""
    return "eval" if split == "evaluation" else split


def confusion_cells(confusion: np.ndarray, classes: tuple[str, ...] | None, most: int) -> list[list[Any]]:
    """[actual, predicted, count] of every cell; of a matrix with more than `most`, the largest counts only."""
    flat = confusion.ravel()
    keep = range(flat.size) if flat.size <= most else sorted(flat.argsort()[::-1][:most].tolist())
    width = confusion.shape[1]
    names = classes or tuple(str(number) for number in range(width))
    return [
        [names[cell // width], names[cell % width], int(flat[cell])] for cell in keep if flat.size <= most or flat[cell]
    ]
