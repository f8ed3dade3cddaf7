"""Each augmentation does what its name says, and draws by (seed, epoch, sample) or (seed, step, microbatch) alone."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dist_train.config.schema import (
    ColorJitter,
    Cutmix,
    HorizontalFlip,
    Mixup,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
)
from dist_train.data.augment import Augment, crop_box, resized_crop
from dist_train.data.device_transform import DeviceTransform, Mix
from dist_train.data.resize import centre_crop, resize, resize_shorter_side
from dist_train.data.windows import Windows, cut_each, cut_together
from dist_train.errors import UserError
from dist_train.randomness import uniform

CPU = torch.device("cpu")
STEPS = [RandomCrop(padding=3), HorizontalFlip(), ColorJitter(), RandAugment()]


def images(count: int = 32, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def test_random_crop_is_a_window_of_the_padded_image_and_every_place_occurs():
    pixels, indices = images(500), np.arange(500)
    cropped = Augment([RandomCrop(padding=2)], 0)(pixels, 0, indices)
    padded = reference.pad(pixels, [2, 2, 2, 2])
    seen = set()
    for row in range(500):
        places = [(top, left) for top in range(5) for left in range(5)]
        fits = [p for p in places if torch.equal(cropped[row], reference.crop(padded[row], *p, 12, 10))]
        assert fits
        seen.update(fits)
    assert len(seen) == 25


def test_horizontal_flip_flips_the_share_asked_for():
    pixels, indices = images(1000), np.arange(1000)
    flipped = Augment([HorizontalFlip(p=0.3)], 0)(pixels, 0, indices)
    mirrored = reference.horizontal_flip(pixels)
    changed = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, mirrored, strict=True)])
    assert torch.equal(flipped[~changed], pixels[~changed])
    assert abs(changed.float().mean() - 0.3) < 5 * math.sqrt(0.21 / 1000)
    assert torch.equal(Augment([HorizontalFlip(p=1.0)], 0)(pixels, 0, indices), mirrored)
    assert torch.equal(Augment([HorizontalFlip(p=0.0)], 0)(pixels, 0, indices), pixels)


def test_alternating_flips_draw_once_and_turn_every_image_around_in_the_next_epoch():
    pixels, indices = images(200), np.arange(200)
    flips = Augment([HorizontalFlip(alternate=True)], 0)
    epochs = [flips(pixels, epoch, indices) for epoch in range(4)]
    assert torch.equal(epochs[0], Augment([HorizontalFlip()], 0)(pixels, 0, indices))
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0]) and torch.equal(epochs[3], epochs[1])


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_draws_depend_on_seed_epoch_and_sample_alone(step):
    pixels, indices = images(), np.arange(100, 132)
    together = Augment([step], seed=1)(pixels, 4, indices)
    backwards = Augment([step], seed=1)(pixels.flip(0), 4, indices[::-1].copy()).flip(0)
    one_by_one = [Augment([step], seed=1)(pixels[k : k + 1], 4, indices[k : k + 1]) for k in range(32)]
    assert torch.equal(together, backwards)
    assert torch.equal(together, torch.cat(one_by_one))
    assert together.dtype == torch.uint8 and together.shape == pixels.shape
    assert not torch.equal(together, pixels)
    assert not torch.equal(together, Augment([step], seed=2)(pixels, 4, indices))
    assert not torch.equal(together, Augment([step], seed=1)(pixels, 5, indices))


def test_an_image_drawn_twice_in_different_epochs_differs_but_the_input_is_left_alone():
    pixels, kept = images(), images()
    Augment(STEPS, seed=0)(pixels, 0, np.arange(32))
    assert torch.equal(pixels, kept)


def test_steps_are_done_in_the_order_of_the_list():
    pixels, indices = images(), np.arange(32)
    crop, flip = RandomCrop(padding=2), HorizontalFlip()
    for first, second in ((crop, flip), (flip, crop)):
        expected = Augment([second], seed=0)(Augment([first], seed=0)(pixels, 0, indices), 0, indices)
        assert torch.equal(Augment([first, second], seed=0)(pixels, 0, indices), expected)


def test_crops_and_flips_are_those_of_the_padded_image_at_the_places_drawn():
    pixels, indices = images(), np.arange(32)
    top, left = (uniform(5, "random_crop", 2, indices, draws=2) * 7).astype(int).T
    mirrored = uniform(5, "horizontal_flip", 2, indices)[:, 0] < 0.5
    found = Augment([RandomCrop(padding=3), HorizontalFlip()], seed=5)(pixels, 2, indices)
    for row in range(32):
        expected = reference.crop(reference.pad(pixels[row], [3] * 4), top[row], left[row], 12, 10)
        assert torch.equal(found[row], reference.horizontal_flip(expected) if mirrored[row] else expected)
    assert torch.equal(
        Augment([RandomCrop(padding=3), HorizontalFlip()], 5)(pixels, 2, indices[5:9], indices[5:9]), found[5:9]
    )


def test_windows_are_the_same_by_an_index_for_each_pixel():
    """The way that a GPU takes; also where a window lies outside of its image."""
    draw, pixels = np.random.default_rng(0), images(40)
    rows, mirrored = draw.integers(0, 40, 64), draw.random(64) < 0.5
    windows = Windows(top=draw.integers(-14, 15, 64), left=draw.integers(-14, 15, 64), mirrored=mirrored)
    assert torch.equal(cut_together(pixels, rows, windows), cut_each(pixels, rows, windows))
    half = pixels.to(torch.bfloat16)
    assert torch.equal(cut_together(half, rows, windows), cut_each(half, rows, windows))


CHANGES = {"brightness": reference.adjust_brightness, "contrast": reference.adjust_contrast}
CHANGES |= {"saturation": reference.adjust_saturation}


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_torchvisions(channels: int):
    """But for the last bit before rounding: torchvision fuses a multiplication and an addition."""
    pixels, indices = images(64, channels), np.arange(64)
    draws = uniform(0, "color_jitter", 0, indices, draws=6)
    for number, (name, change) in enumerate(CHANGES.items()):
        item = ColorJitter(**{"brightness": 0, "contrast": 0, "saturation": 0, name: 1.5})
        found = Augment([item], seed=0)(pixels, 0, indices)
        for row in range(64):
            expected = change(pixels[row], 2.5 * draws[row, number])
            assert (found[row].int() - expected.int()).abs().max() <= 1
    together = Augment([ColorJitter()], seed=0)(pixels, 0, indices)
    for row in range(64):
        expected = pixels[row]
        for number in np.argsort(draws[row, 3:]):
            expected = list(CHANGES.values())[number](expected, 0.6 + 0.8 * draws[row, number])
        assert (together[row].int() - expected.int()).abs().max() <= 3
    assert torch.equal(
        Augment([ColorJitter(brightness=0, contrast=0, saturation=0)], seed=0)(pixels, 0, indices), pixels
    )


@pytest.mark.parametrize(("height", "width"), [(13, 11), (160, 97)])
def test_color_jitter_of_an_image_depends_on_it_alone(height: int, width: int):
    """However a batch is split: no sum in another order, no vector of numbers that rounds otherwise than its rest."""
    pixels, indices = images(64, 3, height, width), np.arange(64)
    whole = Augment([ColorJitter()], seed=1)(pixels, 0, indices)
    for size in (1, 3):
        parts = [
            Augment([ColorJitter()], 1)(pixels[k : k + size], 0, indices[k : k + size]) for k in range(0, 64, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_color_jitter_of_what_is_no_uint8_image_says_so():
    with pytest.raises(UserError, match=r"color_jitter works on uint8 images of 1 or 3 channels.*float32 of 3"):
        Augment([ColorJitter()], 0)(torch.zeros(2, 3, 4, 4), 0, np.arange(2))


def test_rand_augment_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Augment([RandAugment()], seed=0)(images(4), 0, np.arange(4))
    assert torch.equal(torch.rand(3), expected)


def test_a_crop_box_has_the_area_and_the_ratio_asked_for():
    item = RandomResizedCrop(scale=[0.2, 0.5], ratio=[0.5, 2.0])
    boxes = np.array([crop_box(item, 400, 300, d) for d in uniform(0, "box", np.arange(2000), draws=22)])
    top, left, rows, columns = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + rows <= 400).all() and (left + columns <= 300).all()
    area, ratio = rows * columns / (400 * 300), columns / rows
    assert area.min() > 0.19 and area.max() < 0.51
    assert ratio.min() > 0.49 and ratio.max() < 2.05
    assert area.mean() == pytest.approx(0.35, abs=0.02)
    assert np.log(ratio).std() > 0.3


def test_a_crop_that_never_fits_is_the_largest_allowed_in_the_middle():
    item = RandomResizedCrop(scale=[0.9, 1.0], ratio=[1.0, 1.0])
    assert crop_box(item, 100, 10, np.full(22, 0.5)) == (45, 0, 10, 10)
    assert crop_box(item, 10, 100, np.full(22, 0.5)) == (0, 45, 10, 10)


def test_random_resized_crop_is_crop_then_resize():
    item, pixels = RandomResizedCrop(), images(8, height=40, width=60)
    crop = resized_crop(item, 0, 0, np.arange(8))
    draws = uniform(0, "random_resized_crop", 0, np.arange(8), draws=22)
    for row in range(8):
        box = crop_box(item, 40, 60, draws[row])
        expected = reference.resized_crop(pixels[row], *box, [16, 16], antialias=True)
        assert torch.equal(crop(row, pixels[row], 16, 16), expected)


@pytest.mark.parametrize("size", [(37, 80), (80, 37), (50, 50), (24, 24), (20, 31)])
def test_resizing_and_cropping_are_torchvisions(size):
    image = images(1, height=size[0], width=size[1])[0]
    resized = resize_shorter_side(image, 24)
    assert torch.equal(resized, reference.resize(image, [24], antialias=True))
    assert torch.equal(centre_crop(resized, 20), reference.center_crop(resized, [20, 20]))
    assert torch.equal(resize(image, 9, 13), reference.resize(image, [9, 13], antialias=True))


def test_finish_scales_and_normalizes():
    pixels, targets = images(), torch.arange(32)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    inputs, same = DeviceTransform([Normalize(mean=mean, std=std)], CPU)(pixels, targets, 0, 0)
    scaled = reference.to_dtype(pixels, torch.float32, scale=True)
    torch.testing.assert_close(inputs, reference.normalize(scaled, mean, std))
    assert same is targets
    plain, _ = DeviceTransform([], CPU)(pixels, targets, 0, 0)
    assert plain.dtype == torch.float32 and plain.min() >= 0 and plain.max() == 1


def test_finish_leaves_what_is_no_image_alone():
    tokens = torch.arange(12).reshape(3, 4)
    assert DeviceTransform([], CPU)(tokens, tokens, 0, 0)[0] is tokens


def test_normalize_for_other_channels_says_so():
    with pytest.raises(UserError, match="3 means.*1 channels"):
        DeviceTransform([Normalize(mean=[0.5] * 3, std=[0.5] * 3)], CPU)(images(channels=1), None, 0, 0)


def test_crop_of_what_is_no_image_says_so():
    with pytest.raises(UserError, match=r"random_crop.*\(7,\)"):
        Augment([RandomCrop()], 0)(torch.zeros(4, 7), 0, np.arange(4))


def mixed(item, step: int = 0, number: int = 0, seed: int = 0, count: int = 8):
    inputs = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 20, 30).contiguous()
    mix = Mix.from_config([item], seed, num_classes=10)
    assert mix is not None
    return mix(inputs, torch.arange(count), step, number)


@pytest.mark.parametrize("item", [Mixup(alpha=1.0), Cutmix()], ids=lambda item: item.name)
def test_targets_say_how_much_of_which_sample_an_image_holds(item):
    for step in range(50):
        inputs, targets = mixed(item, step)
        assert targets.shape == (8, 10) and targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        # An image of sample k is all k, so its mean is the mean of the classes by their share.
        torch.testing.assert_close(inputs.mean((1, 2, 3)), targets @ torch.arange(10.0), rtol=1e-4, atol=1e-4)


def test_cutmix_pastes_one_rectangle():
    inputs, targets = mixed(Cutmix(), step=3)
    image = inputs[2, 0]
    own, other = image == 2, image != 2
    rows, columns = other.any(1), other.any(0)
    assert torch.equal(other, rows[:, None] & columns)
    assert len(image[other].unique()) <= 1
    assert targets[2, 2].item() == pytest.approx(own.float().mean().item())


@pytest.mark.parametrize("item", [Mixup(alpha=1.0), Cutmix()], ids=lambda item: item.name)
def test_mixing_depends_on_seed_step_and_microbatch_alone(item):
    first = mixed(item, 1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, mixed(item, 1, 2, 3), strict=True))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(first[1], mixed(item, *other)[1])


def test_with_both_mixers_each_gets_its_turn():
    mix = Mix.from_config([Mixup(alpha=1.0), Cutmix()], 0, 10)
    assert mix is not None
    inputs = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 20, 30).contiguous()
    blended = [bool((mix(inputs, torch.arange(8), step, 0)[0] % 1 != 0).any()) for step in range(200)]
    assert 60 < sum(blended) < 140


def test_a_microbatch_of_one_is_mixed_with_itself():
    inputs, targets = mixed(Mixup(), count=1)
    assert torch.equal(inputs, torch.zeros(1, 3, 20, 30))
    torch.testing.assert_close(targets, torch.eye(10)[:1])


def test_mixing_without_classes_says_so():
    with pytest.raises(UserError, match="mixup needs the number of classes"):
        Mix.from_config([Mixup()], 0, None)
    with pytest.raises(UserError, match="mixup works on images with one class each"):
        Mix([Mixup()], 0, 10)(torch.zeros(4, 3, 8, 8), torch.zeros(4), 0, 0)
    assert Mix.from_config([Normalize(mean=[0.0], std=[1.0])], 0, None) is None
