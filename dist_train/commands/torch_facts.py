"""`python -m dist_train.commands.torch_facts`: what torch sees on this machine, as JSON. For `dist-train doctor`."""

import torch
import torch.distributed as dist

from dist_train.config.replies import TorchFacts


def facts() -> TorchFacts:
    """Versions, names of GPUs or why there are none, and backends with their versions."""
    found = TorchFacts(torch=str(torch.__version__), cuda=torch.version.cuda)
    if torch.cuda.is_available():
        found.gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    elif torch.version.cuda:
        found.why_no_gpu = _why_no_gpu()
    if dist.is_available() and dist.is_gloo_available():
        found.backends["gloo"] = ""
    if dist.is_available() and dist.is_nccl_available():
        found.backends["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    try:
        import torchvision  # noqa: F401 - the import shows whether it fits this torch
    except Exception as error:
        found.torchvision_problem = f"{type(error).__name__}: {error}"
    return found


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return " ".join(str(error).split())
    return "it says nothing"


if __name__ == "__main__":
    facts().send()
