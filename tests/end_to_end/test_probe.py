"""What a program can ask of its process: under torchrun, preloaded and executed, one fact after another.

What differs stands in the table "What differs from torchrun" of docs/launching.md, and in `DIFFERENT` here.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run"]
OURS = ["launch", "run", "--run-dir", "run"]
WAYS = {"torchrun": TORCHRUN, "preload": [*OURS, "--start", "preload"], "exec": [*OURS, "--start", "exec"]}
CONTENT = "one\ntwo"
TYPED = "Ada\np 6 * 7\nc\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to call the probe. Each runs in a folder of its own below the folder of the case."""

    words: tuple[str, ...]
    ranks: int = 1
    stdin: Literal["file", "pipe", "terminal"]
    environment: dict[str, str] = field(default_factory=dict)


CASES = {
    "relative path, two ranks": Case(
        words=("../../scripts/probe.py", ".", "--x", "a b", "--nproc-per-node"),
        ranks=2,
        stdin="file",
        environment={"OMP_NUM_THREADS": "1"},
    ),
    "module": Case(words=("-m", "scripts.probe", ".", "-v"), stdin="pipe", environment={"MKL_NUM_THREADS": "2"}),
    "terminal": Case(
        words=(str(SCRIPTS / "probe.py"), ".", "talk"),
        stdin="terminal",
        environment={"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7", "NCCL_DEBUG": "WARN"},
    ),
}
IMPORTS, OUTPUT, THREAD = "imports of torch", "standard output and error", "what watches a rank"
BOTH = ("preload", "exec")
DIFFERENT = {
    "environment OMP_NUM_THREADS": ("CPU threads of a rank (`OMP_NUM_THREADS`)", BOTH),
    "environment TORCH_NCCL_ASYNC_ERROR_HANDLING": ("`TORCH_NCCL_ASYNC_ERROR_HANDLING`", BOTH),
    "environment MASTER_ADDR": ("address and port on a single node", BOTH),
    "environment TORCHELASTIC_ERROR_FILE": ("`TORCHELASTIC_ERROR_FILE`", BOTH),
    "interpreter modules": (IMPORTS, BOTH),
    "interpreter modules of ours": (IMPORTS, BOTH),
    "interpreter meta_path": (IMPORTS, ("preload",)),
    "python_state gc frozen": (IMPORTS, ("preload",)),
    "python_state warnings": (IMPORTS, ("preload",)),
    "interpreter hash of a word, its ranks": ("hashes of words", ("preload",)),
    "process cmdline": ("`/proc/PID/cmdline`, `/proc/PID/environ`", BOTH),
    "process initial environment": ("`/proc/PID/cmdline`, `/proc/PID/environ`", ("preload",)),
    "process SigCgt": (THREAD, BOTH),
    "process threads": (THREAD, BOTH),
    "process descriptors above 2": (THREAD, BOTH),
    "python_state threads": (THREAD, BOTH),
    "python_state faulthandler": (THREAD, BOTH),
    "process PDEATHSIG": ("the launcher is killed with SIGKILL", BOTH),
    "main_module frames below": ("frames beneath the script's", BOTH),
    "streams stdout kind": (OUTPUT, BOTH),
    "streams stderr kind": (OUTPUT, BOTH),
}
"""Facts that differ: the row of the table that says so, and the ways in which they do."""
BY_CHANCE = ("interpreter hash of a word", "python_state random numbers", "python_state temporary name")
BY_CHANCE += ("libraries torch seed", "libraries torch numbers", "libraries numpy numbers")
"""Of these the test asks whether two ranks have them in common."""


def start(folder: Path, way: str, case: Case) -> tuple[subprocess.Popen, int | None]:
    """The launcher's process, and the end of the terminal that a person would sit at."""
    folder.mkdir()
    command = [sys.executable, "-m", *WAYS[way], "--nproc-per-node", str(case.ranks), *case.words]
    ours = re.compile(r"PYTHON.*|.*_NUM_THREADS|GLOO_.*|CUDA_.*|SLURM_.*")
    inherited = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    path = f"{ROOT}:{folder.parents[1]}"
    environment = {**inherited, "PYTHONPATH": path, "PWD": str(folder), "CUDA_VISIBLE_DEVICES": "", **case.environment}
    stdin, stdout, person = None, None, None
    if case.stdin == "terminal":
        person, stdin = os.openpty()
        os.write(person, TYPED.encode())
    elif case.stdin == "pipe":
        stdin, writing = os.pipe()
        os.write(writing, CONTENT.encode())
        os.close(writing)
    else:
        (folder / "content").write_text(CONTENT)
        stdin = os.open(folder / "content", os.O_RDONLY)
    stdout = os.open(folder / "said", os.O_WRONLY | os.O_CREAT) if person is None else os.dup(stdin)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, stdin=stdin, stdout=stdout, stderr=stdout
    )
    os.close(stdin)
    os.close(stdout)
    return process, person


def wait_for(process: subprocess.Popen, person: int | None, said: Path) -> None:
    """Until the launcher has ended well; `said` is what it printed."""
    if person is not None:
        with said.open("wb") as file, suppress(OSError):  # until the last process has closed the terminal
            while some := os.read(person, 65536):
                file.write(some)
        os.close(person)
    assert process.wait(120) == 0, said.read_text()


def read(folder: Path, case: Case) -> dict[str, Any]:
    """The facts of rank 0, without what differs from one start to the next; None for what is by chance."""
    ranks = [(folder / f"rank{rank}.json").read_text().replace(str(folder), "FOLDER") for rank in range(case.ranks)]
    first, last = json.loads(ranks[0]), json.loads(ranks[-1])
    for name in BY_CHANCE:
        if name not in first:
            continue
        if case.ranks > 1:
            first[f"{name}, its ranks"] = "equal" if first[name] == last[name] else "not equal"
        if "PYTHONHASHSEED" not in case.environment or "hash" not in name:
            first[name] = None
    first["environment MASTER_PORT"] = first["environment MASTER_PORT"].isdigit()
    first["environment TORCHELASTIC_RUN_ID"] = len(first["environment TORCHELASTIC_RUN_ID"])
    first["atexit"] = [(folder / f"atexit{rank}").read_text() for rank in range(case.ranks)]
    if case.stdin == "file":  # which of them reads it is chance
        first["standard_input content"] = first["standard_input content"] + last["standard_input content"]
    first["the debugger answers"] = "\n42\n(Pdb)" in (folder / "said").read_text()
    return first


@pytest.fixture(scope="module")
def look(tmp_path_factory) -> Callable[..., dict[str, dict[str, dict[str, Any]]]]:
    """The facts of those ways to start, by case and way; each is started once."""
    folder, found = tmp_path_factory.mktemp("probe"), {}
    (folder / "scripts").symlink_to(SCRIPTS)

    def at(ways: Iterable[str], names: Iterable[str] = CASES) -> dict[str, dict[str, dict[str, Any]]]:
        for number, (name, case) in enumerate(CASES.items()):
            if name not in names:
                continue
            place = folder / f"case{number}"
            place.mkdir(exist_ok=True)
            running = {way: start(place / way, way, case) for way in ways if (name, way) not in found}
            for way, (process, person) in running.items():
                wait_for(process, person, place / way / "said")
                found[name, way] = read(place / way, case)
        return {name: {way: found[name, way] for way in ways if (name, way) in found} for name in CASES}

    return at


def differences(seen: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """By fact, the ways that differ and how."""
    found: dict[str, dict[str, str]] = {}
    for case, by_way in seen.items():
        for way in BOTH:
            for name in by_way["torchrun"].keys() | by_way[way].keys():
                theirs, ours = (facts.get(name, "missing") for facts in (by_way["torchrun"], by_way[way]))
                if theirs != ours:
                    found.setdefault(name, {})[way] = f"{case}: {theirs!r} and not {ours!r}"
    return found


@pytest.mark.long
def test_every_difference_is_a_row_of_the_table(look):
    seen = look(WAYS)
    page = (ROOT / "docs" / "launching.md").read_text().split("## What differs from torchrun")[1].split("\n## ")[0]
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")}
    assert {row for row, _ in DIFFERENT.values()} <= rows
    found = differences(seen)
    documented = {name: ways for name, (_, ways) in DIFFERENT.items()}
    undocumented = {
        (name, way): what
        for name, ways in found.items()
        for way, what in ways.items()
        if way not in documented.get(name, ())
    }
    assert undocumented == {}, json.dumps({" ".join(at): what for at, what in undocumented.items()}, indent=1)
    gone = [(name, way) for name, ways in documented.items() for way in ways if way not in found.get(name, {})]
    assert gone == [], "no longer different: take the row out"
    compared = sum(len(by_way[way].keys() | by_way["torchrun"].keys()) for by_way in seen.values() for way in BOTH)
    names = len({name for by_way in seen.values() for facts in by_way.values() for name in facts})
    print(f"{compared} comparisons of {names} facts; {len(found)} facts differ and are documented; undocumented: 0")
    assert names > 250


FIRST = ["relative path, two ranks"]
ASKED = [{"preload": CASES, "exec": FIRST}, pytest.param({"exec": CASES, "torchrun": CASES}, marks=pytest.mark.long)]


@pytest.mark.parametrize("asked", ASKED, ids=["", "more"])
def test_it_is_not_only_equal_but_right(look, asked):
    seen: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in CASES}
    for way, names in asked.items():
        for name, facts in look([way], names).items():
            seen[name] |= facts
    for facts in seen["relative path, two ranks"].values():
        assert facts["libraries openblas threads"] == [1] and "mkl_get_max_threads() : 1" in facts["libraries threads"]
        assert (
            facts["python_state random numbers, its ranks"]
            == "not equal"
            == facts["libraries numpy numbers, its ranks"]
        )
        assert facts["interpreter argv"][1:] == [".", "--x", "a b", "--nproc-per-node"]
        assert facts["standard_input content"] == CONTENT
    for facts in seen["module"].values():
        assert "mkl_get_max_threads() : 1" in facts["libraries threads once told"], "whatever MKL_NUM_THREADS is"
        assert facts["standard_input content"] == CONTENT
    for facts in seen["terminal"].values():
        assert facts["standard_input answer"] == "Ada" and facts["the debugger answers"]
