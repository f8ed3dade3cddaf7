"""Targets that lie in the picture move with it: augmenting (x, f(x)) gives (x', f(x'))."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from dist_train.config.schema import (
    CustomData,
    HorizontalFlip,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    RunConfig,
)
from dist_train.data import datasets
from dist_train.data.augment import _crop_draws, crop_box
from dist_train.data.loader import training_samples
from dist_train.errors import UserError
from dist_train.tasks import Task
from tests.unit.dist_train.data.test_loader import CPU, assert_same_bits, config, load

SIDE = 12
CROP_AND_FLIP = [RandomCrop(padding=3), HorizontalFlip()]


class Pictures:
    """Noise, above 0 everywhere, and what can be seen of it; or a white rectangle, and where it is."""

    classes = ("a", "b", "c", "d")
    shape = (3, SIDE, SIDE)

    def __init__(self, split: str, kind: str) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int):
        image = torch.from_numpy(np.random.default_rng(index).integers(1, 256, self.shape, dtype=np.uint8))
        if self._kind == "mask":
            return tv_tensors.Image(image), tv_tensors.Mask(seen(image))
        if self._kind == "tree":
            return image, {"masks": [tv_tensors.Mask(seen(image).long())], "again": tv_tensors.Image(image), "class": 1}
        if self._kind == "plain beside":
            return image, {"mask": tv_tensors.Mask(seen(image)), "depth": seen(image)}
        if self._kind == "small":
            return image, tv_tensors.Mask(seen(image)[::2, ::2])
        left, top = 3 + index % 3, 4
        boxes = tv_tensors.BoundingBoxes([[left, top, left + 4, top + 3]], format="XYXY", canvas_size=(SIDE, SIDE))
        white = torch.zeros(self.shape, dtype=torch.uint8)
        white[:, top : top + 3, left : left + 4] = 255
        return white, boxes


def seen(image: Tensor) -> Tensor:
    """A class of 0 to 3 for each pixel; 255 where there is no image."""
    return torch.where(image[0] == 0, 255, image[0] // 64).to(torch.uint8)


def run_of(kind: str, augment, **task) -> tuple[RunConfig, datasets.Splits]:
    data = CustomData(name=f"{__name__}:Pictures", args={"kind": kind})
    return config(data, augment, task={"name": "segmentation", **task}), datasets.build(data)


def pixels(inputs: Tensor) -> Tensor:
    return (inputs * 255).round().to(torch.uint8)


def test_a_mask_moves_with_its_picture():
    run, splits = run_of("mask", CROP_AND_FLIP)
    found, moved = load(run, splits), 0
    for indices, inputs, masks in found.values():
        assert torch.equal(torch.stack([seen(image) for image in pixels(inputs)]), masks)
        moved += sum(not torch.equal(m, splits.train[int(i)][1]) for m, i in zip(masks, indices, strict=True))
    assert moved > 50
    assert_same_bits(load(run, splits, 2), found)
    assert_same_bits(load(run, splits, 3), found)
    assert_same_bits(
        load(run.model_copy(update={"loader": run.loader.model_copy(update={"workers": 1})}), splits), found
    )


def test_every_part_of_a_tree_moves():
    run, splits = run_of("tree", CROP_AND_FLIP, ignore_index=-100)
    for _, inputs, targets in load(run, splits).values():
        images = pixels(inputs)
        assert torch.equal(targets["again"], images)
        expected = torch.stack([seen(image).long() for image in images])
        assert torch.equal(targets["masks"][0], torch.where(expected == 255, -100, expected))
        assert targets["class"].tolist() == [1] * len(images)


def test_a_box_stays_around_what_it_is_of():
    run, splits = run_of("boxes", [RandomCrop(padding=2), HorizontalFlip()])
    for _, inputs, boxes in load(run, splits).values():
        for image, [[left, top, right, bottom]] in zip(pixels(inputs), boxes.tolist(), strict=True):
            rows, columns = image[0].nonzero().T
            assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_resized_crop_of_a_mask_is_torchvisions():
    run, splits = run_of("mask", [RandomResizedCrop()])
    for (step, _), (indices, _, masks) in load(run, splits).items():
        for index, mask in zip(indices.tolist(), masks, strict=True):
            draws = _crop_draws(run.seed, step // 2, np.array([index]))[0]
            box = crop_box(RandomResizedCrop(), SIDE, SIDE, draws)
            assert torch.equal(mask, functional.resized_crop(splits.train[index][1], *box, [SIDE, SIDE]))


REFUSED = {
    "rand_augment": ("mask", [RandAugment()], "rand_augment would move the images and not their Mask: return them as"),
    "plain beside": (
        "plain beside",
        CROP_AND_FLIP,
        r"would move the images and not their targets, which have the shape",
    ),
    "small": ("small", CROP_AND_FLIP, r"sample \d+ has an image of \[12, 12\] pixels and a Mask of \[6, 6\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_moved_is_refused(name: str):
    kind, augment, words = REFUSED[name]
    run, splits = run_of(kind, augment)
    with pytest.raises(UserError, match=f"augment: .*{words}"):
        training_samples(run, splits, Task(), CPU, steps=(0,))
    training_samples(run.model_copy(update={"augment": []}), splits, Task(), CPU, steps=(0,))
