"""Trainings on files of which some are broken: equal on any number of ranks, after any stop, and ended by a limit."""

import contextlib
import io
import json

import pytest

from tests.distributed.training import result, train
from tests.unit.dist_train.data.test_broken import DAMAGES, damage, make_folder

CONFIG = """
name: t
data: {name: image_folder, root: ROOT, train: train, eval: eval, image_size: 12, on_error: substitute, max_broken: 0.06}
augment: [{name: random_resized_crop}, {name: horizontal_flip}]
model: {name: cnn, width: 4, dropout: 0.2}
loader: {workers: 0}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch: {microbatches: 6, global_size: 12}
train: {duration: 3 epochs}
eval: {every: 1 epochs}
checkpoint: {every: 4 steps}
tracking: {every: 3 steps, samples: true, wandb: {mode: disabled}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    for part in ("train", "eval", "broken"):
        make_folder(folder / part)
    for part in ("train", "broken"):
        damage(folder / part)
    (folder / "c.yaml").write_text(CONFIG.replace("ROOT", str(folder)))
    return folder


@pytest.fixture(scope="module")
def alone(folder, run_ranks):
    assert run_ranks(train, 1, folder, "c.yaml", "alone") == [0]
    return result(folder / "alone")


def told(ranks, *arguments):
    """The exit code of this rank, and what rank 0 said of it."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train(ranks, *arguments)
    return code, said.getvalue()


def notes(folder, run):
    lines = (folder / run / "logs" / "rank0.log").read_text().splitlines()
    return [line.partition(" dist_train: ")[2] for line in lines if "takes its place" in line]


def test_each_broken_file_is_named_once_counted_and_summed_up(folder, alone):
    lines = notes(folder, "alone")
    assert len(lines) == len(DAMAGES)
    assert all(sum(f"{folder}/train/{name}: " in line for line in lines) == 1 for name in DAMAGES)
    assert lines[3].endswith("(4 broken so far, at most 4 may be)")
    counts = [row.get("broken_samples", 0) for row in alone[1] if row["kind"] == "train"]
    assert counts == sorted(counts) and counts[-1] == len(DAMAGES) and len(set(counts)) > 2
    state = json.loads((folder / "alone" / "checkpoints" / "step-00000015" / "state.json").read_text())
    broken = set(state["progress"]["broken"])
    assert len(broken) == 4
    seen = {index for line in alone[2] for part in json.loads(line)["indices"] for index in part}
    assert seen.isdisjoint(broken) and len(seen) == 62, "samples.jsonl has what was really seen"


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (3, 2)])
def test_any_number_of_ranks_and_loading_processes_ends_equal(folder, alone, run_ranks, world, workers):
    run = f"on{world}"
    assert run_ranks(train, world, folder, "c.yaml", run, f"loader.workers={workers}") == [0] * world
    assert result(folder / run) == alone
    assert notes(folder, run) == notes(folder, "alone")


def test_stopped_and_gone_on_with_other_ranks_it_ends_equal_and_tells_no_file_twice(folder, alone, run_ranks):
    run_ranks(train, 2, folder, "c.yaml", "stopped", "train.stop_after=7 steps")
    run_ranks(train, 3, folder, "c.yaml", "stopped", "train.stop_after=11 steps", "loader.workers=1")
    assert run_ranks(train, 1, folder, "c.yaml", "stopped") == [0]
    assert result(folder / "stopped") == alone
    assert notes(folder, "stopped") == notes(folder, "alone")


def test_more_than_the_limit_end_with_13_at_the_same_sample_by_any_ranks_and_after_a_stop(folder, run_ranks):
    said = []
    for run, lives in (("one", (1,)), ("two", (2,)), ("three", (2, 3))):
        for number, world in enumerate(lives):
            stop = ["train.stop_after=4 steps"] if number + 1 < len(lives) else []
            ends = run_ranks(told, world, folder, "c.yaml", run, "data.max_broken=0.04", *stop)
            assert [code for code, _ in ends] == [0 if stop else 13] * world
        said.append(ends[0][1].splitlines()[-1])
    assert said[0] == said[1] == said[2]
    assert "4 of the 66 training samples cannot be read, and data.max_broken=0.04 allows 3: " in said[0]
    assert run_ranks(train, 2, folder, "c.yaml", "two", "data.max_broken=0.5") == [0, 0], "the key may be changed"


def test_a_training_that_a_broken_file_has_ended_may_go_on_without_it(folder, alone, run_ranks):
    code, said = run_ranks(told, 1, folder, "c.yaml", "later", "data.on_error=stop", "train.sanity_check=false")[0]
    both = "data.on_error=substitute; in evaluations eval.on_error=skip"
    assert code == 13 and said.endswith(f"(to go on without it: {both})\n")
    assert run_ranks(train, 2, folder, "c.yaml", "later") == [0, 0]
    assert result(folder / "later") == alone


def test_an_evaluation_leaves_broken_files_out_where_it_is_asked_to(folder, alone, run_ranks):
    asked = ["eval.on_error=skip", "data.eval=broken", "eval.batch_size=1", "train.duration=1 epochs"]
    code, said = run_ranks(told, 1, folder, "c.yaml", "stops", *asked[1:])[0]
    assert code == 13 and said.endswith("(to go on without it: eval.on_error=skip)\n")
    found = {}
    for run, world, mode in (("skip1", 1, "sharded"), ("skip3", 3, "sharded"), ("skip2", 2, "rank0")):
        assert run_ranks(train, world, folder, "c.yaml", run, *asked, f"eval.mode={mode}") == [0] * world
        found[run] = [row for row in result(folder / run)[1] if row["kind"] == "evaluation"]
        lines = (folder / run / "logs" / "rank0.log").read_text().splitlines()
        assert sum("it is left out of the evaluation" in line for line in lines) == len(DAMAGES)
    assert found["skip1"] == found["skip2"] == found["skip3"]
    assert found["skip1"][0]["broken_samples"] == 4 and sum(found["skip1"][0]["per_class"]["support"]) == 62
    few = ["data.max_broken=0.04", "data.on_error=stop", "data.train=eval"]
    (code, said), _ = run_ranks(told, 2, folder, "c.yaml", "toomany", *asked, *few)
    assert code == 13 and "4 of the 66 samples to evaluate cannot be read, and data.max_broken=0.04 allows 3: " in said
