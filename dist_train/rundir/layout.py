"""Where a run keeps what: every path of a run directory, derived here and nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.reading import numbered

FIRST_NODE = "node0"


@dataclass(frozen=True)
class GenerationDir:
    """RUN/generations/NUMBER: one start of the process group."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def start(self) -> Path:
        """The name of this start, where all nodes of a job know one."""
        return self.path / "start.json"

    @property
    def nodes(self) -> Path:
        """A file for each node: its launcher."""
        return self.path / "nodes"

    @property
    def ranks(self) -> Path:
        """A file for each rank that has begun."""
        return self.path / "ranks"

    @property
    def errors(self) -> Path:
        """A file for each rank that ended with an exception."""
        return self.path / "errors"

    @property
    def quiet(self) -> Path:
        """A file for each node whose ranks are past their deadlines."""
        return self.path / "quiet"

    @property
    def evidence(self) -> Path:
        """A file for each node: what it knows of its ranks, once all are quiet."""
        return self.quiet / "ranks"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks"

    @property
    def record(self) -> Path:
        """What torch's @record decorator writes."""
        return self.path / "record"

    def node(self, name: str) -> Path:
        return self.nodes / f"{name}.json"

    def heartbeat(self, rank: int) -> Path:
        """The page that the rank shares with the watchdog."""
        return self.path / "heartbeats" / f"rank{rank}"

    def stack(self, rank: int) -> Path:
        return self.stacks / f"rank{rank}.txt"

    def agent(self, node: str) -> Path:
        """How the node's agent saw its ranks end."""
        return self.path / f"agent{suffix(node)}.json"

    def verdict(self, node: str) -> Path:
        return self.path / f"verdict{suffix(node)}.json"

    def verdicts(self) -> list[Path]:
        """All nodes', the first node's in front."""
        return sorted(self.path.glob("verdict*.json"), key=lambda path: (path.name != "verdict.json", path.name))

    def make(self) -> None:
        for folder in (self.nodes, self.ranks, self.errors):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class RunDir:
    """A run directory. It need not be there."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What the newest session ran on."""
        return self.path / "environment.json"

    @property
    def state(self) -> Path:
        """How far the run is, for people and tools; a checkpoint has all that counts."""
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Which samples each step has seen, where the config asks for it."""
        return self.path / "samples.jsonl"

    @property
    def launches(self) -> Path:
        """Every start of the launcher."""
        return self.path / "lives.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def lease(self) -> Path:
        """Numbered claims of the owners that the run has had."""
        return self.path / ".lease"

    @property
    def slurm(self) -> Path:
        """The script, the config, the record and the log of a submitted job."""
        return self.path / "slurm"

    @property
    def job(self) -> Path:
        """The job that the run was last submitted as."""
        return self.slurm / "job.json"

    @property
    def generations(self) -> Path:
        return self.path / "generations"

    def lock(self, node: int | None) -> Path:
        """What the node's launcher holds while it runs."""
        return self.path / f".lock-node{node or 0}"

    def locks(self) -> list[Path]:
        """Those of all nodes."""
        return sorted(self.path.glob(".lock-node*"))

    def all_generations(self) -> list[GenerationDir]:
        """The oldest first."""
        return [GenerationDir(path) for path in numbered(self.generations)]

    def newest_generation(self) -> GenerationDir | None:
        return next(reversed(self.all_generations()), None)

    def generation(self, number: int) -> GenerationDir:
        return GenerationDir(self.generations / str(number))

    def is_run(self) -> bool:
        """Whether anything says that a run was begun or submitted here."""
        signs = (self.config, self.checkpoints, self.state, self.generations, self.job)
        return any(map(os.path.exists, signs))


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def rank_log(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.log"


def suffix(node: str) -> str:
    """In the names of files that each node writes: empty for the first."""
    return "" if node == FIRST_NODE else f"-{node}"
