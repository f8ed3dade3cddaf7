"""Lines of letters, each followed by itself backwards, and GPT-2 of transformers, for configs/huggingface.yaml."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LETTERS, MIDDLE, LENGTH = 26, 26, 8


class Reversed(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Each line is a function of its index alone. What comes before the middle cannot be known, so it is not learned.

    Args:
        split: "train" or "evaluation", given by the system; their lines are different ones.
        size, eval_size: lines of the two splits.
    """

    vocabulary = LETTERS + 1

    def __init__(self, split: str, size: int = 3_000, eval_size: int = 300) -> None:
        self._split_number, self._size = ("train", "evaluation").index(split), size if split == "train" else eval_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """What the model's forward takes by name, int64 [2 · LENGTH + 1] each."""
        letters = np.random.default_rng([self._split_number, index]).integers(0, LETTERS, LENGTH)
        line = torch.from_numpy(np.concatenate([letters, [MIDDLE], letters[::-1]]))
        labels = line.clone()
        labels[: LENGTH + 1] = -100  # counts nowhere
        return {"input_ids": line, "labels": labels}


def gpt2(vocabulary: int, **sizes: Any) -> nn.Module:
    """GPT-2 with new weights: its constructor needs a config object, and a config file has plain values."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=2 * LENGTH + 1, use_cache=False, **sizes))
