"""Everything that a life of the training needs, built by worker.py and handed to loop.py."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dist_train.checkpoint.keeper import Keeper
from dist_train.checkpoint.state import TrainState
from dist_train.config.schema import RunConfig
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.heartbeat import beat
from dist_train.control.non_finite import ADVICE, NonFinite
from dist_train.data.batch import Microbatch
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import Evaluation
from dist_train.optim.ema import Ema
from dist_train.optim.schedule import Schedule
from dist_train.parallel import Parallel
from dist_train.randomness import Generators, key
from dist_train.step_metrics import Meter
from dist_train.tasks.base import Task
from dist_train.tracking.tracker import NullTracker, Tracker


@dataclass(frozen=True, kw_only=True)
class Run:
    """One rank's parts.

    Attributes:
        batches: from the step to begin with and the step to end before: this rank's microbatches of each step.
        evaluation: the figures of the evaluation split, with the averaged weights where there are some.
        autocast: the context of a forward.
    """

    config: RunConfig
    microbatch_size: int
    parallel: Parallel
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: Ema | None
    batches: Callable[[int, int], Iterator[list[Microbatch]]]
    evaluation: Callable[[], Evaluation]
    autocast: Callable[[], AbstractContextManager[Any]]
    meter: Meter
    tracker: Tracker | NullTracker
    checkpoints: Keeper
    agreement: Agreement
    due: Due
    non_finite: NonFinite
    generators: Generators

    def normalise(self, counts: Mapping[int, int | Tensor]) -> None:
        """Makes the gradient the mean over the global batch's valid targets, where those are fewer than samples."""
        if not self.task.counts_every_sample:
            self.parallel.rescale(counts, self.config.batch.global_size)

    def update(self, state: TrainState, lr: float, losses: Mapping[int, Tensor]) -> tuple[Tensor, bool]:
        """Clips, steps the optimizer and the average, or leaves the step out where `train.non_finite` says so.

        Every rank has the same gradient, so each finds the same norm and the same scaler decision without asking.

        Returns:
            the L2 norm of the gradient before clipping, 0-dim, and whether the update was applied.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = self.parallel.parameters
        norm = get_total_norm([_aligned(p.grad) for p in parameters if p.grad is not None])
        applied = self.non_finite.applies(norm, losses)
        if applied:
            if self.config.train.clip_norm is not None:
                clip_grads_with_norm_(parameters, self.config.train.clip_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if not type(self.optimizer).__module__.startswith("torch."):  # whose own take each number by itself
                for parameter in parameters:
                    parameter.grad = None if parameter.grad is None else _aligned(parameter.grad)
            # Else an optimizer that draws would go on from where the last microbatch of the rank has left off.
            self.generators.seed(key(self.config.seed, "optimizer", state.step))
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if not applied:
            self.non_finite.leave_out(state)
        elif self.ema is not None:
            self.ema.update(self.parallel.module)
        state.left_out_in_a_row = 0 if applied else state.left_out_in_a_row + 1
        return norm, applied

    def report(self) -> None:
        """Writes down the steps since the last report.

        Raises:
            UserError: on every rank, (exit 11) when one of them was not finite and was not left out, (exit 10) when the
                model's buffers are no function of the samples.
        """
        report = self.meter.flush()
        self.parallel.check()
        self.tracker.log_samples(report.samples)
        self.tracker.log_steps(report.rows)
        for line in report.left_out:
            self.tracker.note(line)
        if report.diverged is not None:
            raise UserError(report.diverged, ExitCode.NON_FINITE)

    def save(self, state: TrainState) -> None:
        """Saves. A buffer may hold an infinity of its own, as an attention mask does, so buffers are not looked at.

        Raises:
            UserError: (exit 11) on every rank, when an update has left numbers that are not finite.
        """
        tensors = list(self.parallel.parameters)
        tensors += [value for entries in self.optimizer.state.values() for value in entries.values()]
        floats = [t.detach() for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
        if not torch.isfinite(get_total_norm(floats, norm_type=math.inf)):
            raise UserError(
                f"step {state.step}: the model or the optimizer holds numbers that are not finite. They were not "
                f"saved; the last checkpoint is from before. {ADVICE}",
                ExitCode.NON_FINITE,
            )
        self.parallel.check()
        beat("save")
        self.checkpoints.save(state)
        beat("step")

    def evaluate(self, state: TrainState) -> None:
        """Evaluates, writes it down, and keeps `state`'s account of the best."""
        figures = self.evaluation()
        state.metrics = figures.metrics
        _note_best(self.config, state)
        state.finished = state.step == self.due.total_steps or gives_up(self.config, state)
        row = {
            "step": state.step,
            "epoch": self.meter.epoch(state.step),
            "samples_seen": state.samples_seen(self.config.batch.global_size),
            "split": "evaluation",
            **figures.metrics,
            "per_class": figures.per_class,
        }
        self.tracker.log_evaluation(row, figures.confusion)
        beat("step")


def _aligned(gradient: Tensor) -> Tensor:
    """Where in a bucket of DDP a gradient lies depends on whether the process has made a step before, and sums may be
    added in another order from an address that is no multiple of a vector's size: CUDA's norm of four numbers
    (aten/src/ATen/native/cuda/ForeachReduceOp.cu), BLAS's products of a cache line."""
    return gradient if gradient.data_ptr() % 64 == 0 else gradient.clone()


def _note_best(config: RunConfig, state: TrainState) -> None:
    wanted, stopping = config.eval.best, config.train.early_stopping
    if wanted not in state.metrics:
        names = ", ".join(state.metrics)
        raise UserError(f"eval.best is {wanted}, which the task does not report; it reports {names}")
    value = state.metrics[wanted]
    sign = 1 if config.eval.best_is == "max" else -1

    def improves(on: float | None, margin: float) -> bool:
        """What is no finite number never does, and anything else on it."""
        return math.isfinite(value) and (on is None or not math.isfinite(on) or sign * (value - on) > margin)

    before = state.best_value if state.improved_value is None else state.improved_value
    if improves(state.best_value, 0.0):
        state.best_value, state.best_step = value, state.step
    state.stale += 1
    if improves(before, stopping.min_delta if stopping else 0.0):
        state.improved_value, state.stale = value, 0


def gives_up(config: RunConfig, state: TrainState) -> bool:
    """Whether early stopping has had enough."""
    stopping = config.train.early_stopping
    return stopping is not None and state.stale >= stopping.patience
