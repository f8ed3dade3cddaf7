"""What a rank writes down of the exception that ended it. Loaded by main.py: it imports the standard library alone."""

import contextlib
import re
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any

USER_CODE_FAILED, OUT_OF_MEMORY = 10, 12
_FRAME = re.compile(
    r'^[ |]+File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)\n(?:[ |]+(?P<text>.+))?', re.M
)


def report(error: BaseException, checked_last: tuple[str, ...]) -> dict[str, Any]:
    """`describe`, of the death of a loading process rather than of what the rank noticed first.

    A rank may find the process's connection closed; torch's handler of SIGCHLD then raises who died of what, wherever
    the rank is by then: here.
    """
    try:
        if isinstance(error, OSError | EOFError) and _is_loading(error):
            time.sleep(1)
        found = record_of(error, checked_last)
        return {**found, "message": death_of_worker(error) or found["message"]}
    except RuntimeError as told:
        told.__context__ = None
        return record_of(told.with_traceback(error.__traceback__), checked_last)


def _is_loading(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.endswith("torch/utils/data/dataloader.py") for frame, _ in frames)


def death_of_worker(error: BaseException) -> str | None:
    """Where torch says of a loading process only that it is gone, because it found that before SIGCHLD came: of what
    it died, in torch's words for the other case."""
    if "exited unexpectedly" not in str(error):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for process in frame.f_locals.get("failed_workers", ()):
            code = getattr(process, "exitcode", None)
            if code is not None and code < 0:
                return f"DataLoader worker (pid {process.pid}) is killed by signal: {signal.strsignal(-code)}. "
    return None


def record_of(error: BaseException, checked_last: tuple[str, ...]) -> dict[str, Any]:
    """What the supervisor needs to explain an exception; `boot_ns` orders the ranks of a host by time.

    Args:
        error: the exception.
        checked_last: files whose frames are the launcher's own.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in checked_last]
    seen = [{"file": f.filename, "line": f.lineno, "function": f.name, "text": f.line or ""} for f in frames]
    lines = traceback.format_exception(type(error), error, own_part(error, checked_last))
    told, elsewhere = raised_elsewhere(error)
    return {
        "boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        **(told or _named(error)),
        "notes": [str(note) for note in getattr(error, "__notes__", None) or ()],
        "errno": getattr(error, "errno", None) if isinstance(error, OSError) else None,
        "filename": str(getattr(error, "filename", None) or "") if isinstance(error, OSError) else "",
        "chain": chain(error),
        "code": code_of(error),
        "is_user_error": is_user_error(error),
        "limits": limits(),
        "gpu": gpu_memory(error),
        "frames": seen + elsewhere,
        "traceback": "".join(lines),
    }


def raised_elsewhere(error: BaseException) -> tuple[dict[str, str] | None, list[dict]]:
    """What another process of the rank raised: its name and words, where torch has garbled them, and its frames.

    Our own loading processes send theirs along, as `raised_at`. torch makes a new exception of the class and a text;
    its message has then the whole traceback in it, and its class is another if the first one takes other arguments.
    """
    if sent := getattr(error, "raised_at", None):
        return None, [dict(zip(("file", "line", "function", "text"), frame, strict=True)) for frame in sent]
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    wrapper = frame.f_locals.get("self") if frame is not None and frame.f_code.co_name == "reraise" else None
    kind, text = getattr(wrapper, "exc_type", None), getattr(wrapper, "exc_msg", None)
    if not isinstance(kind, type) or not isinstance(text, str):
        return None, []
    found = _FRAME.finditer(text)
    frames = [{**one.groupdict(), "line": int(one["line"]), "text": one["text"] or ""} for one in found]
    return {"type": kind.__name__, "module": kind.__module__, "message": _message_in(text, kind)}, frames


def _message_in(text: str, kind: type) -> str:
    """All that follows the name of an exception in its traceback: its lines, notes, and members if it is a group."""
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    if issubclass(kind, BaseExceptionGroup):  # drawn as a tree
        text = re.sub(r"^ *\+[-+ \d.]+\n|^ {2}( *)\| ", r"\1", text, flags=re.M)
        begin = 0
    else:
        begin = max(text.rfind("Traceback (most recent call last):\n"), 0)
    found = re.search(rf"^{re.escape(name)}(: |$)", text[begin:], re.M)
    return text[begin + found.end() :].rstrip("\n") if found else text


def chain(error: BaseException) -> list[dict[str, Any]]:
    """The exceptions that this one was raised from, or while they were handled: an echo of a lost peer is still one."""
    found: list[dict[str, Any]] = []
    seen = {id(error)}
    while True:
        cause = error.__cause__
        before = cause or (None if error.__suppress_context__ else error.__context__)
        if before is None or id(before) in seen:
            return found
        seen.add(id(before))
        found.append({**_named(before), "is_cause": before is cause and not getattr(before, "is_traceback", False)})
        error = before


def _named(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "module": type(error).__module__, "message": "\n".join(_words(error))}


def _words(error: BaseException) -> Iterator[str]:
    """The message, and those of a group's members, indented."""
    try:
        yield str(error)
    except Exception as broken:
        yield f"(its text could not be had: {type(broken).__name__})"
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        first, *more = "\n".join(_words(member)).splitlines() or [""]
        yield f"  {type(member).__name__}: {first}"
        yield from (f"    {line}" for line in [*more, *getattr(member, "__notes__", ())])


def own_part(error: BaseException, checked_last: tuple[str, ...]) -> Any:
    """The traceback without the frames of the launcher's files; a syntax error in the program itself has none."""
    parts, part = [], error.__traceback__
    while part is not None:
        parts.append(part)
        part = part.tb_next
    for one in reversed(parts):
        if one.tb_frame.f_code.co_filename not in checked_last:
            part = types.TracebackType(part, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return part


def limits() -> dict[str, int]:
    """Of this process, where there is one; and the most memory that it has had, in bytes."""
    known = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC, "as": resource.RLIMIT_AS}
    found = {name: resource.getrlimit(number)[0] for name, number in known.items()}
    found = {name: value for name, value in found.items() if value != resource.RLIM_INFINITY}
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        # Not getrusage's, which a process inherits from the one that forked it.
        found["peak"] = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
    return found


def gpu_memory(error: BaseException) -> dict[str, int] | None:
    """Bytes at the most, now and in all, of the device that ran out of memory."""
    torch = sys.modules.get("torch")
    if torch is None or type(error).__name__ != "OutOfMemoryError" or not torch.cuda.is_initialized():
        return None
    _, total = torch.cuda.mem_get_info()
    return {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.memory_reserved(), "total": total}


def is_user_error(error: BaseException) -> bool:
    """Our own errors for users: one line and an exit code, known by their class wherever they come from."""
    ours = {("dist_train.errors", "UserError"), ("dist_train.config.problems", "ConfigError")}
    return any((kind.__module__, kind.__name__) in ours for kind in type(error).__mro__)


def code_of(error: BaseException) -> int:
    """One meaning each, as dist_train.errors.ExitCode has them."""
    if is_user_error(error):
        return int(getattr(error, "code", 2))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError | OSError) and "allocate memory" in str(error).lower():
        return OUT_OF_MEMORY  # torch's allocator on a CPU; fork and mmap: "Cannot allocate memory"
    return USER_CODE_FAILED
