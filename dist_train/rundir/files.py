"""Writing files so that a crash leaves the old one or the new one, never half of either."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Bytes = bytes | bytearray | memoryview
"""Bytes in one piece."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of link(2) on a file system that has none."""
_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of fsync(2) where it cannot be done: folders of SMB, some of FUSE. One that has failed says EIO or ENOSPC."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free name beside `path`. What the block makes there takes the place of `path` in one step, or goes again where
    the block fails. Not synced."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Replaces `path` by a synced file, then syncs the folder, so that the change survives a power loss."""
    with replacing(path) as temporary:
        write_synced(temporary, content.encode() if isinstance(content, str) else content, mode=mode)
    sync_folder(path.parent)


def open_to_append(path: Path) -> int:
    """A descriptor of a regular file to add to, made where there is none. No link is followed, no pipe waited for.

    Raises:
        OSError: when it is something else, or the disk refuses.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def write_synced(path: Path, content: Bytes, *, mode: int = 0o666) -> None:
    """Writes a new file and syncs it.

    Raises:
        FileExistsError: when `path` is there.
        OSError: when the disk refuses, at the latest as the file is closed.
    """
    os.close(create_synced(path, content, mode=mode))


def create_synced(path: Path, content: Bytes, *, mode: int = 0o666) -> int:
    """Writes a new file and syncs it; returns its descriptor. No link is followed, and an fsync that failed is not
    tried again: the kernel may have dropped the pages, and a second one would say that all is well.

    Raises:
        FileExistsError: when `path` is there.
        OSError: when the disk refuses; the file is removed then.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        view = memoryview(content).cast("B")
        while view:  # write(2) may take less than it is given, and says only then why it takes no more
            view = view[os.write(descriptor, view) :]
        _sync(descriptor)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        raise
    return descriptor


def _sync(descriptor: int) -> bool:
    """False where the file system cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return False
    return True


def remove_tree(path: Path) -> None:
    """Removes a folder, a file or a link, as far as the disk allows; never follows a link."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Makes what has been written to a file durable; does nothing where there is none."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> bool:
    """Makes names created, renamed or removed in `folder` durable. Returns False where the file system cannot."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _sync(descriptor)
    finally:
        os.close(descriptor)
