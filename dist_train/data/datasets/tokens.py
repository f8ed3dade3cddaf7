"""Flat files of tokens, as nanoGPT's prepare.py writes them: train.bin and val.bin."""

from pathlib import Path
from typing import Any

from dist_train.config.schema import Tokens
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.tokenizers import FromFile
from dist_train.data.datasets.windows import TokenWindows, token_file
from dist_train.errors import DataError


def build(config: Tokens, local_rank0_first: Any) -> Splits:
    dtype, vocabulary = {"uint16": "<u2", "uint32": "<u4"}[config.dtype], config.vocabulary
    tokenizer = FromFile(Path(config.tokenizer)) if config.tokenizer else None
    if tokenizer is not None and tokenizer.vocabulary > vocabulary:
        said = f"{config.tokenizer} has {tokenizer.vocabulary:,} tokens, and data.vocabulary is {vocabulary:,}"
        raise DataError(said)

    def windows(name: str, stride: int) -> TokenWindows:
        tokens = token_file(Path(config.root) / name, dtype, vocabulary)
        return TokenWindows(tokens, config.context, stride, vocabulary, tokenizer)

    lengths = tokenizer.token_bytes if tokenizer else None
    return Splits(
        train=windows(config.train, config.stride or config.context),
        evaluation=windows(config.eval, config.context),
        test=windows(config.test, config.context) if config.test else None,
        shape=(config.context,),
        vocabulary=vocabulary,
        tokenizer=tokenizer.identity if tokenizer else None,
        token_bytes=lengths and lengths + (0,) * (vocabulary - len(lengths)),
    )
