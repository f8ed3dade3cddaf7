"""The plan: what would be started, as a pure function of config, flags and host. All decisions are made here."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dist_train.config.shares import at_least, check_fits
from dist_train.errors import UserError
from dist_train.rundir.layout import RunDir, suffix
from dist_train.rundir.records import Round

from ..job import Place
from ..relay.request import Shown
from .console_options import parse_shown, parse_size
from .environment import environment, threads_of_a_rank
from .flags import Flags, as_words
from .host import Host
from .rendezvous import Rendezvous, choose_rendezvous
from .requirements import Requirements

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

Device = Literal["cpu", "gpu"]
Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """What the supervisor does follows from the plan alone. A dry run prints it."""

    nodes: int
    node: int | None
    """This node's number; None where the rendezvous hands it out."""
    node_name: str
    """This node in the names of its files: `node<number>`, or the host's name where it has no number."""
    ranks_per_node: int
    device: Device
    backend: Backend
    threads_per_rank: int
    microbatches: int
    environment: dict[str, str]
    """Added to the environment of every rank."""
    rendezvous: Rendezvous
    flags: Flags
    """The command line's flags: restarts, times, how to start."""
    requirements: Requirements
    """What the program asks of the plan."""
    program: tuple[str, ...]
    """What a rank runs: `-m MODULE`, `--no-python PROGRAM`, or a script."""
    arguments: tuple[str, ...]
    """The program's arguments. A training's are its config and the overrides: each rank reads them itself, as the
    launcher has. Of what a config says, the plan itself holds `requirements` alone."""
    resume: str | None
    """What the training begins from: `auto` (its newest checkpoint), `none` (it begins anew) or a checkpoint's
    directory. None where the program is not a training."""
    is_training: bool
    """Whether the program is our own trainer, which answers signals and saves; else it knows nothing of us."""
    folder: Path
    """The run directory. It holds the generations, and the logs where there is no --log-dir."""
    shown: Shown
    """Which ranks the console shows."""
    log_size: int
    """Bytes after which a rank's log is put aside and a new one begins."""
    place: Place | None
    """This node's place in the scheduler's job, which starts us again when we ask for it; None without a scheduler."""
    run_id: str
    """The launch's name, as the ranks of every generation are told it. torch calls it the run id."""
    attempt: int = 1
    """The generation's number within the launch, from 1; the launchers of several nodes count together."""
    agreed_name: str | None = None
    """The generation's name, where the nodes have agreed on one (supervisor/rounds.py)."""

    @property
    def generation_name(self) -> str | None:
        """The generation's name, which all nodes know and which is used once. None where each node counts by itself."""
        if self.place is None or self.nodes == 1:
            return self.agreed_name
        return f"{self.place.job}.{self.place.step}-{self.place.restarts}-{self.attempt}"

    @property
    def agent_log(self) -> Path:
        return self.logs / f"agent{suffix(self.node_name)}.log"

    @property
    def preload_log(self) -> Path:
        return self.logs / f"preload{suffix(self.node_name)}.log"

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def logs(self) -> Path:
        return Path(self.flags.log_dir) if self.flags.log_dir else RunDir(self.folder).logs

    @property
    def torchrun_arguments(self) -> tuple[str, ...]:
        """The flags, for torchrun's own parser. The program's words are not among them: the parser would look for its
        flags there, too."""
        flags = ["--nproc-per-node", str(self.ranks_per_node)]
        if self.rendezvous == Rendezvous():  # nothing was decided: one node, which nobody has to find
            flags.append("--standalone")
        else:
            node = None if self.node is None else str(self.node)
            flags += as_words({"nnodes": self.nodes, "node_rank": node, **asdict(self.rendezvous)})
        flags += ["--max-restarts", "0", "--monitor-interval", f"{self.flags.monitor_interval:g}"]
        return (*flags, *self.requirements.passed_on)

    @property
    def words(self) -> tuple[str, ...]:
        """The program and all of its arguments."""
        resume = ("--resume", self.resume) if self.resume is not None else ()
        return (*self.program, *self.arguments, *resume)

    @property
    def command(self) -> str:
        """The equivalent torchrun command, for a shell: it does the same, without our supervision."""
        return shlex.join(["torchrun", *self.torchrun_arguments, *self.words])

    def of_attempt(self, attempt: int) -> "LaunchPlan":
        """The plan of a later generation of the same run: it goes on from the newest checkpoint."""
        if attempt == 1:
            return self
        resume = "auto" if self.resume == "none" else self.resume  # a checkpoint counts until this run has its own
        return replace(self, attempt=attempt, resume=resume, rendezvous=self.rendezvous.of_attempt(attempt))

    def of_round(self, agreed: Round) -> "LaunchPlan":
        """The plan of the generation that the nodes have agreed on."""
        rendezvous = replace(self.rendezvous, master_port=agreed.master_port, rdzv_id=agreed.rdzv_id)
        return replace(self.of_attempt(agreed.attempt), agreed_name=agreed.start, rendezvous=rendezvous)


def make_plan(
    config: "RunConfig | Requirements",
    flags: Flags,
    host: Host,
    *,
    folder: Path,
    program: tuple[str, ...],
    arguments: tuple[str, ...],
    resume: str | None = None,
    run_id: str | None = None,
) -> LaunchPlan:
    """Decides how many ranks start where, and with which environment.

    Args:
        config: a RunConfig, or the requirements of a program that has none.
        run_id: the launch's name for its ranks; None for the id of the rendezvous.

    Raises:
        UserError: when flags, config and host do not go together.
    """
    training = None if isinstance(config, Requirements) or resume is None else config
    requirements = config if isinstance(config, Requirements) else Requirements.of(config)
    nodes, node = _nodes(flags, host)
    device, backend, ranks = _ranks(requirements, flags, host, nodes)
    given = requirements.microbatches
    microbatches = given if isinstance(given, int) else nodes * ranks
    if training is not None:
        microbatches = at_least(training, nodes * ranks)
        check_fits(training, nodes * ranks, microbatches)
    threads = threads_of_a_rank(requirements, device, ranks, host)
    rendezvous = choose_rendezvous(flags, host, nodes, node)
    return LaunchPlan(
        nodes=nodes,
        node=node,
        node_name=f"node{node}" if node is not None else host.name,
        ranks_per_node=ranks,
        device=device,
        backend=backend,
        threads_per_rank=threads,
        microbatches=microbatches,
        environment=environment(requirements, nodes, device, threads, host),
        rendezvous=rendezvous,
        flags=flags,
        requirements=requirements,
        program=program,
        arguments=arguments,
        resume=resume,
        is_training=resume is not None,
        folder=folder,
        shown=parse_shown(flags, nodes * ranks),
        log_size=parse_size(flags.log_size),
        place=host.place,
        run_id=run_id or rendezvous.rdzv_id or "none",
    )


def count_nodes(flags: Flags, host: Host) -> int:
    """Nodes of the job: --nnodes, else SLURM's, else 1.

    Raises:
        UserError: when --nnodes is no positive number.
    """
    if flags.nnodes is None:
        return host.place.nodes if host.place and not flags.standalone else 1
    low, _, high = flags.nnodes.partition(":")
    if high and high != low:
        raise UserError(f"--nnodes {flags.nnodes}: give one number; to change the size of a run, start it again")
    if not low.isdigit() or int(low) < 1:
        raise UserError(f"--nnodes {flags.nnodes}: not a number of nodes")
    return int(low)


def _nodes(flags: Flags, host: Host) -> tuple[int, int | None]:
    """How many nodes, and the number of this one."""
    nodes = count_nodes(flags, host)
    if nodes > 1 and flags.standalone:
        raise UserError(f"--standalone is for one node, and --nnodes says {nodes}")
    if nodes == 1:
        return 1, 0
    node = flags.node_rank
    if node is None and host.place and host.place.nodes == nodes:
        node = host.place.node
    if node is not None and not 0 <= node < nodes:
        raise UserError(f"--node-rank {node}: with {nodes} nodes it is 0 to {nodes - 1}")
    return nodes, node


def _ranks(requirements: Requirements, flags: Flags, host: Host, nodes: int) -> tuple[Device, Backend, int]:
    """Device, backend and ranks per node."""
    asked = flags.nproc_per_node or "auto"
    wanted = requirements.backend
    if asked == "gpu" and host.gpus == 0:
        raise UserError("--nproc-per-node gpu: no GPU here (CUDA_VISIBLE_DEVICES counts); cpu uses the cores")
    on_gpu = host.gpus > 0 and asked != "cpu" and (wanted != "gloo" or asked == "gpu")
    backend = wanted if wanted != "auto" else "nccl" if on_gpu else "gloo"
    if backend == "nccl" and not on_gpu:
        why = "--nproc-per-node cpu leaves them out" if host.gpus else "there is none here"
        raise UserError(f"distributed.backend is nccl, which needs GPUs, and {why}; auto or gloo works on a CPU")
    if asked.isdigit():
        if int(asked) < 1:
            raise UserError("--nproc-per-node 0: at least one rank per node")
        if on_gpu and int(asked) > host.gpus and not requirements.environment_wins:  # a program may share them
            raise UserError(
                f"--nproc-per-node {asked}: {host.gpus} GPU{'s' * (host.gpus > 1)} here, and each rank needs its own; "
                "distributed.backend=gloo puts the ranks on the CPU"
            )
        return ("gpu" if on_gpu else "cpu"), backend, int(asked)
    if asked not in ("auto", "gpu", "cpu"):
        raise UserError(f"--nproc-per-node {asked}: give a number, auto, gpu or cpu")
    if on_gpu:
        return "gpu", backend, host.gpus
    room = requirements.microbatches if isinstance(requirements.microbatches, int) else host.cores * nodes
    return "cpu", backend, max(1, min(host.cores, room // nodes))
