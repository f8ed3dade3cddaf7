"""How each rank came to its end, and which of the ends was the first cause."""

import re
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dist_train.errors import ExitCode
from dist_train.rundir.records import ErrorRecord, ExceptionName, RankEnd, RankRecord

from . import collectives
from .collectives import Call
from .native_crash import NativeDeath

_LOADING = ("torch/utils/data/dataloader.py", "dist_train/data/fetch.py")
_PEER_LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection (was )?(closed|refused|reset|aborted)|connectfullmesh|"
    r"remote process exited|socket timeout|connection timed out|timed out waiting|recv, got 0 bytes|"
    r"nccl communicator was aborted|ncclremoteerror|ncclsystemerror|store->|heartbeat monitor",
    re.IGNORECASE,
)
_NO_PEER_LOST = re.compile(
    r"EADDRINUSE|address already in use|duplicate gpu|ncclinvalid|ncclunhandledcuda|cuda (error|failure)|"
    r"detected mismatch",
    re.IGNORECASE,
)
_MISMATCH = re.compile(r"op\.preamble\.length <= op\.nbytes|collective mismatch|detected mismatch", re.IGNORECASE)
_UNSEEN = 1 << 62
"""Later than any stamp: a death that nobody saw the time of."""

_NATIVE = tuple(-number for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))

Kind = Literal["exception", "exit", "signal", "early", "peer", "ended", "mismatch"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank came to its end."""

    rank: int
    kind: Kind
    """Its own exception; an exit code without one; a signal; left with 0 too early; lost a peer; ended by us; its
    collective does not fit the others', of whom one may have noticed."""
    exit_code: int | None
    """A negative one is a signal's number; None where nobody saw it."""
    order: int
    """Boot time in ns of its exception or its death; later than any where no time is known."""
    host: str = "?"
    pid: int = 0
    report: ErrorRecord | None = None
    """What the rank wrote of an exception (rank/exceptions.py)."""
    native: NativeDeath | None = None
    """What its log tells of its death in native code."""
    worker: NativeDeath | None = None
    """The same of a loading process, whose death the rank reports as an exception."""
    calls: list[Call] = field(default_factory=list)
    """The newest collectives that it called."""

    @property
    def signature(self) -> tuple[object, ...]:
        """What makes two failures the same, whichever rank was the first to have it."""
        report = self.report
        told = (report.type, report.message, report.frames[-1:]) if report else None
        return (self.kind, self.exit_code, told)

    @property
    def message(self) -> str:
        """What it says itself, in Python or in native code."""
        return (self.report.message if self.report else "") + (self.native.said if self.native else "")


def find_failures(
    ranks: Sequence[RankRecord],
    reports: Sequence[ErrorRecord],
    ended: Sequence[RankEnd],
    ended_by_us: Collection[int] = (),
    died: Mapping[int, int] | None = None,
    native: Mapping[int, NativeDeath] | None = None,
    called: Mapping[int, list[Call]] | None = None,
) -> list[Failure]:
    """One for each rank that did not end well, from what the ranks and the agent left.

    Args:
        ranks: those that began.
        reports: their exceptions.
        ended: how the agent saw them end, in the order seen.
        ended_by_us: ranks that the supervisor killed because another had failed.
        died: boot time in ns of each death that was seen on this host.
        native: what the logs of this host's ranks tell of deaths in native code.
        called: the newest collectives of each rank.
    """
    died, native, called = died or {}, native or {}, called or {}
    records = {record.rank: record for record in ranks}
    exceptions = {report.rank: report for report in reports}
    codes = {end.rank: (number, end.exit_code) for number, end in enumerate(ended)}
    found = []
    for rank in sorted({*records, *exceptions, *codes}):
        seen, code = codes.get(rank, (len(ended), None))
        report, record = exceptions.get(rank), records.get(rank)
        said_its_end = record is not None and record.ended is not None
        if code is None and report is None and not said_its_end and rank in died and rank not in ended_by_us:
            code = 0 if ended else None  # by os._exit: the agent names all that ended otherwise
        stamps = [report.boot_ns if report else None, record.ended_ns if record else None, died.get(rank)]
        last_words = native.get(rank) if code in _NATIVE else None
        kind = _kind(code, report, record, last_words)
        # The agent ends the others with SIGTERM.
        if report is None and (rank in ended_by_us or (code == -signal.SIGTERM and seen > 0)):
            kind = "ended"
        if kind is not None:
            found.append(
                Failure(
                    rank=rank,
                    kind=kind,
                    exit_code=code,
                    order=next((stamp for stamp in stamps if stamp), _UNSEEN + seen),
                    host=record.host if record else "?",
                    pid=record.pid if record else 0,
                    report=report,
                    native=last_words,
                    worker=native.get(rank) if report else None,
                    calls=called.get(rank, []),
                )
            )
    return found


def _kind(
    code: int | None, report: ErrorRecord | None, record: RankRecord | None, native: NativeDeath | None
) -> Kind | None:
    if report is not None:
        return "peer" if is_peer_loss(report) else "exception"
    if code is not None and code < 0:
        at_work = record is None or record.ended is None
        return "peer" if at_work and native is not None and _aborted_for_peer(code, native) else "signal"
    if code:
        return "peer" if record is not None and any(map(_says_peer_loss, record.chain)) else "exit"
    return "early" if code == 0 or (record is not None and record.ended == 0) else None


def is_peer_loss(report: ErrorRecord) -> bool:
    """Whether an exception, or one that it came of, only says that another rank is gone."""
    if any(frame.file.endswith(_LOADING) for frame in report.frames):
        return False  # a loading process is gone, or has lost a server of its own, and not a rank
    return any(map(_says_peer_loss, [report.name, *report.chain]))


def _says_peer_loss(error: ExceptionName) -> bool:
    if _NO_PEER_LOST.search(error.message):
        return False
    ours = error.module.startswith("torch") or error.type in ("RuntimeError", "ConnectionError", "OSError")
    broken = ("DistBackendError", "DistNetworkError", "DistStoreError")
    connection = ("ConnectionResetError", "BrokenPipeError", "ConnectionRefusedError")
    return error.type in (*broken, *connection) or (ours and bool(_PEER_LOST.search(error.message)))


def _aborted_for_peer(code: int, native: NativeDeath) -> bool:
    """A background thread of torch's that loses its peer has nobody to tell, and aborts the process."""
    own = is_mismatch(native.said) or _NO_PEER_LOST.search(native.said)
    return code == -signal.SIGABRT and not native.frames and not own


def is_mismatch(message: str) -> bool:
    """Whether the ranks' collectives did not fit together."""
    return bool(_MISMATCH.search(message))


_TIER = {"exception": 0, "exit": 0, "signal": 0, "early": 1, "peer": 2, "ended": 3}
_KIND = {"exception": 0, "exit": 1, "signal": 2}


def first_cause(found: list[Failure]) -> Failure | None:
    """A death of its own before the echo of another's; then the earliest.

    The clocks of several hosts tell nothing of each other: between those an exception comes before a signal.
    """
    several = len({failure.host for failure in found if _TIER[failure.kind] == 0}) > 1
    cause = min(
        found,
        key=lambda failure: (_TIER[failure.kind], _KIND.get(failure.kind, 0) if several else 0, failure.order),
        default=None,
    )
    return odd_failure(cause, found) if cause is not None else None


def odd_failure(cause: Failure, found: list[Failure]) -> Failure:
    """Where collectives did not fit together: the one rank that differs, which need not be the one that noticed."""
    if not is_mismatch(cause.message):
        return cause
    differing = calls_that_differ(found)
    odd = collectives.odd_one(differing) if differing else None
    if odd is None:
        return cause
    return replace(next(failure for failure in found if failure.rank == odd[0]), kind="mismatch")


def calls_that_differ(found: list[Failure]) -> dict[int, Call] | None:
    """Of each rank the first collective that was not the same everywhere."""
    return collectives.first_difference({failure.rank: failure.calls for failure in found})


def exit_code(cause: Failure, *, out_of_memory: bool) -> ExitCode:
    """What the launcher's own exit code says of it."""
    if cause.report:
        if out_of_memory and "killed by signal: Killed" in cause.report.message:  # a loading process
            return ExitCode.OUT_OF_MEMORY
        code = cause.report.code
        return ExitCode(code) if code in set(ExitCode) - {ExitCode.DONE} else ExitCode.USER_CODE
    if cause.exit_code == -signal.SIGKILL and out_of_memory:
        return ExitCode.OUT_OF_MEMORY
    # A program's own numbers mean what it likes, but for these two, which all programs agree on.
    return ExitCode(cause.exit_code) if cause.exit_code in (ExitCode.CONFIG, ExitCode.REQUEUE) else ExitCode.USER_CODE
