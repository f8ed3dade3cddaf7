"""The sentence on what a training loses its time to (dist_train/report/bottleneck.py)."""

import json
from dataclasses import asdict, replace

import pytest

from dist_train.config.schema import RunConfig
from dist_train.report.bottleneck import Account, Setting
from dist_train.report.budget import PHASES, Budget
from dist_train.report.facts import gather
from dist_train.report.late import Late
from dist_train.report.page import render
from tests.unit.dist_train.report.test_page import data_of, train_row, write_run

SETTING = Setting(cores=4, workers=1, floor=0.001, parameters=1_000_000, on_gpu=False)
FINE = {"forward": 1.0, "backward": 2.0, "exchange": 0.1, "optimizer": 0.1, "other": 0.05}


def config(**more):
    given = {"name": "x", "data": {"name": "synthetic"}, "model": {"name": "mlp"}, "checkpoint": {"every": "2 epochs"}}
    return RunConfig.model_validate(given | {"batch": {"microbatches": 4, "global_size": 32}} | more)


def budget(*ranks, steps=10, exchanging=None, **loading):
    spent = {rank: dict.fromkeys(PHASES, 0.0) | one for rank, one in enumerate(ranks)}
    exchanging = min(one["exchange"] for one in spent.values()) if exchanging is None else exchanging
    return Budget(steps=steps, ranks=spent, loading=loading, exchanging=exchanging)


def found(one, late=(), **more):
    account = Account.of(more.pop("config", config()), more.pop("setting", SETTING), [(one, late)])
    return account.bottleneck


@pytest.mark.parametrize(
    ("more", "loading", "kind", "advice"),
    [
        ({}, {}, "balanced", "nothing else stands out"),
        ({"input": 3.0}, {"read": 0.03, "decode": 0.001, "augment": 0.0}, "input read", "try loader.workers=2"),
        ({"input": 3.0}, {"read": 0.0, "decode": 0.05, "augment": 0.01}, "input decode", "try loader.workers=3"),
        ({"input": 3.0}, {"read": 0.0, "decode": 0.01, "augment": 0.05}, "input augment", "augment is the stage (20 "),
        ({"exchange": 3.0}, {}, "exchange", "try batch.global_size=64"),
        (
            {"evaluation": 3.0},
            {},
            "evaluation",
            "takes 48 % of the time, every 1 epoch; try eval.every='19 e",
        ),
        ({"save": 1.0}, {}, "save", "every 2 epochs; try checkpoint.every='14 epochs'"),
        ({"forward": 0.01, "backward": 0.01}, {}, "small batch", "try batch.microbatches=2"),
    ],
)
def test_the_bottleneck_is_named_with_a_thing_to_try(more, loading, kind, advice):
    one = found(budget(FINE | more, FINE | more, **loading))
    assert (f"{one.kind} {one.stage}".strip(), advice in one.sentence) == (kind, True), one.sentence


def test_what_others_wait_for_is_what_the_rank_does_that_waits_least():
    saves = FINE | {"save": 3.0}
    assert found(budget(saves, FINE | {"exchange": 3.1}), setting=SETTING).kind == "save"
    late = Late(rank=1, phase="backward", seconds=0.3, share=0.5)
    one = found(budget(FINE | {"exchange": 3.1}, FINE | {"backward": 5.0}), [late])
    assert one.kind == "late" and one.share == pytest.approx(0.48, abs=0.02)
    assert one.sentence.startswith("rank 1 is late: 0.3 s a step in its backward (48 % of a step), and the others")


def test_ranks_that_are_late_by_turns_are_no_slow_exchange():
    assert found(budget(FINE | {"exchange": 2.0}, FINE | {"exchange": 2.0}, exchanging=0.1)).kind == "balanced"


def test_a_balanced_training_is_told_of_bf16_where_there_is_some():
    able = replace(SETTING, bf16=True)
    assert found(budget(FINE), setting=able).sentence.endswith("try train.precision=bf16")
    assert "bf16" not in found(budget(FINE), setting=able, config=config(train={"precision": "bf16"})).sentence
    assert "bf16" not in found(budget(FINE), setting=SETTING).sentence
    row = asdict(able)
    assert Setting.from_row(row) == able and Setting.from_row({**row, "more": 1}) is None
    del row["bf16"]
    assert Setting.from_row(row) == SETTING


def test_advice_is_possible():
    full = Setting(cores=1, workers=0, floor=0.001, parameters=1_000_000, on_gpu=False)
    slow = budget(FINE | {"input": 3.0}, read=0.0, decode=0.02, augment=0.0)
    assert "no core is free for more loader.workers" in found(slow, setting=full).sentence
    own = config(data={"name": "birds.data:Birds"})
    assert "Birds.__getitem__ is the stage (50 samples/s a core)" in found(slow, config=own).sentence
    small = budget(FINE | {"forward": 0.01, "backward": 0.01})
    one = found(small, config=config(batch={"microbatches": 1, "global_size": 4}))
    assert "try batch.global_size=32" in one.sentence


def test_images_that_are_decoded_over_and_over_are_worth_a_cache():
    def advice(data, *augment, loading=None):
        given = config(data=data, augment=[{"name": name} for name in augment], model={"name": "cnn"})
        one = budget(FINE | {"input": 3.0}, **(loading or {"read": 0.0, "decode": 0.05, "augment": 0.01}))
        return found(one, config=given).sentence

    folder = {"name": "image_folder", "root": "x", "eval_fraction": 0.1}
    assert "try data.cache=disk, which" in advice(folder, "horizontal_flip")
    assert "try data.cache.side=256, which" in advice(folder, "random_resized_crop")
    assert "try loader.workers" in advice({**folder, "cache": "disk"})
    assert "try loader.workers" in advice({"name": "digits"})
    assert "try loader.workers" in advice(folder, loading={"read": 0.0, "decode": 0.01, "augment": 0.05})
    shards = {"name": "shards", "train": "x", "eval": "y"}
    assert "try data.cache=disk" in advice(shards)
    assert "try loader.workers" in advice({**shards, "decode": "own:decode"})


def test_the_page_has_it_and_whatever_else_a_file_says_is_no_harm(tmp_path):
    rows = [train_row(step, 1.0) for step in range(1, 41)]
    told = budget(FINE | {"input": 3.0}, FINE | {"input": 3.1}, read=0.03, decode=0.001, augment=0.0)
    late = Late(rank=1, phase="input", seconds=0.01, share=0.2)
    rows[9]["time"] |= told.as_row() | {"setting": asdict(SETTING), "late": [late.as_row()]}
    rows[19]["time"] |= told.as_row()
    page = render(gather(write_run(tmp_path, rows)))
    assert "Input-bound: ranks wait" in page and "Step 10: rank 1 is late" in page
    assert 'class="p0"' in page and ">rank 1</text>" in page
    data = data_of(page)["run"]["time"]
    assert (data["kind"], data["stage"], data["late"]) == ("input", "read", [1])
    assert data["seconds_by_phase"]["forward"] == 2.0
    strange = [
        {"budget": 1, "ranks": {"<b>": [1]}},
        {"ranks": {"0": ["<b>"] * 9}, "steps": 3},
        {"setting": {"cores": "<b>"}},
    ]
    for number, one in enumerate([*strange, {"late": [{"rank": "<b>", "seconds": "x"}]}, {"late": "<b>"}]):
        rows[29]["time"] = json.loads(json.dumps(told.as_row())) | one
        (folder := tmp_path / str(number)).mkdir()
        assert "<b>" not in render(gather(write_run(folder, rows)))
