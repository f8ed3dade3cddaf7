"""The next token."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import DataError
from dist_train.tasks.base import Loss, Model, Sums, Task, Totals, counted, refused, unfit
from dist_train.tasks.per_sample import of_tokens


class LanguageModel(Task):
    """Cross-entropy of the scores of the next token.

    Args:
        vocabulary: how many tokens there are, where the data says.
        token_bytes: UTF-8 bytes of each token, where the data says; for bits_per_byte.
        window: T, where the data says that every sample has as many tokens.
        ignore_index: targets of this number count nowhere.
        label_smoothing: share of the target spread evenly over all tokens, in the training loss alone.
    """

    needs_targets = True

    def __init__(
        self,
        *,
        vocabulary: int | None = None,
        token_bytes: Sequence[int] | None = None,
        window: int | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        self._vocabulary, self._ignored, self._label_smoothing = vocabulary, ignore_index, label_smoothing
        if vocabulary is not None and not 0 <= ignore_index < vocabulary:
            self.targets_per_sample = window
        self._bytes = None if token_bytes is None else torch.tensor(token_bytes, dtype=torch.int64)

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Tensor:
        """int64 [m, T], of whatever whole numbers they were.

        Raises:
            UserError: for anything else, and for a token that there is none of.
        """
        if not isinstance(target, Tensor) or target.ndim != 2 or target.is_floating_point() or target.is_complex():
            takes = "language_model takes the numbers of the next tokens, whole numbers: [length]"
            raise refused(target, name_of, takes)
        target = target.to(torch.int64)
        most = self._vocabulary
        lowest, highest = target.aminmax() if target.numel() else (0, 0)
        if lowest >= 0 and (most is None or highest < most):
            return target
        wrong = ((target < 0) | (target >= most if most is not None else False)) & (target != self._ignored)
        if wrong.any():
            row, place = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{name_of(row)}: the target at place {place} is {int(target[row, place])}, and there are the tokens 0 "
                f"to {'…' if most is None else most - 1}"
            )
        return target

    def loss(self, output: Any, target: Tensor) -> Loss:
        """Summed in fp32.

        Args:
            output: [m, T, vocabulary] scores, of any floating dtype; or an object that has them as `logits`.
            target: int64 [m, T].
        """
        flat = self._flat(output, target).float()
        loss = F.cross_entropy(
            flat, target.flatten(), ignore_index=self._ignored, reduction="sum", label_smoothing=self._label_smoothing
        )
        return Loss(loss, (target != self._ignored).sum())

    def statistics(self, output: Any, target: Tensor) -> Sums:
        """Sums for one batch: loss, count, right, and the bytes of the tokens where they are known; and what is shown
        of each sample."""
        flat, tokens = self._flat(output, target).detach().float(), target.flatten()
        valid = tokens != self._ignored
        losses = F.cross_entropy(flat, tokens, ignore_index=self._ignored, reduction="none")
        sums: dict[str, Any] = {
            "loss": losses.double().sum(),
            "count": valid.sum(),
            "right": (valid & (flat.argmax(1) == tokens)).sum(),
            "samples": of_tokens(losses, target != self._ignored, flat, target),
        }
        if self._bytes is not None:
            sums["bytes"] = (self._bytes.to(tokens.device)[torch.where(valid, tokens, 0)] * valid).sum()
        return sums

    def generates(self, model: Model) -> bool:
        return True

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss, in nats a token; perplexity; accuracy; bits_per_byte of the text, where its bytes are known."""
        count = counted(sums)
        loss = sums["loss"].item() / count
        found = {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "accuracy": sums["right"].item() / count,
        }
        if "bytes" in sums:
            found["bits_per_byte"] = sums["loss"].item() / math.log(2) / max(sums["bytes"].item(), 1)
        return found

    def _flat(self, output: Any, target: Tensor) -> Tensor:
        """[m · T, vocabulary]"""
        scores = getattr(output, "logits", output)
        if not isinstance(scores, Tensor) or scores.ndim != 3 or scores.shape[:2] != target.shape:
            takes = f"language_model takes scores of shape [{len(target)}, {target.shape[1]}, vocabulary]"
            raise unfit(takes, scores)
        return scores.flatten(0, 1)
