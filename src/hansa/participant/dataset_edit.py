"""Changes of datasets.toml that leave everything else in it as its owner wrote it.

A block is added at the end or cut out as text; the result is read again and must say what was meant before it replaces the file.
"""

import fcntl
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.errors import DatasetExists, DatasetSyntaxError, StoreNotWritable
from hansa.participant.dataset_file import (
    FILE,
    SCHEMA,
    DatasetEntry,
    DatasetsFile,
    load_datasets,
    parse_datasets,
    read_text,
)

_LOCK_FILE = ".datasets.lock"


def block_of(entry: DatasetEntry) -> str:
    """Write a data set as a [[dataset]] block: what differs from the defaults, in the order of docs/data.md."""
    lines = ["[[dataset]]"]
    for key, value in entry.model_dump(exclude_unset=True).items():
        if value is None or value in ({}, ()):
            continue
        lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_text(name)} = {_value(inner)}" for name, inner in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(inner) for inner in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _text(str(value))


def _text(text: str) -> str:
    """Write a basic string (TOML 1.0, section String)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    shown = "".join(char if " " <= char != "\x7f" else f"\\u{ord(char):04x}" for char in escaped)
    return f'"{shown}"'


def add_dataset(home: Path, entry: DatasetEntry, *, dry_run: bool = False) -> str:
    """Add a data set to the datasets.toml of a home folder, which is made if there is none.

    Args:
        home: The home folder.
        entry: What to add.
        dry_run: Write nothing.

    Returns:
        The block.

    Raises:
        DatasetExists: There is a data set of this name.
        StoreNotWritable: The folder or file cannot be written.
        ConfigurationError: The file that is there cannot be read; it stays as it is.

    Guarantees:
        - The file is replaced whole, at mode 0600, or left as it is; comments and order of the others stay.
        - Two that add at once both succeed.
    """
    block = block_of(entry)
    if dry_run:
        _verify_new(_present(home), entry.name)
        return block
    with _locked(home):
        _verify_new(_present(home), entry.name)
        old = read_text(home / FILE) if (home / FILE).exists() else f'schema = "{SCHEMA}"\n'
        text = f"{old.rstrip()}\n\n{block}"
        expected = (*parse_datasets(old).dataset, entry)
        _replace(home, text, expected)
    return block


def remove_dataset(home: Path, name: str, *, dry_run: bool = False) -> str:
    """Take a data set out of datasets.toml; its ledger and its place in the register stay.

    Returns:
        The block that was taken out.

    Raises:
        UnknownDataset: There is none of this name.
        DatasetSyntaxError: The file is written in a way that cannot be cut safely; it stays as it is.
        StoreNotWritable: The file cannot be written.
    """
    found = load_datasets(home)
    found.named(name)
    with _locked(home):
        text = read_text(home / FILE)
        entries = parse_datasets(text).dataset
        start, end = _place(text, [entry.name for entry in entries].index(name), len(entries))
        if not dry_run:
            _replace(home, text[:start] + text[end:], tuple(entry for entry in entries if entry.name != name))
    return text[start:end]


def _present(home: Path) -> DatasetsFile | None:
    return load_datasets(home) if (home / FILE).exists() else None


def _verify_new(found: DatasetsFile | None, name: str) -> None:
    if found is not None and any(entry.name == name for entry in found.dataset):
        raise DatasetExists(f"there is a data set {name!r} in {FILE}")


def _place(text: str, index: int, count: int) -> tuple[int, int]:
    """Find where a block begins and ends: from its header, with the comment right above it, to the next block."""
    starts, place, comment = [], 0, None
    for line in text.splitlines(keepends=True):
        bare = line.split("#")[0].strip().replace(" ", "")
        if bare == "[[dataset]]":
            starts.append(place if comment is None else comment)
        if not line.startswith("#"):
            comment = None
        elif comment is None:
            comment = place
        place += len(line)
    if len(starts) != count:
        raise DatasetSyntaxError(f"{FILE} cannot be cut safely: its blocks are not all begun by [[dataset]]")
    return starts[index], (starts[index + 1] if index + 1 < count else len(text))


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One change at a time."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreNotWritable(f"{str(home)!r} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(home: Path, text: str, expected: tuple[DatasetEntry, ...]) -> None:
    try:
        meant = parse_datasets(text).dataset == expected
    except (tomllib.TOMLDecodeError, DatasetSyntaxError):
        meant = False
    if not meant:
        raise DatasetSyntaxError(
            f"{FILE} is written in a way that cannot be changed safely", hint="edit it by hand"
        )
    path, unfinished = home / FILE, home / f".{FILE}.{os.urandom(8).hex()}"
    try:
        with open(
            os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600),
            "w",
            encoding="utf-8",
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreNotWritable(f"{FILE} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
