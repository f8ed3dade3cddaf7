"""Image files to uint8 tensors, by the fastest decoder there is: torchcodec, else torchvision, else Pillow.

All three give the same bits for a JPEG where they were built with the same libjpeg; `decoder_name` is worth recording.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dist_train.config.errors import ExitCode, UserError

Decode = Callable[[bytearray], Tensor]

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def decode_file(path: str | bytes) -> Tensor:
    """RGB uint8 [3, height, width] of an image file, upright as its EXIF orientation says.

    Grey images get three equal channels and transparency is dropped. A file is what its first bytes say, not its name.

    Raises:
        UserError: naming the file, when it can't be read or is no whole image.
    """
    try:
        content = _read(path)
        if not content:
            raise ValueError("the file is empty")
        return _decoder_of(content)(content)
    except (OSError, ValueError, RuntimeError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise UserError(f"cannot read the image {os.fsdecode(path)}: {_reason(error)}", ExitCode.DATA) from error


def decoder_name() -> str:
    """What decodes JPEG files here: torchcodec, torchvision or pillow."""
    return _fast_decoders()[0]


def _reason(error: Exception) -> str:
    """One line, without the function and line of C++ that torch puts before its messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).split("\n")[0]
    return re.sub(r"^.*\.cpp:\d+, ", "", first_line)


def _read(path: str | bytes) -> bytearray:
    """The whole file; os.open costs half of what open does, which shows at thousands of small files a second."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is an empty file
    try:
        content = bytearray(os.fstat(descriptor).st_size)
        view = memoryview(content)
        while view:
            count = os.readv(descriptor, [view])
            if not count:
                raise ValueError("the file became shorter while it was read")
            view = view[count:]
        return content
    finally:
        os.close(descriptor)


def _decoder_of(content: bytearray) -> Decode:
    _, jpeg, png = _fast_decoders()
    if content.startswith(_JPEG):
        return jpeg
    return png if content.startswith(_PNG) else _pillow


@cache
def _fast_decoders() -> tuple[str, Decode, Decode]:
    """(name, decoder of JPEG, decoder of PNG), found once in a process."""
    for name, find in (("torchcodec", _torchcodec), ("torchvision", _torchvision)):
        try:
            return name, *find()
        except (ImportError, RuntimeError, OSError):  # not installed, or its shared libraries are not
            continue
    return "pillow", _pillow, _pillow


def _torchcodec() -> tuple[Decode, Decode]:
    from torchcodec.decoders import decode_jpeg, decode_png

    def jpeg(content: bytearray) -> Tensor:
        return decode_jpeg(_tensor(content))  # RGB and upright are its defaults

    def png(content: bytearray) -> Tensor:
        return decode_png(_tensor(content))

    return jpeg, png


def _torchvision() -> tuple[Decode, Decode]:
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png, encode_jpeg

    # They are deprecated in favour of torchcodec, which was looked for first.
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)

    def jpeg(content: bytearray) -> Tensor:
        return decode_jpeg(_tensor(content), ImageReadMode.RGB, apply_exif_orientation=True)

    def png(content: bytearray) -> Tensor:
        return _eight_bit(decode_png(_tensor(content), ImageReadMode.RGB, apply_exif_orientation=True))

    encode_jpeg(torch.zeros(3, 1, 1, dtype=torch.uint8))  # raises where torchvision was built without its codecs
    return jpeg, png


def _tensor(content: bytearray) -> Tensor:
    return torch.frombuffer(content, dtype=torch.uint8)


def _eight_bit(image: Tensor) -> Tensor:
    """A PNG may have 16 bits a channel: the upper 8 are what the others have."""
    return (image.to(torch.int32) >> 8).to(torch.uint8) if image.dtype == torch.uint16 else image


def _pillow(content: bytearray) -> Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    except UnidentifiedImageError:
        raise ValueError("it is no image of a known format") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scaling
        grey = torch.from_numpy((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return grey.expand(3, -1, -1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
