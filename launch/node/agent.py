"""The agent of one node and one generation, in a process of its own: torchrun's elastic agent, with our orders.

It starts the ranks with torch's own agent, waits for them, and writes how they ended. `python -m launch.node.agent`
reads one line of JSON (see supervisor/agent_starter.py); the rest of stdin is the supervisor's lifeline: when it
closes, everything ends. Where it is forked from the fork server (fork_server.py), main_forked gets the same request,
and the kernel ends it with the server.
"""

import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import decode, write_json
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import AgentOutcome, RankEnd

from ..processes import descendants, ignore_signals, send
from ..rank.page import ERROR, FACTS, Page
from ..torch_patches import end_ranks_by, look_after, start_ranks_by
from .fork_client import ForkClient, ForkedProcess
from .request import AgentRequest

MORE_DESCRIPTORS = 256
"""Open files that the process with the store may need, besides one for each rank and agent."""
RANK_MAIN = Path(__file__).parents[1] / "rank" / "main.py"


def main() -> None:
    """Never returns: the interpreter's own way out of torch takes seconds."""
    request = decode(AgentRequest, json.loads(sys.stdin.readline()))
    hold_lifeline(request.stdin)
    ignore_signals()
    os.chdir(request.cwd)
    work(request)


def main_forked(request: dict[str, Any], server: socket.socket) -> None:
    """Does what main does, in a process that has imported torch already. Its ranks are forked, too. Never returns."""
    client = ForkClient(server)
    fork_ranks_from(client)
    look_after(client.wait)
    work(decode(AgentRequest, request))


def work(request: AgentRequest) -> None:
    """Runs the ranks to their end and writes how that was. Ends the process."""
    try:
        sys.stdout = sys.stderr = open(request.log, "a", buffering=1)  # noqa: SIM115 - torch's log lines, not the ranks'
    except OSError:  # the disk refuses: what torch says is lost, and the run goes on
        sys.stdout = sys.stderr = open(os.devnull, "a")  # noqa: SIM115
    for descriptor in (1, 2):  # what torch prints from C++ too: this process never waits for a console
        os.dup2(sys.stderr.fileno(), descriptor)
    try:
        error, ranks = None, run_ranks(request)
    except BaseException as failed:
        traceback.print_exc()
        error, ranks = f"{type(failed).__name__}: {failed}", []
    outcome = AgentOutcome(error=error, ranks=ranks, boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    pages = Page(request.pages, request.ranks)
    pages.put(FACTS, asdict(outcome))
    with suppress(OSError):
        write_json(Path(request.outcome), outcome)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


def hold_lifeline(stdin: int) -> None:
    """Ends everything when stdin closes, which a thread watches. The ranks get the stdin of the user's command."""
    lifeline = os.dup(0)
    os.dup2(stdin, 0)
    os.close(stdin)

    def wait() -> None:
        os.read(lifeline, 1)
        for pid in descendants(os.getpid()):
            send(pid, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def run_ranks(request: AgentRequest) -> list[RankEnd]:
    """Runs the ranks to their end. Returns how they ended: only those that failed, if any did.

    Never restarts them, since the plan says --max-restarts 0: every generation gets an agent of its own.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    theirs = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("PET_")}
    arguments = parse_args([*request.arguments, "program"])  # the plan has read torchrun's variables already
    os.environ.update(theirs)
    single = arguments.nnodes in ("1", "1:1")
    port = arguments.master_port or 0
    if arguments.rdzv_backend == "static" and single:
        rendezvous_handler_registry.register("loopback", lambda parameters: loopback_rendezvous(parameters, port))
        arguments.rdzv_backend = "loopback"
        arguments.standalone = False
    arguments.log_dir = os.devnull  # else torch makes a folder in TMPDIR, and leaves it there
    config, python, _ = config_from_args(arguments)
    if arguments.node_rank == 0:
        allow_descriptors(config.max_nodes * (config.nproc_per_node + 1))
    config.logs_specs = rank_files(request, config.signals_to_handle)
    if request.signals == "default":
        pages = Page(request.pages, request.ranks)
        end_ranks_by(lambda: pages.put(ERROR, {"has_failed": True}), 10 + 3 * request.grace)
    config.signals_to_handle = "SIGQUIT"  # the others are ignored here, see ignore_signals
    me = str(os.getpid())
    files = [request.generation, request.logs, request.output, request.pages]
    entry = ["-u", str(RANK_MAIN), me, me, *files, request.signals]  # PARENT and AGENT are both this process
    try:
        ended = elastic_launch(config, python)(*entry, *request.program)
    except ChildFailedError as failed:
        return [RankEnd(rank=rank, pid=one.pid, exit_code=one.exitcode) for rank, one in failed.failures.items()]
    return [RankEnd(rank=rank, pid=0, exit_code=0) for rank in ended]


def allow_descriptors(clients: int) -> None:
    """Raises the limit of open files: the store takes one for each rank and agent, and the limit is usually 1,024.

    Raises:
        RuntimeError: when the limit cannot be raised so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = float("inf") if hard == resource.RLIM_INFINITY else hard
    if clients > most:
        raise RuntimeError(
            f"the first node's store needs {clients:,} open files, one for each rank and agent, and at most {hard:,} "
            "are allowed here: raise the hard limit (ulimit -Hn)"
        )
    if soft not in (resource.RLIM_INFINITY, hard) and clients + MORE_DESCRIPTORS > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(clients + MORE_DESCRIPTORS, most)), hard))


class ForkedRank:
    """A rank, as torch's agent handles one: it takes the place of torch's SubprocessHandler."""

    def __init__(self, process: ForkedProcess) -> None:
        self.proc = process

    def close(self, death_sig: signal.Signals | None = None) -> None:
        send(self.proc.pid, death_sig or signal.SIGTERM, group=True)


def fork_ranks_from(server: ForkClient) -> None:
    """From now on, torch's agent in this process has its ranks forked, unless the server refuses."""
    before, parent = dict(os.environ), str(os.getppid())

    def start(environment: dict[str, str], args: tuple[str, ...]) -> ForkedRank | None:
        added = {name: value for name, value in os.environ.items() if before.get(name) != value}  # by torch
        _, _, _, *words = args  # -u RANK_MAIN PARENT …; a forked rank's parent is the fork server
        server.ask({"environment": {**added, **environment}, "words": [parent, *words]})
        process = server.answer(None)
        if server.is_gone:
            raise RuntimeError("the fork server is gone")
        return ForkedRank(process) if process is not None else None

    start_ranks_by(start)


def rank_files(request: AgentRequest, signals: str) -> Any:
    """Turns torch's own log redirection off, since rank/main.py redirects, and says where torch's @record decorator
    writes. The ranks also get the launch's name and our counts of restarts: to torch's agent each generation of ours is
    the first. `signals` are those that torch's agent would handle."""
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.multiprocessing.api import LogsDest

    folder = GenerationDir(Path(request.generation)).record
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)

    class RankFiles(LogsSpecs):
        root_log_dir = str(folder)

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            records = {local: str(folder / f"rank{env['RANK']}.json") for local, env in envs.items()}
            for local, env in envs.items():
                env["TORCHELASTIC_ERROR_FILE"] = records[local]
                env["TORCHELASTIC_RUN_ID"] = request.run_id
                env["TORCHELASTIC_RESTART_COUNT"] = str(request.restarts)
                env["TORCHELASTIC_MAX_RESTARTS"] = str(request.max_restarts)
                env["TORCHELASTIC_SIGNALS_TO_HANDLE"] = signals
            return LogsDest(stdouts=dict.fromkeys(envs, ""), stderrs=dict.fromkeys(envs, ""), error_files=records)

    return RankFiles()


def loopback_rendezvous(parameters: Any, port: int) -> Any:
    """A rendezvous of one node whose store listens on 127.0.0.1 alone; torch's own listens on every interface."""
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class Loopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return "loopback"

        def next_rendezvous(self) -> RendezvousInfo:
            listener = socket.create_server((self.master_addr, self.master_port), backlog=1024)
            host, bound = listener.getsockname()
            store = TCPStore(
                host,
                bound,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
                timeout=timedelta(seconds=30),  # to reach ourselves: without descriptors we cannot
            )
            store.set_timeout(timedelta(minutes=5))
            return RendezvousInfo(PrefixStore("agent", store), 0, 1, RendezvousStoreInfo(host, bound))

    return Loopback("127.0.0.1", port, 0, 1, parameters.run_id, timeout=300)


if __name__ == "__main__":
    main()
