"""`dist-train predict`: the class of images, and how sure the model is."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.manifest import DamagedCheckpoint
from dist_train.checkpoint.resume import content_of
from dist_train.checkpoint.state import Snapshot
from dist_train.checkpoint.store import VerifiedCheckpoint, locate
from dist_train.commands.common import config_of_run, reporting, saved_model
from dist_train.config.problems import printable
from dist_train.config.requests import PredictRequest, read_request
from dist_train.config.schema import RunConfig
from dist_train.config.stdout import tell
from dist_train.data.datasets.class_folders import EXTENSIONS
from dist_train.data.decode import decode_file
from dist_train.data.device_transform import DeviceTransform
from dist_train.data.resize import centre_crop, resize_shorter_side
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import evaluating
from dist_train.randomness import Generators
from dist_train.rundir.strict_json import to_json

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), with which Pillow converts to grey."""


def main(request: PredictRequest) -> int:
    target = Path(request.target)
    with reporting():
        config = config_of_run(target, request.overrides, trusts=request.trust)
        rows = predict(config, target, list(_files(map(Path, request.images))))
    if request.as_json:
        tell(to_json(rows))
        return ExitCode.DONE
    width = max(len(row["class"]) for row in rows)
    for row in rows:
        tell(f"{row['class']:<{width}}  {100 * row['probability']:5.1f} %  {printable(row['file'], 4096)}")
    return ExitCode.DONE


def predict(config: RunConfig, target: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """For each file its path, class and that class's probability.

    Raises:
        UserError: when the model is no classifier of images, or a file is no image.
    """
    if config.task.name != "classification":
        raise UserError(f"predict is for classification, and this run's task is {config.task.name}")
    found = locate(target, lambda line: print(line, file=sys.stderr), best=True)
    saved = _content(found)
    shape, classes = saved.other["data"].get("shape"), saved.other["data"].get("classes")
    if not classes or not shape or len(shape) != 3:
        raise UserError("predict is for images, and this run's data has none", ExitCode.DATA)
    model = saved_model(config, saved, shape=tuple(shape), classes=len(classes))
    with evaluating(model, config.seed, Generators(model)) as begin:
        rows = []
        for file in files:
            begin(0)  # so that no image's result depends on those before it
            rows.append(_row(file, _probabilities(model, config, shape, file), classes))
    return rows


def _content(found: VerifiedCheckpoint) -> Snapshot:
    try:
        return content_of(found)
    except (OSError, DamagedCheckpoint) as error:
        message = f"{found.path} went away while it was read ({error}): try again"
        raise UserError(message, ExitCode.CANNOT_RESUME) from None


def _row(file: Path, probabilities: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"file": str(file), "class": printable(classes[best], 200), "probability": float(probabilities[best])}


def _probabilities(model: nn.Module, config: RunConfig, shape: Sequence[int], file: Path) -> Tensor:
    """Float32 [classes], of one image prepared as the evaluation prepares them."""
    transform = DeviceTransform(config.augment, torch.device("cpu"))
    inputs, _ = transform(_fitted(decode_file(str(file)), config, shape)[None], torch.zeros(1, dtype=torch.int64), 0, 0)
    return model(inputs)[0].softmax(0)


def _fitted(image: Tensor, config: RunConfig, shape: Sequence[int]) -> Tensor:
    """uint8 [3, h, w] to uint8 `shape`: grey if the model is, shorter side resized, centre cropped."""
    channels, height, width = shape
    if channels == 1:
        weights = torch.tensor(GREY).view(3, 1, 1)
        image = (image * weights).sum(0, keepdim=True).round().to(torch.uint8)
    if height != width:
        raise UserError(f"predict takes models of square images, this one's are {height}×{width}")
    shorter = getattr(config.data, "resize", None) or height
    return centre_crop(resize_shorter_side(image, shorter), height)


def _files(given: Iterable[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("[!.]*") if file.suffix.lower() in EXTENSIONS and file.is_file()
            )
            if not inside:
                raise UserError(f"{path}: no images there ({' '.join(EXTENSIONS)})", ExitCode.DATA)
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder", ExitCode.DATA)


if __name__ == "__main__":
    sys.exit(main(read_request(PredictRequest, sys.argv[1:])))
