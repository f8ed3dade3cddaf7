"""A text goes on: the next token from those before it, and again."""

import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError
from dist_train.heartbeat import beat
from dist_train.randomness import uniform
from dist_train.tasks.base import Model, unfit


def generate(model: Model, tokens: Tensor, length: int, *, context: int, temperature: float, key: int) -> Tensor:
    """The tokens that a language model goes on with, int64 [1, length]: those given are not among them.

    Token k is drawn from (key, k) and the model's scores alone, so it is the same in any process. The caller puts the
    model into evaluation mode, and into the precision that it wants.

    Args:
        model: int64 [1, t] -> scores [1, t, vocabulary] of the next token at each place; or an object that has them as
            `logits`.
        tokens: int64 [1, T], with T at least 1, on the model's device.
        context: the most tokens that the model sees at once; it is given the newest.
        temperature: the scores are divided by it. 0 always takes the likeliest token, and of equals the first.
        key: of the draws, as dist_train.randomness.key gives it.

    Raises:
        UserError: (exit 10) when the model gives no such scores, (exit 11) when they are not finite.
    """
    draws = uniform(key, "token", torch.arange(length).numpy())[:, 0]
    with torch.no_grad():
        for place in range(length):
            scores = _next(model(tokens[:, -context:]))
            chosen = _drawn(scores, temperature, float(draws[place])) if temperature else scores.argmax()
            tokens = torch.cat([tokens, chosen.to(tokens).view(1, 1)], 1)
            beat("evaluate")
    return tokens[:, tokens.shape[1] - length :]


def _next(output: object) -> Tensor:
    """float64 [vocabulary] on the CPU: the scores at the last place."""
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.ndim != 3 or len(scores) != 1:
        raise unfit("text needs scores of shape [1, length, vocabulary]", scores)
    found = scores[0, -1].double().cpu()
    if not torch.isfinite(found).any() or found.isnan().any():
        raise UserError("the model's scores of the next token are not finite", ExitCode.NON_FINITE)
    return found


def _drawn(scores: Tensor, temperature: float, draw: float) -> Tensor:
    """The token whose part of [0, 1) has `draw` in it; the parts have the order of the tokens."""
    upto = (scores / temperature).softmax(0).cumsum(0)
    return torch.searchsorted(upto, draw * upto[-1], right=True).clamp(max=len(scores) - 1)
