"""What a dry run finds before anything is started: the end that the training would come to by its data and model."""

import pytest

from dist_train.commands.describe import describe
from dist_train.config.schema import RunConfig
from launch.plan.dry_run import ask_description

DIGITS = {"name": "digits"}


def facts(**sections):
    return describe(RunConfig.model_validate({"data": DIGITS, "model": {"name": "mlp"}, **sections}))


def custom(name, **args):
    return {"name": name, "args": args}


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"data": {"name": "image_folder", "root": "nowhere", "eval_fraction": 0.1}}, 13, "nowhere"),
        ({"data": {"name": "cifar10", "root": "nowhere", "download": False}}, 13, "nowhere"),
        ({"data": {"name": "synthetic", "size": 10}, "batch": {"global_size": 64}}, 2, "do not fill a global batch"),
        ({"model": custom("torch.nn:Linear", in_features=64, out_features=10, bia=1)}, 2, "bia"),
        ({"model": custom("torch.nn:Linear", in_features="x", out_features=2)}, 10, "TypeError"),
        ({"model": {"name": "mlp", "start_weights": "nowhere.safetensors"}}, 2, "nowhere.safetensors"),
        ({"optimizer": {**custom("torch.optim:Adagrad", lr_dcay=1), "lr": 0.1}}, 2, "lr_dcay"),
        ({"task": custom("tests.distributed.test_begun:Shifty", wight=2)}, 2, "wight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_end_the_training_is_told_with_its_exit_code(sections, code, words):
    found = facts(**sections)
    assert found.exit_code == code and words in found.problem and "\n" not in found.problem


def test_what_the_training_fetches_itself_is_no_failure(tmp_path):
    found = facts(data={"name": "cifar10", "root": str(tmp_path / "there")})
    assert found.exit_code is None and "the training downloads it" in found.problem
    assert not (tmp_path / "there").exists()
    assert facts().problem is None


def test_what_libraries_print_meanwhile_is_no_part_of_it(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nprint('a warning', file=sys.stderr)\n")
    (tmp_path / "c.yaml").write_text("data: {name: digits}\nmodel: {nme: mlp}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = RunConfig.model_validate({"data": DIGITS, "model": {"name": "mlp"}})
    found = ask_description(own, str(tmp_path / "c.yaml"), [])
    assert found.exit_code == 2 and "model.name" in found.problem and "a warning" not in found.problem
