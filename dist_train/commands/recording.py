"""What a run recorded of its steps, and the bitwise comparison of a replay with it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint.manifest import DamagedCheckpoint, read_manifest
from dist_train.checkpoint.resume import check_surroundings, recorded_config
from dist_train.checkpoint.store import CheckpointStore, VerifiedCheckpoint, step_of
from dist_train.config.changes import differences, is_safe
from dist_train.config.problems import printable
from dist_train.config.requests import ReplayRequest
from dist_train.config.schema import RunConfig
from dist_train.control.due import Due
from dist_train.errors import UserError
from dist_train.report.budget import Times
from dist_train.report.words import POSITION
from dist_train.rundir.layout import RunDir
from dist_train.rundir.reading import is_number, open_regular, parse_json
from dist_train.tracking.base import Row
from dist_train.tracking.jsonl import row_to_json
from dist_train.tracking.tracker import NullTracker

_LONGEST_LINE = 64 * 2**20
"""In bytes; more than an evaluation of very many classes needs."""
NOT_COMPARED = {"kind", "split", "time", *POSITION}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The steps `first` to `last` of a run, counted from 1, and where to begin computing them again.

    Attributes:
        found: the newest sound checkpoint before `first`; None for the start.
        steps: the training rows by step, from the one after the checkpoint on.
        evaluations: the rows of the evaluation split by step, `first` to `last`.
        notes: lines for the user.
    """

    first: int
    last: int
    found: VerifiedCheckpoint | None
    steps: dict[int, Row]
    evaluations: dict[int, Row]
    notes: tuple[str, ...]

    @property
    def begin_step(self) -> int:
        return step_of(self.found.path) if self.found else 0

    @property
    def begin(self) -> str:
        return self.found.path.name if self.found else "the start"


def read_recording(
    request: ReplayRequest, config: RunConfig, due: Due, now: Mapping[str, Any], world_size: int
) -> Recording:
    """Reads metrics.jsonl and finds the checkpoint to begin from. Changes nothing.

    Args:
        due: the run's own.
        now: of dist_train.checkpoint.provenance.surroundings.
        world_size: of the replay.

    Raises:
        UserError: when there are no such steps.
    """
    run_dir, first, last = Path(request.run), request.from_step, request.to_step
    if not 1 <= first <= last <= due.total_steps:
        raise UserError(
            f"--from-step {first} --to-step {last}: steps are counted from 1, and this run has {due.total_steps}; "
            "give the first and the last to be computed again"
        )
    steps, evaluations = _rows(RunDir(run_dir).metrics)
    missing = next((step for step in range(first, last + 1) if step not in steps), None)
    if missing is not None and not request.show:
        there = f"holds steps {min(steps)} to {max(steps)}" if steps else "holds no steps yet"
        raise UserError(
            f"--from-step {first} --to-step {last}: step {missing} is not recorded; metrics.jsonl {there}. "
            "--show computes steps that are not recorded, too"
        )
    # The replay must pass through the state that a rollback returned to.
    any_will_do = config.train.non_finite != "rollback"
    store = CheckpointStore(RunDir(run_dir).checkpoints)
    found, damaged = store.newest_sound(lambda step: step < first and (any_will_do or due.rollback_step(step) == step))
    notes = [f"{line}: beginning from an older one" for line in damaged]
    begin = step_of(found.path) if found else 0
    if steps and begin < min(steps) - 1:
        notes.append(f"recorded from step {min(steps)} on: the run began from a checkpoint that is not here")
    return Recording(
        first=first,
        last=last,
        found=found,
        steps={step: row for step, row in steps.items() if begin < step <= last},
        evaluations={step: row for step, row in evaluations.items() if first <= step <= last},
        notes=(*notes, *_changes(found or _any_of(run_dir), config, now, world_size)),
    )


def _rows(path: Path) -> tuple[dict[int, Row], dict[int, Row]]:
    """Training rows and rows of the evaluation split, by step. An incomplete last line is skipped."""
    steps: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            for row in map(_row, iter(lambda: file.readline(_LONGEST_LINE), b"")):
                if row.get("kind") == "train":
                    steps[row["step"]] = row
                elif row.get("split") == "evaluation":
                    evaluations[row["step"]] = row
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable(" ".join(str(error).split()), 200)
        raise UserError(f"{path} cannot be read: {reason}") from None
    return steps, evaluations


def _row(line: bytes) -> Row:
    """The row of a line of metrics.jsonl; empty for an incomplete line. Raises ValueError."""
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"a line of more than {_LONGEST_LINE:,} bytes")
    row = parse_json(line) if line.endswith(b"\n") else {}
    if not isinstance(row, dict):
        raise ValueError("a line that is no JSON object")
    is_step = row.get("kind") == "train" or row.get("split") == "evaluation"
    if is_step and not is_number(row.get("step"), 1, 2**53):
        raise ValueError("a line whose step is no number")
    return row


def _changes(
    witness: VerifiedCheckpoint | None, config: RunConfig, now: Mapping[str, Any], world_size: int
) -> Iterator[str]:
    """What has changed since the checkpoint was written: it may be the cause of a difference."""
    if witness is None:
        return
    yield from check_surroundings(witness, now, allowed=tuple(now))
    before = recorded_config(witness) or config
    for path, old, new in differences(before, config):
        if not is_safe(path):
            yield f"{path} was {old} when {witness.path.name} was written, and is {new} in config.yaml"
    before_size = witness.manifest.get("world_size")
    if not config.exact and before_size != world_size:
        yield f"exact is false, so the bits depend on the number of ranks, which was {before_size}"


def _any_of(run_dir: Path) -> VerifiedCheckpoint | None:
    """A checkpoint to compare with, where the replay begins from none."""
    for path in reversed(CheckpointStore(RunDir(run_dir).checkpoints).all()):
        with suppress(DamagedCheckpoint):
            return VerifiedCheckpoint(path=path, manifest=read_manifest(path))
    return None


# ---------------------------------------------------------------- comparison


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two values that should be equal."""

    step: int
    split: str | None
    quantity: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        where = f"step {self.step}" + (f", {self.split}" if self.split else "")
        return f"{where}: {self.quantity} was {_exact(self.recorded)} and came out as {_exact(self.replayed)}"

    def as_json(self) -> dict[str, object]:
        values = {"recorded": self.recorded, "replayed": self.replayed}
        floats = {f"{name}_hex": value.hex() for name, value in values.items() if isinstance(value, float)}
        return {"step": self.step, "split": self.split, "quantity": self.quantity, **values, **floats}


def _exact(value: Any) -> str:
    return f"{value!r} ({value.hex()})" if isinstance(value, float) else str(value)


class ReplayComparison(NullTracker):
    """Receives the rows of a replay in place of a tracker and compares them with the recorded ones.

    Args:
        on_difference: called at the first difference.

    Attributes:
        difference: the first difference.
        missing: recorded training steps that have not been replayed yet.
        values: how many numbers have been compared.
    """

    def __init__(self, recording: Recording, on_difference: Callable[[], None]) -> None:
        self._recording = recording
        self._on_difference = on_difference
        self.difference: Difference | None = None
        self.missing = set(recording.steps)
        self.steps = self.evaluations = self.values = 0
        self._names: dict[str, None] = {}

    def log_steps(self, rows: list[Row], figures: Mapping[str, float] | None = None, times: Times = ()) -> None:
        for row in rows:
            recorded = self._recording.steps.get(row["step"])
            self.missing.discard(row["step"])
            if recorded is not None and self.difference is None:
                self.steps += 1
                self._names |= dict.fromkeys(self._compare(recorded, row))

    def log_evaluation(self, row: Row, confusion: Any) -> None:
        recorded = self._recording.evaluations.get(row["step"])
        if recorded is not None and self.difference is None:
            self.evaluations += 1
            self._compare(recorded, row)

    def note(self, line: str) -> None:
        """Ignored: the training has said the same."""

    def _compare(self, recorded: Row, row: Row) -> list[str]:
        """The names of the compared values: all that were recorded, and whether the replay left the step out."""
        before, now = dict(_leaves("", recorded)), dict(_leaves("", json.loads(row_to_json(row))))
        names = [*before, *(name for name in ("left_out",) if name in now and name not in before)]
        for name in names:
            self.values += 1
            old, new = before.get(name), now.get(name)
            if repr(old) != repr(new):  # tells 0.0 from -0.0, and nan is a word in JSON
                step, split = recorded["step"], recorded.get("split")
                self.difference = Difference(step=step, split=split, quantity=name, recorded=old, replayed=new)
                self._on_difference()
                break
        return names

    def summary(self) -> str:
        """What is identical, where something was compared."""
        steps = sorted(self._recording.steps)
        figures = ", ".join(self._names)
        evaluations = f" and {count(self.evaluations, 'evaluation')}" if self.evaluations else ""
        return f"steps {steps[0]} to {steps[-1]} ({figures}){evaluations}, {self.values} values"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The compared values of a row by path: `grad_norm`, `per_class.f1[3]`."""
    if isinstance(value, dict):
        for name, child in value.items():
            if path or name not in NOT_COMPARED:
                yield from _leaves(f"{path}.{name}" if path else name, child)
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield from _leaves(f"{path}[{place}]", child)
    else:
        yield path, value
