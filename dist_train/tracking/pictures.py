"""Pictures that callbacks log: brought into one form, and kept as PNG files in the run directory."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.rundir.files import replacing
from dist_train.tracking.base import Own, Sink


class PictureSink(Sink):
    """Writes the files; comes before the sinks that send them on."""

    name = "pictures"

    def log_own(self, own: Own) -> None:
        from PIL import Image

        for path, picture in own.pictures.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                Image.fromarray(picture).save(temporary, format="PNG")


def opened(path: Path) -> np.ndarray | None:
    """uint8 [H, W, 3] of a picture's file; None of one that is gone or damaged."""
    from PIL import Image

    with suppress(OSError):
        return np.array(Image.open(path).convert("RGB"))
    return None


def confusion_picture(confusion: np.ndarray, classes: tuple[str, ...] | None) -> np.ndarray:
    """uint8 [H, W, 3]: the counts on the share that they have in their row, true classes from top to bottom.

    Args:
        confusion: int64 [actual class, predicted class].
    """
    from PIL import Image, ImageDraw

    count, cell, margin = len(confusion), 40 if len(confusion) <= 25 else 12, 90
    image = Image.new("RGB", (margin + count * cell,) * 2, "white")
    draw, total = ImageDraw.Draw(image), np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for (row, column), share in np.ndenumerate(confusion / total):
        left, top, light = margin + column * cell, margin + row * cell, round(255 * (1 - share))
        draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=(light, light, 255))
        if cell == 40 and confusion[row, column]:
            draw.text((left + 4, top + 12), str(confusion[row, column]), fill="white" if share > 0.5 else "black")
    for place, name in enumerate(classes or range(count)):
        draw.text((4, margin + place * cell + cell // 2 - 6), str(name)[:13], fill="black")
        draw.text((margin + place * cell + 4, margin - 14 - 12 * (place % 6)), str(name)[:13], fill="black")
    return np.array(image)


def picture_of(value: Any) -> np.ndarray | None:
    """uint8 [H, W, 3] of an array [H, W], [H, W, 1] or [H, W, 3] of uint8, of a tensor [C, H, W] with one channel or
    three, uint8 or floats from 0 to 1, of a PIL image, or of a figure of matplotlib; None of anything else."""
    if hasattr(value, "savefig"):
        from PIL import Image

        file = io.BytesIO()
        value.savefig(file, format="png")
        value = Image.open(file)
    if hasattr(value, "convert") and hasattr(value, "getbands"):
        return np.array(value.convert("RGB"))
    if hasattr(value, "detach") and value.ndim == 3 and value.shape[0] in (1, 3):
        value = value.detach().cpu()
        if value.is_floating_point() and value.min() >= 0 and value.max() <= 1:
            value = value.float().mul(255).round().byte()
        value = value.permute(1, 2, 0).numpy()
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (2, 3) or not value.size:
        return None
    value = value[..., None] if value.ndim == 2 else value
    return np.ascontiguousarray(np.broadcast_to(value, (*value.shape[:2], 3))) if value.shape[2] in (1, 3) else None
