"""A curve in a terminal: two by four dots a character, in braille."""

from collections.abc import Sequence

from dist_train.report.words import number

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a character from U+2800 on, by column and row."""


def plot(title: str, points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """The title and `height` lines below it, each `width` cells wide.

    Args:
        points: (x, y), x ascending; at least one.
    """
    low, high = min(y for _, y in points), max(y for _, y in points)
    labels = [number(high), *[""] * (height - 2), number(low)]
    margin = max(map(len, labels)) + 1
    columns, rows = 2 * (width - margin), 4 * height
    first, last = points[0][0], points[-1][0]
    cells = [[0x2800] * (width - margin) for _ in range(height)]
    before: tuple[int, int] | None = None
    for x, y in points:
        column = round((columns - 1) * (x - first) / (last - first)) if last > first else 0
        row = round((rows - 1) * (high - y) / (high - low)) if high > low else rows - 1
        begin = before or (column, row)
        length = max(abs(column - begin[0]), abs(row - begin[1]), 1)
        for place in range(length + 1):
            across = round(begin[0] + (column - begin[0]) * place / length)
            down = round(begin[1] + (row - begin[1]) * place / length)
            cells[down // 4][across // 2] |= _DOTS[across % 2][down % 4]
        before = column, row
    lines = [f"{label:>{margin - 1}} " + "".join(map(chr, row)) for label, row in zip(labels, cells, strict=True)]
    return [f"{title:<{width}}"[:width], *lines]
