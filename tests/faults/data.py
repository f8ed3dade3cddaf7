"""Data that is away under a whole run, in a file, a folder and a mount, for a moment and for good; and broken files.

After a moment the training has gone on and ends equal: nothing was replaced. For good it ends with 13 and one line, or,
with data.on_error=substitute and a single file, goes on without it; mended and started again, it ends well. A run over
broken files that is killed again and again, on 1, 2 and 3 ranks, ends as one that nothing happened to.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dist_train.errors import UserError
from tests.faults.filesystems import AT_ONCE, FAULTS, collected, rows, wait_for
from tests.faults.fixture import Record, record
from tests.faults.lives import HANG_S, LaunchedLife, kill, pooled, undisturbed, until
from tests.faults.mounts import Mount, mounted, why_not
from tests.faults.tally import Order, Tally
from tests.faults.traced import ATTACH_S, STRACE, is_traced

CONFIG = """
name: data
data: {name: image_folder, root: "ROOT", train: train, eval: val, image_size: 8}
augment: [{name: horizontal_flip}]
model: {name: cnn, width: 2}
loader: {workers: 1}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
batch: {microbatches: 3, global_size: 6}
train: {duration: 90 steps}
eval: {every: 45 steps}
checkpoint: {every: 15 steps}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
NAME, DAMAGED = "data.yaml", "damaged.yaml"
TRAIN, EVALUATE = 20, 4
"""Images of each of two classes."""
SHORT = "loader.retry=1 s"
"""Of what stays away."""
OPENING = {name: ("openat", name) for name in ("ESTALE", "EIO", "ENOTCONN", "ETIMEDOUT")}
INJECTED = {**OPENING, "EIO while reading": ("readv", "EIO")}
"""System call and error, put there by strace."""
MOUNTS = ("unmounted", "device lost")
KILLED = 3
"""Runs over broken files."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is away, where, for how many seconds (None: for good), and what the config says to it."""

    error: str
    place: str
    seconds: float | None
    on_error: str

    def __str__(self) -> str:
        return f"{self.error}, {self.place}, {self.seconds or 'for good'}, {self.on_error}"


def cases() -> Iterator[Case]:
    places = ("file", "folder", "mount")
    faults = [(error, place) for error in INJECTED for place in places]
    faults += [("missing", place) for place in places] + [(error, "mount") for error in MOUNTS]
    for number, (error, place) in enumerate(faults):
        for seconds in (1.0, 30.0):
            if (error, place) != ("missing", "file"):  # nobody waits for a file that somebody has removed
                yield Case(error=error, place=place, seconds=seconds, on_error=("stop", "substitute")[number % 2])
        for on_error in ("stop", "substitute"):
            yield Case(error=error, place=place, seconds=None, on_error=on_error)


QUICK = (
    Case(error="EIO while reading", place="file", seconds=1.0, on_error="substitute"),
    Case(error="unmounted", place="mount", seconds=None, on_error="substitute"),
)
"""Of `make test`, with the first of the killed runs."""


def campaign(order: Order) -> Tally:
    """All cases, whatever `order.count` says; `order.quick` has a few."""
    tally = Tally(campaign="data", seed=order.seed)
    make_images(order.folder / "images")
    (order.folder / NAME).write_text(CONFIG.replace("ROOT", str(order.folder / "images")))
    expected = undisturbed(order.folder, NAME)
    listed = list(cases())
    chosen = [one for one in enumerate(listed) if order.wants(one[0]) and (not order.quick or one[1] in QUICK)]
    for errors, reason in ((MOUNTS, why_not()), (INJECTED, None if STRACE else "strace is missing")):
        if reason is not None:
            tally.facts["skipped"] = reason
            chosen = [one for one in chosen if one[1].error not in errors]

    def problems_of(chosen: tuple[int, Case]) -> list[str]:
        folder = order.folder / str(chosen[0])
        shutil.copytree(order.folder / "images", folder / "images")
        problems = collected(_case(order.folder, folder, chosen[1], expected))
        shutil.rmtree(folder, ignore_errors=True)
        return problems

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (number, case), problems in zip(chosen, pool.map(problems_of, chosen), strict=True):
            tally.injections += 1
            for problem in problems:
                tally.lose(number, f"{case}: {problem}")
    for number in range(len(listed), len(listed) + (1 if order.quick else KILLED)):
        if order.wants(number):
            tally.injections += 3
            for problem in _killed(order, f"killed{number}", number):
                tally.lose(number, f"killed over broken files: {problem}", unequal=True)
    return tally


def make_images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", EVALUATE)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")


# ---------------------------------------------------------------- away


def _case(home: Path, folder: Path, case: Case, expected: Record) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounted("ext4", folder)) if case.error in MOUNTS else None
        if mount is not None:
            shutil.copytree(folder / "images", mount.seen / "images")
            os.sync()  # what the device has not written is lost with it
        words = [str(home / NAME), f"data.root={(mount.point if mount else folder) / 'images'}"]
        words += ["--nproc-per-node", "2", "--run-dir", str(folder / "run"), f"data.on_error={case.on_error}"]

        def start(*more: str) -> LaunchedLife:
            inside = mount.inside if mount else ()
            return LaunchedLife(home, folder.name, *words, *more, before=inside, run_dir=folder / "run")

        with start(*[SHORT] * (case.seconds is None)) as life:
            wait_for("step", folder, folder / "run", life, 12)
            found = life.processes()
            at_work = [*found["rank"], *found["loader"]]
            kill(at_work, signal.SIGSTOP)  # they might be done before it has begun
            with _away(case, at_work, folder / "images", mount):
                kill(at_work, signal.SIGCONT)
                life.ended_within(case.seconds or HANG_S)
            code, said = life.wait(2 * HANG_S), life.said.read_text(errors="replace")
        logs = "".join(path.read_text(errors="replace") for path in (folder / "run" / "logs").glob("rank*.log"))
        goes_on = case.seconds is not None or (case.place, case.on_error) == ("file", "substitute")
        yield from _told(code, said, logs, case, goes_on)
        if code == 13:
            with start("data.max_broken=0.6") as again:
                if (code := again.wait(2 * HANG_S)) != 0:
                    yield f"started again, it ended with {code}: {again.tail()}"
                    return
    replaced = case.seconds is None and case.on_error == "substitute" and case.place != "mount"
    try:
        if not replaced and (different := expected.difference(record(folder / "run"))):
            yield different
    except (OSError, UserError) as error:
        yield f"no whole run is left: {error}"


def _told(code: int, said: str, logs: str, case: Case, goes_on: bool) -> Iterator[str]:
    """What is wrong with an end and what was said of it."""
    errors = sum(line.startswith("✗") for line in said.splitlines())
    if code != (0 if goes_on else 13):
        yield f"exit code {code}: {said[-1500:]}"
    elif "Traceback" in said or errors != (not goes_on):
        yield f"exit code {code}, told in {errors} lines: {said[-1500:]}"
    if case.error != "missing" and "! the data is away" not in logs:
        yield "the fault came too late, or was not told"
    named = said.count("takes its place")
    if named != 1 if goes_on and case.seconds is None else named and (case.seconds or case.place == "mount"):
        yield f"{named} samples were replaced: {said[-1500:]}"


@contextlib.contextmanager
def _away(case: Case, pids: list[int], images: Path, mount: Mount | None) -> Iterator[None]:
    place = {"file": images / "train/cat/0.png", "folder": images / "train/cat", "mount": images}[case.place]
    if mount is not None:
        fault = FAULTS[case.error]
        assert fault.undo is not None
        fault.do(mount)
        yield
        fault.undo(mount)
    elif case.error == "missing":
        place.rename(place.with_name("away"))
        yield
        place.with_name("away").rename(place)
    else:
        paths = [place] if place.is_file() else sorted(place.rglob("*.png"))
        with injected(pids, paths, *INJECTED[case.error]):
            yield


@contextlib.contextmanager
def injected(pids: list[int], paths: list[Path], call: str, error: str) -> Iterator[None]:
    """In the block, this system call on these files ends in this error, in these processes and those they start."""
    words = [word for pid in pids for word in ("-p", str(pid))] + [word for path in paths for word in ("-P", str(path))]
    command = [str(STRACE), "-f", "-qq", "-o", "/dev/null", *words, "-e", f"trace={call}"]
    with subprocess.Popen([*command, "-e", f"inject={call}:error={error}"], stderr=subprocess.DEVNULL) as tracer:
        try:
            assert until(lambda: all(map(is_traced, pids)) or tracer.poll() is not None, ATTACH_S), "strace is stuck"
            yield
        finally:
            tracer.send_signal(signal.SIGTERM)  # it lets go of them, and ends


# ---------------------------------------------------------------- broken, and killed


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cat/3.png": lambda content: content[: len(content) // 2],
    "cat/7.png": lambda content: b"",
    "dog/0.png": lambda content: b"junk" * 50,
}


def _killed(order: Order, run: str, number: int) -> Iterator[str]:
    """Lives on 3, 1 and 2 ranks, each killed at a random step, and a last one on 2."""
    images, home = order.folder / "broken", order.folder / "over-broken"
    if not images.exists():
        make_images(images)
        for name, change in BROKEN.items():
            path = images / "train" / name
            path.write_bytes(change(path.read_bytes()))
        home.mkdir()
        allowed = ", on_error: substitute, max_broken: 0.1}"
        (home / DAMAGED).write_text(CONFIG.replace("ROOT", str(images)).replace("size: 8}", f"size: 8{allowed}"))
        undisturbed(home, DAMAGED)
    dice = order.dice("data", number)
    for ranks, most in ((3, 25), (1, 50), (2, 75)):
        with pooled(home, DAMAGED, run, ranks, f"loader.workers={dice.randint(0, 2)}") as life:
            step = dice.randint(most - 24, most)
            while rows(home / run) < step and not life.ends_within(0.01):
                pass
            if not kill(life.pids):
                yield f"it ended before step {step}: {life.failures()}"
    with pooled(home, DAMAGED, run, 2) as life:
        if (codes := life.wait(2 * HANG_S)) != [0, 0]:
            yield f"it ended with {codes}: {life.failures()}"
            return
    if different := record(home / "undisturbed").difference(record(home / run)):
        yield different
