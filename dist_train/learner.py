"""What learns: the model and everything that changes with it, as one thing to build, save and restore."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dist_train import models, tasks
from dist_train.checkpoint.model_state import Tensors, constants_of, load_model, others_of, tensors_of
from dist_train.checkpoint.optimizer_state import OptimizerState
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.config.schema import RunConfig
from dist_train.data.datasets import Splits
from dist_train.errors import ResumeError, UserError
from dist_train.optim.ema import Ema
from dist_train.optim.optimizer import build_optimizer
from dist_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One rank's replica: the same bits on every rank between two steps.

    Attributes:
        constants: the buffers outside of the state_dict as they were when the model was new.
        optimizer_state: what survives a restart of the optimizer.
        data: what a checkpoint says of the data: shape of an input, names of the classes, numbers of a target.
        notes: lines for the user on how the model was built.
    """

    model: nn.Module
    constants: Tensors
    task: Task
    optimizer: torch.optim.Optimizer
    optimizer_state: OptimizerState
    scaler: torch.amp.GradScaler
    ema: Ema | None
    data: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated: the averaged ones, where there are some."""
        return self.ema.module if self.ema else self.model

    def state_tensors(self, state: TrainState) -> Snapshot:
        """Everything that survives a restart: the tensors themselves, which change with the next step."""
        return Snapshot(
            model=tensors_of(self.model, self.constants),
            optimizer=self.optimizer_state.tensors(),
            ema=self.ema.state(self.constants) if self.ema else None,
            other={
                "progress": asdict(state),
                "model": others_of(self.model),
                "optimizer": self.optimizer_state.values(),
                "optimizer_counters": self.optimizer_state.counters(),
                "scaler": self.scaler.state_dict(),
                "data": self.data,
            },
        )

    def restore(self, snapshot: Snapshot, source: object) -> TrainState:
        """Loads what `state_tensors` returned.

        Args:
            source: what it was read from, for a message.

        Raises:
            UserError: (exit 4) when the model is not the one that was saved.
        """
        other = snapshot.other
        try:
            load_model(self.model, snapshot.model, other.get("model"))
            self.optimizer_state.load(snapshot.optimizer, other["optimizer"], other.get("optimizer_counters"))
            if self.ema is not None and snapshot.ema is not None:
                self.ema.load(snapshot.ema, other.get("model"))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ResumeError(f"{source} does not fit this model: {reason}") from None
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(other["scaler"])
        return snapshot.state


def build_learner(config: RunConfig, splits: Splits, device: torch.device, *, starts: bool = True) -> Learner:
    """A new one, the same on every rank: its weights are drawn from the seed.

    Args:
        starts: whether start weights are read; False where a checkpoint is loaded over them.

    Raises:
        UserError: when the parts do not fit each other, or the device.
    """
    if config.model.sync_batchnorm and device.type == "cpu":
        raise UserError("model.sync_batchnorm is for GPUs; torch has none for a CPU: leave it out")
    notes: list[str] = []
    new = models.build(config.model, seed=config.seed, starts=starts, note=notes.append, **splits.offered)
    model = new.to(device)
    skips_steps = config.train.precision == "fp16"
    optimizer = build_optimizer(config.optimizer, model, skips_steps=skips_steps, note=notes.append)
    return Learner(
        model=model,
        constants=constants_of(model),
        task=tasks.build(config.task, splits.classes, **splits.of_tokens),
        optimizer=optimizer,
        optimizer_state=OptimizerState(optimizer, model),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None,
        data=splits.saved,
        notes=tuple(notes),
    )


def autocast(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward in the precision that the config asks for."""
    if config.train.precision == "fp32":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    return torch.autocast(device.type, dtype=dtype)
