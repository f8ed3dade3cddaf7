"""Trainings whose ranks all compute on one device: on the one GPU that a test machine has, or on the CPU."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from tests.distributed.training import train


def environment(device: str) -> dict[str, str]:
    """What the launcher would set, and what lets NCCL put several ranks on one GPU (2.27 and newer)."""
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_MULTI_RANK_GPU_ENABLE": "1"}


def several_ranks_on_one_gpu() -> str:
    """The backend for it; the script of the checks finds out which one works."""
    return os.environ.get("GPU_TESTS_BACKEND", "gloo")


def place(device: str, backend: str | None = None) -> None:
    """From now on this rank computes on that device, whatever its number; gradients travel by `backend`."""
    from dist_train.parallel import process_group

    if device == "cuda":
        wanted = backend or "nccl"
        process_group._choose_backend = lambda _: wanted  # type: ignore[assignment]
        process_group._choose_device = lambda *_: torch.device("cuda", 0)  # type: ignore[assignment]


def train_on(ranks: Any, device: str, backend: str | None, folder: Path, run: str, *overrides: str) -> int:
    """One session of a run on this rank."""
    place(device, backend)
    return train(ranks, folder, "gpu.yaml", run, *overrides)


def pause(device: str) -> None:
    """For some milliseconds: of the current stream, the host goes on; on a CPU of this thread."""
    if device == "cuda":
        torch.cuda._sleep(20_000_000)
    else:
        time.sleep(0.01)
