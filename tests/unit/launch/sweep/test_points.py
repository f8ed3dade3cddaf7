"""What a sweep varies: values, lists, names; and that nothing starts while any point has a mistake."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config.types import RUN_NAME
from dist_train.errors import UserError
from launch.sweep import points, store
from launch.sweep.points import draw, split_values

ROOT = Path(__file__).parents[4]
DIGITS = str(ROOT / "configs" / "digits.yaml")


def values(*over: str, listed: Path | None = None, base: tuple[str, ...] = ()) -> list[dict[str, str]]:
    return [dict(point.overrides) for point in draw(DIGITS, base, over, listed)[0]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.1,0.3", ["0.1", "0.3"]),
        ("0..3", ["0", "1", "2", "3"]),
        ("-1..1, 7", ["-1", "0", "1", "7"]),
        ("[64, 64],[128]", ["[64, 64]", "[128]"]),
        ("{name: sgd, lr: 0.1},adamw", ["{name: sgd, lr: 0.1}", "adamw"]),
        ("'a,b',\"0..3\"", ["'a,b'", '"0..3"']),
        ("it's,so", ["it's", "so"]),
        ("10 epochs,20 epochs", ["10 epochs", "20 epochs"]),
        ("1.5..2", ["1.5..2"]),
    ],
)
def test_values_are_divided_at_commas_and_ranges_include_both_ends(text, found):
    assert split_values(text) == (found, "")


@pytest.mark.parametrize("text", ["", "1,,2", "1,", "3..1", "0..99999", "0..9999999999999"])
def test_values_that_mean_nothing_are_refused(text):
    assert split_values(text)[1]


def test_a_grid_is_every_combination_the_last_key_fastest():
    drawn, configs = draw(DIGITS, ["train.duration=3 epochs"], ["optimizer.lr=0.1,0.3", "seed=0..1"], None)
    assert [point.name for point in drawn] == [
        "000-lr0.1-seed0",
        "001-lr0.1-seed1",
        "002-lr0.3-seed0",
        "003-lr0.3-seed1",
    ]
    assert [(each.optimizer.lr, each.seed) for each in configs] == [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]
    assert {str(each.train.duration) for each in configs} == {"3 epochs"}


def test_a_list_is_yaml_json_or_lines(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "- {optimizer.lr: 0.3, seed: 1}\n- optimizer: {name: adamw, lr: 1e-3}\n- model: mlp\n"
    )
    (tmp_path / "p.json").write_text(
        json.dumps([{"optimizer.lr": 0.3, "seed": 1}, {"optimizer": {"name": "adamw", "lr": 1e-3}}, {"model": "mlp"}])
    )
    (tmp_path / "p.txt").write_text(
        "optimizer.lr=0.3 seed=1\n\n# so far\noptimizer=adamw optimizer.lr=0.001\nmodel=mlp\n"
    )
    drawn = [draw(DIGITS, [], [], tmp_path / name)[1] for name in ("p.yaml", "p.json", "p.txt")]
    assert drawn[0] == drawn[1] == drawn[2]
    assert (drawn[0][0].optimizer.momentum, drawn[0][1].optimizer.name, drawn[0][2].model.name) == (0.9, "adamw", "mlp")


def test_a_list_with_over_is_every_combination_of_both(tmp_path):
    (tmp_path / "p.txt").write_text("model=mlp\nmodel=cnn\n")
    assert len(values("seed=0..2", listed=tmp_path / "p.txt")) == 6


@pytest.mark.parametrize(
    ("over", "lines", "told"),
    [
        (["optimizer.lr=0.1,x,-1", "sed=1,2"], "", ["lr", "not 'x' (points 2-3)", "not -1 (points 4-5)", "mean seed?"]),
        (["seed"], "", ["'seed' is not key=value"]),
        (["seed=1,2", "seed=3"], "", ["is there twice"]),
        (["seed=1,1"], "", ["point 1 (seed=1) is the same run as point 0"]),
        (["optimizer.lr=0.1,1e-1"], "", ["is the same run as"]),
        (["name=a,b"], "", ["is the same for all points of a sweep"]),
        (["eval.best=accuracy,loss"], "", ["is the same for all points of a sweep"]),
        (["seed=0..9999", "optimizer.lr=0.1,0.2"], "", ["20,000 points; at most 10,000"]),
        ([], "seed=0\nseed=x lr\n", ["p.txt:2", "'lr' is no override"]),
        ([], "seed=0\nseed=x\n", ["p.txt:2  seed", "(point 1)"]),
        ([], "# nothing\n", ["has no points"]),
        (["seed=1,2"], "seed=0\n", ["is varied by --over, too"]),
    ],
)
def test_everything_wrong_is_told_at_once(over, lines, told, tmp_path):
    (tmp_path / "p.txt").write_text(lines)
    with pytest.raises(UserError) as error:
        draw(DIGITS, [], over, tmp_path / "p.txt" if lines else None)
    assert error.value.code == 2
    for words in told:
        assert words in str(error.value)


@pytest.mark.parametrize(
    "text", ["seed: 1", "[1, 2]", "- [seed]", "- {seed: 1", "[]", "- seed: x", "- !!python/name:os.x {}"]
)
def test_a_yaml_list_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match="p.yaml"):
        draw(DIGITS, [], [], tmp_path / "p.yaml")


def test_keys_are_as_short_as_tells_them_apart():
    assert points.short_keys(["optimizer.lr", "seed"]) == {"optimizer.lr": "lr", "seed": "seed"}
    assert points.short_keys(["data.name", "model.name", "a"]) == {
        "data.name": "data.name",
        "model.name": "model.name",
        "a": "a",
    }
    assert points.short_keys(["x.lr", "lr"]) == {"x.lr": "x.lr", "lr": "lr"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.text(min_size=1), st.text(), max_size=3), min_size=1, max_size=5))
def test_whatever_is_varied_a_name_is_a_safe_folder(overrides):
    names = points._names(overrides)
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(RUN_NAME, name) and name.isascii() and "\n" not in name


def made(base: list[str], over: list[str]) -> store.Sweep:
    drawn, configs = draw(DIGITS, base, over, None)
    sweep = store.lay_out(DIGITS, drawn, configs)
    store.create(sweep, {point.name: store.grouped(each, sweep) for point, each in zip(drawn, configs, strict=True)})
    return sweep


def test_the_folder_appears_whole_and_reads_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = made([], ["seed=0..1"])
    assert sweep.folder.parent == tmp_path / "runs" / "digits" and sweep.name.startswith("sweep-")
    assert [path.name for path in sweep.folder.parent.iterdir()] == [sweep.name]
    assert store.read_sweep(Path("runs/digits") / sweep.name) == sweep
    from dist_train.config.source import load

    own = [load(sweep.config_of(point)) for point in sweep.points]
    assert [(each.seed, each.tracking.wandb.group) for each in own] == [(0, sweep.name), (1, sweep.name)]


def test_a_group_that_the_user_named_stays(tmp_path, monkeypatch):
    from dist_train.config.source import load

    monkeypatch.chdir(tmp_path)
    sweep = made(["tracking.wandb.group=mine"], ["seed=0..1"])
    assert load(sweep.config_of(sweep.points[0])).tracking.wandb.group == "mine"
