"""The fork server: imports torch and the program's modules once, and forks the agent and its ranks from that.

`fork_server.py SOCKET PARENT ROOT PACKAGE [MODULE]...` is run as a file of its own, so that no folder of ours gets into
the program's sys.path; it imports the standard library alone, and the modules of ours that it is given. The supervisor
sends one message that says what else to import, then one for each agent; an agent sends one for each rank. Whoever
asked for a process is told how it ended.

No rank is forked from a process that has called the GPU's driver or that has further threads: neither survives a fork.
"""

import contextlib
import gc
import importlib
import importlib.util
import os
import selectors
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OFTEN = ("torch.distributed", "torch.distributed.run", "torch.distributed.launcher.api")
"""What nearly every distributed program imports sooner or later, and each agent."""
DEVICES = "/dev/nvidia"
"""How the paths of the GPU driver's files begin. A process that has called the driver has one open."""


def load(name: str) -> Any:
    """A file of launch/, under a name that no program uses."""
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_dist_train_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


channel = load("node/channel")


@dataclass(frozen=True, kw_only=True)
class PreloadOrder:
    """The supervisor's first message.

    Attributes:
        environment: what is added to that of the process.
        cwd: the folder that the user's command was given in.
        path: the program's own folder, first in sys.path.
        log: the file for what the imports print.
        modules: what to import besides torch.
        strict: whether a module that cannot be imported is an error: the user has named it.
        devices: how the paths of a GPU driver's files begin.
    """

    environment: dict[str, str]
    cwd: str
    path: str
    log: str
    modules: list[str]
    strict: bool
    devices: str = DEVICES


def import_all(order: PreloadOrder, shared: set[str]) -> str | None:
    """Imports all modules. Returns why ranks cannot be forked from this process; None where they can.

    Args:
        shared: is filled with the names of the modules, but of those that the user has named and of what these import.
    """
    patches = load("torch_patches")
    if "torch._dynamo" not in order.modules:
        patches.install_lazy_dynamo()
    for name in OFTEN:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    shared.update(sys.modules)
    for name in order.modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            traceback.print_exc()
            if isinstance(error, ImportError) and not order.strict:
                continue  # a rank that does need it will say what is missing
            return f"importing {name}: {type(error).__name__}: {error}".splitlines()[0]
    if not order.strict:
        shared.update(sys.modules)
    patches.keep_operators()
    if sys.modules["torch"].cuda.is_initialized():
        return "what was imported has made a CUDA context, which does not survive a fork"
    if device := next(open_files(order.devices), None):
        return f"what was imported has opened {device}, and the GPU's driver does not survive a fork"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"what was imported has started {threads - 1} more thread{'s' * (threads > 2)}, lost in a fork"
    return None


def open_files(prefix: str) -> Iterator[str]:
    """The paths of this process's open files that begin with `prefix`."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that the listing itself had open
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.startswith(prefix):
                yield path


class Forked(BaseException):
    """Raised in a new process, which so leaves the server's frames behind.

    Args:
        work: what the process is there for.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work


class ForkServer:
    """Forks the processes that it is asked for, and tells how they ended.

    Args:
        control: the line to the supervisor.
        root: the folder that our packages are imported from, which the program does not see.
        package: what launch/ is called there.
        early: modules to import before the order comes. They import neither torch nor NumPy, which read the environment
            as they are loaded.
    """

    def __init__(self, control: socket.socket, root: str, package: str, early: Sequence[str]) -> None:
        self._control, self._root, self._package = control, root, package
        if sys.flags.safe_path:  # Python has put no folder of ours there
            sys.path.insert(0, root)
        sys.path[0] = root  # until `serve` puts the program's there: processes.py imports from ours
        self._rank_main, self._processes = load("rank/main"), load("processes")
        self._rank_main.load_all()
        self._leaving = load("rank/leaving")
        self._shared = self._leaving.SharedModules()
        for name in [name for name in sys.modules if name.partition(".")[0] == "dist_train"]:
            del sys.modules[name]  # the program may have one of its own
        self._early = early
        self._refusal: str | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._start_agent)

    def serve(self, parent: int) -> None:
        """Serves until the supervisor is gone, and then ends everything below it. Never returns.

        Raises:
            Forked: in each process that was forked.
        """
        self._rank_main.die_with(parent)
        self._processes.ignore_signals()
        for name in self._early:
            importlib.import_module(name)
        received = channel.receive(self._control)
        if received is None:
            os._exit(1)
        order = PreloadOrder(**received)
        os.environ.update(order.environment)
        os.chdir(order.cwd)
        sys.path[0] = order.path
        with open(order.log, "a") as log:  # what the imports print is no rank's: each asks for an output of its own
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        gc.disable()  # there is no garbage in what is imported, and finding that out costs a seventh of the time
        try:
            import torch  # noqa: F401 - the agent needs only this, so it does not wait for the rest
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        self._start_agent()  # the agent sets itself up while we import the rest
        self._refusal = import_all(order, self._shared.names)
        self._shared.spared = not order.strict  # a program of others ends as if each rank had imported them by itself
        # The kernel ends each rank with us, but not what a rank has started. So from here on we end both when the
        # supervisor is gone.
        self._processes.become_subreaper()
        self._processes.die_with_parent(0)
        if self._refusal is not None:
            channel.send(self._control, {"refused": self._refusal})
        while True:
            for key, _ in self._selector.select():
                key.data()

    # ------------------------------------------------------------ agents

    def _start_agent(self) -> None:
        request = channel.receive(self._control)
        if request is None:
            self._processes.end_descendants(patience=0)
            os._exit(0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = self._fork(lambda: self._be_agent(request, theirs), self._control, keep=theirs)
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._start_rank(ours))
        channel.send(self._control, {"started": pid})

    def _be_agent(self, request: dict[str, Any], server: socket.socket) -> None:
        sys.path[0] = self._root
        importlib.import_module(f"{self._package}.node.agent").main_forked(request, server)

    # ------------------------------------------------------------ ranks

    def _start_rank(self, agent: socket.socket) -> None:
        request = channel.receive(agent)
        if request is None:
            self._selector.unregister(agent)
            agent.close()
        else:
            pid = self._fork(lambda: self._be_rank(**request), agent) if self._refusal is None else None
            channel.send(agent, {"started": pid})

    def _be_rank(self, environment: dict[str, str], words: list[str]) -> None:
        os.setsid()
        os.environ.update(environment)
        sys.modules["torch"].default_generator.seed()  # else the same numbers in every rank
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # likewise; Python's own generator does so by itself
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # else it would stay the server's
        if sys.flags.safe_path:
            del sys.path[0]
        self._leaving.leave_fast()
        self._rank_main.main(words)

    def _fork(self, child: Callable[[], None], asked: socket.socket, keep: socket.socket | None = None) -> int:
        """Returns the id of a process that runs `child`; `asked` is told of its end.

        Raises:
            Forked: in that process.
        """
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._rank_main.die_with(server)
            gc.freeze()  # the collector would write to, and so copy, the pages that all share
            gc.enable()
            self._let_go(keep)
            raise Forked(child)
        ended = os.pidfd_open(pid)
        self._selector.register(ended, selectors.EVENT_READ, lambda: self._tell_end(pid, ended, asked))
        return pid

    def _let_go(self, keep: socket.socket | None) -> None:
        """Closes what belongs to the server alone."""
        for key in list(self._selector.get_map().values()):
            if key.fileobj is keep:
                continue
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()

    def _tell_end(self, pid: int, ended: int, asked: socket.socket) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if asked.fileno() >= 0:
            channel.send(asked, {"ended": pid, "code": code})


if __name__ == "__main__":
    descriptor, parent, root, package, *early = sys.argv[1:]
    try:
        ForkServer(socket.socket(fileno=int(descriptor)), root, package, early).serve(int(parent))
    except Forked as forked:
        work = forked.work
    work()
