"""A short run as a tracker sees it; also a program, so that tests can watch what a user would see.

`python -m tests.unit.dist_train.tracking.runs RUN_DIR [KEY=VALUE …]`
The keys are last, status, wandb, kill, raise and modules.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config.schema import RunConfig
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.records import Best
from dist_train.tracking.base import Row, RunFacts, SessionOutcome
from dist_train.tracking.tracker import NullTracker, build_tracker

EPOCH, TOTAL, BATCH, EVERY = 10, 40, 32, 5
ONE_RANK = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)


def config(**tracking: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "demo",
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "batch": {"global_size": BATCH, "microbatches": 4},
            "tracking": {"every": f"{EVERY} steps", "wandb": {"mode": "disabled"}, **tracking},
        }
    )


def facts(run_dir: Path, chosen: RunConfig, first_step: int = 0) -> RunFacts:
    return RunFacts(
        run_dir=run_dir,
        config=chosen,
        name=chosen.name,
        model="cnn",
        parameters=98_304,
        world_size=2,
        nodes=1,
        backend="gloo",
        device="cpu",
        threads=1,
        global_batch=BATCH,
        microbatches=4,
        train_samples=1437,
        evaluation_samples=360,
        steps_per_epoch=EPOCH,
        total_steps=TOTAL,
        first_step=first_step,
        resumed_from=f"step-{first_step:08}" if first_step else None,
        generation=int(first_step > 0),
        classes=tuple("0123456789"),
    )


def train_row(step: int) -> Row:
    loss = 2.3 * 0.1 ** (step / 7)
    return {**_position(step), "loss": loss, "lr": 0.1 * (1 - step / TOTAL), "grad_norm": loss / 3}


def evaluation_row(step: int) -> Row:
    accuracy = step / (step + 1)
    shares = {name: accuracy for name in ("accuracy", "precision", "recall", "f1")}
    return {**_position(step), "split": "evaluation", "loss": 1 / step, **shares, "per_class": {"f1": [accuracy] * 10}}


def _position(step: int) -> Row:
    return {"step": step, "epoch": step / EPOCH, "samples_seen": step * BATCH}


def told(
    tracker: NullTracker, run_dir: Path, chosen: RunConfig, *, first: int = 0, last: int = TOTAL, **more: Any
) -> None:
    """Tells `tracker` of the steps after `first` up to `last`, without finish. `more` is in each evaluation."""
    tracker.begin(facts(run_dir, chosen, first))
    rows = []
    for step in range(first + 1, last + 1):
        tracker.tick(step)
        rows.append(train_row(step))
        if step % EVERY == 0 or step == last:
            tracker.log_steps(rows)
            rows = []
        if step % EPOCH == 0:
            tracker.log_evaluation(evaluation_row(step) | more, np.diag(np.arange(10)))


def outcome(last: int, run_dir: Path, status: Any = "done") -> SessionOutcome:
    row = evaluation_row(last)
    return SessionOutcome(
        status=status,
        metrics={name: row[name] for name in ("loss", "accuracy", "precision", "recall", "f1")},
        best=Best(metric="accuracy", value=row["accuracy"], step=last),
        seconds=12.3,
        checkpoint=run_dir / "checkpoints" / f"step-{last:08}",
    )


def main() -> None:
    run_dir, given = Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:])
    run_dir.mkdir(parents=True, exist_ok=True)
    chosen = config(wandb={"mode": given.get("wandb", "disabled")})
    last = int(given.get("last", TOTAL))
    tracker = build_tracker(chosen, ONE_RANK, run_dir)
    told(tracker, run_dir, chosen, last=last)
    warnings.warn("a library is worried", stacklevel=1)
    print("printed by the user's code")
    if "kill" in given:
        os.kill(os.getpid(), signal.SIGKILL)
    if "raise" in given:
        raise ValueError("the user's code failed")
    tracker.finish(outcome(last, run_dir, given.get("status", "done")))
    if "modules" in given:
        (run_dir / "modules.txt").write_text("\n".join(sys.modules))


if __name__ == "__main__":
    main()
