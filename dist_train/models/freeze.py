"""Parameters that are not trained, by their names."""

from collections.abc import Callable, Sequence

from torch import nn

from dist_train.config.patterns import check_patterns, matches
from dist_train.errors import UserError


def freeze(model: nn.Module, patterns: Sequence[str], note: Callable[[str], None]) -> None:
    """Takes the matching parameters out of the training. A BatchNorm whose running statistics match as well keeps them:
    it is in evaluation mode for good.

    Args:
        note: is called with one line on how much is frozen.

    Raises:
        UserError: when a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    check_patterns("model.freeze", patterns, parameters)
    frozen = [name for name in parameters if matches(name, patterns)]
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("model.freeze: all parameters are frozen, and nothing is left to train")
    still = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and matches(f"{path}.running_mean", patterns)
    ]
    for module in still:
        module.eval()
    count = sum(parameters[name].numel() for name in frozen)
    norms = f"; {len(still)} norms keep their statistics" if still else ""
    note(f"model.freeze: {len(frozen)} of {len(parameters)} parameters, {count:,} numbers, stay as they are{norms}")
