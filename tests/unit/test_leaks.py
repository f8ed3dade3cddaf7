"""The leak checks themselves: what they must see, and what they must not."""

import os
import subprocess
import sys
import threading

import pytest

from tests import leaks
from tests.leaks import Surroundings

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def surroundings(monkeypatch):
    monkeypatch.setattr(leaks, "PATIENCE", 0.2)
    return Surroundings.now()


def test_a_quiet_test_is_left_alone(surroundings):
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    assert surroundings.violations() == []


def test_a_living_child_is_seen(surroundings):
    with subprocess.Popen(SLEEPS) as child:
        assert surroundings.violations() == [f"process {child.pid} is still alive: {' '.join(SLEEPS)}"]
        child.kill()


def test_an_orphan_in_a_session_of_its_own_is_seen(surroundings):
    script = f"import subprocess; print(subprocess.Popen({SLEEPS!r}, stdout=-3, start_new_session=True).pid)"
    orphan = int(subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE).stdout)
    try:
        assert [line for line in surroundings.violations() if f"process {orphan} " in line]
    finally:
        os.kill(orphan, 9)


def test_a_thread_is_seen(surroundings):
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="reader")
    thread.start()
    assert surroundings.violations() == ["thread 'reader' still runs"]
    done.set()
    thread.join()


def test_environment_and_folder_are_seen_and_put_back(surroundings, tmp_path):
    before = dict(os.environ), os.getcwd()
    os.environ["LEFT_BEHIND"] = "secret"
    del os.environ["PATH"]
    os.chdir(tmp_path)
    violations = surroundings.violations()
    assert [line.split(";")[0] for line in violations] == [
        "environment variable LEFT_BEHIND was changed",
        "environment variable PATH was changed",
        f"the working directory was changed to {tmp_path}",
    ]
    assert (dict(os.environ), os.getcwd()) == before
