"""A decoder-only transformer, as nanoGPT has it: GPT-2 (Radford et al., Language Models are Unsupervised Multitask
Learners, 2019) without biases.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.config.schema import Gpt


def build(config: Gpt, shape: tuple[int, ...], vocabulary: int) -> nn.Module:
    return GPT(config, shape[0], vocabulary)


class GPT(nn.Module):
    """int64 [m, T] -> scores [m, T, vocabulary] of the next token at each place, for any T up to `context`.

    The output layer has the weights of the token embedding (Press and Wolf, 2016).
    """

    def __init__(self, config: Gpt, context: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # what adds to the residual stream is scaled by how many do (GPT-2, section 2.3)
                adds = name.endswith(("attention.output.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if adds else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            hidden = block(hidden)
        return F.linear(self.norm(hidden), self.tokens.weight)


class Block(nn.Module):
    """Attention, then two layers with GELU (Hendrycks and Gimpel, 2016), each behind a norm and beside a way around it:
    [m, T, width] -> the same (Xiong et al., On Layer Normalization in the Transformer Architecture, 2020)."""

    def __init__(self, config: Gpt) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.width, bias=False) for _ in range(2))
        self.attention = Attention(config)
        self.wide = nn.Linear(config.width, 4 * config.width, bias=False)
        self.narrow = nn.Linear(4 * config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(hidden)))))


class Attention(nn.Module):
    """Causal attention of several heads (Vaswani et al., Attention Is All You Need, 2017): [m, T, width] -> same."""

    def __init__(self, config: Gpt) -> None:
        super().__init__()
        self.heads = config.heads
        self.inputs = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        split = self.inputs(hidden).unflatten(2, (3, self.heads, -1))  # [m, T, 3, heads, width of a head]
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropped = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped, is_causal=True)
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
