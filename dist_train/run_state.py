"""The run directory, as rank 0 keeps it: the resolved config, what it ran on, and how far it has come."""

import json
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dist_train.checkpoint.state import TrainState
from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.files import write_atomic
from dist_train.rundir.lease import Fence
from dist_train.rundir.reading import numbered
from dist_train.rundir.runs import point_latest_at
from dist_train.rundir.strict_json import to_json

CONFIG = "config.yaml"
STATE = "state.json"
NO_GPU = {"device": "cpu"}


def generation(run_dir: Path) -> int:
    """Which life of the process group this is, as the launcher counts them; 0 without it."""
    return max((int(path.name) for path in numbered(run_dir / "generations")), default=0)


class RunRecord(Protocol):
    """How a run tells the world outside how far it is."""

    def begin(self, config: RunConfig, total_steps: int) -> None: ...

    def begun(self) -> None: ...

    def update(self, status: str, state: TrainState, signal: str | None = None) -> None: ...


class NoRecord:
    """The other ranks'."""

    def begin(self, config: RunConfig, total_steps: int) -> None:
        pass

    def begun(self) -> None:
        pass

    def update(self, status: str, state: TrainState, signal: str | None = None) -> None:
        pass


class DirectoryRecord:
    """Rank 0's: config.yaml, environment.json and state.json."""

    def __init__(self, run_dir: Path, fence: Fence, ranks: Ranks, generation: int) -> None:
        self._run_dir = run_dir
        self._fence = fence
        self._ranks = ranks
        self._generation = generation
        self._facts: dict[str, Any] = {}
        self._home = Path()
        """Where `latest` is kept for runs of this name."""

    def begin(self, config: RunConfig, total_steps: int) -> None:
        """Writes what this life runs with.

        Raises:
            UserError: (exit 14) when the disk refuses: the run could not be resumed. (exit 3) as `update` does.
        """
        self._fence.check()
        self._home = Path(config.run_root) / config.name
        self._facts = {"global_batch": config.batch.global_size, "metric": config.eval.best, "total_steps": total_steps}
        facts = {**versions(), "world_size": self._ranks.world_size, "nodes": self._ranks.nodes, "pid": os.getpid()}
        try:
            write_atomic(self._run_dir / CONFIG, to_yaml(config))
            write_atomic(self._run_dir / "environment.json", json.dumps(facts, indent=1))
        except OSError as error:
            raise UserError(f"cannot write into {self._run_dir}: {error.strerror}", ExitCode.CHECKPOINT_IO) from None

    def begun(self) -> None:
        """The first step is done: `latest` is this run. A start that comes to nothing leaves it alone."""
        if self._run_dir.resolve().parent == self._home.resolve():
            point_latest_at(self._run_dir.resolve())

    def update(self, status: str, state: TrainState, signal: str | None = None) -> None:
        """Replaces state.json.

        Raises:
            UserError: (exit 3) when the run directory belongs to another life now.
        """
        best = None
        if state.best_step is not None:
            best = {"metric": self._facts["metric"], "value": state.best_value, "step": state.best_step}
        content = {
            "status": status,
            "step": state.step,
            "total_steps": self._facts["total_steps"],
            "samples_seen": state.samples_seen(self._facts["global_batch"]),
            "best": best,
            "metrics": state.metrics,
            "world_size": self._ranks.world_size,
            "generation": self._generation,
            "signal": signal,
            "updated": time.time(),
        }
        # A full disk must not end the training for it: the checkpoint has all that counts.
        with suppress(OSError):
            self._fence.check()
            write_atomic(self._run_dir / STATE, to_json(content, indent=1))


def versions() -> dict[str, Any]:
    """What the numbers could depend on besides config and data; no environment variables, which hold secrets."""
    import torch

    from dist_train.checkpoint.provenance import commit, gpu_libraries

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **({"device": torch.cuda.get_device_name(), **gpu_libraries()} if torch.cuda.is_available() else NO_GPU),
        "host": platform.node(),
        "platform": platform.platform(),
        "commit": commit(),
    }
