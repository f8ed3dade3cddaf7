"""Cores, NUMA nodes and limits of this machine."""

import os
import resource
from pathlib import Path

from dist_train.processor import processor

from .. import scheduler
from ..plan import host
from .finding import Finding, ok, problem, warning

_USUAL_FILES = 1024
"""The usual limit of a session."""
_FILES, _FILES_PER_WORKER = 22, 6
_FILES_PER_RANK = {"gloo": 3, "nccl": 1}
"""A rank cannot train with fewer open files than these: its own, those of each loading process, and a socket to each
other rank for each process group of gloo's. Measured on torch 2.14 (docs/doctor.md)."""


def cores(found: host.Host, *, ranks: int, threads: int) -> Finding:
    """How many cores a training may use, and which limit decides."""
    groups = Path("/proc/self/cgroup").read_text()
    limits = {
        "machine": os.cpu_count() or 1,
        "affinity": len(os.sched_getaffinity(0)),
        "cgroup": host.cpu_quota(groups, Path("/sys/fs/cgroup")),
        scheduler.NAME: found.place.cpus if found.place else None,
    }
    set_by = [f"{name} {limit}" for name, limit in limits.items() if limit is not None and name != "machine"]
    text = f"{found.cores} of {limits['machine']} to use ({', '.join(set_by)})"
    facts = {"usable": found.cores, **limits, "ranks": ranks, "threads_per_rank": threads}
    wanted = ranks * threads
    if wanted > found.cores:
        text += f", for {ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)}"
        return warning("cores", text, "the ranks will take turns: fewer ranks are as fast", **facts)
    return ok("cores", text, **facts)


def numa(root: Path = Path("/")) -> Finding:
    """NUMA nodes, as the kernel lists them."""
    folders = sorted(root.glob("sys/devices/system/node/node[0-9]*"))
    nodes = {folder.name[4:]: (folder / "cpulist").read_text().strip() for folder in folders}
    if not nodes:
        return ok("NUMA", "the kernel lists no nodes: one memory for all cores", nodes={})
    listed = ", ".join(f"{node}: cores {cpus or 'none'}" for node, cpus in nodes.items())
    return ok("NUMA", f"{len(nodes)} node{'s' * (len(nodes) > 1)} ({listed})", nodes=nodes)


def cpu(*, computes: bool, precision: str) -> Finding:
    """The processor, and whether a training of `precision` that computes on it leaves its bf16 instructions unused."""
    found = processor()
    text = f"{found.name or 'the kernel does not say which'}{', with ' * bool(found.bf16)}{', '.join(found.bf16)}"
    if found.bf16 and computes and precision == "fp32":
        text += ": train.precision=bf16 may be faster"
    return ok("CPU", text, name=found.name, bf16=list(found.bf16))


def open_files_limit(*, world_size: int, backend: str, workers: int) -> Finding:
    """Compares the limit of open files with what a rank with `workers` loading processes needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + _FILES_PER_RANK[backend] * world_size + _FILES_PER_WORKER * workers
    facts = {"soft": soft, "hard": hard, "needed": needed}
    text = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at most"
    if soft == resource.RLIM_INFINITY or soft >= max(_USUAL_FILES, needed):
        return ok("open files", text, **facts)
    raised = max(_USUAL_FILES, 2 * needed)
    enough = hard == resource.RLIM_INFINITY or hard >= raised
    advice = f"ulimit -n {raised}" if enough else f"raise the hard limit of {hard} (limits.conf, or the container's)"
    if soft < needed:
        text += f", and each of {world_size} rank{'s' * (world_size > 1)} needs {needed}"
        return problem("open files", text, advice, **facts)
    return warning("open files", f"{text}, which many loading processes or ranks can exceed", advice, **facts)
