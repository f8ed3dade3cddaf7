"""What the launcher writes into a run directory whose disk refuses for a while."""

import json

from dist_train.rundir.codec import read_json
from launch.supervisor.run_files import RunFiles


def test_what_the_disk_refuses_is_kept_and_written_later_and_both_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.supervisor.run_files.AGAIN_S", 0.0)
    files, folder = RunFiles(), tmp_path / "away"
    for number in range(3):
        files.append(folder / "lives.jsonl", {"number": number})
    files.write(folder / "verdict.json", {"number": 1})
    files.write(folder / "verdict.json", {"number": 2})
    assert files.take_news() == [f"{folder}/lives.jsonl: No such file or directory; kept until it can be written"]
    folder.mkdir()
    files.try_again()
    assert files.take_news() == ["lives.jsonl, verdict.json: written"] and files.left() == []
    rows = [json.loads(line) for line in (folder / "lives.jsonl").read_text().splitlines()]
    assert rows == [{"number": number} for number in range(3)]
    assert read_json(folder / "verdict.json") == {"number": 2}


def test_a_link_is_not_followed_and_what_is_left_at_the_end_is_named(tmp_path):
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "lives.jsonl").symlink_to(tmp_path / "elsewhere")
    files = RunFiles()
    files.append(tmp_path / "lives.jsonl", {})
    assert files.left() == ["lives.jsonl"] and (tmp_path / "elsewhere").read_text() == "theirs"
