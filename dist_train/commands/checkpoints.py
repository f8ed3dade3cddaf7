"""`dist-train checkpoints`: what a run has saved. No torch here."""

import json
import sys
import time
from contextlib import suppress
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


def describe_checkpoint(path: Path, thoroughly: bool, by_name: bool = True) -> dict[str, Any]:
    """One checkpoint. `sound` is None if it was not verified; `damage` names the bad file and what is wrong with it.

    Args:
        by_name: check that the folder still has the name that the checkpoint was saved under.
    """
    known: dict[str, Any] = {"step": step_of(path), "path": str(path), "sound": None, "damage": None, "saved": None}
    try:
        manifest = verify(path, by_name=by_name) if thoroughly else read_manifest(path)
        known["sound"] = True if thoroughly else None
    except DamagedCheckpoint as damage:
        known |= {"sound": False, "damage": str(damage)}
        manifest = {}
        with suppress(DamagedCheckpoint):  # the manifest itself may be whole
            manifest = read_manifest(path)
    with suppress(OSError):  # of a manifest that does not say when it was written
        known["saved"] = (path / MANIFEST).stat().st_mtime
    return known | {
        "step": known["step"] if by_name else manifest.get("step", known["step"]),
        "saved": manifest.get("saved", known["saved"]),
        "bytes": sum(entry["size"] for entry in manifest.get("files", {}).values()),
        "world_size": manifest.get("world_size"),
        "generation": manifest.get("generation"),
        "best_step": manifest.get("best_step"),
    }


def survey(target: Path, thoroughly: bool) -> list[dict[str, Any]]:
    """The checkpoints of a run, oldest first, or one checkpoint. The newest readable one says which is `best`."""
    alone = has_manifest(target) or step_of(target) >= 0
    paths = [target] if alone else CheckpointStore(RunDir(target).checkpoints).all()[::-1]
    found = [describe_checkpoint(path, thoroughly, by_name=not alone) for path in paths]
    best = next((item["best_step"] for item in reversed(found) if item["bytes"]), None)
    for item in found:
        item["best"] = item["step"] == best
        del item["best_step"]
    return found


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item["saved"])) if item["saved"] else ""
    state = {None: "not verified", True: "sound", False: f"DAMAGED: {item['damage']}"}[item["sound"]]
    size = f"{item['bytes'] / 1e6:,.1f} MB" if item["bytes"] else ""
    numbers = ("" if item[key] is None else str(item[key]) for key in ("world_size", "generation"))
    return (f"{item['step']:,}", when, size, *numbers, "best" if item["best"] else "", state)


def main(request: CheckpointsRequest) -> int:
    try:
        found = survey(Path(request.target), request.verify)
    except OSError as error:
        print(f"cannot read {request.target}: {error.strerror}", file=sys.stderr)
        return ExitCode.CONFIG
    if request.as_json:
        tell(json.dumps(found, indent=2))
    elif found:
        tell(aligned([COLUMNS, *map(_row, found)], to_the_right=NUMBERS))
    if not found:
        print(f"no checkpoints in {request.target}", file=sys.stderr)
    damaged = [Path(item["path"]).name for item in found if item["sound"] is False]
    if damaged:
        print(f"damaged: {', '.join(damaged)}; a resume takes the newest sound one", file=sys.stderr)
    return ExitCode.CANNOT_RESUME if damaged and request.verify else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(read_request(CheckpointsRequest, sys.argv[1:])))
