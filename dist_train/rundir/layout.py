"""Where a run keeps what: every path of a run directory, derived here and nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.reading import numbered

FIRST_NODE = "node0"
SCHEDULERS = ("slurm",)
"""Folders of submitted jobs: script, config, record and log. The section of the schema has the same name."""
TRACKERS = {
    "wandb": {r"id\.txt|process\.log": "ours", r"(offline-)?run-.*": "run", r"latest-run|debug(-\w+)?\.log": "link"},
    "tensorboard": {r"events\.out\.tfevents\..*": "process"},
}
"""Folders of trackers; by patterns of names, whose a file there is. `run`: it ends with the id in id.txt, or is a
`link` to what does; `process`: it has that one's host and pid in it; `ours`: of whoever has the run directory."""
FAST_DEV_RUN = "dist-train-fast-dev-run-"
"""How the name of a folder begins that is removed at the end, with the run in it."""


class Below:
    """An attribute of a directory: the path of what has this name in it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, directory: "GenerationDir | RunDir", _: type) -> Path:
        return directory.path / self._name


def is_kept(run_dir: Path) -> bool:
    """Whether a run will be there to go on with."""
    return not run_dir.parent.name.startswith(FAST_DEV_RUN)


@dataclass(frozen=True)
class GenerationDir:
    """RUN/generations/NUMBER: one start of the process group."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    start = Below("start.json")
    """The name of this start, where all nodes of a job know one."""
    nodes = Below("nodes")
    """A file for each node: its launcher."""
    ranks = Below("ranks")
    """A file for each rank that has begun."""
    errors = Below("errors")
    """A file for each rank that ended with an exception."""
    quiet = Below("quiet")
    """A file for each node whose ranks are past their deadlines."""
    evidence = Below("quiet/ranks")
    """A file for each node: what it knows of its ranks, once all are quiet."""
    stacks = Below("stacks")
    record = Below("record")
    """What torch's @record decorator writes."""

    def node(self, name: str) -> Path:
        return self.nodes / f"{name}.json"

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

    config = Below("config.yaml")
    """The resolved config."""
    environment = Below("environment.json")
    """What the newest session ran on."""
    state = Below("state.json")
    """How far the run is, for people and tools; a checkpoint has all that counts."""
    metrics = Below("metrics.jsonl")
    samples = Below("samples.jsonl")
    """Which samples each step has seen, where the config asks for it."""
    report = Below("report.html")
    """The run on one page."""
    evaluations = Below("evaluations")
    """A file for each split: what the newest evaluation has left besides its figures."""

    def evaluation(self, split: str) -> Path:
        return self.evaluations / f"{split}.json"

    def evaluation_pictures(self, split: str) -> Path:
        """Small pictures of the samples with the highest losses."""
        return self.evaluations / split

    def evaluation_picture(self, split: str, index: int, of: str) -> Path:
        """`of` is picture, or for a mask truth or prediction."""
        return self.evaluation_pictures(split) / f"{index:08d}-{of}.{'jpg' if of == 'picture' else 'png'}"

    launches = Below("lives.jsonl")
    """Every start of the launcher."""
    checkpoints = Below("checkpoints")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)

    logs = Below("logs")
    pictures = Below("pictures")
    """What callbacks have logged."""

    def picture(self, callback: str, step: int, name: str) -> Path:
        return self.pictures / callback / name / f"{step:08d}.png"

    profiles = Below("profiles")
    """What `--profile` has recorded."""

    def profile(self, first: int, last: int, rank: int) -> Path:
        return self.profiles / f"steps-{first}-{last}-rank{rank}.json.gz"

    wandb = Below("wandb")
    tensorboard = Below("tensorboard")
    lease = Below(".lease")
    """Numbered claims of the owners that the run has had."""
    nodes = Below(".nodes")
    """A file for each node of a start without a scheduler: whether its launcher is ready for the next generation."""
    round = Below(".nodes/.round.json")
    """What the first of them has decided about that generation."""

    def node(self, name: str) -> Path:
        return self.nodes / f"{name}.json"

    generations = Below("generations")

    def job(self, scheduler: str) -> Path:
        """The job that the run was last submitted as."""
        return self.path / scheduler / "job.json"

    def jobs(self) -> list[Path]:
        return [self.job(scheduler) for scheduler in SCHEDULERS]

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
        signs = (self.config, self.checkpoints, self.state, self.generations, *self.jobs())
        return any(map(os.path.exists, signs))

    def has_traces(self) -> bool:
        """Whether anything but a config says so, genuine or not; broken links count."""
        files = (self.state, self.metrics, self.generations, self.launches, self.lease, self.environment, *self.jobs())
        several = (self.locks(), self.checkpoints.glob("*"), self.logs.glob("rank*"))
        return any(map(os.path.lexists, files)) or any(map(any, several))


REPLACED = ".tmp-replaced-"
"""Before the name of a checkpoint whose place another one is taking."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def rank_log(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.log"


def suffix(node: str) -> str:
    """In the names of files that each node writes: empty for the first."""
    return "" if node == FIRST_NODE else f"-{node}"
