"""Generations' numbers: the same on all nodes of a start, another for each start."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from launch.supervisor.generation_number import claim


def _claim(root: Path, node: int, start: str) -> str:
    return claim(root, f"node{node}", start, {"pid": node}).name


def test_nodes_that_come_together_agree_on_a_new_number(tmp_path):
    """Eight at once, ten starts in a row, also after starts that had no name or fewer nodes."""
    root = tmp_path / "generations"
    claim(root, "node0", None, {})
    with ProcessPoolExecutor(8, get_context("spawn")) as pool:
        for start in range(10):
            wave = [pool.submit(_claim, root, node, f"7-{start}") for node in range(8)]
            assert {done.result() for done in wave} == {str(start + 2)}
    assert len(list((root / "11" / "nodes").iterdir())) == 8


def test_a_node_that_missed_some_starts_meets_the_others(tmp_path):
    for start in ("two-a", None, "two-b"):
        number = claim(tmp_path, "node0", start, {}).name
        if start:
            assert claim(tmp_path, "node1", start, {}).name == number
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1", "2", "3"]


def test_without_a_name_a_start_never_gets_a_number_twice(tmp_path):
    numbers = [claim(tmp_path, "node0", None, {"pid": n}).name for n in range(3)]
    assert numbers == ["1", "2", "3"]
    assert json.loads((tmp_path / "2/nodes/node0.json").read_text()) == {"pid": 1}
