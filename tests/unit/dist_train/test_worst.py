"""What is kept of the worst samples, in words and pictures."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.config.schema import RunConfig
from dist_train.data.datasets.base import Splits, TensorImages
from dist_train.data.datasets.image_folder import FileList, FolderImages
from dist_train.data.thumbnails import Look, jpeg_of, looked_at, png_of
from dist_train.errors import UserError
from dist_train.gallery import Gallery
from dist_train.rundir.layout import RunDir
from dist_train.tasks import PerSample
from dist_train.tasks.language_model import LanguageModel
from dist_train.tasks.segmentation import Segmentation
from dist_train.worst import Words, WorstSample, WorstSamples

ALONE = SimpleNamespace(
    ranks=SimpleNamespace(rank=0, local_world_size=1),
    device=torch.device("cpu"),
    gather_objects=lambda value: [value],
    all_reduce_host_=lambda tensor: tensor,
)
"""What a group of one rank does."""
CONFIG = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}})


def worst(most, *batches):
    kept, first = WorstSamples(most), 0
    for samples in batches:
        kept.add(torch.arange(first, first + len(samples.loss)), {"loss": torch.zeros(()), "own": samples})
        first += len(samples.loss)
    return kept.over_all_ranks(ALONE)


def test_nan_comes_first_then_the_loss_then_the_place():
    losses = torch.tensor([1.0, 3.0, 3.0, -torch.inf, torch.nan, 2.0, 3.0])
    assert [one.index for one in worst(5, *map(PerSample, losses.split(2)))] == [4, 1, 2, 6, 5]
    assert [one.index for one in worst(9, PerSample(losses))] == [4, 1, 2, 6, 5, 0], "-inf counts nowhere"
    assert worst(3, PerSample(torch.full((2,), -torch.inf), truth=torch.ones(2, dtype=torch.bfloat16))) == ()


@pytest.mark.parametrize(
    "samples",
    [
        [PerSample(torch.zeros(3, 2))],
        [PerSample(torch.zeros(3), truth=torch.zeros(2))],
        [PerSample(torch.zeros(3), text=torch.zeros(3, 5)), PerSample(torch.zeros(3), text=torch.zeros(3, 6))],
    ],
)
def test_what_fits_no_batch_is_an_error(samples):
    with pytest.raises(UserError, match="the task's PerSample"):
        worst(2, *samples)


def test_in_words():
    words, value = Words(classes=("cat", "dog")), torch.tensor
    for truth, said in (
        (value([1, 0]), "dog"),
        (value([7, 0]), "7"),
        (value([1.23456, 0.0]), "1.235"),
        (value([[1.5, -2.0], [0, 0]]), "1.5, -2"),
        (value([[True, True], [False, False]]), "cat, dog"),
        (value([[[0, 0, 1, -1]], [[0, 0, 0, 0]]]), "cat 67 %, dog 33 %"),
    ):
        [row, _] = [words.row(one, "x") for one in worst(2, PerSample(value([2.0, 1.0]), truth=truth))]
        assert (row["truth"], row["prediction"], row["probability"], row["text"]) == (said, "", None, None)


def test_of_a_text_the_token_of_the_highest_loss_is_shown_with_what_is_around_it():
    scores = torch.zeros(2, 6, 26)
    tokens = torch.tensor([[3, 0, 2, 0, 18, 4], [25, 25, 25, 25, 25, 25]])
    scores.scatter_(2, tokens[..., None], 9.0)
    scores[0, 2, 2], scores[0, 2, 25] = 0.0, 9.0
    found = worst(2, LanguageModel(vocabulary=26).statistics(scores, tokens)["samples"])
    row = Words(classes=None, decode=lambda some: "".join(chr(97 + one) for one in some)).row(found[0], "x")
    assert (row["text"], row["marked"], row["truth"], row["prediction"]) == ("dacase", [2, 3], "c", "z")
    assert row["probability"] == pytest.approx(0.99, abs=0.01)
    assert Words(classes=None).row(found[0], "x")["text"] == "3 0 2 0 18 4 "


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 200)])
def test_masks_are_made_small(height, width):
    truth = torch.zeros(2, height, width, dtype=torch.int64)
    truth[1, : height // 2], truth[1, height // 2 :, : width // 2] = 1, 255
    scores = torch.nn.functional.one_hot(truth % 3, 3).permute(0, 3, 1, 2) * 5.0
    scores[0, 0] = -9.0
    first, second = worst(2, Segmentation(classes=3).statistics(scores, truth)["samples"])
    assert (first.index, second.index) == (0, 1)
    picture = np.array(Image.open(io.BytesIO(png_of(second.truth))))
    sides = (96, 96) if height == 32 else (96, 64)
    assert picture.shape == sides and {*picture[0]} == {1} and [*picture[-1, [0, -1]]] == [255, 0]


def test_pictures_of_what_an_input_may_be():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) * 4
    for value, mode, size in (
        (grey, "L", (96, 96)),
        (grey[0], "L", (96, 96)),
        (grey / 255, "L", (96, 96)),
        ({"ids": torch.ones(5), "pixels": [torch.randn(3, 400, 200)]}, "RGB", (48, 96)),
        (np.full((4, 20, 30), np.nan, dtype=np.float32), "RGB", (90, 60)),
    ):
        image = Image.open(io.BytesIO(jpeg_of(value)))
        assert (image.mode, image.size) == (mode, size)
    assert jpeg_of(torch.zeros(10)) == jpeg_of("text") == jpeg_of(torch.zeros(7, 9, 9)) == b""


def folder(place, names):
    for name in names:
        Image.new("RGB", (30, 20), "red").save(place / name, "JPEG")
    files = FileList([str(place / name).encode() for name in names], [0] * len(names), str(place).encode())
    return FolderImages(files, np.arange(len(names)), 16, None)


def test_a_picture_that_cannot_be_read_is_left_out_alone_and_old_ones_go(tmp_path, capfd):
    dataset = folder(tmp_path, ["a.jpg", "b.jpg", "c\n.jpg"])
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff no image")
    run = RunDir(tmp_path / "run")
    gallery = Gallery(CONFIG, Splits(train=dataset, evaluation=dataset), ALONE, run)

    def rows(*indices):
        worst = [WorstSample(index=k, loss=float(9 - k)) for k in indices]
        return gallery.row("evaluation", worst, is_last=True)["worst"]

    first = rows(0, 1, 2)
    assert [row["name"] for row in first] == [f"{tmp_path}/{name}" for name in ("a.jpg", "b.jpg", "c\\n.jpg")]
    assert [row["picture"] is None for row in first] == [False, True, False]
    assert (run.path / first[0]["picture"]).read_bytes().startswith(b"\xff\xd8\xff")
    assert [row["picture"] for row in rows(2)] == [first[2]["picture"]]
    assert [*run.evaluation_pictures("evaluation").iterdir()] == [run.path / first[2]["picture"]]
    assert gallery.row("evaluation", [], is_last=True) == {} and capfd.readouterr() == ("", "")


class Away(FolderImages):
    """The storage is away: sample 1 never comes."""

    def read(self, index):
        if index == 1:
            time.sleep(100)
        return super().read(index)


def test_data_that_does_not_come_is_not_waited_for(tmp_path):
    dataset = folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    dataset.__class__ = Away
    begun = time.monotonic()
    found = [*looked_at(Look(dataset, 0, pictures=True), dataset, [0, 1, 2], ALONE.device, 0, 1.0)]
    assert [number for number, _, _ in found] == [0] and time.monotonic() - begun < 30


def test_data_in_memory_is_read_at_once():
    dataset = TensorImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    found = [*looked_at(Look(dataset, 0, pictures=True), dataset, [2, 0], ALONE.device, 0, 5.0)]
    assert [(number, name) for number, name, _ in found] == [(2, "sample 2"), (0, "sample 0")]
