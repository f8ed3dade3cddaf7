"""Callbacks watch: with and without them a training ends in the same bits, and what they log is everywhere."""

import contextlib
import io
import struct
from pathlib import Path

import pytest
import torch

from dist_train.callbacks import Callbacks, build_callbacks
from dist_train.config.source import load
from dist_train.data import datasets
from dist_train.errors import UserError
from dist_train.learner import build_learner
from dist_train.parallel.ranks import Ranks
from dist_train.tracking.tracker import NullTracker
from tests.distributed import callbacks
from tests.distributed.training import result, train, write_configs
from tests.unit.dist_train.tracking.test_wandb import _read

HOME = "tests.distributed.callbacks"
WATCH = f"callbacks=['{HOME}:Watch', '{HOME}:Everywhere', '{HOME}:Watch']"
TRACKERS = ("tracking.tensorboard=true", "tracking.wandb.mode=offline")
ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def bits(run):
    """What a training ends in, without what its callbacks have logged."""
    mark, rows, samples = result(run)
    return mark, [row for row in rows if row["kind"] != "callback"], samples


def logged(run):
    return [row for row in result(run)[1] if row["kind"] == "callback"]


@pytest.mark.parametrize("config", ["base.yaml", pytest.param("adam.yaml", marks=pytest.mark.long)])
def test_a_training_ends_in_the_same_bits_with_callbacks(run_ranks, folder, config, whole):
    """On 1 and 2 ranks, and where they come with a resume, which tells them the steps that are left."""
    if config != "base.yaml":
        assert run_ranks(train, 1, folder, config, "without") == [0]
        whole = result(folder / "without")
    assert run_ranks(train, 1, folder, config, "1", WATCH) == [0]
    assert run_ranks(train, 2, folder, config, "2", WATCH) == [0, 0]
    assert run_ranks(train, 1, folder, config, "cut", "train.stop_after=3 steps") == [0]
    assert run_ranks(train, 2, folder, config, "cut", WATCH) == [0, 0]
    assert whole == bits(folder / "1") == bits(folder / "2") == bits(folder / "cut")
    assert logged(folder / "1") == logged(folder / "2")
    begins = [row["Watch"]["begins"] for row in logged(folder / "cut") if "begins" in row.get("Watch", {})]
    assert begins == [3]
    steps = [[row for row in logged(folder / run) if "draws" in str(row)] for run in ("2", "cut")]
    assert [row["step"] for row in steps[0]] == [10, 10, 20, 20, 22, 22] and steps[0] == steps[1]


def test_what_is_logged_is_in_every_tracker(run_ranks, folder):
    assert run_ranks(train, 2, folder, "base.yaml", "r", WATCH, *TRACKERS, timeout=120) == [0, 0]
    rows = logged(folder / "r")
    [last] = [row["Watch"] for row in rows if row["step"] == 22 and "draws" in row.get("Watch", {})]
    assert last["loss"] == next(row["loss"] for row in result(folder / "r")[1] if row["step"] == 22)
    assert [row["Watch"]["is_there"] for row in rows if "is_there" in row.get("Watch", {})] == [1.0, 1.0]
    assert {row["Everywhere"]["rank"] for row in rows if "Everywhere" in row} == {0}
    names = {path.relative_to(folder / "r/pictures").as_posix() for path in (folder / "r/pictures").rglob("*.png")}
    kinds = ("Watch/square", "Watch/noise/tensor", "Watch-2/square", "Watch-2/noise/tensor")
    assert names == {f"{kind}/{step:08d}.png" for kind in kinds for step in (11, 22)}
    assert size_of(folder / "r/pictures/Watch/square/00000011.png") == (6, 5)

    # Not above: every rank imports this file.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "r/tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert [one.value for one in events.Scalars("Watch/draws")][-1] == pytest.approx(last["draws"])
    assert [(one.step, one.width, one.height) for one in events.Images("Watch/square")] == [(11, 6, 5), (22, 6, 5)]
    assert "Watch/words/text_summary" in events.Tags()["tensors"]

    [(_, history)] = _read(folder / "r")
    assert [row["Watch/draws"] for row in history if "Watch/draws" in row][-1] == last["draws"]
    words = [row["Watch/words"] for row in history if "Watch/words" in row]
    assert len(words) == 2 and words[0].startswith("evaluation 0.")
    kinds = [row["Watch/noise/tensor._type"] for row in history if "Watch/noise/tensor._type" in row]
    assert kinds == ["image-file"] * 2


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, as PNG has them."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def told(ranks, *arguments):
    """The exit code, and what is said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return train(ranks, *arguments), said.getvalue()


LINE = next(n for n, line in enumerate(Path(callbacks.__file__).read_text().splitlines(), 1) if "# LINE" in line)
CHANGED = "and a callback only watches"
FAILS = {
    "halve": f"it has changed block1.0.weight, {CHANGED}",
    "hook": f"it has changed the hooks of the model, {CHANGED}",
    "count": f"it has changed block1.1.running_mean, {CHANGED}",
    "threads": f"it has changed the threads, default dtype or determinism of torch, {CHANGED}",
    "divide": f"ZeroDivisionError: division by zero ({callbacks.__file__}:{LINE} in divide)",
    "leave": "SystemExit: enough (",
    "long": "TypeError: log('picture', …) takes a number, a text, a picture (an array uint8 [height, width, 3]",
    "upwards": "ValueError: log('../../up', …): a name has letters",
}


@pytest.mark.parametrize("also", FAILS)
def test_what_a_callback_must_not_do_is_said_in_one_line(folder, also):
    """And nothing is logged, and modes and threads are what they were."""
    config = load(str(folder / "base.yaml"), [f"callbacks=[{{name: '{HOME}:Watch', args: {{also: {also}}}}}]"])
    learner = build_learner(config, datasets.build(config.data), torch.device("cpu"))
    own, threads = build_callbacks(config, ALONE), torch.get_num_threads()
    called = Callbacks(own, config, ALONE, learner, 22, NullTracker(), folder)
    try:
        with pytest.raises(UserError) as failed:
            called.call("on_step", 10, {"loss": 1.0})
    finally:
        torch.set_num_threads(threads)
    assert f"callback {HOME}:Watch.on_step, step 10: {FAILS[also]}" in str(failed.value)
    assert failed.value.code == 10 and "\n" not in str(failed.value)
    assert learner.model.training and torch.is_grad_enabled()


def test_an_error_in_a_callback_ends_the_training(run_ranks, folder):
    own = f"callbacks=[{{name: '{HOME}:Watch', args: {{also: divide}}}}]"
    [(code, said)] = run_ranks(told, 1, folder, "base.yaml", "r", own, "train.sanity_check=false")
    assert code == 10 and FAILS["divide"] in said.splitlines()[-1], said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Misspelt", "has on_steps, and called are on_start, on_step, on_evaluation, on_checkpoint, on_end. Did you"),
        ("Wrong", ".on_step takes `stp`; it may take step, figures, log, model, rank, by these names. Did you mean"),
        ("Late", ".on_step must be a plain method, and is a coroutine"),
        ("Nothing", "is a Nothing, with none of the methods on_start, on_step"),
        ("halve", "(model, log) cannot be called so: missing a required argument: 'model'"),
        ("Wach", "has no Wach; it has Watch"),
    ],
)
def test_what_could_not_be_called_is_refused_before_anything_runs(folder, name, words):
    config = load(str(folder / "base.yaml"), [f"callbacks=['{HOME}:{name}']"])
    with pytest.raises(UserError) as refused:
        build_callbacks(config, ALONE)
    assert words in str(refused.value) and refused.value.code == 2 and "\n" not in str(refused.value)


def test_a_figure_of_matplotlib_is_a_picture():
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(2, 1), dpi=50)
    from dist_train.tracking.pictures import picture_of

    picture = picture_of(figure)
    assert picture is not None and picture.shape == (50, 100, 3)
