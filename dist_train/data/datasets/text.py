"""Files of text as windows of tokens. A text is tokenised once, by one rank of a node, into a folder of the cache:

    <cache>/<digest of tokenizer and texts>/{train.bin, eval.bin, test.bin, tokens.json}

with the tokens of each split as uint16, or uint32 where there are more than 65,536. A folder is complete when it has
its name. Another content has another digest, so nothing there is ever changed, and all of it may be deleted.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dist_train.config.schema import Text
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.tokenizers import Bytes, Chars, FromFile, Tokenizer
from dist_train.data.datasets.windows import TokenFile, TokenWindows
from dist_train.errors import DataError
from dist_train.heartbeat import beat
from dist_train.rundir.files import remove_tree, sync_file, sync_folder, write_synced
from dist_train.rundir.reading import read_json
from dist_train.rundir.strict_json import to_json

_PIECE = 1 << 20
"""Bytes that are tokenised together, up to the end of the line. Part of the result, as a tokenizer joins no tokens
across the end of a piece."""
_VERSION = 1
_INDEX = "tokens.json"
_KINDS = "data.tokenizer is bytes, chars or a file: "
T = TypeVar("T")
_Files = dict[str, list[Path]]
"""The files of each split."""


def build(config: Text, local_rank0_first: Callable[[], AbstractContextManager[None]]) -> Splits:
    files = {split: _files(config, name) for split, name in _places(config).items()}
    digest = _digest(config, files)
    folder = _cache(config) / digest
    with local_rank0_first():
        if not folder.is_dir():
            _tokenise(config, files, digest, folder)
    found = _found(folder)
    tokenizer = tokenizer_of(config, found["characters"])
    parts = {split: (split, 0, count) for split, count in found["tokens"].items()}
    if "eval" not in parts:
        count = found["tokens"]["train"]
        kept = count - min(max(round(count * config.eval_fraction), 1), count)
        parts |= {"train": ("train", 0, kept), "eval": ("train", kept, count - kept)}

    def windows(split: str, stride: int) -> TokenWindows:
        file, first, count = parts[split]
        tokens = TokenFile(
            path=folder / f"{file}.bin",
            source=f"the {split} split of {config.root}",
            dtype=found["dtype"],
            first=first,
            count=count,
            content=digest[:12],
        )
        return TokenWindows(tokens, config.context, stride, tokenizer.vocabulary, tokenizer)

    return Splits(
        train=windows("train", config.stride or config.context),
        evaluation=windows("eval", config.context),
        test=windows("test", config.context) if "test" in parts else None,
        shape=(config.context,),
        vocabulary=tokenizer.vocabulary,
        token_bytes=tokenizer.token_bytes,
        tokenizer=tokenizer.identity,
        characters=tokenizer.characters if isinstance(tokenizer, Chars) else None,
    )


def _places(config: Text) -> dict[str, str]:
    named = {"train": config.train or ".", "eval": config.eval, "test": config.test}
    return {split: name for split, name in named.items() if name is not None}


def _files(config: Text, name: str) -> list[Path]:
    place = Path(config.root) / name
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place.absolute()} is neither a file nor a folder of text")
    found = sorted(path for path in place.rglob(config.pattern) if path.is_file() and path.name[0] != ".")
    if not found:
        raise DataError(f"{place.absolute()} has no file {config.pattern} (data.pattern) in it")
    return found


def _digest(config: Text, files: _Files) -> str:
    """Of everything that the tokens depend on: the texts, where each ends, and the tokenizer."""
    found = hashlib.sha256(f"{_VERSION} {_PIECE} ".encode())
    known = config.tokenizer in ("bytes", "chars")
    found.update(config.tokenizer.encode() if known else _of_file(Path(config.tokenizer), _KINDS))
    for split, paths in files.items():
        found.update(f"{split} {len(paths)} ".encode() + b"".join(map(_of_file, paths)))
    return found.hexdigest()


def _of_file(path: Path, said: str = "") -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{said}cannot read {path.absolute()}: {error.strerror}") from error


def _cache(config: Text) -> Path:
    if config.cache_folder is not None:
        return Path(config.cache_folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dist-train" / "tokens"


def tokenizer_of(config: Text, characters: str) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Bytes()
    return Chars(characters) if config.tokenizer == "chars" else FromFile(Path(config.tokenizer))


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocabulary <= 1 << 16 else "<u4"


def _tokenise(config: Text, files: _Files, digest: str, folder: Path) -> None:
    """Makes the folder of a content, which has its name once it is complete."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        temporary.chmod(0o755)  # others who train on the same text may read it
        characters = _alphabet(files) if config.tokenizer == "chars" else ""
        tokenizer = tokenizer_of(config, characters)
        counts = {split: _write(temporary / f"{split}.bin", paths, tokenizer) for split, paths in files.items()}
        index = {"dtype": _dtype(tokenizer), "tokens": counts, "characters": characters}
        write_synced(temporary / _INDEX, to_json(index).encode())
        if _digest(config, files) != digest:
            raise DataError(f"the text under {config.root} has changed while it was read: try again")
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another node was faster
                raise
    except OSError as error:
        said = f"cannot keep the tokens of {config.root} in {folder.parent} ({error.strerror})"
        raise DataError(f"{said}: set data.cache_folder to a folder that can be written") from error
    finally:
        if temporary is not None:
            remove_tree(temporary)


def _write(target: Path, paths: list[Path], tokenizer: Tokenizer) -> int:
    """Writes the tokens of texts one behind the other; returns how many there are."""
    count = 0
    with target.open("xb") as file:
        for path in paths:
            for tokens in _each_piece(path, tokenizer.encode):
                beat("init")
                file.write(tokens.astype(_dtype(tokenizer)).tobytes())
                count += len(tokens)
    sync_file(target)
    return count


def _alphabet(files: _Files) -> str:
    """Every character of all splits: one that only the evaluation has must be no error at the end of a training."""
    found: set[str] = set()
    for path in chain(*files.values()):
        for characters in _each_piece(path, lambda piece: set(piece.decode())):
            found |= characters
    return "".join(sorted(found))


def _each_piece(path: Path, function: Callable[[bytes], T]) -> Iterator[T]:
    """`function` of each piece of a file. Raises UserError, naming the byte, for what is no UTF-8."""
    place = 0
    try:
        with path.open("rb") as file:
            while piece := b"".join(file.readlines(_PIECE)):
                yield function(piece)
                place += len(piece)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 (byte {place + error.start:,}): convert it, or set data.tokenizer to bytes"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path.absolute()}: {error.strerror}") from error


def _found(folder: Path) -> dict[str, Any]:
    """What a folder of the cache says of itself. Raises UserError when it is damaged."""
    try:
        found = read_json(folder / _INDEX)
        size = np.dtype(found["dtype"]).itemsize
        for split, count in found["tokens"].items():
            if (folder / f"{split}.bin").stat().st_size != count * size:
                raise ValueError(f"{split}.bin has another length than it was written with")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"the tokens in {folder} are damaged ({error}): remove it, and the text is tokenised anew"
        raise DataError(said) from error
