"""`dist-train train` typed in the shell of an allocation: it uses the allocation without being told."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.slurm import hostlist
from tests.slurm.cluster import NODES, Cluster, wait_until
from tests.slurm.training import DIGITS, ENVIRONMENT, QUIET, SIXTY_STEPS, fingerprint

TRAIN = f"{sys.executable} -m dist_train.launch train {DIGITS} {QUIET}"

MEET = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(dist.get_rank())
dist.all_reduce(total)
node = os.environ["SLURMD_NODENAME"]
print(f"rank {dist.get_rank()} of {dist.get_world_size()} on {node}: {total.item()}")
dist.destroy_process_group()
"""

pytestmark = pytest.mark.timeout(400)


class Terminal:
    """A command with a terminal of its own, in a session of its own; what it says is kept."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process, self._screen, self.said = process, screen, ""

    def ended(self) -> bool:
        """Whether it has; reads what it has said."""
        over = self.process.poll() is not None
        try:
            while text := os.read(self._screen, 65_536):
                self.said += text.decode(errors="replace")
        except OSError:  # nothing there now, or nobody left who could say something
            pass
        return over

    def wait_for(self, words: str, seconds: float = 240) -> None:
        """Until it has said so; fails at once when it ends without."""
        wait_until(lambda: self.ended() or words in self.said, seconds, f"{words!r} in:\n{self.said}")
        assert words in self.said, self.said

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def wait(self, seconds: float = 300) -> int:
        wait_until(self.ended, seconds, f"the end of:\n{self.said}")
        return self.process.wait()


@contextmanager
def terminal(cluster: Cluster, command: Sequence[str], cwd: Path, **variables: str) -> Iterator[Terminal]:
    screen, end = pty.openpty()
    os.set_blocking(screen, False)
    environment = {**cluster.environment, **ENVIRONMENT, **variables}
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], env=environment, cwd=cwd, stdin=end, stdout=end, stderr=end
    ) as process:
        os.close(end)
        try:
            yield Terminal(process, screen)
        finally:
            process.kill()
            os.close(screen)


def _shell(folder: Path, *lines: str) -> str:
    """A program to be the user's shell in the allocation: it types these lines."""
    path = folder / "shell"
    path.write_text("#!/bin/bash\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def _runs(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / "runs/digits").glob("*")) if not path.is_symlink()]


def _steps(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count('"train"')
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    "where", ["on its first node", pytest.param("where salloc was called", marks=pytest.mark.long)]
)
def test_in_an_salloc_of_two_nodes_it_starts_on_both(slurm_cluster, tmp_path, alone_after_60, where):
    """Ctrl-C saves and stops on both; `--resume auto` goes on in the same allocation."""
    lines = (f"{TRAIN}; echo first $?", f"{TRAIN} {shlex.quote(SIXTY_STEPS)} --resume auto; echo second $?")
    shell = _shell(tmp_path, "trap '' INT", *lines)
    words = ["salloc", "--nodes=2", "--cpus-per-task=1", *([shell] if where == "where salloc was called" else [])]
    with terminal(slurm_cluster, words, tmp_path, SHELL=shell) as session:
        wait_until(lambda: session.ended() or any(_steps(run) >= 5 for run in _runs(tmp_path)), 240, "training")
        assert not session.ended(), session.said
        session.type(b"\x03")
        session.wait_for("first 130")
        assert session.wait() == 0, session.said
        assert "second 0" in session.said, session.said
    (run,) = _runs(tmp_path)
    assert not run.name.startswith("slurm-")  # the allocation's shell may start others
    assert json.loads((run / "state.json").read_text())["world_size"] == 2
    assert fingerprint(run) == alone_after_60


def test_any_script_starts_on_both_nodes_too_even_if_they_answer_too_late(slurm_cluster, tmp_path):
    script = tmp_path / "meet.py"
    script.write_text(MEET)
    line = f"{sys.executable} -m dist_train.launch run --ranks all {script}; echo ended $?"
    shell = _shell(tmp_path, slurm_cluster.hold_nodes(*NODES), line)
    done = slurm_cluster.run(["salloc", "--nodes=2", "--cpus-per-task=1", shell], cwd=tmp_path, timeout=240)
    assert "ended 0" in done.stdout, done.stdout + done.stderr
    assert "srun could not start the launchers (its exit code is 167): once more" in done.stderr
    met = [f"rank {rank} of 2 on {node}: 1" for rank, node in enumerate(NODES)]
    assert sorted(re.findall(r"rank . of 2 on .*", done.stdout)) == met, done.stdout + done.stderr


def test_srun_pty_of_one_node_trains_on_the_cores_of_the_job(slurm_cluster, tmp_path, alone_after_60):
    words = ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=2", "--pty", *TRAIN.split(), SIXTY_STEPS]
    with terminal(slurm_cluster, words, tmp_path) as session:
        assert session.wait() == 0, session.said
    (run,) = _runs(tmp_path)
    assert json.loads((run / "state.json").read_text())["world_size"] == 2
    assert fingerprint(run) == alone_after_60


def test_torchruns_flags_beat_the_allocation(slurm_cluster, tmp_path):
    """One salloc for several questions that start nothing."""
    asked = [
        f"{TRAIN} --dry-run",
        f"{TRAIN} --dry-run --nnodes 1",
        f"{TRAIN} --dry-run --standalone",
        f"{TRAIN} --dry-run --nnodes 3",
        f"env -u SLURM_JOB_NODELIST {TRAIN} --dry-run",
    ]
    shell = _shell(tmp_path, *(f"{line} >out{number} 2>&1; echo $? >>out{number}" for number, line in enumerate(asked)))
    done = slurm_cluster.run(["salloc", "--nodes=2", shell], cwd=tmp_path, timeout=120)
    assert done.returncode == 0
    said = [(tmp_path / f"out{number}").read_text() for number in range(len(asked))]
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1" in said[0]
    assert "srun --nodes=1 --ntasks=1" in said[1]
    assert "srun" not in said[2] and "1 node" in said[2]
    assert "--nnodes 3: job" in said[3] and said[3].endswith("\n2\n")
    assert "SLURM_JOB_NODELIST is missing" in said[4] and said[4].endswith("\n2\n")
    assert not (tmp_path / "runs").exists()


def test_host_lists_are_read_as_scontrol_reads_them(slurm_cluster):
    """And the other way round: what scontrol writes for their names. What it refuses here, newer ones may read."""
    lists = ["n", "n1", "n[1-3]", "n[01-03,7]", "n[9-11]", "n[098-101]", "gpu-a[1-2]b", "a,b,c", "r[1-2]n[1-2]"]
    lists += ["a[1-2],b[03-04],c", "n[1,3,5-7]x", "node-[0001-0003].cluster.org", "n[1-2][3-4]", "x[5]", "n[00-02]"]
    lists += ["n[01-03,7],gpu-a[1-2]b", "a1,a2,a4,b07,b08", "c[1-12]n[01-02]-ib", "127.0.0.[1-2]"]
    for text in lists:
        names = slurm_cluster.run(["scontrol", "show", "hostnames", text]).stdout.split()
        if not names:
            assert "]" in text and not text.endswith("]"), f"scontrol refuses {text}"
            continue
        assert hostlist.host_names(text) == names, text
        written = slurm_cluster.run(["scontrol", "show", "hostlist", ",".join(names)]).stdout.strip()
        assert hostlist.host_names(written) == names, written
