"""Damage to a real checkpoint: every flipped bit and every file that is not the one written is found and named, and the
one before is used. Pickle in any file runs no code.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dist_train.checkpoint.manifest import MANIFEST
from dist_train.checkpoint.store import CheckpointStore
from tests.faults.fixture import PLAIN, Record, record, write_configs
from tests.faults.lives import pooled, undisturbed
from tests.faults.tally import Order, Tally

TRUNCATIONS, QUICK_TRUNCATIONS = 16, 4
STOP = ("train.stop_after=47 steps",)
Damage = tuple[str, tuple[str, ...], Callable[[Path], None]]
"""What is done, the files of which one must be named, and how it is done to a checkpoint."""


def campaign(order: Order) -> Tally:
    """`order.count` flipped bits, all other damages, and resumes from some of them."""
    tally = Tally(campaign="corruption", seed=order.seed)
    write_configs(order.folder)
    expected = undisturbed(order.folder)
    for run, words in (("stopped", STOP), ("foreign", (*STOP, "seed=1"))):
        with pooled(order.folder, PLAIN, run, 2, *words) as life:
            assert life.wait() == [0, 0], life.failures()
    others = list(_others(order))
    things = [partial(resume, order, expected) for resume in RESUMES]
    things += [partial(_is_found, order.folder, *damage) for damage in [*others, *_flips(order)]]
    tally.facts = {"resumes": len(RESUMES), "flips": order.count, "others": len(others)}
    for number, do in enumerate(things):
        if order.wants(number):
            tally.injections += 1
            for problem in do():
                tally.lose(number, problem, unequal="differs" in problem)
    return tally


def _newest(run_dir: Path) -> tuple[Path, Path]:
    newest, before, *_ = CheckpointStore(run_dir / "checkpoints").all()
    return newest, before


def _is_found(folder: Path, what: str, named: tuple[str, ...], do: Callable[[Path], None]) -> Iterator[str]:
    copy = Path(shutil.copytree(folder / "stopped" / "checkpoints", folder / "damaged"))
    newest, before, *_ = CheckpointStore(copy).all()
    do(newest)
    found = CheckpointStore(copy).newest()
    if found is None or found.path != before:
        yield f"{what}: not found"
    elif len(found.skipped) != 1 or not any(name in found.skipped[0] for name in named):
        yield f"{what}: found, but not named: {found.skipped}"
    shutil.rmtree(copy)


# ---------------------------------------------------------------- what is done


def _flips(order: Order) -> Iterator[Damage]:
    """`order.count` random bits."""
    own, _ = _newest(order.folder / "stopped")
    files = sorted(os.listdir(own))
    for number in range(order.count):
        dice = order.dice("flip", number)
        file = dice.choice(files)
        bit = dice.randrange(8 * (own / file).stat().st_size)
        yield f"bit {bit} of {file}", (file,), lambda path, file=file, bit=bit: _flip(path / file, bit)


def _others(order: Order) -> Iterator[Damage]:
    own, previous = _newest(order.folder / "stopped")
    foreign = order.folder / "foreign" / "checkpoints" / own.name
    files = sorted(os.listdir(own))
    for file in files:
        size = (own / file).stat().st_size
        parts = QUICK_TRUNCATIONS if order.quick else TRUNCATIONS
        for part in range(parts):
            length = size * part // parts
            yield f"{file} cut to {length} of {size} bytes", (file,), lambda p, f=file, n=length: os.truncate(p / f, n)
        yield f"{file} missing", (file,), lambda path, file=file: (path / file).unlink()
        yield f"{file} one byte longer", (file,), lambda path, file=file: _append(path / file)
        yield f"{file} a link", (file,), lambda path, file=file: _link(path / file)
        yield f"{file} a folder", (file,), lambda path, file=file: _folder(path / file)
        for other, whose in ((previous, "another step"), (foreign, "another run")):
            if (other / file).read_bytes() != (own / file).read_bytes():
                named = (file, MANIFEST) if file != MANIFEST else tuple(files)
                yield f"{file} of {whose}", named, lambda path, source=other / file: _replace(path, source)
    for one, two in ((a, b) for a in files for b in files if a < b):
        yield f"{one} and {two} swapped", (one, two), lambda path, a=one, b=two: _swap(path / a, path / b)
    yield "one file too many", ("extra",), lambda path: (path / "extra").write_bytes(b"")
    yield "all of another step", (MANIFEST,), lambda path: _all_of(path, previous)


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def _link(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace(path: Path, source: Path) -> None:
    shutil.copy(source, path / source.name)


def _swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _all_of(path: Path, other: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(other, path)


# ---------------------------------------------------------------- resuming from it


def _copy_of_stopped(order: Order, name: str) -> Path:
    return Path(shutil.copytree(order.folder / "stopped", order.folder / name))


def _resume(order: Order, run: str) -> tuple[list[int | None], str]:
    with pooled(order.folder, PLAIN, run, 2) as life:
        return life.wait(), life.failures()


def _from_the_one_before(order: Order, expected: Record) -> Iterator[str]:
    """The newest is damaged: the run goes on from the one before, and ends equal."""
    run_dir = _copy_of_stopped(order, "one-damaged")
    newest, before = _newest(run_dir)
    _flip(newest / "optimizer.safetensors", order.dice("resume").randrange(8000))
    codes, said = _resume(order, run_dir.name)
    log = (run_dir / "logs" / "rank0.log").read_text()
    if codes != [0, 0]:
        yield f"it ended with {codes}: {said}"
    elif f"{newest.name} is damaged" not in log or f"going on from {before.name}" not in log:
        yield "the log does not tell"
    elif different := expected.difference(record(run_dir)):
        yield different


def _from_none(order: Order, expected: Record) -> Iterator[str]:
    """All are damaged: exit code 4, and not a byte is changed."""
    run_dir = _copy_of_stopped(order, "all-damaged")
    for path in CheckpointStore(run_dir / "checkpoints").all():
        _flip(path / "model.safetensors", order.dice("resume", path.name).randrange(8000))
    before = _content(run_dir)
    codes, said = _resume(order, run_dir.name)
    if codes != [4, 4]:
        yield f"it ended with {codes}, not with 4: {said}"
    if _content(run_dir) != before:
        yield "the run directory was changed"


def _content(run_dir: Path) -> dict[str, bytes]:
    files = [path for path in run_dir.rglob("*") if path.is_file() and ".lease" not in path.parts]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


class _Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def _from_pickles(order: Order, expected: Record) -> Iterator[str]:
    """Pickle in one file, then in the next: each is found to be damaged, none is run."""
    run_dir, canary = _copy_of_stopped(order, "pickles"), order.folder / "canary"
    newest, before = _newest(run_dir)
    kept = Path(shutil.copytree(newest, order.folder / "kept"))
    for file in sorted(os.listdir(kept)):
        _all_of(newest, kept)
        (newest / file).write_bytes(pickle.dumps(_Canary(canary)))
        found = CheckpointStore(run_dir / "checkpoints").newest()
        if found is None or found.path != before:
            yield f"pickle in {file}: not found"
    codes, said = _resume(order, run_dir.name)
    if codes != [0, 0]:
        yield f"it ended with {codes}: {said}"
    if canary.exists():
        yield "its code was run"


def _from_forged(order: Order, expected: Record) -> Iterator[str]:
    """Pickle in a file whose manifest was made to fit it: it cannot be read, and is not run."""
    canary = order.folder / "canary"
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        run_dir = _copy_of_stopped(order, f"forged-{file}")
        newest, _ = _newest(run_dir)
        _forge(newest, file, pickle.dumps(_Canary(canary)))
        if CheckpointStore(run_dir / "checkpoints").newest() is None:
            yield f"{file}: the manifest was meant to fit"
        codes, _ = _resume(order, run_dir.name)
        if 0 in codes:
            yield f"{file}: it ended with {codes}"
        if canary.exists():
            yield f"{file}: its code was run"


def _forge(path: Path, file: str, content: bytes) -> None:
    (path / file).write_bytes(content)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    manifest["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))


RESUMES = (_from_the_one_before, _from_none, _from_pickles, _from_forged)
