"""Which runs there are, and what became of each."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import read_record, read_records
from dist_train.rundir.layout import GenerationDir, RunDir
from dist_train.rundir.records import NodeRecord, RunState, VerdictSummary
from launch.slurm import jobs


def list_runs(root: Path) -> list[dict[str, Any]]:
    """What there is under a run root, the oldest first."""
    return [describe(folder, root) for folder in sorted(_runs_below(root, 3), key=_by_name)]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """ROOT/RUN, ROOT/NAME/RUN, and the tasks of an array, ROOT/NAME/RUN/TASK; nothing inside of a run."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            if RunDir(path).is_run():
                yield path
            elif depth > 1:
                yield from _runs_below(path, depth - 1)


def _by_name(folder: Path) -> tuple[str, int]:
    """By the time in the name, the tasks of an array by their number."""
    name = folder.name
    return (folder.parent.name, int(name)) if name.isdecimal() else (name, -1)


def describe(folder: Path, root: Path) -> dict[str, Any]:
    """One run in a few words: name, state, step, total_steps, best, updated, path, jobs (ids in SLURM's queue)."""
    state = RunState.of(folder)
    ids = jobs.of_run(folder)
    status = state.status or "starting"
    generation = RunDir(folder).newest_generation()
    if status in ("running", "starting") and generation is not None and not _launcher_lives(generation):
        verdicts = [read_record(VerdictSummary, path) for path in generation.verdicts()]
        status = "failed" if any(verdict is None or verdict.outcome == "failed" for verdict in verdicts) else "died"
    if state == RunState() and generation is None and ids:
        status = "submitted"
    return {
        "name": str(folder.relative_to(root)),
        "state": status,
        "step": state.step,
        "total_steps": state.total_steps,
        "best": asdict(state.best) if state.best else None,
        "metrics": state.metrics,
        "updated": state.updated or None,
        "path": str(folder),
        "jobs": ids,
    }


def _launcher_lives(generation: GenerationDir) -> bool:
    """Whether a launcher of the generation still runs, as far as can be seen from here."""
    return any(node.lives() is not False for node in read_records(NodeRecord, generation.nodes))
