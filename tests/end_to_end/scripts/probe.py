"""Writes all that a program can ask of its process into FOLDER: `probe.py FOLDER [ARGUMENT …]`.

With `talk` among the arguments it asks a person, and not torch.
"""

import sys

MODULES, NAMES = sorted(sys.modules), sorted(globals())

import os  # noqa: E402

DESCRIPTORS = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]  # but for that of the listing
TASKS = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]  # noqa: SIM115

import atexit  # noqa: E402
import builtins  # noqa: E402
import ctypes  # noqa: E402
import faulthandler  # noqa: E402
import gc  # noqa: E402
import inspect  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import locale  # noqa: E402
import logging  # noqa: E402
import multiprocessing  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import stat  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import tracemalloc  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_GET_CHILD_SUBREAPER, PR_GET_TIMERSLACK = 2, 3, 37, 30


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    atexit.register((folder / f"atexit{rank}").write_text, "done")
    facts = {f"environment {name}": value for name, value in os.environ.items()}
    parts = [interpreter, main_module, streams, process, python_state, standard_input]
    for part in [*parts, *[libraries] * ("talk" not in sys.argv)]:
        facts |= {f"{part.__name__} {name}": value for name, value in part().items()}
    (folder / f"rank{rank}.json").write_text(json.dumps(facts, default=str))


def interpreter():
    own = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")
    plain = ("argv", "orig_argv", "path", "warnoptions", "executable", "prefix", "_xoptions", "dont_write_bytecode")
    plain += ("pycache_prefix", "platlibdir", "base_prefix", "flags")
    return {
        **{name: repr(getattr(sys, name)) if name == "flags" else getattr(sys, name) for name in plain},
        **{name: getattr(sys, name) is getattr(sys, f"__{name}__") for name in own},
        **{name: getattr(sys, f"get{name}")() for name in ("recursionlimit", "switchinterval", "dlopenflags")},
        "trace": [sys.gettrace(), sys.getprofile()],
        "meta_path": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path],
        "path_hooks": len(sys.path_hooks),
        "interactive": [hasattr(sys, "ps1"), hasattr(sys, "last_value")],
        "hash of a word": hash("word"),
        "modules": MODULES,
        "modules of ours": sorted(name for name in MODULES if re.match(r"_?(launch|dist_train)", name)),
        "builtins": sorted(vars(builtins)),
        "async": [sys.get_asyncgen_hooks()[0], sys.get_coroutine_origin_tracking_depth()],
        "digits": sys.get_int_max_str_digits(),
    }


def main_module():
    module = sys.modules["__main__"]
    spec = vars(module).get("__spec__", "missing")
    known = {name: vars(module).get(name, "missing") for name in ("__name__", "__file__", "__package__", "__cached__")}
    return {
        **known,
        "__doc__": module.__doc__,
        "__annotations__": vars(module).get("__annotations__", "missing"),
        "__spec__": getattr(spec, "name", spec),
        "__loader__": getattr(__loader__, "__name__", type(__loader__).__name__),
        "__loader__ knows": getattr(__loader__, "path", None),
        "__builtins__": type(__builtins__).__name__,
        "is this": vars(module) is globals(),
        "names": NAMES,
        "frames below": len(inspect.stack()) - 3,  # but for this function, main, and the module
        "source of main": inspect.getsource(main).splitlines()[0],
        "is what loading processes call it": sys.modules["__mp_main__"] is module,
    }


def kind(descriptor: int) -> str:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return "closed"
    names = ("S_ISREG", "S_ISCHR", "S_ISFIFO", "S_ISSOCK", "S_ISDIR")
    return next((name for name in names if getattr(stat, name)(mode)), "other")


def streams():
    facts = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        asked = ("name", "encoding", "errors", "mode", "line_buffering", "write_through", "newlines", "closed")
        facts |= {f"{name}.{what}": getattr(stream, what, "missing") for what in asked}
        facts |= {f"{name}.{what}()": getattr(stream, what)() for what in ("isatty", "fileno", "readable", "writable")}
        facts[f"{name} type"] = [type(stream).__name__, type(stream.buffer).__name__]
        facts[f"{name} raw"] = [
            getattr(getattr(stream.buffer, "raw", stream.buffer), what) for what in ("name", "mode")
        ]
        facts[f"{name} is sys.__{name}__"] = stream is getattr(sys, f"__{name}__")
        facts[f"{name} kind"] = kind(stream.fileno())
    return {**facts, "size": shutil.get_terminal_size()}


def process():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    same = ("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp", "CapEff", "Groups", "Umask", "Cpus_allowed_list")
    libc, me = ctypes.CDLL(None), os.getpid()
    prctl = {"PDEATHSIG": PR_GET_PDEATHSIG, "CHILD_SUBREAPER": PR_GET_CHILD_SUBREAPER}
    answers = {}
    for name, option in prctl.items():
        value = ctypes.c_int()
        libc.prctl(option, ctypes.byref(value), 0, 0, 0)
        answers[name] = value.value
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT")}
    handlers = {number.name: handler_of(number) for number in signal.valid_signals() if hasattr(number, "name")}
    return {
        **{name: status[name].strip() for name in same if name in status},
        **answers,
        **{f"limit {name}": value for name, value in limits.items()},
        **{f"handler {name}": value for name, value in handlers.items()},
        "dumpable": libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "timer slack": libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "timers": signal.getitimer(signal.ITIMER_REAL),
        "wakeup fd": signal.set_wakeup_fd(-1),
        "threads": TASKS,
        "cwd": os.getcwd(),
        "nice": os.nice(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "policy": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")},
        "user": [os.getuid(), os.geteuid(), os.getgid()],
        "leads a group": os.getpgrp() == me,
        "leads a session": os.getsid(0) == me,
        "has a terminal": has_terminal(),
        "parent lives": os.getppid() > 1,
        "cmdline": Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1],
        "comm": Path("/proc/self/comm").read_text().strip(),
        "exe": os.readlink("/proc/self/exe"),
        "initial environment": sorted(os.fsdecode(x) for x in Path("/proc/self/environ").read_bytes().split(b"\0") if x)
        == sorted(f"{name}={value}" for name, value in os.environ.items()),
        "descriptors above 2": len([fd for fd in DESCRIPTORS if fd > 2 and kind(fd) != "closed"]),
        "inherited by a child": [fd for fd in DESCRIPTORS if kind(fd) != "closed" and os.get_inheritable(fd)],
        "children": Path("/proc/self/task", str(me), "children").read_text().split() if has_children_file() else [],
    }


def has_children_file() -> bool:
    return Path("/proc/self/task", str(os.getpid()), "children").exists()


def handler_of(number: signal.Signals) -> str:
    handler = signal.getsignal(number)
    return handler.name if isinstance(handler, signal.Handlers) else getattr(handler, "__name__", str(handler))


def has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def python_state():
    parent = multiprocessing.parent_process()
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "current process": [multiprocessing.current_process().name, parent, multiprocessing.active_children()],
        "threads": [thread.name for thread in threading.enumerate()],
        "main thread": [threading.main_thread() is threading.current_thread(), threading.current_thread().name],
        "thread ident": threading.main_thread().native_id == os.getpid(),
        "stack size": threading.stack_size(),
        "threading.excepthook": threading.excepthook is threading.__excepthook__,
        "random numbers": random.random(),
        "temporary name": next(tempfile._get_candidate_names()),
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)],
        "gc frozen": gc.get_freeze_count() > 0,
        "locale": [locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "tempdir": tempfile.gettempdir(),
        "faulthandler": faulthandler.is_enabled(),
        "tracemalloc": tracemalloc.is_tracing(),
        "warnings": [[str(part) for part in one] for one in warnings.filters],
        "showwarning": warnings.showwarning.__module__,
        "logging": [logging.root.level, len(logging.root.handlers), logging.raiseExceptions, logging.lastResort.level],
        "socket timeout": socket.getdefaulttimeout(),
        "open": open is io.open,
    }


def standard_input():
    if "talk" not in sys.argv:
        return {"content": sys.stdin.read()}
    try:
        answer = input("name? ")
        breakpoint()
    except Exception as error:
        answer = type(error).__name__
    return {"answer": answer}


def libraries():
    import numpy
    import torch

    def openblas() -> list[int]:
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
        return [ctypes.CDLL(path).scipy_openblas_get_num_threads64_() for path in sorted(paths)]

    def threads() -> list[str]:
        return re.findall(r"\w+\(\) : \d+", torch.__config__.parallel_info())

    facts = {
        "threads": threads(),
        "openblas threads": openblas(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch seed": torch.initial_seed(),
        "torch numbers": torch.rand(2).tolist(),
        "numpy numbers": numpy.random.random(),
        "sharing": [torch.multiprocessing.get_sharing_strategy(), torch.multiprocessing.get_start_method()],
        "cuda": [torch.cuda.is_initialized(), torch.cuda.device_count()],
        "elastic": [torch.distributed.is_torchelastic_launched(), torch.distributed.is_initialized()],
        "debug level": torch.distributed.get_debug_level(),
        "printing": repr(torch.tensor(1 / 3)),
        "numpy errors": numpy.geterr(),
        "torch logging": logging.getLogger("torch").level,
        "warnings": sorted([str(part) for part in one] for one in warnings.filters),
    }
    torch.set_num_threads(1)
    return {**facts, "threads once told": threads()}


if __name__ == "__main__":
    main()
