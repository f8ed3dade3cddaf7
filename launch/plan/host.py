"""What the plan needs to know of this machine and of the SLURM job around it. No torch here."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.memory import cgroup_folders, text_in

from ..job import Place
from ..scheduler import find_place


@dataclass(frozen=True, kw_only=True)
class Host:
    """Facts about this machine. None of them is a decision of ours."""

    name: str
    cores: int
    gpus: int
    place: Place | None
    variables: Mapping[str, str] = field(default_factory=dict)
    """The environment variables that libraries of ours read, as the user has set them."""


_READ = re.compile(r"(NCCL|TORCH|GLOO|CUBLAS|CUDA|CUDNN|NVIDIA|OMP|MKL|OPENBLAS|KMP)_.+")


def look(environ: Mapping[str, str] = os.environ) -> Host:
    """Reads the facts of this machine.

    Raises:
        UserError: when SLURM's variables are incomplete or contradict each other.
    """
    job = find_place(environ)
    quota = cpu_quota(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    limits = (len(os.sched_getaffinity(0)), quota, job.cpus if job else None)
    return Host(
        name=socket.gethostname(),
        cores=min(limit for limit in limits if limit is not None),
        gpus=visible_gpus(environ, physical_gpus()),
        place=job,
        variables={name: value for name, value in environ.items() if _READ.fullmatch(name)},
    )


# ---------------------------------------------------------------- cores and memory


def cpu_quota(groups: str, mount: Path) -> int | None:
    """Whole cores that the cgroups of `groups` (/proc/self/cgroup) allow, at least 1; None without a limit."""
    allowed = [quota for folder in cgroup_folders(groups, mount, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min(allowed))) if allowed else None


def _quota(folder: Path) -> float | None:
    words = text_in(folder / "cpu.max").split()
    words = words or [text_in(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    return int(words[0]) / int(words[1]) if all(word.isdigit() for word in words) else None


def oom_kills() -> int:
    """How often the kernel has killed a process of our cgroup for want of memory; 0 where it does not count."""
    groups = Path("/proc/self/cgroup").read_text()
    for folder in cgroup_folders(groups, Path("/sys/fs/cgroup"), "memory"):
        for name in ("memory.events", "memory.oom_control"):
            if match := re.search(r"^oom_kill (\d+)$", text_in(folder / name), re.MULTILINE):
                return int(match[1])
    return 0


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
    entries = [item.strip() for item in listed.split(",")]
    valid = [entry.startswith(("GPU-", "MIG-")) or (entry.isdigit() and int(entry) < physical) for entry in entries]
    return [*valid, False].index(False)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
