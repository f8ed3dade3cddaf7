"""One life of a run: what comes before and after its loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint.keeper import Keeper
from dist_train.checkpoint.resume import hand_on
from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import CheckpointStore, is_checkpoint, locate
from dist_train.control.heartbeat import beat
from dist_train.control.stop import Request
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import Evaluation
from dist_train.learner import Learner
from dist_train.loop import train
from dist_train.parallel.process_group import ProcessGroup
from dist_train.run_state import RunRecord
from dist_train.tracking.base import Outcome, RunFacts
from dist_train.trainer import Run

SIGNALS = {Request.INTERRUPT: "SIGINT", Request.TERMINATE: "SIGTERM", Request.REQUEUE: "SIGUSR1"}
"""What state.json says of a life that was stopped."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """A run, and what is done before and after its loop.

    Attributes:
        judge: the best checkpoint's figures on the test split, where there is one.
        notes: lines for the user, said once the tracker is open.
    """

    run: Run
    state: TrainState
    facts: RunFacts
    record: RunRecord
    judge: Callable[[TrainState], Evaluation | None]
    notes: tuple[str, ...]


def live(life: Life) -> Request:
    """Trains, judges the best checkpoint, and says how it ended.

    From the first step on no error has exit code 2, which promises that nothing was started or written.
    """
    steps: list[int] = []

    def begun() -> None:
        steps.append(life.state.step)
        life.record.begun()

    try:
        return _live(life, begun)
    except UserError as error:
        if error.code == ExitCode.CONFIG and steps:
            error.code = ExitCode.USER_CODE
        raise


def _live(life: Life, begun: Callable[[], None]) -> Request:
    run, state, started = life.run, life.state, time.monotonic()
    life.record.begin(run.config, run.due.total_steps)
    run.tracker.begin(life.facts)
    for line in life.notes:
        run.tracker.note(line)
    life.record.update("running", state)
    if state.step == 0 and run.config.train.non_finite == "rollback":
        run.save(state)  # something to go back to before the first checkpoint is due
    beat("compile", state.step)
    request = Request.NONE if state.finished or state.step >= run.due.last_step else train(run, state, begun)
    beat("end")
    run.checkpoints.close()
    metrics = dict(state.metrics)
    if state.finished and (figures := life.judge(state)) is not None:
        metrics = {"split": "test", **figures.metrics}
    best = None
    if state.best_step is not None:
        best = {"metric": run.config.eval.best, "value": state.best_value, "step": state.best_step}
    status = "done" if state.finished else "stopped"
    life.record.update(status, state, SIGNALS.get(request))
    newest = life.facts.run_dir / "checkpoints" / f"step-{state.step:08d}"
    run.tracker.finish(
        Outcome(
            status="done" if state.finished else "stopped",
            metrics=metrics,
            best=best,
            seconds=time.monotonic() - started,
            checkpoint=run.checkpoints.last or (newest if is_checkpoint(newest) else None),
        )
    )
    return Request.NONE if state.finished else request


def go_back(
    learner: Learner, group: ProcessGroup, checkpoints: Keeper, run_dir: Path, note: Callable[[str], None], step: int
) -> None:
    """Puts the learner back to the checkpoint of `step`.

    Raises:
        UserError: (exit 4) on every rank, when it is missing or damaged.
    """
    beat("save")  # reading takes as long
    checkpoints.drain()
    path = CheckpointStore(run_dir / "checkpoints").path(step)
    resumed = hand_on(group.from_first(lambda: locate(path, note)), group)
    assert resumed is not None
    learner.restore(resumed)
    beat("step")
    note(f"went back to the weights of step {step}")


def judge(
    run: Run,
    learner: Learner,
    group: ProcessGroup,
    run_dir: Path,
    test: Any,
    figures: Callable[[Any], Evaluation],
    state: TrainState,
) -> Evaluation | None:
    """Evaluates the best checkpoint's weights on the test split, which has chosen nothing; None where there is none."""
    if test is None:
        return None
    best = hand_on(group.from_first(lambda: locate(run_dir, run.tracker.note, best=True)), group)
    assert best is not None
    best.snapshot.load_evaluated(learner.evaluated)
    result = figures(test)
    row = {
        "step": best.state.step,
        "epoch": run.meter.epoch(best.state.step),
        "samples_seen": best.state.samples_seen(run.config.batch.global_size),
        "split": "test",
        **result.metrics,
        "per_class": result.per_class,
    }
    run.tracker.log_evaluation(row, result.confusion)
    return result
