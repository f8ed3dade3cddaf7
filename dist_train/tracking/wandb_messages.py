"""What the training (wandb_sink.py) tells W&B's own process (wandb.py), as lines of JSON.

The first line is {"begin": …}, a `Begin`; the others are {"log": {…}, "confusion": …, "per_class": …, "worst": …, each
a `Panel`, "texts": […], "pictures": {…}, "summary": {…}} or {"checkpoint": …}, and at the end {"summary": {…},
"finish": exit code}. tell_training says what comes back.
"""

import json
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

from dist_train.report.words import Row

ORPHAN_CHECK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Begin:
    """How the run is opened.

    Attributes:
        given: arguments of wandb.init by the config.
        defaults: others, which W&B's own variables and settings override.
        data_dir: for what waits to be uploaded.
        code: files to keep, by the name that they are kept under.
        log: the file of what the user was shown, and from which byte on it is this session's.
    """

    mode: str
    given: Row
    defaults: dict[str, str]
    data_dir: str
    code: dict[str, str]
    argv: list[str]
    training_pid: int
    log: str
    log_from: int


class Panel(TypedDict):
    """A table, and what it is logged under."""

    key: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def read_messages(parent: int) -> Iterator[Row]:
    """The lines of stdin as they come; ends with it, or with the parent.

    A data worker forked from the training holds the pipe's other end too, so the pipe alone would not show its death.
    """
    rest = b""
    while True:
        if not select.select([0], [], [], ORPHAN_CHECK_S)[0]:
            if os.getppid() != parent:
                return
            continue
        chunk = os.read(0, 2**20)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def tell_training(out: int, **message: Any) -> None:
    with suppress(BrokenPipeError):  # a training that is gone still gets its last rows written, and its end
        os.write(out, json.dumps(message).encode() + b"\n")
