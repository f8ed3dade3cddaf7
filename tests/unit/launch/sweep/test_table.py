"""The table of a sweep from what run directories say, and the machine divided among points."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dist_train.errors import UserError
from dist_train.rundir.codec import write_json
from dist_train.rundir.process_id import ProcessId
from launch.plan.host import Host
from launch.sweep import local, table
from launch.sweep.points import draw
from tests.unit.launch.sweep.test_points import made

DIGITS = str(Path(__file__).parents[4] / "configs" / "digits.yaml")
ME = asdict(ProcessId.myself())
GONE = {**ME, "pid": 2**22 + 1, "started": 1}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made([], ["seed=0..6"])


def left(sweep, number: int, state: dict | None, owner: dict = GONE, verdict: dict | None = None) -> None:
    """What a life of a point leaves in its run directory."""
    generation = sweep.run_dir(sweep.points[number]) / "generations" / "1"
    (generation / "nodes").mkdir(parents=True)
    write_json(generation / "nodes" / "node0.json", owner)
    if state is not None:
        write_json(generation.parents[1] / "state.json", {"step": 5, "total_steps": 20, **state})
    if verdict is not None:
        write_json(generation / "verdict.json", verdict)


def best(value: float) -> dict:
    return {"best": {"metric": "accuracy", "value": value, "step": 4}, "metrics": {"accuracy": value, "per_class": {}}}


def fill(sweep) -> None:
    report = {"type": "ValueError", "message": "no such\nlabel", "is_user_error": False}
    left(sweep, 0, {"status": "done", "step": 20, **best(0.5)})
    left(sweep, 1, {"status": "running", **best(0.99)}, verdict={"cause": {"exit_code": 10, "report": report}})
    left(sweep, 2, {"status": "running"})
    left(sweep, 3, {"status": "stopped", "signal": "SIGTERM", **best(0.7)})
    left(sweep, 4, {"status": "stopped", "signal": None, **best(0.9)})
    left(sweep, 5, {"status": "running"}, owner=ME)


def test_best_first_and_below_what_has_no_result(sweep):
    fill(sweep)
    rows = table.read_table(sweep)
    assert [(row.point.overrides["seed"], row.state) for row in rows] == [
        ("4", "done"),
        ("0", "done"),
        ("1", "failed"),
        ("2", "died"),
        ("3", "stopped"),
        ("5", "running"),
        ("6", "missing"),
    ]
    assert rows[2].reason == "ValueError: no such"
    assert [row.best for row in rows[:2]] == [0.9, 0.5]


def test_lowest_first_where_less_is_better(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loss = ["eval.best=loss", "eval.best_is=min"]
    sweep = made(loss, ["seed=0..1"])
    for number, value in enumerate((0.4, 0.2)):
        left(sweep, number, {"status": "done", **best(value)})
    assert [row.point.overrides["seed"] for row in table.read_table(sweep)] == ["1", "0"]


def test_the_files_say_what_the_table_says(sweep):
    fill(sweep)
    rows = table.read_table(sweep)
    table.write_table(sweep, rows)
    lines = list(csv.DictReader((sweep.folder / "table.csv").open()))
    records = json.loads((sweep.folder / "table.json").read_text())["points"]
    assert [line["point"] for line in lines] == [record["point"] for record in records] == [r.point.name for r in rows]
    assert [line["rank"] for line in lines] == ["1", "2", "", "", "", "", ""]
    assert (lines[0]["seed"], lines[0]["best accuracy"], lines[0]["last accuracy"]) == ("4", "0.9", "0.9")
    text = table.cells(sweep, rows)
    assert text[0] == ("", "point", "seed", "accuracy", "at step", "state")
    assert text[1] == ("1", "004", "4", "0.9", "4", "done")
    assert text[3][-1] == "failed at step 5/20: ValueError: no such"


def machine(cores: int, gpus: int) -> Host:
    return Host(name="here", cores=cores, gpus=gpus, slurm=None)


def configs(*base: str, count: int = 4) -> dict:
    drawn, found = draw(DIGITS, base, [f"seed=1..{count}"], None)
    return {point.name: config for point, config in zip(drawn, found, strict=True)}


def test_cores_are_divided_among_the_points_at_once():
    assert set(local.divide(configs(), 2, None, machine(8, 0)).ranks.values()) == {4}
    assert set(local.divide(configs(), 4, None, machine(2, 0)).ranks.values()) == {1}
    assert set(local.divide(configs(), 4, "3", machine(2, 0)).ranks.values()) == {3}
    assert local.divide(configs(count=1), 4, None, machine(8, 0)).slots == [{}]


def test_gpus_are_divided_into_slices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    share = local.divide(configs(), 3, None, machine(64, 8))
    assert set(share.ranks.values()) == {2}
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in share.slots] == ["0,1", "2,3", "4,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")
    share = local.divide(configs(), 2, None, machine(64, 2))
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in share.slots] == ["3", "GPU-7f"]


def test_points_on_the_cpu_get_no_gpu():
    share = local.divide(configs("distributed.backend=gloo"), 4, None, machine(8, 2))
    assert set(share.ranks.values()) == {2}
    assert share.slots == [{"CUDA_VISIBLE_DEVICES": ""}] * 4


@pytest.mark.parametrize(
    ("base", "ranks", "host", "told"),
    [
        ((), None, machine(8, 2), "2 GPUs here, and each point needs its own: --jobs 2"),
        ((), "9", machine(8, 0), "9 ranks need at least as many microbatches"),
    ],
)
def test_a_share_that_does_not_do_is_refused(base, ranks, host, told):
    with pytest.raises(UserError, match=told):
        local.divide(configs(*base), 4, ranks, host)
