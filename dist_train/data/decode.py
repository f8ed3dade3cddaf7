"""Image files to uint8 tensors.

The fastest decoder that is installed reads JPEG files: torchcodec, else torchvision, else Pillow. Pillow reads all
other formats. The three give the same bits for a JPEG if they were built with the same libjpeg, so `decoder_name` is
worth recording. A file may hold anything: torchvision's PNG decoder kills its process over one flipped byte, but those
used here raise.
"""

import importlib
import importlib.util
import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError

Decode = Callable[[bytearray], Tensor]

MOST_PIXELS = 178_956_970
"""Of one image, which takes half a gigabyte once decoded. Pillow refuses larger ones; for JPEG this module does."""
_CODECS = ("image_stable", "image")
"""Libraries with torchvision's codecs, of torchvision 0.29 on and before."""
_RGB = 3
"""Of torchvision.io.ImageReadMode."""
_JPEG = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
"""The formats that Pillow may try. It knows others, and some of them run other programs (EPS)."""
_READERS = ("Jpeg", "Mpo", "Png", "Bmp", "WebP", "Gif", "Tiff", "Ppm", "Jpeg2K", "Avif", "Ico")
"""Pillow's modules for them."""


def decode_file(path: str | bytes) -> Tensor:
    """RGB uint8 [3, height, width] of an image file; raises as `decode_bytes` does, also when it can't be read."""
    try:
        return _decoded(_read(path)[0])
    except Exception as error:
        raise _unreadable(error, os.fsdecode(path)) from error


def read_file(path: str | bytes) -> tuple[bytearray, tuple[int, int]]:
    """The bytes of an image file, its size and its time of modification in ns; raises as `decode_file` does."""
    try:
        return _read(path)
    except Exception as error:
        raise _unreadable(error, os.fsdecode(path)) from error


def decode_bytes(content: bytes | bytearray, name: Callable[[], str] = lambda: "of these bytes") -> Tensor:
    """RGB uint8 [3, height, width] of the bytes of an image file, upright as its EXIF orientation says.

    A grey image gets three equal channels, transparency is dropped, and only the first of several frames is read. The
    first bytes of a file decide its format, not its name.

    Args:
        name: returns the image's name, for an error.

    Raises:
        UserError: naming it, when it is no whole image.
    """
    try:
        return _decoded(content if isinstance(content, bytearray) else bytearray(content))
    except Exception as error:
        raise _unreadable(error, name()) from error


def _decoded(content: bytearray) -> Tensor:
    if not content:
        raise ValueError("the file is empty")
    return _decoder_of(content)(content)


def _unreadable(error: Exception, name: str) -> UserError:
    """What to raise for whatever a decoder raises over a broken file: Pillow's errors are of many kinds."""
    memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
    reason = "it does not fit into memory" if memory else _reason(error)
    code = ExitCode.OUT_OF_MEMORY if memory else ExitCode.DATA
    return UserError(f"cannot read the image {name}: {reason}", code)


def decoder_name() -> str:
    """What decodes JPEG files here: torchcodec, torchvision or pillow."""
    return _jpeg_decoder()[0]


@cache
def decoder_identity() -> str:
    """Everything that decides how a file becomes pixels, and how these are resized."""
    versions = (f"{name} {metadata.version(name)}" for name in ("torch", "pillow"))
    name = decoder_name()
    own = f"{name} {metadata.version(name)}"
    return ", ".join([own, *versions, torch.backends.cpu.get_cpu_capability()])


def load_decoders() -> None:
    """Loads the decoders, as the first file would."""
    _jpeg_decoder()
    _formats()


def _reason(error: Exception) -> str:
    """One line, without the C++ function and line that torch puts before its messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).split("\n")[0]
    return re.sub(r"^.*\.cpp:\d+, ", "", first_line) or type(error).__name__


def _read(path: str | bytes) -> tuple[bytearray, tuple[int, int]]:
    """The whole file, its size and its time of modification. os.open costs half as much as open: with thousands of
    small files a second, that shows."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        content = bytearray(found.st_size)
        view = memoryview(content)
        while view:
            count = os.readv(descriptor, [view])
            if not count:
                raise ValueError("the file became shorter while it was read")
            view = view[count:]
        return content, (found.st_size, found.st_mtime_ns)
    finally:
        os.close(descriptor)


def _decoder_of(content: bytearray) -> Decode:
    if not content.startswith(_JPEG):
        return _pillow
    height, width = _jpeg_size(content)
    if height * width > MOST_PIXELS:
        raise ValueError(f"it has {height:,} × {width:,} pixels, more than {MOST_PIXELS:,}")
    return _jpeg_decoder()[1]


def _jpeg_size(content: bytearray) -> tuple[int, int]:
    """Height and width from the header; zeros if there is none, which the decoder then reports."""
    place = 2
    while (place := content.find(0xFF, place)) >= 0 and place + 9 < len(content):
        kind = content[place + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return int.from_bytes(content[place + 5 : place + 7]), int.from_bytes(content[place + 7 : place + 9])
        has_length = kind not in (0x00, 0x01, 0xFF) and not 0xD0 <= kind <= 0xD9
        place += 2 + int.from_bytes(content[place + 2 : place + 4]) if has_length else 2 - (kind == 0xFF)
    return 0, 0


@cache
def _jpeg_decoder() -> tuple[str, Decode]:
    """The fastest decoder that is installed, with its name; found once in a process."""
    for name, find in (("torchcodec", _torchcodec), ("torchvision", _torchvision)):
        try:
            return name, find()
        except (ImportError, RuntimeError, OSError):  # not installed, or its shared libraries are not
            continue
    return "pillow", _pillow


def _torchcodec() -> Decode:
    from torchcodec.decoders import decode_jpeg

    return lambda content: decode_jpeg(_tensor(content))  # RGB and upright are its defaults


def _torchvision() -> Decode:
    """What torchvision.io.decode_jpeg calls, from the library with torchvision's codecs, which has no need of the
    package: importing that takes a tenth of a second, and calling it warns each time that it is deprecated."""
    found = importlib.util.find_spec("torchvision")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    library = next((path for name in _CODECS if folder and (path := folder / f"{name}.so").exists()), None)
    if library is None:
        raise ImportError("there is no torchvision, or it was built without codecs")
    torch.ops.load_library(library)
    codecs = torch.ops.image
    tried = codecs.encode_jpeg(torch.zeros(3, 1, 1, dtype=torch.uint8), 75)  # raises where it has no libjpeg
    decode = codecs.decode_jpeg.default
    decode(tried, _RGB, True)
    return lambda content: decode(_tensor(content), _RGB, True)  # True: upright, as EXIF says


def _tensor(content: bytearray) -> Tensor:
    return torch.frombuffer(content, dtype=torch.uint8)


def _pillow(content: bytearray) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange tags, and of sizes that are large and allowed
            image = Image.open(io.BytesIO(content), formats=_formats())
            image.load()
    except UnidentifiedImageError:
        raise ValueError("it is no image of a known format") from None
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels are floats or 32-bit numbers, which have no known white: convert it to 8 bits")
    image = _upright(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scaling
        grey = torch.from_numpy((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return grey.expand(3, -1, -1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow was built with. Pillow itself would import its readers of all others too."""
    from PIL import Image

    for name in _READERS:
        with suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Any) -> Any:
    """The image turned as its EXIF orientation says, if it has one that can be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken tags beside whole pixels
        return image
