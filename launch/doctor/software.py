"""Versions, and what only torch and wandb can report, each in its own process."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from dist_train.config.replies import TorchFacts, WandbFacts

from ..children import ask
from .finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

_ANSWER_TIMEOUT_S = 120
"""For a first import of torch from a cold or shared disk."""
_PACKAGES = ("torch", "torchvision", "wandb", "dist-train")


def ask_torch() -> TorchFacts:
    """Versions, devices and backends as torch sees them, or `problem`."""
    return ask(TorchFacts, "dist_train.commands.torch_facts", timeout_s=_ANSWER_TIMEOUT_S)


def check_versions(torch: TorchFacts) -> Finding:
    """What is installed, and whether torch and torchvision can be imported together."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    found["torch"] = torch.torch or found["torch"]
    text = ", ".join(f"{name} {version or '(not installed)'}" for name, version in found.items())
    for name, why in (("torch", torch.problem), ("torchvision", torch.torchvision_problem)):
        if why:
            advice = "reinstall torch and torchvision together (make setup)"
            return problem("versions", f"{name} cannot be imported: {why}", advice, **found)
    return ok("versions", text, **found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return None


def devices(torch: TorchFacts, *, visible: int) -> Finding:
    """The devices that ranks would compute on."""
    names = torch.gpus
    if not names:
        return ok("devices", "no GPU for torch: ranks compute on the CPU", gpus=[])
    kinds = {name: names.count(name) for name in dict.fromkeys(names)}
    text = ", ".join(f"{count} × {name}" for name, count in kinds.items())
    facts = {"gpus": names, "visible": visible}
    if len(kinds) > 1:
        advice = "the slowest sets the pace: CUDA_VISIBLE_DEVICES chooses"
        return warning("devices", f"different kinds: {text}", advice, **facts)
    return ok("devices", text, **facts)


def backends(torch: TorchFacts) -> Finding:
    """The backends through which ranks can communicate."""
    found = torch.backends
    text = ", ".join(f"{name} {version}".strip() for name, version in found.items()) or "none"
    missing = [name for name in ("gloo", "nccl") if name not in found and (name == "gloo" or torch.gpus)]
    if missing:
        advice = "install torch from pytorch.org, whose builds have both"
        return problem("backends", f"{text}: {missing[0]} is missing", advice, backends=found)
    return ok("backends", text, backends=found)


def tracking(config: "RunConfig") -> Finding:
    """What W&B would do. Reports whether there are credentials, and never reveals them."""
    module = "dist_train.commands.wandb_facts"
    answer = ask(WandbFacts, module, config.tracking.wandb.mode, timeout_s=_ANSWER_TIMEOUT_S)
    if answer.problem:
        advice = "the training goes on without it; tracking.wandb.mode=disabled says nothing of it"
        return warning("W&B", f"wandb does not answer: {answer.problem}", advice)
    mode, facts = answer.mode, {"mode": answer.mode, "credentials": answer.credentials}
    if mode == "online" and not answer.credentials:
        text = "online, and there are no credentials: runs are recorded offline"
        return warning("W&B", text, "wandb login, or tracking.wandb.mode=offline", **facts)
    credentials = "credentials found; they were not tried"
    if not answer.credentials:
        credentials = "no credentials, so runs are recorded offline"
    return ok("W&B", mode if mode in ("disabled", "offline") else f"{mode}: {credentials}", **facts)
