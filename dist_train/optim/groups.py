"""Which parameters an optimizer steps with which learning rate and weight decay."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from dist_train.config.patterns import check_patterns, matches
from dist_train.config.schema import ParameterGroup
from dist_train.errors import UserError

SCALE = "lr_scale"
"""Of a group, where it has one: its learning rate is the schedule's times this. timm calls it so too."""
_NUMBERED = re.compile(r"(block|layer|stage|inception|Mixed)_?\d+[a-z]?$")
"""Names of blocks that are no plain number: denselayer3, encoder_layer_0, inception4a."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scaled(lr: float, group: Mapping[str, Any]) -> float:
    """The learning rate of a group where the schedule's is `lr`; the very same where the group has no scale."""
    return lr * group[SCALE] if SCALE in group else lr


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float = 1.0,
    peak: float = 1.0,
    rules: Sequence[ParameterGroup] = (),
    layers: Mapping[str, float] | None = None,
    takes: Callable[[str], bool] = lambda name: True,
) -> list[dict[str, Any]]:
    """The groups of the trainable parameters, each in the model's order, none empty: first those that decay, then those
    that don't. Without rates of their own there are two at most, of `params` and `weight_decay` alone.

    Args:
        lr: of these parameters, where no rule gives another.
        peak: the highest rate of the schedule, which SCALE is relative to.
        rules: the section's `groups`.
        layers: a factor of the rate for each parameter's name.
        takes: whether the parameter of this name is for this optimizer.
    """
    still = _without_decay(model)
    cells: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not takes(name):
            continue
        rule = next((rule for rule in rules if matches(name, rule.match)), None)
        own_lr = lr if rule is None or rule.lr is None else rule.lr
        decay = weight_decay if rule is None or rule.weight_decay is None else rule.weight_decay
        scale = own_lr / peak * (1.0 if layers is None else layers[name])
        is_still = id(parameter) in still
        decay = 0.0 if is_still else decay
        group: dict[str, Any] = {"params": [], "weight_decay": decay}
        if rules or layers is not None or lr != peak:
            group |= {"lr": peak * scale, SCALE: scale}
        cells.setdefault((is_still, scale, decay), group)["params"].append(parameter)
    return sorted(cells.values(), key=lambda group: id(group["params"][0]) in still)


def check_rules(model: nn.Module, rules: Sequence[ParameterGroup]) -> None:
    """Raises UserError for a pattern that matches nothing that is trained."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for number, rule in enumerate(rules):
        check_patterns(f"optimizer.groups.{number}.match", rule.match, names)


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """decay ** (layers above) for each parameter's name, as BEiT and timm have it.

    In the model's order, each numbered block is a layer. What comes before the first is one below it, what comes after
    the last is one above it, and what stands between two belongs to the one before it.

    Raises:
        UserError: when no block has a number.
    """
    modules = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]
    blocks = [_block(name, modules) for name in names]
    numbers = {block: number for number, block in enumerate(dict.fromkeys(filter(None, blocks)), 1)}
    if not numbers:
        raise UserError(
            "optimizer.layer_decay needs numbered blocks, such as layers.0 and layers.1; the model has none"
        )
    last = max(place for place, block in enumerate(blocks) if block)
    layers, layer = [], 0
    for place, block in enumerate(blocks):
        layer = len(numbers) + 1 if place > last else numbers.get(block or "", layer)
        layers.append(layer)
    return {name: decay ** (max(layers) - layer) for name, layer in zip(names, layers, strict=True)}


def _block(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The block that a parameter is in: `layer1.0`, `encoder.layers.encoder_layer_3`, `stages.1.blocks.0`. Numbers
    inside of a block count no more, and a module without parts is a block only where nothing around it is."""
    parts, block = name.split(".")[:-1], None
    for end in range(1, len(parts) + 1):
        path, has_parts = ".".join(parts[:end]), any(modules[".".join(parts[:end])].children())
        is_numbered = parts[end - 1].isdigit() or (has_parts and _NUMBERED.search(parts[end - 1]))
        if is_numbered and (block is None or has_parts):
            block = path
        elif block is not None and parts[end - 1] != "blocks":
            break
    return block


def _without_decay(model: nn.Module) -> set[int]:
    """The ids of norms' parameters, of biases, and of what has one dimension."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1 or name == "bias" or isinstance(module, _NORMS)
    }
