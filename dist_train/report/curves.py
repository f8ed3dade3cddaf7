"""From columns of numbers to what a chart draws: few points that look the same, and a smoothed line."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.report.facts import Facts, Row, Steps
from dist_train.report.words import label, telling

MOST_POINTS = 2_000
"""Of one curve: as many as a wide screen has columns of pixels."""
MOST_IN_SVG = 400
HALF_LIFE_SHARE = 0.01
"""Of all steps, after which a smoothed value has forgotten half."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One of a chart's: `kind` is raw, line or points, and `colour` from 0 to 5 where its place does not say it."""

    label: str
    kind: str
    y: list[float | None]
    colour: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over the same steps; `hours` since the first row, of each step."""

    title: str
    step: list[int]
    hours: list[float | None]
    curves: list[Curve]


def decimated(values: Sequence[float | None], most: int) -> list[int]:
    """Places of at most `most` values, ascending: of each stretch the lowest and the highest, and first and last, so
    that no peak is lost."""
    count = len(values)
    if count <= most:
        return list(range(count))
    keep, stretches = {0, count - 1}, most // 2 - 1
    for number in range(stretches):
        begin, end = number * count // stretches, (number + 1) * count // stretches
        known = [place for place in range(begin, end) if values[place] is not None]
        if known:
            keep |= {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}  # type: ignore[arg-type]
    return sorted(keep)


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """An exponential mean without the pull of its start (Kingma and Ba, https://arxiv.org/abs/1412.6980, section 3)."""
    decay = 0.5 ** (1 / max(1.0, HALF_LIFE_SHARE * len(values)))
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        if value is not None:
            mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        found.append(mean / weight if weight else None)
    return found


def charts(facts: Facts) -> list[Chart]:
    """Every chart of a run: the loss, the figures of the task, learning rate, norm of the gradients, samples a
    second."""
    steps, rows = facts.steps, facts.evaluations.get("evaluation", [])
    found = [_loss(steps, rows)]
    shares = [name for name in figures(rows) if name != "loss" and _is_share([row.get(name) for row in rows])]
    if shares:
        found.append(_of_evaluations("Figures of the evaluation", shares, rows, steps))
    others = [name for name in figures(rows) if name not in ("loss", *shares)]
    found += [_of_evaluations(name, [name], rows, steps) for name in others]
    titles = {"lr": "Learning rate", "grad_norm": "Norm of the gradients"}
    for name, column in steps.values.items():
        if name != "loss":
            found.append(_of_steps(titles.get(name, name), column, steps, smooth=name != "lr"))
    found.append(_of_steps("Samples a second", [value or None for value in steps.speed], steps, smooth=False))
    return [chart for chart in found if any(y is not None for curve in chart.curves for y in curve.y)]


def figures(rows: Sequence[Row]) -> list[str]:
    """The names of an evaluation's numbers that say something."""
    return list(telling(rows[-1])) if rows else []


def _loss(steps: Steps, rows: Sequence[Row]) -> Chart:
    """Training and evaluation over the same steps."""
    losses = _finite(steps.values.get("loss", []))
    keep, means = decimated(losses, MOST_POINTS), smoothed(losses)
    evaluated = {row["step"]: row["loss"] for row in rows if _is_number(row.get("loss"))}
    points = {steps.step[place]: (losses[place], means[place], steps.unix[place]) for place in keep}
    times = {row["step"]: _unix(row) for row in rows}
    at = sorted(points.keys() | evaluated.keys())
    nothing = (None, None, None)
    unix = [points.get(step, nothing)[2] or times.get(step) for step in at]
    curves = [
        Curve(label="training", kind="raw", y=[rounded(points.get(step, nothing)[0]) for step in at]),
        Curve(label="training, smoothed", kind="line", y=[rounded(points.get(step, nothing)[1]) for step in at]),
        Curve(label="evaluation", kind="points", y=[rounded(evaluated.get(step)) for step in at]),
    ]
    return Chart(title="Loss", step=at, hours=_hours(unix, steps), curves=curves)


def _of_evaluations(title: str, names: Sequence[str], rows: Sequence[Row], steps: Steps) -> Chart:
    curves = [Curve(label=label(name), kind="points", y=[rounded(row.get(name)) for row in rows]) for name in names]
    hours = _hours([_unix(row) for row in rows], steps)
    return Chart(title=title, step=[row["step"] for row in rows], hours=hours, curves=curves)


def _of_steps(title: str, column: Sequence[float | None], steps: Steps, *, smooth: bool) -> Chart:
    values = _finite(column)
    keep = decimated(values, MOST_POINTS)
    curves = [Curve(label=title, kind="raw" if smooth else "line", y=[rounded(values[place]) for place in keep])]
    if smooth:
        means = smoothed(values)
        curves.append(Curve(label="smoothed", kind="line", y=[rounded(means[place]) for place in keep]))
    at, hours = [steps.step[place] for place in keep], _hours([steps.unix[place] for place in keep], steps)
    return Chart(title=title, step=at, hours=hours, curves=curves)


def _hours(unix: Sequence[float | None], steps: Steps) -> list[float | None]:
    begun = steps.unix[0] if steps.unix else next((time for time in unix if time), 0.0)
    return [None if time is None else round((time - begun) / 3600, 5) for time in unix]


def _unix(row: Row) -> float | None:
    clock = row.get("time")
    return clock.get("unix") if isinstance(clock, dict) else None


def _is_share(values: Sequence[Any]) -> bool:
    return all(_is_number(value) and 0 <= value <= 1 for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(values: Sequence[Any]) -> list[float | None]:
    return [value if _is_number(value) else None for value in values]


def rounded(value: Any) -> float | None:
    """Five significant digits, as no screen shows more."""
    return float(f"{value:.5g}") if _is_number(value) else None


def svg(chart: Chart) -> str:
    """The chart as a picture for readers without scripts. Its texts are numbers alone."""
    width, height, left, bottom = 640, 220, 60, 20
    xs = chart.step
    known = [y for curve in chart.curves for y in curve.y if y is not None]
    low, high = min(known), max(known)
    x_scale = (width - left - 10) / ((xs[-1] - xs[0]) or 1)
    y_scale = (height - bottom - 10) / ((high - low) or 1)

    def place(step: int, y: float) -> str:
        return f"{left + (step - xs[0]) * x_scale:.1f},{height - bottom - (y - low) * y_scale:.1f}"

    def lines() -> Iterator[str]:
        for number, curve in enumerate(chart.curves):
            there = [(xs[at], y) for at in decimated(curve.y, MOST_IN_SVG) if (y := curve.y[at]) is not None]
            colour = number % 6 if curve.colour is None else curve.colour
            points = " ".join(place(step, y) for step, y in there)
            yield f'<polyline class="curve c{colour} {curve.kind}" points="{points}"/>'

    texts = [(left - 6, 14, "end", f"{high:.4g}"), (left - 6, height - bottom, "end", f"{low:.4g}")]
    texts += [(left, height - 4, "start", f"{xs[0]:,}"), (width - 10, height - 4, "end", f"{xs[-1]:,} steps")]
    labels = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in texts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-hidden="true">{"".join(lines())}{labels}</svg>'
