"""Two nodes without a scheduler: one stays away or goes silent. tests/faults/nodes.py has those that come back."""

import json
import signal
import subprocess
import sys

import pytest

from dist_train.rundir.records import RunState
from dist_train.rundir.runs import newest_checkpoint
from tests.faults.fixture import PLAIN, write_configs
from tests.faults.kill_plan import last_step
from tests.faults.lives import HANG_S, ROOT, LaunchedLife, kill, until
from tests.faults.nodes import TwoNodes, can_be_apart, free_port


def test_a_node_that_stays_away_is_waited_for_so_long_and_a_signal_ends_the_waiting(tmp_path):
    write_configs(tmp_path)
    short = ("train.duration=9999 steps", "--rdzv-conf", "join_timeout=4")
    with TwoNodes(tmp_path, "run", words=short) as run:
        assert until(lambda: newest_checkpoint(run.folder) is not None, HANG_S), run.tail()
        run.strike([1])
        assert run.lives[0].wait() == 75, run.tail()
        said = run.lives[0].tail()
        assert "✗ lost node1 (of 2 nodes): no word from its launcher; the last checkpoint is step-" in said
        assert "! waiting for node 1 of 2 to start, up to 4 s; start the same command there\n" in said
        assert "✗ waited 4 s for node 1 of 2 (--rdzv-conf join_timeout=SECONDS): the last checkpoint is step-" in said
        verdict = json.loads((run.folder / "generations/1/verdict.json").read_text())
        assert verdict["lost"] == ["node1"] and verdict["exit_code"] == 75
        step = last_step(run.folder)
        run.words = short[:1]
        run.lives[0] = run.start(0)
        assert until(lambda: "up to 10 min" in run.lives[0].tail(), HANG_S)
        stop = [sys.executable, "-m", "dist_train.launch", "stop", str(run.folder)]
        assert subprocess.run(stop, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0
        assert run.lives[0].wait(30) == 143
        assert last_step(run.folder) == step


@pytest.mark.long
@pytest.mark.skipif(not can_be_apart(), reason="no PID namespaces here, which make two nodes of one host strangers")
def test_a_machine_that_goes_silent_is_lost_while_its_connections_stay_open(tmp_path):
    write_configs(tmp_path)
    with TwoNodes(tmp_path, "run", apart=True) as run:
        assert until(lambda: last_step(run.folder) > 0, HANG_S), run.tail()
        kill(run.lives[1].left(), signal.SIGSTOP)
        assert until(lambda: "waiting for node 1 of 2" in run.lives[0].tail(), 2 * HANG_S), run.tail()
        assert "✗ lost node1 (of 2 nodes): no word from its launcher" in run.lives[0].tail()
        run.strike([1])
        run.lives[1] = run.start(1)
        assert [life.wait() for life in run.lives] == [0, 0], run.tail()


@pytest.mark.long
@pytest.mark.parametrize(("first", "shared"), [(0, True), (1, True), (0, False)])
def test_a_node_that_sees_no_other_goes_on_by_itself_until_it_does(tmp_path, first, shared):
    write_configs(tmp_path)
    meet = ["--nproc-per-node", "1", "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]

    def start(node: int) -> LaunchedLife:
        run = "run" if shared else f"run{node}"
        return LaunchedLife(tmp_path, f"node{node}", PLAIN, "--run-dir", run, *meet, "--node-rank", str(node))

    own = tmp_path / ("run" if shared else f"run{first}")
    with start(first) as one:
        assert until(lambda: (own / "generations/1").exists(), HANG_S), one.tail()
        with start(1 - first) as other:
            assert [one.wait(), other.wait()] == [0, 0], one.tail() + other.tail()
    state = RunState.of(tmp_path / ("run" if shared else "run0"))
    assert state.status == "done"
    assert [path.name for path in (own / "generations").iterdir()] == ["1"]
