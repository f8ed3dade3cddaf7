"""Threads that load ahead, and images that stay on the device, give the bits of loading in the step; and they end."""

import os
import shutil
import threading
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_train.config.schema import (
    ColorJitter,
    Digits,
    ImageCache,
    ImageFolder,
    LoaderConfig,
    RandAugment,
    RandomResizedCrop,
    RunConfig,
    Synthetic,
)
from dist_train.config.types import Duration
from dist_train.data import datasets
from dist_train.data.ahead import MOST, threads_that_pay
from dist_train.data.datasets import Splits
from dist_train.data.datasets.image_folder import FolderImages
from dist_train.data.fetch import Fetch
from dist_train.data.loader import evaluation_batches, train_batches
from dist_train.data.resident import resident, resident_splits
from dist_train.errors import ExitCode, UserError
from tests.unit.dist_train.data.test_loader import CPU, RECIPES, assert_same_bits, config, load, rank_of
from tests.unit.dist_train.data.test_loader import folder as folder

FULL = [*RECIPES["crop and flip"][:-1], ColorJitter(), RECIPES["crop and flip"][-1]]


def threaded(run: RunConfig, threads: int | str, **more) -> RunConfig:
    loader = LoaderConfig(threads=threads, retry=Duration(0.2, "s")).model_copy(update=more)
    return run.model_copy(update={"loader": loader})


def loading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loading ")]


@pytest.mark.parametrize("recipe", ["crop and flip", "resized"])
def test_files_are_the_same_for_any_number_of_threads_ranks_and_processes(folder: Path, recipe: str):
    data = ImageFolder(root=str(folder), eval_fraction=0.1, image_size=16)
    steps = [RandomResizedCrop(), *FULL] if recipe == "resized" else FULL
    run, splits = config(data, steps), datasets.build(data)
    alone = load(threaded(run, 0), splits)
    for world, threads in ((1, 1), (1, 3), (2, 3), (3, 1), (1, "auto")):
        assert_same_bits(load(threaded(run, threads), splits, world), alone)
    assert_same_bits(load(config(data, steps, 2), splits), alone)
    assert not loading()


@pytest.mark.parametrize("kind", ["image_folder", "digits", "synthetic"])
def test_a_thread_leaves_the_global_generators_to_the_model(folder: Path, kind: str, monkeypatch):
    """Which draws for its dropout meanwhile."""
    files = ImageFolder(root=str(folder), eval_fraction=0.1, image_size=16)
    data = {"image_folder": files, "digits": Digits(), "synthetic": Synthetic(shape=[3, 9, 7], size=60)}[kind]
    splits = datasets.build(data)

    def refuse(value: int) -> None:
        raise AssertionError("the global generators are seeded")

    monkeypatch.setattr("dist_train.randomness.seed_all", refuse)
    load(threaded(config(data, FULL[:-1]), 1), splits)


class Drawing(FolderImages):
    """A user's own, which may draw from them."""


def test_a_users_own_kind_of_ours_is_not_read_in_a_thread_unless_it_says_so(folder: Path):
    splits = datasets.build(ImageFolder(root=str(folder), eval_fraction=0.1, image_size=16))
    assert Fetch(splits.train, 0, None, 1.0, "stop").may_thread
    splits.train.__class__ = Drawing
    assert not Fetch(splits.train, 0, None, 1.0, "stop").may_thread
    splits.train.__class__ = type("Saying", (Drawing,), {"threads": True})
    assert Fetch(splits.train, 0, None, 1.0, "stop").may_thread


@pytest.mark.parametrize("data", [Digits(), Synthetic(shape=[3, 9, 7], size=60)], ids=lambda data: data.name)
def test_images_in_memory_are_the_same_in_threads_and_on_the_device(data):
    run = config(data, FULL[:-1])
    splits = datasets.build(data)
    alone = load(threaded(run, 0), splits)
    there = resident_splits(run.model_copy(update={"data": data.model_copy(update={"cache": "device"})}), splits, CPU)
    assert there.train.is_resident and there.evaluation.is_resident and not getattr(splits.train, "is_resident", None)
    for world in (1, 2, 3):
        assert_same_bits(load(threaded(run, 2), splits, world), alone)
        assert_same_bits(load(threaded(run, 2, workers=2), there, world), alone)
    for (_, a), (_, b) in zip(evaluated(run, splits), evaluated(run, there), strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def evaluated(run: RunConfig, splits: Splits):
    return evaluation_batches(run, splits.evaluation, range(3), CPU)


def test_a_microbatch_on_the_device_waits_for_nothing_on_the_host():
    data = Synthetic(shape=[3, 9, 7], size=60, cache="device")
    run = config(data, [*FULL, *RECIPES["strong"][-2:]])
    splits = resident_splits(run, datasets.build(data), CPU)
    with NoSync():
        assert len(list(train_batches(run, splits, rank_of(0, 1), CPU, 0, 3))) == 3
        with pytest.raises(AssertionError):
            torch.ones(()).item()


class NoSync(TorchDispatchMode):
    """Refuses what would have the host wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_images_that_do_not_fit_on_the_device_are_refused():
    data = Synthetic(shape=[3, 64, 64], size=10**12)
    with pytest.raises(
        UserError, match=r"1,000,000,000,000 images of \[3, 64, 64\] take 12,288,000.00 GB, .*leave"
    ) as e:
        resident(datasets.build(data).train, CPU)
    assert e.value.code == ExitCode.OUT_OF_MEMORY


@pytest.mark.parametrize("recipe", ["crop and flip", "plain"])
def test_files_that_were_copied_to_a_device_are_the_same_and_a_broken_one_fails_as_without(
    folder: Path, tmp_path: Path, recipe: str
):
    shutil.copytree(folder, tmp_path / "images")
    data = ImageFolder(root=str(tmp_path / "images"), eval_fraction=0.1, image_size=16)
    data = data.model_copy(update={"on_error": "substitute", "max_broken": 0.5})
    run, splits = config(data, RECIPES[recipe]), datasets.build(data)
    path = Path(splits.train.path(3))
    path.write_bytes(path.read_bytes()[:100])
    alone = load(threaded(run, 0), splits)
    there = replace(splits, train=resident(splits.train, CPU), evaluation=resident(splits.evaluation, CPU))
    for world in (1, 3):
        assert_same_bits(load(threaded(run, 2), there, world), alone)
    for (_, a), (_, b) in zip(evaluated(run, splits), evaluated(run, there), strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
    stopping = run.model_copy(update={"data": data.model_copy(update={"on_error": "stop"})})
    with pytest.raises(UserError, match=f"cannot read the image {path}"):
        load(threaded(stopping, 0), there)
    [gone.unlink() for gone in (tmp_path / "images").glob("*/*.jpg")]  # what is there needs no file
    assert len(there.train.in_place(np.arange(3))[0]) == len(splits.train)


def test_images_of_files_have_the_word_device_too():
    cut = {"name": "image_folder", "root": "x", "eval_fraction": 0.1, "cache": "device"}
    assert ImageFolder.model_validate(cut).cache == ImageCache(device=True)


@pytest.mark.parametrize("step", [RandomResizedCrop(), RandAugment()], ids=lambda step: step.name)
def test_what_has_other_bits_on_a_gpu_is_refused_there(step):
    data = Synthetic(cache="device")
    with pytest.raises(UserError, match=f"augment: {step.name} has other bits on cuda"):
        resident_splits(config(data, [step]), datasets.build(data), torch.device("cuda"))


def test_a_file_that_cannot_be_read_fails_alike_in_a_thread(folder: Path, tmp_path: Path):
    for source in folder.glob("a/*.jpg"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / source.name).write_bytes(source.read_bytes())
    broken = sorted(tmp_path.glob("a/*.jpg"))[7]
    broken.write_bytes(broken.read_bytes()[:100])
    data = ImageFolder(root=str(tmp_path), eval_fraction=0.1, image_size=16)
    run, splits = config(data, batch=6, parts=6), datasets.build(data)
    said = []
    for threads in (0, 2):
        with pytest.raises(UserError, match=rf"cannot read the image {broken}") as error:
            list(train_batches(threaded(run, threads), splits, rank_of(0, 1), CPU, 0, 6))
        said.append(str(error.value))
        assert error.value.code == ExitCode.DATA and not loading()
    assert said[0] == said[1]
    going_on = run.model_copy(update={"data": data.model_copy(update={"on_error": "substitute", "max_broken": 0.5})})
    assert_same_bits(*(load(threaded(going_on, threads), splits) for threads in (3, 0)))


def test_a_thread_that_waits_for_storage_ends_at_once(folder: Path, tmp_path: Path):
    root = tmp_path / "images"
    root.symlink_to(folder)
    data = ImageFolder(root=str(root), eval_fraction=0.1, image_size=16)
    run, splits = threaded(config(data), 2, retry=Duration(5, "min")), datasets.build(data)
    batches = train_batches(run, splits, rank_of(0, 1), CPU, 0, 100)
    next(batches)
    (ahead,) = (one for one in aheads() if one._threads)
    wait(ahead._ready)
    root.unlink()
    next(ahead)  # was ready; now a thread is asked for one that is away
    while not any("retry.py" in str(frame) for frame in stacks()):
        time.sleep(0.01)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 4 and not loading()


def stacks() -> list:
    import sys
    import traceback

    return [frame for one in sys._current_frames().values() for frame in traceback.extract_stack(one)]


def test_no_thread_is_at_work_in_a_forked_process(folder: Path):
    """A fork copies the locks that other threads hold."""
    data = ImageFolder(root=str(folder), eval_fraction=0.1, image_size=64)
    batches = train_batches(threaded(config(data), 3, prefetch=50), datasets.build(data), rank_of(0, 1), CPU, 0, 500)
    next(batches)
    try:
        for _ in range(5):
            read, write = os.pipe()
            if (pid := os.fork()) == 0:
                os.write(write, b"free" if all(lock.acquire(blocking=False) for lock in locks()) else b"held")
                os._exit(0)
            os.waitpid(pid, 0)
            assert os.read(read, 9) == b"free"
            os.close(read), os.close(write)
        assert len(list(zip(range(60), batches, strict=False))) == 60  # and they go on
    finally:
        batches.close()


def locks() -> list:
    """Those that a thread holds while it is at work."""
    return [lock for one in aheads() for _, lock in one._threads]


def aheads() -> list:
    from dist_train.data.ahead import _rest_at_forks

    return list(_rest_at_forks())


@pytest.mark.parametrize(
    ("waited", "worked", "rest", "free", "threads"),
    [
        (0.0, 0.001, 1.0, 4, 0),  # nothing to gain
        (0.0, 0.5, 1.0, 1, 1),
        (0.0, 0.5, 1.0, 0, 0),  # it would take turns with the rank
        (0.0, 0.5, 1.0, -1, 0),
        (0.0, 3.0, 0.1, 20, MOST),
        (1.0, 0.1, 1.0, 0, 1),  # who waits for storage needs no core
        (3.0, 0.1, 1.0, 0, 3),
        (0.1, 1.0, 1.0, 0, 0),
    ],
)
def test_threads_are_as_many_as_pay(waited: float, worked: float, rest: float, free: int, threads: int):
    assert threads_that_pay(waited, worked, rest, free) == threads


def test_what_draws_from_global_generators_is_never_loaded_in_a_thread(folder: Path):
    data = ImageFolder(root=str(folder), eval_fraction=0.1, image_size=16)
    run, splits = threaded(config(data, [RandAugment()]), 3), datasets.build(data)
    batches = train_batches(run, splits, rank_of(0, 1), CPU, 0, 3)
    next(batches)
    assert not loading()
    batches.close()
