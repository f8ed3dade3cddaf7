"""Why a generation failed: the first cause among many deaths, told in a few lines, with the exit code that says it."""

import re
import signal
import site
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dist_train.config.errors import ExitCode
from launch.console import mark

LOG_LINES = 20
_PEER_LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection (was )?(closed|refused|reset|aborted)|connectfullmesh|"
    r"remote process exited|socket timeout|connection timed out|timed out waiting|recv, got 0 bytes|"
    r"nccl communicator was aborted|ncclremoteerror|ncclsystemerror|store->|heartbeat monitor",
    re.IGNORECASE,
)
_WORKER_FRAME = re.compile(
    r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)\n(?:\s+(?P<text>.+))?', re.M
)

Kind = Literal["exception", "exit", "signal", "early", "peer", "ended"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank came to its end."""

    rank: int
    kind: Kind
    """Its own exception; an exit code without one; a signal; left with 0 too early; lost a peer; ended by us."""
    exit_code: int | None
    """A negative one is a signal's number; None where nobody saw it."""
    order: int
    """Boot time in ns of an exception, else the order in which the deaths were seen."""
    host: str = "?"
    pid: int = 0
    report: dict[str, Any] | None = None
    """What entry.py wrote of an exception."""


# ---------------------------------------------------------------- finding it


def failures(sessions: list[dict], reports: list[dict], ended: list[dict], ended_by_us: set[int]) -> list[Failure]:
    """One for each rank that did not end well, from what the ranks and the agent left.

    Args:
        sessions: of ranks/*.json, one for each rank that began.
        reports: of errors/*.json, one for each exception.
        ended: the agent's rank, pid and exit code, in the order seen.
        ended_by_us: ranks that the supervisor killed because another had failed.
    """
    facts = {session["rank"]: session for session in sessions}
    exceptions = {report["rank"]: report for report in reports}
    codes = {end["rank"]: (number, end["exit_code"]) for number, end in enumerate(ended)}
    found = []
    for rank in sorted({*facts, *exceptions, *codes}):
        order, code = codes.get(rank, (len(ended), None))
        report, session = exceptions.get(rank), facts.get(rank, {})
        kind = _kind(code, report, session, rank in ended_by_us, order)
        if kind is None:
            continue
        order = report["boot_ns"] if report else order
        place = {"host": session.get("host", "?"), "pid": session.get("pid", 0)}
        found.append(Failure(rank=rank, kind=kind, exit_code=code, order=order, report=report, **place))
    return found


def _kind(code: int | None, report: dict | None, session: dict, by_us: bool, order: int) -> Kind | None:
    if report is not None:
        return "peer" if is_peer_loss(report) else "exception"
    if by_us or (code == -signal.SIGTERM and order > 0):  # the agent ends the others with SIGTERM
        return "ended"
    if code is not None and code < 0:
        return "signal"
    if code:
        return "exit"
    return "early" if session.get("ended") == 0 else None


def is_peer_loss(report: dict) -> bool:
    """Whether an exception only says that another rank is gone."""
    ours = report["module"].startswith("torch") or report["type"] in ("RuntimeError", "ConnectionError", "OSError")
    broken = ("DistBackendError", "DistNetworkError", "DistStoreError")
    connection = ("ConnectionResetError", "BrokenPipeError", "ConnectionRefusedError")
    return (
        report["type"] in broken
        or report["type"] in connection
        or (ours and bool(_PEER_LOST.search(report["message"])))
    )


_FIRST = {"exception": 0, "exit": 1, "signal": 2, "early": 3, "peer": 4, "ended": 5}


def first_cause(found: list[Failure]) -> Failure | None:
    """A rank's own exception before a signal before what is only the echo of another's death; then the earliest."""
    return min(found, key=lambda failure: (_FIRST[failure.kind], failure.order), default=None)


def exit_code(cause: Failure, *, out_of_memory: bool) -> ExitCode:
    """What the launcher's own exit code says of it."""
    code = cause.report["code"] if cause.report else cause.exit_code
    if cause.kind == "signal" and out_of_memory:
        return ExitCode.OUT_OF_MEMORY
    known = {int(member) for member in ExitCode} - {int(ExitCode.DONE)}
    return ExitCode(code) if code in known else ExitCode.USER_CODE


# ---------------------------------------------------------------- telling it


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is around the failure."""

    logs: Path
    checkpoint: str | None
    """Name of the newest one."""
    out_of_memory: bool
    """The kernel has killed for want of memory since the generation began."""
    here: str
    """This host."""


def explain(cause: Failure, found: list[Failure], scene: Scene) -> str:
    """The text for the user. What they can mend is one line; the rest says who, what, where, and where to read on."""
    if cause.report and cause.report["is_user_error"]:
        return f"{mark('✗', 'red')} {cause.report['message']}"
    node = "" if cause.host in (scene.here, "?") else f"node {cause.host}, "
    lines = [f"{mark('✗', 'red')} rank {cause.rank} ({node}pid {cause.pid}) {_what(cause, scene.out_of_memory)}"]
    lines += _detail(cause, scene)
    others = [failure.rank for failure in found if failure.rank != cause.rank and failure.kind != "early"]
    if others:
        lines.append(
            f"  rank{'s' * (len(others) > 1)} {ranges(others)} {'were' if len(others) > 1 else 'was'} ended for it"
        )
    log = scene.logs / f"rank{cause.rank}.log"
    saved = f"last checkpoint: {_step(scene.checkpoint)}. " if scene.checkpoint else ""
    lines.append(f"  {saved}{'Full traceback' if cause.report else 'Its log'}: {log}")
    return "\n".join(lines)


def _what(cause: Failure, out_of_memory: bool) -> str:
    if cause.report:
        whose = " in your code" if cause.kind == "exception" and _own_frames(cause.report) else ""
        lost = " because another rank was gone, which left no trace here" if cause.kind == "peer" else ""
        return f"failed{lost}: {cause.report['type']}{whose}"
    if cause.kind == "early":
        return "left with exit code 0 while the others were still at work"
    code = cause.exit_code or 0
    if code >= 0:
        return f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        return "was killed by the kernel for want of memory (OOM killer)" if out_of_memory else "was killed by SIGKILL"
    return f"died of {signal_name(-code)}"


def signal_name(number: int) -> str:
    try:
        named = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    meaning = signal.strsignal(number)
    return f"{named.name} ({meaning.lower()})" if meaning else named.name


def _detail(cause: Failure, scene: Scene) -> list[str]:
    if not cause.report:
        last = tail(scene.logs / f"rank{cause.rank}.log", LOG_LINES)
        return [f"    {line}" for line in last]
    report = cause.report
    frames = _own_frames(report)[-3:] or _frames(report)[-2:]
    lines = [f"    {_short(frame['file'])}:{frame['line']}  {frame['function']}   {frame['text']}" for frame in frames]
    message = _worker_message(report["message"]).strip().splitlines() or [""]
    lines.append(f"    {report['type']}: {message[0]}")
    lines += [f"      {line}" for line in message[1:6]]
    return lines + [f"      {note}" for note in report["notes"]]


def _frames(report: dict) -> list[dict]:
    """Where it was raised; in a DataLoader's process, that is in the message's own traceback."""
    inner = [{**match.groupdict(), "text": match["text"] or ""} for match in _WORKER_FRAME.finditer(report["message"])]
    return inner or report["frames"]


def _own_frames(report: dict) -> list[dict]:
    """Those of the user's files: neither Python's, nor an installed package's, nor this project's."""
    return [frame for frame in _frames(report) if not _is_foreign(frame["file"])]


def _is_foreign(file: str) -> bool:
    ours = Path(__file__).resolve().parents[1]
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages()]
    folders += [str(ours / "launch"), str(ours / "dist_train")]
    return file.startswith("<") or "site-packages" in file or any(Path(file).is_relative_to(place) for place in folders)


def _worker_message(message: str) -> str:
    """The last line of a traceback that came with the message: `ValueError: text` loses the type said before it."""
    if "Original Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _step(checkpoint: str | None) -> str:
    digits = re.search(r"\d+$", checkpoint or "")
    return f"step {int(digits[0]):,}" if digits else str(checkpoint)


def ranges(ranks: list[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def tail(path: Path, count: int, window: int = 65_536) -> list[str]:
    """The last `count` lines of a log of any size, from the one before where it has only begun; none without a log."""
    lines = _last_lines(path, count, window)
    if len(lines) < count and path.suffix == ".log":
        lines = _last_lines(path.with_name(f"{path.name}.1"), count - len(lines), window) + lines
    return lines


def _last_lines(path: Path, count: int, window: int) -> list[str]:
    try:
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - window))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def as_record(cause: Failure | None, found: list[Failure], code: int) -> dict[str, Any]:
    """For generations/<g>/verdict.json."""
    return {"exit_code": code, "cause": asdict(cause) if cause else None, "failures": [asdict(one) for one in found]}
