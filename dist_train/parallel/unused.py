"""Parameters that take no part in a loss: a layer that is dropped, an expert that nobody was sent to, another head."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.errors import UserCodeError


def with_all(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The same loss. Its backward gives a gradient of exact zeros to parameters that the loss does not depend on, so
    that sums over microbatches and ranks are what they would be without these."""
    used = _reached(loss)
    unused = [parameter for parameter in parameters if id(parameter) not in used]
    return _WithZeros.apply(loss, *unused) if unused else loss  # type: ignore[no-untyped-call]


class _WithZeros(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, loss: Tensor, *unused: Tensor) -> Tensor:
        context.save_for_backward(*unused)
        return loss.view_as(loss)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return gradient, *map(torch.zeros_like, context.saved_tensors)


def _reached(loss: Tensor) -> set[int]:
    """ids of the parameters that the loss depends on. The whole graph is searched, since a task may call the model
    several times and return anything: DistributedDataParallel's own search looks at the outputs of the last call."""
    found: set[int] = set()
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        ahead += [following for following, _ in node.next_functions]
    return found


def check_all_have_gradients(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raises UserError (exit 10) naming the parameters without a gradient. DDP reports them one step later, and names
    nothing (pytorch/pytorch#43259)."""
    unused = [name for name, parameter in named if parameter.grad is None]
    if unused:
        raise UserCodeError(
            f"the loss does not depend on {len(unused)} parameters: {', '.join(unused[:5])}"
            f"{', …' if len(unused) > 5 else ''}; use them, freeze them with requires_grad_(False), or allow that they "
            "sometimes take no part: distributed.unused_parameters=allow"
        )
