"""What the files of a run directory say of a run. No torch here, and nothing that the run names is imported."""

import bisect
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dist_train.config.changes import differences
from dist_train.config.recorded import read_recorded
from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from dist_train.report.bottleneck import Setting
from dist_train.report.budget import Budget
from dist_train.report.late import Late
from dist_train.report.words import POSITION, Row
from dist_train.rundir.codec import read_json, read_record
from dist_train.rundir.layout import RunDir
from dist_train.rundir.reading import open_regular, parse_json
from dist_train.rundir.records import LaunchRecord, NodeRecord, RunState, VerdictSummary, read_launches

LAST_READ = 2**16
"""Bytes of its end that hold its last row."""
MOST_READ = 64 * 2**20
"""Bytes of training rows, about 250,000 steps: a second's work."""


class Spent(NamedTuple):
    """An interval of training rows that ends with `step`: where its time went, and which ranks were late."""

    step: int
    budget: Budget
    late: list[Late]


_STEP, _WITH_TIME = b'{"kind": "train"', b'"budget": '
_STEP_OF = re.compile(rb'^{"kind": "train", "step": (\d{1,18}),', re.MULTILINE)
_CLOCK = ("unix", "samples_per_s")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The training rows as columns, one entry a step.

    Attributes:
        step: ascending.
        unix: when its interval was written down, Unix time in s.
        values: every number that the rows have, by name; None where a row has none, or one that is not finite.
        samples: of one step.
        per_epoch: steps.
    """

    step: list[int] = field(default_factory=list)
    unix: list[float] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    speed: list[float] = field(default_factory=list)
    samples: float = 0.0
    per_epoch: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What metrics.jsonl has.

    Attributes:
        steps: the training rows.
        evaluations: by split, in the order of the steps.
        spent: where time went, in the order of the steps.
        setting: what the newest start ran with.
    """

    steps: Steps
    evaluations: dict[str, list[Row]]
    spent: list[Spent]
    setting: Setting | None


@dataclass(frozen=True, kw_only=True)
class Start:
    """A start of the process group.

    Attributes:
        number: of the generation.
        after_step: the steps that were done before.
        unix: when, in Unix time; None where nobody knows.
        ended: why it ended, in words; empty while it runs or where nothing was left.
    """

    number: int
    after_step: int
    unix: float | None
    hosts: tuple[str, ...]
    ended: str


@dataclass(frozen=True, kw_only=True)
class Facts(Metrics):
    """All that a report shows."""

    run_dir: Path
    state: RunState
    verdict: Row | None
    """The newest generation's verdict.json, as it is."""
    details: dict[str, Row]
    """By split: what the newest evaluation has left besides figures, such as the counts of a confusion matrix."""
    launches: list[LaunchRecord]
    starts: list[Start]
    config: RunConfig | None
    config_text: str
    environment: Row
    before: tuple[str, list[tuple[str, Any, Any]]] | None
    """The run of the same name before this one, and how its config differs: key, there, here."""


def gather(run_dir: Path) -> Facts:
    """What there is; a file that is missing or damaged leaves its part empty."""
    run = RunDir(run_dir)
    metrics = read_metrics(run.metrics)
    config = _config(run_dir)
    newest = run.newest_generation()
    verdicts = [read_json(path) for path in newest.verdicts()] if newest else []
    return Facts(
        **vars(metrics),
        run_dir=run_dir,
        state=RunState.of(run_dir),
        verdict=next((one for one in verdicts if isinstance(one, dict)), None),
        details=_details(run, metrics.evaluations),
        launches=read_launches(run_dir),
        starts=list(_starts(run, metrics.steps)),
        config=config,
        config_text=_text(run.config),
        environment=found if isinstance(found := read_json(run.environment), dict) else {},
        before=_before(run_dir, config),
    )


def _details(run: RunDir, splits: Iterable[str]) -> dict[str, Row]:
    return {split: found for split in splits if isinstance(found := read_json(run.evaluation(split)), dict)}


def read_metrics(path: Path) -> Metrics:
    evaluations: dict[str, list[Row]] = {}
    columns = _Columns()
    for row in each_row(path):
        if row.get("kind") == "train":
            columns.add(row)
        elif row.get("kind") == "evaluation" and isinstance(row.get("step"), int):
            evaluations.setdefault(str(row.get("split")), []).append(row)
    return Metrics(steps=columns.steps(), evaluations=evaluations, spent=columns.spent, setting=columns.setting)


class _Columns:
    def __init__(self) -> None:
        self._steps = Steps()
        self.spent: list[Spent] = []
        self.setting: Setting | None = None
        self._last: Row = {}

    def add(self, row: Row) -> None:
        clock = row.get("time")
        clock = clock if isinstance(clock, dict) else {}
        steps, count = self._steps, len(self._steps.step)
        if not isinstance(row.get("step"), int):
            return
        self._last = row
        if (budget := Budget.from_row(clock)) is not None:
            self.spent.append(Spent(row["step"], budget, Late.from_rows(clock.get("late"))))
            self.setting = Setting.from_row(clock.get("setting")) or self.setting
        steps.step.append(row["step"])
        unix, speed = (known if isinstance(known := clock.get(key), int | float) else 0.0 for key in _CLOCK)
        steps.unix.append(unix or (steps.unix[-1] if count else 0.0))
        steps.speed.append(speed)
        for name, value in row.items():
            if name in POSITION or isinstance(value, bool | str | dict | list):
                continue
            if isinstance(value, int) and abs(value) >= 2**63:  # no training has written it
                continue
            if name not in steps.values:
                steps.values[name] = [None] * count
            steps.values[name].append(value)
        for column in steps.values.values():
            if len(column) == count:
                column.append(None)

    def steps(self) -> Steps:
        row, found = self._last, self._steps
        if not row.get("step"):
            return found
        samples, epochs = row.get("samples_seen") or 0, row.get("epoch") or 0
        return replace(found, samples=samples / row["step"], per_epoch=row["step"] / epochs if epochs else 0.0)


def each_row(path: Path, *, whole: bool = False) -> Iterator[Row]:
    """Those of a file that may still be written: a line that is cut off is left out. Of a very large one, all
    evaluations and every so many steps, unless it is wanted as a `whole`."""
    with suppress(OSError), open(open_regular(path), "rb") as file:
        every = 1 if whole else 1 + os.fstat(file.fileno()).st_size // MOST_READ
        for number, line in enumerate(file):
            if number % every and line.startswith(_STEP) and _WITH_TIME not in line:
                continue
            with suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict):
                    yield row


def _starts(run: RunDir, steps: Steps) -> Iterator[Start]:
    for generation in run.all_generations():
        times = [path.stat().st_mtime for path in generation.nodes.glob("*.json")]
        nodes = [read_record(NodeRecord, path) for path in sorted(generation.nodes.glob("*.json"))]
        unix = min(times, default=None)
        done = bisect.bisect_left(steps.unix, unix) if unix is not None else 0
        verdict = next((read_record(VerdictSummary, path) for path in generation.verdicts()), None)
        yield Start(
            number=generation.number,
            after_step=steps.step[done - 1] if done else 0,
            unix=unix,
            hosts=tuple(sorted({node.host for node in nodes if node})),
            ended=ended_as(verdict),
        )


def ended_as(verdict: VerdictSummary | None) -> str:
    if verdict is None:
        return ""
    cause = verdict.cause
    if cause is None:
        return verdict.outcome
    said = f": {cause.report.type}: {cause.report.message}" if cause.report else ""
    said = f": {hang_in_words(vars(cause))}" if cause.kind == "hang" else said
    return f"{verdict.outcome} ({cause.kind}{said})"


def hang_in_words(cause: Row) -> str:
    """What a verdict's cause says of a hang."""
    ranks, why = cause.get("ranks"), " ".join(str(cause.get("why") or "no word").split())
    return f"rank {', '.join(map(str, ranks))}: {why}" if isinstance(ranks, list) and ranks else why


def newest_step(path: Path) -> int:
    """The last one in metrics.jsonl; 0 for none."""
    with suppress(OSError), open(open_regular(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_READ))
        return max(map(int, _STEP_OF.findall(file.read())), default=0)
    return 0


def _config(run_dir: Path) -> RunConfig | None:
    with suppress(UserError):
        return read_recorded(run_dir).alone
    return None


def _text(path: Path) -> str:
    with suppress(OSError, ValueError), open(open_regular(path), "rb") as file:
        return file.read(2**20).decode(errors="replace")
    return ""


def _before(run_dir: Path, config: RunConfig | None) -> tuple[str, list[tuple[str, Any, Any]]] | None:
    """Run directories have the time in their name."""
    here = run_dir.resolve()
    with suppress(OSError):
        older = sorted(path.name for path in here.parent.iterdir() if path.name < here.name and not path.is_symlink())
        for name in reversed(older[-20:]):
            other = _config(here.parent / name) if RunDir(here.parent / name).config.is_file() else None
            if other is not None and config is not None and other.name == config.name:
                return name, list(differences(other, config))
    return None
