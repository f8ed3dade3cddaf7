"""What the ranks of the pool do: live one life of a training, evaluate a checkpoint, take one plain step by hand."""

import contextlib
import io
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, USER_CODE = 2, 10


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a life ended, on one rank.

    Attributes:
        code: the exit code that the launcher would end with.
        said: the error, without the names of this life's files.
    """

    code: int
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has left behind, all of which must be equal.

    Attributes:
        rows: of metrics.jsonl, without the clock.
        bits: the fingerprint of the newest checkpoint; None where there is none.
    """

    ended: Ended
    rows: tuple[dict[str, Any], ...]
    samples: tuple[str, ...]
    bits: str | None

    @property
    def began(self) -> bool:
        """Whether a step was taken or anything saved."""
        return bool(self.rows or self.bits)

    def difference(self, other: "Result") -> str | None:
        """What differs first, in one line; None where nothing does."""
        if self.ended != other.ended:
            return f"ended with {self.ended} and {other.ended}"
        for left, right in zip(self.rows, other.rows, strict=False):
            if left != right:
                return _first_difference(left, right)
        if len(self.rows) != len(other.rows):
            return f"metrics.jsonl has {len(self.rows)} rows and {len(other.rows)}"
        if self.samples != other.samples:
            return "samples.jsonl differs"
        return None if self.bits == other.bits else "the fingerprints differ, and no row of metrics.jsonl does"


def _first_difference(left: dict[str, Any], right: dict[str, Any]) -> str:
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    split = left.get("split", "train")
    return f"{split} row of step {left.get('step')}: {keys[0]} {left.get(keys[0])} and {right.get(keys[0])}"


def live(ranks: Any, config: str, run: str, *overrides: str) -> Ended:
    """One life of the run in the folder `run`."""
    from dist_train.control.stop import StopFlag
    from dist_train.worker import main

    os.environ["XDG_CONFIG_HOME"] = str(Path(run).parent)  # nothing of the user's own is touched

    def train() -> int:
        with StopFlag().handling_signals() as flag:
            return main([config, *overrides, "--run-dir", run, "--supervised"], flag)

    return _ended(train, run)


def live_and_die(ranks: Any, step: int, config: str, run: str) -> None:
    """A life that is killed without a word, on every rank, as it begins the step after `step`, or ends before that."""
    from dist_train import loop

    plain = loop.train_step

    def mined(run: Any, state: Any, microbatches: Any) -> Any:
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(run, state, microbatches)

    loop.train_step = mined
    try:
        live(ranks, config, run)
    finally:
        loop.train_step = plain


def _ended(work: Any, run: str) -> Ended:
    """What `work` ends with. Errors come as exceptions, as they do under the launcher."""
    from dist_train.config.problems import ConfigError
    from dist_train.errors import UserError

    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            return Ended(code=work())
        except (UserError, ConfigError) as error:
            return Ended(code=int(getattr(error, "code", CONFIG)), said=str(error).replace(run, "RUN"))
        except Exception as error:
            said = f"{type(error).__name__}: {error}".replace(run, "RUN")
            return Ended(code=USER_CODE, said=" ".join(said.split()))


def figures(ranks: Any, checkpoint: str) -> dict[str, Any] | Ended:
    """What `dist-train evaluate` says of a checkpoint."""
    from dist_train.commands.evaluate import main
    from dist_train.config.requests import EvaluateRequest

    out = io.StringIO()

    def evaluate() -> int:
        with contextlib.redirect_stdout(out):
            return main(EvaluateRequest(target=checkpoint, trust=True, as_json=True))

    os.environ["TORCHELASTIC_RUN_ID"] = "pool"  # for errors to come as exceptions
    os.environ["XDG_CONFIG_HOME"] = str(Path(checkpoint).parents[2])  # it is remembered there that it is trusted
    ended = _ended(evaluate, str(Path(checkpoint).parents[1]))
    if ended.code:
        return ended
    row = json.loads(out.getvalue()) if ranks.is_first else {}
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def plain_gradient_norm(ranks: Any, config_path: str, in_float64: bool) -> float:
    """The norm of the first step's gradient as a few lines of torch find it: the mean over the global batch's valid
    targets, in plain memory format, with a new model for every microbatch, without DDP, buckets or trees of ours.

    Args:
        in_float64: Model and inputs, which tells how much of a difference is rounding; else each in its own type.
    """
    import torch

    from dist_train import models, tasks
    from dist_train.config.source import load
    from dist_train.data import datasets
    from dist_train.data.loader import train_batches
    from dist_train.randomness import Generators, key

    config = load(config_path, ["loader.workers=0"])
    torch.set_num_threads(config.distributed.threads_per_rank)
    splits = datasets.build_all(config)
    plain = config.model.model_copy(update={"channels_last": False})
    task = tasks.build(config.task, splits.classes)
    (step,) = train_batches(config, splits, ranks, torch.device("cpu"), 0, 1)
    sums: dict[str, Any] = {}
    counted = 0
    for microbatch in step:
        model = models.build(plain, shape=splits.shape, classes=len(splits.classes), seed=config.seed)
        inputs = microbatch.inputs
        if in_float64:
            model, inputs = model.double(), inputs.double()
        Generators(model, task).seed(key(config.seed, "dropout", 0, microbatch.number))
        loss, count = task.loss(model(inputs), microbatch.targets)
        size = len(microbatch.indices)
        (loss / size).backward()
        counted += int(count)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad.double() * size
    return float(torch.cat([gradient.flatten() for gradient in sums.values()]).norm()) / max(1, counted)


def result(run: Path, ended: Ended) -> Result:
    """What is there after the last life of a run."""
    from dist_train.checkpoint.store import locate
    from dist_train.commands.fingerprint import fingerprint
    from dist_train.errors import UserError

    rows = [json.loads(line) for line in _lines(run / "metrics.jsonl")]
    bits = None
    with contextlib.suppress(UserError):
        bits = fingerprint(locate(run, lambda line: print(line, file=sys.stderr)))
    plain = tuple({key: value for key, value in row.items() if key != "time"} for row in rows)
    return Result(ended=ended, rows=plain, samples=tuple(_lines(run / "samples.jsonl")), bits=bits)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
