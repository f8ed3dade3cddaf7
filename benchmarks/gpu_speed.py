"""One row of benchmarks/gpu_speed.sh: how fast one process trains, and what a step asks of the device.

    python -m benchmarks.gpu_speed ours CONFIG [a.b=c …] [--steps 20] [--tokens FOLDER]
    python -m benchmarks.gpu_speed plain --images 224 --batch 128 [--steps 20]

`ours` is the real loop with everything around it, but for evaluations and saves. `plain` is ResNet-50 by hand, with
DistributedDataParallel, autocast and channels_last, on the same synthetic images. Steps are timed after a few to warm
up; then a few more are traced: kernels launched, and waits of the host for the device, in each.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from dist_train.checkpoint.manager import NullCheckpointManager
from dist_train.checkpoint.state import TrainState
from dist_train.config.schema import Gpt, Synthetic
from dist_train.config.source import load
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import StopFlag
from dist_train.data import datasets
from dist_train.data.datasets.synthetic import SyntheticImages
from dist_train.data.loader import train_sampler
from dist_train.learner import build_learner
from dist_train.loop import train
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.tracking.tracker import NullTracker
from dist_train.trainer import Trainer
from dist_train.worker import set_deterministic

TRACED = 3
PEAK = 989e12
"""Multiplications and additions a second of an H100 or H200 in bf16, without sparsity (NVIDIA's data sheets)."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Clock(NullTracker):
    """Is told of every step; times those in the middle, traces the last."""

    def __init__(self, device: torch.device, warm_up: int, steps: int) -> None:
        self._device, self._warm_up, self._steps, self.seconds = device, warm_up, steps, 0.0
        self._trace = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()])
        self.launches = self.waits = 0.0

    @property
    def last(self) -> int:
        return self._warm_up + self._steps + TRACED

    def tick(self, step: int) -> None:
        if step == self._warm_up:
            self._wait()
            self.seconds = -time.perf_counter()
        elif step == self._warm_up + self._steps:
            self._wait()
            self.seconds += time.perf_counter()
            self._trace.start()
        elif step == self.last:
            self._trace.stop()
            counts = {event.key: event.count for event in self._trace.key_averages()}
            self.launches = sum(n for name, n in counts.items() if "LaunchKernel" in name) / TRACED
            self.waits = sum(counts.get(name, 0) for name in WAITS) / TRACED

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def row(self, batch: int, *more: str) -> str:
        """Of `batch` samples a step."""
        on_gpu = self._device.type == "cuda"
        memory = (
            torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        rate = batch * self._steps / self.seconds
        asked = f"{self.launches:,.0f} launches, {self.waits:.1f} waits a step, " if on_gpu else ""
        return ", ".join([f"{rate:,.1f} samples/s, {asked}{memory / 1e9:.2f} GB at the most", *(text for text in more)])


def ours(config_path: str, overrides: list[str], warm_up: int, steps: int, tokens: Path | None) -> str:
    if tokens is not None:
        write_tokens(tokens)
    config = load(config_path, overrides)
    set_deterministic(config)
    with ProcessGroup(Ranks.from_environment(), config.distributed) as group:
        splits = datasets.build_all(config)
        of_data = train_sampler(config, splits.train, group.ranks).steps_per_epoch
        clock, never = Clock(group.device, warm_up, steps), 10**9
        due = Due(
            log_every=10, evaluate_every=never, save_every=never, steps_per_epoch=of_data, total_steps=never,
            last_step=clock.last,
        )  # fmt: skip
        learner = build_learner(config, splits, group.device)
        parts = (Agreement(group, StopFlag()), clock, NullCheckpointManager())
        trainer = Trainer(config, group, splits, learner, due, *parts)
        try:
            train(trainer, TrainState())
        finally:
            trainer.parallel.close()
        batch = config.batch.global_size
        a_step = clock.seconds / steps
        more = [f"{of_data * a_step:.2f} s an epoch of {len(splits.train):,}"]
        if isinstance(config.model, Gpt) and splits.tokens:
            speed = batch * splits.tokens / a_step
            # 6 for each parameter and token, and the attention's products (Chowdhery et al., PaLM, 2022, appendix B).
            each = 6 * sum(p.numel() for p in learner.model.parameters())
            each += 12 * config.model.layers * config.model.width * splits.tokens
            more = [f"{speed:,.0f} tokens/s, {100 * speed * each / PEAK:.1f} % of an H200's peak"]
        return clock.row(batch, *more)


def write_tokens(folder: Path) -> None:
    """Tokens at random: the speed does not depend on them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.bin", 4_000_000), ("val.bin", 20_000)):
        np.random.default_rng(0).integers(0, 50_000, count).astype(np.uint16).tofile(folder / name)


def plain(images: int, batch: int, warm_up: int, steps: int) -> str:
    import torchvision

    cuda = torch.cuda.is_available()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    dist.init_process_group("nccl" if cuda else "gloo", rank=0, world_size=1, store=dist.HashStore())
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    data = SyntheticImages(Synthetic(shape=[3, images, images], classes=1000), 0, 10_000)
    torch.backends.cudnn.benchmark = True
    inner = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    model = DistributedDataParallel(inner, device_ids=[device] if cuda else None, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    clock = Clock(device, warm_up, steps)
    order = (np.random.default_rng(step).integers(0, len(data), batch) for step in range(clock.last))
    fetch: Callable[[np.ndarray], object] = data.__getitems__
    loader = DataLoader(
        _Whole(fetch),
        batch_sampler=order,
        num_workers=4,
        collate_fn=lambda pair: pair,
        pin_memory=cuda,  # type: ignore[arg-type]
    )
    for step, (inputs, targets) in enumerate(loader, 1):
        x = inputs.to(device, non_blocking=True).float().div_(255).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), targets.to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
        clock.tick(step)
    dist.destroy_process_group()
    return clock.row(batch)


class _Whole(torch.utils.data.Dataset[object]):
    """Gives the loader a whole batch at a time."""

    def __init__(self, fetch: Callable[[np.ndarray], object]) -> None:
        self.__getitems__ = fetch

    def __getitem__(self, index: int) -> object:
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "plain"))
    parser.add_argument("config", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--warm-up", type=int, default=8, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--images", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_intermixed_args()
    if args.side == "plain":
        print(plain(args.images, args.batch, args.warm_up, args.steps))
    else:
        print(ours(args.config, args.overrides, args.warm_up, args.steps, args.tokens))


if __name__ == "__main__":
    main()
