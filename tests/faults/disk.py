"""A disk that refuses: any error at any call of a save, files that may not grow, and trainings that meet both.

Errors are put in the place of a call by strace (`inject=CALL:error=E:when=N`), once, and from there on for good;
EFBIG is the kernel's own (RLIMIT_FSIZE), with the short write that comes before it.
"""

import errno
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from dist_train.checkpoint.manifest import verify
from tests.faults.fixture import PLAIN, Record, record, write_configs
from tests.faults.kills import make_checkpoints
from tests.faults.lives import HANG_S, LaunchedLife, pooled, undisturbed, until
from tests.faults.syscalls import problems
from tests.faults.tally import Order, Tally
from tests.faults.traced import OLD_STEPS, STEP, STRACE, Bench, Call, bench, sample_files
from tests.faults.watch import MOVED_HERE, Watch

ERRORS = {
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "EROFS"),
    "openat": ("ENOSPC", "EROFS", "EIO"),
    "mkdir": ("ENOSPC", "EROFS"),
    "close": ("EIO",),
    "unlinkat": ("EIO",),
    "rmdir": ("EIO",),
}
LIMITS = 16
SMALL_FILES = 60_000
"""Bytes: less than the model of the trainings here, more than their logs."""
TRAINING = ("model.width=16", "train.duration=45 steps", "eval.every=45 steps", "checkpoint.every=9 steps")

Training = Callable[[Path, str, Callable[[], Record]], Iterator[str]]
"""In a folder, as a run of this name, to be compared with this one: what went wrong."""


def campaign(order: Order) -> Tally:
    """All points, whatever `order.count` says, and four trainings."""
    assert STRACE is not None, "strace is missing: apt-get install strace"
    tally = Tally(campaign="disk", seed=order.seed)
    (order.folder / "saves").mkdir()
    with bench(order.folder / "saves", sample_files(order.dice("files").randbytes(5000))) as table:
        points = _points(table, order)
        skipped = {number for number, point in enumerate(points) if order.quick and not _matters(*point)}
        things = [partial(_refuse, table, *point) for point in points]
        things += [partial(_limit, table, limit) for limit in _limits(order, table.largest)]
        things.append(partial(_without_syncs, table))
        write_configs(order.folder)
        expected = cache(partial(undisturbed, order.folder, PLAIN, *TRAINING))
        things += [partial(_training, kind, order.folder, expected) for kind in TRAININGS]
        for number, do in enumerate(things):
            if order.wants(number) and number not in skipped:
                tally.injections += 1
                for problem in do():
                    tally.lose(number, problem, unequal="differs" in problem)
    tally.facts = {"trainings": len(TRAININGS)}
    return tally


def _points(table: Bench, order: Order) -> list[tuple[Call, str, bool]]:
    """Call, error, and whether it stays."""
    calls = [call for call in table.calls(table.copy(), order.folder / "save.strace") if call.name in ERRORS]
    return [(call, name, for_good) for call in calls for name in ERRORS[call.name] for for_good in (False, True)]


def _matters(call: Call, name: str, for_good: bool) -> bool:
    """One error of each call that writes shows the most."""
    return (call.changes or call.name == "close") and name == ERRORS[call.name][0]


def _refuse(table: Bench, call: Call, name: str, for_good: bool) -> Iterator[str]:
    run_dir, log = table.copy(), table.folder / "refused.strace"
    inject = f"inject={call.name}:error={name}:when={call.number}{'+' if for_good else ''}"
    status = table.save(run_dir, "-e", f"trace={call.name}", "-e", inject, log=log)
    where = f"{name} at {call}{' and later' if for_good else ''}"
    if "(INJECTED)" not in log.read_text():
        yield f"{where}: did not happen"
    for problem in [*_told(run_dir, status, {getattr(errno, name)}, for_good), *_synced_again(log)]:
        yield f"{where}: {problem}"
    shutil.rmtree(run_dir)


def _told(run_dir: Path, status: int, errors: set[int], for_good: bool) -> Iterator[str]:
    """What is wrong with a save that ended with `status` after one of `errors`."""
    folder = run_dir / "checkpoints"
    temporaries = [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]
    if status == 0:
        verify(folder / f"step-{STEP:08d}")
    elif status not in errors:
        yield f"it ended with {status}"
    else:
        for step in OLD_STEPS:
            verify(folder / f"step-{step:08d}")
        if temporaries and not for_good:
            yield f"left behind: {temporaries}"
    yield from problems(folder)


def _synced_again(log: Path) -> Iterator[str]:
    """A second fsync of the same file would say that all is well: the kernel has dropped what it could not write."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("fsync(")]
    paths = [match[1] for line in lines if (match := re.match(r"fsync\(\d+<([^>]+)>", line))]
    failed = [path for path, line in zip(paths, lines, strict=True) if "(INJECTED)" in line]
    for path in failed:
        if paths.count(path) > 1 and Path(path).suffix:
            yield f"{path} synced again after its fsync failed"


def _limits(order: Order, largest: int) -> list[int]:
    dice = order.dice("limits")
    return [0, 1, largest - 1, largest, *(dice.randrange(largest) for _ in range(LIMITS - 4))]


def _limit(table: Bench, limit: int) -> Iterator[str]:
    run_dir, where = table.copy(), f"files of at most {limit} bytes"
    status = table.save(run_dir, limit=limit)
    if (status == 0) != (limit >= table.largest):
        yield f"{where}: it ended with {status}"
    for problem in _told(run_dir, status, {errno.EFBIG}, False):
        yield f"{where}: {problem}"
    shutil.rmtree(run_dir)


def _without_syncs(table: Bench) -> Iterator[str]:
    """A file system that cannot sync at all is no reason not to save."""
    run_dir = table.copy()
    status = table.save(run_dir, "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL")
    for problem in _told(run_dir, status, set(), for_good=False):
        yield f"a file system without syncs: {problem}"
    shutil.rmtree(run_dir)


# ---------------------------------------------------------------- whole trainings


def _training(kind: Training, folder: Path, expected: Callable[[], Record]) -> Iterator[str]:
    run = kind.__name__.strip("_")
    for problem in kind(folder, run, expected):
        yield f"{run}: {problem}"


def _in_the_middle(folder: Path, run: str, expected: Callable[[], Record]) -> Iterator[str]:
    """Saves are refused, twice at most, and accepted again."""
    yield from _interrupted(folder, run, expected, "false")


def _in_the_background(folder: Path, run: str, expected: Callable[[], Record]) -> Iterator[str]:
    """The same where a process of its own saves."""
    yield from _interrupted(folder, run, expected, "true")


def _interrupted(folder: Path, run: str, expected: Callable[[], Record], background: str) -> Iterator[str]:
    log = folder / run / "logs" / "rank0.log"
    saves = make_checkpoints(folder / run)
    with (
        Watch(saves) as watch,
        pooled(folder, PLAIN, run, 2, *TRAINING, f"checkpoint.background={background}") as life,
    ):
        watch.wait_for(MOVED_HERE, "step-", 1, life.endings(), HANG_S)
        writer = life.processes()["writer"] if background == "true" else life.pids[:1]
        _limit_files(writer, SMALL_FILES)
        until(lambda: "not saved (File too large" in log.read_text() or life.ends_within(0), HANG_S)
        _limit_files(writer, None)
        codes = life.wait()
    if codes != [0, 0]:
        yield f"it ended with {codes}: {life.failures()}"
        return
    if "not saved (File too large" not in log.read_text():
        yield "no save was refused"
    if different := expected().difference(record(folder / run)):
        yield different


def _limit_files(pids: list[int], size: int | None) -> None:
    for pid in pids:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _folder_removed(folder: Path, run: str, expected: Callable[[], Record]) -> Iterator[str]:
    """Somebody removes all checkpoints while it trains."""
    saves = make_checkpoints(folder / run)
    with Watch(saves) as watch, pooled(folder, PLAIN, run, 2, *TRAINING) as life:
        watch.wait_for(MOVED_HERE, "step-", 2, life.endings(), HANG_S)
        shutil.rmtree(saves, ignore_errors=True)
        codes = life.wait()
    if codes != [0, 0]:
        yield f"it ended with {codes}: {life.failures()}"
    elif different := expected().difference(record(folder / run)):
        yield different


def _to_the_end(folder: Path, run: str, expected: Callable[[], Record]) -> Iterator[str]:
    """The launcher says it in one line, with exit code 14, and the next start goes on from what was saved before."""
    words = (PLAIN, "--run-dir", run, "--nproc-per-node", "1", *TRAINING, "checkpoint.background=false")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILES, resource.RLIM_INFINITY))

    with LaunchedLife(folder, run, *words, limit=limit) as life:
        code = life.wait()
    said = life.said.read_text()
    errors = [line for line in said.splitlines() if line.startswith("✗")]
    if code != 14 or len(errors) != 1 or "saves failed" not in errors[0] or "Traceback" in said:
        yield f"exit code {code}: {said[-2000:]}"
    if left := list((folder / run / "checkpoints").glob("*")):
        yield f"left behind: {left}"


TRAININGS = (_in_the_middle, _in_the_background, _folder_removed, _to_the_end)
