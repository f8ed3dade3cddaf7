"""What the files of a run directory say, each file as one frozen dataclass (docs/run-directory.md).

codec.py reads and writes them. A rank writes its two by itself, with the standard library alone (launch/rank/).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.errors import ExitCode
from dist_train.rundir.codec import decode, read_json, read_lines
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId

# ---------------------------------------------------------------- generations/<g>/


@dataclass(frozen=True, kw_only=True)
class NodeRecord(ProcessId):
    """nodes/NAME.json: the launcher of a node, and how a scheduler knows it.

    Attributes:
        job: the scheduler's id of the job.
        step: the scheduler's id of the job step, where the launcher has one.
        restarts: how often the job had come back.
        command: what was typed, for people.
        folder: the run directory.
    """

    job: str | None = None
    step: str | None = None
    restarts: int = 0
    command: str | list[str] | None = None
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One line of a stack; `text` is the line of source, without indentation."""

    file: str
    line: int
    function: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ExceptionName:
    """An exception in a chain. `is_cause`: the one after it was raised from it."""

    type: str
    module: str
    message: str
    is_cause: bool = False


@dataclass(frozen=True, kw_only=True)
class RankRecord(ProcessId):
    """ranks/RANK.json: a rank that has begun.

    Attributes:
        local_rank: its number on its node.
        agent: process id of the elastic agent that it was started by.
        ended: the exit code it left with, or the words; None while it runs, and where it was killed.
        ended_ns: when, in ns since boot.
        chain: what a SystemExit was raised from.
    """

    rank: int
    local_rank: int = 0
    agent: int
    ended: int | str | None = None
    ended_ns: int | None = None
    chain: list[ExceptionName] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """errors/rankRANK.json: the exception that ended a rank.

    Attributes:
        boot_ns: when, in ns since boot, which orders the ranks of one host.
        code: the exit code that fits it.
        is_user_error: the message is all that the user needs.
        limits: of the process: nofile, nproc, as; and `peak`, the most memory it has had, in bytes.
        gpu: bytes at the most, reserved and in all, of a GPU that ran out of memory.
    """

    rank: int
    boot_ns: int
    type: str
    module: str
    message: str
    code: int
    is_user_error: bool
    notes: list[str] = field(default_factory=list)
    errno: int | None = None
    filename: str = ""
    chain: list[ExceptionName] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    gpu: dict[str, int] | None = None
    frames: list[Frame] = field(default_factory=list)
    traceback: str = ""

    @property
    def name(self) -> ExceptionName:
        return ExceptionName(type=self.type, module=self.module, message=self.message)


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How the agent saw a rank end; a negative exit code is a signal's number."""

    rank: int
    pid: int
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class AgentOutcome:
    """agent.json: how the ranks of a node ended, those that failed first in front; or what kept the agent from it."""

    error: str | None
    ranks: list[RankEnd]
    boot_ns: int = 0


@dataclass(frozen=True, kw_only=True)
class VerdictReport:
    """What a verdict says of the exception that was the first cause."""

    type: str
    message: str
    is_user_error: bool = False


@dataclass(frozen=True, kw_only=True)
class VerdictCause:
    """What a verdict says of the first cause: an exception, exit, signal, early, peer, ended, mismatch or hang."""

    kind: str = "unknown"
    exit_code: int | None = None
    report: VerdictReport | None = None
    ranks: list[int] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class VerdictSummary:
    """verdict.json, as far as the launcher reads it again. `outcome` is done, stopped or failed."""

    exit_code: int = int(ExitCode.USER_CODE)
    outcome: str = "failed"
    cause: VerdictCause | None = None


# ---------------------------------------------------------------- .nodes/


@dataclass(frozen=True, kw_only=True)
class NodeTurn(ProcessId):
    """NAME.json: the launcher of a node, ready for the next generation. In one, it is what that one's round says.

    Attributes:
        turn: how often it has got ready.
        alone: it has gone on by itself, since it saw no other launcher.
        attempt: the number of the generation that it was in last, as the ranks count them.
        restarts: how many generations have failed, other than by the loss of a node.
        code: the exit code that its last generation stands for; None where that is for the others to know.
        ended: the launcher's exit code, once it has ended.
    """

    name: str
    turn: int = 0
    alone: bool = False
    attempt: int = 0
    restarts: int = 0
    code: int | None = None
    ended: int | None = None
    version: int = 1

    @property
    def process(self) -> tuple[object, ...]:
        return self.host, self.pid, self.started, self.boot

    @property
    def key(self) -> tuple[object, ...]:
        return *self.process, self.turn

    @property
    def may_live(self) -> bool:
        return self.ended is None and self.lives() is not False


@dataclass(frozen=True, kw_only=True)
class Round:
    """.round.json: what all nodes are to do for the next generation.

    Attributes:
        start: its name, which there is once.
        attempt: its number, as the ranks count them.
        restarts: as the node has it that counts most.
        master_port: where the first node listens; None where the endpoint says it.
        members: who is in it.
    """

    start: str
    attempt: int
    restarts: int
    master_port: int | None
    rdzv_id: str
    members: list[NodeTurn]
    version: int = 1


# ---------------------------------------------------------------- the run


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """state.json: how far a run has come.

    Attributes:
        status: running, stopped, done or failed.
        signal: the name of the signal that stopped it.
        updated: Unix time in s.
    """

    status: str | None = None
    step: int | None = None
    total_steps: int | None = None
    best: Best | None = None
    metrics: dict[str, Any] | None = None
    signal: str | None = None
    updated: float = 0.0

    @classmethod
    def of(cls, run_dir: Path) -> "RunState":
        """What state.json says, as far as it makes sense; empty without one."""
        found = read_json(RunDir(run_dir).state)
        state = decode(cls, found if isinstance(found, dict) else {}, lenient=True)
        named = state.status is None or (state.status.isidentifier() and len(state.status) < 20)
        counted = all(number is None or number >= 0 for number in (state.step, state.total_steps))
        return state if named and counted else cls()  # no training could have written it

    @property
    def reached_its_end(self) -> bool:
        """Whether it is done, or has come to the step of train.stop_after."""
        return self.status == "done" or (self.status == "stopped" and self.signal is None)


@dataclass(frozen=True, kw_only=True)
class LaunchRow:
    """A line of lives.jsonl: a launch began, ended, or was lost. A launch is one start of the launcher.

    Attributes:
        life: number of the launch.
        event: began, ended or lost.
        restarts: how often the scheduler's job had come back.
        checkpoint: the newest one as the launch began.
        in_order: it is no reason to give up.
        saved: the newest checkpoint as the launch ended.
        unix: Unix time in s.
    """

    life: int
    event: str
    job: str | None = None
    restarts: int = 0
    hosts: list[str] | None = None
    nodes: int | None = None
    ranks: int | None = None
    checkpoint: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    in_order: bool | None = None
    seconds_to_stop: float | None = None
    saved: str | None = None
    unix: float | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """One start of the launcher: how it began, and how it ended; None of a launch that runs or left no word."""

    began: LaunchRow
    ended: LaunchRow | None

    @property
    def number(self) -> int:
        return self.began.life

    @property
    def in_order(self) -> bool:
        return self.ended is not None and bool(self.ended.in_order)


def read_launches(run_dir: Path) -> list[LaunchRecord]:
    """Every launch of the run, the oldest first."""
    rows = read_lines(LaunchRow, RunDir(run_dir).launches)
    began = {row.life: row for row in rows if row.event == "began"}
    ended = {row.life: row for row in rows if row.event != "began"}
    return [
        LaunchRecord(began=began.get(number, LaunchRow(life=number, event="began")), ended=ended.get(number))
        for number in sorted({*began, *ended})
    ]
