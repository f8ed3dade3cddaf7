"""The command line: instant help, one clear line for each mistake, exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dist_train.report.words import size
from launch import cli
from launch.plan.dry_run import sparkline

ROOT = Path(__file__).parents[4]
CONFIG = str(ROOT / "configs" / "digits.yaml")


def dist_train(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-m", "dist_train.launch", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environ)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom launch.cli import COMMANDS, commands\n"
        "for words in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    assert CliRunner().invoke(commands, words).exit_code == 0, words\n"
        "print([name for name in ('torch', 'pydantic', 'wandb', 'rich', 'numpy', 'yaml') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no command 'trian'. Did you mean train?"),
        (["configs/digits.yaml"], "dist-train train configs/digits.yaml"),
        (["train"], "which config?"),
        (["train", "configs/digts.yaml"], "Did you mean configs/digits.yaml?"),
        (["train", "digts"], "Did you mean configs/digits.yaml? With dist-train come char_lm, cifar10, "),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["train", "configs"], "configs is a folder"),
        (["train", CONFIG, "--nproc-per-nod", "2"], "no option --nproc-per-nod. Did you mean --nproc-per-node?"),
        (["train", CONFIG, "nproc"], "'nproc' is no override"),
        (["train", CONFIG, "configs/cifar10.yaml"], "a second config"),
        (["train", CONFIG, "--nproc-per-node", "99"], "99 ranks need at least as many microbatches"),
        (["train", CONFIG, "--nnodes", "2"], "agree on one run directory"),
        (["train", CONFIG, "--resume", "nowhere"], "no such directory"),
        (["train", "--resume", "nowhere"], "no such directory"),
        (["train", CONFIG, "optimizer.lrr=1"], "Did you mean lr?"),
        (["evaluate", "nowhere"], "nowhere"),
        (["predict", "nowhere"], "nowhere"),
        (["watch", "nowhere"], "nowhere: no such run"),
        (["watch"], "runs: no runs"),
        (["config", "validate", CONFIG, "seed=-1"], "seed"),
    ],
)
def test_a_mistake_is_told_and_creates_nothing(words, said, tmp_path):
    for name in ("configs",):
        os.symlink(ROOT / name, tmp_path / name)
    answer = dist_train(*words, cwd=tmp_path)
    assert answer.returncode == 2
    assert said in answer.stderr and "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_underscores_are_dashes_and_the_environment_is_torchruns(tmp_path):
    answer = dist_train("train", CONFIG, "--nproc_per_node", "99", cwd=tmp_path)
    assert "99 ranks" in answer.stderr
    assert "77 ranks" in dist_train("train", CONFIG, cwd=tmp_path, PET_NPROC_PER_NODE="77").stderr


def test_config_commands():
    assert dist_train("config", "validate", CONFIG).stderr == f"✓ {CONFIG}: valid\n"
    shown = dist_train("config", "show", CONFIG, "seed=5")
    assert "\nseed: 5\n" in shown.stdout and shown.stderr == ""
    assert json.loads(dist_train("config", "schema").stdout)["properties"]["seed"]


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder: its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    monkeypatch.chdir(tmp_path)
    return run


def test_a_shipped_config_is_meant_by_its_name_unless_the_folder_has_one(told):
    shown = told("config", "show", CONFIG)
    assert told("config", "show", "digits") == shown and shown[0] == 0
    os.mkdir("digits")
    code, _, said = told("train", "digits")
    assert code == 2 and "for the config that comes with dist-train: digits.yaml" in said
    assert told("config", "show", "digits.yaml") == shown
    Path("digits.yaml").write_text("data: {name: digits}\nmodel: {name: mlp}\n")
    _, own, said = told("config", "show", "digits")
    assert "name: mlp" in own and "digits is digits.yaml of this folder, not the config" in said
    assert told("config", "show", "./digits") == (0, own, "")
    assert "no such file. Did you mean synthetic?" in told("train", "configs/synthetic.yaml")[2]


ANOTHER_SYSTEM = """
import sys, click  # which knows these systems itself
from importlib.abc import MetaPathFinder
class Lacks(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacks())
sys.platform = sys.argv.pop(1)
"""
STARTS = {
    "the command": "sys.argv[1:] = ['train', 'digits']; from dist_train.launch.__main__ import main; main()",
    "torchrun": "import runpy; sys.argv[1:] = ['digits']; runpy.run_module('dist_train', run_name='__main__')",
}


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize("start", STARTS)
def test_another_system_is_told_in_one_line_what_to_use(start, system, tmp_path):
    words = [sys.executable, "-c", ANOTHER_SYSTEM + STARTS[start], system]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    said = f"dist-train needs Linux, and this is {system}: use a Linux machine, WSL on Windows, or a container\n"
    assert (answer.returncode, answer.stderr.removeprefix("✗ "), answer.stdout) == (2, said, "")


WITHOUT_JSON = {
    "completion": "prints what a shell reads",
    "config schema": "is JSON",
    "watch": "shows what metrics.jsonl has as JSON, row by row",
}


def test_every_command_answers_in_json_but_for_a_few():
    group, without = cli.commands, set()
    for name in cli.COMMANDS:
        command = group.get_command(click.Context(group), name)
        members = {f"{name} {sub}": one for sub, one in getattr(command, "commands", {}).items()} or {name: command}
        without |= {path for path, one in members.items() if not any("--json" in option.opts for option in one.params)}
    assert without == set(WITHOUT_JSON)


def test_json_of_what_needs_no_run(told):
    made = json.loads(told("new", "birds", "--json")[1])
    assert made["folder"] == "birds" and sorted(made["files"]) == sorted(os.listdir("birds"))
    assert json.loads(told("config", "show", CONFIG, "seed=5", "--json")[1])["seed"] == 5
    assert json.loads(told("config", "validate", CONFIG, "--json")[1]) == {"valid": True, "problems": []}
    code, printed, said = told("config", "validate", CONFIG, "seed=-1", "optimizer.lrr=1", "--json")
    found = json.loads(printed)
    assert (code, found["valid"], said) == (2, False, "")
    assert [(one["where"], one["key"]) for one in found["problems"]] == [
        *(("command line", "seed"), ("command line", "optimizer.lrr"))
    ]
    os.makedirs("runs/digits/one")
    Path("runs/digits/one/state.json").write_text(json.dumps({"status": "done", "step": 20}))
    expected = {"run": "runs/digits/one", "was": None, "over": True, "status": "done", "step": 20, "checkpoint": None}
    assert json.loads(told("stop", "runs/digits/one", "--json")[1]) == [expected]


def test_runs(tmp_path):
    folder = tmp_path / "runs" / "digits" / "one"
    folder.mkdir(parents=True)
    best = {"metric": "accuracy", "value": 0.98, "step": 20}
    state = {"status": "done", "step": 20, "total_steps": 20, "best": best}
    (folder / "state.json").write_text(json.dumps(state))
    table = dist_train("runs", cwd=tmp_path).stdout.splitlines()
    assert table[1].split() == ["digits/one", "done", "accuracy", "98.0", "%", "20/20", "runs/digits/one"]
    assert json.loads(dist_train("runs", "--json", cwd=tmp_path).stdout)[0]["state"] == "done"
    assert dist_train("runs", "--root", "none", cwd=tmp_path).stderr == "no runs under none\n"


def test_figures():
    assert [size(number) for number in (512, 102_400_000, 1.23e9)] == ["512 B", "102 MB", "1.23 GB"]
    assert sparkline([0.0, 1.0, 0.5], 3) == "▁█▄" or sparkline([0.0, 1.0, 0.5], 3) == "▁█▅"
