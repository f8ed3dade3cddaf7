"""What the launcher asks of a command's module arrives as it was meant, however long it is."""

import os

import pytest

from dist_train.config.requests import (
    CheckpointsRequest,
    PredictRequest,
    ReplayRequest,
    read_request,
    to_arguments,
)

MAX_ARGUMENT = 128 * 1024
"""Bytes that Linux takes in one argument (MAX_ARG_STRLEN)."""


@pytest.mark.parametrize(
    "request_",
    [
        CheckpointsRequest(target="--verify", verify=True),
        PredictRequest(
            target="ä b", inputs=("-", os.fsdecode(b"\xff.png"), '"'), overrides=("data.root=x y",), trust=True
        ),
        ReplayRequest(run="run", from_step=1, to_step=2, show=True, outcome="/tmp/x"),
    ],
)
def test_a_request_is_read_as_it_was_written(request_):
    assert read_request(type(request_), to_arguments(request_)) == request_


def test_thousands_of_images_fit():
    request = PredictRequest(target="run", inputs=tuple(f"bilder/größe-{number:06}.png" for number in range(20_000)))
    arguments = to_arguments(request)
    assert len(arguments) > 1 and max(len(os.fsencode(word)) for word in arguments) < MAX_ARGUMENT
    assert read_request(PredictRequest, arguments) == request


@pytest.mark.parametrize("words", [[], ["run"], ["[]"], ["{}"], ['{"run": 1, "from_step": 1, "to_step": 2}']])
def test_anything_else_is_refused_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        read_request(ReplayRequest, words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "this module takes one argument, a ReplayRequest as JSON; dist-train writes it\n"
