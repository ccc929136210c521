"""Files of a home folder: replaced whole or not at all, secrets that only their owner can read, and locks between processes."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.errors import HomeMissing, KeyFileUnsafe, OutputNotWritable, StoreInUse, StoreNotWritable

PRIVATE, PUBLIC = 0o600, 0o644
FILE_BYTES_MOST = 1 << 20


def write_file(path: Path, data: bytes, *, mode: int = PUBLIC, replace: bool = True) -> None:
    """Write a file so that after a crash there is the old one or the new one, whole.

    Args:
        path: The file.
        data: What it will hold.
        mode: Its permissions; `PRIVATE` for secrets.
        replace: Whether a file of this name may be replaced.

    Raises:
        StoreNotWritable: It cannot be written, or is there and must not be replaced.

    Guarantees:
        - A secret is at no moment in a file that others can read.
        - The new file is on the disk when this returns.
    """
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.rename(unfinished, path)
            else:
                os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreNotWritable(f"{path.name} cannot be written: {error.strerror}") from error


def write_output(path: Path, data: bytes, *, mode: int = PUBLIC) -> None:
    """Write a new file where the user asked for one; OutputNotWritable if it is there already or cannot be written."""
    try:
        write_file(path, data, mode=mode, replace=False)
    except StoreNotWritable as error:
        raise OutputNotWritable(error.message, hint="give another file with --output") from error


def read_file(path: Path, most: int = FILE_BYTES_MOST) -> bytes:
    """Read a file of a home, no more than one byte above `most`; HomeMissing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise HomeMissing(f"{str(path)!r} cannot be read: {error.strerror}") from error


def read_private_file(path: Path) -> bytes:
    """Read a secret.

    Raises:
        HomeMissing: There is no such file.
        KeyFileUnsafe: It is not a regular file of this user, or others can read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HomeMissing(f"there is no {str(path)!r}") from error
    except OSError as error:
        raise KeyFileUnsafe(f"{path.name} cannot be opened as a file: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise KeyFileUnsafe(f"{path.name} is not a file of this user")
        if status.st_mode & 0o077:
            raise KeyFileUnsafe(
                f"{path.name} has mode {stat.S_IMODE(status.st_mode):04o}, 0600 is the widest allowed"
            )
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(FILE_BYTES_MOST)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, with the folders above it; StoreNotWritable if that fails."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreNotWritable(f"folder {str(path)!r} cannot be made: {error.strerror}") from error


def point_to(link: Path, target: str) -> None:
    """Let a symbolic link lead to another name beside it, at once; StoreNotWritable if that fails."""
    unfinished = link.with_name(f".{link.name}.{os.urandom(8).hex()}")
    try:
        os.symlink(target, unfinished)
        try:
            os.rename(unfinished, link)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_folder(link.parent)
    except OSError as error:
        raise StoreNotWritable(f"{link.name} cannot be replaced: {error.strerror}") from error


@contextmanager
def holding(path: Path, *, in_use: StoreInUse | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs. The system takes it back whatever way this process ends.

    Args:
        path: The file; made if there is none, and left behind.
        in_use: Raised at once if another process holds it; without it this one waits.

    Raises:
        StoreInUse: See `in_use`.
        StoreNotWritable: The file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreNotWritable(f"{path.name} cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if in_use else 0))
        except BlockingIOError:
            if in_use is None:
                raise
            raise in_use from None
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
