"""What a user of torchrun types, under torchrun and under `dist-train run`: what ranks see, and how it ends."""

import os
import random
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.torchrun_table import ROWS, Row

ROOT = Path(__file__).parents[2]
DRAWN = random.Random(32).sample(sorted(ROWS), 1)
"""The row that is always tried."""
OUR_OWN = {"runs", "run", "logs", "__pycache__", "s.py", "package", "program"}


def test_the_table_has_a_row_for_each_kind_and_a_reason_for_each_difference():
    assert len(ROWS) >= 60
    assert [name for name, row in ROWS.items() if row.ours is not None and not row.why] == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ROWS)
def test_it_is_as_under_torchrun(name, tmp_path):
    compare(ROWS[name], tmp_path)


@pytest.mark.parametrize("name", DRAWN)
def test_one_is_as_under_torchrun(name, tmp_path):
    compare(ROWS[name], tmp_path)


def compare(row: Row, folder: Path) -> None:
    expected = seen(row, folder / "torchrun", "torch.distributed.run", row.torchrun or row.words)
    assert [done.returncode for done in expected.ended] == [row.code] * row.nodes, expected
    for start in row.starts:
        flags = f"--start {start}" + " --run-dir run" * (row.nodes > 1)
        ours = seen(row, folder / start, "launch run", f"{flags} {row.words}")
        code = row.code if row.ours is None else row.ours
        assert [done.returncode for done in ours.ended] == [code] * row.nodes, ours
        if code != 2:
            assert ours.files == expected.files, ours
        if row.streams_shown is not None:
            assert ours.shown[0] == row.streams_shown, ours
            assert row.why or expected.shown[0] == row.streams_shown, expected
        elif row.shown:
            assert ours.shown == expected.shown, ours
        if code == 2:
            assert len([line for done in ours.ended for line in done.stderr.splitlines()]) == 1, ours
            assert not (folder / start / "runs").exists()


class Seen:
    """What a command left, and what it showed."""

    def __init__(self, folder: Path, ended: list[subprocess.CompletedProcess]) -> None:
        self.ended = ended
        found = (path for path in folder.rglob("*") if path.is_file())
        self.files = {
            str(path.relative_to(folder)): path.read_text()
            for path in found
            if path.relative_to(folder).parts[0] not in OUR_OWN
        }
        self.shown = [(_shown(done.stdout), _shown(done.stderr)) for done in ended]

    def __repr__(self) -> str:
        said = "\n".join(f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}" for done in self.ended)
        return f"{said}\n{self.files}"


def _shown(text: str) -> set[str]:
    """The script's own lines, whoever's they are said to be."""
    return {*re.findall(r"\bOUT\b.*", text)}


def seen(row: Row, folder: Path, module: str, words: str) -> Seen:
    """Runs the command on each node, all in one folder."""
    for name, content in {"s.py": row.script, **row.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    environment |= {
        "TMPDIR": f"{folder.parent}",
        "PYTHONPATH": f"{ROOT}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **row.environment,
    }
    commands = []
    for node in range(row.nodes):
        filled = words.replace("{node}", str(node)).replace("{port}", str(port)).replace("{here}", str(folder))
        commands.append([sys.executable, "-m", *module.split(), *shlex.split(filled)])
    begun = [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=240) for process in begun]
    finally:
        for process in begun:
            process.kill()
            process.wait()
    ended = [
        subprocess.CompletedProcess(process.args, process.returncode, *both)
        for process, both in zip(begun, said, strict=True)
    ]
    return Seen(folder, ended)
