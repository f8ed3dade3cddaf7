"""The agent that has the store may open a file for each rank, whatever the limit of the shell."""

import multiprocessing
import os
import resource

import pytest

from dist_train.launch.node.agent import allow_descriptors


def _in_a_child(soft, hard, needed):
    """What `allow_descriptors` leaves or says in a process with these limits, and how many files it can open then."""
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            allow_descriptors(needed)
            for _ in range(needed - 64):
                os.dup(0)
            theirs.send(resource.getrlimit(resource.RLIMIT_NOFILE))
        except (RuntimeError, OSError) as error:
            theirs.send(str(error))
        os._exit(0)
    os.waitpid(pid, 0)
    with ours, theirs:
        return ours.recv()


@pytest.mark.parametrize(("soft", "needed", "left"), [(128, 300, 300), (128, 100, 128)])
def test_a_limit_that_is_too_low_is_raised_and_no_other(soft, needed, left):
    assert _in_a_child(soft, 1000, needed) == (left, 1000)


def test_a_limit_that_cannot_be_raised_is_an_error_with_both_numbers():
    assert _in_a_child(128, 256, 300) == (
        "the first node's store needs 300 open files for so many ranks, and at most 256 are allowed here: "
        "raise the hard limit (ulimit -Hn)"
    )
