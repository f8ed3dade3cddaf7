"""What happens in a rank before its program:

`main.py PARENT AGENT GENERATION LOGS OUTPUT PAGES ours|default PROGRAM [ARGUMENT …]`, where PROGRAM is `-m MODULE`,
`--no-python PROGRAM` or a script.

It ties the rank's life to its parent's, says who it is, sends its output to its log, and leaves an exception where the
supervisor finds it. Then the program runs as `__main__`, as `python -u PROGRAM` runs it, and the process ends as a
Python program does. This file is run by its path, so that no folder of ours gets into the program's sys.path. It
imports the standard library alone.
"""

import builtins
import contextlib
import ctypes
import faulthandler
import functools
import importlib.machinery
import importlib.util
import io
import json
import mmap
import os
import pkgutil
import runpy
import signal
import socket
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
USER_CODE_FAILED, INTERRUPTED = 10, 130
_OUR_FILES = ("runpy", "<frozen runpy>", __file__, str(Path(__file__).with_name("collectives.py")))


def main(arguments: list[str]) -> None:
    """Runs the program. Raises SystemExit with the exit code that fits what happened, if that is not 0."""
    parent, agent, generation, logs, output, pages, signals, *program = arguments
    die_with(int(parent))
    if signals == "default":
        answer_signals()
    rank, local_rank = int(os.environ["RANK"]), number_on_node()
    exceptions, paging = beside("rank/exceptions"), beside("rank/page")
    page = paging.Page(pages, local_rank)
    facts = Path(generation) / "ranks" / f"{rank}.json"
    identity = {"rank": rank, "local_rank": local_rank, "agent": int(agent), **whoami()}

    def record(where: tuple[int, int], path: Path, told: dict[str, Any]) -> None:
        """Writes into the page for the supervisor, and into a file for people and other nodes, if the disk takes it."""
        if os.getpid() == identity["pid"]:  # it is no child that the program has forked
            page.put(where, identity | told)
            write_json(path, identity | told)

    record(paging.FACTS, facts, {})
    log = send_output(output, Path(logs) / f"rank{rank}.log", rank)
    spare = os.open(os.devnull, os.O_RDONLY)  # closed when an error is to be written and no descriptor is left
    be_watched(page.memory, log)
    native_threads().settle_at_exit()
    try:
        run(program)
    except SystemExit as leaving:
        code = leaving.code
        told = 0 if code is None else int(code) if isinstance(code, int) else str(code)
        record(paging.FACTS, facts, {"ended": told, "ended_ns": boot_ns(), "chain": exceptions.chain(leaving)})
        if told != 0:
            keep_process_groups()
        raise
    except BaseException as error:
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if os.getpid() != identity["pid"] and not is_interrupt:
            show(error, exceptions.own_part(error, _OUR_FILES), by_default=True)
            sys.exit(1)
        os.close(spare)
        report = exceptions.report(error, _OUR_FILES)
        if not is_interrupt:
            record(paging.ERROR, Path(generation) / "errors" / f"rank{rank}.json", report)
        with contextlib.suppress(OSError):
            print(report["traceback"], end="", file=log, flush=True)
        keep_process_groups()
        show(error, exceptions.own_part(error, _OUR_FILES))
        sys.exit(INTERRUPTED if is_interrupt else report["code"])
    record(paging.FACTS, facts, {"ended": 0, "ended_ns": boot_ns()})


@functools.cache
def beside(name: str) -> Any:
    """A file of launch/ as a module, without the folder in sys.path, where the program would find it."""
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_launch_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def native_threads() -> Any:
    installed = (Path(__file__).parents[1] / "../native_threads.py").exists()  # in dist_train/launch; else a checkout
    return beside("../native_threads" if installed else "../dist_train/native_threads")


def load_all() -> None:
    """What `main` loads, for all ranks that are forked from this process."""
    for name in ("rank/exceptions", "rank/page", "rank/collectives", "rank/heartbeat", "torch_patches"):
        beside(name)
    native_threads()


def be_watched(memory: mmap.mmap, log: TextIO) -> None:
    """Gives the watchdog what it needs inside of a rank: the heartbeat and the newest collectives, in the page, and the
    stacks, which a loading process writes too."""
    patches, log_of = beside("torch_patches"), beside("rank/collectives").CollectiveLog
    os.register_at_fork(after_in_child=lambda: patches.keep_stacks(log))
    beside("rank/heartbeat").install(memory, lambda memory: log_of(memory, patches.wrap_collective))


def number_on_node() -> int:
    """The rank's number on its node. LOCAL_RANK is 0 everywhere under --virtual-local-rank. All nodes have equally
    many."""
    return int(os.environ["RANK"]) % int(os.environ["LOCAL_WORLD_SIZE"])


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def die_with(parent: int) -> None:
    """From now on, the kernel ends this process when its parent ends, however that happens: the fork server, or under
    --start exec the agent."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call, or a process of the user's stands between us
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(USER_CODE_FAILED)


def answer_signals() -> None:
    """Sets signals as in a program that a shell starts: the program knows nothing of us, and they were ignored so
    far."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def whoami() -> dict[str, Any]:
    """What tells this process from any other: a `ProcessId` of dist_train/rundir/process_id.py."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino  # two containers may have one host name
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "boot": f"{boot_id} {namespace}"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path` in one step. Where the disk refuses, the page has to do: no program ends because of that."""
    temporary = path.with_name(f".tmp-{path.name}")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(content, default=str))
        os.replace(temporary, path)


# ---------------------------------------------------------------- output


def send_output(address: str, path: Path, rank: int) -> TextIO:
    """Connects file descriptors 1 and 2 to the launcher's relay (relay/main.py), so that what native code and child
    processes print is seen too, and the last words of a rank that dies are kept. Returns a file for what goes to the
    log alone.
    """
    with contextlib.suppress(OSError):  # opening the log says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        ends = ask_for_output(address, path, rank)
    except OSError:  # there is no relay: the log is what matters
        ends = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)] * 3
    for number, end in ((1, ends[0]), (2, ends[1])):
        os.dup2(end, number)
    log = open(ends[2], "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - for the process's life
    for end in {*ends[:2]} - {ends[2]}:
        os.close(end)
    faulthandler.enable(file=log)
    return log


def ask_for_output(address: str, path: Path, rank: int) -> list[int]:
    """Asks the relay for descriptors. Returns those for stdout, stderr and the log."""
    asked = {"rank": rank, "local_rank": number_on_node(), "log": str(path)}
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
    """Runs `-m MODULE …` or `SCRIPT …` as the interpreter runs what its command line gives; or executes another program
    in our place."""
    if program[0] == "--no-python":
        sys.stdout.flush()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
            signal.signal(number, signal.SIG_DFL)
        os.execvp(program[1], program[1:])
    sys.orig_argv = [sys.executable, "-u", *program]
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    if hasattr(sys.modules["__main__"], "__annotations__"):  # newer Pythons make them when they are needed
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # loading processes send back its classes under this name
        sys.modules["__mp_main__"] = main
    if program[0] == "-m":
        begin_path(os.getcwd())
        sys.argv = ["-m", *program[2:]]
        runpy._run_module_as_main(program[1])  # type: ignore[attr-defined]  # what the interpreter calls for -m
    elif pkgutil.get_importer(program[0]) is not None:  # a folder, or a zip file
        begin_path(absolute(program[0]))
        sys.argv = program
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
    else:
        begin_path(str(Path(program[0]).resolve().parent))
        sys.argv = program
        run_file(absolute(program[0]), vars(main))


def absolute(path: str) -> str:
    """The path as the interpreter makes it, `..` and all."""
    return os.path.join(os.getcwd(), path.removeprefix("./"))


def begin_path(folder: str) -> None:
    """Puts the program's folder first in sys.path, in place of ours."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def run_file(path: str, namespace: dict[str, Any]) -> None:
    with io.open_code(path) as file:
        code = pkgutil.read_code(file)
    kind: Any = importlib.machinery.SourcelessFileLoader
    if code is None:
        kind = importlib.machinery.SourceFileLoader
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    namespace.update(__file__=path, __cached__=None, __loader__=kind("__main__", path))
    exec(code, namespace)


def show(error: BaseException, trace: Any, *, by_default: bool = False) -> None:
    """Shows an exception that nobody has caught as the interpreter does: by the program's sys.excepthook, and on what
    the program has put in place of sys.stderr. Where it has changed neither, this does nothing, and the launcher shows
    the exception.

    Args:
        trace: the program's own part of the traceback.
        by_default: show it here in that case, too; the launcher will not.
    """
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    hook = sys.excepthook
    if first_hook(hook) is sys.__excepthook__ and sys.stderr is sys.__stderr__ and not by_default:
        return
    try:
        hook(type(error), error.with_traceback(trace), trace)
    except Exception:
        print("Error in sys.excepthook:", traceback.format_exc(), "Original exception was:", sep="\n", file=sys.stderr)
        traceback.print_exception(type(error), error, trace)


def first_hook(hook: Any) -> Any:
    """The hook behind torch's own, which writes the rank in front of what the hook before it prints."""
    while getattr(hook, "__module__", None) == "torch.distributed.distributed_c10d" and hook.__closure__:
        hook = dict(zip(hook.__code__.co_freevars, hook.__closure__, strict=True))["old_hook"].cell_contents
    return hook


def keep_process_groups() -> None:
    """Keeps a failed rank's process groups from being freed: that would wait for what its peers never send."""
    world = getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_world", None)
    for group in list(getattr(world, "pg_map", ())):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


if __name__ == "__main__":
    main(sys.argv[1:])
