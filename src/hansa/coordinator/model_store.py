"""Base models of studies at the coordinator, each in a file that is named by its SHA-256."""

import hashlib
import os
from pathlib import Path

from hansa.errors import CheckpointFileMissing, StoreNotWritable
from hansa.federation.files import make_folder, sync_folder

_PART_BYTES = 1 << 20


def keep_model(models: Path, path: Path) -> tuple[bytes, int]:
    """Copy a base model to where the service `Consortium` finds it.

    Args:
        models: Folder of base models.
        path: The model's file.

    Returns:
        Its SHA-256, 32 bytes, and its length in bytes: both stand in the proposal.

    Raises:
        CheckpointFileMissing: The file cannot be read.
        StoreNotWritable: The copy cannot be written.

    Guarantees:
        - A file in the folder is whole, and its name is its hash.
    """
    make_folder(models)
    digest, length = hashlib.sha256(), 0
    unfinished = models / f".{os.urandom(8).hex()}"
    try:
        source = open(path, "rb")  # noqa: SIM115 - its error has a name of its own
    except OSError as error:
        raise CheckpointFileMissing(
            f"the base model {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    try:
        with source, open(unfinished, "xb") as copy:
            while part := source.read(_PART_BYTES):
                digest.update(part)
                length += len(part)
                copy.write(part)
            copy.flush()
            os.fsync(copy.fileno())
        unfinished.rename(models / digest.hexdigest())
        sync_folder(models)
    except OSError as error:
        raise StoreNotWritable(f"the base model cannot be kept: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return digest.digest(), length
