"""The exit codes that are documented are those that there are."""

import re
from pathlib import Path

from dist_train.errors import ExitCode
from launch.cli import commands

ROOT = Path(__file__).parents[3]
ALL = {1, *map(int, ExitCode)}
"""1 is no end of a training: replay has found a difference, compare nothing better, or doctor a problem."""


def test_the_table_for_people_has_each_once():
    section = (ROOT / "docs" / "troubleshooting.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([0-9, ]+) \|", section, re.M)
    codes = [int(code) for row in rows for code in row.split(",")]
    assert codes == sorted(ALL)


def test_the_help_names_each_once():
    text = (commands.epilog or "").split("Exit codes:")[1]
    codes = [int(code) for code in re.findall(r"(?:^|[ /,])(\d+)(?=[ /])", text)]
    assert sorted(codes) == sorted(ALL)
