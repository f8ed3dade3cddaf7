"""What happens in a rank before its program: `entry.py PARENT GENERATION LOGS TEE (-m MODULE | SCRIPT) [ARGUMENT …]`.

It ties the rank's life to its agent's, says who it is, sends its output to its log, and leaves an exception where the
supervisor finds it. Then the program runs as `__main__`, exactly as torchrun would run it. Run as a file of its own, so
that no folder of ours gets into the program's sys.path; it imports the standard library alone.
"""

import ctypes
import faulthandler
import importlib.util
import json
import os
import re
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
USER_CODE_FAILED, OUT_OF_MEMORY, INTERRUPTED = 10, 12, 130
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")
_CHECKED_LAST = ("runpy", "<frozen runpy>", __file__)


def main(arguments: list[str]) -> None:
    """Runs the program; ends the process with the exit code that fits what happened."""
    parent, generation, logs, tee, *program = arguments
    die_with(int(parent))
    rank = int(os.environ["RANK"])
    facts = Path(generation) / "ranks" / f"{rank}.json"
    identity = {"rank": rank, "agent": int(parent), **whoami()}
    write_json(facts, identity)
    log = send_output(Path(logs) / f"rank{rank}.log", on_console=shown(rank, tee), rank=rank)
    watch(Path(generation), rank)
    try:
        run(program)
    except SystemExit as leaving:
        write_json(facts, {**identity, "ended": leaving.code or 0})
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BaseException as error:
        report = describe(error)
        write_json(Path(generation) / "errors" / f"rank{rank}.json", {**identity, **report})
        print(report["traceback"], file=log, flush=True)
        sys.exit(report["code"])
    write_json(facts, {**identity, "ended": 0})


def die_with(parent: int) -> None:
    """From now on, the kernel ends this process when its agent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we had said so
        os._exit(USER_CODE_FAILED)


def watch(generation: Path, rank: int) -> None:
    """Heartbeat and stacks for the supervisor's watchdog, from a file beside this one."""
    path = Path(__file__).with_name("watchdog") / "witness.py"
    spec = importlib.util.spec_from_file_location("_dist_train_witness_file", path)
    assert spec is not None and spec.loader is not None
    witness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(witness)
    witness.install(generation, rank)


def whoami() -> dict[str, Any]:
    """Process id, start in clock ticks since boot, host name: what tells this process from any other."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return {"pid": os.getpid(), "started": started, "host": socket.gethostname()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(content, default=str))
    os.replace(temporary, path)


# ---------------------------------------------------------------- output


def shown(rank: int, tee: str) -> bool:
    """Whether a rank is seen on the console: rank 0, and those that --tee names (`3`, or `0:3,1:2`)."""
    if ":" not in tee:
        return rank == 0 or tee != "0"
    chosen = dict(item.split(":") for item in tee.split(","))
    return rank == 0 or chosen.get(os.environ["LOCAL_RANK"], "0") != "0"


def send_output(path: Path, *, on_console: bool, rank: int) -> TextIO:
    """Sends this rank's output to its log; what a rank on the console prints goes to both. Returns the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - for the process's life
    if on_console:
        prefix = f"[rank{rank}]: " if rank else ""
        sys.stdout, sys.stderr = Tee(sys.stdout, log, prefix), Tee(sys.stderr, log, prefix)  # type: ignore[assignment]
    else:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = log, log
    faulthandler.enable(file=log)
    return log


class Tee:
    """A console stream that is copied to the log, as text; the rest of it is the console's. Its loss ends nothing."""

    def __init__(self, console: TextIO, log: TextIO, prefix: str) -> None:
        self._console, self._log, self._prefix = console, log, prefix
        self._at_line_start = True

    def write(self, text: str) -> int:
        self._to_console(self._prefixed(text) if self._prefix else text)
        self._log.write(_TERMINAL_CODES.sub("", text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._to_console("")
        self._log.flush()

    def _prefixed(self, text: str) -> str:
        body = text[:-1].replace("\n", f"\n{self._prefix}") + text[-1:]
        begin = self._prefix if self._at_line_start and text else ""
        self._at_line_start = text.endswith("\n") if text else self._at_line_start
        return begin + body

    def _to_console(self, text: str) -> None:
        try:
            self._console.write(text)
            self._console.flush()
        except (OSError, ValueError):  # a closed terminal or pipe
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)


# ---------------------------------------------------------------- the program and its end


def run(program: list[str]) -> None:
    """`-m MODULE …` or `SCRIPT …`, with sys.argv and sys.path as Python sets them."""
    if program[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


def describe(error: BaseException) -> dict[str, Any]:
    """What the supervisor needs to explain an exception; `boot_ns` orders the ranks of a host by time."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in _CHECKED_LAST]
    lines = traceback.format_exception(type(error), error, _own_part(error))
    return {
        "boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "type": type(error).__name__,
        "module": type(error).__module__,
        "message": str(error),
        "notes": list(getattr(error, "__notes__", [])),
        "code": exit_code(error),
        "is_user_error": is_user_error(error),
        "frames": [{"file": f.filename, "line": f.lineno, "function": f.name, "text": f.line or ""} for f in frames],
        "traceback": "".join(lines),
    }


def _own_part(error: BaseException) -> Any:
    """The traceback from the program's first frame on; a syntax error in the program itself has none."""
    part = error.__traceback__
    while part is not None and part.tb_frame.f_code.co_filename in _CHECKED_LAST:
        part = part.tb_next
    return part


def is_user_error(error: BaseException) -> bool:
    """Our own errors for users: one line and an exit code, known by their class wherever they come from."""
    places = ((kind.__module__, kind.__name__) for kind in type(error).__mro__)
    return any(
        module.startswith("dist_train.config") and name in ("UserError", "ConfigError") for module, name in places
    )


def exit_code(error: BaseException) -> int:
    """One meaning each, as dist_train.config.errors.ExitCode has them."""
    if is_user_error(error):
        return int(getattr(error, "code", 2))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's allocator on a CPU
        return OUT_OF_MEMORY
    return USER_CODE_FAILED


if __name__ == "__main__":
    main(sys.argv[1:])
