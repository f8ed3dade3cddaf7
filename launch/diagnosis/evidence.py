"""What is known of each rank at the moment of a hang: heartbeat, state of its processes, their stacks."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import Frame, RankRecord

from ..processes import catches, descendants, send
from ..rank.heartbeat import ASIDE, ASIDE_AT, COUNTS_AT, PHASES, RECORD, SIGNAL
from ..rank.page import Pages
from . import collectives
from .collectives import Call
from .formatting import is_own, stacks_in

ANSWER_S = 5.0
"""Seconds for a stack to come; C code writes it, so a process that does not answer is in the kernel or stopped."""
SETTLED_S = 0.1
"""Seconds without a new byte after which it is complete."""
_COLLECTIVE = re.compile(r"/torch/(distributed/|nn/parallel/distributed\.py)")
_AHEAD = "/dist_train/data/ahead.py"
"""Whose `_work` a loading thread is in; it calls what loads."""
_LOADER = re.compile(rf"/torch/utils/data/|{re.escape(_AHEAD)}$")
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
    seconds: float = 0.0
    """Since its last beat, with those in which the machine slept."""
    slowest: float = 0.0
    """Seconds of the slowest recent step, or batch of an evaluation."""
    aside: list[int] = field(default_factory=list)
    """Ids of threads of ours in it and of child processes, whose wakings are no work."""
    main: int = 0
    """Ident of its main thread."""
    stacks: int = 0
    """Its descriptor of the file that its stacks go to; 0 without one."""
    groups: dict[str, int] = field(default_factory=dict)
    """Collectives begun, by process group."""

    @property
    def total(self) -> int:
        return sum(self.groups.values())

    @property
    def signs(self) -> tuple[int, int]:
        """What changes as it goes forward. A rank that counts its steps may begin collectives without finishing one."""
        return (self.beats, self.total if self.phase == "unknown" else 0)


def read_heartbeat(page: bytes) -> Heartbeat:
    """What the head of a rank's page says; of an empty one, that nothing is known."""
    beats, boot, phase, step, slowest, main, stacks = RECORD.unpack_from(page)
    seconds = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot) / 1e9
    aside = [one for one in ASIDE.unpack_from(page, ASIDE_AT) if one]
    told = {"seconds": seconds, "slowest": slowest, "stacks": stacks}
    try:
        groups = json.loads(page[COUNTS_AT:].partition(b"\n")[0])
    except ValueError:  # not there yet, or being written
        groups = {}
    return Heartbeat(beats=beats, phase=PHASES[phase], step=step, main=main, groups=groups, aside=aside, **told)


def _is_program(frame: Frame) -> bool:
    """Whether it is of the user's program or of our trainer, and not of a library."""
    return is_own(frame) or "/dist_train/" in frame.file


@dataclass(frozen=True, kw_only=True)
class Process:
    """A rank, or a child of it."""

    pid: int
    state: str
    syscall: str
    """Where the kernel has it wait, as /proc calls it; empty where it does not say."""
    frames: list[Frame]
    """Its main thread, innermost first; empty where it did not answer."""
    others: list[list[Frame]] = field(default_factory=list)
    """Its other threads."""

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
            if _is_program(frame):
                return None
        return None

    @property
    def operation(self) -> str:
        """The outermost function of torch that the program has called: all_reduce, backward."""
        called = [*takewhile(lambda frame: not _is_program(frame), self.frames)]
        names = (one.function for one in reversed(called) if "/torch/" in one.file and one.function != "wrapper")
        return next(names, "wait")

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

    @property
    def running(self) -> Process:
        """The process of a rank that has not ended."""
        assert self.process is not None
        return self.process


def gather_evidence(
    generation: GenerationDir, pages: Pages, alive: Sequence[RankRecord], ended: Sequence[RankRecord]
) -> list[Evidence]:
    """Asks all ranks and their children for their stacks, which also go to generations/<g>/stacks/.

    All ranks are asked before any answer is read: the signal can wake one from a call into the kernel, and it would
    go on, and the others with it.
    """
    ranks = sorted([*alive, *ended], key=lambda record: record.rank)
    heads = {record.rank: pages.head(record.local_rank) for record in ranks}
    hearts = {rank: read_heartbeat(head) for rank, head in heads.items()}
    files = {record.rank: Path(f"/proc/{record.pid}/fd/{hearts[record.rank].stacks}") for record in ranks}
    asked = {record.rank: ask_for_stack(record.pid, files[record.rank], "rank") for record in alive}
    found = []
    for record in ranks:
        rank, main, children = record.rank, hearts[record.rank].main, []
        process = asked[rank](main) if rank in asked else None
        if process is not None:
            children += loading_threads(process)
            for child in descendants(record.pid):  # into the same file, so one after another
                children.append(ask_for_stack(child, files[rank], "child process")(main))
            _keep(files[rank], generation.stack(rank))
        calls = collectives.read(heads[rank])
        found.append(Evidence(rank=rank, heartbeat=hearts[rank], process=process, children=children, calls=calls))
    return found


def _keep(stacks: Path, path: Path) -> None:
    """Copies a rank's stacks, for people, where the disk takes them."""
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stacks.read_bytes())


def ask_for_stack(pid: int, stacks: Path, who: str) -> Callable[[int], Process]:
    """Asks a process for its stack. What is returned waits for it; it takes the ident of the rank's main thread."""
    found, syscall = stat(pid), ""
    state = found.state if found else "X"
    with suppress(OSError):
        syscall = Path(f"/proc/{pid}/wchan").read_text().strip("\0 0")
    _add(stacks, f"--- {who}, pid {pid}, state {state}{', in ' + syscall if syscall else ''}\n")
    before, is_asked = _size(stacks), state not in "TtZX" and catches(pid, SIGNAL)
    if is_asked:
        send(pid, SIGNAL)

    def answer(main: int) -> Process:
        text = _new_text(stacks, before) if is_asked else ""
        if not text:
            why = {"T": "it is stopped", "Z": "it has ended", "D": "it waits in the kernel"}
            _add(stacks, f"no stack: {why.get(state, 'it does not answer')}\n")
        frames = main_thread(text, main)
        others = [found for _, found in stacks_in(text.splitlines()) if found != frames]
        return Process(pid=pid, state=state, syscall=syscall, frames=frames, others=others)

    return answer


def loading_threads(process: Process) -> list[Process]:
    """The threads of a rank that load something right now, each as if it were a process of its own."""
    at_work = [frames for frames in process.others if any(map(_is_loading, frames[1:]))]  # else it waits for work
    return [replace(process, frames=frames, others=[]) for frames in at_work]


def _is_loading(frame: Frame) -> bool:
    return frame.file.endswith(_AHEAD) and frame.function == "_work"


def _new_text(stacks: Path, before: int) -> str:
    deadline, size, since = time.monotonic() + ANSWER_S, before, math.inf
    while time.monotonic() < deadline and time.monotonic() - since < SETTLED_S:
        time.sleep(0.02)
        if (now := _size(stacks)) != size:
            size, since = now, time.monotonic()
    with suppress(OSError), open(stacks, "rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace")
    return ""


def _add(stacks: Path, line: str) -> None:
    with suppress(OSError), open(stacks, "a") as file:  # the rank may end meanwhile, and its files with it
        file.write(line)


def _size(stacks: Path) -> int:
    with suppress(OSError):
        return stacks.stat().st_size
    return 0


def main_thread(text: str, ident: int) -> list[Frame]:
    """Its frames in what faulthandler wrote, innermost first; the last thread's where there is no such ident."""
    stacks = stacks_in(text.splitlines())
    its_own = [frames for header, frames in stacks if re.search(rf" 0x0*{ident:x}\b", header)]
    return (its_own or [frames for _, frames in stacks] or [[]])[-1]
