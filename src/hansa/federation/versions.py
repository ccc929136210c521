"""Which versions a side runs: both must write the same messages, ciphertexts and documents."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("hansa", "flwr", "tenseal", "torch", "grpcio")


def versions_here() -> dict[str, str]:
    """Return the versions of the packages that both sides depend on; a package that is not installed is left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
