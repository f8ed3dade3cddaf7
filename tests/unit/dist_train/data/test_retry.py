"""Data whose storage is away for a moment."""

import errno
import os
from pathlib import Path

import pytest

from dist_train.data.retry import AWAY, storage_error, with_patience
from dist_train.errors import ExitCode, UserError


def failing(*errors: Exception):
    left = [*errors]

    def read() -> str:
        if left:
            raise left.pop(0)
        return "read"

    return read


@pytest.mark.parametrize("number", sorted(AWAY))
def test_storage_that_is_away_is_tried_again_and_told_once(number, capsys):
    away = OSError(number, os.strerror(number), "/data/a.jpg")
    wrapped = UserError("cannot read the image /data/a.jpg", ExitCode.DATA)
    wrapped.__cause__ = away
    assert with_patience(failing(away, wrapped), 60) == "read"
    said = capsys.readouterr().err
    assert (
        said == f"! the data is away ({os.strerror(number)}: /data/a.jpg); trying again for 60 s\n! the data is back\n"
    )


@pytest.mark.parametrize("error", [ValueError("broken"), PermissionError(errno.EACCES, "no"), KeyError("x")])
def test_anything_else_is_an_error_at_once(error, capsys):
    with pytest.raises(type(error)):
        with_patience(failing(error), 60)
    assert capsys.readouterr().err == ""


def test_it_is_given_up_in_time_with_the_error_itself():
    away = OSError(errno.ESTALE, "Stale file handle")
    with pytest.raises(OSError) as raised:
        with_patience(failing(*[away] * 100), 0.5)
    assert raised.value is away


def test_a_missing_file_is_away_only_when_its_folder_is(tmp_path: Path):
    def error_of(path: Path) -> Exception:
        with pytest.raises(FileNotFoundError) as raised:
            path.read_bytes()
        return raised.value

    assert storage_error(error_of(tmp_path / "a.png")) is None
    assert storage_error(error_of(tmp_path / "gone" / "a.png")) is not None
