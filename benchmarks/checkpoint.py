"""How long does a save hold the training up? Against a plain memory copy of the same tensors, and torch.save.

    python -m benchmarks.checkpoint [--parameters N …] [--momentum] [--saves N] [--threads N] [--folder DIR] [--json]

Each round does every way once, in changing order, with its memory warm and the disk idle; the result are the medians
over the rounds, and their ratios. What is timed is for how long the training stands still; a background save is waited
for after that, and `durable_s` has the time until its checkpoint was on disk.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train.checkpoint.manager import CheckpointManager
from dist_train.checkpoint.optimizer_state import OptimizerState
from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import CheckpointStore
from dist_train.learner import Learner

WIDTH = 1000
"""Parameters lie in matrices of WIDTH rows and columns, and one smaller for the rest."""
WAYS = ("copy", "background", "foreground", "torch_save", "torch_save_fsync")
TARGET = 1.3
"""A background save may hold the training up for this many plain copies."""


def build(parameters: int, momentum: bool) -> Learner:
    """A state of `parameters` fp32 numbers, and as many again with momentum."""
    shapes = [(WIDTH, WIDTH)] * (parameters // WIDTH**2)
    shapes += [(rest,)] if (rest := parameters % WIDTH**2) else []
    model = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if momentum:
        for parameter in model:
            optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = OptimizerState(optimizer, model)
    parts = {"constants": {}, "optimizer": optimizer, "optimizer_state": state, "scaler": scaler, "ema": None}
    return Learner(model=model, task=None, shape=None, classes=None, **parts)


class Bench:
    """One state, and every way to save it. Takes four times its memory, and five times its room in `folder`."""

    def __init__(self, learner: Learner, folder: Path) -> None:
        self._learner, self._folder = learner, folder
        self._tensors = [
            t for part in learner.state_tensors(TrainState()).tensor_files().values() for t in part.values()
        ]
        self._copies = [torch.zeros_like(tensor) for tensor in self._tensors]
        self._managers = {way: self._manager(way) for way in ("background", "foreground")}
        self._state = TrainState()
        self.durable: list[float] = []

    @property
    def size(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

    def time(self, way: str) -> float:
        """Seconds that the training would stand still."""
        self._state.step += 1
        act, after = getattr(self, f"_{way}")()
        os.sync()
        begin = time.perf_counter()
        act()
        seconds = time.perf_counter() - begin
        if way == "background":
            self._managers[way].drain()
            self.durable.append(time.perf_counter() - begin)
        after()
        return seconds

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()

    def _manager(self, way: str) -> CheckpointManager:
        store, facts = CheckpointStore(self._folder / way, keep=2), {"global_batch": 1, "world_size": 1}
        capture, background = self._learner.state_tensors, way == "background"
        return CheckpointManager(store, capture, facts, _fail, lambda state: None, background=background)

    def _copy(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        def act() -> None:
            for copy, tensor in zip(self._copies, self._tensors, strict=True):
                copy.copy_(tensor)

        return torch.no_grad()(act), lambda: None

    def _background(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return lambda: self._managers["background"].save(self._state), lambda: None

    def _foreground(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return lambda: self._managers["foreground"].save(self._state), lambda: None

    def _torch_save(self, sync: bool = False) -> tuple[Callable[[], Any], Callable[[], Any]]:
        path = self._folder / "state.pt"

        def act() -> None:
            state = {"model": self._learner.model.state_dict(), "optimizer": self._learner.optimizer.state_dict()}
            with path.open("wb") as file:
                torch.save(state, file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())

        return act, path.unlink

    def _torch_save_fsync(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return self._torch_save(sync=True)


def _fail(line: str) -> None:
    raise RuntimeError(line)


def measure(parameters: int, momentum: bool, saves: int, folder: Path) -> dict[str, Any]:
    """Seconds by way of saving, medians over `saves` rounds, after one that warms up."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    bench = Bench(build(parameters, momentum), folder)
    try:
        for number in range(saves + 1):
            turn = number % len(WAYS)
            for way in (*WAYS[turn:], *WAYS[:turn]):
                seconds[way].append(bench.time(way))
            print(f"{parameters:,} parameters, round {number} of {saves}", file=sys.stderr)
    finally:
        bench.close()
    medians = {way: statistics.median(values[1:]) for way, values in seconds.items()}
    return {
        "parameters": parameters,
        "momentum": momentum,
        "bytes": bench.size,
        "threads": torch.get_num_threads(),
        "saves": saves,
        "seconds": medians,
        "durable_s": statistics.median(bench.durable[1:]),
        "first_background_s": seconds["background"][0],
        "ratio_to_copy": {way: medians[way] / medians["copy"] for way in WAYS},
    }


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"{result['parameters']:,} parameters{' with momentum' if result['momentum'] else ''}, "
        f"{result['bytes'] / 1e6:,.1f} MB, {result['threads']} threads, medians of {result['saves']}"
    ]
    for way in WAYS:
        aim = f", the aim is {TARGET}" if way == "background" else ""
        name = way.replace("torch_save", "torch.save").replace("_", " + ")
        lines.append(
            f"  {name:<19} {1e3 * result['seconds'][way]:9.1f} ms  {result['ratio_to_copy'][way]:7.2f} copies{aim}"
        )
    lines.append(
        f"  in the background durable after {result['durable_s']:.2f} s; the first save, which makes the room for "
        f"all, took {1e3 * result['first_background_s']:.0f} ms"
    )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("--parameters", type=float, nargs="+", default=[100e6], metavar="N", help="(default 100e6)")
    parser.add_argument("--momentum", action="store_true", help="save an optimizer's momentum too: twice the bytes")
    parser.add_argument("--saves", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all ways (default 1, as a rank has)")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to write to (default: here)")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = []
    for parameters in args.parameters:
        with tempfile.TemporaryDirectory(prefix="dist-train-bench-", dir=args.folder) as folder:
            results.append(measure(int(parameters), args.momentum, args.saves, Path(folder)))
    print(json.dumps(results, indent=2) if args.json else "\n".join(map(_text, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
