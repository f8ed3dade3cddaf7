"""TensorBoard event files under tensorboard/ in the run directory; needs the extra `tensorboard`."""

import html
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import UserError
from dist_train.report.words import telling
from dist_train.tracking.base import Interval, Note, Own, Row, RunFacts, Sink, prefix_of
from dist_train.tracking.pictures import confusion_picture, opened

LARGEST_MATRIX = 100
"""Classes of a confusion matrix that is drawn."""
_OF_A_SAMPLE = ("loss", "truth", "prediction", "probability", "name", "text")


def require_tensorboard() -> None:
    """Raises UserError when the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard is true, and the package tensorboard is not installed: "
            "pip install 'dist-train[tensorboard]', or set tracking.tensorboard: false"
        )


class TensorboardSink(Sink):
    """Scalars by step, under the names that W&B has them under."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts: RunFacts | None = None
        self._writer: Any = None

    def begin(self, facts: RunFacts, note: Note) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._facts = facts
        purge = facts.first_step + 1 if facts.first_step else None  # hides what an earlier session had gone on to
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        if facts.first_step == 0:
            self._writer.add_text("config", f"```json\n{facts.config.model_dump_json(indent=2)}\n```")

    def log_steps(self, interval: Interval) -> None:
        step = interval.summary["step"]
        for key, value in telling(interval.summary).items():
            self._writer.add_scalar(f"train/{key}", value, step)
        for key, value in interval.times.items():
            self._writer.add_scalar(f"time/{key}", value, step)

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        assert self._facts is not None
        prefix, step = prefix_of(row.get("split", "evaluation")), row["step"]
        for key, value in telling(row).items():
            self._writer.add_scalar(f"{prefix}/{key}", value, step)
        if confusion is not None and len(confusion) <= LARGEST_MATRIX:
            drawn = confusion_picture(confusion, self._facts.classes)
            self._writer.add_image(f"{prefix}/confusion_matrix", drawn, step, dataformats="HWC")
        for place, sample in enumerate(row.get("worst") or (), 1):
            words = [html.escape(f"{name}: {sample[name]}") for name in _OF_A_SAMPLE if sample.get(name) is not None]
            self._writer.add_text(f"{prefix}/worst/{place}", "<br>".join(words), step)
            if sample.get("picture") and (picture := opened(self._facts.run_dir / sample["picture"])) is not None:
                self._writer.add_image(f"{prefix}/worst/{place}", picture, step, dataformats="HWC")
        for number, text in enumerate(row.get("texts", ())):
            self._writer.add_text(f"texts/{number}", f"<pre>{html.escape(text)}</pre>", row["step"])
        self._writer.flush()

    def log_own(self, own: Own) -> None:
        step = own.position["step"]
        for name, value in own.values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(f"{own.key}/{name}", value, step)
        for name, (_, picture) in own.pictures.items():
            self._writer.add_image(f"{own.key}/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
