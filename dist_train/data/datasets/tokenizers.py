"""From text to tokens, and back: bytes, characters, or a file of Hugging Face's library tokenizers."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import DataError, UserError


class Tokenizer(ABC):
    """Numbers for parts of a text.

    Attributes:
        vocabulary: how many different tokens there are.
        token_bytes: bytes of UTF-8 that each of them stands for; None where that is not known.
        identity: another one where any token stands for something else.
    """

    vocabulary: int
    identity: str
    token_bytes: tuple[int, ...] | None = None

    @abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """Tokens, integers [n], of a piece of UTF-8. Raises UnicodeDecodeError, or UserError for what has no token."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; what is no whole character becomes U+FFFD."""


class Bytes(Tokenizer):
    """A token for each byte; any file is text."""

    vocabulary = 256
    identity = "bytes"
    token_bytes = (1,) * 256

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(map(int, tokens)).decode(errors="replace")


class Chars(Tokenizer):
    """A token for each character of `characters`, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(characters))
        self.vocabulary = len(self.characters)
        self.identity = _digest(self.characters)
        self.token_bytes = tuple(len(one.encode()) for one in self.characters)
        self._codes = _codes(self.characters)

    def encode(self, text: bytes) -> np.ndarray:
        codes = _codes(text.decode())
        found = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(found, self.vocabulary - 1)] == codes
        if not known.all():
            raise DataError(f"there is no token for the character {chr(codes[~known][0])!r}")
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.characters[int(token)] for token in tokens)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _codes(text: str) -> np.ndarray:
    """The code points, uint32 [n]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class FromFile(Tokenizer):
    """What a tokenizer.json says, without the tokens that it would put around a text.

    Raises:
        UserError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UserError("data.tokenizer is a file: to read it pip install 'dist-train[text]'") from None
        try:
            content = path.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library's errors are plain Exceptions
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise DataError(
                f"data.tokenizer {path} is no file of the library tokenizers ({reason}); bytes and chars need none"
            ) from None
        self.identity = _digest(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        tokens: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(tokens.values()) + 1
        self.token_bytes = _bytes_of(tokens, json.loads(content)) if "ByteLevel" in content else None

    def encode(self, text: bytes) -> np.ndarray:
        return np.array(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)


def _bytes_of(tokens: dict[str, int], content: dict[str, Any]) -> tuple[int, ...]:
    """Bytes by token of a byte-level tokenizer, which writes each byte as one character; the added ones are plain."""
    added = {entry["content"] for entry in content.get("added_tokens") or []}
    found = [0] * (max(tokens.values()) + 1)
    for token, number in tokens.items():
        found[number] = len(token.encode()) if token in added else len(token)
    return tuple(found)
