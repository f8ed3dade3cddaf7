"""`train.sanity_check`: what the first evaluation, the first save or a resume would find out, before the first step.

Replicas of model and optimizer are built, tried on a few samples, and thrown away, so that the training itself begins
as it would have begun without. Every rank does all of it with the same samples.

A witness takes the place of a list of what models may do: the same samples with the same draws must give the same loss,
gradients and buffers whatever was computed in between, in training and in evaluation; and a step must come out the same
in a model that has been saved and loaded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from dist_train.checkpoint.buffers import header
from dist_train.checkpoint.model_state import same
from dist_train.checkpoint.resume import Resumed
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import RunConfig
from dist_train.control.heartbeat import beat
from dist_train.data.batch import Microbatch
from dist_train.data.datasets import Splits
from dist_train.data.fetch import each_array
from dist_train.data.loader import sample_batches
from dist_train.evaluate import Evaluating
from dist_train.learner import Learner, autocast, build
from dist_train.model_buffers import BufferSet
from dist_train.models import deterministic
from dist_train.parallel import unused_parameters
from dist_train.process_group import ProcessGroup
from dist_train.randomness import Generators, key

_MOST = 8
"""Samples of a microbatch: enough for BatchNorm, and soon done."""
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


def _check(config: RunConfig, splits: Splits, group: ProcessGroup) -> None:
    beat("init")
    device = group.device
    trial = Trial(config, build(config, splits, device), device)
    assert isinstance(config.batch.microbatches, int)
    deterministic.check(config, trial.learner.model, device, group.ranks.world_size, config.batch.microbatches)
    samples = Samples.of(config, splits, trial.learner, device)
    if config.exact:
        samples.check_again(Samples.of(config, splits, trial.learner, device))
        trial.check_repeats(samples)
    trial.check_evaluation(samples)
    beat("init")
    saved = trial.step(samples.first)
    if config.exact:
        expected = trial.step(samples.other)
    del trial  # two at once could need more memory than the training
    fresh = Trial(config, build(config, splits, device), device)
    fresh.load(saved)
    if config.exact:
        _check_same(expected, fresh.step(samples.other))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Two training microbatches and an evaluation batch, of a few samples each."""

    name: str
    first: Microbatch
    other: Microbatch
    evaluated: Microbatch

    @classmethod
    def of(cls, config: RunConfig, splits: Splits, learner: Learner, device: torch.device) -> "Samples":
        def ask(step: int) -> tuple[list[Microbatch], Microbatch]:
            return sample_batches(config, splits, learner.task, device, step=step, numbers=(0,), most=_MOST)

        (first,), evaluated = ask(0)
        (other,), _ = ask(1)
        return cls(name=config.data.name, first=first, other=other, evaluated=evaluated)

    def check_again(self, again: "Samples") -> None:
        """Raises UserError when the data set gives other samples when it is asked again."""
        for name in ("first", "evaluated"):
            one, two = getattr(self, name), getattr(again, name)
            for part in ("inputs", "targets"):
                if not same(getattr(one, part), getattr(two, part)):
                    raise UserError(
                        f"data {self.name}: the {part} of samples {', '.join(map(str, one.indices.tolist()))} are "
                        "others when they are asked for again, so they depend on more than their index: draw from the "
                        "global generators of Python, NumPy or torch, which are set for each sample, and keep no state"
                    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one forward and backward have left, by name."""

    numbers: Mapping[str, Tensor]
    attributes: Mapping[str, Any]


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

    # ------------------------------------------------------------ training

    def check_repeats(self, samples: Samples) -> None:
        """Raises UserError when a microbatch comes out otherwise after another one, or changes what it must not."""
        before, kept = self._guarded(), self._buffers.noted()
        counters = [buffer for buffer in self._buffers.buffers if buffer.is_counter]
        seen, counted = [], []
        for batch in (samples.first, samples.other, samples.first):
            self._buffers.put_back(kept)
            self._forward_and_backward(batch)
            seen.append(self._seen())
            counted.append([buffer.found().clone() for buffer in counters])
            self._check_guarded(before, "forward")
        self._buffers.put_back(kept)
        self._check_alike(seen[0], seen[2], "in training")
        for counter, one, other in zip(counters, counted[0], counted[1], strict=True):
            if not torch.equal(one, other):
                raise counter.unlike()

    def _forward_and_backward(self, batch: Microbatch) -> None:
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._generators.seed(key(self._config.seed, "dropout", batch.step, batch.number))
        with self._autocast():
            output = self._model(_copied(batch.inputs))  # forward may change them
            loss, _ = self.learner.task.loss(output, _copied(batch.targets))
        self._loss = loss.detach()
        self.learner.scaler.scale(loss / len(batch.indices)).backward()
        self._check_gradients()

    def _check_gradients(self) -> None:
        unused = [name for name, parameter in self._parameters.items() if parameter.grad is None]
        if unused:
            raise UserError(unused_parameters(unused))
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise UserError(
                    f"the gradient of {name} is sparse, which is not added up in one order: set sparse=False"
                )

    def _seen(self) -> _Seen:
        gradients = {f"the gradient of {n}": p.grad.clone() for n, p in self._parameters.items() if p.grad is not None}
        buffers = {f"the buffers of {dtype}": values for dtype, values in self._buffers.found().items()}
        return _Seen(numbers={"the loss": self._loss, **gradients, **buffers}, attributes=dict(self._attributes()))

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """The numbers and tensors that modules and the task keep as plain attributes."""
        owners = [(f"{path}." if path else "", module) for path, module in self._model.named_modules()]
        for path, owner in (*owners, (f"{self._config.task.name}.", self.learner.task)):
            for name, value in vars(owner).items():
                if name not in _MODULES_OWN and isinstance(value, bool | int | float | Tensor):
                    yield f"{path}{name}", value.detach().clone() if isinstance(value, Tensor) else value

    def _check_alike(self, one: _Seen, two: _Seen, when: str) -> None:
        for name, value in one.attributes.items():
            if not same(value, two.attributes.get(name)):
                raise UserError(
                    f"model {self._name}: the attribute {name} is another one after each forward {when}, and neither "
                    "other ranks nor checkpoints know of it: make it a buffer"
                )
        for name, value in one.numbers.items():
            if not same(value, two.numbers[name]):
                raise UserError(
                    f"model {self._name}: {name} comes out otherwise when the same samples are computed again {when}, "
                    f"{_OTHER_STATE}"
                )

    def _guarded(self) -> Mapping[str, Any]:
        """What a forward leaves alone: the weights, what is trained, and the modes."""
        parameters = dict(self._model.named_parameters())
        return {
            **{f"the parameter {name}": parameter.detach().clone() for name, parameter in parameters.items()},
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
        """Raises UserError when `eval.best` is not among the figures, or a batch comes out otherwise after another."""
        task, batch = self.learner.task, samples.evaluated
        before = self._guarded()
        with Evaluating(self._model, self._config.seed, self._generators) as evaluating:
            sums, attributes = [], []
            for inputs in (batch.inputs, samples.first.inputs, batch.inputs):
                evaluating.begin(0)
                with self._autocast():
                    output = self._model(_copied(inputs))
                attributes.append(dict(self._attributes()))
                if inputs is batch.inputs:
                    sums.append(task.statistics(output, _copied(batch.targets)))
        self._check_guarded(before, "an evaluation")
        if self._config.exact:
            one, two = (_Seen(numbers=s, attributes=a) for s, a in zip(sums, attributes[::2], strict=True))
            self._check_alike(one, two, "in evaluation")
        total = {name: value.to("cpu", _summed(value.dtype)) for name, value in sums[0].items()}
        try:
            metrics = task.metrics(total)
        except UserError as error:
            if error.code == ExitCode.DATA:  # these few samples may have no valid target, and others have
                return
            raise
        task.per_class(total), task.confusion(total)
        if (best := self._config.eval.best) not in metrics:
            raise UserError(f"eval.best is {best}, which the task does not report; it reports {', '.join(metrics)}")

    # ------------------------------------------------------------ steps, and what is saved of them

    def step(self, batch: Microbatch) -> Snapshot:
        """Makes an optimizer step; returns a copy of what a checkpoint would hold then.

        Raises:
            UserError: when something of it cannot be saved.
        """
        learner, train = self.learner, self._config.train
        self._forward_and_backward(batch)
        learner.scaler.unscale_(learner.optimizer)
        if train.clip_norm is not None:
            clip_grad_norm_(list(self._parameters.values()), train.clip_norm)
        self._generators.seed(key(self._config.seed, "optimizer", batch.step))
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        self._buffers.put_back(self._buffers.found())
        if learner.ema is not None:
            learner.ema.update(self._model)
        return _written(learner.uncopied(TrainState(step=1)))

    def load(self, saved: Snapshot) -> None:
        """Raises UserError when what was saved cannot be loaded, or is not what was saved any more then."""
        try:
            self.learner.restore(Resumed(path=Path("a checkpoint"), snapshot=saved, world_size=1))
        except UserError as error:
            raise UserError(f"model {self._name}: no checkpoint of it could be loaded again: {error}") from None
        if self._config.exact:
            _check_same(saved, _written(self.learner.uncopied(TrainState(step=1))))


def _written(snapshot: Snapshot) -> Snapshot:
    """A copy as it would come back from disk.

    Raises:
        UserError: (exit 14) when a checkpoint cannot hold it.
    """
    for tensors in snapshot.tensor_files().values():
        header(tensors)
    snapshot.other_files()
    return snapshot.copied()


def _check_same(expected: Snapshot, found: Snapshot) -> None:
    for file, tensors in expected.tensor_files().items():
        there = found.tensor_files()[file]
        for name in {**tensors, **there}:
            if name not in there or name not in tensors or not same(tensors[name], there[name]):
                raise UserError(
                    f"after a resume the training would go on otherwise: {name} is another one, {_OTHER_STATE}"
                )
    if expected.other != found.other:
        name = next(name for name in expected.other if expected.other[name] != found.other.get(name))
        raise UserError(
            f"after a resume the training would go on otherwise: what is saved as {name} does not come back"
        )


def _copied(tree: Any) -> Any:
    clone: Callable[[Any], Any] = torch.clone
    return each_array(clone, tree)


def _summed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else torch.int64


_MODULES_OWN = set(vars(nn.Module()))
