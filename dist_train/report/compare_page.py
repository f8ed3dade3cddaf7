"""The page of a comparison: what is said of it, the curves over one another, the figures, and what differs."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dist_train.config.problems import shown as as_written
from dist_train.report import words
from dist_train.report.compare import Comparison, Run
from dist_train.report.compare_words import comparison_record, comparison_sentences, figures_of
from dist_train.report.curves import Chart, Curve, figures, rounded, smoothed
from dist_train.report.html import Markup, table, tag
from dist_train.report.page import chart_boxes, document, section
from dist_train.report.words import Row
from dist_train.rundir.files import replacing

Points = dict[int, float | None]
COLOURS = 5
"""Those that stand out, 1 to 5; 0 is for what lies behind."""

MOST_STEPS = 500
"""Of a curve."""
MOST_CURVES = 12
"""In one chart; more runs are shown as what their groups have in common."""


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Raises OSError when it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(render_comparison(comparison), encoding="utf-8")


def render_comparison(comparison: Comparison) -> str:
    """The whole page."""
    drawn = list(_charts(comparison))
    head, *rows = figures_of(comparison)
    parts = [
        section("Verdict", tag("ul", *(tag("li", sentence) for sentence in comparison_sentences(comparison)))),
        section("Curves", *chart_boxes(drawn)),
        section("Figures", table("Runs", ["group", *head[1:]], rows)),
        section("Config", *_config(comparison)),
    ]
    steps = [run.steps for run in comparison.runs]
    same = {"samplesPerStep": {one.samples for one in steps}, "stepsPerEpoch": {one.per_epoch for one in steps}}
    axes = {key: found.pop() if len(found) == 1 else 0 for key, found in same.items()}
    data: Row = {"marks": [], **axes, "hours": 0, "comparison": comparison_record(comparison)}
    heading = f"{len(comparison.runs)} runs of {', '.join(sorted({run.config.name for run in comparison.runs}))}"
    return document(heading, heading, f"compared by {words.label(comparison.metric)} at its best", parts, drawn, data)


def _config(comparison: Comparison) -> Iterator[Markup]:
    if not comparison.differing:
        yield tag("p", "The runs differ in nothing that results depend on, but perhaps their seed.")
        return
    rows = [[key, *map(as_written, values)] for key, values in comparison.differing]
    yield table("What differs between the groups", ["key", *(group.label for group in comparison.groups)], rows)


def _charts(comparison: Comparison) -> Iterator[Chart]:
    """The smoothed loss of the training, every figure of the evaluations, and what the steps record besides."""
    yield from _chart(comparison, "Loss in training, smoothed", "line", partial(_of_steps, name="loss"))
    for name in figures(comparison.runs[0].evaluations):
        title = "Loss of the evaluation" if name == "loss" else name
        yield from _chart(comparison, title, "points", partial(_of_evaluations, name=name))
    for name, title in {"grad_norm": "Norm of the gradients, smoothed", "lr": "Learning rate"}.items():
        yield from _chart(comparison, title, "line", partial(_of_steps, name=name))


def _chart(comparison: Comparison, title: str, kind: str, points: Callable[[Run], Points]) -> Iterator[Chart]:
    """One chart, if there is anything to draw. A group has a colour; of many runs, its mean, lowest and highest."""
    found_curves: list[tuple[str, str, int, Points]] = []
    for number, group in enumerate(comparison.groups):
        found = {f"seed {run.config.seed}": points(run) for run in group.runs}
        if len(comparison.runs) > MOST_CURVES and len(found) > 1:
            found = {name: _over([*found.values()], of) for name, of in _OF_MANY.items()}
        for name, one in found.items():
            drawn = "raw" if name in _BEHIND else kind
            found_curves.append((f"{group.label} {name}", drawn, 1 + number % COLOURS, one))
    at = sorted(set().union(*(one for *_, one in found_curves)))
    curves = [
        Curve(label=label, kind=drawn, colour=colour, y=[rounded(one.get(step)) for step in at])
        for label, drawn, colour, one in found_curves
    ]
    if any(y is not None for curve in curves for y in curve.y):
        yield Chart(title=words.label(title), step=at, hours=[None] * len(at), curves=curves)


_OF_MANY: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "lowest": min, "highest": max}
_BEHIND = ("lowest", "highest")


def _over(runs: list[Points], of: Callable[[list[float]], float]) -> Points:
    """At each step that all of the runs have a point at."""
    steps = [step for step in runs[0] if all(isinstance(one.get(step), int | float) for one in runs)]
    return {step: of([one[step] for one in runs]) for step in steps}  # type: ignore[misc]


def _of_steps(run: Run, name: str) -> Points:
    """Smoothed, but for the learning rate; at the same steps in runs of the same length."""
    values = run.steps.values.get(name, [])
    drawn = values if name == "lr" else smoothed(values)
    every = 1 + len(values) // MOST_STEPS
    return {run.steps.step[place]: drawn[place] for place in range(len(values)) if (place + 1) % every == 0}


def _of_evaluations(run: Run, name: str) -> Points:
    return {row["step"]: row.get(name) for row in run.evaluations}
