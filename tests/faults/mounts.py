"""Real file systems in a mount namespace of their own, and what befalls them. Needs root, as mounting does."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE_MB = {"tmpfs": 24, "overlay": 24, "ext4": 64, "btrfs": 128}
INODES = 600
EXT4_IOC_SHUTDOWN = 0x8004587D
"""ext4's own test of a device that is gone: each later call fails with EIO (linux/fs/ext4/ext4.h)."""
FILLER = "filler"


class Mount:
    """One file system, seen by `inside`'s commands alone at `point`, and by everybody at `seen`.

    Attributes:
        kind: tmpfs, ext4, btrfs or overlay.
        point: where it is mounted, in its namespace.
        seen: the same folder by way of /proc, for the test, which stays outside.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.point = kind, folder, folder / "mnt"
        self.point.mkdir(parents=True)
        hold = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
        self._holder = subprocess.Popen(hold, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None and self._holder.stdout.readline()
        self.inside = ("nsenter", f"--target={self._holder.pid}", "--mount", "--")
        self.seen = Path(f"/proc/{self._holder.pid}/root{self.point}")
        self._make()

    def close(self) -> None:
        """Ends the namespace, and with it every mount in it."""
        self._holder.send_signal(signal.SIGKILL)
        self._holder.communicate()

    def _make(self) -> None:
        image = self.folder / f"{self.kind}.img"
        if self.kind in ("ext4", "btrfs"):
            image.touch()
            os.truncate(image, SIZE_MB[self.kind] << 20)
            # With blocks kept for root, which the launcher of a test is: they are no room that df knows of.
            options = ["-m", "10", "-N", str(INODES)] if self.kind == "ext4" else ["--mixed"]
            subprocess.run([f"mkfs.{self.kind}", "-q", *options, image], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        """Puts it at its place."""
        size = f"size={SIZE_MB[self.kind]}m"
        if self.kind == "tmpfs":
            self._do("mount", "-t", "tmpfs", "-o", f"{size},nr_inodes={INODES}", "none", self.point)
        elif self.kind == "overlay":
            below = self.folder / "below"
            below.mkdir(exist_ok=True)
            self._do("mount", "-t", "tmpfs", "-o", f"{size},nr_inodes={INODES}", "none", below)
            self._do("mkdir", below / "lower", below / "upper", below / "work")
            layers = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
            self._do("mount", "-t", "overlay", "-o", layers, "none", self.point)
        else:
            self._do("mount", "-o", "loop", self.folder / f"{self.kind}.img", self.point)

    def _do(self, *command: object) -> None:
        subprocess.run([*self.inside, *map(str, command)], check=True, capture_output=True)

    # ---------------------------------------------------------------- what befalls it

    def fill(self) -> None:
        """To the last byte, with the blocks that are kept for root."""
        with contextlib.suppress(OSError), open(self.seen / FILLER, "ab", buffering=0) as file:
            for _ in range(100):  # what the run removes meanwhile makes room again
                for size in (1 << 20, 4096, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b"x" * size):
                            pass
                if os.statvfs(self.seen).f_bavail == 0:
                    break

    def use_up_inodes(self) -> None:
        (self.seen / FILLER).mkdir()
        with contextlib.suppress(OSError):
            for number in range(10 * INODES):
                (self.seen / FILLER / str(number)).touch()

    def make_room(self) -> None:
        """Undoes `fill` and `use_up_inodes`."""
        path = self.seen / FILLER
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()  # btrfs frees what was removed with its next transaction

    def make_read_only(self) -> None:
        """What is open stays writable, as it does on a server that exports a folder read-only from now on."""
        while True:
            self._do("mount", "--bind", self.point, self.point)
            try:
                return self._do("mount", "-o", "remount,bind,ro", self.point)
            except subprocess.CalledProcessError:  # something was opened for writing in between
                self._do("umount", "-l", self.point)

    def make_writable(self) -> None:
        self._do("umount", "-l", self.point)

    def freeze(self) -> None:
        self._do("fsfreeze", "--freeze", self.point)

    def thaw(self) -> None:
        self._do("fsfreeze", "--unfreeze", self.point)

    def lose_device(self) -> None:
        """ext4: each later call ends in EIO, on open files too."""
        descriptor = os.open(self.seen, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", 1))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Lazily: what is open stays open, and the path shows the empty folder below."""
        self._do("umount", "-l", self.point)


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Mount]:
    mount = Mount(kind, folder)
    try:
        yield mount
    finally:
        mount.close()


def why_not() -> str | None:
    """What keeps this machine from mounting; None where it can."""
    programs = ("unshare", "nsenter", "mkfs.ext4", "mkfs.btrfs", "fsfreeze", "losetup")
    if missing := [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return f"{', '.join(missing)} missing (Debian: util-linux, e2fsprogs, btrfs-progs)"
    if os.geteuid() != 0:
        return "only root may mount"
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return None if tried.returncode == 0 else f"no mount may be made here: {os.strerror(errno.EPERM)}"
