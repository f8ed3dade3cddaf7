"""One owner at a time: by real processes, killed and stopped by real signals."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dist_train.checkpoint.store import CheckpointStore, verify
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.lease import Lease
from dist_train.rundir.ownership import FOLDER, Owner, current

ROOT = Path(__file__).parents[4]
SHORT = 0.3
"""Seconds after which an owner elsewhere counts as dead, in these tests; it renews every 0.05 s."""


class Process:
    """lease_program.py, asked and answered."""

    def __init__(self, place="here", expiry=SHORT, before=(), **environment):
        command = [*before, sys.executable, "-m", "tests.unit.dist_train.rundir.lease_program", place, str(expiry)]
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.hear() == "ready"

    def tell(self, *words):
        self.popen.stdin.write(" ".join(map(str, words)) + "\n")

    def hear(self):
        return self.popen.stdout.readline().rstrip()

    def ask(self, *words):
        self.tell(*words)
        return self.hear()

    def stop(self):
        """Returns when the kernel says that it has stopped."""
        self.popen.send_signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self):
        _, status = os.waitpid(self.popen.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self):
        self.popen.send_signal(signal.SIGCONT)

    def end(self):
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start():
    started = []

    def make(*arguments, **more):
        started.append(Process(*arguments, **more))
        return started[-1]

    yield make
    for process in started:
        process.end()


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def tree(folder):
    """Every name below, with content and time of change."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
        if FOLDER not in path.parts or path.name == FOLDER  # the owner raises its own count
    }


def quietly(run_dir, **more):
    return Lease(lost=lambda: None, note=lambda line: None, renewal=0.05, **more)


def write_claim(run_dir, number, owner):
    (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    text = f"{json.dumps(asdict(owner))}\n{0:20d}\n"
    (run_dir / FOLDER / f"{number:08d}").write_text(text)


# ---------------------------------------------------------------- one owner


def test_a_second_one_is_refused_at_once_told_by_whom_and_changes_nothing(start, run_dir):
    first, second = start(DIST_TRAIN_JOB="4711_3"), start()
    assert first.ask("take", run_dir) == "owner"
    first.ask("save", 10)
    before, began = tree(run_dir), time.monotonic()
    refusal = second.ask("take", run_dir)
    assert time.monotonic() - began < 5
    assert refusal.startswith(f"refused: {run_dir} belongs to a live run: process {first.popen.pid} on ")
    assert f"on {socket.gethostname()}, job 4711_3, since 20" in refusal and refusal.endswith("(exit 3)")
    assert tree(run_dir) == before and first.ask("check") == "ours"


def test_what_was_released_is_free_at_once_and_a_number_is_given_once(start, run_dir):
    first, second = start(), start()
    for number in range(1, 6):
        process = (first, second)[number % 2]
        assert process.ask("take", run_dir) == "owner"
        assert current(run_dir).number == number
        assert process.ask("release") == "released"
        assert process.ask("check").startswith(f"refused: {run_dir} was given back")
    assert len(list((run_dir / FOLDER).iterdir())) == 1


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_replaced_at_once(start, run_dir, reaped):
    first, second = start(), start(expiry=1000)
    first.ask("take", run_dir)
    first.popen.kill()
    if reaped:
        first.popen.wait()
    else:
        os.waitid(os.P_PID, first.popen.pid, os.WEXITED | os.WNOWAIT)
    assert second.ask("take", run_dir) == "owner"  # its first word: it did not have to watch


def test_a_process_that_got_the_number_of_a_dead_owner_is_not_the_owner(start, run_dir):
    write_claim(run_dir, 1, replace(Owner.now(), started=Owner.now().started - 1))
    assert start(expiry=1000).ask("take", run_dir) == "owner"


def test_a_stopped_owner_lives(start, run_dir):
    first, second = start(), start(expiry=0.1)
    first.ask("take", run_dir)
    first.stop()
    assert "belongs to a live run" in second.ask("take", run_dir)


def test_an_owner_elsewhere_is_refused_as_soon_as_its_count_moves(start, run_dir):
    first, second = start("elsewhere"), start(expiry=1000)
    first.ask("take", run_dir)
    assert "Watching it for at most 1000 s" in second.ask("take", run_dir)
    assert "belongs to a live run: process" in second.hear()
    assert first.ask("check") == "ours"


def test_a_dead_owner_elsewhere_is_replaced_when_its_lease_has_run_out_and_not_before(start, run_dir):
    first, second = start("elsewhere"), start()
    first.ask("take", run_dir)
    first.end()
    began = time.monotonic()
    assert "Watching it for at most 0.3 s" in second.ask("take", run_dir)
    assert second.hear() == "owner" and time.monotonic() - began >= SHORT


def test_a_claim_that_nobody_can_read_runs_out_like_any(start, run_dir):
    (run_dir / FOLDER).mkdir(parents=True)
    (run_dir / FOLDER / "00000007").touch()
    process = start()
    assert "does its owner still live?" in process.ask("take", run_dir)
    assert process.hear() == "owner" and current(run_dir).number == 8


def _dead(run_dir):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_claim(run_dir, 7, replace(Owner.now(), pid=ended.pid, token="gone"))


def _race(start, folder, rounds):
    """Several processes want the same directory within 2 ms, new or left by a dead owner."""
    processes, draw = [start(expiry=1000) for _ in range(3)], random.Random(rounds)
    for number in range(rounds):
        run_dir = folder / f"run{number}"
        if number % 2:
            _dead(run_dir)
        draw.shuffle(processes)
        for process in processes:
            process.tell("take", run_dir)
            time.sleep(draw.uniform(0, 0.001))  # the offset between them is what is tried out
        words = [process.hear() for process in processes]
        winners = [process for process, word in zip(processes, words, strict=True) if word == "owner"]
        assert len(winners) == 1, words
        assert sum("belongs to a live run" in word for word in words) == 2, words
        assert winners[0].ask("check") == "ours"
        names = [path.name for path in (run_dir / FOLDER).iterdir()]
        assert names == [f"{current(run_dir).number:08d}"]
        winners[0].ask("release")


def test_of_several_at_the_same_moment_one_wins(start, tmp_path):
    _race(start, tmp_path, 20)


@pytest.mark.long
def test_of_several_at_the_same_moment_one_wins_many_times(start, tmp_path):
    _race(start, tmp_path, 200)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_file_system_without_links_will_do(start, run_dir):
    no_links = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=link,linkat:error=EPERM"]
    first, second = start(before=no_links), start(before=no_links)
    assert first.ask("take", run_dir) == "owner"
    assert "belongs to a live run" in second.ask("take", run_dir)
    assert first.ask("check") == "ours"


def test_a_disk_that_refuses_the_lease_is_one_line_and_exit_code_14(run_dir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(UserError, match="File too large") as error:
            quietly(run_dir).take(run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.code == ExitCode.CHECKPOINT_IO
    assert list((run_dir / FOLDER).iterdir()) == []


def test_a_lease_that_was_deleted_is_no_proof_of_anything(run_dir):
    with quietly(run_dir) as lease:
        fence = lease.take(run_dir)
        shutil.rmtree(run_dir)
        with pytest.raises(OSError, match="the run's lease was deleted"):
            fence.check()


def test_the_fence_and_its_refusal_can_be_sent_to_another_process(run_dir):
    with quietly(run_dir) as lease:
        fence = pickle.loads(pickle.dumps(lease.take(run_dir)))  # noqa: S301 - our own
        fence.check()
    with pytest.raises(UserError) as error:
        fence.check()
    assert pickle.loads(pickle.dumps(error.value)).code == ExitCode.OWNED  # noqa: S301 - our own


# ---------------------------------------------------------------- who comes back


def _take_over(heir, run_dir):
    """From an owner that is stopped. Returns what the directory holds then."""
    assert "Watching it" in heir.ask("take", run_dir)
    assert heir.hear() == "owner"
    return tree(run_dir)


def _said(process):
    """Its next word about what it was asked, and not about the loss that it notices meanwhile."""
    return next(word for word in iter(process.hear, "") if word != "lost")


def test_an_owner_that_comes_back_after_a_takeover_is_told_and_commits_nothing(start, run_dir):
    zombie, heir = start("elsewhere"), start()
    zombie.ask("take", run_dir)
    zombie.ask("save", 10)
    zombie.stop()
    before = _take_over(heir, run_dir)
    zombie.go_on()
    assert zombie.hear() == "lost"
    refusal = zombie.ask("save", 20)
    assert f"belongs to process {heir.popen.pid} on" in refusal and refusal.endswith("(exit 3)")
    assert tree(run_dir) == before
    assert current(run_dir).owner.pid == heir.popen.pid and heir.ask("check") == "ours"
    assert heir.ask("save", 20) == "saved"


def _stopped_inside_a_save(start, run_dir, number):
    """False when a save does not touch the file system so often."""
    zombie, heir = start("elsewhere", expiry=SHORT), start(expiry=SHORT)
    zombie.ask("take", run_dir)
    zombie.ask("save", 10)
    if zombie.ask("stop-at", number, 20) == "saved":
        return False
    zombie.wait_stopped()
    committed = (run_dir / "checkpoints" / "step-00000020").exists()
    before = _take_over(heir, run_dir)
    zombie.go_on()
    answer = _said(zombie)
    assert (answer == "saved") == committed, answer  # else the directory is not there any more, or not its own
    assert tree(run_dir).keys() - before.keys() == set()
    assert [path.name for path in CheckpointStore(run_dir / "checkpoints").all()][-1] == "step-00000010"
    assert (run_dir / "checkpoints" / "step-00000020").exists() == committed
    return True


def test_stopped_at_any_point_of_a_save_it_commits_nothing_later(start, tmp_path):
    """Right before each time a save touches the file system, its rename and the last look at the lease included."""
    points = 0
    while _stopped_inside_a_save(start, tmp_path / f"run{points}", points + 1):
        points += 1
    assert points >= 8


def _stopped_while_saving(start, folder, rounds):
    """At random instants of one save after another, retention included."""
    draw = random.Random(rounds)
    for number in range(rounds):
        run_dir = folder / f"run{number}"
        zombie, heir = start("elsewhere"), start()
        zombie.ask("take", run_dir)
        assert zombie.ask("save-on", 10) == "saving"
        time.sleep(draw.uniform(0.01, 0.1))  # until a random instant
        zombie.stop()
        before = _files(_take_over(heir, run_dir))
        zombie.go_on()
        assert _said(zombie).endswith("(exit 3)")
        left = _files(tree(run_dir))
        assert left.items() <= before.items(), "something was written"
        # One removal by retention may follow, if it was stopped right between the check and the rename.
        assert len({path.parent for path in before.keys() - left.keys()}) <= 1
        assert _checkpoints(left) >= min(2, _checkpoints(before))
        assert heir.ask("save", 1_000_000) == "saved"
        assert all(verify(path) for path in CheckpointStore(run_dir / "checkpoints").all())
        assert not list(run_dir.glob("checkpoints/.tmp-*"))
        zombie.end()
        heir.end()


def _checkpoints(files):
    return len({path.parent for path in files if path.name == "manifest.json"})


def _files(found):
    return {path: content for path, (_, content) in found.items() if content is not None}


def test_stopped_at_a_random_instant_it_commits_nothing_later(start, tmp_path):
    _stopped_while_saving(start, tmp_path, 3)


@pytest.mark.long
def test_stopped_at_fifty_random_instants_it_commits_nothing_later(start, tmp_path):
    _stopped_while_saving(start, tmp_path, 50)


def test_a_copy_of_an_owned_directory_can_be_taken_and_changes_nothing_for_the_owner(tmp_path):
    with Lease(expiry=SHORT, renewal=0.05) as lease:
        fence = lease.take(tmp_path / "run")
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with Lease(expiry=SHORT, renewal=0.05) as other:
            assert other.take(tmp_path / "copy").number == 2
            fence.check()
        with Lease(expiry=SHORT) as third, pytest.raises(UserError) as raised:
            third.take(tmp_path / "run")
        assert raised.value.code == ExitCode.OWNED
        fence.check()


def test_a_run_that_was_moved_is_still_its_owners(tmp_path):
    with Lease(expiry=SHORT, renewal=0.05) as lease:
        lease.take(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "moved")
        with Lease(expiry=SHORT) as other, pytest.raises(UserError) as raised:
            other.take(tmp_path / "moved")
        assert raised.value.code == ExitCode.OWNED
