"""A zoo: small modules, optimizers, data sets and tasks with the habits that users have, each with what is right."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One habit.

    Attributes:
        config: what differs from the zoo's config.
        refused: a regular expression for the name that a refusal must say; None where it may not be refused.
    """

    config: dict[str, Any]
    refused: str | None = None
