"""`dist-train run`: scripts that know nothing of us, as torchrun runs them."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.end_to_end.test_launcher import PATIENCE, until
from tests.faults.lives import is_running
from tests.faults.mounts import mounted, why_not

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone"]
OURS = ["launch", "run", "--run-dir", "run"]
ABORTED = "terminate called without an active exception"
"""What torch says now and then where it aborts at the end of a script that has done its work (pytorch/pytorch#190489).
The peer may, we may not."""


def go(folder: Path, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """`python -m …` to its end."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if not (words[0] == TORCHRUN[0] and ABORTED in done.stderr):
        assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.long
def test_a_script_ends_as_under_torchrun_however_it_loads(tmp_path):
    """With loading processes that import the script anew, and such that are forked from a clean process."""
    script = str(SCRIPTS / "plain_ddp.py")
    expected = go(tmp_path / "t", *TORCHRUN, "--nproc-per-node", "2", script).stdout
    assert expected.startswith("weights [")
    for number, words in enumerate((["spawn"], ["forkserver"])):
        assert go(tmp_path / str(number), *OURS, "--nproc-per-node=2", script, *words).stdout == expected
    assert go(tmp_path / "e", *OURS, "--nproc_per_node=2", "--start=exec", script).stdout == expected


@pytest.mark.parametrize(
    ("name", "module"),
    [("accelerated", "accelerate"), pytest.param("fabric", "lightning_fabric", marks=pytest.mark.long)],
)
def test_scripts_of_others_end_as_under_torchrun(tmp_path, name, module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    script = str(SCRIPTS / f"{name}.py")
    expected, ours = (
        go(tmp_path / way[0], *way, "--nproc-per-node", "2", script).stdout.splitlines()[-1] for way in (TORCHRUN, OURS)
    )
    assert expected.startswith("weights 2 [") and ours == expected


def test_other_programs(tmp_path):
    done = go(tmp_path / "p", *OURS, "--no-python", "--nproc-per-node=2", "bash", "-c", 'echo "$RANK $1"', "x", "a b")
    assert done.stdout == "0 a b\n"
    assert (tmp_path / "p/run/logs/rank1.log").read_text() == "1 a b\n"


def test_the_end_of_a_rank_is_seen_at_once(tmp_path):
    """torch's agent looks for it at intervals."""
    begun = time.monotonic()
    go(tmp_path, *OURS, "--monitor-interval", "100", "--no-python", "true")
    assert time.monotonic() - begun < 100


def test_what_cannot_be_preloaded_is_started_by_itself_and_said(tmp_path):
    (tmp_path / "s.py").write_text("open('ended', 'x').close()")
    words = ["--preload", "tests.end_to_end.scripts.starts_a_thread"]
    done = go(tmp_path, *OURS, *words, "s.py")
    assert "! not preloaded (what was imported has started 1 more thread" in done.stderr
    done = go(tmp_path / "b", *OURS, "--preload", "no_such_module", "../s.py")
    assert "! not preloaded (importing no_such_module: ModuleNotFoundError" in done.stderr
    assert (tmp_path / "ended").exists() and (tmp_path / "b/ended").exists()


def test_a_failed_script_is_started_again_and_knows_it(tmp_path):
    done = go(tmp_path, *OURS, "--max-restarts=4", "--nproc-per-node=2", str(SCRIPTS / "fails_once.py"), str(tmp_path))
    assert done.stderr.count("ValueError: the first time") == 1
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["1 of 4", "1 of 4"]
    assert json.loads((tmp_path / "run/state.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGKILL, -9)]
)
def test_a_script_that_knows_no_signal_is_ended_by_them(tmp_path, number, code):
    mark = f"RUN_TEST={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-m", *OURS, "--nproc-per-node=2", str(SCRIPTS / "waits.py"), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
        stderr=subprocess.PIPE,
        text=True,
    )

    def left() -> list[int]:
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(pid, mark)]

    try:
        until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)))
        assert len(left()) >= 4, "launcher, fork server, agent and ranks carry the mark"
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        for pid in [] if process.poll() is not None else left():
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == code, said
    assert "✗" not in said
    until(lambda: not left(), 5.0 if code < 0 else 0.5)


def _has(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and is_running(pid)
    except OSError:
        return False


def test_a_folder_that_cannot_be_written_to_is_no_reason_not_to_run(tmp_path):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    with mounted("tmpfs", tmp_path) as mount:
        (mount.seen / "s.py").write_text("print('it ran')")
        mount.make_read_only()
        command = f"cd {mount.point} && exec {sys.executable} -m launch run"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp), "PYTHONDONTWRITEBYTECODE": "1"}

        def start(words: str) -> subprocess.CompletedProcess:
            shell = [*mount.inside, "sh", "-c", f"{command} {words}"]
            return subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=PATIENCE)

        done, chosen = start("s.py"), start("--run-dir mine s.py")
    (folder,) = tmp.iterdir()
    assert (done.returncode, done.stdout) == (0, "it ran\n"), done.stderr
    assert "Read-only file system: logs and verdicts are in " + str(folder) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert folder.name.startswith(f"dist-train-{os.getuid()}-s-") and folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "logs/rank0.log").read_text() == "it ran\n"
    assert chosen.returncode == 14 and "cannot make the run directory mine" in chosen.stderr, "that one was asked for"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope.py"], "✗ nope.py: no such file; a module is -m MODULE, another program --no-python PROGRAM"),
        (["-m", "--no-python", "x"], "--module is a Python module, and --no-python says that the program is none"),
        (["--nproc-per-node", "many", "SCRIPT"], "--nproc-per-node many: give a number, auto, gpu or cpu"),
        (["--nproc-per-nodes", "2", "SCRIPT"], "no option --nproc-per-nodes. Did you mean --nproc-per-node?"),
        (["--log", "x", "SCRIPT"], "--log could be --log-dir, --log-line-prefix-template, --logs-specs"),
        (["--logs-specs", "mine", "SCRIPT"], "mine is a plug-in of torchrun's own redirection"),
        (["--nnodes", "1:2", "SCRIPT"], "--nnodes 1:2: give one number; to change the size of a run, start it again"),
    ],
)
def test_mistakes_are_one_line_and_start_nothing(tmp_path, words, said):
    words = [str(SCRIPTS / "waits.py") if word == "SCRIPT" else word for word in words]
    done = go(tmp_path, "launch", "run", *words, code=2)
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
