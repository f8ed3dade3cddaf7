"""One rank's part of a generation: what comes before and after the training loop."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dist_train.checkpoint.resume import broadcast_checkpoint
from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import has_manifest, locate
from dist_train.control.stop import Request
from dist_train.data.cache.survey import counts
from dist_train.errors import ExitCode, UserError
from dist_train.heartbeat import beat
from dist_train.loop import train
from dist_train.run_state import NullRunRecord
from dist_train.rundir.layout import RunDir
from dist_train.tracking.base import RunFacts, SessionOutcome
from dist_train.trainer import Trainer

SIGNALS = {Request.INTERRUPT: "SIGINT", Request.TERMINATE: "SIGTERM", Request.REQUEUE: "SIGUSR1"}
"""What state.json says of a session that was stopped."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A trainer, the state that it begins from, and the records of the run.

    Attributes:
        notes: lines for the user, shown once the tracker is open.
        begins_with_evaluation: whether to evaluate first: the evaluation of the step that it resumes from was given up.
    """

    trainer: Trainer
    state: TrainState
    facts: RunFacts
    record: NullRunRecord
    notes: tuple[str, ...]
    begins_with_evaluation: bool

    def close(self) -> None:
        """Ends what the trainer holds open, however the session ended."""
        self.trainer.checkpoints.end()
        self.trainer.profile.close()
        self.trainer.tracker.close()
        self.trainer.parallel.close()

    def run(self) -> Request:
        """Trains, evaluates the best checkpoint where there is a test split, and reports how the session ended.

        After the first step no error has exit code 2: that code promises that nothing was started or written.
        """
        first_step, started = self.state.step, time.monotonic()
        try:
            request = self._train()
            self._finish(request, started)
        except UserError as error:
            if error.code == ExitCode.CONFIG and self.state.step > first_step:
                error.code = ExitCode.USER_CODE
            raise
        return Request.NONE if self.state.finished else request

    def _train(self) -> Request:
        trainer, state = self.trainer, self.state
        self.record.begin()
        trainer.tracker.begin(self.facts)
        for line in self.notes:
            trainer.tracker.note(line)
        self.record.update("running", state)
        trainer.callbacks.call("on_start", state.step, state.metrics)
        if state.step == 0 and trainer.config.train.non_finite == "rollback":
            trainer.save(state)  # something to roll back to before the first checkpoint is due
        beat("compile", state.step)
        if self.begins_with_evaluation:
            if (request := trainer.evaluate(state)).stops:
                return request
            trainer.save(state)
        if state.finished or state.step >= trainer.due.last_step:
            return Request.NONE
        return train(trainer, state, self.record.first_step_done)

    def _finish(self, request: Request, started: float) -> None:
        trainer, state = self.trainer, self.state
        beat("end")
        trainer.checkpoints.close(may_wait=not request.stops)
        metrics: dict[str, Any] = dict(state.metrics)
        if state.finished and trainer.splits.test is not None:
            metrics = {"split": "test", **self._evaluate_best_on_test()}
        status: Literal["done", "stopped"] = "done" if state.finished else "stopped"
        trainer.callbacks.call("on_end", state.step, metrics, status=status)
        self.record.update(status, state, SIGNALS.get(request))
        cached = counts(trainer.splits)
        if cached:
            told = trainer.group.all_reduce_host_(torch.tensor([*cached.values()]))
            cached = dict(zip(cached, told.tolist(), strict=True))
        newest = RunDir(self.facts.run_dir).checkpoint(state.step)
        trainer.tracker.finish(
            SessionOutcome(
                status=status,
                metrics=metrics,
                best=state.best(trainer.config.best),
                broken=len(state.broken),
                cached=cached,
                seconds=time.monotonic() - started,
                checkpoint=trainer.checkpoints.last or (newest if has_manifest(newest) else None),
            )
        )

    def _evaluate_best_on_test(self) -> dict[str, float]:
        """The metrics of the best checkpoint on the test split. Nothing was chosen by that split."""
        trainer = self.trainer
        found = trainer.group.run_on_rank0(lambda: locate(self.facts.run_dir, trainer.tracker.note, best=True))
        best = broadcast_checkpoint(found, trainer.group)
        best.load_evaluated(trainer.learner.evaluated)
        return trainer.evaluate_split("test", best.state.step)
