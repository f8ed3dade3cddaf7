"""One line of what was found, and whether it is good."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from launch.console import mark, say

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is so, and what to do where it should not be.

    A `problem` is something that a training would fail of; a `warning` something that it could do better without.
    """

    topic: str
    level: Literal["ok", "warning", "problem"] = "ok"
    text: str
    advice: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """The figures behind the text, for machines."""

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}" + (f"; {self.advice}" if self.advice else "")

    def show(self) -> None:
        """One line to the person at the terminal."""
        say(f"{mark(*_SIGNS[self.level])} {self.topic:<14}{self.text}" + (f"; {self.advice}" if self.advice else ""))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
