"""What the training loop calls: one step's update, a report, a save, an evaluation."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from dist_train.callbacks import NullCallbacks
from dist_train.checkpoint.manager import NullCheckpointManager
from dist_train.checkpoint.state import TrainState
from dist_train.config.schema import RunConfig
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import Request
from dist_train.data.batch import Microbatch
from dist_train.data.broken import Broken, most_broken
from dist_train.data.datasets import Splits
from dist_train.data.fetch import sample_name
from dist_train.data.loader import train_batches
from dist_train.errors import DataError, ExitCode, UserError
from dist_train.evaluate import EvaluationGivenUp, evaluate
from dist_train.gallery import NullGallery
from dist_train.heartbeat import beat
from dist_train.learner import Learner
from dist_train.models.deterministic import check_deterministic
from dist_train.optim.clip import clip
from dist_train.optim.groups import scaled
from dist_train.optim.schedule import Schedule
from dist_train.parallel.bucket import realigned
from dist_train.parallel.data_parallel import Parallel, ParallelOptions
from dist_train.parallel.process_group import ProcessGroup
from dist_train.profile import NullProfile
from dist_train.randomness import Generators, key
from dist_train.step_metrics import ADVICE, StepMetrics
from dist_train.texts import write_texts
from dist_train.timing import Timing
from dist_train.tracking.tracker import NullTracker
from dist_train.worst import shortened

MOST_SKIPPED_IN_A_ROW = 10
"""Steps that may be skipped one after another: a training that has diverged does not come back by itself."""


class Trainer:
    """One rank's parts of a training or a replay: those that it is given, and those that it makes from them.

    Args:
        config: with its number of microbatches settled.

    Raises:
        UserError: when this device cannot train the model as the config asks.
    """

    def __init__(
        self,
        config: RunConfig,
        group: ProcessGroup,
        splits: Splits,
        learner: Learner,
        due: Due,
        agreement: Agreement,
        tracker: NullTracker,
        checkpoints: NullCheckpointManager,
        callbacks: NullCallbacks | None = None,
        profile: NullProfile | None = None,
        gallery: NullGallery | None = None,
    ) -> None:
        check_deterministic(config, learner.model, group.device, group.ranks.world_size)
        if config.model.compile:
            learner.model.compile()
        self.config, self.group, self.splits, self.learner, self.due = config, group, splits, learner, due
        self.agreement, self.tracker, self.checkpoints = agreement, tracker, checkpoints
        self.callbacks, self.profile = callbacks or NullCallbacks(), profile or NullProfile()
        self.gallery = gallery or NullGallery()
        self.generators = Generators(learner.model, learner.task, learner.optimizer)
        self.timing = Timing(group.device)
        self.parallel = Parallel(learner.model, group, ParallelOptions.of(config), self.generators)
        self.parallel.timing = self.timing
        self.schedule = Schedule.of(config, due.steps_per_epoch)
        self.step_metrics = StepMetrics(group, config, due.steps_per_epoch, self.timing)
        self._gave_up = False
        """Whether the evaluation of this step was given up."""
        self._told: set[str] = set()
        """The reasons of broken evaluation samples that the user was told: once is enough."""

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Microbatch]]:
        """This rank's microbatches of each step in [first_step, last_step)."""
        group, how = self.group, (self.learner.task, self.timing)
        batches = train_batches(self.config, self.splits, group.ranks, group.device, first_step, last_step, *how)
        # One turn more than there are steps: it finds no batch, and so the loader comes to its end.
        for step in range(first_step, last_step + 1):
            self.profile.begin(step + 1)
            if (microbatches := next(batches, None)) is None:
                return
            yield microbatches

    def update(self, state: TrainState, lr: float, losses: Mapping[int, Tensor]) -> tuple[Tensor, bool]:
        """Clips the gradient and steps optimizer and average, or skips the step where `train.non_finite` says so.

        Every rank has the same gradient, so each finds the same norm and the same scaler decision without asking.

        Returns:
            the L2 norm of the gradient before clipping, 0-dim, and whether the update was applied.
        """
        optimizer, scaler, ema = self.learner.optimizer, self.learner.scaler, self.learner.ema
        scaler.unscale_(optimizer)
        norm = clip(self.parallel.parameters, self.config.train)
        applied = self.config.train.non_finite == "stop" or self._is_finite(norm, losses)
        if applied:
            for group in optimizer.param_groups:
                group["lr"] = scaled(lr, group)
            if not type(optimizer).__module__.startswith("torch."):  # torch's own compute each number by itself
                for parameter in self.parallel.parameters:
                    parameter.grad = None if parameter.grad is None else realigned(parameter.grad)
            # Otherwise an optimizer that draws would go on from where the rank's last microbatch left off.
            self.generators.seed(key(self.config.seed, "optimizer", state.step))
            scaler.step(optimizer)
        scaler.update()
        if not applied:
            self._skip(state)
        elif ema is not None:
            ema.update(self.learner.model)
        state.left_out_in_a_row = 0 if applied else state.left_out_in_a_row + 1
        self.timing.lap("optimizer")
        self.profile.end(state.step + 1)
        return norm, applied

    def _is_finite(self, norm: Tensor, losses: Mapping[int, Tensor]) -> bool:
        """Whether losses and gradient are finite on all ranks. All get the same answer, by a sum of one number."""
        bad = ~torch.isfinite(torch.stack([loss.float() for loss in losses.values()])).all()
        if not self.learner.scaler.is_enabled():  # a scaler skips steps whose gradient overflows by itself
            bad |= ~torch.isfinite(norm)
        return int(self.group.all_reduce_host_(bad.to("cpu", torch.int64))) == 0

    def _skip(self, state: TrainState) -> None:
        """Puts model and optimizer back after a step that is skipped.

        The decision is part of the result: it depends on config and samples alone. So a rollback goes to the last
        checkpoint that was due, not to one that a signal asked for. The samples since then are not seen again.

        Raises:
            UserError: (exit 11) after too many in a row, (exit 4) when the checkpoint is not there.
        """
        if state.left_out_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise UserError(
                f"step {state.step + 1}: the loss or gradient is not finite, after {MOST_SKIPPED_IN_A_ROW} such steps "
                f"in a row were skipped. {ADVICE}",
                ExitCode.NON_FINITE,
            )
        self.parallel.restore_buffers()
        step = self.due.rollback_step(state.step)
        if self.config.train.non_finite == "rollback" and step < state.step:
            beat("save")  # reading takes as long
            self.learner.restore(self.checkpoints.load(step, self.group), f"the checkpoint of step {step}")
            beat("step")
            self.tracker.note(f"rolled back to the weights of step {step}")

    def report(self, state: TrainState) -> None:
        """Logs the steps since the last report, and notes in `state` which samples were broken.

        Raises:
            UserError: on every rank, (exit 11) when one of them was not finite and was not skipped, (exit 10) when the
                model's buffers are no function of the samples, (exit 13) when too many samples are broken.
        """
        self.timing.lap("other")
        report = self.step_metrics.flush(state.broken)
        self.parallel.check()
        self.timing.lap("exchange")
        self.tracker.log_samples(report.samples)
        self.tracker.log_steps(report.rows, report.figures, report.times)
        for line in report.skipped:
            self.tracker.note(line)
        for step, one in report.broken:
            self._count_broken(state, step, one)
        if report.diverged is not None:
            raise UserError(report.diverged, ExitCode.NON_FINITE)
        if report.rows and self.due.tell(state.step):
            self.callbacks.call("on_step", state.step, report.rows[-1])

    def _count_broken(self, state: TrainState, step: int, one: Broken) -> None:
        """Counts a broken sample, and tells the user. All ranks count alike, before anything is saved. So any number of
        ranks reaches the limit at the same sample, after any number of stops."""
        assert one.instead is not None
        share, size = self.config.data.max_broken, len(self.splits.train)
        most, state.broken = most_broken(share, size), [*state.broken, one.index]
        instead = sample_name(self.splits.train, one.instead)
        count = len(state.broken)
        self.tracker.note(f"! {one.reason}; {instead} takes its place ({count} broken so far, at most {most} may be)")
        if count > most:
            raise DataError(
                f"step {step}: {count} of the {size:,} training samples cannot be read, and "
                f"data.max_broken={share:g} allows {most}: mend the data, or raise data.max_broken"
            )

    def save(self, state: TrainState) -> None:
        """Saves, if parameters and optimizer are finite. Buffers may hold an infinity on purpose, as an attention mask
        does, so they are not looked at.

        Raises:
            UserError: (exit 11) on every rank, when an update has left numbers that are not finite.
        """
        self.timing.lap("other")
        tensors = list(self.parallel.parameters)
        tensors += [value for entries in self.learner.optimizer.state.values() for value in entries.values()]
        floats = [t.detach() for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
        if not torch.isfinite(get_total_norm(floats, norm_type=math.inf)):
            raise UserError(
                f"step {state.step}: the model or the optimizer holds numbers that are not finite. They were not "
                f"saved; the last checkpoint is from before. {ADVICE}",
                ExitCode.NON_FINITE,
            )
        self.parallel.check()
        beat("save")
        self.tracker.busy("saving")
        self.checkpoints.save(state, lacks_evaluation=self._gave_up)
        beat("step")
        self.timing.lap("save")

    def evaluate(self, state: TrainState) -> Request:
        """Evaluates, and notes the best in `state`. If a rank is asked to stop meanwhile, all ranks give the evaluation
        up. The checkpoint then says so, and a resume begins with the evaluation.

        Returns:
            the request that ended it, the same on every rank; NONE when the evaluation is done.
        """
        self._gave_up = True
        self.timing.lap("other")
        try:
            state.metrics = self.evaluate_split(
                "evaluation", state.step, lambda: self.agreement.is_asked_to_stop, is_last=self._may_be_last(state)
            )
        except EvaluationGivenUp:
            return self.agreement.now()
        self._gave_up = False
        _note_best(self.config, state)
        state.finished = state.step == self.due.total_steps or stops_early(self.config, state)
        if state.finished and state.step < self.due.total_steps:
            since = state.step - state.stale * self.due.evaluate_every
            why = f"no improvement of {self.config.best} since step {since:,} (train.early_stopping)"
            self.tracker.note(f"stopping early at step {state.step:,} of {self.due.total_steps:,}: {why}")
        beat("step")
        self.timing.lap("evaluation")
        return Request.NONE

    def _may_be_last(self, state: TrainState) -> bool:
        """Whether the session may end with the evaluation of this step."""
        stopping = self.config.train.early_stopping
        return state.step >= self.due.last_step or (stopping is not None and state.stale + 1 >= stopping.patience)

    def evaluate_split(
        self, split: str, step: int, gives_up: Callable[[], bool] = lambda: False, *, is_last: bool = True
    ) -> dict[str, float]:
        """Evaluates one split on all ranks together, and logs it as the metrics of `step`. If it `is_last`, the report
        has the pictures of its worst samples for certain."""
        learner, dataset = self.learner, getattr(self.splits, split)
        what = "evaluating" if split == "evaluation" else f"evaluating the {split} split"

        def tell(share: float) -> None:
            self.tracker.busy(f"{what} {100 * share:.0f} %")

        result = evaluate(self.config, learner.evaluated, learner.task, self.group, dataset, gives_up, tell)
        row = {
            **self.step_metrics.position(step),
            "split": split,
            **result.metrics,
            **({"broken_samples": len(result.broken)} if result.broken else {}),
            "per_class": result.per_class,
        }
        beat("evaluate")
        row |= self.gallery.row(split, result.worst, is_last=is_last)
        row |= {} if result.pairs is None else {"pairs": shortened(result.pairs.tolist())}
        if split == "evaluation" and self.group.ranks.is_first:
            if self.config.tracking.texts.count:
                self.tracker.busy("writing texts")
            texts = write_texts(self.config, learner, self.splits, self.group.device, step)
            row |= {"texts": texts} if texts else {}
        self.tracker.log_evaluation(row, result.confusion)
        for one in result.broken:
            if one.reason not in self._told:
                self.tracker.note(f"! {one.reason}; it is left out of the evaluation")
        self._told.update(one.reason for one in result.broken)
        self.callbacks.call("on_evaluation", step, result.metrics, split=split)
        return result.metrics


def _note_best(config: RunConfig, state: TrainState) -> None:
    wanted, stopping = config.best, config.train.early_stopping
    if wanted not in state.metrics:
        names = ", ".join(state.metrics)
        raise UserError(f"eval.best is {wanted}, which the task does not report; it reports {names}")
    value = state.metrics[wanted]
    sign = 1 if config.best_is == "max" else -1

    def improves(on: float | None, margin: float) -> bool:
        """A number that is not finite never improves, and a finite one always improves on it."""
        return math.isfinite(value) and (on is None or not math.isfinite(on) or sign * (value - on) > margin)

    before = state.best_value if state.improved_value is None else state.improved_value
    if improves(state.best_value, 0.0):
        state.best_value, state.best_step = value, state.step
    state.stale += 1
    if improves(before, stopping.min_delta if stopping else 0.0):
        state.improved_value, state.stale = value, 0


def stops_early(config: RunConfig, state: TrainState) -> bool:
    """Whether early stopping ends the training here."""
    stopping = config.train.early_stopping
    return stopping is not None and state.stale >= stopping.patience
