"""What is known of each rank at the moment of a hang: heartbeat, state of its processes, their stacks."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import Frame, RankRecord
from launch.diagnosis import collectives
from launch.diagnosis.collectives import Call
from launch.diagnosis.formatting import frame_at, is_own
from launch.processes import catches, descendants, send
from launch.rank.heartbeat import COUNTS_AT, PHASES, RECORD, SIGNAL

ANSWER_S = 5.0
"""Seconds for a stack to come; C code writes it, so a process that does not answer is in the kernel or stopped."""
SETTLED_S = 0.1
"""Seconds without a new byte after which it is complete."""
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)$')
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x0*(?P<ident>[0-9a-f]+)")
_COLLECTIVE = re.compile(r"/torch/(distributed/|nn/parallel/distributed\.py)")
_LOADER = re.compile(r"/torch/utils/data/")
_GPU_OR_WORK = re.compile(
    r"\.wait\(|\.item\(|\.tolist\(|\.numpy\(|\.cpu\(|\.to\(\s*(device\s*=\s*)?(torch\.device\(\s*)?[\"']cpu|"
    r"\.nonzero\(|\.is_nonzero\(|isfinite\(|isnan\(|torch\.equal\(|\.copy_\(|synchronize\("
)
"""Calls into C that wait for a collective to end, or for the GPU and so for one; on a CPU the first alone does."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a rank said last."""

    beats: int = 0
    phase: str = "unknown"
    step: int = 0
    slowest: float = 0.0
    """Seconds of the slowest recent step, or batch of an evaluation."""
    worked: int = 0
    """Steps of which it told what its own work took."""
    work: float = 0.0
    """Seconds of loading and the forward pass of one microbatch, the median of the recent steps."""
    clockwork: int = 0
    """Id of the thread of ours in it, whose wakings are no work."""
    main: int = 0
    """Ident of its main thread."""
    groups: dict[str, int] = field(default_factory=dict)
    """Collectives begun, by process group."""

    @property
    def total(self) -> int:
        return sum(self.groups.values())

    @property
    def signs(self) -> tuple[int, int]:
        """What changes as it goes forward. A rank that counts its steps may begin collectives without finishing one."""
        return (self.beats, self.total if self.phase == "unknown" else 0)


def read_calls(generation: GenerationDir, rank: int) -> list[Call]:
    """The newest collectives that a rank has called, oldest first."""
    try:
        return collectives.read(generation.heartbeat(rank).read_bytes())
    except OSError:
        return []


def read_heartbeat(generation: GenerationDir, rank: int) -> Heartbeat:
    try:
        page = generation.heartbeat(rank).read_bytes()
        beats, _, phase, step, slowest, main, worked, work, clockwork = RECORD.unpack_from(page)
    except (OSError, ValueError):
        return Heartbeat()
    except Exception:  # struct.error: not yet written
        return Heartbeat()
    try:
        groups = json.loads(page[COUNTS_AT:].partition(b"\n")[0] or b"{}")
    except ValueError:  # being written
        groups = {}
    told = {"slowest": slowest, "worked": worked, "work": work, "clockwork": clockwork}
    return Heartbeat(beats=beats, phase=PHASES[phase], step=step, main=main, groups=groups, **told)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A rank, or a child of it."""

    pid: int
    state: str
    syscall: str
    """Where the kernel has it wait, as /proc calls it; empty where it does not say."""
    frames: list[Frame]
    """Its main thread, innermost first; empty where it did not answer."""

    @property
    def own(self) -> Frame | None:
        """Where it is in the user's code."""
        return next((frame for frame in self.frames if is_own(frame)), None)

    @property
    def waits(self) -> str | None:
        """`collective`, `loader`, or None where it waits for nothing that we know."""
        if self.frames and _GPU_OR_WORK.search(self.frames[0].text):
            return "collective"
        for frame in self.frames:
            if _COLLECTIVE.search(frame.file) or frame.function == "_engine_run_backward":
                return "collective"
            if _LOADER.search(frame.file):
                return "loader"
            if is_own(frame) or "/dist_train/" in frame.file:
                return None
        return None

    @property
    def operation(self) -> str:
        """The outermost function of torch above the user's frame: all_reduce, backward."""
        last = ""
        for frame in self.frames:
            if is_own(frame) or "/dist_train/" in frame.file:
                return last or "wait"
            last = frame.function if "/torch/" in frame.file and frame.function != "wrapper" else last
        return last or "wait"

    @property
    def place(self) -> Frame | None:
        """The user's line, else the innermost one outside of Python and torch, else the innermost."""
        outside = (frame for frame in self.frames if not re.search(r"/python3[^/]*/|^<", frame.file))
        return self.own or next(outside, None) or (self.frames[0] if self.frames else None)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Of one rank."""

    rank: int
    heartbeat: Heartbeat
    process: Process | None
    """None where it has ended, with exit code 0."""
    children: list[Process]
    calls: list[Call] = field(default_factory=list)
    """The newest collectives that its program has called, oldest first."""


def gather(generation: GenerationDir, alive: Sequence[RankRecord], ended: Sequence[RankRecord]) -> list[Evidence]:
    """Asks all ranks and their children for their stacks, which also go to generations/<g>/stacks/.

    All ranks are asked before any answer is read: the signal can wake one from a call into the kernel, and it would
    go on, and the others with it.
    """
    ranks = sorted([*alive, *ended], key=lambda record: record.rank)
    hearts = {record.rank: read_heartbeat(generation, record.rank) for record in ranks}
    asked = {record.rank: ask(record.pid, generation.stack(record.rank), "rank") for record in alive}
    found = []
    for record in ranks:
        rank, main, children = record.rank, hearts[record.rank].main, []
        process = asked[rank].answer(main) if rank in asked else None
        if process is not None:
            for child in descendants(record.pid):  # into the same file, so one after another
                children.append(ask(child, generation.stack(rank), "child process").answer(main))
        calls = read_calls(generation, rank)
        found.append(Evidence(rank=rank, heartbeat=hearts[rank], process=process, children=children, calls=calls))
    return found


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A process that was asked for its stack."""

    pid: int
    state: str
    syscall: str
    stacks: Path
    before: int | None
    """Size of the file until then; None where it can't answer."""

    def answer(self, main: int) -> Process:
        text = _new_text(self.stacks, self.before) if self.before is not None else ""
        if not text:
            why = {"T": "it is stopped", "Z": "it has ended", "D": "it waits in the kernel"}
            with open(self.stacks, "a") as file:
                file.write(f"no stack: {why.get(self.state, 'it does not answer')}\n")
        return Process(pid=self.pid, state=self.state, syscall=self.syscall, frames=main_thread(text, main))


def ask(pid: int, stacks: Path, who: str) -> Asked:
    found = stat(pid)
    state = found.state if found else "X"
    syscall = _read(f"/proc/{pid}/wchan").strip("\0 0")
    with open(stacks, "a") as file:
        file.write(f"--- {who}, pid {pid}, state {state}{', in ' + syscall if syscall else ''}\n")
    before = None
    if state not in "TtZX" and catches(pid, SIGNAL):
        before = stacks.stat().st_size
        send(pid, SIGNAL)
    return Asked(pid=pid, state=state, syscall=syscall, stacks=stacks, before=before)


def _new_text(stacks: Path, before: int) -> str:
    begun = time.monotonic()
    size, since = before, begun
    while time.monotonic() - begun < ANSWER_S:
        time.sleep(0.02)
        now = stacks.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif size > before and time.monotonic() - since > SETTLED_S:
            break
    with open(stacks, "rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def main_thread(text: str, ident: int) -> list[Frame]:
    """Its frames in what faulthandler wrote, innermost first; the last thread's where there is no such ident."""
    threads: dict[int, list[Frame]] = {}
    current: list[Frame] = []
    for line in text.splitlines():
        if match := _THREAD.match(line):
            current = threads[int(match["ident"], 16)] = []
        elif match := _FRAME.match(line):
            current.append(frame_at(match["file"], int(match["line"]), match["function"]))
    return threads.get(ident, current)
