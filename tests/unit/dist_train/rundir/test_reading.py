"""Files that anybody may have made are read within limits, or refused at once."""

import os
from types import SimpleNamespace

import pytest

from dist_train.checkpoint.manifest import MANIFEST, DamagedCheckpoint, read_manifest, verify, write_files
from dist_train.errors import UserError
from dist_train.rundir.files import open_to_append
from dist_train.rundir.ownership import current
from dist_train.rundir.reading import Odd, numbered, open_regular, read_bytes, read_json
from dist_train.rundir.records import RunState
from dist_train.tracking.wandb_sink import run_id
from launch.foreign_files import refuse, remember
from launch.supervisor.run_lock import owning


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(Odd, match="not a regular file"):
            read_bytes(tmp_path / name, 100)
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "file", 5) == read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(Odd, match="larger than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    with pytest.raises(OSError):
        open_regular(tmp_path / "link", links=False)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"\xff\xfe", b"", b"nul"])
def test_what_is_no_json_of_ours_is_a_value_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_numbers_are_the_ones_that_we_give(tmp_path):
    for name in ("10", "9", "٣", "²", "1x", "-1", "9" * 30, "x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in numbered(tmp_path)] == ["9", "10"]
    assert numbered(tmp_path / "nowhere") == []


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    write_files(folder, {"state.json": b"{}"}, {"step": 3, "generation": 1})
    return folder


def test_a_checkpoint_may_be_copied_out_under_another_name(checkpoint):
    moved = checkpoint.rename(checkpoint.with_name("best"))
    assert verify(moved, by_name=False)["step"] == 3
    with pytest.raises(DamagedCheckpoint, match="of step 3"):
        verify(moved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1), ("step", "3"), ("step", True), ("step", 10**40), ("generation", None), ("saved", "x"),
        ("saved", 1e300), ("best_step", 1.5), ("world_size", []), ("config", []), ("torch", {}), ("files", []),
        ("files", {"a": {}}),
        ("files", {"../a": {"size": 1, "sha256": "0" * 64}}),
        ("files", {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}),
        ("files", {"a\0": {"size": 1, "sha256": "0" * 64}}), ("files", {"a": {"size": -1, "sha256": "0" * 64}}),
        ("files", {"a": {"size": 1, "sha256": "x"}}),
    ],
)  # fmt: skip
def test_a_signed_manifest_with_odd_values_names_the_key(checkpoint, key, value):
    for path in checkpoint.iterdir():
        path.unlink()
    write_files(checkpoint, {}, {"step": 3, key: value})
    if key == "files":  # which `write_files` makes itself
        from tests.strangers.forge import sign

        sign(checkpoint, {"format": 1, "step": 3, "files": value})
    with pytest.raises(DamagedCheckpoint, match=f"no checkpoint has such a value for {key}"):
        read_manifest(checkpoint)


def test_a_file_that_is_a_hole_is_not_read(checkpoint):
    from tests.strangers.forge import HUGE, sign

    os.truncate(checkpoint / "state.json", HUGE)
    sign(checkpoint, {"format": 1, "step": 3, "files": {"state.json": {"size": HUGE, "sha256": "0" * 64}}})
    with pytest.raises(DamagedCheckpoint, match="a hole"):
        verify(checkpoint)
    os.unlink(checkpoint / MANIFEST)
    os.mkfifo(checkpoint / MANIFEST)
    with pytest.raises(DamagedCheckpoint, match="not a regular file"):
        verify(checkpoint)


@pytest.mark.parametrize(
    "state",
    [
        '{"step": "x"}',
        '{"best": 1}',
        '{"best": {"metric": 1, "value": "x", "step": []}}',
        '{"status": "\\u001b[2J"}',
        "[]",
    ],
)
def test_a_state_says_what_makes_sense_and_no_more(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    assert RunState.of(tmp_path) == RunState()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"pid": -1}', b"\xff", b'{"host": "\\u001b[2J"}'])
def test_a_claim_that_nobody_wrote_has_no_owner(tmp_path, content):
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease" / "00000002").write_bytes(content + b"\n1\n")
    (tmp_path / ".lease" / "²").touch()
    claim = current(tmp_path)
    assert claim is not None and claim.number == 2 and claim.owner is None


def test_what_a_run_would_write_through_is_asked_for_and_a_pipe_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "state.json").write_text("{}")
    (run / "inside").symlink_to("logs")
    refuse(run, trusted=False)
    (run / "logs" / "rank0.log").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="write through the link .*rank0.log → /etc/hostname.*--trust"):
        refuse(run, trusted=False)
    refuse(run, trusted=True)
    refuse(run, trusted=False)
    os.mkfifo(run / "lives.jsonl")
    with pytest.raises(UserError, match="no file and no folder"):
        refuse(run, trusted=True)


@pytest.mark.parametrize("place", ["wandb/process.log", "wandb/id.txt", "tensorboard/events.out.tfevents.1"])
def test_so_is_what_others_write_for_us(tmp_path, monkeypatch, place):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    run, file = tmp_path / "run", tmp_path / "run" / place
    file.parent.mkdir(parents=True)
    (run / "state.json").write_text("{}")
    file.symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=f"write through the link .*{place} → /etc/hostname.*--trust"):
        refuse(run, trusted=False)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no file and no folder"):
        refuse(run, trusted=True)
    file.unlink()
    (file.parent / "run-1").mkdir()
    (file.parent / "latest-run").symlink_to("run-1")
    (file.parent / "run-1" / "out").symlink_to("/etc")  # of W&B's own: it writes in a new folder each time
    refuse(run, trusted=False)


def test_what_wandb_writes_and_is_told_is_no_link_and_no_pipe(tmp_path):
    (tmp_path / "mine").write_text("secret")
    for name in ("id.txt", "process.log"):
        (tmp_path / name).symlink_to("mine")
    for attempt in (run_id, open_to_append):
        place = tmp_path / ("id.txt" if attempt is run_id else "process.log")
        with pytest.raises(OSError):
            attempt(place)
        place.unlink()
        os.mkfifo(place)
        with pytest.raises(OSError):
            attempt(place)
        place.unlink()
    assert run_id(tmp_path / "id.txt") == run_id(tmp_path / "id.txt") != "secret"
    with os.fdopen(open_to_append(tmp_path / "process.log"), "ab") as log:
        log.write(b"a line")
    assert (tmp_path / "process.log").read_text() == "a line"
    assert (tmp_path / "mine").read_text() == "secret"


LEFT = ("lives.jsonl", "metrics.jsonl", ".lock-node0", "config.yaml", "checkpoints/step-00000001", ".lease")


@pytest.mark.parametrize("left", LEFT)
def test_a_link_out_is_asked_for_where_anything_lies_that_a_run_leaves(tmp_path, monkeypatch, left):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    (run / left).parent.mkdir(parents=True)
    (run / left).symlink_to(tmp_path / "not-there-yet")
    remember(run)  # does not take it for the user's
    with pytest.raises(UserError, match="write through the link .*--trust"):
        refuse(run, trusted=False)


def test_links_in_a_folder_that_is_new_are_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    for name in ("checkpoints", "logs"):
        (disk / name).mkdir(parents=True)
        (run / name).symlink_to(disk / name)
    refuse(run, trusted=False)
    remember(run)
    (run / "state.json").write_text("{}")
    refuse(run, trusted=False)


def test_the_lock_of_a_run_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock-node0").symlink_to("mine")
    plan = SimpleNamespace(folder=tmp_path, node=0, place=None)
    with pytest.raises(UserError, match=r"cannot open .*/\.lock-node0: it is a link$"), owning(plan):
        pytest.fail("it was taken")
    assert (tmp_path / "mine").read_text() == "mine"
