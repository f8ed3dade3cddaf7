"""The verdict for machines: one JSON object, generations/<g>/verdict.json (docs/run-directory.md has its fields)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.records import read_json
from launch.verdict.causes import Failure


def as_record(outcome: str, code: int, cause: Failure | None = None, found: list[Failure] | None = None) -> dict:
    """What ended how. `outcome` is done, stopped or failed."""
    return {
        "outcome": outcome,
        "exit_code": int(code),
        "cause": asdict(cause) if cause else None,
        "failures": [asdict(one) for one in found or []],
    }


def signature(cause: Failure | None) -> tuple | None:
    """What makes two failures the same, whichever rank was the first to have it."""
    if cause is None:
        return None
    report: dict[str, Any] = cause.report or {}
    frame = report["frames"][-1] if report.get("frames") else {}
    return cause.kind, cause.exit_code, report.get("type"), report.get("message"), frame.get("file"), frame.get("line")


def latest(folder: Path) -> dict | None:
    """The verdict of a run's last generation, with that generation's number; None where there is none."""
    places = sorted((folder / "generations").glob("[0-9]*"), key=lambda path: int(path.name))
    for place in reversed(places):
        for path in (place / "verdict.json", *sorted(place.glob("verdict-*.json"))):
            if (found := read_json(path)) is not None:
                return {"generation": int(place.name), **found}
    return None
