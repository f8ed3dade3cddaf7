"""The keys in which two configs differ, and which of them affect the result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dist_train.config.schema import SAFE_TO_CHANGE, RunConfig

SURROUNDINGS = ("torch", "data")
"""What may be allowed to change besides keys of the config: a run's surroundings."""
SETTLED = ("batch.microbatches", "model.channels_last")
"""Keys whose `auto` or `fit` a run turns into a value when it begins, which it then keeps."""


def differences(old: RunConfig, new: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key path, old value, new value) of every leaf that differs, sorted by key path."""
    return differing(*(config.model_dump(mode="json") for config in (old, new)))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The same for any two trees."""
    left, right = dict(leaves("", old)), dict(leaves("", new))
    for path in sorted(left.keys() | right.keys()):
        before, after = left.get(path), right.get(path)
        if before != after and repr(before) != repr(after):  # NaN equals NaN here
            yield path, before, after


def leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(key path, value) of everything in a tree that is no section with keys of its own."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from leaves(f"{prefix}.{key}" if prefix else key, child)
    else:
        yield prefix, value


def is_below(path: str, keys: Sequence[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def is_safe(path: str) -> bool:
    """Whether a leaf's value may differ when a run is resumed. Where `data.cache` is a word it says where samples lie;
    where it is a section, one of its keys decides what they are."""
    return path == "data.cache" or is_below(path, SAFE_TO_CHANGE)


def is_the_same_training(recorded: RunConfig, config: RunConfig, allowed: Sequence[str]) -> bool:
    """Whether `config` could resume a run whose recorded config has no `auto` left.

    Args:
        allowed: further keys that may differ. `torch` and `data` name surroundings and are ignored here.
    """
    keys = [key for key in allowed if key not in SURROUNDINGS]
    return all(
        is_safe(path) or is_below(path, keys) or (path in SETTLED and new in ("auto", "fit"))
        for path, _, new in differences(recorded, config)
    )
