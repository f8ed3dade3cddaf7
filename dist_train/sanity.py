"""`train.sanity_check`: finds before the first step what the first evaluation, save or resume would find.

Replicas of model and optimizer are built, tried on a few samples, and thrown away, so that the training itself begins
as it would without them. Every rank does all of it with the same samples.

There is no list of what models may do. Instead, the same samples with the same draws must give the same loss, gradients
and buffers whatever was computed in between, in training and in evaluation; and a step must give the same result in a
model that has been saved and loaded.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from dist_train.checkpoint.buffers import safetensors_header
from dist_train.checkpoint.model_state import same
from dist_train.checkpoint.resume import Resumed
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.config.schema import RunConfig
from dist_train.data.batch import Microbatch
from dist_train.data.datasets import Splits
from dist_train.data.fetch import each_array
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import Evaluating
from dist_train.heartbeat import beat
from dist_train.learner import Learner, autocast, build_learner
from dist_train.models.deterministic import check_deterministic
from dist_train.parallel.buffers import BufferSet
from dist_train.parallel.data_parallel import check_all_have_gradients
from dist_train.parallel.process_group import ProcessGroup
from dist_train.randomness import Generators, key
from dist_train.samples import Samples
from dist_train.tasks.base import Sums

_LARGEST = 4 * 2**30
"""Bytes of a state up to which a resume is tried: every rank has a copy of it in memory then."""
_OTHER_STATE = (
    "so it depends on more than its weights, buffers, samples and keyed draws: keep state in buffers, and draw from "
    "the global generators of torch, NumPy or Python"
)


def check_sanity(config: RunConfig, splits: Splits, group: ProcessGroup) -> None:
    """Tries a training of `config`, whose number of microbatches is settled; all ranks do it alike.

    Raises:
        UserError: (exit 13) when the data is not what the task learns from, (exit 2) when anything else would end the
            training later, or would make its result depend on more than config, seed and samples.
    """
    try:
        _check(config, splits, group)
    except UserError as error:
        if error.code in (ExitCode.USER_CODE, ExitCode.CHECKPOINT_IO):  # nothing has run yet, and nothing is written
            raise UserError(str(error), ExitCode.CONFIG) from None
        raise
    except Exception as error:
        error.add_note("This is the check before the first step, on a few samples; train.sanity_check=false skips it")
        raise


def _check(config: RunConfig, splits: Splits, group: ProcessGroup) -> None:
    beat("init")
    device = group.device
    trial = Trial(config, build_learner(config, splits, device), device)
    assert isinstance(config.batch.microbatches, int)
    check_deterministic(config, trial.learner.model, device, group.ranks.world_size, config.batch.microbatches)
    samples = Samples.of(config, splits, trial.learner.task, device)
    trial.warm_up(samples)
    if config.exact:
        trial.check_repeats(samples)
    trial.check_evaluation(samples)
    beat("init")
    trial.step(samples.first)
    if trial.size() > _LARGEST:
        return
    saved = trial.saved()
    if config.exact:
        trial.step(samples.other)
        expected = trial.saved().digests()
    del trial  # two at once could need more memory than the training
    fresh = Trial(config, build_learner(config, splits, device), device)
    fresh.load(saved)
    if config.exact:
        del saved
        fresh.step(samples.other)
        check_same(expected, fresh.saved().digests())


class Trial:
    """A replica that is tried."""

    def __init__(self, config: RunConfig, learner: Learner, device: torch.device) -> None:
        self._config, self.learner = config, learner
        self._model = learner.model
        self._name = config.model.name
        self._autocast = autocast(config, device)
        self._generators = Generators(self._model, learner.task, learner.optimizer)
        self._buffers = BufferSet(self._model)
        self._parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self._loss = torch.zeros(())
        """Of the last forward and backward."""

    # ------------------------------------------------------------ training

    def warm_up(self, samples: Samples) -> None:
        """Runs the first forwards, so that what a model makes there and keeps, such as a cache, is there afterwards."""
        kept = self._buffers.values()
        with torch.no_grad():
            for batch in (samples.first, samples.other):
                self._forward(batch)
                self._buffers.forward_values()
                self._buffers.restore(kept)

    def check_repeats(self, samples: Samples) -> None:
        """Raises UserError when a microbatch gives another result after another one, or changes what it must not."""
        before, kept = self._guarded(), self._buffers.values()
        counters = [buffer for buffer in self._buffers.buffers if buffer.is_counter]
        counted: list[list[Tensor]] = []
        seen: dict[str, Tensor] = {}
        attributes: dict[str, Any] = {}
        for batch in (samples.first, samples.other, samples.first):
            self._buffers.restore(kept)
            self._forward_and_backward(batch)
            self._check_guarded(before, "forward")
            counted.append([buffer.current().clone() for buffer in counters])
            if not seen:
                seen = {name: tensor.detach().clone() for name, tensor in self._numbers()}
                attributes = self._attributes()
        self._check_attributes(attributes, "in training")
        for name, tensor in self._numbers():
            self._check_number(name, seen[name], tensor, "in training")
        self._buffers.restore(kept)
        for counter, one, other in zip(counters, counted[0], counted[1], strict=True):
            if not torch.equal(one, other):
                raise counter.unlike()

    def _forward(self, batch: Microbatch) -> Tensor:
        """The loss of a microbatch, with the draws of its place."""
        self._generators.seed(key(self._config.seed, "dropout", batch.step, batch.number))
        with self._autocast():
            output = self._model(_copied(batch.inputs))  # forward may change them
            loss, _ = self.learner.task.loss(output, _copied(batch.targets))
        return loss

    def _forward_and_backward(self, batch: Microbatch) -> None:
        self.learner.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(batch)
        self._loss = loss.detach()
        self.learner.scaler.scale(loss / len(batch.indices)).backward()
        self._check_gradients()

    def _check_gradients(self) -> None:
        check_all_have_gradients(self._parameters.items())
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise UserError(
                    f"the gradient of {name} is sparse, which is not added up in one order: set sparse=False"
                )

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        """What the last forward and backward have left, by name."""
        yield "the loss", self._loss
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                yield f"the gradient of {name}", parameter.grad
        for dtype, values in self._buffers.forward_values().items():
            yield f"the buffers of {dtype}", values

    def _attributes(self) -> dict[str, Any]:
        """The numbers and tensors that modules and the task keep as plain attributes."""
        owners: list[tuple[str, Any]] = [(f"{path}." if path else "", m) for path, m in self._model.named_modules()]
        return {
            f"{path}{name}": value.detach().clone() if isinstance(value, Tensor) else value
            for path, owner in (*owners, (f"{self._config.task.name}.", self.learner.task))
            for name, value in vars(owner).items()
            if name not in _MODULES_OWN and (isinstance(value, bool | int | float) or _is_plain(value))
        }

    def _check_attributes(self, before: Mapping[str, Any], when: str) -> None:
        now = self._attributes()
        for name, value in before.items():
            if not same(value, now.get(name)):
                raise UserError(
                    f"model {self._name}: the attribute {name} is another one after each forward {when}, and neither "
                    "other ranks nor checkpoints know of it: make it a buffer"
                )

    def _check_number(self, name: str, one: Tensor, two: Tensor, when: str) -> None:
        if not same(one, two):
            raise UserError(
                f"model {self._name}: {name} comes out otherwise when the same samples are computed again {when}, "
                f"{_OTHER_STATE}"
            )

    def _guarded(self) -> Mapping[str, Any]:
        """What a forward must not change: the weights, by their version counters, what is trained, and the modes."""
        parameters = dict(self._model.named_parameters())
        return {
            **{f"the parameter {name}": (p._version, p.data_ptr()) for name, p in parameters.items()},
            **{f"requires_grad of {name}": parameter.requires_grad for name, parameter in parameters.items()},
            **{f"the mode of {name or 'the model'}": module.training for name, module in self._model.named_modules()},
        }

    def _check_guarded(self, before: Mapping[str, Any], what: str) -> None:
        now = self._guarded()
        changed = next((n for n in {**before, **now} if n not in now or not same(before.get(n), now[n])), None)
        if changed is not None:
            raise UserError(
                f"model {self._name}: {changed} changes in {what}, so as often as a rank happens to have microbatches: "
                "what is not trained by the optimizer belongs into a buffer, and modes are set before the training"
            )

    # ------------------------------------------------------------ evaluation

    def check_evaluation(self, samples: Samples) -> None:
        """Raises UserError when `eval.best` is no metric of the task, or a batch gives two different results."""
        batch = samples.evaluated
        with Evaluating(self._model, self._config.seed, self._generators) as evaluating:
            before = self._guarded()
            sums = self._statistics(evaluating, batch.inputs, batch.targets)
            if self._config.exact:
                attributes = self._attributes()
                self._statistics(evaluating, *each_array(_turned, (batch.inputs, batch.targets)))
                again = self._statistics(evaluating, batch.inputs, batch.targets)
                self._check_guarded(before, "an evaluation")
                self._check_attributes(attributes, "in evaluation")
                for name, value in sums.items():
                    self._check_number(name, value, again[name], "in evaluation")
        self._check_metrics(
            {n: v.to("cpu", torch.float64 if v.is_floating_point() else torch.int64) for n, v in sums.items()}
        )

    def _statistics(self, evaluating: Evaluating, inputs: Any, targets: Any) -> Sums:
        evaluating.begin(0)
        with self._autocast():
            output = self._model(_copied(inputs))
        return self.learner.task.statistics(output, _copied(targets))

    def _check_metrics(self, sums: Sums) -> None:
        task = self.learner.task
        try:
            metrics = task.metrics(sums)
        except UserError as error:
            if error.code == ExitCode.DATA:  # these few samples may have no valid target, and others have
                return
            raise
        task.per_class(sums), task.confusion(sums)
        if (best := self._config.eval.best) not in metrics:
            raise UserError(f"eval.best is {best}, which the task does not report; it reports {', '.join(metrics)}")

    # ------------------------------------------------------------ steps, and what is saved of them

    def step(self, batch: Microbatch) -> None:
        """Makes an optimizer step."""
        learner, train = self.learner, self._config.train
        self._forward_and_backward(batch)
        learner.scaler.unscale_(learner.optimizer)
        if train.clip_norm is not None:
            clip_grad_norm_(list(self._parameters.values()), train.clip_norm)
        self._generators.seed(key(self._config.seed, "optimizer", batch.step))
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        self._buffers.restore(self._buffers.forward_values())
        if learner.ema is not None:
            learner.ema.update(self._model)

    def size(self) -> int:
        """Bytes of what a checkpoint would hold. Raises UserError when a checkpoint cannot hold it."""
        snapshot = self.learner.state_tensors(TrainState(step=1))
        snapshot.other_files()
        return sum(
            len(safetensors_header(t)) + sum(v.nbytes for v in t.values()) for t in snapshot.tensor_files().values()
        )

    def saved(self) -> Snapshot:
        """A copy of what a checkpoint would hold."""
        return self.learner.state_tensors(TrainState(step=1)).copied()

    def load(self, saved: Snapshot) -> None:
        """Raises UserError when what was saved cannot be loaded, or is not what was saved any more then."""
        try:
            self.learner.restore(Resumed(path=Path("a checkpoint"), snapshot=saved, world_size=1))
        except UserError as error:
            raise UserError(f"model {self._name}: no checkpoint of it could be loaded again: {error}") from None
        if self._config.exact:
            check_same(saved.digests(), self.learner.state_tensors(TrainState(step=1)).digests())


def check_same(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises UserError for the first thing that is not what it was to be."""
    name = next((n for n in {**expected, **found} if expected.get(n) != found.get(n)), None)
    if name is not None:
        raise UserError(f"after a resume the training would go on otherwise: {name} is another one, {_OTHER_STATE}")


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with numbers that lie in memory one after another."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested and not value.is_meta


def _turned(array: Any) -> Any:
    """The samples in the other order."""
    return array.flip(0) if isinstance(array, Tensor) and array.dim() else array


def _copied(tree: Any) -> Any:
    return each_array(lambda tensor: tensor.clone(), tree)


_MODULES_OWN = set(vars(nn.Module()))
