"""What learns: the model and everything that changes with it, as one thing to build, save and put back."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dist_train import models, optim, tasks
from dist_train.checkpoint.resume import Resumed
from dist_train.checkpoint.state import Snapshot, TrainState, load_optimizer, optimizer_tensors, progress
from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import RunConfig
from dist_train.data.datasets import Splits
from dist_train.ema import Ema
from dist_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One rank's replica; the same bits on every rank between two steps.

    Attributes:
        shape: of one input, where the data says it.
        classes: their names, where the data has classes.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    shape: tuple[int, ...] | None
    classes: tuple[str, ...] | None

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated: the averaged ones, where there are some."""
        return self.ema.module if self.ema else self.model

    def capture(self, state: TrainState) -> Snapshot:
        """A copy of everything on the CPU."""
        return self.uncopied(state).copied()

    def uncopied(self, state: TrainState) -> Snapshot:
        """Everything that survives a restart: the tensors themselves, which change with the next step."""
        tensors, values = optimizer_tensors(self.optimizer, self.model)
        return Snapshot(
            model=self.model.state_dict(),
            optimizer=tensors,
            ema=self.ema.state() if self.ema else None,
            other={
                "progress": progress(state),
                "optimizer": values,
                "scaler": self.scaler.state_dict(),
                "data": {"shape": self.shape, "classes": self.classes},
            },
        )

    def restore(self, resumed: Resumed) -> TrainState:
        """Puts back what `capture` took.

        Raises:
            UserError: (exit 4) when the model is not the one that was saved.
        """
        snapshot = resumed.snapshot
        try:
            self.model.load_state_dict(snapshot.model)
            load_optimizer(self.optimizer, self.model, snapshot.optimizer, snapshot.other["optimizer"])
            if self.ema is not None and snapshot.ema is not None:
                self.ema.load(snapshot.ema)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{resumed.path} does not fit this model: {reason}", ExitCode.CANNOT_RESUME) from None
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(snapshot.other["scaler"])
        return resumed.state


def build(config: RunConfig, splits: Splits, device: torch.device) -> Learner:
    """A new one, the same on every rank: its weights are drawn from the seed.

    Raises:
        UserError: when the parts do not fit each other, or the device.
    """
    if config.model.sync_batchnorm and device.type == "cpu":
        raise UserError("model.sync_batchnorm is for GPUs; torch has none for a CPU: leave it out")
    classes = len(splits.classes) if splits.classes else None
    model = models.build(config.model, shape=splits.shape, classes=classes, seed=config.seed).to(device)
    return Learner(
        model=model,
        task=tasks.build(config.task, splits.classes),
        optimizer=optim.build(config.optimizer, model),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None,
        shape=splits.shape,
        classes=splits.classes,
    )


def autocast(config: RunConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a forward in the precision that the config asks for."""
    if config.train.precision == "fp32":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    return partial(torch.autocast, device.type, dtype=dtype)
