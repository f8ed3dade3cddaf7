"""A failure in a few lines: who, what, where, what to do, what became of the others, where to read on."""

import re
import signal
from pathlib import Path

from dist_train.rundir.layout import rank_log
from dist_train.rundir.records import ErrorRecord, Frame

from ..children import LAUNCH
from ..console import mark
from .advice import FailureContext, advice
from .failures import Failure
from .formatting import is_own, named, short
from .native_crash import tail

LOG_LINES = 20
MESSAGE_LINES = 30
_OF_SEVERAL = {"was ended for it": "were ended for it", "lost its peer and ended": "lost their peer and ended"}
_WORKER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (is|exited)[^.]*")


def explain(cause: Failure, found: list[Failure], context: FailureContext) -> str:
    """The text for the user. What they can mend is one line; the rest says who, what, where, and where to read on."""
    if cause.report and cause.report.is_user_error:
        return f"{mark('✗', 'red')} {cause.report.message}"
    node = "" if cause.host in (context.here, "?") else f"node {cause.host}, "
    log = rank_log(context.logs, cause.rank)
    saved = f"last checkpoint: {_step(context.checkpoint)}. " if context.checkpoint else ""
    lines = [
        f"{mark('✗', 'red')} rank {cause.rank} ({node}pid {cause.pid}) {_what(cause, context.out_of_memory)}",
        *_detail(cause, log),
        *(f"  {line}" for line in advice(cause, found, context)),
        *_others(cause, found),
        f"  {saved}{'Full traceback' if cause.report else 'Its log'}: {log}",
    ]
    return "\n".join(lines)


def _others(cause: Failure, found: list[Failure]) -> list[str]:
    """One line for all ranks that came to the same end."""
    ends: dict[str, list[int]] = {}
    for failure in found:
        if failure.rank != cause.rank:
            ends.setdefault(_end(failure, cause), []).append(failure.rank)
    return [f"  {named(ranks)} {_OF_SEVERAL.get(end, end) if len(ranks) > 1 else end}" for end, ranks in ends.items()]


def _end(failure: Failure, cause: Failure) -> str:
    """How another rank ended."""
    if failure.kind == "ended":
        return "was ended for it"
    if failure.kind == "peer":
        return "lost its peer and ended"
    if failure.kind == "early":
        return "had left with exit code 0"
    if failure.report:
        same = cause.report and failure.report.message == cause.report.message
        return "failed the same way" if same else f"failed later: {failure.report.type}"
    return f"{_how(failure.exit_code or 0)} later"


def _what(cause: Failure, out_of_memory: bool) -> str:
    if cause.kind == "mismatch":
        return "called another collective than the others"
    if cause.report:
        if died := _WORKER_DIED.search(cause.report.message):
            return f"lost a loading process: {died[0]}"
        whose = " in your code" if cause.kind == "exception" and any(map(is_own, cause.report.frames)) else ""
        lost = " because another rank was gone, which left no trace here" if cause.kind == "peer" else ""
        return f"failed{lost}: {cause.report.type}{whose}"
    if cause.kind == "early":
        return "left with exit code 0 while the others were still at work"
    if cause.exit_code == -signal.SIGKILL:
        return "was killed by the kernel for want of memory (OOM killer)" if out_of_memory else "was killed by SIGKILL"
    return _how(cause.exit_code or 0)


def _how(code: int) -> str:
    return f"died of {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    meaning = signal.strsignal(number)
    return f"{name} ({meaning.lower()})" if meaning else name


def _detail(cause: Failure, log: Path) -> list[str]:
    if cause.kind == "mismatch":
        return []
    if (report := cause.report) is None:
        return _last_words(cause, log)
    own = list(filter(is_own, report.frames))
    lines = [_frame_line(frame) for frame in own[-3:] or report.frames[-2:]]
    lines += _message(report)
    if _WORKER_DIED.search(report.message) and cause.worker is not None:
        lines += [f"    its stack: {cause.worker.what}", *_stack_lines(cause.worker.frames)]
    return lines


def _last_words(cause: Failure, log: Path) -> list[str]:
    """What native code said and where it was, and the end of the log without that."""
    lines, stack = tail(log, 400), []
    if (native := cause.native) is not None:
        if native.frames:
            stack = _stack_lines(native.frames)
        elif native.waiting:
            where = "    in a thread that is none of Python's; the main thread was at"
            stack = [where, *_stack_lines(native.waiting)]
        stack = [f"    {native.said}"] * bool(native.said) + stack
        fatal = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error")]
        if stack and fatal:  # the rest of it is that stack
            lines = lines[: fatal[-1]]
        lines = [line for line in lines if line.strip() not in native.said]
    return [*stack, *(f"    {line}" for line in lines[-LOG_LINES:])]


def _stack_lines(frames: list[Frame]) -> list[str]:
    """The innermost last, as in a traceback."""
    ours = (str(LAUNCH), str(LAUNCH.resolve()), "<frozen runpy>")
    shown = [one for one in reversed(frames) if not one.file.startswith(ours) and not one.file.endswith("runpy.py")]
    return [_frame_line(frame) for frame in shown[-8:]]


def _frame_line(frame: Frame) -> str:
    text = f"   {frame.text}" if frame.text else ""
    return f"  {'>' if is_own(frame) else ' '} {short(frame.file)}:{frame.line}  {frame.function}{text}"


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
