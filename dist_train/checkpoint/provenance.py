"""What a result depends on besides the seed and the step: config, torch, machine, data and code, as facts small enough
for every checkpoint's manifest. A resume compares them with its own (checkpoint/resume.py).
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

import dist_train
from dist_train.config.schema import RunConfig
from dist_train.config.trust import powers
from dist_train.data.cache.survey import contents_of
from dist_train.data.datasets import Splits
from dist_train.data.decode import decoder_name

DECODED = ("image_folder", "shards", "huggingface")
"""Data sets whose images are decoded as they are read."""
_ASKING = Lock()
_FORKS = list[bool]()
_PATIENCE_S = 15.0
"""For git to answer twice, before a fork."""
_SHOWN = 10
"""Names of classes that are written out."""


def surroundings(config: RunConfig, splits: Splits, device: torch.device) -> dict[str, Any]:
    """All these facts, as JSON reads them back."""
    return {
        "config": json.loads(config.model_dump_json()),
        "torch": str(torch.__version__),  # a plain str: the process that writes checkpoints has no torch
        "machine": machine(config, device),
        "data": data(splits, config.loader.retry.seconds),
        "code": code(config),
    }


def machine(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What torch chooses its kernels by, and what decodes image files where there are any."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    found = {"device": f"{device.type} {name}", "threads": torch.get_num_threads()}
    found |= gpu_libraries() if device.type == "cuda" else {}
    return (
        {**found, "decoder": decoder_name()} if {config.data.name, config.evaluated_data.name} & {*DECODED} else found
    )


def gpu_libraries(driver: Path = Path("/proc/driver/nvidia/version")) -> dict[str, str]:
    """What a GPU's kernels are chosen by: versions and switches."""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", driver.read_text()) if driver.exists() else None
    tf32 = {
        "matmul": torch.backends.cuda.matmul.fp32_precision == "tf32",
        "convolution": torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
    }
    return {
        "driver": match[0] if match else "unknown",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none",
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "default"),
        "tf32": ", ".join(name for name, on in tf32.items() if on) or "off",
    }


def data(splits: Splits, retry_s: float = 0.0) -> dict[str, Any]:
    """The classes, and of each split the number of samples, its `fingerprint()`, where it has one, and a digest of the
    bytes of all its files, where data.cache.check is `content`."""
    found: dict[str, Any] = {}
    contents = contents_of(splits, retry_s)
    if (names := splits.classes) is not None:
        many = f"{len(names)}, {_digest(name.encode() for name in names)}"
        found["classes"] = ", ".join(names) if len(names) <= _SHOWN else many
    for name in ("train", "evaluation", "test"):
        if (dataset := getattr(splits, name)) is not None:
            found[name] = {"samples": len(dataset)}
            if callable(fingerprint := getattr(dataset, "fingerprint", None)):
                found[name]["content"] = str(fingerprint())
            if name in contents:
                found[name]["bytes"] = contents[name]
    return found


def code(config: RunConfig) -> dict[str, str]:
    """Digests of this package and of the modules that the config names, and the commit that git knows."""
    package = Path(str(dist_train.__file__)).parent
    others = {"launch", "examples"}
    ours = sorted(path for path in package.rglob("*.py") if not others & set(path.relative_to(package).parts))
    found = {"dist_train": _digest(part for p in ours for part in (str(p.relative_to(package)).encode(), _bytes(p)))}
    for power in powers(config):
        module = power.what.partition(":")[0]
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            found[module] = _digest([_bytes(Path(spec.origin))])
    return found if (known := commit()) is None else {**found, "commit": known}


def ask_for_commit() -> None:
    """Asks git in a thread. In a large working directory that takes seconds, in which other things can be done."""
    Thread(target=commit, name="git", daemon=True).start()


def _before_fork() -> None:
    """A fork waits for git's answer: the new process would keep the pipes open whose end the one that asks waits
    for."""
    _FORKS.append(_ASKING.acquire(timeout=_PATIENCE_S))


def _after_fork() -> None:
    if _FORKS and _FORKS.pop():
        _ASKING.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def commit() -> str | None:
    """The code around the working directory, as git knows it: `1c496ce3a2b1`, or `1c496ce3a2b1-dirty-<digest>`.

    Asked once: what the process has imported does not change when the files do.
    """
    with _ASKING:
        return _commit()


@cache
def _commit() -> str | None:
    described = _git("describe", "--always", "--dirty", "--abbrev=12")
    if described is None or not described.endswith("-dirty"):
        return described
    changes = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD")
    return described if changes is None else f"{described}-{_digest([changes.encode()])}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # built in, or inside an archive
        return b""


def _digest(parts: Iterable[bytes]) -> str:
    """The first 12 digits of a SHA-256: enough to tell two versions apart."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d " % len(part))
        found.update(part)
    return found.hexdigest()[:12]
