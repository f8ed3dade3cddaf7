"""What the plan needs to know of this machine and of the SLURM job around it. No torch here."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.config.errors import UserError
from launch import hostlist

INTERACTIVE_STEP = str(0xFFFFFFFA)
"""The step that salloc's own shell is, with `LaunchParameters=use_interactive_step`."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Our place in a SLURM job step."""

    job: str
    """The job's id; `ARRAYJOB_TASK` in an array."""
    job_number: int
    """Unique to the job, also inside an array."""
    nodes: int
    node: int
    head: str
    """Host name of the first node."""
    restarts: int
    """How often the job has been requeued."""
    cpus: int | None
    """Cores that SLURM gave to this task, where it says so."""
    hosts: tuple[str, ...] = ()
    """The nodes' names, in order."""
    step: str = "batch"
    """Of the job, unique in each of its lives."""
    interactive: bool = False
    """A person typed the command in the allocation's shell: nothing comes back to it, and there may be a next one."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Facts; nothing in here was decided by us."""

    name: str
    cores: int
    gpus: int
    slurm: Slurm | None
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, those that libraries of ours read, as the user has set them."""


_READ = re.compile(r"(NCCL|TORCH|GLOO|CUBLAS|CUDA|CUDNN|NVIDIA|OMP|MKL|OPENBLAS|KMP)_.+|PYTHONUNBUFFERED")


def look(environ: Mapping[str, str] = os.environ) -> Host:
    """Looks around.

    Raises:
        UserError: when SLURM's variables are incomplete or contradict each other.
    """
    job = slurm(environ)
    limits = [len(os.sched_getaffinity(0)), cpu_quota(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))]
    limits.append(job.cpus if job else None)
    cores = min(limit for limit in limits if limit is not None)
    return Host(
        name=socket.gethostname(),
        cores=cores,
        gpus=visible_gpus(environ, physical_gpus()),
        slurm=job,
        variables={name: value for name, value in environ.items() if _READ.fullmatch(name)},
    )


# ---------------------------------------------------------------- cores and memory


def cpu_quota(groups: str, mount: Path) -> int | None:
    """Whole cores that the cgroups of `groups` (/proc/self/cgroup) allow, at least 1; None without a limit."""
    allowed = [quota for folder in _cgroup_folders(groups, mount, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min(allowed))) if allowed else None


def _cgroup_folders(groups: str, mount: Path, controller: str) -> list[Path]:
    """Every folder whose limit of `controller` holds for us, from our own up to the root, versions 1 and 2."""
    folders: list[Path] = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [mount / controllers, mount / controller] if controllers else [mount]
        root = next((folder for folder in roots if folder.is_dir()), mount)
        own = root / path.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return folders


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
    except (OSError, ValueError):
        return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def oom_kills() -> int:
    """How often the kernel has killed a process of our cgroup for want of memory; 0 where it does not count."""
    groups = Path("/proc/self/cgroup").read_text()
    for folder in _cgroup_folders(groups, Path("/sys/fs/cgroup"), "memory"):
        for name in ("memory.events", "memory.oom_control"):
            try:
                match = re.search(r"^oom_kill (\d+)$", (folder / name).read_text(), re.MULTILINE)
            except OSError:
                continue
            if match:
                return int(match[1])
    return 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of our cgroup where it has a limit below the machine's, else of the machine; in bytes."""

    limit: int
    used: int
    peak: int | None
    """The most that the cgroup has ever used."""
    is_cgroup: bool


def memory(groups: str | None = None, mount: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> Memory:
    """How much of the memory that we may have is used now."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    facts = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    machine = Memory(
        limit=facts["MemTotal"], used=facts["MemTotal"] - facts["MemAvailable"], peak=None, is_cgroup=False
    )
    own = (proc / "self" / "cgroup").read_text() if groups is None else groups
    limited = [found for folder in _cgroup_folders(own, mount, "memory") if (found := _memory_of(folder))]
    return min([machine, *limited], key=lambda found: found.limit)


def _memory_of(folder: Path) -> Memory | None:
    """None where the cgroup has no limit."""
    for limit, used, peak in (
        ("memory.max", "memory.current", "memory.peak"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    ):
        numbers = {name: _number_in(folder / name) for name in (limit, used, peak)}
        if (most := numbers[limit]) is not None:
            return Memory(limit=most, used=numbers[used] or 0, peak=numbers[peak], is_cgroup=True)
    return None


def _number_in(path: Path) -> int | None:
    """None for `max`, and where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


# ---------------------------------------------------------------- GPUs


def physical_gpus(root: Path = Path("/")) -> int:
    """NVIDIA GPUs that this machine, or this container, has."""
    devices = [path for path in root.glob("dev/nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    known = list(root.glob("proc/driver/nvidia/gpus/*"))
    if devices and known:  # a container may show all in /proc and have the devices of some
        return min(len(devices), len(known))
    return len(devices) or len(known) or _count_with_nvidia_smi()


def _count_with_nvidia_smi() -> int:
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def visible_gpus(environ: Mapping[str, str], physical: int) -> int:
    """GPUs left by CUDA_VISIBLE_DEVICES, read as CUDA reads it: up to the first entry that names none."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None or physical == 0:
        return physical
    count = 0
    for entry in (item.strip() for item in listed.split(",")):
        if not (entry.startswith(("GPU-", "MIG-")) or (entry.isdigit() and int(entry) < physical)):
            break
        count += 1
    return count


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# ---------------------------------------------------------------- SLURM


def slurm(environ: Mapping[str, str]) -> Slurm | None:
    """Our place in the job; None outside, also in the shell of an salloc on another machine (slurm/allocation.py).

    A batch script, and the shell of an allocation on its first node, are places of one node.

    Raises:
        UserError: when variables are missing or contradict each other, or srun started more than one task a node.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_NODEID" not in environ:
        return None
    in_step = "SLURM_STEP_ID" in environ
    interactive = "SLURM_PTY_PORT" in environ or environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP
    nodes = _number(environ, "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES")
    node = _number(environ, "SLURM_NODEID")
    names = _nodelist(environ, nodes)
    if node >= nodes:
        raise UserError(f"SLURM contradicts itself: SLURM_NODEID is {node}, and there are {nodes} nodes")
    if in_step and environ["SLURM_STEP_ID"] != INTERACTIVE_STEP:
        _one_launcher_per_node(environ, nodes)
    if not in_step or interactive:
        nodes, node, names = 1, 0, names[node : node + 1]
    array = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}" if _is_array(environ) else None
    return Slurm(
        job=array or environ["SLURM_JOB_ID"],
        job_number=_number(environ, "SLURM_JOB_ID"),
        nodes=nodes,
        node=node,
        head=names[0],
        restarts=_number(environ, "SLURM_RESTART_COUNT", 0),
        cpus=_slurm_cpus(environ, in_step and not interactive),
        hosts=tuple(names),
        step=environ.get("SLURM_STEP_ID", "batch"),
        interactive=interactive,
    )


def step(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What names this launcher to SLURM, for whoever wants to stop it: job, step and how often the job was requeued."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    array = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}" if _is_array(environ) else None
    number = environ.get("SLURM_STEP_ID")
    return {
        "job": array or environ["SLURM_JOB_ID"],
        "step": f"{environ['SLURM_JOB_ID']}.{number}" if number else None,
        "restarts": _number(environ, "SLURM_RESTART_COUNT", 0),
    }


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise UserError(f"in a SLURM job (SLURM_JOB_ID is set), but {name} is missing: start with srun or sbatch")
    if not value.isdigit():
        raise UserError(f"{name} is {value!r}, not a whole number")
    return int(value)


def _nodelist(environ: Mapping[str, str], nodes: int) -> list[str]:
    name = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST"
    if name not in environ:
        raise UserError(f"in a SLURM job (SLURM_JOB_ID is set), but {name} is missing: start with srun or sbatch")
    try:
        names = hostlist.expand(environ[name])
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if len(names) != nodes:
        raise UserError(f"SLURM contradicts itself: {name} is {environ[name]}, which is not {nodes} nodes")
    return names


def _one_launcher_per_node(environ: Mapping[str, str], nodes: int) -> None:
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", nodes))
    if tasks > nodes:
        raise UserError(
            f"srun started {tasks} tasks on {nodes} node{'s' * (nodes > 1)}, and one launcher per node starts all "
            "ranks there: use --ntasks-per-node=1 (and --cpus-per-task for the cores)"
        )


def _is_array(environ: Mapping[str, str]) -> bool:
    return "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ


def _slurm_cpus(environ: Mapping[str, str], in_step: bool) -> int | None:
    """A step's task owns its --cpus-per-task; a batch script or a shell the job's cores on its node."""
    names = ["SLURM_CPUS_PER_TASK"] * in_step + ["SLURM_CPUS_ON_NODE"]
    given = (environ.get(name, "") for name in names)
    return next((max(1, int(value)) for value in given if value.isdigit()), None)
