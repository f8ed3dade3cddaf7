"""The verdict for machines: one JSON object, generations/<g>/verdict.json (docs/run-directory.md has its fields)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_train.rundir.reading import numbered
from dist_train.rundir.records import read_json
from launch.diagnosis.failures import Failure


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
    for place in reversed(numbered(folder / "generations")):
        for path in (place / "verdict.json", *sorted(place.glob("verdict-*.json"))):
            if isinstance(found := read_json(path), dict):
                return {"generation": int(place.name), **found}
    return None
