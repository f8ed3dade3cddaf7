"""Resuming from a checkpoint: whether it fits this config, and its state on every rank."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from dist_train.checkpoint.manifest import MANIFEST
from dist_train.checkpoint.state import Snapshot, Tensors, TrainState
from dist_train.checkpoint.store import VerifiedCheckpoint, read_checked
from dist_train.config.changes import differences, differing, is_below, is_safe
from dist_train.config.problems import ConfigError, printable
from dist_train.config.schema import RunConfig
from dist_train.config.source import load_plain
from dist_train.errors import ResumeError
from dist_train.parallel.process_group import ProcessGroup
from dist_train.rundir.codec import decode
from dist_train.rundir.reading import is_number
from dist_train.rundir.strict_json import untagged


def recorded_config(found: VerifiedCheckpoint) -> RunConfig | None:
    """The config that a checkpoint was written under, from its manifest: an edit of config.yaml does not change it.

    Raises:
        UserError: (exit 4) when this version cannot read it.
    """
    content = found.manifest.get("config")
    try:
        return None if content is None else load_plain(content, str(found.path / MANIFEST))
    except ConfigError as error:
        first = error.problems[0]
        raise ResumeError(
            f"{found.path} was written by another version of dist-train, whose config this one does not take "
            f"({printable(first.key or 'config', 100)}: {printable(first.message, 300)}): go on with that version, or "
            "begin a new run"
        ) from None


def check_config_unchanged(old: RunConfig, new: RunConfig, allowed: Sequence[str]) -> list[str]:
    """The changes that are let through, one line each.

    Raises:
        UserError: (exit 4) when a key that the result depends on has changed and is not allowed to.
    """
    lines = {path: f"{path}: was {before}, is {after}" for path, before, after in differences(old, new)}
    # A rollback goes to the last checkpoint that was due, so the interval of checkpoints is part of the result.
    decisive = ("checkpoint.every",) if new.train.non_finite == "rollback" else ()
    safe = {path for path in lines if is_safe(path) and path not in decisive}
    if refused := [path for path in lines if path not in safe and not is_below(path, allowed)]:
        said, keys = "; ".join(map(lines.__getitem__, refused)), " ".join(f"--allow-change {path}" for path in refused)
        raise ResumeError(
            f"the config has changed since the checkpoint was written ({said}), so the run would not end as it began. "
            f"Put it back, start a new run, or say {keys}"
        )
    return [*lines.values()]


REFUSED = {"torch": "torch has", "data": "the data has"}
"""What a person has changed and can undo. Nobody can choose which machine a scheduler gives, and code is changed for
good reasons, most of all before a resume after an error: these two are shown."""
SHOWN = {"machine": "the machine has", "code": "the code has"}


def check_surroundings(found: VerifiedCheckpoint, now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """What has changed around the run since its checkpoint was written, one line for each kind that is let through.

    Args:
        now: what dist_train.checkpoint.provenance.surroundings returns now.
        allowed: `torch` and `data`, where these may differ.

    Raises:
        UserError: (exit 4) when torch or the data has changed and is not allowed to.
    """
    lines = []
    for kind, subject in {**REFUSED, **SHOWN}.items():
        before = found.manifest.get(kind)
        changes = [] if before is None else [*filter(_is_known, differing({kind: before}, {kind: now[kind]}))]
        if not changes:
            continue
        said = "; ".join(f"{path} was {old}, is {new}" for path, old, new in changes)
        line = f"{subject} changed since {found.path.name} was written ({said})"
        if kind in REFUSED and kind not in allowed:
            raise ResumeError(
                f"{line}, so the run would not end as it began. Put it back, start a new run, or say "
                f"--allow-change {kind}"
            )
        lines.append(line)
    return lines


def _is_known(change: tuple[str, Any, Any]) -> bool:
    """Whether both sides have looked: at the bytes of files they do where data.cache.check says so."""
    path, *values = change
    return not path.endswith(".bytes") or None not in values


def content_of(found: VerifiedCheckpoint) -> Snapshot:
    """The content of a verified checkpoint, checked once more: the manifest proves that the files are those that were
    written, and not who wrote them.

    Raises:
        UserError: (exit 4) when no training has written such files.
        DamagedCheckpoint: when they have changed since.
        OSError: when they have gone since.
    """
    files = {name: read_checked(found.path, name, found.manifest) for name in found.manifest["files"]}
    try:
        tensors = {name: load(content) for name, content in files.items() if name.endswith(".safetensors")}
        snapshot = Snapshot.of(tensors, untagged(json.loads(files["state.json"])))
        _check_other(snapshot.other, found.manifest)
        return snapshot
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise ResumeError(f"{found.path} holds what no training has saved ({reason})") from None


def _check_other(other: Any, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError, or TypeError."""
    parts = ("progress", "optimizer", "scaler", "data")
    if not isinstance(other, dict) or not all(isinstance(other.get(part), dict) for part in parts):
        raise ValueError(f"state.json has {', '.join(parts)}, each of them an object")
    state = decode(TrainState, other["progress"])
    counts = (state.step, state.stale, state.left_out_in_a_row, state.best_step or 0)
    if not (all(map(is_number, counts)) and other["progress"].keys() <= vars(state).keys()):
        raise ValueError("the progress in state.json has other values")
    if state.step != manifest["step"]:
        raise ValueError(f"state.json is of step {state.step}")
    if not all(isinstance(value, int | float) for value in other["scaler"].values()):
        raise ValueError("the scaler in state.json has values that are no numbers")
    _check_data(other["data"])


def _check_data(data: Mapping[str, Any]) -> None:
    """Raises ValueError, or TypeError."""
    shape, classes = data.get("shape"), data.get("classes")
    if not (shape is None or (isinstance(shape, list) and all(is_number(side, 1, 2**31) for side in shape))):
        raise ValueError("the shape in state.json is none")
    if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
        raise ValueError("the classes in state.json are no names")
    counts = [data[name] for name in ("outputs", "vocabulary") if data.get(name) is not None]
    scaling, columns = data.get("scaling") or {}, data.get("columns") or {}
    numbers = [number for name in ("mean", "std") for number in scaling.get(name, ())]
    names = [name for part in ("inputs", "targets") for name in columns.get(part, ())]
    if not all(is_number(count, 0, 2**31) for count in counts) or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("the data in state.json has values that are no numbers")
    if not all(isinstance(name, str) for name in (*names, data.get("characters") or "", data.get("tokenizer") or "")):
        raise ValueError("the data in state.json has names that are no text")


def broadcast_checkpoint(found: VerifiedCheckpoint, group: ProcessGroup) -> Snapshot:
    """A checkpoint's content on every rank: rank 0 reads it.

    Raises:
        UserError: (exit 4) on all ranks, when no training has saved that.
    """
    files: dict[str, Tensors] = {}

    def read() -> tuple[list[str], Any]:
        snapshot = content_of(found)
        files.update(snapshot.tensor_files())
        return list(files), snapshot.other

    names, other = group.run_on_rank0(read)
    return Snapshot.of({name: group.broadcast_tensors(files.get(name)) for name in names}, other)
