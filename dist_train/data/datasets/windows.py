"""Windows of tokens out of flat files of them.

A batch is read by position, not through a map: the page cache is shared by all processes in the same way, and where the
storage goes away a read raises an error, which `loader.retry` waits for, while a map ends the process with SIGBUS.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dist_train.data.datasets.base import Crop, ImageSet, no_crop
from dist_train.data.datasets.tokenizers import Tokenizer
from dist_train.errors import DataError, UserError

_BLOCK, _BLOCKS = 1 << 18, 64
"""Bytes of a block, and how many of them are looked at in a large file."""
_IN_MEMORY = 1 << 30
"""Bytes of tokens up to which they are taken to stay in the page cache."""


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """The tokens [first, first + count) of a flat file of them.

    Attributes:
        dtype: of a token in the file, little-endian: `<u2` or `<u4`.
        content: a digest of what is in it.
        source: what the tokens are of, for messages.
    """

    path: Path
    source: str
    dtype: str
    first: int
    count: int
    content: str


def token_file(path: Path, dtype: str, vocabulary: int) -> TokenFile:
    """All tokens of a file. Of a large one, blocks that are spread over it are looked at.

    Raises:
        UserError: when it cannot be read, or holds a token that there is not.
    """
    found = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for place in sorted({max(size - _BLOCK, 0) * k // (_BLOCKS - 1) // 4 * 4 for k in range(_BLOCKS)}):
                file.seek(place)
                block = file.read(_BLOCK)
                found.update(block)
                _check(np.frombuffer(block, dtype, len(block) // np.dtype(dtype).itemsize), vocabulary, path)
    except OSError as error:
        raise DataError(f"cannot read the tokens {path.absolute()}: {error.strerror}") from error
    count, rest = divmod(size, np.dtype(dtype).itemsize)
    if rest:
        said = f"{path} has {size:,} bytes, which are no whole number of tokens of {np.dtype(dtype).itemsize} bytes"
        raise DataError(f"{said}: set data.dtype to what it was written with")
    found.update(b"%d" % size)
    return TokenFile(path=path, source=str(path), dtype=dtype, first=0, count=count, content=found.hexdigest()[:12])


def _check(tokens: np.ndarray, vocabulary: int, where: object) -> None:
    if tokens.size and (largest := int(tokens.max())) >= vocabulary:
        raise DataError(
            f"{where} holds the token {largest:,}, and there are the tokens 0 to {vocabulary - 1:,} (data.vocabulary)"
        )


class TokenWindows(ImageSet):
    """Window k has the `context` tokens from k × `stride` on, and as its target those from k × `stride` + 1 on; there
    are as many windows as are whole.

    Raises:
        UserError: when there is none.
    """

    by_row = is_whole = threads = True

    def __init__(
        self, tokens: TokenFile, context: int, stride: int, vocabulary: int, tokenizer: Tokenizer | None
    ) -> None:
        if tokens.count <= context:
            raise DataError(
                f"{tokens.source} has {tokens.count:,} tokens, and one window takes {context + 1:,}: set "
                f"data.context to {max(tokens.count - 1, 1)} or less, or bring more text"
            )
        self._tokens, self._stride, self._vocabulary, self._tokenizer = tokens, stride, vocabulary, tokenizer
        self.shape = (context,)
        self.in_memory = tokens.count * np.dtype(tokens.dtype).itemsize <= _IN_MEMORY

    def __len__(self) -> int:
        return (self._tokens.count - 1 - self.shape[0]) // self._stride + 1

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [m, context] each."""
        no_crop(crop)
        found = np.empty((len(indices), self.shape[0] + 1), dtype=self._tokens.dtype)
        starts = (self._tokens.first + indices * self._stride) * found.itemsize
        try:
            descriptor = os.open(self._tokens.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                whole = [os.preadv(descriptor, [found[k]], start) for k, start in enumerate(starts.tolist())]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"cannot read the tokens {self._tokens.path}: {error.strerror}") from error
        if min(whole) < found[0].nbytes:
            raise DataError(f"{self._tokens.path} has become shorter since the run began")
        _check(found, self._vocabulary, self._tokens.path)
        tokens = torch.from_numpy(found)
        return tokens[:, :-1].to(torch.int64), tokens[:, 1:].to(torch.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens.

        Raises:
            UserError: without a tokenizer.
        """
        if self._tokenizer is None:
            raise UserError("nothing says which text these tokens are: data.tokenizer names a file that does")
        return self._tokenizer.decode(tokens)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Raises UserError without a tokenizer, or where there is no token for it."""
        if self._tokenizer is None:
            raise UserError("nothing says which tokens a text has: data.tokenizer names a file that does")
        return self._tokenizer.encode(text.encode()).tolist()

    def fingerprint(self) -> str:
        return f"{self._tokens.content} from {self._tokens.first}"
