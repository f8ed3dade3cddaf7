"""Stop requests and intervals."""

import os
import signal
import time

import pytest

from dist_train.config.schema import RunConfig
from dist_train.control.due import Due
from dist_train.control.stop import Request, StopFlag


def _config(**sections):
    return RunConfig.model_validate(
        {"data": {"name": "digits"}, "model": {"name": "mlp"}, "batch": {"global_size": 50}, **sections}
    )


@pytest.mark.parametrize(
    ("number", "request_"),
    [
        (signal.SIGINT, Request.INTERRUPT),
        (signal.SIGTERM, Request.TERMINATE),
        (signal.SIGUSR1, Request.REQUEUE),
        (signal.SIGUSR2, Request.SAVE),
    ],
)
def test_a_signal_sets_a_flag_and_nothing_else(number, request_):
    before = signal.getsignal(number)
    with StopFlag().handling_signals() as flag:
        os.kill(os.getpid(), number)
        assert flag.take() == request_
    assert signal.getsignal(number) is before


def test_a_request_to_stop_stays_and_one_to_save_is_taken_once():
    with StopFlag().handling_signals() as flag:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert [flag.take(), flag.take()] == [Request.SAVE, Request.NONE]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert [flag.take(), flag.take()] == [Request.TERMINATE, Request.TERMINATE]


def test_the_same_signal_twice_at_once_is_one_request():
    """A scheduler's and, at the same time, the launcher's."""
    with StopFlag().handling_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.take() == Request.TERMINATE


def test_under_the_launcher_a_second_signal_is_left_to_it():
    flag = StopFlag()
    flag.supervised = True
    with flag.handling_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.15)  # more than what counts as one event
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.take() == Request.TERMINATE


def test_a_time_limit_is_a_request():
    flag = StopFlag()
    flag.limit(3600)
    assert flag.take() == Request.NONE
    flag.limit(0)
    assert flag.take() == Request.TIME_UP
    flag.limit(None)
    assert flag.take() == Request.NONE


def test_a_second_signal_ends_the_process_at_once():
    child = os.fork()
    if child == 0:
        with StopFlag().handling_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.15)  # more than what counts as one event
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_due_is_a_function_of_the_step():
    due = Due.of(
        _config(
            train={"duration": "3 epochs"},
            eval={"every": "1 epochs"},
            checkpoint={"every": "7 steps"},
            tracking={"every": "500 samples"},
        ),
        steps_per_epoch=20,
    )
    assert due.total_steps == due.last_step == 60
    assert [s for s in range(1, 61) if due.evaluate(s)] == [20, 40, 60]
    assert [s for s in range(1, 61) if due.save(s)] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert all(due.log(s) for s in range(1, 61) if s % 10 == 0 or due.evaluate(s) or due.save(s))


def test_stop_after_bounds_this_life_and_not_the_schedule():
    due = Due.of(_config(train={"duration": "3 epochs", "stop_after": "25 steps"}), steps_per_epoch=20)
    assert (due.total_steps, due.last_step) == (60, 25)
    assert due.save(25) and not due.evaluate(25)
    assert Due.of(_config(train={"duration": "3 epochs", "stop_after": "1 h"}), 20).last_step == 60
