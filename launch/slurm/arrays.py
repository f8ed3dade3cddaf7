"""The task numbers of a job array, as sbatch writes them: `0-3`, `1,4-8:2%2`."""

from collections.abc import Iterable

from dist_train.errors import UserError
from launch.console import ranges

MAX_TASKS = 10_000
"""Of one array. SLURM's own limit (MaxArraySize) is 1,001 unless a site has raised it."""


def parse_tasks(text: str) -> tuple[list[int], int | None]:
    """The sorted task numbers, and how many may run at a time, if given.

    Raises:
        UserError: when a range goes backwards, or there are more than MAX_TASKS.
    """
    ranges, _, at_once = text.partition("%")
    numbers: dict[int, None] = {}
    for part in ranges.split(","):
        span, _, step = part.partition(":")
        low, _, high = span.partition("-")
        first, last = int(low), int(high or low)
        if last < first or (last - first) // int(step or 1) >= MAX_TASKS:
            raise UserError(f"array {text}: {part} is no range of at most {MAX_TASKS:,} tasks; such as 0-7 or 0-30:2")
        numbers.update(dict.fromkeys(range(first, last + 1, int(step or 1))))
    if len(numbers) > MAX_TASKS:
        raise UserError(f"array {text} has {len(numbers):,} tasks, and {MAX_TASKS:,} are allowed")
    return sorted(numbers), int(at_once) if at_once else None


def format_tasks(numbers: Iterable[int], at_once: int | None = None) -> str:
    """`[0, 1, 2, 7]` as `0-2,7`; with `%N` for N at a time."""
    return ranges([*set(numbers)]).replace(" ", "") + (f"%{at_once}" if at_once else "")
