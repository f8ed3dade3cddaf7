"""The agent that has the store may open a file for each rank, whatever the limit of the shell."""

import multiprocessing
import os
import resource

import pytest

from dist_train.launch.node.agent import allow_descriptors


def _in_a_child(soft, hard, clients):
    """What `allow_descriptors` leaves or says in a process with these limits, which then opens so many files."""
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            allow_descriptors(clients)
            for _ in range(clients - 64):  # others are open already
                os.dup(0)
            theirs.send(resource.getrlimit(resource.RLIMIT_NOFILE))
        except BaseException as error:
            theirs.send(str(error))
        os._exit(0)
    os.waitpid(pid, 0)
    with ours, theirs:
        return ours.recv()


@pytest.mark.parametrize(
    ("soft", "clients", "left"), [(128, 500, 756), (128, 900, 1000), (512, 100, 512), (128, 9, 265)]
)
def test_a_limit_that_is_too_low_is_raised_as_far_as_it_may_be(soft, clients, left):
    assert _in_a_child(soft, 1000, clients) == (left, 1000)


def test_few_ranks_start_under_a_low_limit():
    assert _in_a_child(128, 128, 9) == (128, 128)


def test_a_limit_that_cannot_be_raised_is_an_error_with_both_numbers():
    assert _in_a_child(128, 1000, 11250) == (
        "the first node's store needs 11,250 open files, one for each rank and agent, and at most 1,000 are allowed "
        "here: raise the hard limit (ulimit -Hn)"
    )
