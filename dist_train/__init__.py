"""Distributed training that gives the same bits for any number of processes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_train.trained import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, with which torch comes: the launcher imports this package without it."""
    if name == "load":
        return import_module("dist_train.trained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
