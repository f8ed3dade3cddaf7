"""How far each point is and how good, best first: for people, as table.csv and as table.json."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config.problems import printable
from dist_train.rundir.codec import read_record
from dist_train.rundir.files import write_atomic
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import RunState, VerdictSummary
from dist_train.rundir.strict_json import to_json

from ..diagnosis.explain import signal_name
from ..job import JobStatus
from ..runs.listing import RunSummary, summary_of, with_queue
from .points import Point, short_keys, varied
from .store import Sweep

DONE, RUNNING, QUEUED, MISSING = "done", "running", "queued", "missing"
_LONGEST_REASON = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point as it stands."""

    point: Point
    state: str
    """done, running, queued, stopped (saved, can go on), failed, died (gone without a word) or missing."""
    run: RunSummary
    reason: str | None
    """Why it failed."""

    @property
    def best(self) -> float | None:
        """The sweep's metric at its best."""
        return self.run.best.value if self.run.best else None

    @property
    def job(self) -> str | None:
        """In SLURM's queue, or not long ago."""
        return self.run.queue.job if self.run.queue else None

    @property
    def ranked(self) -> bool:
        return self.state == DONE and self.best is not None and not math.isnan(self.best)


def read_table(sweep: Sweep) -> list[Row]:
    """All points, best first; those without a result below, as they were given."""
    found = with_queue([summary_of(sweep.run_dir(point), sweep.folder) for point in sweep.points])
    rows = [_row(sweep, *each) for each in zip(sweep.points, found, strict=True)]
    sign = -1 if sweep.better == "max" else 1
    return sorted(rows, key=lambda row: (0, sign * (row.best or 0.0)) if row.ranked else (1 + (row.state != DONE), 0.0))


def _row(sweep: Sweep, point: Point, run: RunSummary) -> Row:
    folder = sweep.run_dir(point)
    state = _state(folder, run.state, run.queue)
    return Row(point=point, state=state, run=run, reason=_reason(folder) if state in ("failed", "died") else None)


def _state(folder: Path, state: str, job: JobStatus | None) -> str:
    if state in (DONE, "stopped") and RunState.of(folder).reached_its_end:
        return DONE
    if state == RUNNING:
        return RUNNING
    if job and job.active:
        return QUEUED
    begun = RunDir(folder).newest_generation() is not None
    return (RUNNING if state == "starting" else state) if begun else MISSING


def _reason(folder: Path) -> str | None:
    """The first cause, from the newest verdict."""
    generation = RunDir(folder).newest_generation()
    paths = generation.verdicts() if generation else []
    verdict = read_record(VerdictSummary, paths[0]) if paths else None
    cause = verdict.cause if verdict else None
    report, code = (cause.report, cause.exit_code) if cause else (None, None)
    if report is not None:
        message = next(iter(report.message.splitlines()), "")
        return printable(message if report.is_user_error else f"{report.type}: {message}", _LONGEST_REASON)
    if code is None:
        return None
    return f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"


# ---------------------------------------------------------------- as text and files


def cells(sweep: Sweep, rows: list[Row]) -> list[tuple[str, ...]]:
    """For people, the header first."""
    keys = short_keys(varied(point.overrides for point in sweep.points))
    table: list[tuple[str, ...]] = [("", "point", *keys.values(), sweep.metric, "at step", "state")]
    for rank, row in enumerate(rows, 1):  # the ranked ones are in front
        values = [printable(row.point.overrides.get(key, ""), 30) for key in keys]
        best = (f"{row.run.best.value:.5g}", f"{row.run.best.step:,}") if row.run.best else ("", "")
        number = row.point.name.partition("-")[0]
        table.append((str(rank) if row.ranked else "-", number, *values, *best, _told(row)))
    return table


def _told(row: Row) -> str:
    step, total, reason = row.run.step, row.run.total_steps, f": {row.reason}" if row.reason else ""
    if row.state == DONE or step is None:
        return row.state + reason
    return f"{row.state} at step {step:,}{f'/{total:,}' if total else ''}{reason}"


def as_records(sweep: Sweep, rows: list[Row]) -> dict[str, Any]:
    """For table.json and --json."""
    points = [
        {
            "rank": number if row.ranked else None,
            "point": row.point.name,
            "state": row.state,
            "step": row.run.step,
            "total_steps": row.run.total_steps,
            "best": row.best,
            "best_step": row.run.best.step if row.run.best else None,
            "metrics": row.run.metrics or {},
            "job": row.job,
            "reason": row.reason,
            "overrides": dict(row.point.overrides),
            "run_dir": str(sweep.run_dir(row.point)),
        }
        for number, row in enumerate(rows, 1)
    ]
    return {"sweep": str(sweep.folder), "metric": sweep.metric, "better": sweep.better, "points": points}


def as_csv(sweep: Sweep, rows: list[Row]) -> str:
    """One line a point; a column for each key that some point sets and for each number of the last evaluation."""
    keys = dict.fromkeys(key for point in sweep.points for key in point.overrides)
    metrics = dict.fromkeys(
        name for row in rows for name, value in (row.run.metrics or {}).items() if _is_number(value)
    )
    plain = ("rank", "point", "state", "best", "best_step", "step", "total_steps", "reason", "run_dir")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = {"best": f"best {sweep.metric}"}
    writer.writerow([*(header.get(name, name) for name in plain), *keys, *(f"last {name}" for name in metrics)])
    for record in as_records(sweep, rows)["points"]:
        values = [record[name] for name in plain]
        values += [record["overrides"].get(key) for key in keys] + [record["metrics"].get(name) for name in metrics]
        writer.writerow(values)
    return text.getvalue()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_table(sweep: Sweep, rows: list[Row]) -> None:
    """table.csv and table.json in the sweep's folder; a reader sees the old one or the new one."""
    write_atomic(sweep.folder / "table.csv", as_csv(sweep, rows))
    write_atomic(sweep.folder / "table.json", to_json(as_records(sweep, rows), indent=2) + "\n")
