"""Every flag of torch.distributed.run, as the installed torch has them, is one of `dist-train run`."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.core import ParameterSource

from launch.cli import commands
from launch.commands.run import command
from launch.plan.flags import Flags
from launch.plan.host import Host
from tests.end_to_end.test_run import SCRIPTS

run = pytest.importorskip("torch.distributed.run")
SCRIPT = str(SCRIPTS / "waits.py")
VALUES = {
    "nproc_per_node": "2",
    "nnodes": "1:1",
    "logs_specs": "default",
    "rdzv_conf": "timeout=60",
    "redirects": "0:3",
    "tee": "1",
    "local_ranks_filter": "0,1",
    "master_port": "29501",
    "signals_to_handle": "SIGTERM,SIGUSR1",
}
"""Where a word that fits the type is not enough. A flag that is new in torch has none here."""


def options() -> list[argparse.Action]:
    return [action for action in run.get_args_parser()._actions if action.option_strings]


def value_of(action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return []
    known = VALUES.get(action.dest) or next(iter(action.choices or ()), None)
    return [str(known or {int: "3", float: "0.5"}.get(action.type, "word"))]


def parse(*words: str) -> click.Context:
    return command.make_context("run", [*words], parent=commands.make_context("dist-train", ["run"]))


@pytest.mark.parametrize(
    ("action", "spelling"), [(action, word) for action in options() for word in action.option_strings]
)
def test_each_spelling_is_taken_before_the_program_and_is_the_programs_behind_it(action, spelling, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PET_")]:
        monkeypatch.delenv(name)
    words = [spelling, *value_of(action)]
    assert parse(SCRIPT, *words).params["arguments"] == tuple(words)
    if action.dest in ("help", "print_completion"):  # which end there
        with pytest.raises(click.exceptions.Exit) as ended:
            parse(*words)
        assert ended.value.exit_code == 0
        return
    context = parse(*words, SCRIPT, *words)
    assert (context.params["program"], context.params["arguments"]) == (SCRIPT, tuple(words))
    if action.nargs is None:
        parse(f"{spelling}={words[1]}" if spelling.startswith("--") else spelling + words[1], SCRIPT)


@pytest.mark.parametrize(
    "action", [a for a in options() if type(a).__name__ in ("env", "check_env")], ids=lambda a: a.dest
)
def test_each_variable_of_torchrun_is_read(action, monkeypatch):
    monkeypatch.setenv(f"PET_{action.dest.upper()}", (value_of(action) or ["1"])[0])
    context = parse(SCRIPT)
    (name,) = [
        one.name for one in command.params if {*one.opts} & {word.replace("_", "-") for word in action.option_strings}
    ]
    assert context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
    if action.nargs == 0:
        monkeypatch.setenv(f"PET_{action.dest.upper()}", "0")
        assert parse(SCRIPT).params[name] is False


def test_each_choice_of_torchs_is_one_and_no_other():
    found = {action.dest: action for action in options() if action.choices and action.dest != "print_completion"}
    assert found.keys() >= {"numa_binding", "start_method"}
    for action in found.values():
        for choice in action.choices:
            parse(action.option_strings[0], choice, SCRIPT)
        with pytest.raises(click.BadParameter):
            parse(action.option_strings[0], "nope", SCRIPT)


def test_all_that_has_a_value_can_be_planned_at_once():
    """Two flags that both say where nodes meet do not go together; each other one does."""
    words = [
        w for a in options() if a.dest not in ("help", "print_completion") for w in (a.option_strings[-1], *value_of(a))
    ]
    given = parse(*words, SCRIPT).params
    flags = {name: value for name, value in given.items() if name in Flags.__dataclass_fields__}
    from launch.plan import make_plan
    from launch.plan.requirements import Requirements

    host = Host(name="here", cores=4, gpus=0, place=None)
    made = make_plan(Requirements(), Flags(**flags), host, folder=Path("x"), program=(SCRIPT,), arguments=())
    assert made.world_size == 2 and made.shown.local_ranks == [0, 1]


@pytest.mark.parametrize(
    ("begun", "name", "expected"),
    [
        (["--nproc", "2"], "nproc_per_node", "2"),
        (["--nproc_per", "2"], "nproc_per_node", "2"),
        (["--rdzv-end=x:1"], "rdzv_endpoint", "x:1"),
        (["--stand"], "standalone", True),
        (["--max", "3"], "max_restarts", 3),
        (["--module"], "module", True),
        (["--ru"], "run_path", True),
        (["--ran", "all"], "ranks", "all"),
    ],
)
def test_the_beginning_of_a_name_will_do(begun, name, expected):
    assert parse(*begun, SCRIPT).params[name] == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--log", "--log could be --log-dir, --log-line-prefix-template, --logs-specs"),
        ("--no", "--no could be --node-rank, --no-python"),
        ("--r", "--r could be --rdzv-backend, "),
        ("--nope", "no option --nope."),
    ],
)
def test_one_that_could_be_several_names_them(word, said):
    with pytest.raises(click.UsageError) as refused:
        parse(word, "x", SCRIPT)
    assert refused.value.format_message().startswith(said)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["s.py", "--", "--log", "x"], ["--log", "x"]),
        (["s.py", "--", "--", "x"], ["--", "x"]),
        (["s.py", "x", "--", "y"], ["x", "--", "y"]),
        (["--", "s.py", "--", "x"], ["--", "x"]),
        (["--", "s.py", "--stand"], ["--stand"]),
        (["--role", "s.py", "s.py", "--", "x"], ["x"]),
    ],
)
def test_two_dashes_are_as_in_torchruns_parser(words, arguments):
    assert parse(*words).params["arguments"] == tuple(arguments)
    try:
        theirs = run.parse_args(words)
    except SystemExit:  # `--stand` behind the program, in a Python whose argparse looks there, too
        return
    assert (theirs.training_script, theirs.training_script_args) == ("s.py", arguments)


def test_the_completion_is_a_script_that_its_shell_can_read():
    words = [sys.executable, "-m", "dist_train.launch", "run", "--print-completion", "bash"]
    script = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "_DIST_TRAIN_COMPLETE=bash_complete" in script
    subprocess.run(["bash", "-n"], input=script, text=True, timeout=60, check=True)
