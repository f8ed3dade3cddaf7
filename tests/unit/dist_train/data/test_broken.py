"""Samples that cannot be read: others take their place, the same for any number of ranks and of loading processes."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.config.schema import CustomData, EvalConfig, ImageFolder
from dist_train.config.types import Duration
from dist_train.data import datasets
from dist_train.data.augment import Augment
from dist_train.data.broken import TRIES, drawn, is_of_a_sample, most_broken
from dist_train.data.datasets import ImageSet
from dist_train.data.datasets.image_folder import FileList, FolderImages
from dist_train.data.fetch import Fetch
from dist_train.data.loader import evaluation_batches, evaluation_samples, train_batches
from dist_train.data.sampler import LoadRequest
from dist_train.errors import ExitCode, UserError
from tests.unit.dist_train.data.test_loader import CPU, RECIPES, assert_same_bits, config, rank_of

DAMAGES = {
    "a/3.png": lambda content: content[: len(content) // 2],
    "b/0.png": lambda content: b"",
    "b/1.png": lambda content: b"junk" * 100,
    "c/20.png": lambda content: content[:60] + bytes([content[60] ^ 255]) + content[61:],
}


def make_folder(root: Path) -> None:
    draw = np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir(parents=True)
        for k in range(22):
            size = (*draw.integers(20, 50, 2), 3)
            Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(root / name / f"{k}.png")


def damage(root: Path) -> None:
    for name, change in DAMAGES.items():
        (root / name).write_bytes(change((root / name).read_bytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part in ("train", "eval"):
        make_folder(root / part)
        damage(root / part)
    return root


def load(run, splits, world: int = 1, last: int = 3):
    """{(step, number): (indices, inputs, targets)} of all ranks together, and {step: what was broken, in order}."""
    found, broken = {}, {step: [] for step in range(last)}
    for rank in range(world):
        for microbatches in train_batches(run, splits, rank_of(rank, world), CPU, 0, last):
            for m in microbatches:
                found[m.step, m.number] = (m.indices, m.inputs, m.targets)
                broken[m.step] += m.broken
    return found, broken


@pytest.mark.parametrize("recipe", ["plain", "strong"])
def test_others_take_the_place_of_broken_files_the_same_for_any_ranks_and_loading_processes(folder: Path, recipe: str):
    data = ImageFolder(root=str(folder), train="train", eval="eval", image_size=16, on_error="substitute")
    splits = datasets.build(data)
    alone, broken = load(config(data, RECIPES[recipe]), splits)
    in_order = [one for step in broken.values() for one in step]
    assert sorted({splits.train.path(one.index) for one in in_order}) == [str(folder / "train" / n) for n in DAMAGES]
    assert all(one.reason.startswith(f"cannot read the image {splits.train.path(one.index)}: ") for one in in_order)
    seen = {index for indices, _, _ in alone.values() for index in indices.tolist()}
    assert seen.isdisjoint(one.index for one in in_order) and seen >= {one.instead for one in in_order}
    for world, workers in ((2, 0), (1, 1), (3, 2)):
        others, again = load(config(data, RECIPES[recipe], workers), splits, world)
        assert_same_bits(others, alone)
        assert again == broken


def test_the_one_that_takes_the_place_is_read_as_at_its_own(folder: Path, tmp_path: Path):
    """A batch is what it would be if the order of the samples had this one in it: augmentation too."""
    make_folder(tmp_path)
    data = ImageFolder(root=str(folder), train="train", eval="eval", image_size=16)
    damaged, augment = datasets.build(data).train, Augment(RECIPES["strong"], 3)
    whole = FolderImages(_files(tmp_path), np.arange(66), 16, None)
    asked = LoadRequest(step=0, number=0, parts=1, epoch=2, indices=np.arange(66))
    found = Fetch(damaged, 3, augment, 0.0, "substitute").__getitems__(asked)
    assert len(found.broken) == len(DAMAGES)
    places = {one.index: one.instead for one in found.broken}
    assert found.request.indices.tolist() == [places.get(index, index) for index in range(66)]
    expected = Fetch(whole, 3, augment, 0.0, "stop").__getitems__(found.request)
    assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.targets, expected.targets)
    others = {drawn(3, epoch, 5, attempt, 66) for epoch in range(20) for attempt in range(TRIES)}
    assert len(others) > 50, "a draw depends on the epoch and on the attempt"


def _files(root: Path) -> FileList:
    paths = sorted(root.glob("*/*.png"))
    return FileList([os.fsencode(path) for path in paths], ["abc".index(path.parent.name) for path in paths])


class Moody:
    """A user's own data set; every seventh sample is broken, and the others draw."""

    def __init__(self, split: str, error: str = "ValueError", every: int = 7) -> None:
        self.error, self.every = {"ValueError": ValueError, "EIO": OSError}[error], every

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int):
        if index % self.every == 0:
            raise self.error(errno.EIO, "it is\nmoody")
        return torch.rand(3) + index, index % 3


class ByRow(ImageSet):
    shape, by_row = (1, 2, 2), True

    def __init__(self, split: str) -> None:
        pass

    def __len__(self) -> int:
        return 50

    def __getitems__(self, indices, crop=None):
        if (indices % 7 == 0).any():
            raise KeyError("one of seven")
        return torch.from_numpy(indices)[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8), torch.from_numpy(
            indices % 3
        )


class AtOnce(ByRow):
    by_row = False


@pytest.mark.parametrize("name", ["Moody", "ByRow"])
def test_a_users_own_data_set_too(name: str):
    data = CustomData(name=f"{__name__}:{name}", on_error="substitute")
    splits = datasets.build(data)  # looks at the first sample that can be read
    alone, broken = load(config(data), splits, last=2)
    in_order = [one for step in broken.values() for one in step]
    assert {one.index for one in in_order} == set(range(0, 50, 7)) - (set(range(50)) - _asked(data))
    assert all(f"sample {one.index}: " in one.reason and "\n" not in one.reason for one in in_order)
    for world, workers in ((3, 0), (1, 2), (2, 1)):
        others, again = load(config(data, workers=workers), splits, world, last=2)
        assert_same_bits(others, alone)
        assert again == broken


def _asked(data) -> set[int]:
    """The samples of the first two steps, of a set in which none is broken."""
    whole = CustomData(name="tests.unit.dist_train.data.test_loader:Drawing")
    steps = train_batches(config(whole), datasets.build(whole), rank_of(0, 1), CPU, 0, 2)
    return {index for step in steps for m in step for index in m.indices.tolist()}


def test_where_nobody_can_know_which_sample_is_broken_it_is_refused():
    data = CustomData(name=f"{__name__}:AtOnce", on_error="substitute")
    with pytest.raises(
        UserError, match=r"data\.on_error is substitute, and AtOnce reads a batch at a time.*by_row"
    ) as e:
        load(config(data), datasets.build(data))
    assert e.value.code == ExitCode.CONFIG
    with pytest.raises(UserError, match=r"eval\.on_error is skip, and AtOnce reads"):
        splits = datasets.build(data)
        list(evaluation_batches(config(data, eval=EvalConfig(on_error="skip")), splits.evaluation, range(1), CPU))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_in_which_every_sample_is_broken_ends_with_the_error_itself(workers: int, tmp_path: Path):
    data = CustomData(name=f"{__name__}:Moody", args={"every": 1}, on_error="substitute")
    with pytest.raises(ValueError, match="moody") as error:
        datasets.build(data)
    data = ImageFolder(root=str(tmp_path), eval_fraction=0.1, image_size=16, on_error="substitute")
    for index in range(30):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{index}.jpg").touch()
    with pytest.raises(UserError, match=rf"cannot read .*: the file is empty; neither can {TRIES} others") as error:
        load(config(data, workers=workers), datasets.build(data))
    assert error.value.code == ExitCode.DATA


def test_by_default_the_error_names_the_key_that_goes_on_without_the_sample(folder: Path):
    data = ImageFolder(root=str(folder), train="train", eval="eval", image_size=16)
    both = r"data\.on_error=substitute; in evaluations eval\.on_error=skip"
    with pytest.raises(UserError, match=rf"cannot read .*png: .* \(to go on without it: {both}\)$"):
        load(config(data), datasets.build(data))
    data = data.model_copy(update={"on_error": "substitute"})
    with pytest.raises(UserError, match=r"cannot read .*png: .* \(to go on without it: eval\.on_error=skip\)$"):
        list(evaluation_batches(config(data), datasets.build(data).evaluation, range(1), CPU))


def test_broken_evaluation_samples_are_left_out_where_that_is_asked(folder: Path):
    data = ImageFolder(root=str(folder), train="train", eval="eval", image_size=16)
    run, splits = config(data, eval=EvalConfig(on_error="skip", batch_size=1)), datasets.build(data)
    batches = dict(evaluation_batches(run, splits.evaluation, range(66), CPU))
    empty = [number for number, batch in batches.items() if not len(batch.indices)]
    assert [splits.evaluation.path(number) for number in empty] == [str(folder / "eval" / name) for name in DAMAGES]
    assert all((len(b.indices), b.indices.tolist()) == (1, [n]) for n, b in batches.items() if n not in empty)
    assert [batches[n].broken[0].index for n in empty] == empty
    run = config(data, eval=EvalConfig(on_error="skip", batch_size=60))
    batches = dict(evaluation_batches(run, splits.evaluation, range(2), CPU))
    assert [index for b in batches.values() for index in b.indices] == [k for k in range(66) if k not in empty]
    assert len(evaluation_samples(run, splits, None, CPU, 8, 1)[0].indices) >= 6


def test_a_file_of_which_only_the_storage_complains_is_waited_for_once(capfd):
    """And then the next ones at once: a folder that has gone would cost minutes for each of its samples otherwise."""
    data = CustomData(name=f"{__name__}:Moody", args={"error": "EIO"}, on_error="substitute")
    run, splits = config(data), datasets.build(data)
    run = run.model_copy(update={"loader": run.loader.model_copy(update={"retry": Duration(0.3, "s")})})
    alone, broken = load(run, splits, last=2)
    assert sum(map(len, broken.values())) > 3
    assert capfd.readouterr().err.count("trying again for 0.3 s") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        UserError("of the config"),
        UserError("of the user's code", ExitCode.USER_CODE),
        SystemExit(1),
    ],
)
def test_what_is_no_sample_s_fault_ends_the_training(error: BaseException):
    assert not is_of_a_sample(error)
    wrapped = UserError("cannot read the image a.png", ExitCode.DATA)
    assert is_of_a_sample(wrapped)
    wrapped.__cause__ = error
    assert not is_of_a_sample(wrapped)


@pytest.mark.parametrize(
    ("share", "size", "most"), [(0.01, 30, 1), (0.01, 300, 3), (0.07, 100, 7), (0, 9, 0), (1, 9, 9)]
)
def test_how_many_may_be_broken(share: float, size: int, most: int):
    assert most_broken(share, size) == most


def test_an_evaluation_set_of_which_nothing_can_be_read_is_told_before_the_first_step(tmp_path: Path):
    for name, content in (("a/0.png", b""), ("b/0.png", b"junk")):
        (tmp_path / "eval" / name).parent.mkdir(parents=True)
        (tmp_path / "eval" / name).write_bytes(content)
    make_folder(tmp_path / "train")
    shutil.rmtree(tmp_path / "train" / "c")
    data = ImageFolder(root=str(tmp_path), train="train", eval="eval", image_size=16)
    run, splits = config(data, eval=EvalConfig(on_error="skip")), datasets.build(data)
    with pytest.raises(UserError, match="none of 2 evaluation samples can be read; the first: cannot read") as error:
        evaluation_samples(run, splits, None, CPU, 8, 1)
    assert error.value.code == ExitCode.DATA
