"""Which rank called another collective than the others (launch/rank/collectives.py)."""

import mmap
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from launch.diagnosis.collectives import Call, first_difference, odd_one, read
from launch.rank import collectives
from launch.rank.collectives import CollectiveLog
from launch.torch_patches import wrap_collective


@pytest.fixture
def page(tmp_path) -> Iterator[mmap.mmap]:
    """Calls of this process's group of one are noted in it, for as long as the test lasts."""
    functions = {
        name: getattr(dist.distributed_c10d, name, None)
        for name in (*collectives._OF_SHAPE, *collectives._OF_ANY_SHAPE)
    }
    cells = [cell for function in functions.values() for cell in getattr(function, "__closure__", None) or ()]
    before = [cell.cell_contents for cell in cells]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    with mmap.mmap(-1, 4096) as memory:
        assert CollectiveLog(memory, wrap_collective).begin()
        yield memory
    for cell, content in zip(cells, before, strict=True):
        cell.cell_contents = content
    dist.destroy_process_group()


def test_calls_are_noted_with_what_was_given_and_from_where(page):
    dist.all_reduce(torch.ones(2, 3))
    dist.broadcast(tensor=torch.ones(4, dtype=torch.int64), src=0)
    dist.all_gather([torch.ones(1)], torch.ones(1))
    dist.barrier()
    found = read(page[:])
    assert [call.what for call in found][:3] == [
        "all_reduce of float32 [2, 3]",
        "broadcast of int64 [4]",
        "all_gather of 1 × float32 [1]",
    ]
    assert "barrier" in found[-1].what
    assert {call.file for call in found} == {__file__}
    assert {call.function for call in found} == {"test_calls_are_noted_with_what_was_given_and_from_where"}
    assert [call.line for call in found][:3] == [found[0].line + n for n in range(3)]


def test_only_the_newest_of_the_default_group_are_kept(page):
    group = dist.new_group([0])
    for number in range(1, 30):
        dist.all_reduce(torch.ones(number), group=None if number % 2 else dist.group.WORLD)
        dist.all_reduce(torch.ones(1), group=group)
    assert [call.what for call in read(page[:])] == [f"all_reduce of float32 [{number}]" for number in range(22, 30)]


def test_the_result_of_a_call_is_what_it_was(page):
    tensor = torch.ones(3)
    assert dist.all_reduce(tensor) is None and dist.all_reduce(tensor, async_op=True).wait()
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        dist.all_reduce("no tensor")


def called(*texts: str, first: int = 1) -> list[Call]:
    return [Call(number=n, what=text, file="t.py", line=n, function="f") for n, text in enumerate(texts, first)]


def test_the_first_call_that_all_have_made_and_not_alike_tells_the_odd_rank():
    same = called("all_reduce", "broadcast", "barrier")
    other = called("all_reduce", "barrier", "barrier")
    differing = first_difference({0: same, 1: other, 2: same})
    assert differing is not None and {rank: call.number for rank, call in differing.items()} == {0: 2, 1: 2, 2: 2}
    assert odd_one(differing) == (1, "broadcast")


@pytest.mark.parametrize(
    "ranks",
    [
        {0: called("barrier"), 1: called("all_reduce")},  # who is to say?
        {0: called("a"), 1: called("a"), 2: called("b"), 3: called("b")},
        {0: called("a"), 1: called("b"), 2: called("c")},
    ],
)
def test_even_sides_have_no_odd_one(ranks):
    differing = first_difference(ranks)
    assert differing is not None and odd_one(differing) is None


@pytest.mark.parametrize(
    "ranks", [{}, {0: called("a")}, {0: called("a"), 1: []}, {0: called("a"), 1: called("b", first=2)}]
)
def test_what_cannot_be_compared_differs_in_nothing(ranks):
    assert first_difference(ranks) is None
