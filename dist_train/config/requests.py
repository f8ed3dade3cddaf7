"""What a command asks of the module that does its work: `dist-train` writes a request, the module reads it.

No torch and no pydantic here: both sides start with this.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from dist_train.errors import ExitCode
from dist_train.rundir.codec import decode

STDIN = "-"
"""In place of an input: it comes from standard input."""
_LONGEST_ARGUMENT = 30_000
"""Characters of at most 4 bytes each: Linux takes 128 KiB in one argument, and `predict` takes any number of files."""


@dataclass(frozen=True, kw_only=True)
class _OfRun:
    """Of a run directory or a checkpoint, `target`."""

    target: str
    as_json: bool = False


@dataclass(frozen=True, kw_only=True)
class _OfModel(_OfRun):
    """Of a saved model: that of a checkpoint, or of a run's best one."""

    overrides: tuple[str, ...] = ()
    trust: bool = False
    """--trust: the config may run code that the user does not know yet."""


@dataclass(frozen=True, kw_only=True)
class CheckpointsRequest(_OfRun):
    """Which checkpoints are there, and with `verify` whether they are sound?"""

    verify: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheRequest(_OfRun):
    """What is there of the decoded images of the data of a config, `target`, or of a run?"""

    overrides: tuple[str, ...] = ()
    action: str = "show"
    """`show`, `build`, `verify` or `drop`."""


@dataclass(frozen=True, kw_only=True)
class FingerprintRequest(_OfRun):
    """One hash over all tensors of a checkpoint, or of a run's newest one."""


@dataclass(frozen=True, kw_only=True)
class PredictRequest(_OfModel):
    """What a saved model says of inputs."""

    inputs: tuple[str, ...]
    """Files, folders, texts; `-` is what comes from stdin."""
    stdin: str | None = None
    """A file of what came from stdin, where this process has another one."""
    top: int = 1
    """Classes for each input."""
    length: int = 200
    """Tokens of a text."""
    temperature: float = 0.0
    seed: int = 0
    """Of the tokens that are drawn."""
    out: str | None = None
    """A .csv or .json file, or a folder of masks."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest(_OfModel):
    """A saved model as a file for other programs."""

    to: str
    """The file, or a folder for it."""
    format: str
    """`safetensors` or `torch`."""
    inputs: tuple[str, ...] = ()
    """What the file is tried on; without any, samples of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(_OfModel):
    """The metrics of a saved model."""

    split: str = "evaluation"
    """`evaluation`, `test` or `train`."""


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """Do the recorded steps come out again?"""

    run: str
    """A run directory."""
    from_step: int
    """The first step, counted from 1."""
    to_step: int
    """The last step."""
    show: bool = False
    """Also show each microbatch's loss and samples, and the largest gradients."""
    trust: bool = False
    as_json: bool = False
    outcome: str | None = None
    """A file for the exit code; the launcher would take a rank that ends with another code than 0 for a failure."""


@dataclass(frozen=True, kw_only=True)
class BenchRanksRequest:
    """How fast is each rank, and how fast do the ranks talk to each other?"""

    outcome: str
    """The file that rank 0 writes the measurements to."""
    backend: str
    """`gloo` or `nccl`."""


Request = TypeVar("Request")


def to_arguments(request: object) -> list[str]:
    """The request as JSON: one argument, or several to be joined where it is longer than one may be."""
    text = json.dumps(asdict(request), ensure_ascii=False)  # type: ignore[call-overload]
    return [text[at : at + _LONGEST_ARGUMENT] for at in range(0, len(text), _LONGEST_ARGUMENT)]


def read_request(kind: type[Request], arguments: Sequence[str]) -> Request:
    """What `to_arguments` wrote.

    Raises:
        SystemExit: (2) after one line on stderr, when it is no such request.
    """
    try:
        return decode(kind, json.loads("".join(arguments)))
    except ValueError:
        print(f"this module takes one argument, a {kind.__name__} as JSON; dist-train writes it", file=sys.stderr)
        sys.exit(int(ExitCode.CONFIG))
