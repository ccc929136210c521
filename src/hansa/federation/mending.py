"""Commands that mend what a check has found, as somebody can paste them into a shell."""

import shlex
from pathlib import Path


def hansa(words: str, home: Path) -> str:
    """A command of hansa for a home."""
    return f"hansa {words} --home {shlex.quote(str(home))}"


def edit(path: Path) -> str:
    """Open a file in the user's editor."""
    return f'"${{EDITOR:-vi}}" {shlex.quote(str(path))}'


def restrict(path: Path) -> str:
    """Let only its owner read a file, or enter a folder."""
    mode = "700" if path.is_dir() else "600"
    return f"chmod {mode} {shlex.quote(str(path))}"


def restore(path: Path) -> str:
    """Put a file of a home back from a backup."""
    return f"cp BACKUP/{shlex.quote(path.name)} {shlex.quote(str(path))}"


def free_space(folder: Path) -> str:
    """Show what takes the space of a folder's disk."""
    return f"du -xh --max-depth=2 {shlex.quote(str(folder))} | sort -h | tail"


def install(package: str, version: str) -> str:
    """Install a version of a package into the environment that hansa runs in."""
    return f"pip install '{package}=={version}'"


SET_CLOCK = "timedatectl set-ntp true"
