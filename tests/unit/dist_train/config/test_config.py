"""A config means what its files and overrides say, survives being written down, and is told the same everywhere."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dist_train.config.dump import to_yaml
from dist_train.config.json_schema import json_schema
from dist_train.config.problems import ConfigError
from dist_train.config.schema import AdamW, RunConfig, Sgd
from dist_train.config.source import load
from dist_train.config.torchvision_names import SEGMENTS, TorchvisionClassifier
from dist_train.config.tree import Location
from dist_train.config.types import Duration
from dist_train.config.yaml12 import parse_yaml

ROOT = Path(__file__).parents[4]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOOD = "data: {name: digits}\nmodel: {name: cnn}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def read(text: str) -> Any:
    problems: list[Any] = []
    tree = parse_yaml(text, lambda line, column: Location((line, column), ""), problems)
    assert not problems
    return tree.plain()


# ---------------------------------------------------------------- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1e-05", 1e-5), ("1.5E+3", 1500.0), (".5", 0.5), ("1.", 1.0), ("-.5", -0.5),
        ("6.02e23", 6.02e23), ("012", 12), ("-0", 0), ("+7", 7), ("0o17", 15), ("0xff", 255), ("1_000", "1_000"),
        ("0b11", "0b11"), ("12:30", "12:30"), ("1:02:03", "1:02:03"), ("2024-01-01", "2024-01-01"), ("=", "="),
        ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("on", "on"), ("true", True), ("FALSE", False),
        ("tRuE", "tRuE"), ("~", None), ("null", None), ("NULL", None), ("", None), ("''", ""), ("'1'", "1"),
        ('"~"', "~"), (".inf", float("inf")), ("-.INF", float("-inf")), ("inf", "inf"), ("nan", "nan"), ("1e", "1e"),
        ("0o8", "0o8"), ("!!str 12", "12"), ("!!float 12", 12.0), ("[1, 2e0, x]", [1, 2.0, "x"]),
        ("{a: {b: }}", {"a": {"b": None}}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: &x {b: 1}\nd: {<<: [*x, {b: 2, c: 3}]}", {"a": {"b": 1}, "d": {"b": 1, "c": 3}}),
        ("{'<<': 1, '1': 2}", {"<<": 1, "1": 2}),
    ],
)  # fmt: skip
def test_plain_values_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = read(text)
    assert found == value and type(found) is type(value)


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(folder: Path) -> None:
    (folder / "x.yaml").write_bytes(b"\xef\xbb\xbf" + (GOOD + "seed: 3\n").replace("\n", "\r\n").encode())
    assert load("x.yaml").seed == 3
    (folder / "x.yaml").write_bytes(b"\xef\xbb\xbfseed: x\n" + GOOD.encode())
    with pytest.raises(ConfigError, match="x.yaml:1:7"):
        load("x.yaml")


# ---------------------------------------------------------------- extends


def test_maps_are_merged_lists_and_values_replaced(folder: Path) -> None:
    write(
        folder,
        base=GOOD
        + "augment: [{name: horizontal_flip}, {name: mixup}]\ntrain: {precision: bf16, clip_norm: 1}\nseed: 1\n",
        child="extends: base.yaml\naugment: [{name: cutmix}]\ntrain: {clip_norm: 2}\n",
    )
    config = load("child.yaml")
    assert [item.name for item in config.augment] == ["cutmix"]
    assert (config.train.precision, config.train.clip_norm, config.seed) == ("bf16", 2.0, 1)


def test_another_component_drops_the_keys_of_the_one_below(folder: Path) -> None:
    write(
        folder,
        base=GOOD + "optimizer: {name: sgd, lr: 0.3, nesterov: true}\n",
        other="extends: base.yaml\noptimizer: {name: adamw, betas: [0.8, 0.9]}\n",
        same="extends: base.yaml\noptimizer: {name: sgd, momentum: 0.5}\n",
        nameless="extends: base.yaml\noptimizer: {momentum: 0.5}\n",
    )
    assert load("other.yaml").optimizer == AdamW(betas=[0.8, 0.9])
    assert load("same.yaml").optimizer == Sgd(lr=0.3, nesterov=True, momentum=0.5)
    assert load("nameless.yaml").optimizer == load("same.yaml").optimizer


def test_a_section_without_a_name_is_the_default_component(folder: Path) -> None:
    write(
        folder,
        base=GOOD + "optimizer: {lr: 0.3}\n",
        sgd="extends: base.yaml\noptimizer: {name: sgd, momentum: 0.5}\n",
        adamw="extends: base.yaml\noptimizer: {name: adamw}\n",
    )
    assert load("base.yaml", ["schedule.warmup=5 epochs"]).schedule.warmup == Duration(5.0, "epochs")
    assert load("sgd.yaml").optimizer == Sgd(lr=0.3, momentum=0.5)
    assert load("adamw.yaml").optimizer == AdamW()


def test_several_parents_in_their_order_and_relative_to_the_file(folder: Path) -> None:
    (folder / "deep").mkdir()
    write(folder, a=GOOD + "seed: 1\nname: a\n", b="seed: 2\nrun_root: b\n")
    write(folder / "deep", child="extends: [../a.yaml, ../b.yaml]\nrun_root: c\n", grandchild="extends: child.yaml\n")
    config = load("deep/grandchild.yaml")
    assert (config.seed, config.name, config.run_root) == (2, "a", "c")
    write(folder, lonely=GOOD + "extends: []\n")
    assert load("lonely.yaml").seed == 0


def test_a_parent_may_be_extended_twice_but_not_without_end(folder: Path) -> None:
    write(folder, top=GOOD, left="extends: top.yaml\nseed: 1\n", right="extends: top.yaml\nname: right\n")
    write(folder, diamond="extends: [left.yaml, right.yaml]\n")
    assert (load("diamond.yaml").seed, load("diamond.yaml").name) == (1, "right")
    write(folder, f0=GOOD, **{f"f{i}": f"extends: [f{i - 1}.yaml, f{i - 1}.yaml]\n" for i in range(1, 30)})
    with pytest.raises(ConfigError, match="more than 64 files"):
        load("f29.yaml")
    write(folder, one="extends: two.yaml\n", two="extends: one.yaml\n")
    with pytest.raises(ConfigError, match="two.yaml:1:10 .*in a circle: one.yaml → two.yaml → one.yaml"):
        load("one.yaml")


def test_a_problem_is_placed_in_the_file_that_set_it(folder: Path) -> None:
    write(
        folder,
        base=GOOD + "train:\n  clip_norm: -1\n  precision: x\n",
        child="extends: base.yaml\ntrain:\n  clip_norm: -2\n",
    )
    with pytest.raises(ConfigError) as caught:
        load("child.yaml")
    assert [problem.where for problem in caught.value.problems] == ["child.yaml:3:14", "base.yaml:5:14"]


# ---------------------------------------------------------------- overrides


def config_with(folder: Path, *overrides: str, text: str = GOOD) -> RunConfig:
    write(folder, x=text)
    return load("x.yaml", overrides)


def test_overrides_are_yaml_and_the_last_one_wins(folder: Path) -> None:
    config = config_with(
        folder,
        *("optimizer.lr=1e-3", "train.clip_norm=null", "exact=false", "train.duration=3 epochs", "seed=1", "seed=2"),
        "data.eval_fraction=.25", "tracking.wandb.tags=[a, '1']", "train.early_stopping.patience=3", "run_root=a=b",
    )  # fmt: skip
    assert config.optimizer == Sgd(lr=1e-3) and config.train.clip_norm is None and config.exact is False
    assert config.train.duration == Duration(3.0, "epochs") and config.seed == 2
    assert config.tracking.wandb.tags == ["a", "1"] and config.run_root == "a=b"
    assert config.train.early_stopping is not None and config.train.early_stopping.patience == 3


def test_a_mapping_replaces_and_an_empty_value_is_null(folder: Path) -> None:
    text = GOOD + "train: {clip_norm: 3, precision: bf16}\n"
    config = config_with(folder, "train={clip_norm: 1}", text=text)
    assert config.train.clip_norm == 1 and config.train.precision == "fp32"
    assert config_with(folder, "train.clip_norm=", text=text).train.clip_norm is None


def test_items_of_lists_by_number(folder: Path) -> None:
    text = (
        GOOD
        + "augment: [{name: random_crop, padding: 1}, {name: horizontal_flip}]\nmodel: {name: mlp, hidden: [3, 4]}\n"
    )
    text = text.replace("model: {name: cnn}\n", "")
    config = config_with(folder, "augment.0.padding=2", "augment.1.p=0", "model.hidden.1=9", text=text)
    assert config.augment[0].padding == 2 and config.augment[1].p == 0 and config.model.hidden == [3, 9]
    config = config_with(folder, "augment.0.name=mixup", "augment=[{name: cutmix}]", text=text)
    assert [item.name for item in config.augment] == ["cutmix"]
    assert (
        config_with(folder, "augment.0=horizontal_flip", "augment.1=mixup", text=text).augment[0].name
        == "horizontal_flip"
    )


@pytest.mark.parametrize("switch", ["model=mlp", "model.name=mlp", "model={name: mlp}"])
def test_switching_a_component_drops_its_old_keys(switch: str, folder: Path) -> None:
    text = "data: {name: digits}\nmodel: {name: cnn, width: 8, dropout: 0.5}\n"
    for overrides in ([switch, "model.hidden=[64]"], ["model.hidden=[64]", switch]):
        model = config_with(folder, *overrides, text=text).model
        assert (model.name, model.hidden, model.dropout) == ("mlp", [64], 0.0)
    assert config_with(folder, "model=cnn", text=text).model.width == 8, "the same component is no switch"


def test_keyword_arguments_of_components_take_any_key(folder: Path) -> None:
    text = "data: {name: digits}\nmodel: {name: 'mine.nets:Net', args: {sizes: {0.5: 1}}}\n".replace("0.5", "'0.5'")
    model = config_with(folder, "model.args.depth=3", "model.args.sizes.7=[1]", text=text).model
    assert model.args == {"sizes": {"0.5": 1, "7": [1]}, "depth": 3}
    assert config_with(folder, "model=other.nets:Net", text=text).model.args == {}


# ---------------------------------------------------------------- written down and read back

TRICKY = [
    "off",
    "1e-3",
    "012",
    "12:30",
    "0x1",
    "~",
    "",
    " a ",
    "a: b",
    "# x",
    "1_000",
    "null",
    "- x",
    "é",
    "2024-01-01",
    "=",
    "<<",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(TRICKY), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
VARIANTS = [
    {},
    {"data": {"name": "image_folder", "root": "12:30", "eval_fraction": 1e-05}},
    {"data": {"name": "cifar10", "eval_fraction": 0.1}, "model": {"name": "resnet50", "channels_last": True}},
    {"data": {"name": "synthetic", "shape": [1, 8, 8]}, "model": {"name": "mlp", "hidden": []}},
    {"optimizer": {"name": "adamw", "eps": 1e-300}, "schedule": {"name": "one_cycle"}},
    {"optimizer": {"name": "my.optim:Lion", "lr": 5}, "task": {"name": "my.tasks:Ranking", "args": {"k": None}}},
    {"schedule": {"name": "step", "milestones": ["1.5 epochs", "1e6 samples"], "warmup": "0.1 epochs"}},
    {"train": {"stop_after": "90 s", "early_stopping": {"patience": 2}}, "distributed": {"timeout": "2.5 h"}},
    {"augment": [{"name": "normalize", "mean": [0.1], "std": [1e-7]}, {"name": "mixup"}], "batch": {"microbatches": 8}},
    {"name": "1e5", "run_root": "off", "tracking": {"wandb": {"tags": ["null", "3"], "entity": "yes"}}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
def test_every_kind_of_config_survives_being_written_down(variant: dict[str, Any], folder: Path) -> None:
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "cnn"}, **variant})
    write(folder, dumped=to_yaml(config))
    assert load("dumped.yaml") == config
    assert to_yaml(load("dumped.yaml")) == to_yaml(config)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    args=st.dictionaries(KEYS, VALUES, max_size=4),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**62),
)
@example(args={"a": "\u2028", "b": "\ufeff", "c": "x" * 300, "d": "a b " * 60}, lr=1e-05, seed=0)
def test_arguments_and_numbers_survive_being_written_down(
    args: dict[str, Any], lr: float, seed: int, folder: Path
) -> None:
    model = {"name": "mine:Net", "args": args}
    config = RunConfig.model_validate(
        {"data": {"name": "digits"}, "model": model, "optimizer": {"name": "sgd", "lr": lr}, "seed": seed}
    )
    (folder / "dumped.yaml").write_text(to_yaml(config), encoding="utf-8", newline="")
    again = load("dumped.yaml")
    assert again == config
    assert json.dumps(again.model_dump(), sort_keys=True) == json.dumps(config.model_dump(), sort_keys=True), (
        "types too"
    )


def test_the_written_config_is_in_the_order_of_the_schema_and_readable() -> None:
    text = to_yaml(load(ROOT / "configs" / "cifar10.yaml"))
    assert [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()] == list(RunConfig.model_fields)
    assert "\nmodel:\n  name: resnet_cifar\n" in text
    assert "  duration: 64000 steps\n" in text and "  mean: [0.4914, 0.4822, 0.4465]\n" in text


# ---------------------------------------------------------------- what is made from the schema, and the shipped configs


def test_the_editors_schema_and_the_reference_are_fresh() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))
    assert (ROOT / "configs" / "schema.json").read_text(encoding="utf-8") == json_schema(), "dist-train config schema"
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference["markdown"]()


def test_the_editors_schema_knows_bounds_choices_and_extends() -> None:
    schema = json.loads(json_schema())
    batch = schema["$defs"]["BatchConfig"]["properties"]["global_size"]
    assert batch["minimum"] == 1 and "extends" in schema["properties"] and "required" not in schema
    assert schema["$defs"]["TrainConfig"]["properties"]["duration"]["default"] == "10 epochs"
    assert schema["additionalProperties"] is False and "oneOf" not in json_schema() and '"ge"' not in json_schema()


def test_every_key_has_its_docstring() -> None:
    schema = json.loads(json_schema())
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        key
        for section in sections
        for key, node in section["properties"].items()
        if "description" not in node and "$ref" not in node and "const" not in node and "anyOf" not in node
    ]
    assert set(undescribed) <= {"name"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_opens_with_its_command(path: Path) -> None:
    config = load(path)
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert config.name == path.stem
    assert f"configs/{path.name}" in head and isinstance(config.batch.microbatches, int)


def test_torchvisions_models_are_those_we_name() -> None:
    torchvision = pytest.importorskip("torchvision")
    here = set(TorchvisionClassifier.__args__)  # type: ignore[attr-defined]
    assert here == set(torchvision.models.list_models(module=torchvision.models))
    assert set(SEGMENTS) == set(torchvision.models.list_models(module=torchvision.models.segmentation))


def test_reading_a_config_is_quick_and_imports_nothing_heavy(folder: Path) -> None:
    write(folder, x=GOOD)
    script = (
        "import sys\n"
        "from dist_train.config import dump, source\n"
        "dump.to_yaml(source.load('x.yaml', ['optimizer.lr=0.3']))\n"
        "heavy = {'torch', 'torchvision', 'wandb', 'rich', 'numpy', 'click', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
