"""Versions, and what only torch and wandb can tell, each from a process of its own."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from launch.commands.common import home
from launch.doctor import gpu
from launch.doctor.finding import Finding

_SECONDS = 120
"""For a first import of torch from a cold or shared disk."""
_PACKAGES = ("torch", "torchvision", "wandb", "dist-train")


def ask(*words: str) -> dict[str, Any]:
    """The JSON that `python -P -m WORDS` prints; `problem` says why there is none."""
    path = os.pathsep.join([home(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-P", "-m", *words]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, "PYTHONPATH": path}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"no answer within {_SECONDS} s" if not isinstance(error, OSError) else str(error)}
    said = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    try:
        return json.loads(answer.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"problem": said[-1]}


def ask_torch() -> dict[str, Any]:
    """Versions, devices and backends as torch sees them, or `problem`."""
    return ask("dist_train.commands.torch_facts")


def versions(torch: dict[str, Any]) -> Finding:
    """What is installed, and whether torch and torchvision can be imported together."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    found["torch"] = torch.get("torch", found["torch"])
    text = ", ".join(f"{name} {version or '(not installed)'}" for name, version in found.items())
    failed = torch.get("problem") or torch.get("torchvision_problem")
    if failed:
        name = "torch" if torch.get("problem") else "torchvision"
        advice = "reinstall torch and torchvision together (make setup)"
        text = f"{name} cannot be imported: {failed}"
        return Finding(topic="versions", level="problem", text=text, advice=advice, facts=found)
    return Finding(topic="versions", text=text, facts=found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return None


def devices(torch: dict[str, Any], *, visible: int) -> Finding:
    """What a rank would compute on."""
    names = torch.get("gpus", [])
    if not names:
        return Finding(topic="devices", text="no GPU for torch: ranks compute on the CPU", facts={"gpus": []})
    kinds = {name: names.count(name) for name in dict.fromkeys(names)}
    text = ", ".join(f"{count} × {name}" for name, count in kinds.items())
    facts = {"gpus": names, "visible": visible}
    if len(kinds) > 1:
        advice = "the slowest sets the pace: CUDA_VISIBLE_DEVICES chooses"
        return Finding(topic="devices", level="warning", text=f"different kinds: {text}", advice=advice, facts=facts)
    return Finding(topic="devices", text=text, facts=facts)


def driver(torch: dict[str, Any], *, visible: int) -> Finding:
    """The driver against the torch build."""
    return gpu.judge(torch, driver=gpu.driver_version(), cards=gpu.cards(), gpus=visible)


def backends(torch: dict[str, Any]) -> Finding:
    """How ranks can talk to each other."""
    found = torch.get("backends", {})
    text = ", ".join(f"{name} {version}".strip() for name, version in found.items()) or "none"
    facts = {"backends": found}
    if "gloo" not in found or (torch.get("gpus") and "nccl" not in found):
        missing = "gloo" if "gloo" not in found else "nccl"
        advice = "install torch from pytorch.org, whose builds have both"
        return Finding(
            topic="backends", level="problem", text=f"{text}: {missing} is missing", advice=advice, facts=facts
        )
    return Finding(topic="backends", text=text, facts=facts)


def tracking(config: Any) -> Finding:
    """What W&B would do. Says whether there are credentials, and never anything of them."""
    answer = ask("dist_train.commands.wandb_facts", config.tracking.wandb.mode)
    if "problem" in answer:
        text = f"wandb does not answer: {answer['problem']}"
        advice = "the training goes on without it; tracking.wandb.mode=disabled says nothing of it"
        return Finding(topic="W&B", level="warning", text=text, advice=advice)
    mode, credentials = answer["mode"], answer["credentials"]
    facts = {"mode": mode, "credentials": credentials}
    if mode in ("disabled", "offline"):
        return Finding(topic="W&B", text=mode, facts=facts)
    if credentials:
        return Finding(topic="W&B", text=f"{mode}: credentials found; they were not tried", facts=facts)
    if mode == "auto":
        return Finding(topic="W&B", text="auto: no credentials, so runs are recorded offline", facts=facts)
    advice = "wandb login, or tracking.wandb.mode=offline"
    text = "online, and there are no credentials: runs are recorded offline"
    return Finding(topic="W&B", level="warning", text=text, advice=advice, facts=facts)
