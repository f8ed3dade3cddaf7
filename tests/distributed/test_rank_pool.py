"""The pool that all distributed tests stand on: it must itself fail well."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.rank_pool import RankFailed


def _sum_of_ranks(ranks, start):
    dist.init_process_group("gloo")
    number = torch.tensor([start + ranks.rank], dtype=torch.float64)
    dist.all_reduce(number)
    return ranks.rank, ranks.world_size, torch.get_num_threads(), number.item()


def _second_raises(ranks):
    dist.init_process_group("gloo")
    if ranks.rank == 1:
        raise ValueError("the label is out of range")
    dist.barrier()


def _first_never_comes(ranks):
    dist.init_process_group("gloo")
    if ranks.rank == 0:
        time.sleep(600)
    dist.barrier()


def _second_dies(ranks):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_values_come_back_by_rank(run_ranks, world_size):
    expected = sum(10 + rank for rank in range(world_size))
    assert run_ranks(_sum_of_ranks, world_size, 10) == [(r, world_size, 1, expected) for r in range(world_size)]


def test_the_first_failure_is_shown_with_its_traceback(run_ranks):
    with pytest.raises(RankFailed, match="ValueError: the label is out of range") as failed:
        run_ranks(_second_raises, 2)
    assert failed.value.rank == 1
    assert "in _second_raises" in str(failed.value)


def test_a_hang_shows_where_every_rank_stands(run_ranks):
    with pytest.raises(RankFailed, match=r"not all of 2 ranks were done after 3 s") as failed:
        run_ranks(_first_never_comes, 2, timeout=3)
    assert str(failed.value).count("in _first_never_comes") == 2
    assert "barrier" in str(failed.value)


def test_a_killed_rank_is_named_with_its_signal(run_ranks):
    with pytest.raises(RankFailed, match="killed by SIGKILL") as failed:
        run_ranks(_second_dies, 2)
    assert failed.value.rank == 1
