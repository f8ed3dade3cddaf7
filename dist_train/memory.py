"""How much memory this process may have: its cgroups' limits, versions 1 and 2, and the machine's; and how it keeps
what it has. No torch here."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Has malloc keep what is freed, as torch's allocator for GPUs does: by default glibc gives the activations of each
    step back to the kernel, which clears the same pages for the next one. Does nothing where the user has set one of
    malloc's own variables, or there is no glibc. See mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of our cgroup where it has a limit below the machine's, else of the machine; in bytes."""

    limit: int
    used: int
    peak: int | None
    """The most that the cgroup has ever used."""
    is_cgroup: bool
    cache: int = 0
    """Of `used`, pages of files that the kernel takes back before anything else."""

    @property
    def left(self) -> int:
        """Bytes that can still be had without swapping."""
        return self.limit - self.used + self.cache


def memory(groups: str | None = None, mount: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> Memory:
    """How much of the memory that we may have is used now."""
    return min(_limits(groups, mount, proc), key=lambda found: found.limit)


def scarcest(groups: str | None = None, mount: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> Memory:
    """The limit that is reached first, by what is left."""
    return min(_limits(groups, mount, proc), key=lambda found: found.left)


def _limits(groups: str | None, mount: Path, proc: Path) -> list[Memory]:
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    facts = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    used = facts["MemTotal"] - facts["MemAvailable"]
    own = (proc / "self" / "cgroup").read_text() if groups is None else groups
    limited = [found for folder in cgroup_folders(own, mount, "memory") if (found := _memory_of(folder))]
    return [Memory(limit=facts["MemTotal"], used=used, peak=None, is_cgroup=False), *limited]


def cgroup_folders(groups: str, mount: Path, controller: str) -> list[Path]:
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


def _memory_of(folder: Path) -> Memory | None:
    """None where the cgroup has no limit."""
    for version in (("max", "current", "peak"), ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes")):
        limit, used, peak = (_number_in(folder / f"memory.{name}") for name in version)
        if limit is not None:
            return Memory(limit=limit, used=used or 0, peak=peak, is_cgroup=True, cache=_cache_of(folder))
    return None


def _cache_of(folder: Path) -> int:
    """Without shared memory, which cannot be taken back, and mapped files: those are the libraries that run."""
    pairs = (line.split() for line in text_in(folder / "memory.stat").splitlines())
    facts = {name: int(value) for name, value in pairs}
    for names in (("total_cache", "total_shmem", "total_mapped_file"), ("file", "shmem", "file_mapped")):
        if names[0] in facts:
            whole, *kept = (facts.get(name, 0) for name in names)
            return max(0, whole - sum(kept))
    return 0


def _number_in(path: Path) -> int | None:
    """None for `max`, and where there is no such file."""
    text = text_in(path).strip()
    return int(text) if text.isdigit() else None


def text_in(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def status_of(process: int | str = "self") -> dict[str, int]:
    """The amounts of /proc/PID/status, such as VmRSS, VmHWM and VmSwap, in bytes; empty for a process that is gone."""
    lines = (line.split() for line in text_in(Path("/proc") / str(process) / "status").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
