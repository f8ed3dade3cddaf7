"""Checkpoints of a script with its own loop: those of dist_train/checkpoint/store.py, with a file of tensors for each
thing that is saved, and the rest of them in state.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as as_bytes

from dist_train.checkpoint.manifest import DamagedCheckpoint
from dist_train.checkpoint.store import CheckpointStore, VerifiedCheckpoint, read_checked
from dist_train.errors import DiskError, ResumeError, UserError, telling_why
from dist_train.exact.model import seed_after
from dist_train.exact.state import Tensors, flattened, load_state, state_of, unflattened
from dist_train.exact.world import world
from dist_train.heartbeat import set_aside
from dist_train.rundir.lease import Fence, Lease
from dist_train.rundir.strict_json import tagged, untagged

_STATE = "state.json"


def save(folder: str | Path, *, step: int, keep: int = 2, **stateful: Any) -> None:
    """Saves everything that a script goes on from, after `step` steps, as folder/step-…. Rank 0 writes it beside what
    is there, synced, hashed and then renamed, so that it is whole or not there. The other ranks do not wait.

    Args:
        folder: of this training alone.
        keep: how many of the newest remain, at least two.
        stateful: by name, what has a state_dict and a load_state_dict (models, optimizers, schedulers, gradient
            scalers), or a dict of numbers, text and tensors. The same names as in `resume`.

    Raises:
        UserError: on rank 0, (exit 14) when something cannot be saved without pickle, or the disk refuses; (exit 3)
            when another training that lives saves into the folder.
    """
    if not isinstance(step, int) or step < 0 or not stateful:
        raise UserError(
            f"exact.save: step={step!r}, of {len(stateful)} things: a whole number from 0, and what to save"
        )
    group = world().group
    if not group.ranks.is_first:
        return
    files: dict[str, Any] = {}
    trees = {}
    for name, thing in stateful.items():
        tensors: Tensors = {}
        trees[name] = flattened(state_of(name, thing), name, tensors)
        # Each in memory of its own, since weights may be tied.
        copies = {place: t.detach().to("cpu", copy=True).contiguous() for place, t in tensors.items()}
        files[f"{name}.safetensors"] = as_bytes(copies)
    files[_STATE] = json.dumps(tagged(trees)).encode()
    facts = {"torch": str(torch.__version__), "world_size": group.ranks.world_size, "best_step": None}
    store = CheckpointStore(Path(folder), keep, fence=_hold(Path(folder)))
    with telling_why(f"cannot save into {folder}", DiskError):
        store.save(step, files, facts)
    store.retain(None)


def _hold(folder: Path) -> Fence:
    """Takes the folder, until the process group is closed; a script that was killed holds it no more."""
    leases = world().leases
    if (place := str(folder.absolute())) not in leases:
        lease = Lease(lost=lambda: None, renews=set_aside)  # the next save finds the fence closed, and says why
        leases[place] = lease, lease.take(folder)
    return leases[place][1]


def resume(folder: str | Path, **stateful: Any) -> int:
    """Loads the newest sound checkpoint of a folder, on all ranks, which call it together. Where one is damaged, stderr
    tells so, and the one before it is taken.

    Args:
        stateful: what `save` was given, by the same names, or some of it.

    Returns:
        the steps that are done; 0 where there is no checkpoint, and nothing has changed then. The generators are those
        after the last step, where there is an exact.DistributedDataParallel.

    Raises:
        UserError: on every rank, (exit 4) when all checkpoints are damaged, or what is saved does not fit.
    """
    for name, thing in stateful.items():
        state_of(name, thing)
    group, tensors = world().group, dict[str, Tensors]()

    def read() -> tuple[int, str, dict[str, Any]] | None:
        store = CheckpointStore(Path(folder))
        store.remove_unfinished()
        found = store.newest()
        if found is None:
            return None
        for line in found.skipped:
            print(f"! {line}; {found.path.name} is taken", file=sys.stderr, flush=True)
        trees = _read(found, stateful, tensors)
        return found.manifest["step"], str(found.path), trees

    told = group.run_on_rank0(read)
    if told is None:
        return 0
    step, path, trees = told
    for name, thing in stateful.items():
        try:
            load_state(name, thing, unflattened(trees[name], group.broadcast_tensors(tensors.get(name))))
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(f"{error}".split())
            raise ResumeError(f"{path} does not fit this {name}: {reason}") from None
    if step:
        seed_after(step - 1)
    return int(step)


def _read(found: VerifiedCheckpoint, names: Any, tensors: dict[str, Tensors]) -> dict[str, Any]:
    """Fills `tensors` with those of each name; returns the rest.

    Raises:
        UserError: (exit 4) when a name is not there, or nothing of ours has written that.
    """
    try:
        trees = untagged(json.loads(read_checked(found.path, _STATE, found.manifest)))
        if missing := [name for name in names if name not in trees]:
            raise ResumeError(
                f"{found.path} has {', '.join(sorted(trees))}, and not {', '.join(missing)}: resume what was saved, or "
                "begin in another folder"
            )
        for name in names:
            tensors[name] = load(read_checked(found.path, f"{name}.safetensors", found.manifest))
    except (DamagedCheckpoint, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{found.path} holds what exact.save has not saved: {error}") from None
    return {name: trees[name] for name in names}
