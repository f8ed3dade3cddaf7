"""`train.sanity_check`: finds before the first step what the first evaluation, save or resume would find.

Replicas of model and optimizer are built, tried on a few samples, and thrown away, so that the training itself begins
as it would without them. Every rank does all of it with the same samples.

There is no list of what models may do. Instead, the same samples with the same draws must give the same loss, gradients
and buffers whatever was computed in between, in training and in evaluation; and a step must give the same result in a
model that has been saved and loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.buffers import safetensors_header
from dist_train.checkpoint.model_state import same
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.config.schema import RunConfig
from dist_train.data.batch import Microbatch
from dist_train.data.datasets import Splits
from dist_train.data.loaded import each_array
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import both_ways, evaluating
from dist_train.heartbeat import beat
from dist_train.learner import autocast, build_learner
from dist_train.models.deterministic import check_deterministic
from dist_train.optim.clip import clip
from dist_train.parallel.buffers import BufferSet
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.unused import check_all_have_gradients, with_all
from dist_train.randomness import Generators, key
from dist_train.samples import Samples, draw_samples
from dist_train.sums import as_row_table
from dist_train.tasks.base import Rows, Sums, Totals
from dist_train.tasks.per_sample import PerSample
from dist_train.texts import write_texts
from dist_train.worst import WorstSamples

_LARGEST = 4 * 2**30
"""Bytes of a state up to which a resume is tried: every rank has a copy of it in memory then."""
_OTHER_STATE = (
    "so it depends on more than its weights, buffers, samples and keyed draws: keep state in buffers, and draw from "
    "the global generators of torch, NumPy or Python"
)
_ATTRIBUTE = "the attribute {} is another one after each forward"
_UNKNOWN = "and neither other ranks nor checkpoints know of it: make it a buffer"
_NUMBER = "{} comes out otherwise when the same samples are computed again"
_TOO_OFTEN = (
    "so as often as a rank happens to have microbatches: what is not trained by the optimizer belongs into a buffer, "
    "and modes are set before the training"
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
            raise UserError(str(error)) from None
        raise
    except Exception as error:
        error.add_note("This is the check before the first step, on a few samples; train.sanity_check=false skips it")
        raise


def _check(config: RunConfig, splits: Splits, group: ProcessGroup) -> None:
    beat("init")
    trial = Trial(config, splits, group.device)
    check_deterministic(config, trial.learner.model, group.device, group.ranks.world_size)
    samples = draw_samples(config, splits, trial.learner.task, group.device)
    trial.warm_up(samples)
    if config.exact:
        trial.check_repeats(samples)
    trial.check_evaluation(samples.evaluated)
    write_texts(config, trial.learner, splits, group.device, step=0, length=1)
    beat("init")
    trial.step(samples.first)
    if trial.size() > _LARGEST:
        return
    saved = trial.state().copied()
    if config.exact:
        trial.step(samples.other)
        expected = trial.state().digests()
    del trial  # two at once could need more memory than the training
    fresh = Trial(config, splits, group.device)
    fresh.load(saved)
    if config.exact:
        check_resumes(saved.digests(), fresh.state().digests())
        del saved
        fresh.step(samples.other)
        check_resumes(expected, fresh.state().digests())


class Trial:
    """A replica that is tried."""

    def __init__(self, config: RunConfig, splits: Splits, device: torch.device) -> None:
        self._config, self.learner = config, build_learner(config, splits, device)
        self._model = self.learner.model
        self._device = device
        self._generators = Generators(self._model, self.learner.task, self.learner.optimizer)
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
        guarded, kept = self._guarded(), self._buffers.values()
        counters = [buffer for buffer in self._buffers.buffers if buffer.is_counter]

        def compute(batch: Microbatch) -> list[Tensor]:
            """What the counters are afterwards."""
            self._buffers.restore(kept)
            self._forward_and_backward(batch)
            self._check_guarded(guarded, "forward")
            return [counter.current().clone() for counter in counters]

        first = compute(samples.first)
        numbers, attributes = self._numbers(), self._attributes()
        other = compute(samples.other)
        compute(samples.first)
        self._check(attributes, self._attributes(), f"{_ATTRIBUTE} in training, {_UNKNOWN}")
        self._check(numbers, self._numbers(), f"{_NUMBER} in training, {_OTHER_STATE}")
        self._buffers.restore(kept)
        for counter, one, two in zip(counters, first, other, strict=True):
            if not torch.equal(one, two):
                raise counter.unlike()

    def _forward(self, batch: Microbatch) -> Tensor:
        """The loss of a microbatch, with the draws of its place."""
        self._generators.seed(key(self._config.seed, "dropout", batch.step, batch.number))
        with autocast(self._config, self._device):
            return self.learner.task.step(self._model, _copied(batch)).total  # forward may change it

    def _forward_and_backward(self, batch: Microbatch) -> None:
        self.learner.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(batch)
        self._loss = loss.detach()
        if self._config.distributed.unused_parameters == "allow":
            loss = with_all(loss, list(self._parameters.values()))
        self.learner.scaler.scale(loss / len(batch.indices)).backward()
        check_all_have_gradients(self._parameters.items())
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise UserError(
                    f"the gradient of {name} is sparse, which is not added up in one order: set sparse=False"
                )

    def _numbers(self) -> dict[str, Any]:
        """Copies of what the last forward and backward have left, by name."""
        numbers: dict[str, Any] = {"the loss": self._loss}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                numbers[f"the gradient of {name}"] = parameter.grad.clone()
        for buffer in self._buffers.buffers:
            numbers.setdefault(f"the buffers of {buffer.tensor.dtype}", []).append(buffer.after_forward().clone())
        return numbers

    def _attributes(self) -> dict[str, Any]:
        """The numbers and tensors that modules and the task keep as plain attributes."""
        owners: list[tuple[str, Any]] = [(f"{path}." if path else "", m) for path, m in self._model.named_modules()]
        return {
            f"{path}{name}": value.detach().clone() if isinstance(value, Tensor) else value
            for path, owner in (*owners, (f"{self._config.task.name}.", self.learner.task))
            for name, value in vars(owner).items()
            if name not in _MODULES_OWN and (isinstance(value, bool | int | float) or _is_plain(value))
        }

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
        self._check({**dict.fromkeys(now), **before}, now, f"{{}} changes in {what}, {_TOO_OFTEN}")

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any], message: str) -> None:
        """Raises UserError for the first thing that is not what it was before; `message` has a place for its name."""
        name = next((name for name, value in before.items() if not same(value, now.get(name))), None)
        if name is not None:
            raise UserError(f"model {self._config.model.name}: {message.format(name)}")

    # ------------------------------------------------------------ evaluation

    def check_evaluation(self, batch: Microbatch) -> None:
        """Raises UserError when `eval.best` is no metric of the task, or a batch gives two different results."""
        with evaluating(self._model, self._config.seed, self._generators) as begin:

            def evaluated(batch: Microbatch) -> Sums:
                begin(0)
                with autocast(self._config, self._device):
                    model = both_ways(self._model) if self._config.eval.flips else self._model
                    return self.learner.task.evaluate(model, _copied(batch))

            guarded = self._guarded()
            sums = evaluated(batch)
            WorstSamples(1).add(batch.indices, sums)
            if self._config.exact:
                attributes = self._attributes()
                evaluated(_each(_turned, batch))
                again = evaluated(batch)
                self._check_guarded(guarded, "an evaluation")
                self._check(attributes, self._attributes(), f"{_ATTRIBUTE} in evaluation, {_UNKNOWN}")
                self._check(sums, again, f"{_NUMBER} in evaluation, {_OTHER_STATE}")
        self._check_metrics(
            {
                name: as_row_table(value.values)
                if isinstance(value, Rows)
                else value.to("cpu", torch.float64 if value.is_floating_point() else torch.int64)
                for name, value in sums.items()
                if not isinstance(value, PerSample)
            }
        )

    def _check_metrics(self, sums: Totals) -> None:
        task = self.learner.task
        try:
            metrics = task.metrics(sums)
        except UserError as error:
            if error.code == ExitCode.DATA:  # these few samples may have no valid target, and others have
                return
            raise
        task.per_class(sums), task.confusion(sums)
        if (best := self._config.best) not in metrics:
            raise UserError(f"eval.best is {best}, which the task does not report; it reports {', '.join(metrics)}")

    # ------------------------------------------------------------ steps, and what is saved of them

    def step(self, batch: Microbatch) -> None:
        """Makes an optimizer step."""
        learner = self.learner
        self._forward_and_backward(batch)
        learner.scaler.unscale_(learner.optimizer)
        clip(list(self._parameters.values()), self._config.train)
        self._generators.seed(key(self._config.seed, "optimizer", batch.step))
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        self._buffers.restore(self._buffers.forward_values())
        if learner.ema is not None:
            learner.ema.update(self._model)

    def size(self) -> int:
        """Bytes of what a checkpoint would hold. Raises UserError when a checkpoint cannot hold it."""
        self.state().other_files()
        files = self.state().tensor_files().values()
        return sum(len(safetensors_header(file)) + sum(tensor.nbytes for tensor in file.values()) for file in files)

    def state(self) -> Snapshot:
        """What a checkpoint would hold."""
        return self.learner.state_tensors(TrainState(step=1))

    def load(self, saved: Snapshot) -> None:
        """Raises UserError when what was saved cannot be loaded."""
        try:
            self.learner.restore(saved, "a checkpoint")
        except UserError as error:
            message = f"model {self._config.model.name}: no checkpoint of it could be loaded again: {error}"
            raise UserError(message) from None


def check_resumes(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
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


def _copied(batch: Microbatch) -> Microbatch:
    return _each(lambda tensor: tensor.clone(), batch)


def _each(function: Callable[[Tensor], Tensor], batch: Microbatch) -> Microbatch:
    """With every tensor replaced by `function` of it."""
    return replace(batch, inputs=each_array(function, batch.inputs), targets=each_array(function, batch.targets))


_MODULES_OWN = set(vars(nn.Module()))
