"""What a person is shown of the samples of an evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

TOKENS, NUMBERS, SIDE = 200, 16, 96
"""Tokens of a text that are shown, numbers of a sample, and pixels along the sides of a mask."""


class PerSample(NamedTuple):
    """Among an evaluation batch's sums: what is shown of its m samples. Of the whole split the worst are kept,
    `tracking.worst_samples`; of each part, dtype and shape of a sample are the same in all batches.

    Attributes:
        loss: float [m]. NaN is the worst; -inf is for a sample that counts nowhere.
        truth, prediction: what is true and what the model says, where that can be shown: whole numbers [m], a class or
            (beside a text) a token; bool [m, C], the classes that are there; floats [m] or [m, K], numbers; or whole
            numbers [m, H, W], the class of each pixel, -1 for none and -2 for what is not in the image.
        probability: float [m], of the prediction.
        text: whole numbers [m, T], tokens, where a sample is a text: `truth` is the one in the middle, and -1 is none.
    """

    loss: Tensor
    truth: Tensor | None = None
    prediction: Tensor | None = None
    probability: Tensor | None = None
    text: Tensor | None = None


def of_numbers(losses: Tensor, truth: Tensor, prediction: Tensor) -> PerSample:
    """Losses [m], of floats [m, …]: the first 16 numbers of each."""
    true, guess = (numbers.reshape(len(losses), -1)[:, :NUMBERS] for numbers in (truth, prediction))
    return PerSample(loss=losses, truth=true, prediction=guess)


def of_masks(losses: Tensor, valid: Tensor, truth: Tensor, prediction: Tensor) -> PerSample:
    """Of pixels: losses [m · H · W], 0 where one is not valid, the others [m, H, W]. A sample's is the mean over the
    valid ones."""
    counts = valid.flatten(1).sum(1)
    means = losses.view(len(truth), -1).double().sum(1) / counts
    loss = torch.where(counts > 0, means, -torch.inf)
    return PerSample(loss=loss, truth=_small(torch.where(valid, truth, -1)), prediction=_small(prediction))


def of_tokens(losses: Tensor, valid: Tensor, scores: Tensor, tokens: Tensor, text: Tensor | None = None) -> PerSample:
    """Of texts: the mean loss of a token, and the token of the highest loss, with the text around it.

    Args:
        losses: float [m · T].
        valid: bool [m, T]: which tokens count.
        scores: float [m · T, vocabulary].
        tokens: int64 [m, T]: the true ones.
        text: int64 [m, T], where it is not made of these.
    """
    losses, length, counts = losses.view(tokens.shape), tokens.shape[1], valid.sum(1)
    place = torch.where(valid, losses, -1.0).argmax(1, keepdim=True)
    there = scores[place[:, 0] + torch.arange(len(tokens), device=tokens.device) * length].float().softmax(1)
    around = place + torch.arange(-TOKENS // 2, TOKENS // 2, device=tokens.device)
    near = (tokens if text is None else text).gather(1, around.clamp(0, length - 1))
    means = torch.where(valid, losses, 0.0).double().sum(1) / counts
    return PerSample(
        loss=torch.where(counts > 0, means, -torch.inf),
        truth=tokens.gather(1, place)[:, 0],
        prediction=there.argmax(1),
        probability=there.amax(1),
        text=torch.where((around >= 0) & (around < length), near, -1),
    )


def _small(masks: Tensor) -> Tensor:
    """int16 [m, 96, 96] of [m, H, W], the nearest pixels; -2 beside a mask that is narrower, or smaller."""
    longest = max(SIDE, *masks.shape[1:])
    for axis, side in enumerate(masks.shape[1:], 1):
        count = max(side * SIDE // longest, 1)
        masks = masks.index_select(axis, torch.arange(count, device=masks.device) * side // count)
    return pad(masks.to(torch.int16), (0, SIDE - masks.shape[2], 0, SIDE - masks.shape[1]), value=-2)
