"""A microbatch has the same bits for any number of ranks and of loading processes, from any step on; and no loading
process outlives its rank."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.config.schema import (
    BatchConfig,
    Cnn,
    CustomData,
    Cutmix,
    EvalConfig,
    HorizontalFlip,
    ImageFolder,
    LoaderConfig,
    Mixup,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    RunConfig,
    Synthetic,
)
from dist_train.config.types import Duration
from dist_train.data import datasets
from dist_train.data.datasets import ImageSet
from dist_train.data.loader import (
    evaluation_batches,
    evaluation_samples,
    number_of_batches,
    train_batches,
    training_samples,
)
from dist_train.data.workers import number_of_workers, start_method
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.codec import decode
from dist_train.rundir.records import ErrorRecord
from dist_train.tasks import Task
from dist_train.tasks.classification import Classification
from launch.diagnosis.failures import is_peer_loss
from launch.rank import exceptions
from tests import leaks

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[4]
NORMALIZE = Normalize(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
RECIPES = {
    "plain": [],
    "crop and flip": [RandomCrop(padding=2), HorizontalFlip(), NORMALIZE],
    "strong": [RandomResizedCrop(), HorizontalFlip(), RandAugment(), NORMALIZE, Mixup(), Cutmix()],
}


class Drawing:
    """A user's data set that draws from every global generator there is."""

    def __init__(self, split: str, size: int = 50) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        numbers = [random.random(), np.random.random(), torch.rand(()).item(), float(index)]
        return torch.tensor(numbers, dtype=torch.float64), {"class": index % 3, "weight": 0.5}


def config(data, augment=(), workers: int | str = 0, batch: int = 24, parts: int = 6, **more) -> RunConfig:
    return RunConfig(
        data=data,
        augment=list(augment),
        model=Cnn(),
        loader=LoaderConfig(workers=workers, retry=Duration(0.2, "s")),
        batch=BatchConfig(global_size=batch, microbatches=parts),
        seed=3,
        **more,
    )


def rank_of(rank: int, world: int) -> Ranks:
    return Ranks(rank=rank, local_rank=rank, world_size=world, local_world_size=world, node=0)


def load(run: RunConfig, splits, world: int = 1, first: int = 0, last: int = 5) -> dict:
    """What all ranks together get: {(step, number): (indices, inputs, targets)}."""
    found: dict = {}
    for rank in range(world):
        for offset, step in enumerate(train_batches(run, splits, rank_of(rank, world), CPU, first, last)):
            assert {m.step for m in step} == {first + offset}
            for m in step:
                assert (m.step, m.number) not in found
                found[m.step, m.number] = (m.indices, m.inputs, m.targets)
    assert sorted(found) == [(s, v) for s in range(first, last) for v in range(6)]
    return found


def loading_processes() -> list[multiprocessing.process.BaseProcess]:
    """What this test started: a fixture of other tests may keep ranks in this process."""
    return [process for process in multiprocessing.active_children() if process.pid not in leaks.SERVERS]


def assert_same_bits(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for place in left:
        for a, b in zip(left[place], right[place], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)  # nested, and checks dtypes and shapes


@pytest.fixture(autouse=True)
def one_thread():
    """As a rank has by default; beside other tests on the same cores, more would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for k in range(22):
            size = (*draw.integers(20, 50, 2), 3)
            Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(root / name / f"{k}.jpg")
    return root


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("recipe", RECIPES)
def test_images_in_memory_are_the_same_for_any_number_of_ranks(recipe: str):
    data = Synthetic(shape=[3, 12, 12], size=60)
    run, splits = config(data, RECIPES[recipe]), datasets.build(data)
    alone = load(run, splits)
    for world in (2, 3, 4, 5):
        assert_same_bits(load(run, splits, world), alone)


@pytest.mark.parametrize("recipe", RECIPES)
def test_image_files_are_the_same_for_any_number_of_ranks_and_loading_processes(folder: Path, recipe: str):
    data = ImageFolder(root=str(folder), eval_fraction=0.1, image_size=16)
    splits = datasets.build(data)
    alone = load(config(data, RECIPES[recipe]), splits)
    for world, workers in ((2, 0), (5, 0), (1, 1), (2, 2), (3, 1)):
        assert_same_bits(load(config(data, RECIPES[recipe], workers), splits, world), alone)


def test_a_users_random_draws_are_the_same_for_any_number_of_ranks_and_loading_processes():
    data = CustomData(name=f"{__name__}:Drawing")
    splits = datasets.build(data)
    alone = load(config(data), splits)
    for world, workers in ((4, 0), (1, 2), (2, 1)):
        assert_same_bits(load(config(data, workers=workers), splits, world), alone)
    draws = torch.cat([inputs for _, inputs, _ in alone.values()])
    assert len(draws[:, :3].unique()) == draws[:, :3].numel()  # 2 epochs of 48 samples, and no draw twice


class Captions(NamedTuple):
    text: str
    words: Any


class Mixed(Drawing):
    """Leaves of every kind that a sample may have; images as a user's own code makes them, channels last in memory."""

    def __getitem__(self, index: int):
        image = torch.rand(4, 5, 3).permute(2, 0, 1)
        words = {
            "count": np.int32(index % 5),
            "wide": torch.full((3,), index).to(torch.bfloat16),
            "bytes": b"x%d" % index,
        }
        shared = torch.zeros(()).expand(6)
        learned = torch.ones(2, requires_grad=True) * index
        turned = torch.ones(2, dtype=torch.complex64).conj() * 1j
        return (
            image,
            Captions(f"caption {index}", words),
            [shared, learned, np.float64(0.5)],
            turned.conj(),
        ), index % 3


class Batched(ImageSet):
    """A user's own ImageSet, whose images depend on what is read beside them and on the global generators."""

    shape = (1, 4, 4)

    def __init__(self, split: str) -> None:
        pass

    def __len__(self) -> int:
        return 50

    def __getitems__(self, indices: np.ndarray, crop=None):
        images = torch.full((len(indices), 1, 4, 4), int(indices.sum()) % 251, dtype=torch.uint8)
        return images + (torch.rand(len(indices), 1, 1, 1) * 5).byte(), torch.from_numpy(indices) % 3


def bits(value: Any) -> Any:
    """A value with its tensors as types and numbers."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    return (type(value), [bits(item) for item in value]) if isinstance(value, list | tuple) else value


def layout(value: Any) -> Any:
    """Where a value's tensors lie, as far as a kernel may look at it."""
    if isinstance(value, torch.Tensor):
        return value.stride(), value.storage_offset(), value.data_ptr() % 64, value.requires_grad
    if isinstance(value, dict):
        return {name: layout(item) for name, item in value.items()}
    return [layout(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", ["Mixed", "Batched"])
def test_a_microbatch_of_anything_is_the_same_for_any_ranks_and_loading_processes(name: str):
    """Also what can't be cut; and it lies in memory the same way, on which the order of sums in a kernel may depend."""
    data = CustomData(name=f"{__name__}:{name}")
    splits = datasets.build(data)
    alone = load(config(data), splits, last=3)
    assert all(len(inputs[1].text) == len(indices) == 4 for indices, inputs, _ in alone.values() if name == "Mixed")
    for world, workers in ((4, 0), (1, 2), (2, 1)):
        other = load(config(data, workers=workers), splits, world, last=3)
        assert sorted(other) == sorted(alone)
        for place, microbatch in alone.items():
            assert bits(other[place]) == bits(microbatch) and layout(other[place]) == layout(microbatch)
    assert all(place[-2] == 0 and place[-1] is False for place in _places(layout(alone)))


def _places(found: Any) -> list[tuple]:
    if isinstance(found, tuple) and len(found) == 4 and isinstance(found[0], tuple):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [place for part in parts for place in _places(part)]


def test_samples_to_look_at_are_those_of_the_training_and_the_same_each_time():
    data = CustomData(name=f"{__name__}:Drawing")
    run, splits = config(data, eval=EvalConfig(batch_size=20)), datasets.build(data)
    whole = load(run, splits)
    batches = range(number_of_batches(len(splits.evaluation), 20))
    evaluated = torch.cat([batch.inputs for _, batch in evaluation_batches(run, splits.evaluation, batches, CPU)])
    train = training_samples(run, splits, Taking(), CPU, steps=(2, 3, 2))
    assert [(m.step, m.number) for m in train] == [(2, 0), (3, 0), (2, 0)]
    for m in train:
        indices, inputs, targets = whole[m.step, m.number]
        assert torch.equal(m.indices, indices) and torch.equal(m.inputs, inputs)
        assert torch.equal(m.targets["class"], targets["class"])
    for batch in evaluation_samples(run, splits, Taking(), CPU, most=2, times=3):
        assert batch.indices.tolist() == [0, len(splits.evaluation) // 2]  # from all over the split
        assert torch.equal(batch.inputs, evaluated[batch.indices])


class Taking(Task):
    """Takes what is no classification's."""

    def loss(self, output, target):
        raise NotImplementedError


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_target_is_named_before_it_is_computed_with(workers: int):
    data = CustomData(name=f"{__name__}:Labelled")
    run, splits = config(data, workers=workers, batch=8, parts=2), datasets.build(data)
    task = Classification(classes=3)
    words = "sample 6: the target is 3, and there are the classes 0 to 2"
    with pytest.raises(UserError, match=words) as error:
        list(train_batches(run, splits, rank_of(0, 1), CPU, 0, 3, task))
    assert error.value.code == ExitCode.DATA
    with pytest.raises(UserError, match=words):
        list(evaluation_batches(run, splits.evaluation, [0], CPU, task=task))
    with pytest.raises(UserError, match=words):
        evaluation_samples(run, splits, task, CPU, most=20, times=1)


class Labelled(Drawing):
    def __init__(self, split: str) -> None:
        super().__init__(split, 8)

    def __getitem__(self, index: int):
        return torch.zeros(2), np.uint8(3 if index == 6 else 1)


class Masks(Drawing):
    shape = (3, 8, 8)

    def __init__(self, split: str, kind: str) -> None:
        super().__init__(split)
        self.kind = kind

    def __getitem__(self, index: int):
        targets = {"mask": torch.zeros(8, 8), "boxes": {"boxes": torch.zeros(2, 4), "class": 1}, "class": index % 3}
        return torch.zeros(3, 8, 8, dtype=torch.uint8), targets[self.kind]


class Sly(str):
    """Can be handed over once, when it is tried, and not when it is meant."""

    def __reduce__(self):
        if self in _TRIED:
            raise OSError(24, "Too many open files")
        _TRIED.add(self)
        return str, (str(self),)


_TRIED: set[str] = set()


class Sneaky(Drawing):
    def __getitem__(self, index: int):
        return Sly(index), index


def test_an_answer_that_cannot_be_sent_ends_the_loading_process_and_is_not_waited_for():
    data = CustomData(name=f"{__name__}:Sneaky")
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        load(config(data, workers=1), datasets.build(data))
    assert not loading_processes()


MOVING = [RandomCrop(padding=1), HorizontalFlip(), RandomResizedCrop(), RandAugment()]


@pytest.mark.parametrize("step", MOVING, ids=lambda step: step.name)
@pytest.mark.parametrize("kind", ["mask", "boxes"])
def test_an_augmentation_that_would_leave_the_target_where_it_was_is_refused(step, kind: str):
    data = CustomData(name=f"{__name__}:Masks", args={"kind": kind})
    run, splits = config(data, [step, NORMALIZE]), datasets.build(data)
    with pytest.raises(UserError, match=f"augment: {step.name} would move the images and not their targets"):
        training_samples(run, splits, Taking(), CPU, steps=(0,))
    list(evaluation_batches(run, splits.evaluation, [0], CPU))  # where nothing is moved
    training_samples(config(data, [NORMALIZE]), splits, Taking(), CPU, steps=(0,))
    plain = CustomData(name=f"{__name__}:Masks", args={"kind": "class"})
    training_samples(config(plain, [step]), datasets.build(plain), Taking(), CPU, steps=(0,))


@pytest.mark.parametrize("first", [1, 2, 3])
def test_beginning_in_the_middle_goes_on_as_if_never_stopped(first: int):
    data = Synthetic(shape=[3, 12, 12], size=60)  # two steps an epoch
    run, splits = config(data, RECIPES["strong"]), datasets.build(data)
    whole = {place: found for place, found in load(run, splits).items() if place[0] >= first}
    assert_same_bits(load(run, splits, 2, first), whole)


def test_the_global_generators_are_left_alone():
    data = CustomData(name=f"{__name__}:Drawing")
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(2), random.random()
    torch.manual_seed(1)
    random.seed(1)
    load(config(data), datasets.build(data))
    assert torch.equal(torch.rand(2), expected[0]) and random.random() == expected[1]


def test_what_reaches_the_model():
    data = Synthetic(shape=[3, 12, 12], size=60)
    run, splits = config(data, RECIPES["strong"]), datasets.build(data)
    for indices, inputs, targets in load(run, splits).values():
        assert indices.dtype == torch.int64 and indices.shape == (4,)
        assert inputs.dtype == torch.float32 and inputs.shape == (4, 3, 12, 12) and inputs.is_contiguous()
        assert targets.dtype == torch.float32 and targets.shape == (4, 10)
        assert inputs.storage_offset() == 0  # of its own, aligned memory


def test_without_augmentation_an_input_is_its_sample():
    data = Synthetic(shape=[3, 12, 12], size=60)
    splits = datasets.build(data)
    for indices, inputs, targets in load(config(data), splits, 2).values():
        images, classes = splits.train.__getitems__(indices.numpy())
        assert torch.equal(inputs, images.float() / 255)
        assert torch.equal(targets, classes)


def test_auto_microbatches_are_as_many_as_ranks():
    data = Synthetic(shape=[1, 4, 4], size=60)
    run = config(data).model_copy(update={"batch": BatchConfig(global_size=12)})
    (step,) = train_batches(run, datasets.build(data), rank_of(1, 3), CPU, 0, 1)
    assert [(m.number, len(m.indices)) for m in step] == [(1, 4)]


def test_too_few_samples_are_an_error_at_once():
    data = Synthetic(size=20)
    with pytest.raises(UserError, match="20 samples.*24"):
        train_batches(config(data), datasets.build(data), rank_of(0, 1), CPU, 0, 1)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 101])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_drops_and_repeats_nothing(samples: int, workers: int):
    data = Synthetic(shape=[3, 4, 4], eval_size=samples)
    run = config(data, RECIPES["crop and flip"], workers, eval=EvalConfig(batch_size=4))
    dataset = datasets.build(data).evaluation
    count = number_of_batches(samples, 4)
    batches = dict(evaluation_batches(run, dataset, range(count), CPU))
    assert list(batches) == list(range(count))
    assert torch.cat([b.indices for b in batches.values()]).tolist() == list(range(samples))
    images, targets = dataset.__getitems__(np.arange(samples))
    mean, std = (torch.tensor(v)[:, None, None] for v in (NORMALIZE.mean, NORMALIZE.std))
    assert torch.equal(torch.cat([b.inputs for b in batches.values()]), (images.float() / 255 - mean) / std)
    assert torch.equal(torch.cat([b.targets for b in batches.values()]), targets)


def test_a_share_of_the_evaluation_is_that_part_of_it():
    data = CustomData(name=f"{__name__}:Drawing")
    run = config(data, eval=EvalConfig(batch_size=8))
    dataset = datasets.build(data).evaluation
    whole = dict(evaluation_batches(run, dataset, range(7), CPU))
    part = dict(evaluation_batches(run, dataset, [6, 2], CPU))
    assert list(part) == [6, 2] and len(part[6].indices) == 2
    assert all(torch.equal(part[k].inputs, whole[k].inputs) for k in part)
    assert list(evaluation_batches(run, dataset, [], CPU)) == []


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_with_its_exit_code(tmp_path: Path, workers: int):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "b" / "3.png").write_bytes(b"")
    data = ImageFolder(root=str(tmp_path), eval_fraction=0.01, image_size=8)
    with pytest.raises(UserError, match=r"b/3\.png: the file is empty") as error:
        load(config(data, workers=workers), datasets.build(data))
    assert error.value.code == ExitCode.DATA
    assert not loading_processes()


class NeedsTwo(ValueError):
    """Cannot be made of a text, nor pickled."""

    def __init__(self, row: int, column: str) -> None:
        super().__init__(f"row {row} has no {column}")
        self.handle = open(os.devnull)  # noqa: SIM115
        self.handle.close()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise TypeError("no words")


def _noted() -> BaseException:
    error = ValueError("row 7\n  columns: a, b")
    error.add_note("in table.csv")
    return error


ERRORS: dict[str, tuple[Callable[[], BaseException], type[Exception], str]] = {
    "lines and notes": (_noted, ValueError, "row 7\n  columns: a, b"),
    "other arguments": (lambda: NeedsTwo(7, "label"), ValueError, "row 7 has no label"),
    "a key": (lambda: KeyError("label"), KeyError, "'label'"),
    "of the system": (
        lambda: FileNotFoundError(2, "No such file", "a.csv"),
        OSError,
        "[Errno 2] No such file: 'a.csv'",
    ),
    "of a text": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), Exception, "can't decode byte 0xff"),
    "a group": (lambda: ExceptionGroup("both", [ValueError("a"), TypeError("b")]), Exception, "  TypeError: b"),
    "the end": (lambda: StopIteration("no more"), Exception, "no more"),
    "exit": (lambda: SystemExit(3), Exception, "3"),
    "an interrupt": (lambda: KeyboardInterrupt("me"), Exception, "me"),
    "a generator's": (lambda: GeneratorExit(), Exception, ""),
    "memory": (lambda: MemoryError("no room"), MemoryError, "no room"),
    "no words": (lambda: Unspeakable(), Exception, "could not be had: TypeError"),
    "a lost server": (lambda: ConnectionResetError(104, "reset by peer"), ConnectionResetError, "reset by peer"),
}


class Failing(Drawing):
    def __init__(self, split: str, kind: str) -> None:
        super().__init__(split)
        self.kind, self.shape = kind, (4,)

    def __getitem__(self, index: int):
        if index == 7:
            raise ERRORS[self.kind][0]() from LookupError("the cause")
        return super().__getitem__(index)


def failure(run: RunConfig, splits, read: str, monkeypatch) -> Exception:
    """What reading ends with, where no signal of a terminal means anything, as in a rank."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
        with pytest.raises(Exception) as caught:
            if read == "train":
                load(run, splits)
            else:
                list(evaluation_batches(run, splits.evaluation, range(2), CPU))
    return caught.value


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("read", ["train", "evaluation"])
def test_an_error_of_a_data_set_is_told_whole_and_the_same_wherever_it_was(kind: str, read: str, monkeypatch):
    data = CustomData(name=f"{__name__}:Failing", args={"kind": kind})
    splits, (made, base, words) = datasets.build(data), ERRORS[kind]
    told = []
    for workers in (0, 1):
        error = failure(config(data, workers=workers), splits, read, monkeypatch)
        report = exceptions.record_of(error, ())
        assert isinstance(error, base) and words in report["message"]
        assert (report["type"], report["module"]) == (type(made()).__name__, type(made()).__module__)
        assert report["notes"][-1] == "while reading sample 7 of Failing"
        assert [one["message"] for one in report["chain"] if one["is_cause"]] == ["the cause"]
        assert (report["errno"] is None) == (base not in (OSError, ConnectionResetError))
        assert report["code"] == (12 if kind == "memory" else 10) and not report["is_user_error"]
        assert not is_peer_loss(decode(ErrorRecord, {"rank": 0, **report}))
        (frame,) = (frame for frame in report["frames"] if frame["function"] == "__getitem__")
        assert "raise ERRORS[self.kind]" in frame["text"] and "raise ERRORS[self.kind][0]()" in report["traceback"]
        told.append([report[part] for part in ("type", "message", "notes", "errno", "filename", "code")])
    assert told[0] == told[1] and "__getitem__" in report["traceback"]
    assert not loading_processes()


class Shapes(Drawing):
    """What is no pair, or cannot be stacked, or cannot leave a process."""

    def __init__(self, split: str, kind: str) -> None:
        super().__init__(split)
        self.kind, self.shape = kind, (4,)

    def __getitem__(self, index: int):
        ragged, hidden = torch.zeros(3 + index % 2), namedtuple("Hidden", "a")
        samples = {
            "number": 5,
            "triple": (1, 2, 3),
            "none": (None, 1),
            "ragged": (ragged, 1),
            "hidden": (hidden(1.0), 1),
        }
        return samples[self.kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("number", r"sample \d+ of Shapes is a int, and must be a pair \(input, target\)"),
        ("triple", r"sample \d+ of Shapes is a tuple of 3, and must be a pair"),
        ("none", r"found <class 'NoneType'>"),
        ("ragged", r"sample \d+ of \w+ has a tensor of the shape \[\d+\], and sample \d+ one of"),
    ],
)
def test_samples_that_make_no_batch_say_so(kind: str, words: str):
    data = CustomData(name=f"{__name__}:Shapes", args={"kind": kind})
    for workers in (0, 1):
        with pytest.raises(Exception, match=words) as error:
            load(config(data, workers=workers), datasets.build(data))
        notes = "".join(getattr(error.value, "__notes__", []))
        assert isinstance(error.value, UserError) or "while stacking samples" in notes


def test_what_cannot_leave_a_loading_process_is_an_error_and_no_hang():
    data = CustomData(name=f"{__name__}:Shapes", args={"kind": "hidden"})
    with pytest.raises(UserError, match=r"cannot be handed over .* set loader.workers=0"):
        load(config(data, workers=1), datasets.build(data))


# ---------------------------------------------------------------- loading processes


def test_how_many_loading_processes():
    memory, files = datasets.build(Synthetic(size=30)).train, object()
    cores = len(os.sched_getaffinity(0))
    cuda, auto = torch.device("cuda"), LoaderConfig()
    assert number_of_workers(auto, memory, cuda, 1, 100) == 0
    assert number_of_workers(auto, files, cuda, 1, 100) == min(8, cores)
    assert number_of_workers(auto, files, cuda, 10**6, 100) == 1
    assert number_of_workers(auto, files, CPU, 1, 100) == min(8, cores - 1)
    assert number_of_workers(auto, files, CPU, 10**6, 100) == 0
    assert number_of_workers(LoaderConfig(workers=5), memory, CPU, 1, 100) == 5
    assert number_of_workers(LoaderConfig(workers=5), files, CPU, 1, 2) == 2
    assert (start_method(CPU), start_method(cuda)) == ("fork", "forkserver")


class Imported(Drawing):
    """Its targets say whether the process that reads them has what the augmentation needs."""

    shape = (3, 8, 8)

    def __getitem__(self, index: int):
        return torch.zeros(3, 8, 8, dtype=torch.uint8), int("torchvision.transforms.v2" in sys.modules)


def test_a_forked_process_imports_nothing(monkeypatch):
    """It would wait forever for a lock that a thread of its rank held when it was forked, which it has no copy of."""
    monkeypatch.delitem(sys.modules, "torchvision.transforms.v2", raising=False)
    data = CustomData(name=f"{__name__}:Imported")
    found = load(config(data, [RandAugment()], workers=1), datasets.build(data), last=1)
    assert all(targets.all() for _, _, targets in found.values())


def test_closing_ends_the_loading_processes_at_once():
    data = Synthetic(shape=[3, 12, 12], size=10_000)
    batches = train_batches(config(data, workers=2), datasets.build(data), rank_of(0, 1), CPU, 0, 10**6)
    next(batches)
    assert len(loading_processes()) == 2
    begun = time.monotonic()
    batches.close()
    assert not loading_processes()
    assert time.monotonic() - begun < 3


def test_loading_processes_leave_the_signals_of_a_stop_to_their_rank():
    data = Synthetic(shape=[3, 12, 12], size=10_000)
    batches = train_batches(config(data, workers=2), datasets.build(data), rank_of(0, 1), CPU, 0, 200)
    next(batches)
    for process in loading_processes():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process.pid, number)
    assert sum(1 for _ in batches) == 199


A_RANK = """
import multiprocessing, sys, torch
from dist_train.config.schema import Synthetic
from dist_train.data import datasets, loader, workers
from tests.unit.dist_train.data.test_loader import CPU, config, rank_of
loader.start_method = lambda device: workers.start_method(torch.device(sys.argv[1]))
data = Synthetic(shape=[3, 12, 12], size=10_000)
batches = loader.train_batches(config(data, workers=2), datasets.build(data), rank_of(0, 1), CPU, 0, 10**6)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
raise SystemError("the rank fails in the middle")
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("end", ["an error", "SIGKILL"])
def test_loading_processes_end_with_their_rank(device: str, end: str):
    """With CUDA they come from a fork server; the way they start is the same on a CPU, and so is their end."""
    rank = subprocess.Popen(
        [sys.executable, "-c", A_RANK, device],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert rank.stdin and rank.stdout and rank.stderr
    workers = [int(pid) for pid in rank.stdout.readline().split()]
    assert len(workers) == 2 and all(_alive(pid) for pid in workers)
    pids = {*workers, _parent(workers[0])}  # the rank, or the fork server
    if end == "SIGKILL":
        rank.kill()
    else:
        rank.stdin.write("\n")
        rank.stdin.close()
    begun = time.monotonic()
    while any(_alive(pid) for pid in pids) and time.monotonic() - begun < 30:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)
    assert rank.wait(30) == (-signal.SIGKILL if end == "SIGKILL" else 1)
    if end == "an error":
        assert "the rank fails in the middle" in rank.stderr.read()
    for stream in (rank.stdin, rank.stdout, rank.stderr):
        stream.close()


def _alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """State, parent and so on (proc_pid_stat(5)), after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
