"""Which versions a side runs: both must write the same messages, ciphertexts and documents."""

import hashlib
from importlib.metadata import PackageNotFoundError, version

from hansa import labels

PROTOCOL, TIME = "protocol", "time"  # keys beside the packages' names
PACKAGES = ("hansa", "flwr", "tenseal", "torch", "grpcio")


def versions_here() -> dict[str, str]:
    """Return the versions of the packages that both sides depend on and of the protocol; what is not installed is left out."""
    found = {PROTOCOL: protocol_here()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def protocol_here() -> str:
    """Name the protocol that this side speaks: a hash over all versioned labels, which change with what is hashed under them."""
    spoken = sorted(value for value in vars(labels).values() if isinstance(value, bytes))
    return hashlib.sha256(b"\n".join(spoken)).hexdigest()[:16]
