"""The plan: what would be started, as a pure function of config, flags and host. Deciding happens here alone."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dist_train.config.errors import UserError
from dist_train.config.shares import share
from launch.host import Host

DEFAULT_PORT = 29500
"""torchrun's own, where several nodes are told nothing else."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """torchrun's flags as given; None where not given."""

    nproc_per_node: str | None = None
    nnodes: str | None = None
    node_rank: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    rdzv_conf: str | None = None
    standalone: bool = False
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None
    max_restarts: int = 0
    grace: float | None = None
    hang_timeout: float | None = None
    monitor_interval: float = 0.1
    log_dir: str | None = None
    tee: str = "0"


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """How the nodes find each other. On a single node: a free port of the loopback interface, or the one given."""

    backend: str | None = None
    endpoint: str | None = None
    id: str | None = None
    conf: str | None = None
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None

    def of_attempt(self, attempt: int) -> "Rendezvous":
        """Each life of the process group has a store, a port and an id of its own: nothing stale is met again."""
        port = self.master_port + attempt - 1 if self.master_port else self.master_port
        return replace(self, id=f"{self.id}-{attempt}" if self.id else None, master_port=port)


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All that the supervisor does follows from this; a dry run prints it."""

    nodes: int
    node: int | None
    """None where the rendezvous hands out the node's number."""
    ranks_per_node: int
    device: Literal["cpu", "gpu"]
    backend: Literal["nccl", "gloo"]
    threads_per_rank: int
    microbatches: int
    environment: dict[str, str]
    """Added to the environment of every rank."""
    rendezvous: Rendezvous
    max_restarts: int
    grace: float | None
    """Seconds that saving and stopping may take once it was asked for; None: as long as it does take."""
    hang_timeout: float | None
    """Seconds for the watchdog; None: its own defaults; 0: it is off."""
    monitor_interval: float
    program: tuple[str, ...]
    """What a rank runs: `-m MODULE`, or a script."""
    arguments: tuple[str, ...]
    """Its arguments."""
    resume: str | None
    """What it is to begin from; None for programs that do not ask."""
    folder: Path
    """Of logs and generations: the run directory."""
    keep_latest: bool
    """Whether `latest` beside the run directory is to point to it."""
    log_dir: Path | None
    """Where logs go instead of the run directory."""
    tee: str
    """Which ranks beside 0 are shown on the console, as torchrun writes it."""
    scheduler: Literal["slurm"] | None

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def logs(self) -> Path:
        return self.log_dir or self.folder / "logs"

    @property
    def torchrun_arguments(self) -> tuple[str, ...]:
        """What torchrun's own parser gets; `torchrun` with these does the same, without our supervision."""
        flags = ["--nproc-per-node", str(self.ranks_per_node)]
        flags += ["--standalone"] if self.rendezvous == Rendezvous() else self._rendezvous_flags()
        flags += ["--max-restarts", "0", "--monitor-interval", f"{self.monitor_interval:g}"]
        resume = ("--resume", self.resume) if self.resume is not None else ()
        return (*flags, *self.program, *self.arguments, *resume)

    def _rendezvous_flags(self) -> list[str]:
        meet = self.rendezvous
        given = {
            "--nnodes": self.nodes,
            "--node-rank": self.node,
            "--rdzv-backend": meet.backend,
            "--rdzv-endpoint": meet.endpoint,
            "--rdzv-id": meet.id,
            "--rdzv-conf": meet.conf,
            "--master-addr": meet.master_addr,
            "--master-port": meet.master_port,
            "--local-addr": meet.local_addr,
        }
        return [word for flag, value in given.items() if value is not None for word in (flag, str(value))]

    @property
    def command(self) -> str:
        """The equivalent torchrun command, for a shell."""
        return shlex.join(["torchrun", *self.torchrun_arguments])

    def of_attempt(self, attempt: int) -> "LaunchPlan":
        """The plan of a later generation of the same run: it goes on from the newest checkpoint."""
        if attempt == 1:
            return self
        resume = None if self.resume is None else "auto"
        return replace(self, resume=resume, rendezvous=self.rendezvous.of_attempt(attempt))


def make_plan(
    config: Any,
    flags: Flags,
    host: Host,
    *,
    folder: Path,
    program: tuple[str, ...],
    arguments: tuple[str, ...],
    resume: str | None,
    keep_latest: bool = False,
) -> LaunchPlan:
    """Decides how many ranks start where, with what in their environment. `config` is a RunConfig.

    Raises:
        UserError: when flags, config and host do not go together.
    """
    nodes, node = _place(flags, host)
    device, backend, ranks = _ranks(config, flags, host, nodes)
    microbatches = nodes * ranks if config.batch.microbatches == "auto" else config.batch.microbatches
    if resume is not None:  # a training
        _fits(config, nodes * ranks, microbatches)
    threads = config.distributed.threads_per_rank if device == "cpu" else max(1, host.cores // ranks)
    return LaunchPlan(
        nodes=nodes,
        node=node,
        ranks_per_node=ranks,
        device=device,
        backend=backend,
        threads_per_rank=threads,
        microbatches=microbatches,
        environment=_environment(config, nodes, device, threads, host),
        rendezvous=_rendezvous(flags, host, nodes, node),
        max_restarts=flags.max_restarts,
        grace=flags.grace,
        hang_timeout=flags.hang_timeout,
        monitor_interval=flags.monitor_interval,
        program=program,
        arguments=arguments,
        resume=resume,
        folder=folder,
        keep_latest=keep_latest,
        log_dir=Path(flags.log_dir) if flags.log_dir else None,
        tee=flags.tee,
        scheduler="slurm" if host.slurm else None,
    )


def count_nodes(flags: Flags, host: Host) -> int:
    """Nodes of the job: --nnodes, else SLURM's, else 1.

    Raises:
        UserError: when --nnodes is no positive number.
    """
    if flags.nnodes is None:
        return host.slurm.nodes if host.slurm and not flags.standalone else 1
    low, _, high = flags.nnodes.partition(":")
    if high and high != low:
        raise UserError(f"--nnodes {flags.nnodes}: give one number; to change the size of a run, start it again")
    if not low.isdigit() or int(low) < 1:
        raise UserError(f"--nnodes {flags.nnodes}: not a number of nodes")
    return int(low)


def _place(flags: Flags, host: Host) -> tuple[int, int | None]:
    nodes = count_nodes(flags, host)
    if nodes > 1 and flags.standalone:
        raise UserError(f"--standalone is for one node, and --nnodes says {nodes}")
    if nodes == 1:
        return 1, 0
    node = flags.node_rank
    if node is None and host.slurm and host.slurm.nodes == nodes:
        node = host.slurm.node
    if node is not None and not 0 <= node < nodes:
        raise UserError(f"--node-rank {node}: with {nodes} nodes it is 0 to {nodes - 1}")
    return nodes, node


def _ranks(config: Any, flags: Flags, host: Host, nodes: int) -> tuple[Any, Any, int]:
    """Device, backend and ranks per node."""
    asked = flags.nproc_per_node or "auto"
    wanted = config.distributed.backend
    if asked == "gpu" and host.gpus == 0:
        raise UserError("--nproc-per-node gpu: no GPU here (CUDA_VISIBLE_DEVICES counts); cpu uses the cores")
    on_gpu = host.gpus > 0 and asked != "cpu" and (wanted != "gloo" or asked == "gpu")
    backend = wanted if wanted != "auto" else "nccl" if on_gpu else "gloo"
    if backend == "nccl" and not on_gpu:
        why = "--nproc-per-node cpu leaves them out" if host.gpus else "there is none here"
        raise UserError(f"distributed.backend is nccl, which needs GPUs, and {why}; auto or gloo works on a CPU")
    if asked.isdigit():
        return ("gpu" if on_gpu else "cpu"), backend, _given_number(int(asked), on_gpu, host)
    if asked not in ("auto", "gpu", "cpu"):
        raise UserError(f"--nproc-per-node {asked}: give a number, auto, gpu or cpu")
    if on_gpu:
        return "gpu", backend, host.gpus
    room = config.batch.microbatches if isinstance(config.batch.microbatches, int) else host.cores * nodes
    return "cpu", backend, max(1, min(host.cores, room // nodes))


def _given_number(ranks: int, on_gpu: bool, host: Host) -> int:
    if ranks < 1:
        raise UserError("--nproc-per-node 0: at least one rank per node")
    if on_gpu and ranks > host.gpus:
        raise UserError(
            f"--nproc-per-node {ranks}: {host.gpus} GPU{'s' * (host.gpus > 1)} here, and each rank needs its own; "
            "distributed.backend=gloo puts the ranks on the CPU"
        )
    return ranks


def _fits(config: Any, world_size: int, microbatches: int) -> None:
    share(0, world_size, microbatches)  # which says so when there are too few
    size = config.batch.global_size
    if size % microbatches:
        raise UserError(
            f"batch.global_size {size} does not divide into {microbatches} microbatches, one for each rank; the "
            f"nearest above is {-(-size // microbatches) * microbatches}, or set batch.microbatches to a number"
        )


def _environment(config: Any, nodes: int, device: str, threads: int, host: Host) -> dict[str, str]:
    added = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a failed collective ends the rank instead of hanging it
    }
    if host.slurm:
        added["DIST_TRAIN_JOB"] = host.slurm.job  # for rank 0's lease, which another run of the directory will name
    if nodes == 1:  # nothing listens where others could reach it
        added |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if device == "cpu" and host.gpus:
        added["CUDA_VISIBLE_DEVICES"] = ""
    if device == "gpu" and config.exact:
        added["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with a workspace of fixed size
    return added


def _rendezvous(flags: Flags, host: Host, nodes: int, node: int | None) -> Rendezvous:
    slurm = host.slurm if host.slurm and host.slurm.nodes == nodes else None
    ours = Rendezvous(
        backend=flags.rdzv_backend,
        endpoint=flags.rdzv_endpoint,
        id=flags.rdzv_id,
        conf=flags.rdzv_conf,
        master_addr=flags.master_addr,
        master_port=flags.master_port,
        local_addr=flags.local_addr,
    )
    if nodes == 1:
        return Rendezvous(master_port=flags.master_port)
    ours = replace(ours, id=ours.id or (f"{slurm.job}-{slurm.restarts}" if slurm else None))
    if flags.rdzv_endpoint or flags.rdzv_backend not in (None, "static"):
        return replace(ours, backend=flags.rdzv_backend or "c10d")
    head = flags.master_addr or (slurm.head if slurm else None)
    if head is None or node is None:
        raise UserError(
            f"{nodes} nodes have to find each other: give each --node-rank and --master-addr (and --master-port), or "
            "all the same --rdzv-endpoint HOST:PORT and --rdzv-id; under SLURM neither is needed"
        )
    port = flags.master_port or (_port_of_job(slurm.job_number) if slurm else DEFAULT_PORT)
    return replace(ours, backend="static", master_addr=head, master_port=port)


def _port_of_job(job: int) -> int:
    """Known to all nodes without asking, different for jobs that share a node, below Linux's ephemeral ports."""
    return 10_000 + job * 8 % 20_000
