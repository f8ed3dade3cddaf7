"""One line of the report: what was found, and whether it is good."""

from dataclasses import dataclass
from typing import Any, Literal

from launch.console import mark, say

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, and what to do about it."""

    topic: str
    level: Literal["ok", "warning", "problem"]
    """With a `problem` a training would fail; a `warning` says what it could do better."""
    text: str
    advice: str | None
    facts: dict[str, Any]
    """The values behind the text, for programs."""

    @property
    def said(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text

    def __str__(self) -> str:
        return f"{self.topic}: {self.said}"

    def show(self) -> None:
        """Prints it as one line."""
        say(f"{mark(*_SIGNS[self.level])} {self.topic:<14}{self.said}")


def ok(topic: str, text: str, **facts: Any) -> Finding:
    return Finding(topic=topic, level="ok", text=text, advice=None, facts=facts)


def warning(topic: str, text: str, advice: str | None, **facts: Any) -> Finding:
    return Finding(topic=topic, level="warning", text=text, advice=advice, facts=facts)


def problem(topic: str, text: str, advice: str | None = None, **facts: Any) -> Finding:
    return Finding(topic=topic, level="problem", text=text, advice=advice, facts=facts)
