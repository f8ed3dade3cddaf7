"""`~` is the home folder wherever a path may be given: the shell expands it before a blank, and not behind `=`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import pytest
from pydantic import AfterValidator, BaseModel, TypeAdapter

from dist_train.config.schema import RunConfig
from dist_train.config.source import load
from dist_train.errors import UserError
from launch import cli

NO_PATHS = {
    "name", "best", "project", "entity", "group", "tags", "notes", "job_type", "prefix", "options",
    "partition", "account", "qos", "constraint", "array", "time", "mem", "gpus_per_node",
    "pattern", "inputs", "targets", "image", "target", "target_field", "decode", "classes",
    "limit", "pretrained", "freeze", "reinit", "match", "prompt",
}  # fmt: skip
"""Keys whose text is none. A key that is new has to be in here, or of a type that knows the home folder."""


def leaves(section: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in section.model_fields.items():
        whole = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        yield from _leaves(f"{above}{key}", whole)


def _leaves(path: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """Path and type of everything that may be text."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from leaves(kind, f"{path}.")
    elif get_origin(kind) is Annotated and get_args(kind)[0] is str or kind is str:
        yield path, kind
    elif get_origin(kind) not in (Literal, dict):
        for part in get_args(kind):
            yield from _leaves(path, part)


def test_every_text_in_the_schema_is_a_path_or_known_to_be_none(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = set()
    for path, kind in leaves(RunConfig):
        if any(isinstance(part, AfterValidator) and part.func is os.path.expanduser for part in get_args(kind)):
            paths.add(path)
            read = TypeAdapter(kind).validate_python
            assert [read(text) for text in ("~/a", "~", "a/~/b", "a~", "b")] == [
                *("/home/me/a", "/home/me", "a/~/b", "a~", "b")
            ]
        else:
            assert path.split(".")[-1] in NO_PATHS, f"{path}: a path (UserPath), or one of NO_PATHS?"
    assert {"run_root", "data.root", "data.train", "model.start_weights", "slurm.site", "slurm.python"} <= paths


def commands() -> Iterator[tuple[str, click.Parameter]]:
    group = cli.commands
    for name in cli.COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        members = command.commands.values() if isinstance(command, click.Group) else [command]
        for member in members:
            yield from ((f"{name} {parameter.name}", parameter) for parameter in member.params)


def test_every_path_on_the_command_line_knows_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/usr")
    seen = set()
    for name, parameter in commands():
        if isinstance(parameter.type, click.Path):
            seen.add(name)
            assert str(parameter.type.convert("~/lib", parameter, None)) == "/usr/lib", name
        elif name not in ("predict words", "run run_path"):  # images and overrides; a flag. None else is a plain word
            words = f"{parameter.name} {parameter.metavar}".lower()
            assert not any(word in words for word in ("_dir", "path", "folder", "checkpoint")), name
    assert {"train run_dir", "train resume", "slurm resume", "runs root", "evaluate target"} <= seen


def test_images_to_predict_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    from launch.commands.predict import command

    monkeypatch.setenv("HOME", "/usr")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{data: {name: digits}, model: {name: mlp}}")
    with pytest.raises(UserError, match="^/usr/nothing.png: no such file or folder$"):
        command.callback(target=str(run), words=("~/nothing.png",), out=None, nproc_per_node=None, trust=False)


def test_a_user_that_there_is_not_stays_as_it_is():
    assert load_root("~nobody-of-that-name/x") == "~nobody-of-that-name/x"


def load_root(root: str) -> str:
    return RunConfig.model_validate({"run_root": root, "data": {"name": "digits"}, "model": {"name": "mlp"}}).run_root


def test_a_config_says_where_it_is_and_may_extend_one_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("data: {name: image_folder, root: ~/birds, eval_fraction: 0.1}\nmodel: mlp\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "c.yaml").write_text("extends: ~/base.yaml\nrun_root: ~/runs\nmodel: {name: mlp}\n")
    config = load(tmp_path / "own" / "c.yaml", ["model.start_weights=~/w.safetensors"])
    assert (config.run_root, config.data.root) == (str(tmp_path / "runs"), str(tmp_path / "birds"))
    assert config.model.start_weights == str(tmp_path / "w.safetensors")
    assert Path(config.run_root).is_absolute()


@pytest.mark.parametrize("words", [("runs", "--root=~/elsewhere"), ("config", "show", "~/c.yaml")])
def test_commands_look_there(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data: {name: digits}\nmodel: {name: mlp}\n")
    with pytest.raises(SystemExit) as end:
        cli.main([*words])
    said = capsys.readouterr()
    assert end.value.code == 0 and (str(tmp_path / "elsewhere") in said.err or "name: run" in said.out)


def test_a_config_in_the_home_folder_is_no_override(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data: {name: digits}\nmodel: {name: mlp}\n")
    with pytest.raises(SystemExit) as ended:
        cli.commands.main(["train", "~/c.yaml", "--dry-run", "--run-dir", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.err.endswith("nothing was started, nothing was written\n") and said.out == ""
