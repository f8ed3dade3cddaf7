"""What is wrong in a config and where, as data and as aligned lines. No pydantic and no torch here."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_train.errors import UserError

_MOST = 40
_SHOWN_LENGTH = 60
_WIDEST_COLUMN = 48


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing to fix."""

    where: str
    """`configs/x.yaml:14:3` (file, line, column) or `command line`."""
    key: str
    """Key path, such as optimizer.lr; empty for a problem of the whole file."""
    message: str
    """What was given, what is allowed, what to do."""
    order: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """Problems are sorted by it: file, line and column, then the command line."""


class ConfigError(UserError):
    """A config that cannot be used; `str()` is the whole text for the user, a line per problem."""

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.path = path
        once = dict.fromkeys(problems)  # two files may extend the same broken one
        self.problems = sorted(once, key=lambda problem: problem.order)
        super().__init__(_text(path, self.problems))


def _text(path: str, problems: Sequence[Problem]) -> str:
    rows = [(printable(p.where, 200), printable(p.key, 100), printable(p.message, 2000)) for p in problems[:_MOST]]
    # As wide as the longest entry, up to a limit, so that one long entry does not widen all lines.
    first, second = (min(max(map(len, column)), _WIDEST_COLUMN) for column in list(zip(*rows, strict=True))[:2])
    lines = [f"{printable(path, 200)}: {len(problems):,} problem{'s' * (len(problems) != 1)}"]
    for where, key, message in rows:
        lines.append(f"  {where:{first}}  {key:{second}}  {message}" if second else f"  {where:{first}}  {message}")
    if len(problems) > _MOST:
        lines.append(f"  … and {len(problems) - _MOST:,} more")
    return "\n".join(lines)


def printable(text: str, longest: int = _SHOWN_LENGTH) -> str:
    """`text` in one line of at most `longest` characters, control characters written as escapes."""
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(value: Any) -> str:
    """A value as the user would write it, in one short line."""
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return printable(str(value))
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where nothing is like it."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`. Did you mean lr?`, or nothing if no word is near."""
    name = nearest(word, known)
    return f". Did you mean {name}?" if name else ""


def alternatives(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
