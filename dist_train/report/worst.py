"""The part on the worst samples: what they look like, what is true of them, and what the model says. All of it comes
from files that anybody may have made."""

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from dist_train.report.facts import Facts, Row
from dist_train.report.html import Markup, tag
from dist_train.report.palette import palette
from dist_train.rundir.layout import RunDir
from dist_train.rundir.reading import is_number, read_bytes

MOST_BYTES = 300_000
"""Of all pictures on the page."""
_LARGEST = 64_000
"""Bytes of one: far more than any that was written."""
_MOST = 40
_PICTURES = (("picture", "jpeg", b"\xff\xd8\xff"), ("truth", "png", b"\x89PNG"), ("prediction", "png", b"\x89PNG"))
"""What a sample may have, of which kind, and how its file begins."""
_SIDE, _EDGE = 240, 34
"""Of a chart of pairs, and of its margin, in pixels."""


def worst_of(facts: Facts) -> dict[str, list[Row]]:
    """By split, the worst samples of the newest evaluation."""
    listed = {split: details.get("worst") for split, details in facts.details.items()}
    return {
        split: [row for row in rows[:_MOST] if isinstance(row, dict) and is_number(row.get("index"))]
        for split, rows in listed.items()
        if isinstance(rows, list)
    }


def worst_samples(facts: Facts) -> Iterator[Markup]:
    """Of each split a chart of truth and prediction, where those are numbers, and a card for each sample."""
    left = MOST_BYTES
    for split, rows in worst_of(facts).items():
        details = facts.details[split]
        at = f", step {details['step']:,}" if is_number(details.get("step")) else ""
        yield tag("h3", f"{split}{at}")
        charts = list(_pairs(details.get("pairs")))
        if charts:
            yield tag("div", *charts, class_="pairs")
        names = [str(row.get("name")) for row in rows]
        folder = os.path.commonprefix(names).rpartition("/")[0]
        said = f"The {len(rows)} samples of the highest loss: what is true → what the model says."
        yield tag("p", said, f" Files are below {folder}." if folder else None)
        if any(row.get("masks") for row in rows):
            yield _legend(details.get("classes"))
        cards = []
        for row, name in zip(rows, names, strict=True):
            pictures = _pictures(RunDir(facts.run_dir), split, row)
            left -= sum(map(len, pictures.values()))
            short = name.removeprefix(f"{folder}/")
            cards.append(_card(row, short, pictures if left >= 0 else {}, "number" if charts else None))
        yield tag("ul", *cards, class_="samples")


def _card(row: Row, name: str, pictures: dict[str, str], kind: str | None) -> Markup:
    """
    Args:
        kind: of what is said, `number`, which is never quite right.
    """
    said = {what: str(row.get(what) or "") for what in ("truth", "prediction")}
    images = []
    for what, source in pictures.items():
        image = tag("img", src=source, alt=f"{what} of {name} {said.get(what, '')}")
        images.append(tag("figure", image, tag("figcaption", what) if len(pictures) > 1 else None))
    kind = kind or ("right" if said["truth"] == said["prediction"] else "wrong")
    loss, probability = row.get("loss"), row.get("probability")
    share = f" {100 * probability:.1f} %" if isinstance(probability, float | int) else None
    line = tag("p", tag("b", said["truth"]), " → ", tag("b", said["prediction"], class_=kind), share)
    return tag(
        "li",
        tag("div", *images) if images else None,
        _text(row) if isinstance(row.get("text"), str) else None,
        line if len(pictures) < 2 and any(said.values()) else None,  # masks say it better
        tag("p", f"loss {loss:.3g}" if isinstance(loss, float | int) else f"loss {loss}", class_="path"),
        tag("p", name, class_="path"),
    )


def _text(row: Row) -> Markup:
    """The text, and where its token of the highest loss is."""
    text, marked = str(row["text"]), row.get("marked")
    first, last = marked if isinstance(marked, list) and len(marked) == 2 and all(map(is_number, marked)) else (0, 0)
    return tag("pre", text[:first], tag("mark", text[first:last]), text[max(first, last) :])


def _pictures(run: RunDir, split: str, row: Row) -> dict[str, str]:
    """By what each shows, the picture as the address of an image. Paths in the file are not followed."""
    found = {}
    for of, kind, begin in _PICTURES if split.isidentifier() else ():
        if row.get("picture" if of == "picture" else "masks"):
            with suppress(OSError):
                content = read_bytes(run.evaluation_picture(split, row["index"], of), _LARGEST, links=False)
                if content.startswith(begin):
                    found[of] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return found


def _legend(classes: Any) -> Markup:
    colours, shown = palette(), []
    for number, name in enumerate(classes[:_MOST] if isinstance(classes, list) else ()):
        red, green, blue = colours[3 * number : 3 * number + 3]
        shown += [tag("i", style=f"background:rgb({red},{green},{blue})"), f" {name} "]
    return tag("p", *shown, class_="legend")


# ---------------------------------------------------------------- numbers


def _pairs(pairs: Any) -> Iterator[Markup]:
    """A chart for each number that a sample has."""
    with suppress(TypeError, ValueError, IndexError):  # as a forged file may have it
        for number in range(len(pairs[0]) if pairs else 0):
            points = [(float(row[number][0]), float(row[number][1])) for row in pairs]
            known = [(x, y) for x, y in points if abs(x) + abs(y) < float("inf")]
            which = f", number {number + 1}" if len(pairs[0]) > 1 else ""
            if known:
                yield _scatter(known, f"Truth and prediction of {len(known):,} samples{which}")


def _scatter(points: Sequence[tuple[float, float]], title: str) -> Markup:
    low, high = min(map(min, points)), max(map(max, points))
    scale = (_SIDE - 2 * _EDGE) / ((high - low) or 1)
    near, far = _EDGE, _SIDE - _EDGE
    dots = "".join(f"M{near + (x - low) * scale:.1f} {far - (y - low) * scale:.1f}h0" for x, y in points)
    ends = (f"{low:.3g}", f"{high:.3g}")
    labels = [(near, far + 14, "start", ends[0]), (far, far + 14, "end", ends[1]), (near - 4, near + 4, "end", ends[1])]
    labels += [(_SIDE // 2, far + 26, "middle", "truth"), (near, near - 10, "middle", "prediction")]
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels)
    lines = f'<path class="axes" d="M{near} {near}V{far}H{far}"/><path class="axes" d="M{near} {far}L{far} {near}"/>'
    drawn = Markup(f'{lines}<path class="dots" d="{dots}"/>{texts}')
    svg = tag("svg", drawn, viewBox=f"0 0 {_SIDE} {_SIDE}", role="img", aria_label=title)
    return tag("figure", tag("figcaption", title), svg)
