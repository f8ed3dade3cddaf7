"""Pictures that callbacks log: brought into one form, and kept as PNG files in the run directory."""

import io
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
