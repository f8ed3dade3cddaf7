"""Compares NVIDIA's driver with the CUDA that torch was built for."""

import importlib.util
import re
from pathlib import Path

from dist_train.config.replies import TorchFacts

from .finding import Finding, ok, problem

MINIMUM_DRIVER = {11: 450, 12: 525, 13: 580}
"""For each major version of CUDA the oldest driver branch that works. NVIDIA, "CUDA Compatibility", Minor Version
Compatibility, table 1: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""
_DISPLAY = "0x03"
"""PCI class of graphics and 3D controllers."""
_NVIDIA = "0x10de"


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of the loaded kernel module, proprietary or open; None if there is none."""
    text = _read(root / "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def cards(root: Path = Path("/")) -> int:
    """NVIDIA GPUs on the PCI bus, with a driver or without."""
    devices = root.glob("sys/bus/pci/devices/*")
    return sum(_read(one / "vendor") == _NVIDIA and _read(one / "class").startswith(_DISPLAY) for one in devices)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def cuda_of_torch() -> str | None:
    """The CUDA that torch was built for, read from its files without importing it; None for a build without."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    text = _read(Path(spec.submodule_search_locations[0]) / "version.py")
    found = re.search(r"^cuda\b[^=\n]*= '([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def needed_driver(cuda: str | None) -> int | None:
    """The oldest driver branch for a CUDA version; None if it is not in the table."""
    return MINIMUM_DRIVER.get(int(cuda.split(".")[0])) if cuda else None


def is_too_old(driver: str | None, cuda: str | None) -> bool:
    """Whether the table says so. A forward-compatibility package (cuda-compat) can make it work nevertheless."""
    needed = needed_driver(cuda)
    return driver is not None and needed is not None and int(driver.split(".")[0]) < needed


def check_driver(torch: TorchFacts, *, driver: str | None, cards: int, gpus: int) -> Finding:
    """Whether torch can use the GPUs that are here.

    Args:
        torch: what software.ask_torch found.
        driver: the loaded kernel module's version.
        cards: GPUs on the PCI bus.
        gpus: those that CUDA_VISIBLE_DEVICES leaves.
    """
    cuda, sees = torch.cuda, torch.gpus
    facts = {"driver": driver, "cuda": cuda, "needed": needed_driver(cuda), "cards": cards, "torch_sees": len(sees)}
    build = f"torch {torch.torch} is built for CUDA {cuda}" if cuda else f"torch {torch.torch}"
    if sees:
        return ok("driver", f"{driver or 'in use'}; {build}", **facts)
    if not (driver or cards):
        return ok("driver", f"no NVIDIA card or driver here; {build}, and computes on the CPU", **facts)
    if cuda is None:
        text = f"{build} is a build without CUDA, and there are GPUs here"
        return problem("driver", text, "install a CUDA build of torch (pytorch.org/get-started)", **facts)
    if driver is None:
        text = f"there is an NVIDIA card, and no driver is loaded for it; {build} sees no GPU"
        advice = "install NVIDIA's driver, or pass the GPUs into the container (--gpus all)"
        return problem("driver", text, advice, **facts)
    if is_too_old(driver, cuda):
        text = f"{driver} is too old: {build}, which needs {facts['needed']} or newer, and so sees no GPU"
        advice = f"update the driver, or install a torch that is built for {_newest_cuda(driver)}"
        return problem("driver", text, advice, **facts)
    if gpus == 0:
        return ok("driver", f"{driver}; CUDA_VISIBLE_DEVICES leaves out all GPUs", **facts)
    why = f": {torch.why_no_gpu}" if torch.why_no_gpu else ""
    text = f"{driver} is new enough for CUDA {cuda}, but torch sees no GPU{why}"
    return problem("driver", text, "does nvidia-smi work?", **facts)


def _newest_cuda(driver: str) -> str:
    branch = int(driver.split(".")[0])
    works = [major for major, needed in MINIMUM_DRIVER.items() if needed <= branch]
    return f"CUDA {max(works)}" if works else "an older CUDA"
