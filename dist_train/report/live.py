"""The lines of a training on a screen, made from its rows as they come in: for the training itself, and for whoever
watches it. A part of a line is shown whole or not at all.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.config.metrics import BESIDE_SHARES, KEPT, SHARES
from dist_train.config.schema import RunConfig
from dist_train.report.words import POSITION, Row, clock, figure, label, number, seconds, telling

ALWAYS = 100
LONGEST_BAR, SHORTEST_BAR = 24, 4
_ATTRIBUTES, _COLOURS = {"bold": 1, "dim": 2}, {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "bright_black": 90}
BEST = "★ "
"""In front of the evaluation that is the best so far."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of a line.

    Attributes:
        keep: of parts that have no room together, the one with the lowest goes first.
        gap: blanks before it.
    """

    text: str
    label: str = ""
    keep: int = ALWAYS
    gap: int = 2
    style: str = ""

    def __str__(self) -> str:
        return f"{self.label} {self.text}" if self.label else self.text

    @property
    def width(self) -> int:
        return self.gap + len(str(self))


def most_important(parts: Sequence[Piece], room: int) -> list[Piece]:
    """Those that have room in as many cells, the most important ones."""
    kept = list(parts)
    while sum(part.width for part in kept) > room:
        weakest = min(reversed(kept), key=lambda part: part.keep)
        if weakest.keep == ALWAYS:
            break
        kept.remove(weakest)
    return kept


def styled(text: str, style: str) -> str:
    """`text` with ANSI codes around it; without the colour where NO_COLOR is set (https://no-color.org)."""
    codes = _ATTRIBUTES if os.environ.get("NO_COLOR") else _ATTRIBUTES | _COLOURS
    chosen = ";".join(str(codes[word]) for word in style.split() if word in codes)
    return f"\x1b[{chosen}m{text}\x1b[0m" if chosen and text else text


def coloured(parts: Sequence[Piece], room: int) -> str:
    """The parts in their colours; what no part can be left out of is cut."""
    text = ""
    for part in parts:
        blanks, label = " " * part.gap, f"{part.label} " if part.label else ""
        if (room := room - part.width) < 0:
            return text + f"{blanks}{part}"[: room + part.width]
        text += blanks + styled(label, "dim") + styled(part.text, part.style)
    return text


def line(parts: Sequence[Piece]) -> str:
    return "".join(" " * part.gap + str(part) for part in parts)


def summarised(rows: Sequence[Row]) -> Row:
    """The last of consecutive training rows, with the mean of their losses, without "time"."""
    last = {key: value for key, value in rows[-1].items() if key not in ("time", "kind")}
    losses = [row["loss"] for row in rows if "loss" in row and "left_out" not in row]
    last.pop("left_out", None)
    return {**last, "loss": math.fsum(losses) / len(losses)} if losses else last


def measures(row: Mapping[str, Any], classes: int | None = None) -> list[tuple[str, str, str]]:
    """(name, label, value) of the figures worth a place on the screen: loss and shares; else the first few."""
    found = telling(row, classes)
    shares = [name for name in SHARES if name in found]
    if not shares:
        return [(name, name, number(value)) for name, value in list(found.items())[:5]]
    known = [(name, SHARES[name], f"{100 * found[name]:.1f}") for name in shares]
    known[0] = (*known[0][:2], f"{known[0][2]} %")
    known += [(name, short, number(found[name])) for name, short in BESIDE_SHARES.items() if name in found]
    return ([("loss", "loss", number(found["loss"]))] if "loss" in found else []) + known


class Live:
    """How far a training is.

    Args:
        began: when this start of it did, by the same clock as each `now`, in s.
        step: steps done before, at which the metric that picks the best checkpoint was `best` at its best.
    """

    def __init__(
        self, config: RunConfig, total_steps: int, per_epoch: float, began: float, step: int = 0, best: Any = None
    ) -> None:
        self.step, self.total_steps, self.steps_per_epoch, self.began = step, total_steps, per_epoch, began
        self._metric, self._sign, self._best = config.best, 1 if config.best_is == "max" else -1, best
        self._summary: Row = {}
        self._speeds: Mapping[str, float] = {}
        self._left: float | None = None
        self._told_at = self._evaluated_at = began
        self._losses: list[float] = []
        """Of the steps since the last evaluation."""
        self._last_value = ""
        """Of the metric, at the last evaluation."""

    def add_steps(
        self, rows: Sequence[Row], summary: Row, speeds: Mapping[str, float], left: float | None, now: float
    ) -> None:
        """Rows of consecutive steps; `left` is the time in s that the training still takes, where that is known."""
        self.step, self._summary, self._speeds, self._left, self._told_at = rows[-1]["step"], summary, speeds, left, now
        self._losses += [row["loss"] for row in rows if isinstance(row.get("loss"), float) and "left_out" not in row]

    def add_evaluation(self, row: Row, now: float) -> list[Piece]:
        """The parts of its line, the mark of the best in front."""
        shown_figures, split = measures(row), row.get("split", "evaluation")
        name, is_best = split, False
        parts = []
        if split == "evaluation":
            name, is_best = f"epoch {number(row['epoch'])}", self._is_best(row.get(self._metric))
            self._last_value = dict((name, value) for name, _, value in shown_figures).get(self._metric, "")
            if self._losses:
                loss = math.fsum(self._losses) / len(self._losses)
                parts.append(Piece(label="train loss", text=f"{number(loss):<6}", keep=50))
            self._losses = []
        for place, (metric, short, value) in enumerate(shown_figures):
            keep = ALWAYS if metric == self._metric else KEPT.get(metric, 40 - place)
            parts.append(Piece(label=short, text=f"{value:<6}" if metric == "loss" else value, keep=keep))
        took, self._evaluated_at = now - self._evaluated_at, now
        head = Piece(text=f"{name:<8}", gap=0, style="dim")
        mark = Piece(text=BEST if is_best else "  ", gap=0, style="bold green")
        return [mark, head, *parts, Piece(text=seconds(took), keep=45, style="dim")]

    def _is_best(self, value: Any) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        before = self._best
        is_better = before is None or not math.isfinite(before) or self._sign * (value - before) > 0
        self._best = value if is_better else before
        return is_better

    def bar(self, room: int, now: float, doing: str = "") -> list[Piece]:
        """The parts of the progress line. Where there is little room the bar shrinks, and then the least important
        figures are left out.

        Args:
            doing: what goes on in place of steps, such as an evaluation.
        """
        epochs = math.ceil(self.total_steps / self.steps_per_epoch) if self.steps_per_epoch else 0
        epoch = min(epochs, int(max(self.step - 1, 0) // self.steps_per_epoch) + 1) if epochs else 0
        parts = [Piece(label="epoch", text=f"{epoch:>{len(str(epochs))}}/{epochs}", gap=0)] if epochs else []
        begin = len(parts)
        parts += [Piece(text=f"{self.step:,}/{self.total_steps:,}"), Piece(text="steps", gap=1, keep=15)]
        if doing:
            parts.append(Piece(text=doing, keep=90, style="cyan"))
        elif not self._summary:
            parts.append(Piece(text="…", keep=10))
        if "loss" in self._summary:
            parts.append(Piece(label="loss", text=number(float(self._summary["loss"])), keep=80))
        if self._last_value:
            short = {"accuracy": "acc", "loss": "eval"}.get(self._metric, label(self._metric))
            parts.append(Piece(label=short, text=self._last_value, keep=70))
        if "lr" in self._summary:
            parts.append(Piece(label="lr", text=number(float(self._summary["lr"])), keep=10))
        if not doing:
            parts += [Piece(text=f"{speed:,.0f} {unit}", keep=20) for unit, speed in self._rates()[-1:]]
        parts.append(Piece(text=clock(now - self.began) + self._remaining(now), keep=75, style="dim"))
        kept = most_important(parts, room - SHORTEST_BAR - 1)
        length = min(LONGEST_BAR, room - 1 - sum(part.width for part in kept))
        if length >= SHORTEST_BAR:
            kept[begin:begin] = _bar(self.step / max(self.total_steps, 1), length)
        return kept

    def _rates(self) -> list[tuple[str, float]]:
        return [(f"{name.removesuffix('_per_s')}/s", speed) for name, speed in self._speeds.items()]

    def _remaining(self, now: float) -> str:
        left = (self._left or 0.0) - (now - self._told_at)
        return f"<{clock(left)}" if left > 0 and self.step < self.total_steps else ""

    def log_line(self) -> str:
        """The newest steps as a line of a file."""
        summary = self._summary
        words = [f"step {self.step:,}/{self.total_steps:,}", f"epoch {number(float(summary.get('epoch', 0)))}"]
        words += [f"{key} {number(float(summary[key]))}" for key in ("loss", "lr") if key in summary]
        others = {key: value for key, value in summary.items() if key not in ("loss", "lr", "grad_norm", *POSITION)}
        words += [f"{label(key)} {figure(key, value)}" for key, value in telling(others).items()]
        words += [f"{speed:,.0f} {unit}" for unit, speed in self._rates()]
        words += [f"{clock(self._left)} left"] if self._left else []
        return " ".join(words)


def _bar(share: float, length: int) -> list[Piece]:
    filled = min(length, int(length * share))
    tip = "╸" if 0 < filled < length else ""
    done = Piece(text="━" * filled + tip, gap=1, style="green")
    return [done, Piece(text="━" * (length - filled - len(tip)), gap=0, style="bright_black")]


def evaluation_line(parts: Sequence[Piece], row: Row) -> str:
    """The parts of an evaluation as a line of a file."""
    is_best, figures = parts[0].text == BEST, parts[2:]
    where = f"step {row['step']:,} epoch {number(float(row['epoch']))}"
    return " ".join(
        [str(row.get("split", "evaluation")), where, *(str(part).rstrip() for part in figures), *["(best)"] * is_best]
    )


def stamped(text: str, unix: float | None) -> str:
    """A line of a file, behind the time of the day."""
    return f"{time.strftime('%H:%M:%S', time.localtime(unix))} {text}"
