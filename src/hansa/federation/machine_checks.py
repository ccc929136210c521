"""Checks of the machine that both sides make: disk, files of secrets, certificates' times, packages, Flower's telemetry."""

import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from hansa.errors import Error, KeyFileUnsafe
from hansa.federation.checks import Finding, fail, failure, ok, warn
from hansa.federation.fields import utc_text
from hansa.federation.files import read_private_file
from hansa.federation.mending import SET_CLOCK, free_space, install, restore, restrict
from hansa.secure_agg.certificates import CLOCK_SKEW

DISK_BYTES_LEAST = 256 << 20  # below it a round may not end
DISK_BYTES_GOOD = 4 << 30
EXACT_PACKAGES = ("flwr", "tenseal")  # what both sides must have in one version
_ROOMS = ("coordinator", "kernels", "models", "participant", "privacy", "secure_agg")
_PACKAGE = Path(__file__).resolve().parents[1]
_GIB = 1 << 30


def look_at_disk(folder: Path, *, good: int = DISK_BYTES_GOOD, what: str = "the home") -> Finding:
    """Look at the free space of a folder's disk."""
    free = shutil.disk_usage(folder).free
    told = f"{free / _GIB:.1f} GiB are free for {what}"
    if free < DISK_BYTES_LEAST:
        return fail(told, free_space(folder), code="store_not_writable")
    if free < good:
        return warn(f"{told}, less than {good / _GIB:.1f} GiB", free_space(folder), code="little_space")
    return ok(told)


def look_at_secrets(folder: Path, files: Iterable[Path]) -> Iterator[Finding]:
    """Look at who else can read or write files of secrets.

    Args:
        folder: The home.
        files: Files that must be there.
    """
    count = 0
    for path in files:
        count += 1
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
        try:
            read_private_file(path)
        except KeyFileUnsafe as error:
            yield failure(error, _owned(path), subject=name)
        except Error as error:
            yield failure(error, restore(path), subject=name)
    yield ok(f"{count} files with secrets were looked at")


def look_at_folder(folder: Path) -> Finding:
    """Look at who else can enter a home, or put other files into it."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    told = f"the home has mode {mode:04o}, 0700 is the widest allowed"
    if mode & 0o022:
        return fail(f"others can put files into it: {told}", restrict(folder), code="key_file_unsafe")
    if mode & 0o077:
        return warn(f"others can look into it: {told}", restrict(folder), code="home_open")
    return ok("nobody else can enter it")


def _owned(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISREG(status.st_mode) and status.st_uid != os.geteuid():
        return f"chown {os.geteuid()} {shlex.quote(str(path))} && {restrict(path)}"
    return restrict(path) if stat.S_ISREG(status.st_mode) else restore(path)


def look_at_window(
    what: str, begin: datetime, end: datetime, now: datetime, *, mend: str, soon: str = "", subject: str = ""
) -> Finding:
    """Look at the time that a certificate has left.

    Args:
        what: Names the certificate.
        begin: Begin of its validity.
        end: End of its validity.
        now: The time.
        mend: Command that brings another one when it has ended.
        soon: The same when a third of its time is left; `mend` where it is not given.
        subject: As in a finding.
    """
    days = (end - now).total_seconds() / 86400
    if now < begin:
        told = f"{what} begins at {utc_text(begin)}, and this clock says {utc_text(now)}"
        return fail(told, SET_CLOCK, code="certificate_rejected", subject=subject)
    if now >= end:
        told = f"{what} ended at {utc_text(end)}"
        return fail(told, mend, code="certificate_rejected", subject=subject)
    told = f"{what} ends in {days:.0f} days, at {utc_text(end)}"
    if now > end - (end - begin) / 3:
        return warn(f"{told}: less than a third is left", soon or mend, code="ends_soon", subject=subject)
    return ok(told, subject=subject)


def look_at_clock_against(ahead_seconds: float) -> Finding:
    """Look at how far the other side's clock is ahead of this one, the way there and back left out."""
    told = f"the coordinator's clock is {ahead_seconds:+.0f} s from this one"
    most = CLOCK_SKEW.total_seconds()
    if abs(ahead_seconds) > most:
        return fail(f"{told}, the bound is {most:.0f} s", SET_CLOCK, code="clock_skew")
    if abs(ahead_seconds) > 60:
        return warn(told, SET_CLOCK, code="clock_apart")
    return ok(told)


def look_at_telemetry() -> Finding:
    """Look whether Flower would report to its makers: as it was told when it was imported, and as it will be told."""
    named = os.environ.get("FLWR_TELEMETRY_ENABLED", "1")
    loaded = sys.modules.get("flwr.supercore.telemetry")
    taken = str(getattr(loaded, "FLWR_TELEMETRY_ENABLED", named))
    if named != "0" or taken != "0":
        told = "Flower reports what it does to its makers: FLWR_TELEMETRY_ENABLED is not 0"
        return fail(told, "export FLWR_TELEMETRY_ENABLED=0", code="telemetry_on")
    return ok("Flower reports nothing to its makers")


def look_at_shadows() -> Finding:
    """Look whether a folder of hansa hides a package of the same name, as `kernels` would one that transformers import."""
    for name in _ROOMS:
        spec = find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if any(Path(place).resolve().is_relative_to(_PACKAGE) for place in places):
            told = f"`import {name}` finds a folder of hansa: the folder above it is on Python's path"
            return fail(told, "export PYTHONSAFEPATH=1; unset PYTHONPATH", code="package_shadowed")
    if not sys.flags.safe_path:
        told = "Python looks for packages in the current folder or beside the script first"
        return warn(told, "export PYTHONSAFEPATH=1", code="path_unsafe")
    return ok("no package is hidden by a folder of its name")


def look_at_packages() -> Iterator[Finding]:
    """Look whether what must be of one version is of the one that this hansa was made for."""
    for name, wanted in exact_pins().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found == wanted:
            yield ok(f"version {found}", subject=name)
        else:
            told = f"version {found} is installed, hansa was made for {wanted}"
            yield fail(told, install(name, wanted), code="version_differs", subject=name)


def exact_pins() -> dict[str, str]:
    """Give the versions that hansa's own description demands of `EXACT_PACKAGES`."""
    lines = requires("hansa") or []
    found = (re.match(r"([A-Za-z0-9_-]+)\s*==\s*([^\s;,]+)", line) for line in lines)
    pins = {match[1].lower(): match[2] for match in found if match}
    return {name: pins[name] for name in EXACT_PACKAGES if name in pins}
