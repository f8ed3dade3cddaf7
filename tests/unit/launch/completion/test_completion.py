"""What TAB offers, and that real shells take it."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from dist_train.config import shipped
from launch import cli, completion

ROOT = Path(__file__).parents[4]


def offered(line: str) -> list[str]:
    """What may stand in place of the last word."""
    *words, typed = line.split(" ")
    complete = get_completion_class("zsh")(cli.commands, {}, "dist-train", "_DIST_TRAIN_COMPLETE")
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in complete.get_completions(words, typed)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, run in enumerate(("digits/old", "birds/new")):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("data: {name: image_folder}\nmodel:\n  # a comment\n  name: gpt\n")
        os.utime(folder, (number, number))
    (tmp_path / "runs/digits/no-run").mkdir()
    (tmp_path / "mine.yaml").write_text("model: {name: mlp, hidden: [32]}\n")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tra", ["train"]),
        ("config s", ["schema", "show"]),
        ("train --nproc", ["--nproc-per-node"]),
        ("train dig", ["digits"]),
        ("train m", ["multi_label", "mine.yaml"]),
        ("train r", ["regression", "runs/"]),
        ("train digits optimizer.n", ["optimizer.name=", "optimizer.nesterov="]),
        ("train digits optimizer.nesterov=", ["true", "false"]),
        ("train digits optimizer.name=mu", ["muon"]),
        ("train digits see", ["seed="]),
        ("train digits model", ["model.", "model="]),
        ("train digits model=resnet_", ["resnet_cifar"]),
        ("train digits model.w", ["model.width="]),
        ("train digits model=mlp model.w", []),
        ("train digits model.name=mlp model.hid", ["model.hidden="]),
        ("train mine.yaml model.hid", ["model.hidden="]),
        ("train digits model.hid", []),
        ("train runs/birds/new model.lay", ["model.layers="]),
        ("train digits tracking.wandb.mode=o", ["online", "offline"]),
        ("train digits train.clip_norm=", ["null"]),
        ("train image_folder data.root=/da", ["<file>"]),
        ("train digits extends", []),
        ("train digits no.such.key", []),
        ("train digits no.such.key=", []),
        ("train --resume ", ["auto", "none", "runs/birds/new", "runs/digits/old"]),
        ("evaluate ", ["runs/birds/new", "runs/digits/old"]),
        ("compare runs/birds/new runs/d", ["runs/digits/old"]),
        ("evaluate elsewhere", ["<dir>"]),
        ("cache runs/b", ["runs/birds/", "runs/birds/new"]),
        ("sweep digits --over optimizer.mo", ["optimizer.momentum="]),
        ("run ", ["<file>"]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_what_is_offered(line, expected):
    found = offered(line)
    equals = line.rpartition(" ")[2].partition("=")[0] + "="
    values = [word.removeprefix(equals) if word.startswith(equals) and word != equals else word for word in found]
    assert values == expected


def test_a_config_is_one_of_ours_or_of_the_folder():
    assert offered("train ") == [*shipped.names(), "mine.yaml", "runs/"]


def test_every_key_of_the_schema_is_offered_below_the_one_before():
    """And each value that is offered is one that the schema knows."""

    def below(typed: str) -> set[str]:
        found = set(offered(f"train CONFIG {typed}"))
        return found | {key for word in found if word.endswith(".") for key in below(word)}

    from dist_train.config import shape

    assert {key.removesuffix("=") for key in below("") if key.endswith("=")} | {
        key.removesuffix(".") for key in below("") if key.endswith(".")
    } == set(shape.key_paths())


def test_nothing_heavy_is_imported_for_it():
    code = (
        "import sys\nfrom launch import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'pydantic', 'numpy', 'yaml', 'wandb'} & sys.modules.keys(), file=sys.stderr)"
    )
    asked = {"COMP_WORDS": "dist-train train digits optimizer.nest", "COMP_BREAKS": "=:"}
    environment = {**os.environ, **asked, "_DIST_TRAIN_COMPLETE": "bash_complete"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("plain,optimizer.nesterov=\n", "set()\n")


STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], ". ./script"),
    "zsh": (["-f", "-i"], "autoload -U compinit; compinit -u -D; . ./script"),
    "fish": (["--no-config", "-i"], ". ./script"),
}


COMMAND = f"""#!/bin/sh
[ -n "$_DIST_TRAIN_COMPLETE" ] && exec {sys.executable} -m dist_train.launch
printf '<%s>' "$@"
"""
"""dist-train, but for the words that it is given at last, which it shows."""


CONTROL = r"\x1b\[[0-9;?]*[a-zA-Z]|[\x07\x08]"
"""What moves the cursor, and rings the bell."""


class Terminal:
    """A shell of a person's, in which keys are pressed."""

    def __init__(self, words, environment):
        self.process, self.keys = pty.fork()
        if not self.process:
            os.execvpe(words[0], words, environment)
        self.screen = ""

    def press(self, keys: str, until: str) -> None:
        """Presses keys and waits until the screen shows something new."""
        shown = len(self.screen)
        os.write(self.keys, keys.encode())
        deadline = time.monotonic() + 60
        while until not in self.screen[shown:]:
            assert time.monotonic() < deadline, self.screen
            if select.select([self.keys], [], [], 1)[0]:
                self.screen += re.sub(CONTROL, "", os.read(self.keys, 65536).decode(errors="replace"))

    def close(self) -> None:
        os.close(self.keys)  # hangs up
        os.waitpid(self.process, 0)


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(name, marks=pytest.mark.long) for name in ("zsh", "fish"))])
def test_a_real_shell_completes_keys_values_configs_and_paths(shell, folder):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    options, start = STARTS[shell]
    (folder / "script").write_text(completion.script(shell))
    (folder / "bin").mkdir()
    (folder / "bin/dist-train").write_text(COMMAND)
    (folder / "bin/dist-train").chmod(0o755)
    own = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "xterm", "PS1": "$ "}
    terminal = Terminal([shell, *options], {**os.environ, **own, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)})
    try:
        terminal.press(f"{start}; echo be''gin\n", "begin")
        terminal.press("dist-train tra\tdig\t", "digits ")
        terminal.press("optimizer.nest\t", "nesterov=")
        terminal.press("t\t", "true ")
        terminal.press("model=resnet_c\t", "resnet_cifar ")
        terminal.press("run_root=runs/d\t", "igits/")
        terminal.press("\n", "<train><digits><optimizer.nesterov=true><model=resnet_cifar><run_root=runs/digits")
    finally:
        terminal.close()
