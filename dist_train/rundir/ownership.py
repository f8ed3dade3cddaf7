"""Whose a run directory is: what its owner has written down, and whether that one still lives. Reads only; no torch.

RUN/.lease/00000007 is the claim of the run's seventh owner; the highest number counts. A claim has two lines: who it
is, in JSON, and a count that the owner raises every RENEWAL_S seconds while it lives, or `released`. Nobody compares
clocks: an owner that this host cannot see is dead once its count has stood still for EXPIRY_S seconds of the observer.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import decode
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.reading import Odd, parse_json, read_bytes
from dist_train.rundir.runs import is_elsewhere

FOLDER = ".lease"
RENEWAL_S = 2.0
EXPIRY_S = 60.0
_GLANCE_S = 2 * RENEWAL_S
"""Long enough to see a renewal."""
_DYING_S = 1.0
_NUMBER = re.compile("[0-9]{8,15}")
_LARGEST = 2**16
"""Bytes of a claim, and many more."""
RELEASED = b"released"
_LOOK_S = 0.05
"""Between two looks at a claim."""


@dataclass(frozen=True, kw_only=True)
class Owner(ProcessId):
    """A process that owns a run directory, or has owned one.

    Attributes:
        job: the scheduler's, where there is one.
        since: when it became the owner, for people.
        folder: the directory that it claimed.
        token: drawn for this claim.
    """

    job: str | None = None
    since: str = ""
    folder: str = ""
    token: str

    @classmethod
    def now(cls) -> "Owner":
        """This process, as it claims a directory."""
        return cls(
            **asdict(ProcessId.myself()),
            job=os.environ.get("DIST_TRAIN_JOB"),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=os.urandom(8).hex(),
        )

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def lives(self) -> bool | None:
        """None where this process cannot tell: then the owner's count is watched."""
        return None if self.boot is None else super().lives()


@dataclass(frozen=True)
class Claim:
    """What is written under a number; the content is empty where it cannot be seen."""

    number: int
    content: bytes

    @property
    def owner(self) -> Owner | None:
        """None where it cannot be read."""
        try:
            owner = decode(Owner, parse_json(self.content.split(b"\n")[0]))
        except ValueError:
            return None
        texts = (owner.host, owner.since, owner.token, owner.boot or "", owner.job or "")
        known = all(text.isprintable() for text in texts)
        return owner if known else None

    @property
    def is_released(self) -> bool:
        return self.content.rstrip().endswith(b"\n" + RELEASED)


def current(run_dir: Path) -> Claim | None:
    """The claim that counts; None where there never was one.

    Raises:
        OSError: when the file system does not let us see.
    """
    for _ in range(10):
        number = None
        with suppress(FileNotFoundError):  # removed between the two looks, by a newer one; or there is no folder
            names = os.listdir(RunDir(run_dir).lease)
            number = max((int(name) for name in names if _NUMBER.fullmatch(name)), default=None)
            if number is None:
                return None
            with suppress(Odd):  # no claim that anybody could have written
                return Claim(number, read_bytes(claim_path(run_dir, number), _LARGEST))
            break
    return None if number is None else Claim(number, b"")


def claim_path(run_dir: Path, number: int) -> Path:
    return RunDir(run_dir).lease / f"{number:08d}"


def refuse_owned(run_dir: Path) -> None:
    """For the launcher: looks for as long as it takes to see an owner that lives. One that it killed, or that dies with
    its launcher, has a moment to be gone. What cannot be told so fast is for rank 0 to find out.

    Raises:
        UserError: (exit 3) when a live run owns it.
    """
    with suppress(OSError):
        await_free(run_dir, _GLANCE_S, lambda line: None, dying=_DYING_S)


def await_free(run_dir: Path, patience: float, note: Callable[[str], None], dying: float = 0.0) -> int:
    """Returns when no live run is known to own `run_dir`: at once where that is certain, else after watching the
    owner's count stand still for `patience` seconds. Returns the last number that was claimed, or 0.

    Args:
        note: told one line when it has to watch.
        dying: seconds that an owner on this host has to be gone.

    Raises:
        UserError: (exit 3) when a live run owns it.
        OSError: when the file system does not let us see.
    """
    seen: Claim | None = None
    start = began = time.clock_gettime(time.CLOCK_BOOTTIME)
    while True:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)  # before the look, so that the last one is old enough
        claim = current(run_dir)
        if claim is None or claim.is_released:
            return claim.number if claim else 0
        owner = claim.owner
        if owner is not None and is_elsewhere(owner.folder, run_dir):
            return claim.number
        alive = owner.lives() if owner else None
        same = seen is not None and (seen.number, seen.owner) == (claim.number, owner)
        if same and seen != claim:  # its count has moved
            alive = True
        if alive and now - start >= dying:
            raise UserError(
                f"{run_dir} belongs to a live run: {owner}. Wait for its end, stop it, or give another --run-dir",
                ExitCode.OWNED,
            )
        if alive is False or (alive is None and same and now - began >= patience):
            return claim.number
        if not same:
            seen, began = claim, now
        if not same and alive is None:
            note(f"{run_dir}: does {owner or 'its owner'} still live? Watching it for at most {patience:g} s")
        time.sleep(_LOOK_S)
