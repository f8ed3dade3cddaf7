"""Going on from a checkpoint: which one, whether it fits this config, and its state on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dist_train.checkpoint.manifest import MANIFEST
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import VerifiedCheckpoint, read_file
from dist_train.config.changes import differences, differing, is_below
from dist_train.config.problems import ConfigError, printable
from dist_train.config.schema import SAFE_TO_CHANGE, RunConfig
from dist_train.config.source import load_plain
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.process_group import ProcessGroup
from dist_train.rundir.reading import is_number


def recorded_config(found: VerifiedCheckpoint) -> RunConfig | None:
    """The config that a checkpoint was written under: its own account, which no edit of config.yaml changes.

    Raises:
        UserError: (exit 4) when this version cannot read it.
    """
    content = found.manifest.get("config")
    try:
        return None if content is None else load_plain(content, str(found.path / MANIFEST))
    except ConfigError as error:
        first = error.problems[0]
        raise UserError(
            f"{found.path} was written by another version of dist-train, whose config this one does not take "
            f"({printable(first.key or 'config', 100)}: {printable(first.message, 300)}): go on with that version, or "
            "begin a new run",
            ExitCode.CANNOT_RESUME,
        ) from None


def check_config_unchanged(old: RunConfig, new: RunConfig, allowed: Sequence[str]) -> list[str]:
    """The changes that are let through, one line each.

    Raises:
        UserError: (exit 4) when a key that the result depends on has changed and is not allowed to.
    """
    lines: list[tuple[str, str]] = []
    refused: list[tuple[str, str]] = []
    for path, before, after in differences(old, new):
        safe = is_below(path, SAFE_TO_CHANGE) and not _decides_how_far_back(path, new)
        covered = safe or is_below(path, allowed)
        (lines if covered else refused).append((path, f"{path}: was {before}, is {after}"))
    if refused:
        keys = " ".join(f"--allow-change {path}" for path, _ in refused)
        said = "; ".join(line for _, line in refused)
        raise UserError(
            f"the config has changed since the checkpoint was written ({said}), so the run would not end as it began. "
            f"Put it back, start a new run, or say {keys}",
            ExitCode.CANNOT_RESUME,
        )
    return [line for _, line in lines]


def _decides_how_far_back(path: str, config: RunConfig) -> bool:
    """A rollback goes to the last checkpoint that was due, so when one is due is part of the result."""
    return path == "checkpoint.every" and config.train.non_finite == "rollback"


REFUSED = {"torch": "torch has", "data": "the data has"}
"""What a person changed and can put back. Which machine a scheduler gives is not in anybody's hands, and code is
changed for good reasons, most of all before going on after an error: these two are shown."""
SHOWN = {"machine": "the machine has", "code": "the code has"}


def check_surroundings(found: VerifiedCheckpoint | None, now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """What has changed around the run since its checkpoint was written, one line for each kind that is let through.

    Args:
        now: of dist_train.checkpoint.provenance.surroundings.
        allowed: `torch` and `data`, where these may differ.

    Raises:
        UserError: (exit 4) when torch or the data is another one and is not allowed to be.
    """
    lines = []
    for kind, subject in {**REFUSED, **SHOWN}.items():
        before = found.manifest.get(kind) if found is not None else None
        changes = [] if before is None else list(differing({kind: before}, {kind: now[kind]}))
        if found is None or not changes:
            continue
        said = "; ".join(f"{path} was {old}, is {new}" for path, old, new in changes)
        line = f"{subject} changed since {found.path.name} was written ({said})"
        if kind in REFUSED and kind not in allowed:
            raise UserError(
                f"{line}, so the run would not end as it began. Put it back, start a new run, or say "
                f"--allow-change {kind}",
                ExitCode.CANNOT_RESUME,
            )
        lines.append(line)
    return lines


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A checkpoint's content, on every rank."""

    path: Path
    snapshot: Snapshot
    world_size: int
    """Of the session that wrote it."""

    @property
    def state(self) -> TrainState:
        return TrainState(**self.snapshot.other["progress"])


def content_of(found: VerifiedCheckpoint) -> Snapshot:
    """What a verified checkpoint holds, looked at once more: its manifest says that its files are those that were
    written, and not by whom.

    Raises:
        UserError: (exit 4) when no training has written such files.
        DamagedCheckpoint: when they have changed since.
        OSError: when they have gone since.
    """
    files = {name: read_file(found.path, name, found.manifest) for name in found.manifest["files"]}
    try:
        snapshot = Snapshot.from_files(files)
        _check_other(snapshot.other, found.manifest)
        return snapshot
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise UserError(f"{found.path} holds what no training has saved ({reason})", ExitCode.CANNOT_RESUME) from None


def _check_other(other: Any, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError, or TypeError."""
    parts = ("progress", "optimizer", "scaler", "data")
    if not isinstance(other, dict) or not all(isinstance(other.get(part), dict) for part in parts):
        raise ValueError(f"state.json has {', '.join(parts)}, each of them an object")
    state = TrainState(**other["progress"])
    counts = (state.step, state.stale, state.left_out_in_a_row, state.best_step or 0)
    texts = isinstance(state.metrics, dict) and all(isinstance(name, str) for name in state.metrics)
    best = state.best_value is None or isinstance(state.best_value, int | float)
    if not (all(map(is_number, counts)) and texts and best and isinstance(state.finished, bool)):
        raise ValueError("the progress in state.json has values of other types")
    if state.step != manifest["step"]:
        raise ValueError(f"state.json is of step {state.step}")
    if not all(isinstance(value, int | float) for value in other["scaler"].values()):
        raise ValueError("the scaler in state.json has values that are no numbers")
    shape, classes = other["data"].get("shape"), other["data"].get("classes")
    if not (shape is None or (isinstance(shape, list) and all(is_number(side, 1, 2**31) for side in shape))):
        raise ValueError("the shape in state.json is none")
    if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
        raise ValueError("the classes in state.json are no names")


def broadcast_checkpoint(found: VerifiedCheckpoint | None, group: ProcessGroup) -> Resumed | None:
    """Reads rank 0's checkpoint once, and hands it to all ranks. `found` counts on rank 0 only.

    Raises:
        UserError: (exit 4) on all ranks, when no training has saved that.
    """
    held: list[Snapshot] = []

    def look() -> Any:
        if found is None:
            return None
        held.append(content_of(found))
        return found.path, found.manifest.get("world_size", 0), held[0].other, held[0].ema is not None

    facts = group.run_on_rank0(look)
    if facts is None:
        return None
    snapshot = held[0] if held else None
    path, world_size, other, has_ema = facts
    everywhere = Snapshot(
        model=group.broadcast_tensors(snapshot.model if snapshot else None),
        optimizer=group.broadcast_tensors(snapshot.optimizer if snapshot else None),
        ema=group.broadcast_tensors(snapshot.ema if snapshot else None) if has_ema else None,
        other=other,
    )
    return Resumed(path=path, snapshot=everywhere, world_size=world_size)
