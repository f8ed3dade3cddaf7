"""Sums, clipping, draws and fingerprints that are the same for any number of ranks."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.model_state import bytes_of
from dist_train.errors import UserCodeError, UserError
from dist_train.exact.state import flattened, state_of
from dist_train.exact.world import world
from dist_train.optim.clip import clip_to
from dist_train.randomness import key, seed_all

Found = Tensor | float | Mapping[str, Tensor | float]
_ALONE = ""


def sum(found: Mapping[int, Found]) -> Any:
    """The sum over the batches of all ranks, added in the order of their numbers. All ranks call it together.

    Args:
        found: by number of a batch or microbatch, a tensor or number, or a dict of them; each batch on one rank. All
            have the same names and shapes.

    Returns:
        on every rank the same tensor, on the CPU: int64 for what is counted, float64 for what is measured; or a dict of
        them. Without any batch it is an empty dict.

    Raises:
        UserError: (exit 10) on every rank, when two ranks have the same batch, or not all of one shape.
    """
    from dist_train.sums import BatchSums  # with the tasks, which a loop of one's own does without

    group = world().group
    named = {number: _named(value) for number, value in found.items()}
    told = {n: {name: [str(v.dtype), *v.shape] for name, v in values.items()} for n, values in named.items()}
    everywhere = group.gather_objects(told)
    numbers = [number for of_rank in everywhere for number in of_rank]
    if twice := [number for number, times in Counter(numbers).items() if times > 1]:
        raise UserCodeError(
            f"exact.sum: batch {min(twice)} is there on several ranks: each batch is counted once, by the rank that "
            "exact.evaluation_loader or parallel.each gives it to"
        )
    kinds = {json.dumps(kind, sort_keys=True) for of_rank in everywhere for kind in of_rank.values()}
    if len(kinds) > 1:
        raise UserError(f"exact.sum: the batches differ in what they have: {' and '.join(sorted(kinds)[:2])}")
    sums = BatchSums(max(numbers, default=-1) + 1)
    for number in sorted(named):
        sums.add(number, named[number])
    total = sums.over_all_ranks(group)
    return total.get(_ALONE, total)


def _named(value: Found) -> dict[str, Tensor]:
    values = value if isinstance(value, Mapping) else {_ALONE: value}
    return {name: _tensor(item) for name, item in values.items()}


def _tensor(value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach() if value.is_floating_point() else value.detach().to(torch.int64)
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def clip(parameters: nn.Module | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients down to an L2 norm of at most `max_norm`, as torch.nn.utils.clip_grad_norm_ does, after
    `parallel.each`; the norm does not depend on where in memory the gradients lie.

    Returns:
        the norm before, 0-dim.

    Raises:
        UserError: when max_norm is no positive number.
    """
    if not max_norm > 0:
        raise UserError(f"exact.clip: max_norm={max_norm!r}: it is a number above 0")
    return clip_to(list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters), max_norm)


def seed(seed: int, *position: int) -> None:
    """Seeds the generators of Python, NumPy and torch by (seed, position): the same draws on every rank. For what is
    drawn outside of `parallel.each`: the first weights, or the samples of an evaluation by (seed, step, batch).

    Raises:
        UserError: when one of them is no whole number.
    """
    world()  # which makes the process deterministic
    if not all(isinstance(number, int) for number in (seed, *position)):
        raise UserError(f"exact.seed{(seed, *position)!r}: all of them are whole numbers")
    value = key(seed, "script", *position)
    seed_all(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)


def fingerprint(**stateful: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of everything in the state_dicts of models, optimizers and so on;
    the same on every rank, and for any number of ranks. No rank waits for another one.

    Raises:
        UserError: when one has no state_dict and is no dict.
    """
    digest = hashlib.sha256()
    for name in sorted(stateful):
        tensors: dict[str, Tensor] = {}
        tree = flattened(state_of(name, stateful[name]), name, tensors)
        digest.update(json.dumps([name, tree], sort_keys=True).encode())
        for place, tensor in sorted(tensors.items()):
            digest.update(f"{place} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(bytes_of(tensor).cpu().numpy().data)
    return digest.hexdigest()
