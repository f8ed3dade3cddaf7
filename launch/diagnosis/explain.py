"""A failure in a few lines: who, what, where, what to do, what became of the others, where to read on."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.layout import rank_log
from dist_train.rundir.records import ErrorRecord, Frame
from launch.console import mark, ranges
from launch.diagnosis.advice import advice
from launch.diagnosis.failures import Failure
from launch.diagnosis.formatting import is_foreign, short
from launch.diagnosis.native_crash import tail
from launch.plan.host import Memory

LOG_LINES = 20
MESSAGE_LINES = 30
_HOME = Path(__file__).resolve().parents[2]
_WORKER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (is|exited)[^.]*")


@dataclass(frozen=True, kw_only=True)
class FailureContext:
    """What is around the failure."""

    logs: Path
    checkpoint: str | None
    """Name of the newest one."""
    out_of_memory: bool
    """The kernel has killed for want of memory since the generation began."""
    here: str
    """This host."""
    memory: Memory | None = None
    job: str | None = None
    """Of the scheduler."""


def explain(cause: Failure, found: list[Failure], context: FailureContext) -> str:
    """The text for the user. What they can mend is one line; the rest says who, what, where, and where to read on."""
    if cause.report and cause.report.is_user_error:
        return f"{mark('✗', 'red')} {cause.report.message}"
    node = "" if cause.host in (context.here, "?") else f"node {cause.host}, "
    lines = [f"{mark('✗', 'red')} rank {cause.rank} ({node}pid {cause.pid}) {_what(cause, context.out_of_memory)}"]
    lines += _detail(cause, context)
    lines += [f"  {line}" for line in advice(cause, found, context.memory, context.out_of_memory, context.job)]
    lines += _others(cause, found)
    log = rank_log(context.logs, cause.rank)
    saved = f"last checkpoint: {_step(context.checkpoint)}. " if context.checkpoint else ""
    lines.append(f"  {saved}{'Full traceback' if cause.report else 'Its log'}: {log}")
    return "\n".join(lines)


def _others(cause: Failure, found: list[Failure]) -> list[str]:
    """One line for all ranks that came to the same end."""
    ends: dict[tuple[str, str], list[int]] = {}
    for failure in found:
        if failure.rank != cause.rank:
            ends.setdefault(_end(failure, cause), []).append(failure.rank)
    lines = []
    for (one, several), ranks in ends.items():
        many = len(ranks) > 1
        lines.append(f"  rank{'s' * many} {ranges(ranks)} {several if many else one}")
    return lines


def _end(failure: Failure, cause: Failure) -> tuple[str, str]:
    """How another rank ended, of one and of several."""
    if failure.kind == "ended":
        return "was ended for it", "were ended for it"
    if failure.kind == "peer":
        return "lost its peer and ended", "lost their peer and ended"
    if failure.kind == "early":
        text = "had left with exit code 0"
    elif failure.report:
        same = cause.report and failure.report.message == cause.report.message
        text = "failed the same way" if same else f"failed later: {failure.report.type}"
    elif (failure.exit_code or 0) < 0:
        text = f"died of {signal_name(-(failure.exit_code or 0))} later"
    else:
        text = f"ended with exit code {failure.exit_code} later"
    return text, text


def _what(cause: Failure, out_of_memory: bool) -> str:
    if cause.kind == "mismatch":
        return "called another collective than the others"
    if cause.report:
        if died := _WORKER_DIED.search(cause.report.message):
            return f"lost a loading process: {died[0]}"
        whose = " in your code" if cause.kind == "exception" and _own_frames(cause.report) else ""
        lost = " because another rank was gone, which left no trace here" if cause.kind == "peer" else ""
        return f"failed{lost}: {cause.report.type}{whose}"
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


def _detail(cause: Failure, context: FailureContext) -> list[str]:
    log = rank_log(context.logs, cause.rank)
    if cause.kind == "mismatch":
        return []
    if not cause.report:
        stack = _native_stack(cause)
        lines = tail(log, 400)
        fatal = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error")]
        if stack and fatal:  # the rest of it is that stack
            lines = lines[: fatal[-1]]
        if cause.native is not None:
            lines = [line for line in lines if line.strip() not in cause.native.said]
        return [*stack, *(f"    {line}" for line in lines[-LOG_LINES:])]
    report = cause.report
    own = _own_frames(report)
    lines = [_frame_line(frame, frame in own) for frame in own[-3:] or report.frames[-2:]]
    lines += _message(report)
    if _WORKER_DIED.search(report.message) and cause.worker is not None:
        lines += [f"    its stack: {cause.worker.what}", *_stack_lines(cause.worker.frames)]
    return lines


def _native_stack(cause: Failure) -> list[str]:
    if cause.native is None:
        return []
    said = [f"    {cause.native.said}"] if cause.native.said else []
    if cause.native.frames:
        return said + _stack_lines(cause.native.frames)
    where = "    in a thread that is none of Python's; the main thread was at"
    return said + ([where, *_stack_lines(cause.native.waiting)] if cause.native.waiting else [])


def _stack_lines(frames: list[Frame]) -> list[str]:
    """The innermost last, as in a traceback."""
    hidden = ("<frozen runpy>", "runpy.py")
    frames = [frame for frame in frames if not frame.file.startswith(str(_HOME / "launch"))]
    shown = [frame for frame in reversed(frames) if not frame.file.endswith(hidden)]
    return [_frame_line(frame, not is_foreign(frame.file)) for frame in shown[-8:]]


def _frame_line(frame: Frame, own: bool) -> str:
    text = f"   {frame.text}" if frame.text else ""
    return f"  {'>' if own else ' '} {short(frame.file)}:{frame.line}  {frame.function}{text}"


def _own_frames(report: ErrorRecord) -> list[Frame]:
    """Those of the user's files: neither Python's, nor an installed package's, nor this project's."""
    return [frame for frame in report.frames if not is_foreign(frame.file)]


def _message(report: ErrorRecord) -> list[str]:
    """All that the exception says, its notes, and in a line each what it was raised from."""
    first, *more = report.message.strip("\n").splitlines() or [""]
    more += [line for note in report.notes for line in note.splitlines()]
    if len(more) > MESSAGE_LINES:
        more[MESSAGE_LINES:] = [f"… and {len(more) - MESSAGE_LINES} lines more, in the log"]
    causes = [one for one in report.chain if one.is_cause]
    lines = [f"    {report.type}: {first}", *(f"      {line}" for line in more)]
    return lines + [f"    from {one.type}: {(one.message.splitlines() or [''])[0]}" for one in causes]


def _step(checkpoint: str | None) -> str:
    digits = re.search(r"\d+$", checkpoint or "")
    return f"step {int(digits[0]):,}" if digits else str(checkpoint)
