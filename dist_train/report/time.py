"""The section on where the time went: a sentence, the phases of each interval, and those of each rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from dist_train.report.bottleneck import Account
from dist_train.report.budget import PHASES, Budget
from dist_train.report.facts import Facts, Spent
from dist_train.report.html import Markup, table, tag
from dist_train.report.words import seconds

MOST_COLUMNS = 120
"""Of the picture; of more intervals, neighbours are drawn as one."""
WIDTH, HEIGHT, LEFT, BOTTOM, BAR = 640, 200, 60, 20, 14


def account(facts: Facts) -> Account | None:
    """What is known of the newest start's time; None where nothing is."""
    if facts.config is None or facts.setting is None:
        return None
    return Account.of(facts.config, facts.setting, [(one.budget, one.late) for one in facts.spent])


def time_section(facts: Facts) -> Iterator[Markup]:
    """Empty where no interval has told of its time."""
    found = account(facts)
    if found is None:
        return
    sentence, total = found.bottleneck.sentence, found.total
    yield tag("p", f"{sentence[0].upper()}{sentence[1:]}.", class_="bottleneck")
    if lines := list(_late(facts.spent)):
        yield tag("ul", *(tag("li", line) for line in lines))
    keys = (tag("li", _swatch(number), f" {phase}") for number, phase in enumerate(PHASES))
    yield tag("ul", *keys, class_="legend")
    columns = list(_columns(facts.spent))
    caption = tag("figcaption", "Seconds of the mean rank, of each step")
    yield tag("figure", caption, _picture([step for step, _ in columns], [means for _, means in columns]))
    yield tag("figure", tag("figcaption", "Each rank's share"), _strips(total.ranks))
    sums, steps = total.sums, total.steps
    rows = [
        [phase, f"{1000 * sums[phase] / steps:.3g}", f"{100 * sums[phase] / (total.seconds or 1.0):.1f} %"]
        for phase in PHASES
    ]
    yield table(f"Of the mean rank, over {steps:,} steps in {seconds(total.seconds)}", ["phase", "ms", "share"], rows)
    if total.loading:
        stages = [[stage, f"{1000 * value:.3g}"] for stage, value in total.loading.items()]
        yield table("Loading a sample", ["stage", "ms"], stages)


def _late(spent: Sequence[Spent]) -> Iterator[str]:
    """A line for each time that a rank became late."""
    before: dict[int, str] = {}
    for one in spent:
        for late in one.late:
            if before.get(late.rank) != late.phase:
                yield f"Step {one.step:,}: {late}."
        before = {late.rank: late.phase for late in one.late}


def _columns(spent: Sequence[Spent]) -> Iterator[tuple[int, dict[str, float]]]:
    """The step that each column of the picture ends with, and the seconds of a step in each phase."""
    count = min(len(spent), MOST_COLUMNS)
    for number in range(count):
        part = spent[number * len(spent) // count : (number + 1) * len(spent) // count]
        if (total := Budget.sum(one.budget for one in part)) is not None:
            yield part[-1].step, {phase: value / total.steps for phase, value in total.sums.items()}


def _picture(steps: Sequence[int], columns: Sequence[Mapping[str, float]]) -> Markup:
    highest = max(sum(column.values()) for column in columns) or 1.0
    width = (WIDTH - LEFT - 10) / len(columns)
    scale = (HEIGHT - BOTTOM - 10) / highest
    parts = []
    for place, column in enumerate(columns):
        y = float(HEIGHT - BOTTOM)
        for number, phase in enumerate(PHASES):
            size = column[phase] * scale
            y -= size
            if size >= 0.05:
                parts.append(_bar(number, LEFT + place * width, y, width, size))
    end = f"{steps[-1]:,} steps"
    texts = [(LEFT - 6, 14, "end", f"{1000 * highest:.3g} ms"), (LEFT - 6, HEIGHT - BOTTOM, "end", "0")]
    texts += [(LEFT, HEIGHT - 4, "start", f"{steps[0]:,}"), (WIDTH - 10, HEIGHT - 4, "end", end)]
    return _svg(HEIGHT, parts, texts, "Seconds of a step in each phase, interval by interval")


def _strips(ranks: Mapping[int, Mapping[str, float]]) -> Markup:
    parts, texts = [], []
    for row, (rank, spent) in enumerate(ranks.items()):
        x, y = float(LEFT), 4 + row * (BAR + 4)
        scale = (WIDTH - LEFT - 10) / (sum(spent.values()) or 1.0)
        for number, phase in enumerate(PHASES):
            parts.append(_bar(number, x, y, spent[phase] * scale, BAR))
            x += spent[phase] * scale
        texts.append((LEFT - 6, y + BAR - 3, "end", f"rank {rank}"))
    return _svg(8 + len(ranks) * (BAR + 4), parts, texts, "Each rank's time by phase")


def _bar(number: int, x: float, y: float, width: float, height: float) -> Markup:
    return Markup(f'<rect class="p{number}" x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.2f}"/>')


def _swatch(number: int) -> Markup:
    return Markup(f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">{_bar(number, 0, 0, 10, 10)}</svg>')


def _svg(height: int, parts: Sequence[Markup], texts: Sequence[tuple[float, float, str, str]], name: str) -> Markup:
    words = (tag("text", text, x=f"{x:.0f}", y=f"{y:.0f}", text_anchor=anchor) for x, y, anchor, text in texts)
    return tag("svg", *parts, *words, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=name)


def time_summary(facts: Facts) -> dict[str, object] | None:
    """The same for programs."""
    if (found := account(facts)) is None:
        return None
    seconds = {phase: round(value, 3) for phase, value in found.total.sums.items()}
    return asdict(found.bottleneck) | {"seconds_by_phase": seconds, "late": sorted(found.late)}
