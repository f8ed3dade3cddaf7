"""The verdict for machines: one JSON object, generations/<g>/verdict.json (docs/run-directory.md has its fields)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import read_json
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import Frame
from launch.diagnosis.failures import Failure


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What makes two failures the same, whichever rank was the first to have it."""

    kind: str
    exit_code: int | None
    type: str | None
    message: str | None
    innermost: Frame | None


def signature(cause: Failure | None) -> Signature | None:
    if cause is None:
        return None
    report = cause.report
    return Signature(
        kind=cause.kind,
        exit_code=cause.exit_code,
        type=report.type if report else None,
        message=report.message if report else None,
        innermost=report.frames[-1] if report and report.frames else None,
    )


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
