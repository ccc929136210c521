"""The password of a database: from a file, never from an argument, the environment or a URL."""

import os
import stat
from pathlib import Path

from hansa.errors import KeyFileUnsafe, PasswordFileMissing
from hansa.study_problems import lowered

PASSWORD_BYTES_MOST = 4096


def read_password(name: Path, home: Path) -> str:
    """Read a password.

    Args:
        name: The file: absolute, or a name in $CREDENTIALS_DIRECTORY (systemd.exec(5), Credentials), or in the home folder.
        home: The home folder of a coordinator or a participant.

    Returns:
        The text of the file without the line feed at its end.

    Raises:
        PasswordFileMissing: It cannot be read.
        KeyFileUnsafe: Others can read it, or it is not a regular file with one line of UTF-8.

    Guarantees:
        - A file that others than its owner can read is refused; in $CREDENTIALS_DIRECTORY, one that everybody can read.
        - No message repeats anything of the file.
    """
    credential = _credential(name)
    path = credential or home / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PasswordFileMissing(
            f"password file {str(path)!r} cannot be read: {lowered(error.strerror)}"
        ) from error
    try:
        status = os.fstat(descriptor)
        # systemd owns what it hands out and lets the service in by an access list, which shows as the group's bits.
        others = stat.S_IRWXO if credential else stat.S_IRWXG | stat.S_IRWXO
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileUnsafe(f"password file {str(path)!r} is not a regular file", hint="name a file")
        if status.st_mode & others:
            raise KeyFileUnsafe(
                f"password file {str(path)!r} has mode {stat.S_IMODE(status.st_mode):04o}, 0600 is the widest allowed",
                hint="chmod 600 the file; if others could have read it, change the password",
            )
        raw = os.read(descriptor, PASSWORD_BYTES_MOST + 1)
    finally:
        os.close(descriptor)
    return _one_line(raw, path)


def password_path(name: Path, home: Path) -> Path:
    """Say which file `read_password` reads."""
    return _credential(name) or home / name


def _credential(name: Path) -> Path | None:
    """Give the file that the service manager has handed out under this name, if it has."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / name if folder and not name.is_absolute() else None
    return path if path is not None and path.exists() else None


def _one_line(raw: bytes, path: Path) -> str:
    try:
        password = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        password = ""
    if not password or "\n" in password or "\0" in password or len(raw) > PASSWORD_BYTES_MOST:
        raise KeyFileUnsafe(
            f"password file {str(path)!r} does not hold one line of at most {PASSWORD_BYTES_MOST} bytes of UTF-8",
            hint="put the password alone into the file",
        )
    return password
