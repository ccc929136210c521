"""Which program a participant ran: the version, and a hash over the source files of the installed package.

It says what was installed, not what was executed: a participant that wants to lie signs whatever it likes. Two honest
participants with the same release have the same hash, so an auditor who installs that release can compare.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import hansa
from hansa import labels

_PACKAGE = Path(hansa.__file__).parent
_SUFFIXES = (".py", ".j2", ".typ", ".proto", ".mako")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeIdentity:
    """A program.

    Attributes:
        version: Version of the installed distribution.
        sha256: Hash over its source files, 32 bytes.
        files: How many.
    """

    version: str
    sha256: bytes
    files: int


def code_identity(package: Path = _PACKAGE) -> CodeIdentity:
    """Hash the source files of an installed package: for each, in order of its path, the path and the hash of its content.

    Args:
        package: Its folder; hansa's own unless a test gives another.

    Guarantees:
        - Another byte, name or place of a source file gives another hash, up to a collision of SHA-256.
        - Does not depend on where the package is installed, nor on compiled files beside the sources.
    """
    found = sorted(
        (path.relative_to(package).as_posix(), path)
        for path in package.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    )
    digest = hashlib.sha256(labels.CODE)
    for name, path in found:
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return CodeIdentity(version=version("hansa"), sha256=digest.digest(), files=len(found))
