"""SLURM's way of writing many host names in one word: `n[01-03,7],gpu-a[1-2]b`."""

import re


def host_names(text: str) -> list[str]:
    """All host names in the order written, with leading zeros.

    Raises:
        ValueError: when brackets do not match or a range is invalid.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text.strip())  # commas in brackets divide nothing
    if not parts or ",".join(parts) != text.strip():
        raise ValueError(f"{text!r} is no SLURM host list")
    return [name for part in parts for name in _expand_part(part)]


def _expand_part(part: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, tail = rest.partition("]")
    endings = _expand_part(tail)
    return [head + number + ending for number in _numbers(inside, part) for ending in endings]


def _numbers(inside: str, part: str) -> list[str]:
    found: list[str] = []
    for item in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{item!r} in {part!r} is no range of a SLURM host list")
        last = int(match[2] or match[1])
        found += [str(number).zfill(len(match[1])) for number in range(int(match[1]), last + 1)]
    return found
