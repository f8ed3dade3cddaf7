"""report.html: one file that opens anywhere, asks nobody for anything, and can be read without scripts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from dist_train.config.changes import leaves
from dist_train.config.problems import shown as as_written
from dist_train.config.schema import RunConfig
from dist_train.report import time, words
from dist_train.report.curves import Chart, charts, figures, svg
from dist_train.report.facts import Facts, Row
from dist_train.report.html import Markup, joined, table, tag
from dist_train.report.sentences import headline, sentences
from dist_train.report.worst import worst_of, worst_samples
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import LaunchRecord
from dist_train.rundir.strict_json import to_json

LARGEST_MATRIX = 25
"""Classes whose confusion is shown as a whole; of more, the pairs that are confused most."""
MOST_PAIRS = 8
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(facts: Facts) -> str:
    """The whole page."""
    drawn = charts(facts)
    name = facts.config.name if facts.config else facts.run_dir.name
    parts = [
        section("Verdict", *_verdict(facts)),
        section("Curves", *chart_boxes(drawn)),
        section("Classes", *_classes(facts)),
        section("Worst samples", *worst_samples(facts)),
        section("Texts", *_texts(facts)),
        section("Time", *time.time_section(facts)),
        section("Starts", *_starts(facts)),
        section("Config", *_config(facts)),
    ]
    data = {"marks": _marks(facts), **_positions(facts), "run": _summary(facts)}
    return document(f"{name} · {facts.run_dir.name}", name, str(facts.run_dir), parts, drawn, data)


def document(
    title: str, heading: str, path: str, parts: Sequence[Markup | None], drawn: Sequence[Chart], data: Row
) -> str:
    """A page that loads nothing. Its script draws the charts, and programs read `data` besides."""
    head = joined(
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("title", title),
        tag("style", Markup(_asset("uPlot.min.css") + _asset("report.css"))),
    )
    whole = {"charts": [asdict(chart) for chart in drawn], **data}
    header = tag("header", tag("h1", heading), tag("p", path, class_="path"))
    scripts = [
        tag("script", Markup(_for_a_script(whole)), type="application/json", id="data"),
        tag("script", Markup(_asset("uPlot.iife.min.js"))),
        tag("script", Markup(_asset("report.js"))),
    ]
    body = tag("body", header, tag("main", *parts), *scripts)
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{body}</html>\n'


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _for_a_script(value: Any) -> str:
    """JSON in which nothing ends the element that it stands in."""
    text = to_json(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def section(title: str, *content: Markup) -> Markup | None:
    if not content:
        return None
    name = title.lower().replace(" ", "-")
    return tag("section", tag("h2", title, id=name), *content, aria_labelledby=name)


# ---------------------------------------------------------------- verdict


def _verdict(facts: Facts) -> Iterator[Markup]:
    said = headline(facts)
    yield tag("p", said, class_=f"headline {said.partition(' ')[0].strip(':').lower()}")
    yield tag("ul", *(tag("li", sentence) for sentence in sentences(facts)))
    for split, rows in facts.evaluations.items():
        cells = [
            tag("div", tag("dt", words.label(name)), tag("dd", words.figure(name, rows[-1][name])))
            for name in figures(rows)
        ]
        yield tag("h3", f"{split}, step {rows[-1]['step']:,}")
        yield tag("dl", *cells, class_="figures")


# ---------------------------------------------------------------- curves


def chart_boxes(drawn: list[Chart]) -> Iterator[Markup]:
    """Where the script draws them, and pictures for readers without scripts."""
    if not drawn:
        return
    options = [tag("option", text, value=value) for value, text in _AXES.items()]
    choice = tag("label", "x axis ", tag("select", *options, id="axis"))
    log = tag("label", tag("input", type="checkbox", id="log"), " log y")
    yield tag("p", choice, " ", log, " ", tag("small", "drag to zoom, double click to see all"), class_="controls")
    yield tag("div", *(_chart(str(number), chart) for number, chart in enumerate(drawn)), class_="charts")


def _chart(number: str, chart: Chart) -> Markup:
    box, plain = tag("div", class_="chart", data_chart=number), tag("noscript", Markup(svg(chart)))
    return tag("figure", tag("figcaption", words.label(chart.title)), box, plain)


_AXES = {"step": "steps", "epoch": "epochs", "samples": "samples", "hours": "hours"}


def _positions(facts: Facts) -> dict[str, float]:
    """What the other axes are made of."""
    return {"samplesPerStep": facts.steps.samples, "stepsPerEpoch": facts.steps.per_epoch}


def _marks(facts: Facts) -> list[Row]:
    """Where a run was started again."""
    ranks = {launch.began.unix: launch.began.ranks for launch in facts.launches if launch.began.unix}
    found = []
    for start in facts.starts:
        if start.after_step == 0 and start is facts.starts[0]:
            continue
        known = [count for unix, count in ranks.items() if start.unix and unix <= start.unix + 60]
        what = f"start {start.number}" + (f", {known[-1]} ranks" if known and known[-1] else "")
        found.append({"step": start.after_step, "text": what})
    return found


# ---------------------------------------------------------------- classes


def _classes(facts: Facts) -> Iterator[Markup]:
    rows = facts.evaluations.get("evaluation", [])
    per_class = rows[-1].get("per_class") if rows else None
    details = facts.details.get("evaluation", {})
    names = [str(name) for name in details.get("classes") or ()]
    if isinstance(per_class, dict) and per_class:
        count = max(len(column) for column in per_class.values())
        names = names or [str(number) for number in range(count)]
        head = ["class", *map(words.label, per_class)]
        body = [
            [
                names[place] if place < len(names) else str(place),
                *(_cell(key, column, place) for key, column in per_class.items()),
            ]
            for place in range(count)
        ]
        yield table(f"Per class, step {rows[-1]['step']:,}", head, body, sortable=True)
    cells = details.get("cells")
    if names and isinstance(cells, list):
        yield from _confusion(names, [cell for cell in cells if isinstance(cell, list) and len(cell) == 3])


def _cell(name: str, column: list[Any], place: int) -> str:
    value = column[place] if place < len(column) else None
    return "" if value is None else words.figure(name, value)


def _confusion(names: list[str], cells: list[list[int]]) -> Iterator[Markup]:
    """
    Args:
        cells: [actual, predicted, count], those that are not zero; of many classes the largest.
    """
    totals: dict[int, int] = {}
    for actual, _, count in cells:
        totals[actual] = totals.get(actual, 0) + count
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:MOST_PAIRS]
    if wrong:
        yield tag("h3", "Confused most")
        yield tag("ul", *(
            tag("li", tag("b", names[actual]), " taken for ", tag("b", names[predicted]),
                f": {count:,} of {totals[actual]:,} ({100 * count / totals[actual]:.0f} %)")
            for actual, predicted, count in wrong
        ))  # fmt: skip
    if len(names) <= LARGEST_MATRIX:
        counts = {(actual, predicted): count for actual, predicted, count in cells}
        head = tag(
            "tr", tag("th", "actual ↓ predicted →", scope="col"), *(tag("th", name, scope="col") for name in names)
        )
        body = [
            tag("tr", tag("th", name, scope="row"), *(
                tag("td", f"{counts.get((row, column), 0):,}", class_="right" if row == column else "wrong",
                    style=f"--share:{counts.get((row, column), 0) / (totals.get(row) or 1):.3f}")
                for column in range(len(names))
            ))
            for row, name in enumerate(names)
        ]  # fmt: skip
        matrix = tag("table", tag("caption", "Confusion matrix: how many, the colour is the share of the row"),
                     tag("thead", head), tag("tbody", *body), class_="matrix")  # fmt: skip
        yield tag("div", matrix, class_="wide", tabindex="0", role="region", aria_label="Confusion matrix")


def _texts(facts: Facts) -> Iterator[Markup]:
    """What a language model wrote at its last evaluation."""
    rows = facts.evaluations.get("evaluation", [])
    texts = rows[-1].get("texts") if rows else None
    for text in texts if isinstance(texts, list) else ():
        yield tag("pre", str(text), tabindex="0")


# ---------------------------------------------------------------- starts and config


def _starts(facts: Facts) -> Iterator[Markup]:
    if facts.launches:
        head = ["launch", "begun", "ranks", "nodes", "hosts", "from", "ended", "saved"]
        yield table("Launches", head, [_launch(launch) for launch in facts.launches])
    if len(facts.starts) > 1:
        rows = [
            [str(start.number), words.date(start.unix), f"{start.after_step:,}", " ".join(start.hosts), start.ended]
            for start in facts.starts
        ]
        yield table(
            "Generations: starts of the process group", ["number", "begun", "after step", "hosts", "ended"], rows
        )


def _launch(launch: LaunchRecord) -> list[str]:
    began, ended = launch.began, launch.ended
    reason = "" if ended is None else f"{ended.reason or ended.event}, exit code {ended.exit_code}"
    counts = ["" if count is None else str(count) for count in (began.ranks, began.nodes)]
    hosts = " ".join(began.hosts or ())
    start, saved = began.checkpoint or "the beginning", (ended and ended.saved) or ""
    return [str(launch.number), words.date(began.unix), *counts, hosts, start, reason, saved]


def _config(facts: Facts) -> Iterator[Markup]:
    if facts.config is not None:
        rows = [[key, as_written(value)] for key, value in _own(facts.config).items()]
        yield table("What is not the default", ["key", "value"], rows)
    if facts.before is not None:
        name, changed = facts.before
        rows = [[key, as_written(there), as_written(here)] for key, there, here in changed]
        if rows:
            yield table(f"What differs from the run before, {name}", ["key", "there", "here"], rows)
        else:
            yield tag("p", f"The config is that of the run before, {name}.")
    environment = [[key, _text(value)] for key, value in facts.environment.items() if value is not None]
    if environment:
        yield table("Where it ran last", ["what", "value"], environment)
    yield tag("p", "The same bits again, on any number of ranks, with the same data, code and torch: ")
    yield tag("pre", f"dist-train train {RunDir(facts.run_dir).config} --run-dir ANOTHER_FOLDER", tabindex="0")
    if facts.config_text:
        whole = tag("pre", facts.config_text, tabindex="0")
        yield tag("details", tag("summary", "The whole config"), whole)


def _own(config: RunConfig) -> dict[str, object]:
    """Key paths and values of what is chosen: the names of the parts, and all that is not the default."""
    whole = config.model_dump(mode="json")
    parts = {key: part["name"] for key, part in whole.items() if isinstance(part, dict) and "name" in part}
    chosen = dict(leaves("", config.model_dump(mode="json", exclude_defaults=True)))
    return {f"{key}.name": name for key, name in parts.items()} | {k: v for k, v in chosen.items() if v != {}}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _summary(facts: Facts) -> Row:
    """The page for programs."""
    return {
        "run": str(facts.run_dir),
        "headline": headline(facts),
        "sentences": sentences(facts),
        "state": json.loads(json.dumps(facts.state, default=vars)),
        "verdict": facts.verdict,
        "evaluations": {split: rows[-1] for split, rows in facts.evaluations.items()},
        "time": time.time_summary(facts),
        "worst": worst_of(facts),
        "launches": json.loads(json.dumps(facts.launches, default=vars)),
        "config": facts.config.model_dump(mode="json") if facts.config else None,
        "environment": facts.environment,
    }
