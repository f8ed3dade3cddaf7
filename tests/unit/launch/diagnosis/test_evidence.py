"""Which calls of a stack wait for a GPU: all that our own loop has, and none that merely computes."""

from pathlib import Path

import pytest

from dist_train.rundir.records import Frame
from launch.diagnosis.collectives import Call
from launch.diagnosis.evidence import Evidence, Heartbeat, Process
from launch.diagnosis.formatting import frame_at, stacks_in
from launch.diagnosis.hang import end_in_words, explain_hang, find
from launch.diagnosis.watchdog import Hang


def process(tmp_path, line: str) -> Process:
    path = tmp_path / "own.py"
    path.write_text(f"{line}\n")
    frames = [frame_at(str(path), 1, "flush")]
    return Process(pid=1, state="R", syscall="", frames=frames)


@pytest.mark.parametrize(
    "line",
    [
        'table[:, numbers, 0] = losses.to("cpu", torch.float64)',
        "table[number] = value.to('cpu', torch.float64)",
        'value.to(device="cpu")',
        'value.to(torch.device("cpu"))',
        "norms = torch.stack(norms).tolist()",
        "self._ends.popleft().synchronize()",
        "view.copy_(source, non_blocking=True)",
        "if not torch.isfinite(get_total_norm(floats, norm_type=math.inf)):",
        "table += self._counts[name].cpu()",
        "array = tensor.numpy()",
    ],
)
def test_a_wait_for_the_gpu_is_one_for_a_collective(tmp_path, line):
    assert process(tmp_path, line).waits == "collective"


@pytest.mark.parametrize(
    "line", ["time.sleep(60)", "while True: pass", 'model.to("cuda")', "answer = connection.recv()", "x = float(y)"]
)
def test_other_lines_are_none(tmp_path, line):
    assert process(tmp_path, line).waits is None


def test_ranks_are_not_behind_in_groups_that_they_are_no_members_of():
    """Two nodes of two: each rank has its node's group and one across. Rank 1 has begun fewer sums than its peers."""
    first, second, left, right = (letter * 40 for letter in "abcd")
    groups = [
        {"0": 7, first: 5, left: 5},
        {"0": 7, first: 4, right: 4},
        {"0": 7, second: 5, left: 5},
        {"0": 7, second: 5, right: 5},
    ]
    frames = [Frame(file="/lib/torch/distributed/distributed_c10d.py", line=1, function="all_to_all_single")]
    waiting = Process(pid=1, state="S", syscall="", frames=[*frames, Frame(file="/me/x.py", line=3, function="step")])
    evidence = [
        Evidence(rank=rank, heartbeat=Heartbeat(groups=counts), process=waiting, children=[])
        for rank, counts in enumerate(groups)
    ]
    found = find(evidence)
    assert found.ranks == (1,) and "begun 4 collectives, the others 5" in found.why


def test_calls_that_do_not_fit_are_told_with_both_shapes_though_one_rank_went_on():
    """gloo lets the rank with the smaller tensor pass, and the other waits: to say that it is behind would mislead."""
    frames = [Frame(file="/lib/torch/distributed/distributed_c10d.py", line=1, function="barrier")]
    waiting = Process(pid=1, state="S", syscall="", frames=[*frames, Frame(file="/me/x.py", line=3, function="step")])
    what = ("all_reduce of float32 [2]", "all_reduce of float32 [4]")
    evidence = []
    for rank in (0, 1):
        calls = [Call(number=4, what=what[rank], file="/me/x.py", line=3, function="step")]
        calls += [Call(number=5, what="barrier", file="/me/x.py", line=4, function="step")] * (rank == 0)
        counts = Heartbeat(groups={"0": 5 - rank})
        evidence.append(Evidence(rank=rank, heartbeat=counts, process=waiting, children=[], calls=calls))
    found = find(evidence)
    assert found.ranks == () and found.why.startswith("collective 4 does not fit:\n")
    assert all(f"rank {rank} called {what[rank]} at " in found.why for rank in (0, 1))


def test_our_note_of_a_call_is_no_place_that_a_rank_waits_at():
    """Between the user's line and torch there is a frame of ours, in whatever the call was made from."""
    files = [
        "/site-packages/torch/distributed/distributed_c10d.py",
        "/x/launch/rank/collectives.py",
        "/x/dist_train/sums.py",
    ]
    lines = ["Thread 0x1 (most recent call first):", *(f'  File "{file}", line 5 in all_to_all' for file in files)]
    [(_, frames)] = stacks_in(lines)
    waiting = Process(pid=1, state="S", syscall="", frames=frames)
    assert waiting.operation == "all_to_all" and waiting.place is not None and waiting.place.file == files[2]


@pytest.mark.parametrize("lines, locks, odd", [((19, 22), (0,), (1,)), ((19, 22), (), ()), ((19, 22, 19), (), (1,))])
def test_where_all_wait_for_their_loaders_those_are_told(lines, locks, odd):
    """One that waits for a lock of files waits for another process; at two lines for no lock, both are named."""
    loader = [Frame(file="/lib/torch/utils/data/dataloader.py", line=1, function="get")]
    rank = Process(
        pid=1, state="S", syscall="", frames=[*loader, Frame(file="/x/dist_train/data/l.py", line=2, function="i")]
    )
    evidence = []
    for number, line in enumerate(lines):
        frames = [Frame(file="/me/pack.py", line=line, function="read")]
        syscall = "locks_lock_inode_wait" if number in locks else "futex_do_wait"
        child = Process(pid=70 + number, state="S", syscall=syscall, frames=frames)
        evidence.append(Evidence(rank=number, heartbeat=Heartbeat(), process=rank, children=[child]))
    found = find(evidence)
    assert found.ranks == odd and found.place is not None and found.place.line == (22 if odd else 19)
    hang = Hang(seconds=12, usual=None, evidence=evidence, stacks=Path("s"), is_over=True, ends_after=15)
    said = explain_hang(hang, found)
    assert all(f"loader process {70 + number}" in said for number in range(2)), said
    assert "/me/pack.py:19 read()" in said and "/me/pack.py:22 read()" in said
    last = end_in_words(hang, found, 15)
    assert "✗ ended after 12 s without progress: " in last and last.endswith("(exit code 15). Stacks: s/")
    assert ("rank 1 at /me/pack.py:22" in last) == bool(odd)
