"""The verdict for machines: one JSON object, generations/<g>/verdict.json (docs/run-directory.md has its fields)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import read_json
from dist_train.rundir.layout import RunDir

from .failures import Failure


def as_record(outcome: str, code: int, cause: Failure | None = None, found: list[Failure] | None = None) -> dict:
    """What ended how. `outcome` is done, stopped or failed."""
    return {
        "outcome": outcome,
        "exit_code": int(code),
        "cause": asdict(cause) if cause else None,
        "failures": [asdict(one) for one in found or []],
    }


def latest(folder: Path) -> dict[str, Any] | None:
    """The verdict of a run's last generation, with that generation's number; None where there is none."""
    for generation in reversed(RunDir(folder).all_generations()):
        for path in generation.verdicts():
            if isinstance(found := read_json(path), dict):
                return {"generation": generation.number, **found}
    return None
