"""Going on from a checkpoint: which one, whether it fits this config, and its state on every rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import Found, read
from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import SAFE_TO_CHANGE, RunConfig
from dist_train.process_group import ProcessGroup


def differences(old: RunConfig, new: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key path, old value, new value) of every leaf that differs, sorted by key path."""
    left, right = (dict(_leaves("", config.model_dump(mode="json"))) for config in (old, new))
    for path in sorted(left.keys() | right.keys()):
        if left.get(path) != right.get(path):
            yield path, left.get(path), right.get(path)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, child)
    else:
        yield prefix, value


def check_same(old: RunConfig, new: RunConfig, allowed: Sequence[str]) -> list[str]:
    """The changes that are let through, one line each.

    Raises:
        UserError: (exit 4) when a key that the result depends on has changed and is not allowed to.
    """
    lines: list[tuple[str, str]] = []
    refused: list[tuple[str, str]] = []
    for path, before, after in differences(old, new):
        covered = any(path == key or path.startswith(f"{key}.") for key in (*SAFE_TO_CHANGE, *allowed))
        (lines if covered else refused).append((path, f"{path}: was {before}, is {after}"))
    if refused:
        keys = " ".join(f"--allow-change {path}" for path, _ in refused)
        raise UserError(
            f"the config has changed since this run began ({'; '.join(line for _, line in refused)}), so it would not "
            f"end as it began. Put it back, start a new run, or say {keys}",
            ExitCode.CANNOT_RESUME,
        )
    return [line for _, line in lines]


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A checkpoint's content, on every rank."""

    path: Path
    snapshot: Snapshot
    world_size: int
    """Of the life that wrote it."""

    @property
    def state(self) -> TrainState:
        return TrainState(**self.snapshot.other["progress"])


def hand_on(found: Found | None, group: ProcessGroup) -> Resumed | None:
    """Reads rank 0's checkpoint once, and hands it to all ranks. `found` counts on rank 0 only."""
    snapshot = None
    if group.ranks.is_first and found is not None:
        snapshot = Snapshot.from_files(
            {name: read(found.path, name, found.manifest) for name in found.manifest["files"]}
        )
    facts = group.broadcast_object(
        None
        if found is None or snapshot is None
        else (found.path, found.manifest["world_size"], snapshot.other, snapshot.ema is not None)
    )
    if facts is None:
        return None
    path, world_size, other, has_ema = facts
    everywhere = Snapshot(
        model=group.broadcast_tensors(snapshot.model if snapshot else None),
        optimizer=group.broadcast_tensors(snapshot.optimizer if snapshot else None),
        ema=group.broadcast_tensors(snapshot.ema if snapshot else None) if has_ema else None,
        other=other,
    )
    return Resumed(path=path, snapshot=everywhere, world_size=world_size)
