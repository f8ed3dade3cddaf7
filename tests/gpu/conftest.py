"""Every test here runs on a GPU where there is one, and its CPU variant everywhere: the same body, so that the GPU's is
known to run but for what only a GPU can show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import rank_pool

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.long), pytest.param("cuda", marks=NO_GPU)])
def launched_on(request: pytest.FixtureRequest) -> str:
    """For those that start the launcher, which the CPU variants of other folders do often enough."""
    return request.param


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """rank_pool.run_ranks: ranks are forked from a server that has no CUDA context."""
    rank_pool.start_server()
    return rank_pool.run_ranks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    return tmp_path


CONFIG = """
name: gpu
data: {name: synthetic, shape: [3, 16, 16], size: 512, eval_size: 100}
model: {name: cnn, width: 8, dropout: 0.1}
augment: [{name: random_crop}, {name: horizontal_flip}]
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
batch: {microbatches: 7, global_size: 56}
train: {duration: 6 steps, clip_norm: 0.5}
eval: {every: 3 steps}
distributed: {bucket_mb: 0.02}
tracking: {samples: true, wandb: {mode: disabled}}
"""
