"""torch.optim.Muon for the matrices of hidden layers beside torch.optim.AdamW for everything else, as one optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config.patterns import HEAD, check_patterns, matches


class Together(torch.optim.Optimizer):
    """Several of torch's optimizers as one. They share its groups and its state, so that whatever sets a learning rate,
    saves, loads or clears gradients sees a single one.

    Args:
        parts: each with parameters of its own.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:  # load_state_dict ends here, with other groups and state
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        begin = 0
        for part in self._parts:
            end = begin + len(part.param_groups)
            part.param_groups, part.state, begin = self.param_groups[begin:end], self.state, end

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps each part; there is no closure in this house."""
        assert closure is None
        for part in self._parts:
            part.step()


class FilterMuon(torch.optim.Muon):
    """torch.optim.Muon for convolutions' filters too, [out, in, …], each as a matrix [out, in × …] (Jordan et al.,
    2024); torch's own refuses them where it is built."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        plain = torch.optim.Muon([torch.zeros(1, 1)], **options)  # checks the options, and knows the other defaults
        torch.optim.Optimizer.__init__(self, groups, plain.defaults)

    def _init_group(self, group: Any, params: Any, grads: Any, muon_momentum_bufs: Any) -> bool:
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                params.append(_matrix(parameter.detach()))
                grads.append(_matrix(parameter.grad))
                muon_momentum_bufs.append(_matrix(state["momentum_buffer"]))
        return False


def _matrix(filters: Tensor) -> Tensor:
    """A view; of filters in the layout NHWC, the columns are in the order of the memory."""
    if not filters.is_contiguous():
        filters = filters.movedim(1, -1)
    return filters.view(len(filters), -1)


def hidden_matrices(model: nn.Module, but: Sequence[str], filters: bool = False) -> set[str]:
    """The names of the trainable parameters that Muon takes: modules' weights of [out, in], but for embeddings, what is
    tied to one, what is named as a classifier is, and the last such weight, which makes the output.

    Args:
        but: patterns of others that it is not to take.
        filters: whether it takes weights of convolutions, [out, in, …], too.

    Raises:
        UserError: when a pattern matches none.
    """
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    looked_up = {id(p) for module in model.modules() if isinstance(module, embeddings) for p in module.parameters()}
    weights = [p for module in model.modules() for p in module.parameters(recurse=False) if p.ndim == 2]
    last = weights[-1] if weights else None
    hidden = {
        name
        for name, parameter in model.named_parameters()
        if (parameter.ndim == 2 or (filters and parameter.ndim > 2))
        if parameter.requires_grad and name.endswith("weight")
        if id(parameter) not in looked_up and parameter is not last and not HEAD.match(name)
    }
    check_patterns("optimizer.adamw.match", but, hidden)
    return {name for name in hidden if not matches(name, but)}
