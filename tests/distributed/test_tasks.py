"""Every task of the schema trains to the same bits on 1, 2 and 3 ranks, and after a stop and a resume."""

import inspect
import json
from typing import get_args

import pytest

from dist_train import tasks
from dist_train.config.schema import TaskConfig
from tests.distributed.training import result, train

BASE = """
name: t
data: {{name: "tests.distributed.kinds:Kind", args: {{task: {kind}}}}}
model: {{name: "tests.distributed.kinds:Net", args: {{task: {kind}}}}}
task: {task}
optimizer: {{name: adamw, lr: 0.01}}
batch: {{microbatches: 3, global_size: 12}}
train: {{duration: 2 epochs}}
eval: {{every: 4 steps, batch_size: 8}}
checkpoint: {{every: 100 steps}}
tracking: {{every: 2 steps, samples: true, wandb: {{mode: disabled}}}}
"""
MEMBERS = [get_args(one)[0] for one in get_args(get_args(TaskConfig)[0])]
SECTIONS = {member.model_fields["name"].default: member for member in MEMBERS}
NAMED = [name for name in SECTIONS if isinstance(name, str)]


def losses(name: str) -> list[str]:
    """What `loss` of the task may be; one without a choice has one."""
    field = SECTIONS[name].model_fields.get("loss")
    return list(get_args(field.annotation)) if field else [""]


ROWS = [(name, loss, place) for name in NAMED for place, loss in enumerate(losses(name))]
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("name", "loss"), [pytest.param(name, loss, marks=[LONG] * (place > 0)) for name, loss, place in ROWS]
)
def test_a_task_ends_in_the_same_bits(run_ranks, tmp_path, name, loss):
    section = {"name": name, **({"loss": loss} if loss else {})}
    (tmp_path / "c.yaml").write_text(BASE.format(kind=name, task=json.dumps(section)))
    assert all(row["truth"] and row["prediction"] for row in check(run_ranks, tmp_path))
    row = [row for row in result(tmp_path / "1")[1] if row["kind"] != "train"][-1]
    assert set(SECTIONS[name].reports) >= set(row) - {"kind", "split", "step", "epoch", "samples_seen", "per_class"}
    assert SECTIONS[name].reports[0] in row


def test_every_section_has_its_task_which_takes_its_keys():
    assert set(NAMED) == tasks.BUILDERS.keys()
    for name, task in tasks.BUILDERS.items():
        keys = SECTIONS[name].model_fields.keys() - {"name"}
        assert keys <= inspect.signature(task).parameters.keys(), name


@pytest.mark.parametrize("model", ["lraspp_mobilenet_v3_large", pytest.param("fcn_resnet50", marks=LONG)])
def test_torchvisions_segmentation_models_end_in_the_same_bits(run_ranks, tmp_path, model):
    """The second output that fcn has is a part of the loss, and its head is trained."""
    config = BASE.format(kind="segmentation", task="{name: segmentation}").splitlines()
    shapes = "data: {name: 'examples.shapes:Shapes', args: {size: 24, eval_size: 10}}"
    config[2:4] = [shapes, f"model: {{name: {model}}}"]
    (tmp_path / "c.yaml").write_text("\n".join(config))
    for ranks in (1, 2):
        assert run_ranks(train, ranks, tmp_path, "c.yaml", str(ranks), "train.duration=2 steps") == [0] * ranks
    assert result(tmp_path / "1") == result(tmp_path / "2")


def test_a_task_of_ones_own_may_have_the_whole_batch(run_ranks, tmp_path):
    """It calls the model twice, and its figures are in every row, exact for any number of ranks."""
    task = '{name: "tests.distributed.kinds:Whole"}'
    (tmp_path / "c.yaml").write_text(BASE.format(kind="classification", task=task))
    check(run_ranks, tmp_path)
    rows = result(tmp_path / "1")[1]
    assert all(row["far"] > 0 and 0 <= row["right"] <= 1 for row in rows)
    assert {(12 * row["right"]) % 1 for row in rows if row["kind"] == "train"} == {0.0}


def check(run_ranks, folder):
    """Steps and an evaluation on 3 ranks, the others on 2, are those of 1."""
    assert run_ranks(train, 1, folder, "c.yaml", "1") == [0]
    assert run_ranks(train, 3, folder, "c.yaml", "2", "train.stop_after=5 steps") == [0, 0, 0]
    assert run_ranks(train, 2, folder, "c.yaml", "2") == [0, 0]
    assert result(folder / "1") == result(folder / "2")
    files = [folder / run / "evaluations/evaluation.json" for run in "12"]
    newest = [path.read_bytes() if path.exists() else None for path in files]
    assert newest == [newest[0]] * 2
    return json.loads(newest[0] or "{}").get("worst")
