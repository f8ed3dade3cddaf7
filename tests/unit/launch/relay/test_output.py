"""Lines as a terminal would leave them, logs below a size, a console that nobody waits for, and who is shown."""

import os
import select
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.errors import UserError
from launch import console
from launch.diagnosis.native_crash import tail
from launch.plan.console_options import parse_ranks, parse_shown, parse_size
from launch.plan.flags import Flags
from launch.relay.lines import LONGEST_LINE, Lines
from launch.relay.targets import WAITING, Console, LogFile

BAR = b"".join(b"\r%3d%%|%s|" % (percent, b"#" * (percent // 10)) for percent in range(0, 101, 5)) + b"\n"
TWO_BARS = b"a 0\nb 0" + b"".join(b"\r\x1b[2K\x1b[1A\x1b[2Ka %d\nb %d" % (n, n) for n in range(1, 9)) + b"\n"
NESTED = b"".join(b"\router %d\n\rinner %d\x1b[A" % (n, n) for n in range(9)) + b"\n\nafter\n"


def logged(*chunks: bytes) -> str:
    found: list[str] = []
    lines = Lines(found.append)
    for chunk in chunks:
        lines.feed(chunk)
    lines.close()
    return "".join(found)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"one\ntwo\n\nthree", "one\ntwo\n\nthree\n"),
        (b"one\r\ntwo\r\n", "one\ntwo\n"),
        (b"\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", "red link\n"),
        (BAR, "100%|##########|\n"),
        (b"before\n" + BAR + b"after\n", "before\n100%|##########|\nafter\n"),
        (b"\r50%|##  |\r         \rdone\n", "done\n"),  # a bar that erases itself
        (b"\r50%|##  |\r         \r", ""),
        (b"epoch 1\r\x1b[Kepoch 2\r\x1b[K", ""),
        (b"epoch 1\r\x1b[Ka line\nepoch 2", "a line\nepoch 2\n"),
        (b"abc\b\b\bxyz\n", "xyz\n"),
        ("größe ✓\n".encode(), "größe ✓\n"),
        (b"latin \xe9\n", "latin \udce9\n"),
    ],
)
def test_a_log_has_what_a_terminal_would_show_in_the_end(written, expected):
    assert logged(written) == expected
    assert logged(*(written[i : i + 1] for i in range(len(written)))) == expected


def test_bars_that_are_drawn_as_a_block_end_as_one_block():
    # The first frame is on its way before anything says that the cursor will come back to it.
    assert logged(TWO_BARS) == "a 0\na 8\nb 8\n"
    assert logged(NESTED) == "outer 0\nouter 8\ninner 8\nafter\n"


@given(
    st.lists(st.sampled_from([b"ab", b"\n", b"\r", b"\x1b[A", b"\x1b[2K", b"\x1b[31m", "é".encode(), b" "])), st.data()
)
def test_it_does_not_matter_how_the_text_is_cut(parts, data):
    written = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)))))
    chunks = [written[low:high] for low, high in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert logged(*chunks) == logged(written)


def test_lines_are_given_on_at_once_and_an_open_one_when_it_has_settled():
    found: list[str] = []
    lines = Lines(found.append)
    lines.feed(b"whole\nhalf")
    assert found == ["whole\n"]
    lines.settle()
    lines.feed(b" and half\n")
    assert "".join(found) == "whole\nhalf and half\n"


def test_a_line_without_end_does_not_grow_in_memory():
    found: list[str] = []
    lines = Lines(found.append)
    for _ in range(40):
        lines.feed(b"x" * 65_536)
    assert sum(map(len, found)) >= 40 * 65_536 - LONGEST_LINE


# ---------------------------------------------------------------- logs


def test_a_log_stays_below_its_size_and_keeps_the_last_lines(tmp_path):
    log = LogFile(tmp_path / "rank0.log", 1_000)
    lines = [f"line {number:04}" for number in range(500)]
    for line in lines:
        log.write(f"{line}\n")
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"rank0.log", "rank0.log.1"} and max(sizes.values()) <= 1_000
    kept = [*(tmp_path / "rank0.log.1").read_text().splitlines(), *(tmp_path / "rank0.log").read_text().splitlines()]
    assert kept == lines[-len(kept) :] and len(kept) >= 100
    assert tail(tmp_path / "rank0.log", 100) == lines[-100:]


def test_a_line_longer_than_a_log_is_cut_and_not_lost(tmp_path):
    log = LogFile(tmp_path / "rank0.log", 1_000)
    log.write("first\n" + "x" * 1_500 + "\nlast\n")
    log.close()
    written = (tmp_path / "rank0.log.1").read_text() + (tmp_path / "rank0.log").read_text()
    assert written == "x" * 1_500 + "\nlast\n"


def test_a_log_that_cannot_be_written_loses_its_lines_and_nothing_else(tmp_path):
    log = LogFile(tmp_path / "missing" / "rank0.log", 1_000)
    log.write("lost\n")
    (tmp_path / "missing").mkdir()
    log.write("kept\n")
    log.close()
    assert (tmp_path / "missing" / "rank0.log").read_text() == "kept\n"


# ---------------------------------------------------------------- consoles


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            continue


def read_until(reading: int, end: bytes) -> bytes:
    found, limit = b"", time.monotonic() + 60
    while end not in found:
        assert time.monotonic() < limit
        if select.select([reading], [], [], 1)[0]:
            found += os.read(reading, 65_536)
    return found


def test_a_console_that_nobody_reads_is_not_waited_for(pipe):
    reading, writing = pipe
    shown = Console(writing)
    for number in range(40_000):  # twice what may wait; a write that blocked would never return
        shown.write(b"%06d %s\n" % (number, b"x" * 50))
    shown.drain(0.1, 60)
    found = read_until(reading, b"\n")
    shown.drain(0.1, 0.1)
    while len(found) < WAITING // 2:
        found += os.read(reading, 65_536)
    shown.write(b"the end\n")
    found += read_until(reading, b"the end\n")
    lines = found.splitlines()
    assert lines[:100] == [b"%06d %s" % (number, b"x" * 50) for number in range(100)]
    assert any(line.endswith(b"lines left out: nobody read them; they are in the log)") for line in lines)
    assert len(found) < 2 * WAITING


def test_a_console_that_is_gone_is_forgotten(pipe):
    reading, writing = pipe
    shown = Console(writing)
    os.close(reading)
    for _ in range(100):
        shown.write(b"x" * 1_000)
        shown.write_lines("line\n", "[rank1]: ")
    shown.drain(60, 60)  # returns at once


def test_lines_of_others_leave_an_open_line_whole():
    terminal, slave = os.openpty()
    try:
        shown = Console(slave)
        shown.write(b"hello\n\r 50%|##  |")
        shown.write_lines("one\ntwo\n", "[rank1]: ")
        found = read_until(terminal, b"two\r\n\r 50%|##  |")
    finally:
        os.close(terminal)
    assert found == b"hello\r\n\r 50%|##  |\r\x1b[K[rank1]: one\r\n[rank1]: two\r\n\r 50%|##  |"


def test_a_message_does_not_wait_for_a_full_pipe(pipe, monkeypatch):
    _, writing = pipe
    monkeypatch.setattr(console, "WRITE_TIMEOUT_S", 0.01)
    with open(writing, "w", closefd=False) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        saying = threading.Thread(target=lambda: [console.say("x" * 10_000) for _ in range(20)], daemon=True)
        saying.start()
        saying.join(60)
        assert not saying.is_alive()


# ---------------------------------------------------------------- choices


def test_ranks_are_chosen_as_lists_and_spans():
    assert parse_ranks(None, 4) is None
    assert parse_ranks("0,3", 4) == [0, 3]
    assert parse_ranks("2-3, 0", 4) == [0, 2, 3]
    assert parse_ranks("all", 3) == [0, 1, 2]
    for wrong in ("4", "0,4", "3-1", "x", "", "-1", "0-"):
        with pytest.raises(UserError, match="--ranks"):
            parse_ranks(wrong, 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [3, 0, 0, 0]),
        ({"tee": "3"}, [3, 3, 3, 3]),
        ({"tee": "1"}, [3, 1, 1, 1]),
        ({"tee": "2:3,1:0,3:2"}, [3, 0, 3, 2]),
        ({"tee": "0:1,1:2"}, [3, 2, 0, 0]),
        ({"redirects": "1"}, [2, 0, 0, 0]),
        ({"redirects": "3", "tee": "1:1"}, [0, 1, 0, 0]),
        ({"redirects": "0:2"}, [1, 0, 0, 0]),
        ({"local_ranks_filter": "1,2"}, [0, 3, 3, 0]),
        ({"local_ranks_filter": "0", "tee": "3"}, [3, 0, 0, 0]),
        ({"local_ranks_filter": "0,1", "redirects": "1:1"}, [3, 2, 0, 0]),
        ({"ranks": "1-2"}, [0, 3, 3, 0]),
    ],
)
def test_tee_redirects_and_filter_are_torchruns(given, expected):
    shown = parse_shown(Flags(**given), 4)
    assert [shown.streams(rank, rank) for rank in range(4)] == expected
    assert shown.is_rank0_alone == (not given or "redirects" in given and len(given) == 1)


def test_they_count_on_each_node():
    shown = parse_shown(Flags(tee="1:1"), 8)
    assert shown.streams(5, 1) == 1 and shown.streams(4, 0) == 0
    filtered = parse_shown(Flags(local_ranks_filter="0"), 8)
    assert filtered.streams(4, 0) == 3 and not filtered.is_rank0_alone


@pytest.mark.parametrize(
    "given",
    [*({"tee": text} for text in ("7", "a", "0:9", "1:3,", "")), {"redirects": "x"}, {"local_ranks_filter": "0,x"}],
)
def test_what_torchrun_would_not_read_is_refused(given):
    with pytest.raises(UserError, match="tee|redirects|local-ranks-filter"):
        parse_shown(Flags(**given), 4)


def test_lines_begin_as_the_template_says_where_torchrun_would_begin_them():
    template = "${hostname}/${local_rank}/${rank}/${x}: "
    shown = parse_shown(Flags(tee="3", log_line_prefix_template=template), 4)
    assert shown.prefix_of(3, 1) == f"{socket.gethostname()}/1/3/${{x}}: "
    assert parse_shown(Flags(log_line_prefix_template=template), 4).prefix_of(0, 0) == ""
    assert [parse_shown(Flags(tee="3"), 4).prefix_of(rank, 0) for rank in (0, 1)] == ["", "[rank1]: "]


def test_sizes_have_units():
    assert [parse_size(text) for text in ("256MB", "64k", "1.5 G", "2000")] == [
        256_000_000,
        64_000,
        1_500_000_000,
        2_000,
    ]
    for wrong in ("10", "big", "-1MB", "5TB", ""):
        with pytest.raises(UserError, match="--log-size"):
            parse_size(wrong)
