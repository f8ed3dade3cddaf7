"""What differs between runs, and whether one config is better than another. No torch here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dist_train.config.changes import is_safe, leaves
from dist_train.config.problems import printable
from dist_train.config.recorded import read_recorded
from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from dist_train.report import student
from dist_train.report.facts import Row, Steps, each_row, read_metrics
from dist_train.report.student import Estimate
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import Best, RunState
from dist_train.rundir.runs import shown_path

COMPARED = ("loss", "grad_norm")
"""Of each step; metrics.jsonl has all their digits, so that equal numbers are equal bits."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run and its figure.

    Attributes:
        name: its path as a person types it.
        best: the compared figure at its best.
        last: the row of its last evaluation.
        is_done: whether it has reached its end; the tests leave out one that has not.
    """

    name: str
    path: Path
    config: RunConfig
    steps: Steps
    evaluations: list[Row]
    state: str
    is_done: bool
    best: Best

    @property
    def last(self) -> Row:
        return self.evaluations[-1]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but their seed, as far as results depend on it."""

    label: str
    runs: list[Run]

    def by_seed(self) -> dict[int, float]:
        """The best figure of each run that is done. Of two with the same seed, which must be equal, the first."""
        return {run.config.seed: run.best.value for run in reversed(self.runs) if run.is_done}


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Two runs of the same seed: as long as their steps are the same bits.

    Attributes:
        equal: steps that both have recorded, from the first on, in which everything of COMPARED is equal.
        step: the first in which something differs, None where nothing does.
        name, values: what differs there, and both values.
    """

    runs: tuple[str, str]
    equal: int
    step: int | None = None
    name: str = ""
    values: tuple[Any, Any] = (None, None)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a group is better than the first.

    Attributes:
        paired: over the seeds that both have; None with fewer than two.
        unpaired: over all runs; None with fewer than two on a side.
        better: whether the group is better (True) or worse (False) than the first; None where that cannot be said.
    """

    label: str
    paired: Estimate | None
    unpaired: Estimate | None
    better: bool | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is shown.

    Attributes:
        metric: the figure that is compared, at its best over each run's evaluations.
        better: max or min.
        differing: key path, and its value in each group; the seed is left out.
    """

    metric: str
    better: str
    groups: list[Group]
    differing: list[tuple[str, list[Any]]]
    meetings: list[Meeting]
    judgements: list[Judgement]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def compare(paths: Sequence[Path], metric: str | None = None) -> Comparison:
    """Reads the runs, and compares them.

    Args:
        paths: run directories, or folders of them. One that is named twice, as by `latest`, counts once.
        metric: what is compared. Without it, eval.best, which all runs must agree on.

    Raises:
        UserError: when there are fewer than two runs, one has no evaluation, or they have no figure in common.
    """
    folders = {folder.resolve(): folder for path in paths for folder in _runs_of(path)}
    if len(folders) < 2:
        raise UserError(f"{len(folders)} run is given, and it takes two to compare: name another one")
    configs = {folder: read_recorded(folder).alone for folder in folders.values()}
    metric = metric or _common_metric(configs)
    first = next(iter(configs.values()))
    chosen = first.eval.model_copy(update={"best": metric, **({"best_is": "auto"} if metric != first.best else {})})
    better = first.model_copy(update={"eval": chosen}).best_is
    runs = [_read(folder, config, metric, better) for folder, config in configs.items()]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_counts(run.config).items())), []).append(run)
    labels = (letter * count for count in range(1, 99) for letter in ascii_uppercase)
    by_seed = [sorted(group, key=lambda run: run.config.seed) for group in groups.values()]
    listed = [Group(label=label, runs=group) for label, group in zip(labels, by_seed, strict=False)]
    return Comparison(
        metric=metric,
        better=better,
        groups=listed,
        differing=list(_differing([group.runs[0].config for group in listed])),
        meetings=[meet(a, b) for a, b in _same_seed(runs)],
        judgements=[_judge(listed[0], group, better) for group in listed[1:]],
    )


def _runs_of(path: Path) -> list[Path]:
    if RunDir(path).is_run():
        return [path]
    below = sorted(folder for folder in path.iterdir() if folder.is_dir() and RunDir(folder).is_run())
    if not below:
        raise UserError(f"{path}: no run directory, and no folder of them")
    return below


def _common_metric(configs: dict[Path, RunConfig]) -> str:
    (one, first), *others = configs.items()
    for other, config in others:
        if (config.best, config.best_is) != (first.best, first.best_is):
            ways = [f"{shown_path(path)} by the {c.best_is} of {c.best}" for path, c in ((one, first), (other, config))]
            raise UserError(
                f"{printable(', '.join(ways), 500)}: compare runs of one task, or name a figure of all by --metric"
            )
    return first.best


def _read(folder: Path, config: RunConfig, metric: str, better: str) -> Run:
    name, state = printable(shown_path(folder), 4096), RunState.of(folder)
    found = read_metrics(RunDir(folder).metrics)
    rows = found.evaluations.get("evaluation", [])
    if not rows:
        raise UserError(f"{name} has no evaluation yet: there is nothing to compare it by")
    if all(metric not in row for row in rows):
        raise UserError(printable(f"{name} has no figure {metric}; it has {', '.join(numbers(rows[-1]))}", 4096))
    sign = 1 if better == "max" else -1
    known = [row for row in rows if isinstance(row.get(metric), int | float) and abs(row[metric]) < 1e100]
    if not known:
        raise UserError(f"{name}: its {printable(metric)} was finite in no evaluation")
    best = max(known, key=lambda row: sign * row[metric])
    return Run(
        name=name,
        path=folder,
        config=config,
        steps=found.steps,
        evaluations=rows,
        state=state.status or "starting",
        is_done=state.reached_its_end,
        best=Best(metric=metric, value=best[metric], step=best["step"]),
    )


def numbers(row: Row) -> list[str]:
    """The names of an evaluation's figures."""
    hidden = ("step", "epoch", "samples_seen")
    return [key for key, value in row.items() if key not in hidden and type(value) in (int, float)]


def _counts(config: RunConfig) -> dict[str, Any]:
    """The keys that a result depends on, but the seed."""
    found = leaves("", config.model_dump(mode="json"))
    return {key: value for key, value in found if not is_safe(key) and key != "seed"}


def _differing(configs: Sequence[RunConfig]) -> Iterator[tuple[str, list[Any]]]:
    trees = [_counts(config) for config in configs]
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = [tree.get(key) for tree in trees]
        if len({repr(value) for value in values}) > 1:
            yield key, values


def _same_seed(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Of each seed, the first run with every other one."""
    seeds: dict[int, Run] = {}
    for run in runs:
        first = seeds.setdefault(run.config.seed, run)
        if first is not run:
            yield first, run


def meet(a: Run, b: Run) -> Meeting:
    """Up to which step two runs are the same."""
    left, right = (each_row(RunDir(run.path).metrics, whole=True) for run in (a, b))
    equal = 0
    for one, other in zip(filter(_is_step, left), filter(_is_step, right), strict=False):
        for name in ("step", *COMPARED):
            values = one.get(name), other.get(name)
            if repr(values[0]) != repr(values[1]):
                return Meeting(runs=(a.name, b.name), equal=equal, step=one.get("step"), name=name, values=values)
        equal += 1
    return Meeting(runs=(a.name, b.name), equal=equal)


def _is_step(row: Row) -> bool:
    return row.get("kind") == "train" and type(row.get("step")) is int


def _judge(first: Group, group: Group, better: str) -> Judgement:
    a, b = first.by_seed(), group.by_seed()
    differences = [b[seed] - a[seed] for seed in a if seed in b]
    pairs = student.paired(differences) if len(differences) >= 2 else None
    apart = student.unpaired([*a.values()], [*b.values()]) if min(len(a), len(b)) >= 2 else None
    decides = pairs or apart
    said = (decides.difference > 0) == (better == "max") if decides is not None and decides.tells else None
    return Judgement(label=group.label, paired=pairs, unpaired=apart, better=said)
