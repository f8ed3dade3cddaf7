"""`dist-train checkpoints`: what a run has saved. No torch here."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint.manifest import MANIFEST, DamagedCheckpoint, read_manifest, verify
from dist_train.checkpoint.store import CheckpointStore, has_manifest, step_of
from dist_train.config.requests import CheckpointsRequest, read_request
from dist_train.config.stdout import aligned, tell
from dist_train.errors import ExitCode
from dist_train.rundir.layout import RunDir

COLUMNS = ("step", "saved", "size", "ranks", "generation", "best", "state")
NUMBERS = ("step", "size", "ranks", "generation")


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """One checkpoint, as --json has it.

    Attributes:
        sound: None where it was not verified.
        damage: the bad file, and what is wrong with it.
        saved: Unix time in s.
    """

    step: int
    path: str
    sound: bool | None
    damage: str | None
    saved: float | None
    bytes: int
    world_size: int | None
    generation: int | None
    best: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """As COLUMNS has them."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.saved)) if self.saved else ""
        state = {None: "not verified", True: "sound", False: f"DAMAGED: {self.damage}"}[self.sound]
        size = f"{self.bytes / 1e6:,.1f} MB" if self.bytes else ""
        numbers = ("" if number is None else str(number) for number in (self.world_size, self.generation))
        return (f"{self.step:,}", when, size, *numbers, "best" if self.best else "", state)


def survey(target: Path, thoroughly: bool) -> Iterator[SavedCheckpoint]:
    """The checkpoints of a run, oldest first, or one checkpoint. The newest readable one says which is the best."""
    alone = has_manifest(target) or step_of(target) >= 0
    paths = [target] if alone else CheckpointStore(RunDir(target).checkpoints).all()[::-1]
    looked_at = [(path, *_manifest(path, thoroughly, by_name=not alone)) for path in paths]
    best = next((manifest.get("best_step") for _, manifest, _ in reversed(looked_at) if manifest), None)
    for path, manifest, damage in looked_at:
        step = manifest.get("step", step_of(path)) if alone else step_of(path)
        yield SavedCheckpoint(
            step=step,
            path=str(path),
            sound=False if damage else True if thoroughly else None,
            damage=damage,
            saved=manifest.get("saved", _written(path)),
            bytes=sum(entry["size"] for entry in manifest.get("files", {}).values()),
            world_size=manifest.get("world_size"),
            generation=manifest.get("generation"),
            best=step == best,
        )


def _manifest(path: Path, thoroughly: bool, *, by_name: bool) -> tuple[Mapping[str, Any], str | None]:
    """What a checkpoint's manifest says, empty where it cannot be read; and what is damaged.

    Args:
        by_name: check that the folder still has the name that the checkpoint was saved under.
    """
    try:
        return verify(path, by_name=by_name) if thoroughly else read_manifest(path), None
    except DamagedCheckpoint as damage:
        with suppress(DamagedCheckpoint):  # the manifest itself may be whole
            return read_manifest(path), str(damage)
        return {}, str(damage)


def _written(path: Path) -> float | None:
    with suppress(OSError):
        return (path / MANIFEST).stat().st_mtime
    return None


def main(request: CheckpointsRequest) -> int:
    try:
        found = list(survey(Path(request.target), request.verify))
    except OSError as error:
        print(f"cannot read {request.target}: {error.strerror}", file=sys.stderr)
        return ExitCode.CONFIG
    if request.as_json:
        tell(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        tell(aligned([COLUMNS, *(one.cells for one in found)], to_the_right=NUMBERS))
    if not found:
        print(f"no checkpoints in {request.target}", file=sys.stderr)
    damaged = [Path(one.path).name for one in found if one.sound is False]
    if damaged:
        print(f"damaged: {', '.join(damaged)}; a resume takes the newest sound one", file=sys.stderr)
    return ExitCode.CANNOT_RESUME if damaged and request.verify else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(read_request(CheckpointsRequest, sys.argv[1:])))
