"""How the launcher starts other processes of its own."""

import pytest

from launch import children


@pytest.mark.parametrize("words", [["train", "digits"], ["run", "--nproc-per-node", "2", "train.py"]])
def test_a_fork_server_begins_before_the_command_is_read_and_is_the_one_that_is_taken(words):
    children.begin_fork_server(words)
    (begun,) = children._begun
    assert begun.process.poll() is None
    assert children.take_fork_server() is begun and children._begun == []
    begun.end()


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["train", "--help"], ["train", "digits", "--dry-run"], ["run", "--start=exec", "a.py"], ["runs"]],
    ids=" ".join,
)
def test_none_begins_where_no_rank_will_be_forked(words):
    children.begin_fork_server(words)
    assert children._begun == []


def test_one_that_is_not_needed_ends():
    children.begin_fork_server(["train", "digits"])
    (begun,) = children._begun
    children.drop_fork_server()
    assert begun.process.poll() is not None and children._begun == []
