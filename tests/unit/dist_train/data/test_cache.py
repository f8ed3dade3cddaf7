"""Decoded images on disk: what comes out is what decoding gives, whatever happens to its files."""

import io
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
from copy import copy as shallow
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from dist_train.config.changes import is_the_same_training
from dist_train.config.schema import ImageCache, ImageFolder, RunConfig, Shards
from dist_train.config.types import in_bytes
from dist_train.data import datasets
from dist_train.data.cache.files import INDEX, PIXELS
from dist_train.data.cache.form import Form, fitted
from dist_train.data.cache.images import COUNTS
from dist_train.data.datasets.part import split
from dist_train.errors import UserError

SIDE = 12
SIZES = [(40, 30), (12, 12), (7, 5), (9, 90), (16, 16), (300, 2), (33, 17), (20, 12)]
"""Of images larger, as large and smaller than what is kept of them, and some very long ones."""
COUNT = 40


def crop(place, image, height, width):
    return image[:, : image.shape[1] // 2 + 1, : image.shape[2] // 2 + 1].float().mean((1, 2)).byte().view(3, 1, 1)


def write_image(path: Path, size, seed: int, kind: str = "PNG") -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        kind = ("JPEG", "PNG", "BMP")[number % 3]
        path = root / f"kind{number % 2}" / f"{number:03}.{kind.lower()}"
        write_image(path, SIZES[number % len(SIZES)], number, kind)
    return root


def images(root: Path, cache: Path | None, **more):
    """The training split of all images; the evaluation has a fifth of them."""
    given = None if cache is None else {"folder": str(cache), **more}
    return datasets.build(ImageFolder(root=str(root), eval_fraction=0.2, image_size=SIDE, cache=given)).train


def of(dataset, cut: bool = False, order=None):
    rows = np.arange(len(dataset)) if order is None else np.array(order)
    return dataset.__getitems__(rows, crop if cut else None)


def counts(dataset, cut: bool = False) -> dict[str, int]:
    return dict(zip(COUNTS, dataset.kept(cuts=cut).counts.tolist(), strict=True))


def equal(left, right) -> bool:
    return all(map(torch.equal, left, right))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.name in (PIXELS, INDEX))


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("cut", [False, True])
def test_cold_half_full_and_warm_it_gives_what_it_gives_without(root, tmp_path, cut):
    more = {"side": 14} if cut else {}
    (tmp_path / "no folder").write_text("")
    truth = of(images(root, tmp_path / "no folder" if cut else None, **more), cut)
    first = images(root, tmp_path / "cache", **more)
    half = [*range(0, len(first), 2)]
    assert equal(of(first, cut, half), [part[half] for part in truth])
    for dataset in (first, first, images(root, tmp_path / "cache", **more)):
        assert equal(of(dataset, cut), truth)
    last, long = counts(dataset, cut), [name for name in SIZES if cut and max(name) > 10 * min(name) > 20]
    assert last["read"] + last["decoded"] == len(dataset) and last["decoded"] == last["too long"]
    assert bool(last["too long"]) == bool(long)


def test_a_square_is_kept_as_it_is_used_and_no_image_is_enlarged():
    form = Form(size=SIDE, resize=16)
    for size in SIZES:
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        kept = form.kept(image)
        assert kept.numel() <= min(image.numel(), 3 * SIDE * SIDE) or size == (SIDE, SIDE)
        assert torch.equal(form.used(kept), fitted(image, SIDE, 16))
        whole = Form(side=14)
        assert min(whole.kept(image).shape[1:]) == min(14, *size)
        assert whole.used(whole.kept(image)) is not None and whole.kept(image).numel() <= image.numel()


def test_splits_of_one_list_of_files_share_a_folder(root, tmp_path):
    config = ImageFolder(root=str(root), eval_fraction=0.2, image_size=SIDE, cache={"folder": str(tmp_path)})
    splits = datasets.build(config)
    of(splits.train), of(splits.evaluation)
    assert len([*tmp_path.iterdir()]) == 1 and splits.train.kept(cuts=False).begun().all()


def test_threads_read_and_write_at_the_same_time(root, tmp_path):
    truth, dataset = of(images(root, None)), images(root, tmp_path)
    wrong = []

    def work(seed: int) -> None:
        for _ in range(4):
            order = np.random.default_rng(seed).permutation(len(dataset))
            found = of(dataset, order=order)
            wrong.extend([] if equal(found, [part[torch.from_numpy(order)] for part in truth]) else [seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found = counts(dataset)
    assert not wrong and found["read"] + found["decoded"] == 6 * 4 * len(dataset)


def test_processes_that_were_forked_share_what_is_known(root, tmp_path):
    dataset = images(root, tmp_path)
    assert is_true_in_a_child(lambda: len(of(dataset)))
    assert counts(dataset)["decoded"] == len(dataset) and equal(of(dataset), of(images(root, None)))
    assert counts(dataset)["read"] == len(dataset)


def test_shards_and_their_classes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(12):
            stream = io.BytesIO()
            Image.fromarray(np.full((20, 30, 3), number * 9, dtype=np.uint8)).save(stream, "PNG")
            for name, content in ((f"{number:03}.png", stream.getvalue()), (f"{number:03}.cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    given = {"train": str(tmp_path / "a.tar"), "eval_fraction": 0.25, "classes": 3, "image_size": SIDE}
    plain = datasets.build(Shards(**given))
    for _ in range(2):
        kept = datasets.build(Shards(**given, cache={"folder": str(tmp_path / "cache")}))
        for _ in range(2):
            assert all(equal(of(getattr(kept, s)), of(getattr(plain, s))) for s in ("train", "evaluation"))
    assert counts(kept.train)["decoded"] == 0


def test_rows_of_a_part_are_its_rows_one_by_one():
    for part in split(50, 0.3, 7):
        assert part.rows(np.arange(len(part))).tolist() == [part[index] for index in range(len(part))]


# ---------------------------------------------------------------- files that change


@pytest.fixture
def copy(root, tmp_path):
    """Images of one's own, and a function that gives samples of a kind whose size is no part of the cache's key."""
    shutil.copytree(root, tmp_path / "images")

    def victims(ending: str) -> list[int]:
        dataset = images(tmp_path / "images", None)
        found = (index for index in range(len(dataset)) if dataset.path(index).endswith(ending))
        return [index for index in found if dataset.row(index) % 3]

    return tmp_path / "images", victims


def test_files_that_have_changed_are_decoded_anew_and_told_once(copy, tmp_path, capfd):
    folder, victims = copy
    before = images(folder, tmp_path / "cache")
    of(before)
    for index in victims(".png"):
        write_image(Path(before.path(index)), (25, 25), 1000 + index)
    again = images(folder, tmp_path / "cache")
    assert again.kept(cuts=False).folder == before.kept(cuts=False).folder
    assert equal(of(again), of(images(folder, None)))
    assert counts(again)["changed"] == len(victims(".png")) > 2
    assert capfd.readouterr().err.count("has changed since it was decoded") == 1
    assert counts(third := images(folder, tmp_path / "cache"))["changed"] == 0 and equal(of(third), of(again))


def test_another_file_of_the_same_name_size_and_time_is_found_by_its_content(copy, tmp_path):
    folder, victims = copy
    old, victim = of(images(folder, tmp_path / "cache")), victims(".bmp")[0]
    path = Path(images(folder, None).path(victim))
    before = path.stat()
    with Image.open(path) as image:
        write_image(path, image.size[::-1], 4711, "BMP")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert equal(of(images(folder, tmp_path / "cache")), old)  # as it is promised
    by_content = images(folder, tmp_path / "cache", check="content")
    assert equal(of(by_content), of(images(folder, None))) and counts(by_content)["changed"] == 1


def test_a_touched_file_is_decoded_anew_unless_its_content_is_looked_at(copy, tmp_path):
    folder, victims = copy
    of(first := images(folder, tmp_path / "cache"))
    os.utime(first.path(victims(".png")[0]))
    for check, changed in (("content", 0), ("time", 1)):
        dataset = images(folder, tmp_path / "cache", check=check)
        assert equal(of(dataset), of(images(folder, None))) and counts(dataset)["changed"] == changed


def test_a_file_that_has_gone_is_an_error_as_it_is_without(copy, tmp_path, capfd):
    folder, victims = copy
    of(first := images(folder, tmp_path / "cache"))
    victim = victims(".png")[0]
    os.unlink(first.path(victim))
    for dataset in (type(first)(first._files, first._rows, SIDE, None), forgetful(first)):
        with pytest.raises(UserError, match="cannot read the image .*No such file"):
            of(dataset)
    assert "has changed" not in capfd.readouterr().err
    again, every = forgetful(first), np.arange(len(first))
    gone = again.kept(cuts=False).look(again, every, again.rows(every)).tolist()
    assert gone == [victim]  # those that were asked for with it are read


def forgetful(dataset):
    """The same set and cache, with nothing that is known of it, as in a new process."""
    found = shallow(dataset)
    found._kept = pickle.loads(pickle.dumps(dataset._kept))  # noqa: S301
    return found


# ---------------------------------------------------------------- damage


def damaged(dataset, truth, indices) -> int:
    """How many of the samples are found to be damaged; those that come out are right."""
    dataset = forgetful(dataset)
    assert equal(of(dataset, order=indices), [part[list(indices)] for part in truth])
    return len(indices) - counts(dataset)["read"]


def test_a_thousand_flips_are_found_or_do_no_harm(root, tmp_path):
    truth = of(first := images(root, tmp_path))
    of(first)
    folder, draw, found = first.kept(cuts=False).folder, random.Random(0), 0
    rows = {first.row(index): index for index in range(len(first))}
    slot = (folder / PIXELS).stat().st_size // COUNT
    for _ in range(1000):
        row = draw.choice([*rows])
        name, size = draw.choice([(PIXELS, slot), (PIXELS, 3 * 5 * 7), (INDEX, 64)])
        at = row * (64 if name == INDEX else slot) + draw.randrange(size)
        with open(folder / name, "r+b") as file:
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << draw.randrange(8)]), at)
        found += damaged(first, truth, [rows[row]])
    assert found > 500 and damaged(first, truth, range(len(first))) == 0


def test_pages_that_a_power_loss_took_and_files_of_anything_are_found(root, tmp_path):
    truth = of(first := images(root, tmp_path))
    draw, found = random.Random(1), 0
    for _ in range(20):
        path = draw.choice(files_of(tmp_path))
        with open(path, "r+b") as file:
            page = draw.randrange(-(-path.stat().st_size // 4096)) * 4096
            size = min(4096, path.stat().st_size - page)
            os.pwrite(file.fileno(), draw.choice([bytes(size), draw.randbytes(size)]), page)
        found += damaged(first, truth, range(len(truth[0])))
    assert found
    for path in files_of(tmp_path):
        path.write_bytes(random.Random(2).randbytes(path.stat().st_size))
    assert damaged(first, truth, range(len(truth[0]))) == len(truth[0])


@pytest.mark.parametrize("size", [0, 1, 4096, 10_000])
def test_a_truncated_file_ends_no_process_that_maps_it(root, tmp_path, size):
    truth = of(dataset := images(root, tmp_path))
    of(dataset)  # all of it is known, and mapped
    for path in files_of(tmp_path):
        os.truncate(path, size)
        assert equal(of(dataset), truth) and equal(of(images(root, tmp_path)), truth)


def test_a_disk_that_gives_nothing_back_costs_decoding_and_is_told_once(root, tmp_path, capfd):
    truth = of(first := images(root, tmp_path))
    writes_only = os.open("/dev/null", os.O_WRONLY)
    for name in ("_pixels", "_index"):
        dataset = forgetful(first)
        os.dup2(writes_only, getattr(dataset.kept(cuts=False).open(), name))  # and so each read is an error
        assert equal(of(dataset), truth) and equal(of(dataset), truth)
        assert counts(dataset)["read"] == 0 and capfd.readouterr().err.count("cannot be read (Bad file") == 1
    os.close(writes_only)


def test_its_folder_may_go_at_any_moment(root, tmp_path):
    truth = of(dataset := images(root, tmp_path))
    shutil.rmtree(dataset.kept(cuts=False).folder)
    assert equal(of(dataset), truth) and equal(of(images(root, tmp_path)), truth)


# ---------------------------------------------------------------- kills


def fill_until_killed(root: Path, cache: Path, seed: int, begun: int) -> None:
    """In a process of its own."""
    order = np.random.default_rng(seed).permutation(len(dataset := images(root, cache)))
    os.write(begun, b".")
    while True:
        of(dataset, order=order)
        dataset = images(root, cache)


def kill_while_filling(root: Path, cache: Path, truth, kills: int) -> int:
    """How many of the kills left it half full; where others load the machine, many come too late for that."""
    draw, half_full = random.Random(kills), 0
    for number in range(kills):
        hear, begun = os.pipe()
        children = []
        for seed in range(2):
            if (child := os.fork()) == 0:
                fill_until_killed(root, cache, number + seed, begun)
            children.append(child)
        os.close(begun)
        assert os.read(hear, 1) == b"."
        wanted, kept = draw.randrange(len(truth[0])), images(root, cache).kept(cuts=False)
        while kept.begun().sum() < wanted:
            pass
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(hear)
        half_full += 0 < kept.begun().sum() < len(truth[0])
        assert equal(of(images(root, cache)), truth)
        if number % 3:
            shutil.rmtree(cache)
    return half_full


def test_kills_while_it_is_filled_leave_nothing_wrong(root, tmp_path):
    kill_while_filling(root, tmp_path / "cache", of(images(root, None)), 10)


@pytest.mark.long
def test_many_kills_while_it_is_filled_leave_nothing_wrong(root, tmp_path):
    assert kill_while_filling(root, tmp_path / "cache", of(images(root, None)), 300)


# ---------------------------------------------------------------- no room


@pytest.mark.parametrize("limit", ["0kB", "50kB", "1TB"])
def test_the_limit_holds_and_what_is_beyond_it_is_decoded(root, tmp_path, capfd, limit):
    truth = of(images(root, None))
    for _ in range(2):
        dataset = images(root, tmp_path, limit=limit)
        assert equal(of(dataset), truth) and equal(of(dataset), truth)
    assert dataset.kept(cuts=False).taken <= in_bytes(limit) + 8192
    assert capfd.readouterr().err.count("no more images are kept") == (0 if limit == "1TB" else 2)


@pytest.mark.parametrize("room", [0, 3000, 30_000])
def test_a_disk_that_takes_no_more_costs_the_cache_alone(root, tmp_path, room):
    """As far as a limit on the size of files is like a full disk: a write is refused, or is done in part."""
    truth = of(images(root, None))
    hear, told = os.pipe()  # no file, which the limit would be for too

    def fill() -> bool:
        os.dup2(told, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        dataset = images(root, tmp_path)
        return equal(of(dataset), truth) and equal(of(dataset), truth)

    assert is_true_in_a_child(fill)
    os.close(told)
    assert os.read(hear, 4096).count(b"! data.cache: ") == 1
    os.close(hear)
    assert equal(of(images(root, tmp_path)), truth)


def test_a_folder_that_cannot_be_made_is_told_once(root, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    truth, dataset = of(images(root, None)), images(root, tmp_path / "file")
    assert equal(of(dataset), truth) and equal(of(dataset), truth)
    assert capfd.readouterr().err.count("images cannot be kept in") == 1


def test_one_that_can_only_be_read_is_read(root, capfd):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # for a user who is not root
        folder, cache = Path(shutil.copytree(root, f"{place}/images")), Path(place) / "cache"
        folder.chmod(0o755)
        truth = of(images(folder, cache), order=range(10))
        [path.chmod(0o444) for path in files_of(cache)]

        def read() -> bool:
            os.setuid(65534) if os.getuid() == 0 else None
            dataset = images(folder, cache)
            return equal([part[:10] for part in of(dataset)], truth) and counts(dataset)["read"] == 10

        assert is_true_in_a_child(read)
    assert capfd.readouterr().err.count("cannot be written") == 1


def is_true_in_a_child(function) -> bool:
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


# ---------------------------------------------------------------- the config


def config(cache, *augment: str, **more):
    data = {"name": "image_folder", "root": "x", "eval_fraction": 0.1, "image_size": 224, "cache": cache}
    items = [{"name": name} for name in augment]
    given = {"name": "x", "data": data, "model": {"name": "cnn"}, "augment": items}
    return RunConfig.model_validate({**given, **more})


def test_disk_is_the_section_with_its_defaults():
    assert (
        config("disk") == config({}) and config("disk").data.cache == ImageCache() and config(None).data.cache is None
    )
    assert RunConfig.model_validate_json(config("disk").model_dump_json()) == config("disk")


def test_what_random_resized_crop_cuts_from_has_to_be_said():
    assert config({"side": 256}, "random_resized_crop").data.cache.side == 256
    for cache, augment, words in (
        ("disk", ["random_resized_crop"], "is not set: random_resized_crop cuts from .* such as 256"),
        ({"side": 200}, ["random_resized_crop"], "is 200, smaller than image_size 224"),
        ({"side": 256}, [], "is for random_resized_crop"),
        ({"limit": "20"}, [], "limit"),
        ("device!", [], "cache"),
    ):
        with pytest.raises(ValidationError) as error:
            config(cache, *augment)
        assert re.search(words, str(error.value) + str(error.value.errors()))


def test_what_a_result_does_not_depend_on_may_change():
    cut = {"side": 256}, "random_resized_crop"
    for before, after, is_same in (
        (config(None), config("disk"), True),
        (config("disk"), config({"folder": "/elsewhere", "limit": "1GB", "check": "content"}), True),
        (config("disk"), config(None), True),
        (config(*cut), config({"side": 300}, "random_resized_crop"), False),
        (config(*cut), config(None, "random_resized_crop"), False),
        (config(None, "random_resized_crop"), config(*cut), False),
    ):
        assert is_the_same_training(before, after, ()) == is_same


def test_where_images_in_memory_lie_may_change():
    digits = [config(None, data={"name": "digits", "cache": cache}) for cache in (None, "device")]
    assert is_the_same_training(*digits, ()) and is_the_same_training(*digits[::-1], ())
    assert is_the_same_training(config("disk"), config("device"), ())


def test_earlier_runs_have_folders_under_cache():
    before = {"name": "text", "root": "x", "cache": None}, {"name": "text", "root": "x", "cache": "/tokens"}
    assert [config(None, data=data).data.cache_folder for data in before] == [None, "/tokens"]
    rows = {"name": "huggingface", "train": "x", "eval": "y", "inputs": "a", "targets": "b"}
    assert config(None, data={**rows, "cache": "/arrow"}).data.cache_folder == "/arrow"
    assert config(None, data={**rows, "cache": "disk"}).data.cache == ImageCache()
