"""What happens in a rank before its program: `entry.py PARENT GENERATION LOGS TEE (-m MODULE | SCRIPT) [ARGUMENT …]`.

It ties the rank's life to its agent's, says who it is, sends its output to its log, and leaves an exception where the
supervisor finds it. Then the program runs as `__main__`, exactly as torchrun would run it. Run as a file of its own, so
that no folder of ours gets into the program's sys.path; it imports the standard library alone.
"""

import contextlib
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
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
USER_CODE_FAILED, INTERRUPTED = 10, 130
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")
_CHECKED_LAST = ("runpy", "<frozen runpy>", __file__)


def main(arguments: list[str]) -> None:
    """Runs the program; ends the process with the exit code that fits what happened."""
    parent, generation, logs, tee, *program = arguments
    die_with(int(parent))
    rank = int(os.environ["RANK"])
    exceptions = beside("exceptions")
    facts = Path(generation) / "ranks" / f"{rank}.json"
    identity = {"rank": rank, "agent": int(parent), **whoami()}
    write_json(facts, identity)
    log = send_output(Path(logs) / f"rank{rank}.log", on_console=shown(rank, tee), rank=rank)
    spare = os.open(os.devnull, os.O_RDONLY)  # to write down why, when there is no descriptor left
    os.register_at_fork(after_in_child=lambda: keep_stacks(log))
    try:
        run(program)
    except SystemExit as leaving:
        told = {"ended": leaving.code or 0, "ended_ns": boot_ns(), "chain": exceptions.chain(leaving)}
        write_json(facts, {**identity, **told})
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BaseException as error:
        os.close(spare)
        report = exceptions.report(error, _CHECKED_LAST)
        with contextlib.suppress(OSError):  # a full disk: what is in the log then has to do
            write_json(Path(generation) / "errors" / f"rank{rank}.json", {**identity, **report})
        with contextlib.suppress(OSError):
            print(report["traceback"], file=log, flush=True)
        sys.exit(report["code"])
    write_json(facts, {**identity, "ended": 0, "ended_ns": boot_ns()})


def beside(name: str) -> Any:
    """A module of this folder, without the folder in sys.path, where the program would find it."""
    spec = importlib.util.spec_from_file_location(f"_launch_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def keep_stacks(log: TextIO) -> None:
    """In a child that is to load data for torch: torch's own signal handlers would put faulthandler's out of work."""
    handling = sys.modules.get("torch.utils.data._utils.signal_handling")
    theirs = getattr(handling, "_set_worker_signal_handlers", None)
    if theirs is None:
        return

    def ours(*arguments: Any) -> None:
        theirs(*arguments)
        faulthandler.disable()
        faulthandler.enable(file=log)

    handling._set_worker_signal_handlers = ours  # type: ignore[union-attr]


def die_with(parent: int) -> None:
    """From now on, the kernel ends this process when its agent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we had said so
        os._exit(USER_CODE_FAILED)


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


if __name__ == "__main__":
    main(sys.argv[1:])
