"""Files of a report: written whole or not at all, into a folder that was tried beforehand."""

import os
from collections.abc import Mapping
from pathlib import Path

from hansa.errors import OutputNotWritable

TEMPLATES = Path(__file__).parent  # what the pages of several reports share


def prepare_directory(directory: Path) -> None:
    """Make the folder for the report and prove that it can be written to, before a run spends minutes.

    Raises:
        OutputNotWritable: It cannot be made, is a file, or refuses a new file.
    """
    probe = directory / f".report.{os.getpid()}.probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_writable(directory, error) from error


def write_files(directory: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if it does not exist.

    Returns:
        Their paths.

    Raises:
        OutputNotWritable: One cannot be written; an older file of its name is still whole.

    Guarantees:
        - A reader of a path sees the old file or the new one, never a part of one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write_atomically(directory / name, content)
    except OSError as error:
        raise not_writable(directory, error) from error
    return [directory / name for name in contents]


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def not_writable(directory: Path, error: OSError) -> OutputNotWritable:
    """Make the error for a folder that refuses a file."""
    reason = (error.strerror or "unknown reason").lower()
    return OutputNotWritable(f"folder {str(directory)!r} cannot be written: {reason}")
