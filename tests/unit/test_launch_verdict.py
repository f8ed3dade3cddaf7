"""Which of many deaths was the first cause, what is said of it, and with which exit code."""

from pathlib import Path
from typing import Any

import pytest

from launch import verdict

PEER = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"


def report(rank: int, kind: str = "ValueError", message: str = "bad label", boot_ns: int = 1, **more: Any) -> dict:
    fixed = {"module": "builtins", "code": 10, "is_user_error": False, "frames": [], "notes": [], "traceback": ""}
    return {"rank": rank, "type": kind, "message": message, "boot_ns": boot_ns, **fixed, **more}


def cause(
    ranks: int, reports: list[dict], ended: list[tuple[int, int]], *, by_us: set[int] = frozenset(), left: tuple = ()
) -> verdict.Failure:
    sessions = [{"rank": rank, "host": "here", "pid": 100 + rank} for rank in range(ranks)]
    for rank in left:
        sessions[rank]["ended"] = 0
    codes = [{"rank": rank, "pid": 100 + rank, "exit_code": code} for rank, code in ended]
    first = verdict.first_cause(verdict.failures(sessions, reports, codes, by_us))
    assert first is not None
    return first


def test_an_exception_of_its_own_comes_before_its_echo():
    reports = [report(0, "RuntimeError", PEER, boot_ns=1), report(2, boot_ns=9)]
    assert cause(3, reports, [(0, 10), (2, 10), (1, -15)]).rank == 2


def test_the_earliest_of_several():
    assert cause(2, [report(0, boot_ns=9), report(1, boot_ns=4)], [(0, 10), (1, 10)]).rank == 1


def test_a_signal_comes_before_its_echo():
    found = cause(3, [report(0, "DistNetworkError", "gone", module="torch.distributed")], [(0, 10), (1, -9), (2, -15)])
    assert (found.rank, found.kind) == (1, "signal")


def test_those_ended_by_us_caused_nothing():
    found = cause(3, [], [(2, -6), (0, -9), (1, -15)], by_us={0})
    assert found.rank == 2
    assert cause(2, [], [(1, -15), (0, -15)]).rank == 1  # killed from outside: it was seen first


def test_leaving_early_is_found_when_only_echoes_are_left():
    found = cause(2, [report(0, "RuntimeError", PEER)], [(0, 10)], left=(1,))
    assert (found.rank, found.kind) == (1, "early")


def test_only_an_echo():
    assert cause(1, [report(0, "RuntimeError", PEER)], [(0, 10)]).kind == "peer"


@pytest.mark.parametrize("message", ["CUDA error: device-side assert", "shape mismatch", "label is out of range"])
def test_ordinary_errors_are_no_echo(message):
    assert not verdict.is_peer_loss(report(0, "RuntimeError", message))


@pytest.mark.parametrize(
    ("reports", "ended", "killed_for_memory", "code"),
    [
        ([report(0, code=12)], (0, 12), False, 12),
        ([report(0, code=13, is_user_error=True)], (0, 13), False, 13),
        ([report(0)], (0, 10), False, 10),
        ([], (0, -9), False, 10),
        ([], (0, -9), True, 12),
        ([], (0, 3), False, 10),
        ([], (0, 2), False, 2),
        ([], (0, 75), False, 75),
        ([], (0, 7), False, 10),
    ],
)
def test_exit_codes(reports, ended, killed_for_memory, code):
    assert verdict.exit_code(cause(1, reports, [ended]), out_of_memory=killed_for_memory) == code


def scene(logs: Path, **more: Any) -> verdict.Scene:
    return verdict.Scene(
        **{"logs": logs, "checkpoint": "step-00001000", "out_of_memory": False, "here": "here", **more}
    )


def test_the_text_marks_the_users_own_frames(tmp_path):
    def frame(file: str, function: str) -> dict:
        return {"file": file, "line": 58, "function": function, "text": "label = self.labels[index]"}

    frames = [
        frame(torch_file(), "__next__"),
        frame(str(tmp_path / "birds.py"), "__getitem__"),
        frame(torch_file(), "x"),
    ]
    found = cause(2, [report(1, frames=frames, notes=["sample 81,442"])], [(1, 10)])
    text = verdict.explain(found, [found], scene(tmp_path))
    assert "rank 1 (pid 101) failed: ValueError in your code" in text
    assert "birds.py:58  __getitem__   label = self.labels[index]" in text and torch_file() not in text
    assert "ValueError: bad label" in text and "sample 81,442" in text
    assert f"last checkpoint: step 1,000. Full traceback: {tmp_path / 'rank1.log'}" in text


def torch_file() -> str:
    return "/usr/lib/python3/site-packages/torch/utils/data/dataloader.py"


def test_an_error_in_a_loading_process_is_found_inside_its_message(tmp_path):
    message = (
        "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        f'  File "{torch_file()}", line 7, in fetch\n    return data[0]\n'
        '  File "/home/me/birds.py", line 5, in __getitem__\n    return table[9]\nKeyError: 9\n'
    )
    found = cause(1, [report(0, "KeyError", message)], [(0, 10)])
    text = verdict.explain(found, [found], scene(tmp_path))
    assert "in your code" in text and "/home/me/birds.py:5  __getitem__   return table[9]" in text
    assert "KeyError: 9" in text


def test_a_native_death_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "rank0.log").write_text("".join(f"line {number}\n" for number in range(100)))
    found = cause(1, [], [(0, -11)])
    text = verdict.explain(found, [found], scene(tmp_path, checkpoint=None))
    assert "died of SIGSEGV" in text and "line 99" in text and "line 80" in text and "line 79" not in text


def test_what_a_user_can_mend_is_one_line(tmp_path):
    found = cause(1, [report(0, "UserError", "give another", is_user_error=True, code=2)], [(0, 2)])
    assert verdict.explain(found, [found], scene(tmp_path)) == "✗ give another"


def test_ranges():
    assert verdict.ranges([7, 0, 1, 2, 5, 4]) == "0-2, 4-5, 7"
