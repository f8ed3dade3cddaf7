"""The run directory, as rank 0 keeps it: the resolved config, what it ran on, and how far it has come."""

import json
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train.checkpoint.state import TrainState
from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from dist_train.errors import DiskError, telling_why
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.files import write_atomic
from dist_train.rundir.layout import RunDir
from dist_train.rundir.lease import Fence
from dist_train.rundir.runs import point_latest_at
from dist_train.rundir.strict_json import to_json

NO_GPU = {"device": "cpu"}


class NullRunRecord:
    """Records how far a run is, for the launcher and other programs; only rank 0 does so."""

    def begin(self) -> None:
        """Writes what this session runs with.

        Raises:
            UserError: (exit 14) when the disk refuses: the run could not be resumed. (exit 3) as `update` does.
        """

    def first_step_done(self) -> None:
        """From here on `latest` is this run. A start that comes to nothing leaves it alone."""

    def update(self, status: str, state: TrainState, signal: str | None = None) -> None:
        """Replaces state.json.

        Raises:
            UserError: (exit 3) when the run directory belongs to another session now.
        """


class RunRecord(NullRunRecord):
    """Rank 0's: config.yaml, environment.json and state.json."""

    def __init__(
        self, run_dir: Path, fence: Fence, config: RunConfig, ranks: Ranks, generation: int, total_steps: int
    ) -> None:
        self._run_dir, self._fence, self._config = run_dir, fence, config
        self._ranks, self._generation, self._total_steps = ranks, generation, total_steps

    def begin(self) -> None:
        self._fence.check()
        ranks = self._ranks
        facts = {**environment_facts(), "world_size": ranks.world_size, "nodes": ranks.nodes, "pid": os.getpid()}
        with telling_why(f"cannot write into {self._run_dir}", DiskError):
            _replace(RunDir(self._run_dir).config, to_yaml(self._config))
            _replace(RunDir(self._run_dir).environment, json.dumps(facts, indent=1))

    def first_step_done(self) -> None:
        run_dir, home = self._run_dir.resolve(), Path(self._config.run_root) / self._config.name
        if run_dir.parent == home.resolve():
            point_latest_at(run_dir)

    def update(self, status: str, state: TrainState, signal: str | None = None) -> None:
        best = state.best(self._config.best)
        content = {
            "status": status,
            "step": state.step,
            "total_steps": self._total_steps,
            "samples_seen": state.samples_seen(self._config.batch.global_size),
            "best": best and vars(best),
            "metrics": state.metrics,
            "world_size": self._ranks.world_size,
            "generation": self._generation,
            "signal": signal,
            "updated": time.time(),
        }
        # A full disk must not end the training for it: the checkpoint has all that counts.
        with suppress(OSError):
            self._fence.check()
            write_atomic(RunDir(self._run_dir).state, to_json(content, indent=1))


def _replace(path: Path, content: str) -> None:
    """Writes a file. A run that goes on with the file that it had needs no room for another one."""
    try:
        write_atomic(path, content)
    except OSError:
        if not path.is_file():
            raise


def environment_facts() -> dict[str, Any]:
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
