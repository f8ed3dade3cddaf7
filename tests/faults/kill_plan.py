"""What is killed and when, drawn from the seed, and the account of what it has cost."""

import json
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.checkpoint.store import CheckpointStore
from tests.faults.lives import HANG_S, PooledLife, is_running, until
from tests.faults.watch import CREATED, MOVED_HERE, Watch


class Lost(Exception):
    """A run that could not be brought to its end."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill, as it is planned.

    Attributes:
        save: which save of the life it is aimed at; 0 for a random moment.
        part: of the time that it is aimed at.
        luck: picks among several of a kind.
    """

    victim: str
    save: int
    early: bool
    part: float
    luck: float

    @classmethod
    def drawn(cls, dice: random.Random, victims: tuple[str, ...]) -> "Kill":
        save = dice.choice((0, 0, 0, 1, 2, 3))
        # Only rank 0 and its writer save; another one's death is felt there too late to fall inside.
        victim = dice.choice(("first", "writer", "all")) if save and dice.random() < 0.6 else dice.choice(victims)
        return cls(victim=victim, save=save, early=dice.random() < 0.3, part=dice.random(), luck=dice.random())

    def pick(self, processes: dict[str, list[int]]) -> list[int]:
        """Process ids to kill; where there is none of the kind, rank 0."""
        if self.victim == "all":
            return [pid for kind in ("launcher", "agent", "rank") for pid in processes.get(kind, [])]
        ranks = processes["rank"]
        found = ranks[:1] if self.victim == "first" else processes.get(self.victim, [])
        found = found or ranks[:1] or processes.get("agent", [])
        return [found[int(self.luck * len(found))]] if found else []

    def __str__(self) -> str:
        where = f"at {self.part:.2f} of save {self.save}" if self.save else f"at the random moment {self.part:.2f}"
        return f"{self.victim} {where}"


@dataclass(kw_only=True)
class Damage:
    """What the kills have cost."""

    pooled: int = 0
    launched: int = 0
    inside: int = 0
    redone: list[int] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    """Seconds from a kill to the next step, where the launcher started again by itself."""
    killed_at: float | None = None
    save_s: float = 0.0
    """What a save takes here: half of those of the undisturbed run took less."""

    def measure_saves(self, folder: Path, life: PooledLife) -> None:
        took, number = [], 1
        with Watch(folder) as watch:
            while watch.wait_for(CREATED, ".tmp-", number, life.endings(), HANG_S):
                began = time.monotonic()
                watch.wait_for(MOVED_HERE, "step-", number, life.endings(), HANG_S)
                took.append(time.monotonic() - began)
                number += 1
        self.save_s = statistics.median(took)

    def look(self, checkpoints: Path, killed: list[int]) -> None:
        """Whether a kill has left half a save, before anybody tidies up."""
        until(lambda: not any(is_running(pid) for pid in killed), HANG_S)
        self.inside += any(path.name.startswith(".tmp-") for path in checkpoints.iterdir())

    def note(self, run_dir: Path) -> None:
        """What the next life will have to do again."""
        found = CheckpointStore(run_dir / "checkpoints").newest()
        self.redone.append(max(0, last_step(run_dir) - (found.manifest["step"] if found else 0)))

    def trains_again(self) -> None:
        if self.killed_at is not None:
            self.back.append(time.monotonic() - self.killed_at)
        self.killed_at = None

    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"pooled": self.pooled, "launched": self.launched, "inside a save": self.inside}
        facts["median steps redone"] = f"{statistics.median(self.redone or [0]):g}"
        if self.back:
            facts["median s to the next step"] = f"{statistics.median(self.back):.1f}"
        return facts


def last_step(run_dir: Path) -> int:
    """Of the last whole row of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0
