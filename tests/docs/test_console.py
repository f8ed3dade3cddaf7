"""Every console block of the README and the documents is run, in the order of its page, and prints what the page shows.

`python -m pytest -m long tests/docs tests/slurm/test_pages.py`. What a document may write: console.py.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.console import Block, Command, Terminal, blocks, pattern, steps
from tests.docs.given import GIVEN, NOT_RUN, ROOT, prepare

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
UNDER_SLURM = {"docs/slurm.md", "docs/tutorials/slurm.md"}
CHEAP = [("README.md", "dist-train train configs/digits.yaml optimizer.lrr")]
CHEAP += [("docs/tutorials/slurm.md", "dist-train slurm configs/digits.yaml --nodes 2")]
COMMAND = re.compile(
    r"(\$ |(dist-train|torchrun|python|make|sbatch|srun|salloc|pip|pytest|benchmarks/\S+\.sh)\s)(?!.*[\[…])"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def consoles(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "console"]


def is_listed(page: Path, block: Block) -> bool:
    first = next(block.commands()).text
    return any(name == name_of(page) and first.startswith(beginning) for name, beginning in NOT_RUN)


RUN = [
    page
    for page in PAGES
    if name_of(page) not in UNDER_SLURM and not all(is_listed(page, block) for block in consoles(page))
]


def test_the_list_of_what_is_not_run_is_short_and_true():
    found = [
        key for key in NOT_RUN if not any(next(b.commands()).text.startswith(key[1]) for b in consoles(ROOT / key[0]))
    ]
    assert found == [] and len(NOT_RUN) <= 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_stands_in_a_console_block(page):
    """But for a synopsis, which has brackets or dots where words are to be put in."""
    stray = [
        f"line {block.line}: {line}"
        for block in blocks(page)
        if block.language not in ("console", "python", "diff", "yaml") and page.name != "cli.md"  # made from the help
        for line in block.lines
        if COMMAND.match(line)
    ]
    assert stray == []


@pytest.mark.parametrize(("page", "beginning"), CHEAP)
def test_a_block_that_needs_no_other_does_what_it_shows(page, beginning, tmp_path):
    (block,) = [block for block in consoles(ROOT / page) if next(block.commands()).text.startswith(beginning)]
    (tmp_path / "work").mkdir()
    terminal = Terminal(folder=tmp_path / "work", environment=prepare(tmp_path / "work"))
    for command in block.commands():
        terminal.do(command)


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=name_of)
@pytest.mark.timeout(3600)
def test_the_console_blocks_of_a_page_do_what_it_shows(page, tmp_path):
    run_page(page, tmp_path / "work")


def run_page(page: Path, folder: Path, **variables: str) -> None:
    folder.mkdir()
    terminal = Terminal(folder=folder, environment={**prepare(folder), **variables})
    if given := GIVEN.get(name_of(page)):
        subprocess.run(["bash", "-ec", given], cwd=folder, env=terminal.environment, check=True, capture_output=True)
    not_run = {command for block in consoles(page) if is_listed(page, block) for command in block.commands()}
    for step in steps(page):
        if step not in not_run:
            terminal.do(step)


# ---------------------------------------------------------------- the terminal itself


def of_a_page(text: str, *shown: str) -> Command:
    return Command(line=1, text=text, shown=shown)


@pytest.fixture
def terminal(tmp_path):
    return Terminal(folder=tmp_path, environment={"PATH": "/usr/bin:/bin"})


def test_numbers_runs_hashes_and_paths_stand_for_others(terminal):
    printed = "run runs/digits/sweep-20270203-040506-abcd of /home/x/y.txt  12.5 s  accuracy 97 %"
    shown = "run   runs/digits/sweep-20261130-025734-mpde of /tmp/y.txt 1 m 3 s  … 98.9 %"
    terminal.do(of_a_page(f"echo '{printed}'", shown))
    assert not re.fullmatch(pattern(shown), printed.replace("digits", "birds"))


def test_a_line_that_is_not_printed_is_found(terminal):
    with pytest.raises(AssertionError, match="never printed: two"):
        terminal.do(of_a_page("echo two; echo one", "one", "two"))


def test_a_hash_stands_for_the_same_one_each_time(terminal):
    one, two = "a" * 64, "b" * 64
    terminal.do(of_a_page(f"echo {two}", one))
    with pytest.raises(AssertionError, match="never printed"):
        terminal.do(of_a_page(f"echo {'c' * 64}", one))


def test_a_command_fails_where_the_page_shows_so_and_only_there(terminal):
    terminal.do(of_a_page("echo ✗ no; exit 2", "✗ no"))
    with pytest.raises(AssertionError, match="ended with 3"):
        terminal.do(of_a_page("exit 3"))
    with pytest.raises(AssertionError, match="ended with 0"):
        terminal.do(of_a_page("echo ✗ no", "✗ no"))


def test_ctrl_c_is_pressed_after_the_line_above_it(terminal):
    terminal.do(
        of_a_page(
            "trap 'echo stopped; exit 130' INT; echo ready; while :; do sleep 0.05; done", "ready", "^C", "stopped"
        )
    )
