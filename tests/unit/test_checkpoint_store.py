"""Checkpoints on disk: whole or not there, and nothing damaged is used."""

import json
import os
import random
import shutil

import pytest

from dist_train.checkpoint.store import CheckpointStore, DamagedCheckpoint, locate, verify
from dist_train.config.errors import ExitCode, UserError

FILES = {"model.safetensors": bytes(range(256)) * 40, "optimizer.safetensors": b"x" * 999, "state.json": b"{}"}


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


def test_sweep_removes_what_was_left_unfinished(store):
    _save(store, 10)
    (store.folder / ".tmp-0-step-00000020").mkdir()
    (store.folder / ".tmp-0-step-00000020" / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in store.all()] == ["step-00000010"]
    store.sweep()
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
