"""What happens in a rank before its program:

`main.py PARENT AGENT GENERATION LOGS OUTPUT PAGES ours|default PROGRAM [ARGUMENT …]`, where PROGRAM is `-m MODULE`,
`--no-python PROGRAM` or a script.

It ties the rank's life to its agent's, says who it is, sends its output to its log, and leaves an exception where the
supervisor finds it. Then the program runs as `__main__`, exactly as torchrun would run it. Run as a file of its own, so
that no folder of ours gets into the program's sys.path; it imports the standard library alone.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import importlib.util
import io
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
USER_CODE_FAILED, INTERRUPTED = 10, 130
_OUR_FILES = ("runpy", "<frozen runpy>", __file__)


def main(arguments: list[str]) -> None:
    """Runs the program; ends the process with the exit code that fits what happened."""
    parent, agent, generation, logs, output, pages, signals, *program = arguments
    die_with(int(parent))
    if signals == "default":
        answer_signals()
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    exceptions, paging = beside("rank/exceptions"), beside("rank/page")
    page = paging.Page(pages, local_rank)
    facts = Path(generation) / "ranks" / f"{rank}.json"
    identity = {"rank": rank, "local_rank": local_rank, "agent": int(agent), **whoami()}

    def say(told: dict[str, Any]) -> None:
        """In the page for the supervisor, and in a file for people and other nodes, where the disk takes it."""
        page.put(paging.FACTS, identity | told)
        write_json(facts, identity | told)

    say({})
    log = send_output(output, Path(logs) / f"rank{rank}.log", rank)
    spare = os.open(os.devnull, os.O_RDONLY)  # to write down why, when there is no descriptor left
    patches = beside("torch_patches")
    os.register_at_fork(after_in_child=lambda: patches.keep_stacks(log))
    log_of = beside("rank/collectives").CollectiveLog
    beside("rank/heartbeat").install(page.memory, lambda memory: log_of(memory, patches.wrap_collective))
    try:
        run(program)
    except SystemExit as leaving:
        say({"ended": leaving.code or 0, "ended_ns": boot_ns(), "chain": exceptions.chain(leaving)})
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BaseException as error:
        os.close(spare)
        report = exceptions.report(error, _OUR_FILES)
        page.put(paging.ERROR, identity | report)
        write_json(Path(generation) / "errors" / f"rank{rank}.json", identity | report)
        with contextlib.suppress(OSError):
            print(report["traceback"], file=log, flush=True)
        sys.exit(report["code"])
    say({"ended": 0, "ended_ns": boot_ns()})


def beside(name: str) -> Any:
    """A file of launch/ as a module, without the folder in sys.path, where the program would find it."""
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_launch_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def die_with(parent: int) -> None:
    """From now on, the kernel ends this process when its agent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we had said so
        os._exit(USER_CODE_FAILED)


def answer_signals() -> None:
    """As in a program started from a shell: it knows nothing of us, and the launcher's signals were ignored so far."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def whoami() -> dict[str, Any]:
    """What tells this process from any other: a `ProcessId` of dist_train/rundir/process_id.py."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino  # two containers may have one host name
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "boot": f"{boot_id} {namespace}"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path` in one step. Where the disk refuses, the page has to do: no program ends for it."""
    temporary = path.with_name(f".tmp-{path.name}")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(content, default=str))
        os.replace(temporary, path)


# ---------------------------------------------------------------- output


def send_output(address: str, path: Path, rank: int) -> TextIO:
    """Connects file descriptors 1 and 2 to the launcher's relay (relay/main.py), so that what native code and child
    processes print is seen too, and the last words of a rank that dies are kept. Returns what goes to the log alone.
    """
    with contextlib.suppress(OSError):  # who opens the log says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        ends = ask_for_output(address, path, rank)
    except OSError:  # there is no relay: the log is what matters
        ends = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)] * 3
    for number, name, end in ((1, "stdout", ends[0]), (2, "stderr", ends[1])):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        os.dup2(end, number)
        raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered, as `python -u` has them
        stream = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True, write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    log = open(ends[2], "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - for the process's life
    for end in {*ends[:2]} - {ends[2]}:
        os.close(end)
    faulthandler.enable(file=log)
    return log


def ask_for_output(address: str, path: Path, rank: int) -> list[int]:
    """What stdout, stderr and the log are to be written to."""
    asked = {"rank": rank, "local_rank": int(os.environ["LOCAL_RANK"]), "log": str(path)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as relay:
        relay.connect(f"\0{address}")
        relay.settimeout(60)
        relay.send(json.dumps(asked).encode())
        _, ends, _, _ = socket.recv_fds(relay, 1, 3)
    if len(ends) != 3:
        raise ConnectionError("the relay has left")
    for end in ends:
        os.set_inheritable(end, False)
    return ends


# ---------------------------------------------------------------- the program and its end


def run(program: list[str]) -> None:
    """`-m MODULE …` or `SCRIPT …`, with sys.argv and sys.path as Python sets them; or another program in our place."""
    if program[0] == "--no-python":
        sys.stdout.flush()
        os.execvp(program[1], program[1:])
    elif program[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


def leave(arguments: list[str]) -> None:
    """Runs `main` and ends the process as the interpreter would, without what takes torch a second: taking it down."""
    code: Any = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        code = 0 if leaving.code is None else leaving.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    leave(sys.argv[1:])
