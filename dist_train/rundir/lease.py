"""One live run in a run directory, and nothing committed by one that was taken for dead. No torch here.

A lease is a numbered claim (dist_train/rundir/ownership.py). link(2) makes a number once, on NFS too, so of all that
want it one wins; a number is never given out again. flock(2) would do on one host only. The owner renews its claim
through the descriptor that it made it with: one that comes back after a takeover writes into a file without a name.
"""

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dist_train.errors import DiskError, ExitCode, UserError
from dist_train.rundir.files import NO_LINKS, create_synced, sync_folder
from dist_train.rundir.layout import RunDir
from dist_train.rundir.ownership import EXPIRY_S, RELEASED, RENEWAL_S, Owner, await_free, claim_path, current
from dist_train.rundir.snapshot import FolderSnapshot

_WIDTH = 20


@dataclass(frozen=True)
class Fence:
    """Whose commits count. Small and picklable: the process that writes checkpoints has a copy."""

    run_dir: Path
    number: int
    token: str

    def check(self) -> None:
        """Returns when the run directory still belongs to this owner.

        Raises:
            UserError: (exit 3) when it is not.
            OSError: when that cannot be seen.
        """
        claim = current(self.run_dir)
        if claim is None:
            raise FileNotFoundError(errno.ENOENT, "the run's lease was deleted", str(RunDir(self.run_dir).lease))
        owner = claim.owner
        if owner and owner.token == self.token and not claim.is_released:
            return
        whose = f"belongs to {owner} now" if owner and owner.token != self.token else "was given back"
        raise UserError(f"{self.run_dir} {whose}: this process must not write there any more", ExitCode.OWNED)


def ask_to_stop() -> None:
    """As a scheduler would; what this process then wants to save finds the fence closed, which says why."""
    os.kill(os.getpid(), signal.SIGTERM)


class Lease:
    """Rank 0's hold on its run directory. A context manager that holds nothing until `take`, and lets go at the end.

    Args:
        owner: who takes it.
        expiry: seconds without a renewal after which an owner on another host is dead.
        renewal: seconds between two renewals.
        note: told one line when taking has to wait.
        lost: called, from another thread, when another owner has taken the directory over.
        renews: called with the id of that thread, once it runs.
        takes_back: whether an end with exit code 2 leaves the directory as it was. Under the launcher, that does it.
    """

    def __init__(
        self,
        *,
        owner: Owner | None = None,
        expiry: float = EXPIRY_S,
        renewal: float = RENEWAL_S,
        note: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        lost: Callable[[], None] = ask_to_stop,
        renews: Callable[[int], None] = lambda thread: None,
        takes_back: bool = False,
    ) -> None:
        self._lost, self._note, self._renews = lost, note, renews
        self._owner = owner or Owner.now()
        self._expiry, self._renewal = expiry, renewal
        self._fence: Fence | None = None
        self._takes_back = takes_back
        self._before: FolderSnapshot | None = None
        self._file = -1
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._before is not None and isinstance(error, UserError) and error.code == ExitCode.CONFIG:
            self._stop_renewing()
            self._before.restore()  # while the directory is still ours
        self.release()

    def take(self, run_dir: Path) -> Fence:
        """Makes this process the owner of `run_dir`, which is made where there is none.

        Raises:
            UserError: (exit 3) when a live run owns it; nothing has changed then. (exit 14) when the disk refuses.
        """
        if self._takes_back:
            self._before = FolderSnapshot(run_dir)
        self._owner = replace(self._owner, folder=os.path.realpath(run_dir))
        try:
            while self._fence is None:
                number = await_free(run_dir, self._expiry, self._note) + 1
                if self._claim(run_dir, number):
                    self._fence = Fence(run_dir, number, self._owner.token)
            if not sync_folder(RunDir(run_dir).lease):
                self._note(
                    f"! {run_dir}: this file system does not sync folders: a power loss may take the newest checkpoint"
                )
        except OSError as error:
            raise DiskError(f"cannot make the run directory {run_dir}, or its lease: {error.strerror}") from None
        if self._before is not None:
            self._before.look_again()
        _remove_before(claim_path(run_dir, self._fence.number))
        self._thread = threading.Thread(target=self._renew, args=(self._fence,), name="lease", daemon=True)
        self._thread.start()
        self._renews(self._thread.native_id or 0)
        return self._fence

    def release(self) -> None:
        """Gives the directory back, so that the next owner has nothing to wait for."""
        if self._thread is None:
            return
        self._stop_renewing()
        with suppress(OSError):
            self._write(RELEASED.ljust(_WIDTH))
        if not self._thread.is_alive():  # else it hangs in a write, and its descriptor must stay its own
            with suppress(OSError):
                os.close(self._file)
        self._thread = None

    def _stop_renewing(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(self._renewal)

    def _claim(self, run_dir: Path, number: int) -> bool:
        """Whether the number is ours now."""
        path = claim_path(run_dir, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{self._owner.token}")
        content = f"{json.dumps(asdict(self._owner))}\n".encode()
        self._place, self._file = len(content), create_synced(temporary, content + b"0".rjust(_WIDTH) + b"\n")
        try:
            self._file = _give_name(temporary, path, self._file)
            # A number that is free again was taken and outlived while we looked away; the newest is never removed.
            newest = current(run_dir)
            if newest is not None and newest.number == number:
                return True
            path.unlink()
        except (FileExistsError, FileNotFoundError):  # another was faster; it removes what others have begun
            pass
        finally:
            temporary.unlink(missing_ok=True)
        os.close(self._file)
        return False

    def _renew(self, fence: Fence) -> None:
        count = 0
        while not self._over.wait(self._renewal):
            count += 1
            try:
                fence.check()
                self._write(str(count).encode().rjust(_WIDTH))
            except UserError:
                self._lost()
                return
            except OSError:  # it may let us again; if not, the fence sees what has become of it
                continue

    def _write(self, content: bytes) -> None:
        os.pwrite(self._file, content, self._place)
        os.close(os.dup(self._file))  # at a close, NFS sends what was written; a local disk does nothing


def _give_name(temporary: Path, path: Path, file: int) -> int:
    """Makes `path` the name of a file, once in all time; returns its descriptor. Raises FileExistsError."""
    try:
        os.link(temporary, path)
        return file
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    made = create_synced(path, temporary.read_bytes())  # another can see it while it is empty: that one waits
    os.close(file)
    return made


def _remove_before(mine: Path) -> None:
    """Older claims, and what was begun and not finished; never a newer one."""
    with suppress(OSError):
        for path in mine.parent.iterdir():
            if path.name < mine.name:  # ".tmp-…" comes before all numbers
                path.unlink(missing_ok=True)
