"""A signal in the middle of an evaluation: it is given up at once, what there is is saved, and a resume repeats it."""

import json
import os
import signal

import pytest

from tests.end_to_end.test_launcher import until
from tests.faults.fixture import record
from tests.faults.lives import LaunchedLife, undisturbed

CONFIG = """
name: slow
data: {name: "tests.faults.slow_data:Slow", args: {seconds: 0.03, sign: "SIGN"}}
model: {name: mlp, hidden: [16]}
loader: {workers: 0}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch: {microbatches: 4, global_size: 12}
train: {duration: 9 steps}
eval: {every: 3 steps, batch_size: 2, mode: MODE}
checkpoint: {every: 100 steps}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
STOPS = ((signal.SIGINT, 130, "2"), (signal.SIGUSR1, 75, "1"))
"""Signal, exit code, and the ranks that it is sent to."""


def launched(folder, run: str, ranks: str) -> LaunchedLife:
    return LaunchedLife(folder, run, "slow.yaml", "--run-dir", run, "--nproc-per-node", ranks)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["sharded", pytest.param("rank0", marks=pytest.mark.long)])
def test_an_evaluation_is_given_up_and_repeated_after_the_resume(tmp_path, mode):
    sign = tmp_path / "evaluating"
    (tmp_path / "slow.yaml").write_text(CONFIG.replace("MODE", mode).replace("SIGN", str(sign)))
    undisturbed(tmp_path, "slow.yaml", "data.args.seconds=0.0")
    for place, (number, code, ranks) in enumerate(STOPS, 1):
        step = 3 * place
        with launched(tmp_path, "pieces", ranks) as life:
            until(lambda step=step: len(_rows(tmp_path / "pieces", "train")) == step or life.ended())  # type: ignore
            sign.unlink(missing_ok=True)
            until(lambda: sign.exists() or life.ended())
            os.kill(life.process.pid, number)
            assert life.wait(60) == code, life.tail()
        state = json.loads((tmp_path / "pieces/state.json").read_text())
        assert (state["status"], state["step"]) == ("stopped", step)
        assert len(_rows(tmp_path / "pieces", "evaluation")) == place - 1, "the last one was given up"
    with launched(tmp_path, "pieces", "1") as life:
        assert life.wait(120) == 0, life.tail()
    assert record(tmp_path / "undisturbed").difference(record(tmp_path / "pieces")) is None


def _rows(run, kind: str) -> list[dict]:
    try:
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return []
    return [row for row in rows if row["kind"] == kind]
