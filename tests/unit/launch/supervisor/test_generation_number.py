"""Generations' numbers: the same on all nodes of a start, another for each start."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from dist_train.rundir.codec import read_record
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import NodeRecord
from launch.supervisor.generation_number import claim


def record(pid: int = 1) -> NodeRecord:
    return NodeRecord(host="here", pid=pid, started=1)


def _claim(run: Path, node: int, start: str | None) -> int:
    return claim(RunDir(run), f"node{node}", start, record(1 + node)).number


def test_nodes_that_come_together_agree_on_a_new_number(tmp_path):
    """Eight at once, ten starts in a row, also after starts that had no name or fewer nodes."""
    _claim(tmp_path, 0, None)
    with ProcessPoolExecutor(8, get_context("spawn")) as pool:
        for start in range(10):
            wave = [pool.submit(_claim, tmp_path, node, f"7-{start}") for node in range(8)]
            assert {done.result() for done in wave} == {start + 2}
    assert len(list(RunDir(tmp_path).generation(11).nodes.iterdir())) == 8


def test_a_node_that_missed_some_starts_meets_the_others(tmp_path):
    for start in ("two-a", None, "two-b"):
        number = _claim(tmp_path, 0, start)
        if start:
            assert _claim(tmp_path, 1, start) == number
    assert [generation.number for generation in RunDir(tmp_path).all_generations()] == [1, 2, 3]


def test_without_a_name_a_start_never_gets_a_number_twice(tmp_path):
    generations = [claim(RunDir(tmp_path), "node0", None, record(pid)) for pid in (1, 2, 3)]
    assert [generation.number for generation in generations] == [1, 2, 3]
    assert read_record(NodeRecord, generations[1].node("node0")) == record(2)
