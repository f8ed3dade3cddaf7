"""A comparison in sentences, in tables, and for programs."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict

from dist_train.report import words
from dist_train.report.compare import Comparison, Meeting, numbers
from dist_train.report.facts import Row
from dist_train.report.student import MOST_SEEDS, Estimate

MOST_FIGURES = 4
"""Of a run's last evaluation, in a table that a terminal has room for."""
WHAT = "loss and norm of the gradient"


def comparison_sentences(comparison: Comparison) -> list[str]:
    """What there is to say, the most important first."""
    left_out = [f"not done, and left out of the test: {run.name}" for run in comparison.runs if not run.is_done]
    return [*_judged(comparison), *_met(comparison), *left_out]


def _judged(comparison: Comparison) -> Iterator[str]:
    metric, first = comparison.metric, comparison.groups[0].label
    for one in comparison.judgements:
        estimate = one.paired or one.unpaired
        if estimate is None:
            yield f"{first} and {one.label}: one seed each, so nobody knows how much of the difference is chance"
            continue
        kind = "paired" if one.paired else "each, unpaired"
        if one.better is None:
            yield f"{first} and {one.label} cannot be told apart: {_estimate(metric, estimate, kind)}{_more(estimate)}"
        else:
            said = "better" if one.better else "worse"
            yield f"{one.label} is {said} than {first}: {_estimate(metric, estimate, kind)}"
        if one.paired and one.unpaired:
            yield f"unpaired: {_estimate(metric, one.unpaired, 'each')}{_more(one.unpaired)}"
    if len(comparison.judgements) > 1:
        yield f"each group is compared with {first} alone: of 20 that differ in nothing, one seems to"
    if not comparison.judgements:
        values = [*comparison.groups[0].by_seed().values()]
        if len(values) > 1:
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            deviation = f"standard deviation {words.change(metric, spread, spread, signed=False)}{_unit(metric)}"
            figure = f"{words.label(metric)} {words.figure(metric, mean)}"
            yield f"one config, {len(values)} seeds: {figure} on average, {deviation}"


def _unit(metric: str) -> str:
    return " points" if metric in words.SHARES else ""


def _estimate(metric: str, estimate: Estimate, kind: str) -> str:
    half = (estimate.high - estimate.low) / 2
    mean = words.change(metric, estimate.difference, half)
    low, high = (words.change(metric, value, half, signed=False) for value in (estimate.low, estimate.high))
    return f"{words.label(metric)} {mean}{_unit(metric)} (95 % {low} … {high}), {estimate.seeds} seeds {kind}"


def _more(estimate: Estimate) -> str:
    if estimate.tells:
        return ""
    if estimate.more is None:
        return f"; it would take more than {MOST_SEEDS:,} seeds" if estimate.difference else "; they are equal"
    return f"; about {estimate.more:,} more seed{'s' * (estimate.more > 1)}"


def _met(comparison: Comparison) -> Iterator[str]:
    groups: dict[tuple[int, int | None], list[Meeting]] = {}
    for one in comparison.meetings:
        groups.setdefault((one.equal, one.step), []).append(one)
    for (equal, step), found in sorted(groups.items(), key=lambda item: -len(item[1]))[:3]:
        who = " and ".join(found[0].runs) if len(found) == 1 else f"{len(found)} pairs of the same seed"
        if step is None:
            yield f"{who}: {WHAT} are the same bits in all {equal:,} steps that both have"
        elif equal:
            values = f": {' and '.join(map(repr, found[0].values))}" * (len(found) == 1)
            yield f"{who}: {WHAT} are the same bits up to step {equal:,}; then {found[0].name} differs{values}"
        else:
            yield f"{who} differ in bits from the first step on ({WHAT} compared)"


def figures_of(comparison: Comparison) -> list[list[str]]:
    """A table of the runs, its head first: the compared figure at its best, and all of the last evaluation."""
    metric = comparison.metric
    names = _shown(comparison)
    head = ["", "run", "seed", "state", f"best {words.label(metric)}", "at step", "last step"]
    rows = [head + [f"last {words.label(name)}" for name in names]]
    for group in comparison.groups:
        for run in group.runs:
            last = [words.figure(name, run.last.get(name, "")) for name in names]
            steps = f"{run.best.step:,}", f"{run.last['step']:,}"
            best = words.figure(metric, run.best.value)
            rows.append([group.label, run.name, str(run.config.seed), run.state, best, *steps, *last])
    return rows


def _shown(comparison: Comparison) -> list[str]:
    """Names of figures that differ from each other, the compared one and the loss in front."""
    distinct: dict[str, str] = {}
    for name in sorted(numbers(comparison.runs[0].last), key=lambda name: (name != comparison.metric, name != "loss")):
        distinct.setdefault(repr([run.last.get(name) for run in comparison.runs]), name)
    return list(distinct.values())[:MOST_FIGURES]


def comparison_record(comparison: Comparison) -> Row:
    """For programs."""
    labels = [group.label for group in comparison.groups]
    runs = [
        {
            "group": group.label,
            "run": str(run.path),
            "seed": run.config.seed,
            "state": run.state,
            "best": asdict(run.best),
            "last": {name: run.last.get(name) for name in ("step", *numbers(run.last))},
        }
        for group in comparison.groups
        for run in group.runs
    ]
    return {
        "metric": comparison.metric,
        "better": comparison.better,
        "sentences": comparison_sentences(comparison),
        "differing": {key: dict(zip(labels, values, strict=True)) for key, values in comparison.differing},
        "runs": runs,
        "judgements": [asdict(one) for one in comparison.judgements],
        "meetings": [asdict(one) for one in comparison.meetings],
    }
