"""The configs and the schema that come with dist-train. No pydantic here."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "configs"
"""In a checkout a link to configs/."""
SCHEMA = FOLDER / "schema.json"


def names() -> list[str]:
    """What the shipped configs are called: `digits`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def meant_by(word: str) -> str:
    """The file that a word on the command line means: the one it names, with .yaml behind it or without, or else the
    shipped config of that name. The word itself where there is none."""
    for path in (word, f"{word}.yaml"):
        if os.path.isfile(path):
            return path
    known = word.removesuffix(".yaml") in names() and not os.path.isdir(word)
    return str(FOLDER / f"{word.removesuffix('.yaml')}.yaml") if known else word
