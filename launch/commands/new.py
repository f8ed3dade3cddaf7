"""`dist-train new`."""

import json
import re
import shlex
from pathlib import Path

import click

from dist_train.config import shipped
from dist_train.config.stdout import tell
from dist_train.errors import UserError

from ..console import mark, say
from .common import json_option

TASKS = ("classification", "multi_label", "regression", "segmentation", "language_model")
TEMPLATES = Path(__file__).parents[1] / "project"
FILES = ("config.yaml", "dataset.py", "model.py", "test_training.py")
_PART = re.compile(r" {2}#: (-?)([a-z_ ]+)$")
"""Ends a line of a template that is for these tasks alone, or after a minus for all others."""


@click.command()
@click.argument("folder", type=click.Path())
@click.option("--task", type=click.Choice(TASKS), default=TASKS[0], show_default=True, help="What is to be learned.")
@json_option("One JSON object on stdout.")
def command(folder: str, task: str, as_json: bool) -> None:
    """Write a small project into FOLDER: a config, a model and a data set to change, and a test.

    It trains at once, on data that it makes up.
    """
    path = Path(folder)
    texts = {name: _text(name, task, path.resolve().name) for name in FILES}
    texts[shipped.SCHEMA.name] = shipped.SCHEMA.read_text(encoding="utf-8")
    _write(path, texts)
    if as_json:
        tell(json.dumps({"folder": folder, "task": task, "files": [*texts]}))
        return
    say(f"{mark('✓', 'green')} {folder}: a project of the task {task}")
    of_files = ("what is trained, and how", "your data", "your model", "run by pytest", "for editors: its keys")
    for name, what in zip(texts, of_files, strict=True):
        say(f"  {name:<17} {what}")
    enter = "" if path.resolve() == Path.cwd() else f"cd {shlex.quote(folder)} && "
    say(f"  to train it: {enter}dist-train train config.yaml")


def _text(name: str, task: str, title: str) -> str:
    own = TEMPLATES / f"text_{name}.in"
    template = own if task == "language_model" and own.exists() else TEMPLATES / f"{name}.in"
    lines = []
    for line in template.read_text(encoding="utf-8").splitlines():
        part = _PART.search(line)
        if part is None or (task in part[2].split()) != bool(part[1]):
            lines.append(line[: part.start()] if part else line)
    title = re.sub(r"[^A-Za-z0-9._-]+|^[._-]+", "", title)[:100] or "run"  # as the config's key `name` may be
    return "\n".join([*lines, ""]).replace("TASK", task).replace("NAME", title)


def _write(folder: Path, texts: dict[str, str]) -> None:
    """All files, or none.

    Raises:
        UserError: when there is something in the folder, or it cannot be written.
    """
    made: list[Path] = []
    try:
        if folder.exists() and (found := next(folder.iterdir(), None)):
            raise UserError(f"{folder} is not empty, it has {found.name}: give a folder that is new or empty")
        for parent in [*reversed(folder.parents), folder]:
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        for name, text in texts.items():
            with open(folder / name, "x", encoding="utf-8") as file:
                made.append(folder / name)
                file.write(text)
    except BaseException as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written: {error.strerror}. Give a folder that can be") from None
        raise
