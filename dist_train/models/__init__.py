"""Built-in models by name, and the user's own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dist_train.config.imports import construct
from dist_train.config.problems import printable
from dist_train.config.schema import CustomModel, Gpt, Mlp, ModelConfig, TorchvisionModel
from dist_train.errors import UserCodeError, UserError
from dist_train.models import cnn, gpt, mlp, resnet_cifar, torchvision
from dist_train.models.freeze import freeze
from dist_train.models.start_weights import load_start_weights
from dist_train.parallel.buffers import settle_buffers
from dist_train.randomness import key, seeded

BUILDERS: dict[str, Callable[[Any, tuple[int, ...], int], nn.Module]] = {
    "mlp": mlp.build,
    "cnn": cnn.build,
    "resnet_cifar": resnet_cifar.build,
    "gpt": gpt.build,
}
"""name -> (its section of the config, shape of one input without the batch, number of classes, or of tokens) ->
module."""


def fetch(config: ModelConfig, local_rank0_first: Callable[[], AbstractContextManager[None]]) -> None:
    """Downloads the pretrained weights that `build` is going to read: one rank of each node, where they are not there.

    Raises:
        UserError: (exit 13) when that is not possible.
    """
    if isinstance(config, TorchvisionModel) and config.pretrained:
        with local_rank0_first():
            torchvision.pretrained(config.name).fetch()


def can_start(config: ModelConfig) -> bool:
    """Whether nothing has to be downloaded to build the model with its start weights."""
    return not (isinstance(config, TorchvisionModel) and config.pretrained) or (
        torchvision.pretrained(config.name).path.exists()
    )


def build(
    config: ModelConfig,
    *,
    shape: tuple[int, ...] | None,
    classes: int | None,
    seed: int,
    outputs: int | None = None,
    vocabulary: int | None = None,
    starts: bool = True,
    note: Callable[[str], None] = lambda line: None,
) -> nn.Module:
    """The model in fp32 on the CPU, with the same weights on every rank: they are drawn from (seed, "init").

    A model of the user's is called with its args, and with `shape`, `classes`, `outputs` and `vocabulary` if its
    signature has parameters of these names and the args don't give them. torch.compile and DDP come later.

    Args:
        config: the section `model`.
        shape: of one input, (C, H, W) for images; None where the data doesn't say.
        classes: how many; None where the data doesn't say.
        seed: of the run.
        outputs: how many numbers a target has; None where it is none. Ours have so many in place of classes.
        vocabulary: how many tokens; None where the data has none.
        starts: whether the start weights are read; those of a checkpoint take their place where it is False.
        note: is called with lines for the user: what was loaded, and what is frozen.

    Raises:
        UserError: when it cannot be built so, the start weights don't fit, or a pattern matches nothing.
    """
    with seeded(key(seed, "init")):
        if isinstance(config, CustomModel):
            model = _custom(config, shape=shape, classes=classes, outputs=outputs, vocabulary=vocabulary)
        else:
            kind, count = ("classes", outputs if classes is None else classes)
            kind, count = ("vocabulary", vocabulary) if isinstance(config, Gpt) else (kind, count)
            model = _ours(config, shape, kind, count)
    _check_parameters(model)
    settle_buffers(model)
    if any(type(module).train is not nn.Module.train for module in model.modules()):
        model.train()  # as every loop does; it may freeze parts. Else the constructor's modes hold.
    if starts:
        _start(config, model, note)
    if config.freeze:
        freeze(model, config.freeze, note)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.is_channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _start(config: ModelConfig, model: nn.Module, note: Callable[[str], None]) -> None:
    if config.start_weights is not None:
        path, what = Path(config.start_weights), config.start_weights
    elif isinstance(config, TorchvisionModel) and config.pretrained:
        file = torchvision.pretrained(config.name)
        path, what = file.path, file.name
    else:
        return
    ours = not isinstance(config, CustomModel)
    load_start_weights(model, path, what, reinit=config.reinit, ours=ours, note=note)


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UserCodeError(
                f"the parameter {name} has no shape yet, as a lazy module leaves it until its first forward: give the "
                "module its sizes, or run a forward in the constructor"
            )
        if any(size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
            raise UserCodeError(
                f"the parameter {name} is expanded, so that several of its numbers share one place in memory and "
                "cannot be trained one by one: clone it, or expand it in forward"
            )


def _ours(config: Any, shape: tuple[int, ...] | None, kind: str, count: int | None) -> nn.Module:
    """Raises UserError, also where it is larger than any memory.

    Args:
        kind: what there are `count` of, as the data set's attribute is called.
    """
    if shape is None or count is None:
        unknown = [name for name, value in (("shape", shape), (kind, count)) if value is None]
        raise UserError(
            f"model: {config.name} needs the data's {' and '.join(unknown)}; give the data set such an attribute"
        )
    if not isinstance(config, Gpt | Mlp) and len(shape) != 3:
        raise UserError(
            f"model: {config.name} takes images (channels, height, width), the data's shape is {list(shape)}"
        )
    builder = torchvision.build if isinstance(config, TorchvisionModel) else BUILDERS[config.name]
    try:
        return builder(config, shape, count)
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise UserError(f"model: {config.name} cannot be built: {reason}") from None


def _custom(config: CustomModel, **known: Any) -> nn.Module:
    model = construct(config, "model", offered={name: value for name, value in known.items() if value is not None})
    if not isinstance(model, nn.Module):
        raise UserCodeError(f"model {config.name} gave a {type(model).__name__}, no torch.nn.Module")
    return model
