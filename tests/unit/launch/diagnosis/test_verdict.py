"""Which of many deaths was the first cause, what is said of it, and with which exit code."""

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.memory import Memory
from dist_train.rundir.codec import decode
from dist_train.rundir.records import ErrorRecord, ExceptionName, Frame, RankEnd, RankRecord
from launch.console import ranges
from launch.diagnosis.advice import port_taken
from launch.diagnosis.collectives import Call
from launch.diagnosis.explain import FailureContext, explain, short
from launch.diagnosis.failures import Failure, exit_code, find_failures, first_cause, is_peer_loss
from launch.diagnosis.native_crash import native_death
from launch.rank import exceptions

PEER = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"


def report(
    rank: int, kind: str = "ValueError", message: str = "bad label", boot_ns: int = 1, **more: Any
) -> ErrorRecord:
    fixed = {"module": "builtins", "code": 10, "is_user_error": False}
    return ErrorRecord(rank=rank, type=kind, message=message, boot_ns=boot_ns, **{**fixed, **more})


def described(error: BaseException) -> ErrorRecord:
    """As the launcher reads what rank 0 writes."""
    return decode(ErrorRecord, json.loads(json.dumps({"rank": 0, **exceptions.record_of(error, ())})))


def began(ranks: int) -> list[RankRecord]:
    return [RankRecord(rank=rank, host="here", pid=100 + rank, started=1, agent=1) for rank in range(ranks)]


def codes(*ended: tuple[int, int]) -> list[RankEnd]:
    return [RankEnd(rank=rank, pid=100 + rank, exit_code=code) for rank, code in ended]


def cause(
    ranks: int,
    reports: list[ErrorRecord],
    ended: list[tuple[int, int]],
    *,
    by_us: set[int] = frozenset(),
    left: tuple = (),
) -> Failure:
    records = [replace(record, ended=0) if record.rank in left else record for record in began(ranks)]
    first = first_cause(find_failures(records, reports, codes(*ended), by_us))
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
    assert not is_peer_loss(report(0, "RuntimeError", message))


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
    assert exit_code(cause(1, reports, [ended]), out_of_memory=killed_for_memory) == code


def scene(logs: Path, **more: Any) -> FailureContext:
    return FailureContext(
        **{"logs": logs, "checkpoint": "step-00001000", "out_of_memory": False, "here": "here", **more}
    )


def test_the_text_marks_the_users_own_frames(tmp_path):
    def frame(file: str, function: str) -> Frame:
        return Frame(file=file, line=58, function=function, text="label = self.labels[index]")

    frames = [
        frame(torch_file(), "__next__"),
        frame(str(tmp_path / "birds.py"), "__getitem__"),
        frame(torch_file(), "x"),
    ]
    found = cause(2, [report(1, frames=frames, notes=["sample 81,442"])], [(1, 10)])
    text = explain(found, [found], scene(tmp_path))
    assert "rank 1 (pid 101) failed: ValueError in your code" in text
    assert "birds.py:58  __getitem__   label = self.labels[index]" in text and torch_file() not in text
    assert "ValueError: bad label" in text and "sample 81,442" in text
    assert f"last checkpoint: step 1,000. Full traceback: {tmp_path / 'rank1.log'}" in text


def torch_file() -> str:
    return "/usr/lib/python3/site-packages/torch/utils/data/dataloader.py"


class NeedsTwo(Exception):
    """Cannot be made of a text, and so not anew in another process."""

    def __init__(self, row: int, column: str) -> None:
        super().__init__(f"row {row} is bad\n  column: {column}")
        self.add_note("of table.csv")


def read(kind: str) -> None:
    if kind == "lines":
        raise ValueError("row 5 is bad\n  columns: a, b\n\n  Traceback: none")
    if kind == "arguments":
        raise NeedsTwo(5, "b")
    if kind == "key":
        raise KeyError("label")
    if kind == "cause":
        try:
            read("lines")
        except ValueError as error:
            raise LookupError("no row") from error
    raise ExceptionGroup("two are bad", [ValueError("row 1\n  in full"), TypeError("row 2")])


WORDS = {
    "lines": ["ValueError: row 5 is bad", "  columns: a, b", "", "  Traceback: none"],
    "arguments": ["NeedsTwo: row 5 is bad", "  column: b", "of table.csv"],
    "key": ["KeyError: 'label'"],
    "cause": ["LookupError: no row"],
    "group": ["ExceptionGroup: two are bad (2 sub-exceptions)", "ValueError: row 1", "  in full", "TypeError: row 2"],
}


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("how", ["here", "by torch"])
def test_all_that_an_exception_says_is_shown_in_order(kind, how, tmp_path):
    """Also by way of what torch makes of it where a loading process of a user's own DataLoader raises it."""
    from torch._utils import ExceptionWrapper

    try:
        try:
            read(kind)
        except Exception:
            if how == "here":
                raise
            wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
            wrapper.reraise()
    except Exception as error:
        found = cause(1, [described(error)], [(0, 10)])
    text = explain(found, [found], scene(tmp_path))
    said = [line.strip() for line in text[text.index(f"    {WORDS[kind][0]}") :].splitlines()]
    assert [line for line in said if line in [word.strip() for word in WORDS[kind]]] == [w.strip() for w in WORDS[kind]]
    assert "in your code" in text and f"> {short(__file__)}:" in text and "  read   raise " in text
    assert "Caught" not in text and text.count("sub-exceptions") <= 1


def test_what_an_exception_was_raised_from_is_named(tmp_path):
    try:
        read("cause")
    except LookupError as error:
        found = cause(1, [described(error)], [(0, 10)])
    assert "    LookupError: no row\n    from ValueError: row 5 is bad" in explain(found, [found], scene(tmp_path))


def test_a_message_without_end_is_cut_and_says_so(tmp_path):
    found = cause(1, [report(0, message="\n".join(f"line {k}." for k in range(1000)))], [(0, 10)])
    text = explain(found, [found], scene(tmp_path))
    assert "line 30." in text and "line 31." not in text and "… and 969 lines more, in the log" in text


def test_a_native_death_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "rank0.log").write_text("".join(f"line {number}\n" for number in range(100)))
    found = cause(1, [], [(0, -11)])
    text = explain(found, [found], scene(tmp_path, checkpoint=None))
    assert "died of SIGSEGV" in text and "line 99" in text and "line 80" in text and "line 79" not in text


def test_what_a_user_can_mend_is_one_line(tmp_path):
    found = cause(1, [report(0, "UserError", "give another", is_user_error=True, code=2)], [(0, 2)])
    assert explain(found, [found], scene(tmp_path)) == "✗ give another"


def test_ranges():
    assert ranges([7, 0, 1, 2, 5, 4]) == "0-2, 4-5, 7"


# ---------------------------------------------------------------- times, native deaths, echoes of echoes


def test_what_was_raised_from_a_lost_peer_is_an_echo():
    lost = ExceptionName(type="RuntimeError", module="builtins", message=PEER)
    assert is_peer_loss(report(0, "ValueError", "training failed", chain=[lost]))
    assert cause(2, [report(0, chain=[lost], boot_ns=1), report(1, boot_ns=5)], [(0, 10), (1, 10)]).rank == 1


def test_a_taken_port_is_no_lost_peer():
    taken = report(0, "DistNetworkError", "port: 29500, name: EADDRINUSE", module="torch.distributed")
    assert not is_peer_loss(taken)


def test_deaths_are_ordered_by_when_they_happened_and_not_by_when_they_were_seen():
    ended = codes((0, -9), (1, -11), (2, 7))
    found = find_failures(began(3), [], ended, set(), {0: 30, 1: 20, 2: 10})
    assert first_cause(found).rank == 2


def test_os_exit_with_0_is_leaving_early():
    found = find_failures(began(2), [], codes((1, -9)), {1}, {0: 10, 1: 20})
    first = first_cause(found)
    assert (first.rank, first.kind) == (0, "early")


IN_THE_BACKGROUND = """terminate called after throwing an instance of 'gloo::IoException'
  what():  [pair.cc:553] Connection closed by peer
Fatal Python error: Aborted

Thread 0x00007fc5ae848b80 (most recent call first):
  File "/home/me/train.py", line 8 in step
  File "/home/me/train.py", line 20 in <module>

Extension modules: numpy (total: 1)""".splitlines()
BY_ITSELF = """Fatal Python error: Aborted

Current thread 0x00007fc5ae848b80 (most recent call first):
  File "/home/me/train.py", line 8 in step

Thread 0x00007fc5ae848b81 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1 in wait
""".splitlines()


def test_an_abort_in_a_background_thread_is_an_echo_and_one_by_the_program_is_not():
    native = {0: native_death(IN_THE_BACKGROUND), 1: native_death(BY_ITSELF)}
    found = find_failures(began(2), [], codes((0, -6), (1, -6)), set(), {0: 10, 1: 20}, native)
    assert [failure.kind for failure in found] == ["peer", "signal"]
    assert first_cause(found).rank == 1


def test_an_abort_at_the_end_of_a_rank_is_no_echo():
    """It had said that its program has ended, so it has missed nobody."""
    first, second = began(2)
    native = {0: native_death(IN_THE_BACKGROUND)}
    found = find_failures([replace(first, ended=0, ended_ns=5), second], [], codes((0, -6)), {1}, {0: 10}, native)
    assert first_cause(found).kind == "signal" and first_cause(found).rank == 0


def test_stacks_are_read_from_a_log():
    background, own = native_death(IN_THE_BACKGROUND), native_death(BY_ITSELF)
    assert background.frames == [] and background.waiting[0].line == 8 and "Connection closed" in background.said
    assert own.frames == [Frame(file="/home/me/train.py", line=8, function="step")]
    assert native_death(["all is well"]) is None


def test_of_collectives_that_do_not_fit_the_odd_rank_is_named(tmp_path):
    sizes = (4, 4, 9, 4)
    given = [Call(number=7, what=f"all_reduce of float32 [{n}]", file="t.py", line=3, function="f") for n in sizes]
    reports = [report(rank, "RuntimeError", PEER) for rank in range(3)]
    said = native_death(["  what(): op.preamble.length <= op.nbytes. 36 vs 16", *IN_THE_BACKGROUND[2:]])
    called = {rank: [call] for rank, call in enumerate(given)}
    found = find_failures(began(4), reports, codes((3, -6)), set(), {3: 5}, {3: said}, called)
    cause = first_cause(found)
    assert (cause.rank, cause.kind) == (2, "mismatch")
    text = explain(cause, found, scene(tmp_path))
    assert "rank 2 (pid 102) called another collective than the others\n" in text
    assert "  ranks 0-1, 3 called all_reduce of float32 [4] at t.py:3 f()\n" in text
    assert "  rank 2 called all_reduce of float32 [9] at t.py:3 f()\n" in text


def test_others_with_the_same_end_share_a_line(tmp_path):
    reports = [report(rank, "RuntimeError", PEER) for rank in (0, 1, 2)] + [report(3)]
    found = find_failures(began(5), reports, codes((3, 10)), {4})
    text = explain(first_cause(found), found, scene(tmp_path))
    assert "\n  ranks 0-2 lost their peer and ended\n" in text and "\n  rank 4 was ended for it\n" in text


def test_memory_is_told_with_limit_and_peak(tmp_path):
    memory = Memory(limit=64_000_000, used=10_000_000, peak=63_900_000, is_cgroup=True)
    found = cause(1, [], [(0, -9)])
    text = explain(found, [found], scene(tmp_path, out_of_memory=True, memory=memory))
    assert "limit 64 MB (cgroup), 63.9 MB used at the most" in text
    text = explain(found, [found], scene(tmp_path, memory=memory, job="77"))
    assert "not the OOM killer: 10 MB of 64 MB used; SLURM may have: sacct -j 77" in text


@pytest.mark.parametrize("kind", ["MemoryError", "OutOfMemoryError", None])
def test_out_of_memory_says_what_to_set(tmp_path, kind):
    """Of a GPU, of a process, of the kernel."""
    found = cause(1, [report(0, kind, "out", code=12)] if kind else [], [(0, 12 if kind else -9)])
    smaller = "A new run with batch.microbatches=32 (2 samples each, not 4)"
    text = explain(found, [found], scene(tmp_path, out_of_memory=kind is None, smaller=smaller))
    assert smaller in text


def test_the_owner_of_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"port {port} is taken by process {os.getpid()} (" in port_taken(port)


def test_a_loading_process_that_torch_only_finds_gone_has_died_of_something():
    """Which of two ways torch notices it by is a race."""
    process = multiprocessing.get_context("spawn").Process(target=os.abort)
    process.start()
    process.join()

    def notice(failed_workers: list) -> None:
        raise RuntimeError(f"DataLoader worker (pid(s) {failed_workers[0].pid}) exited unexpectedly")

    with pytest.raises(RuntimeError) as caught:
        notice([process])
    said = exceptions.report(caught.value, ())["message"]
    assert said.startswith(f"DataLoader worker (pid {process.pid}) is killed by signal: Aborted")


NCCL_DEATH = (
    """step 3
[rank1]:[E1128 23:00:00 ProcessGroupNCCL.cpp:2057] [PG ID 0] Process group watchdog thread terminated with exception
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Process group watchdog thread terminated with exception: NCCL error:
unhandled cuda error, NCCL version 2.27.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'
Exception raised from checkForNCCLErrorsInternal at NCCLUtils.cpp:94 (most recent call first):
"""
    + "\n".join(f"frame #{number}: <unknown function> + 0x1 (0x2 in libc10.so)" for number in range(40))
    + """
Fatal Python error: Aborted

Thread 0x0000000000000001 (most recent call first):
  File "/x/script.py", line 3 in main
"""
)


def test_what_nccl_says_before_it_aborts_is_found_above_its_own_long_stack():
    said = native_death(NCCL_DEATH.splitlines()).said
    assert said.startswith("terminate called after throwing an instance of 'c10::DistBackendError' what():")
    assert said.endswith("Last error: Cuda failure 2 'out of memory'")
    assert "frame #" not in said


def test_a_gpus_own_error_in_nccls_thread_is_no_echo_of_a_peer():
    native = {0: native_death(IN_THE_BACKGROUND), 1: native_death(NCCL_DEATH.splitlines())}
    found = find_failures(began(2), [], codes((0, -6), (1, -6)), set(), {0: 10, 1: 20}, native)
    assert [failure.kind for failure in found] == ["peer", "signal"]


def test_what_was_said_of_an_earlier_death_is_not_said_again():
    later = [*NCCL_DEATH.splitlines(), *["another line"] * 400, "Fatal Python error: Segmentation fault"]
    assert native_death(later).said == ""
