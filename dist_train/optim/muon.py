"""torch.optim.Muon for the matrices of hidden layers beside torch.optim.AdamW for everything else, as one optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

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


def hidden_matrices(model: nn.Module, but: Sequence[str]) -> set[str]:
    """The names of the trainable parameters that Muon takes: modules' weights of [out, in], but for embeddings, what is
    tied to one, what is named as a classifier is, and the last such weight, which makes the output.

    Args:
        but: patterns of others that it is not to take.

    Raises:
        UserError: when a pattern matches none.
    """
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    looked_up = {id(p) for module in model.modules() if isinstance(module, embeddings) for p in module.parameters()}
    weights = [p for module in model.modules() for p in module.parameters(recurse=False) if p.ndim == 2]
    hidden = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and name.endswith("weight")
        if id(parameter) not in looked_up and parameter is not weights[-1] and not HEAD.match(name)
    }
    check_patterns("optimizer.adamw.match", but, hidden)
    return {name for name in hidden if not matches(name, but)}
