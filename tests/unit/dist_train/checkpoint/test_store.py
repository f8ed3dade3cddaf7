"""Checkpoints on disk: whole or not there, and nothing damaged is used."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dist_train.checkpoint.store import (
    LACKS_EVALUATION,
    CheckpointStore,
    DamagedCheckpoint,
    lacks_evaluation,
    locate,
    verify,
)
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.runs import has_checkpoints

FILES = {"model.safetensors": bytes(range(256)) * 40, "optimizer.safetensors": b"x" * 999, "state.json": b"{}"}


SAVE = """
import os, sys
from pathlib import Path
from dist_train.checkpoint.store import CheckpointStore
from tests.unit.dist_train.checkpoint.test_store import FILES
folder = Path(sys.argv[1])
try:
    CheckpointStore(folder).save(20, FILES, {})
except OSError as error:
    os._exit(error.errno if str(folder) in str(error.filename) else 255)
os._exit(0)
"""
ROOT = Path(__file__).parents[4]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def _save(store, *steps, **facts):
    return [store.save(step, FILES, {"best_step": None, **facts}) for step in steps][-1]


def test_what_was_saved_is_found(store):
    path = _save(store, 10, 20)
    found = store.newest()
    assert found.path == path and found.path.name == "step-00000020"
    assert found.manifest["step"] == 20 and found.skipped == ()
    assert {name: (path / name).read_bytes() for name in FILES} == FILES


def test_no_checkpoints_is_no_error(store):
    assert store.newest() is None and store.all() == []


def test_every_flipped_bit_is_found(store):
    """All files, the manifest too; a campaign of a thousand."""
    path, draw = _save(store, 10), random.Random(0)
    names = [*FILES, "manifest.json"]
    for _ in range(1000):
        file = path / draw.choice(names)
        content = bytearray(file.read_bytes())
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        file.write_bytes(content)
        with pytest.raises(DamagedCheckpoint):
            verify(path)
        content[place] ^= bit
        file.write_bytes(content)
    verify(path)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_truncated_missing_or_empty_file_is_found(store, name):
    path = _save(store, 10)
    content = (path / name).read_bytes()
    for keep in [len(content) * k // 16 for k in range(16)]:
        (path / name).write_bytes(content[:keep])
        with pytest.raises(DamagedCheckpoint, match=name):
            verify(path)
    (path / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=name):
        verify(path)


def test_a_file_of_another_checkpoint_is_found(store):
    _save(store, 10)
    other = store.save(20, {**FILES, "state.json": b"[]"}, {"best_step": None})
    shutil.copy(store.path(10) / "state.json", other / "state.json")
    with pytest.raises(DamagedCheckpoint, match="state.json: sha256 differs"):
        verify(other)
    shutil.copy(store.path(10) / "manifest.json", other / "manifest.json")
    with pytest.raises(DamagedCheckpoint, match=r"manifest.json: of step 10"):
        verify(other)


def test_an_added_file_and_a_link_are_found(store):
    path = _save(store, 10)
    (path / "evil.pkl").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="evil.pkl: does not belong"):
        verify(path)
    (path / "evil.pkl").unlink()
    (path / "state.json").rename(path.parent / "elsewhere")
    (path / "state.json").symlink_to(path.parent / "elsewhere")
    with pytest.raises(DamagedCheckpoint, match="state.json: not a regular file"):
        verify(path)


def test_a_damaged_one_is_skipped_with_a_line_that_says_why(store):
    _save(store, 10, 20)
    (store.path(20) / "optimizer.safetensors").write_bytes(b"y" * 999)
    found = store.newest()
    assert found.path == store.path(10)
    assert found.skipped == ("step-00000020 is damaged (optimizer.safetensors: sha256 differs)",)


def test_when_all_are_damaged_it_says_so_and_never_begins_from_zero(store):
    _save(store, 10, 20)
    for step in (10, 20):
        (store.path(step) / "state.json").write_bytes(b"!!")
    with pytest.raises(UserError, match="no checkpoint can be used") as error:
        store.newest()
    assert error.value.code == ExitCode.CANNOT_RESUME


def test_retention_keeps_the_newest_and_the_best(store):
    for step in (10, 20, 30, 40, 50):
        _save(store, step)
        store.retain(best_step=20)
    assert [path.name for path in store.all()] == ["step-00000050", "step-00000040", "step-00000020"]


def test_retention_keeps_the_steps_it_is_told_besides(store):
    for step in (10, 20, 30, 40, 50):
        _save(store, step)
        store.retain(None, also=(20, 30))
    assert [path.name for path in store.all()] == [f"step-000000{step}" for step in (50, 40, 30, 20)]


def test_none_is_removed_before_two_newer_ones_are_sound(store):
    """Verified anew when touched: damage that came after the save counts too."""
    for step in (10, 20, 30):
        _save(store, step)
        store.retain(None)
    assert [path.name for path in store.all()] == ["step-00000030", "step-00000020"]
    content = bytearray((store.path(30) / "model.safetensors").read_bytes())
    content[0] ^= 1
    (store.path(30) / "model.safetensors").write_bytes(content)
    _save(store, 40)
    store.retain(None)
    assert [path.name for path in store.all()] == [f"step-000000{step}" for step in (40, 30, 20)]
    assert store.newest().path == store.path(40)
    _save(store, 50)
    store.retain(None)
    assert [path.name for path in store.all()] == ["step-00000050", "step-00000040"]


@needs_strace
def test_retention_killed_at_any_of_its_removals_leaves_only_whole_ones(store):
    program = SAVE.replace("save(20, FILES, {})", "retain(None)")
    for number in range(1, 4):
        for step in (10, 20, 30):
            _save(store, step)
        kill = ["-e", "trace=unlinkat", "-e", f"inject=unlinkat:signal=SIGKILL:when={number}"]
        command = ["strace", "-f", "-qq", "-o", os.devnull, *kill, sys.executable, "-B", "-c", program]
        assert subprocess.run([*command, str(store.folder)], cwd=ROOT).returncode == -9
        assert [path.name for path in store.all()] == ["step-00000030", "step-00000020"]
        assert all(verify(path) for path in store.all())
        assert ".tmp-old-step-00000010" in os.listdir(store.folder)
        store.remove_unfinished()
        assert sorted(os.listdir(store.folder)) == ["step-00000020", "step-00000030"]


def test_two_are_kept_whatever_is_asked(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    _save(store, 1, 2, 3)
    store.retain(None)
    assert len(store.all()) == 2


def test_a_save_that_fails_leaves_nothing(store, monkeypatch):
    _save(store, 10)
    rename = os.rename

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        _save(store, 20)
    monkeypatch.setattr(os, "rename", rename)
    assert os.listdir(store.folder) == ["step-00000010"]


# ---------------------------------------------------------------- disks that refuse


def _save_refused(folder, call, number, code, only=None):
    """Saves step 20 in a process whose `number`-th system call of that name fails; returns the errno that came out."""
    refuse = ["-e", f"trace={call}", "-e", f"inject={call}:error={code}:when={number}"]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, *(["-P", str(only)] if only else []), *refuse]
    return subprocess.run([*strace, sys.executable, "-B", "-c", SAVE, str(folder)], cwd=ROOT).returncode


@needs_strace
@pytest.mark.parametrize(
    "call, codes",
    [
        ("write", ["ENOSPC", "EDQUOT", "EFBIG", "EIO"]),
        ("fsync", ["EIO", "ENOSPC", "EDQUOT"]),
        ("mkdir", ["EROFS"]),
        ("rename", ["EACCES"]),
    ],
)
def test_a_call_that_is_refused_fails_the_save_and_leaves_nothing(store, call, codes):
    """Each one of a save, that of the folder after the rename included: what might not last must not look saved."""
    before = _content(_save(store, 10))
    number = 0
    while not store.path(20).exists():
        code = codes[number % len(codes)]
        number += 1
        result = _save_refused(store.folder, call, number, code)
        assert result == (0 if store.path(20).exists() else getattr(errno, code))
        if result:
            assert os.listdir(store.folder) == ["step-00000010"]
    assert number - 1 == {"write": len(FILES) + 1, "fsync": len(FILES) + 3, "mkdir": 1, "rename": 1}[call]
    assert _content(store.path(10)) == before


@needs_strace
@pytest.mark.parametrize("fault", ["error=EIO", "signal=SIGKILL"])
def test_a_sound_checkpoint_is_there_until_another_has_its_place(store, fault):
    """One that lacks its evaluation is replaced when that has been done."""
    for call in ("rename", "fsync"):
        number, code = 0, -1
        while code:
            number += 1
            shutil.rmtree(store.folder, ignore_errors=True)
            _save(store, 20, **{LACKS_EVALUATION: True})
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
            command = ["strace", "-f", "-qq", "-o", os.devnull, *inject, sys.executable, "-B", "-c", SAVE]
            code = subprocess.run([*command, str(store.folder)], cwd=ROOT).returncode
            assert code in (0, errno.EIO, -signal.SIGKILL)
            assert has_checkpoints(store.folder.parent)
            if code != errno.EIO:  # by itself, and a process that was killed with the next session
                CheckpointStore(store.folder).remove_unfinished()
            assert CheckpointStore(store.folder).newest() is not None
            assert os.listdir(store.folder) == ["step-00000020"]
        assert not lacks_evaluation(store.path(20))
        assert number - 1 == {"rename": 2, "fsync": len(FILES) + 3}[call]


@needs_strace
def test_an_error_that_comes_with_the_close_counts(store):
    _save(store, 10)
    only = store.folder / ".tmp-0.0-step-00000020" / "optimizer.safetensors"
    assert _save_refused(store.folder, "close", 1, "EIO", only) == errno.EIO
    assert os.listdir(store.folder) == ["step-00000010"]


def _content(path):
    return {entry.name: (entry.stat().st_mtime_ns, Path(entry.path).read_bytes()) for entry in os.scandir(path)}


class Vanishing(Mapping):
    """Files of a save; the folder they go into is deleted before the second is written."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, name):
        if name != next(iter(FILES)):
            shutil.rmtree(self.folder)
        return FILES[name]

    def __iter__(self):
        return iter(FILES)

    def __len__(self):
        return len(FILES)


def test_a_folder_that_is_deleted_during_a_save_is_made_anew_with_the_next(store):
    _save(store, 10)
    with pytest.raises(FileNotFoundError) as error:
        store.save(20, Vanishing(store.folder), {})
    assert str(store.folder) in error.value.filename
    store.retain(None)
    store.remove_unfinished()
    verify(_save(store, 30))


def test_room_is_asked_for_before_it_is_needed(store):
    assert store.short_of_room(1000) is None
    assert "MB free, and a checkpoint takes 1,000,000,000,000 MB" in store.short_of_room(10**18)
    assert not store.folder.exists()


def test_any_bytes_will_do_and_the_store_can_be_sent(store):
    content = memoryview(bytearray(8000)).cast("d")
    path = pickle.loads(pickle.dumps(store)).save(10, {"model.safetensors": content}, {})  # noqa: S301 - our own
    assert verify(path)["files"]["model.safetensors"]["size"] == 8000


def test_links_that_were_planted_are_removed_and_not_followed(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    _save(store, 10)
    for name in (".tmp-0.0-step-00000020", ".tmp-old-step-00000010", ".tmp-anything"):
        (store.folder / name).symlink_to(elsewhere)
    (store.folder / "step-00000020").symlink_to(elsewhere)
    _save(store, 20, 30)
    store.retain(None)
    store.remove_unfinished()
    assert sorted(os.listdir(store.folder)) == ["step-00000020", "step-00000030"]
    assert not store.path(20).is_symlink() and verify(store.path(20))
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]


def test_sweep_removes_what_was_left_unfinished(store):
    _save(store, 10)
    (store.folder / ".tmp-0-step-00000020").mkdir()
    (store.folder / ".tmp-0-step-00000020" / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in store.all()] == ["step-00000010"]
    store.remove_unfinished()
    assert os.listdir(store.folder) == ["step-00000010"]


def test_saving_a_step_again_keeps_a_sound_one_and_replaces_a_damaged_one(store):
    path = _save(store, 10)
    before = path.stat().st_ino
    _save(store, 10)
    assert path.stat().st_ino == before
    (path / "state.json").write_bytes(b"!!")
    _save(store, 10)
    verify(path)


def test_locate_knows_runs_their_best_and_single_checkpoints(store, tmp_path):
    _save(store, 10)
    _save(store, 20, **{"best_step": 10})
    notes = []
    assert locate(tmp_path, notes.append).path == store.path(20)
    assert locate(tmp_path, notes.append, best=True).path == store.path(10)
    assert locate(store.path(10), notes.append).path == store.path(10)
    with pytest.raises(UserError, match="no checkpoint there"):
        locate(tmp_path / "nowhere", notes.append)


def test_the_manifest_is_plain_json_with_every_file(store):
    manifest = json.loads((_save(store, 10, generation=3) / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES)
    assert manifest["files"]["state.json"]["size"] == 2
