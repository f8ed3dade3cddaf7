"""Trainings whose images are decoded once: the bits of one without, whatever the cache holds and whoever is killed."""

import contextlib
import io
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest
from PIL import Image

from tests import rank_pool
from tests.distributed.training import result, train
from tests.exactness.matrix import make_images

CONFIG = """
name: t
data: {name: image_folder, root: ROOT/images, eval_fraction: 0.2, image_size: 8}
augment: [{name: random_crop, padding: 1}, {name: horizontal_flip}]
model: {name: cnn, width: 4, dropout: 0.2}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
loader: {workers: 0}
batch: {microbatches: 6, global_size: 12}
train: {duration: 8 steps, sanity_check: false}
eval: {every: 4 steps}
checkpoint: {every: 3 steps}
tracking: {samples: true, wandb: {mode: disabled}}
"""
CUT = CONFIG.replace("{name: random_crop, padding: 1}", "{name: random_resized_crop}")


def live_and_be_killed(ranks, folder, config, run, images, *arguments):
    """A life whose first rank is killed when its cache has so many images on disk."""
    from dist_train.data.cache.files import blocks_of

    def kill() -> None:
        while sum(map(blocks_of, folder.glob(f"{run}-cache/*/pixels"))) < 8 * images:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    if ranks.is_first:
        threading.Thread(target=kill, daemon=True).start()
    return train(ranks, folder, config, run, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    make_images(folder / "images")
    (folder / "c.yaml").write_text(CONFIG.replace("ROOT", str(folder)))
    (folder / "cut.yaml").write_text(CUT.replace("ROOT", str(folder)))
    return folder


@pytest.fixture(scope="module")
def plain(folder, run_ranks):
    assert run_ranks(train, 1, folder, "c.yaml", "plain") == [0]
    return result(folder / "plain")


def cached(folder, name, **more):
    return f"data.cache={json.dumps({'folder': str(folder / name), **more})}"


def test_cold_on_three_ranks_and_warm_on_one_it_ends_as_without(folder, plain, run_ranks):
    for world, workers in ((3, 0), (1, 1)):
        arguments = (cached(folder, "cache"), f"loader.workers={workers}")
        assert run_ranks(train, world, folder, "c.yaml", f"on{world}", *arguments) == [0] * world
        assert result(folder / f"on{world}") == plain
    said = [(folder / run / "logs/rank0.log").read_text() for run in ("on3", "on1")]
    assert "cache  68 images, none are there" in said[0] and "cache  68 images, all are there" in said[1]


def test_killed_as_it_is_filled_and_gone_on_half_full_it_ends_as_without(folder, plain, run_ranks):
    for ranks, images in ((2, 5), (1, 20)):
        with pytest.raises(rank_pool.RankFailed):
            run_ranks(live_and_be_killed, ranks, folder, "c.yaml", "killed", images, cached(folder, "killed-cache"))
    assert run_ranks(train, 3, folder, "c.yaml", "killed", cached(folder, "killed-cache")) == [0] * 3
    assert result(folder / "killed") == plain


def test_held_in_memory_all_are_decoded_before_the_first_step_and_a_kill_before_it_changes_nothing(
    folder, plain, run_ranks
):
    arguments = (cached(folder, "held-cache", device=True),)
    with pytest.raises(rank_pool.RankFailed):
        run_ranks(live_and_be_killed, 2, folder, "c.yaml", "held", 5, *arguments)
    assert not (folder / "held/metrics.jsonl").exists()
    for world, more in ((3, ["train.stop_after=5 steps"]), (1, ["data.cache=null"])):
        assert run_ranks(train, world, folder, "c.yaml", "held", *arguments, *more) == [0] * world
    assert result(folder / "held") == plain
    assert "cache  68 images, all are there" in (folder / "held/logs/rank0.log").read_text()


def train_and_tell(ranks, *given):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train(ranks, *given)
    return code, said.getvalue()


def test_what_does_not_fit_into_memory_is_refused_before_the_first_step(folder, run_ranks):
    arguments = (cached(folder, "small", device=True, limit="0.1MB"),)
    [(code, said)] = run_ranks(train_and_tell, 1, folder, "c.yaml", "small", *arguments)
    words = "data.cache=device: 68 images take 0.28 MB, and data.cache.limit is 0.10 MB: set data.cache=disk, or use"
    assert code == 12 and said.startswith(words) and said.count("\n") == 1
    assert not [*folder.glob("small/checkpoints/*")]


def write_bmp(path, seed):
    """Of the same size for any seed, and then of the same time."""
    before = path.stat()
    draw = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(draw).save(path, "BMP")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_resume_refuses_a_file_whose_bytes_have_changed_where_these_are_looked_at(folder, run_ranks):
    shutil.copytree(folder / "images", folder / "own")
    path = folder / "own/kind0/7.png"
    write_bmp(path, 1)
    given, lives = (folder, "c.yaml", "own-run", f"data.root={folder}/own"), []
    for check, *more in (
        ["content", "train.stop_after=3 steps"],
        ["content"],
        ["time", "train.stop_after=5 steps"],  # as it is promised
        ["content", "--allow-change", "data"],
    ):
        lives += run_ranks(train_and_tell, 1, *given, cached(folder, "own-cache", check=check), *more)
        write_bmp(path, 2)
    assert [code for code, _ in lives] == [0, 4, 0, 0]
    said = lives[1][1].splitlines()
    assert said[0].startswith(f"! data.cache: {path} has changed since it was decoded") and len(said) == 2
    assert "the data has changed since step-00000003 was written (data.train.bytes was " in said[1]


@pytest.mark.long
def test_what_is_cut_from_kept_images_is_the_same_cold_warm_half_full_and_where_nothing_can_be_kept(folder, run_ranks):
    (folder / "no folder").write_text("")
    ends = []
    for run, world, name, more in (
        *(("cold", 2, "cut", {}), ("warm", 3, "cut", {}), ("half", 1, "half", {"limit": "0.1MB"})),
        *(("half2", 2, "half", {}), ("none", 1, "no folder", {}), ("held cut", 2, "held", {"device": True})),
    ):
        arguments = (cached(folder, name, side=9, **more), "loader.workers=1")
        assert run_ranks(train, world, folder, "cut.yaml", run, *arguments) == [0] * world
        ends.append(result(folder / run))
    assert all(end == ends[0] for end in ends)
    assert run_ranks(train, 1, folder, "cut.yaml", "plain-cut") == [0]
    assert result(folder / "plain-cut")[0] != ends[0][0]  # it is another training, as its config says
