"""Going on from a checkpoint: which one, whether it fits this config, and its state on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import Found, read
from dist_train.config.changes import differences, differing, is_below
from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import SAFE_TO_CHANGE, RunConfig
from dist_train.process_group import ProcessGroup


def config_of(found: Found) -> RunConfig | None:
    """The config that a checkpoint was written under: its own account, which no edit of config.yaml changes.

    Raises:
        UserError: (exit 4) when this version cannot read it.
    """
    content = found.manifest.get("config")
    try:
        return None if content is None else RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "config"
        raise UserError(
            f"{found.path} was written by another version of dist-train, whose config this one does not take "
            f"({key}: {first['msg']}): go on with that version, or begin a new run",
            ExitCode.CANNOT_RESUME,
        ) from None


def check_same(old: RunConfig, new: RunConfig, allowed: Sequence[str]) -> list[str]:
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


def check_surroundings(found: Found | None, now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """What has changed around the run since its checkpoint was written, one line for each kind that is let through.

    Args:
        now: of dist_train.fingerprints.surroundings.
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
