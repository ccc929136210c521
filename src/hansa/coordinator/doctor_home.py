"""Checks of what a coordinator's home holds: settings, database, keys, spool, base models."""

import hashlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hansa.coordinator.authoring import desk_of
from hansa.coordinator.examination import Examination
from hansa.coordinator.journal_database import holds_password, parse_url
from hansa.coordinator.journal_probe import journal_state, verify_journal_writable
from hansa.coordinator.settings import FILE_NAME, load_coordinator_settings
from hansa.coordinator.study_states import OVER, Outcomes, name_of, state_of
from hansa.errors import (
    AuthorityAbsent,
    ConfigurationError,
    DatabaseNewer,
    DriverMissing,
    Error,
    KeyFileUnsafe,
    PasswordFileMissing,
    SettingsMissing,
)
from hansa.federation.checks import Check, Finding, fail, failure, ok
from hansa.federation.machine_checks import look_at_disk, look_at_folder, look_at_secrets
from hansa.federation.mending import edit, restore, restrict
from hansa.federation.password_file import password_path

INIT = "consortium init NAME --address HOST"
_PART_BYTES = 1 << 20


def look_at_settings(place: Examination) -> Iterator[Finding]:
    """Read coordinator.toml, and the authority's certificate beside it."""
    try:
        settings = load_coordinator_settings(place.folder)
    except SettingsMissing as error:
        yield failure(error, place.command(INIT))
        return
    except ConfigurationError as error:
        yield fail(f"{error.message}; {error.hint}", place.editing(), code=error.code)
        return
    try:
        consortium = place.home.consortium
    except Error as error:
        yield failure(error, restore(place.folder / "ca" / "authority.crt"))
        return
    yield ok(f"coordinator of {consortium.name}")
    if settings.database is not None and _holds_password(settings.database):
        yield from _password(place.folder / FILE_NAME)


def _holds_password(database: str) -> bool:
    try:
        return holds_password(parse_url(database))
    except Error:  # which the check of the database names
        return False


def _password(file: Path) -> Iterator[Finding]:
    if file.stat().st_mode & 0o077:
        told = "others can read the password of the database in it"
        yield fail(told, restrict(file), code="key_file_unsafe", subject="password")


def look_at_database(place: Examination) -> Iterator[Finding]:
    """Open the database and see of which form it is, without changing it."""
    settings = place.home.settings
    try:
        found = journal_state(settings.database_url(place.folder))
    except (PasswordFileMissing, KeyFileUnsafe) as error:
        yield failure(error, _mend_password_file(Path(str(settings.database_password_file)), place.folder))
        return
    except DatabaseNewer as error:
        yield failure(error, "pip install --upgrade hansa")
        return
    except DriverMissing as error:
        yield failure(error)  # its hint says which package
        return
    except Error as error:
        yield failure(error, place.editing())
        return
    if found.is_newest:
        yield ok(f"{found.name} is of revision {found.revision}")
    else:
        told = f"{found.name} is of revision {found.revision or 'none'}, an older form"
        yield fail(told, place.command("consortium show"), code="database_older")


def _mend_password_file(name: Path, home: Path) -> str:
    path = password_path(name, home)
    return restrict(path) if path.is_file() and path.stat().st_mode & 0o077 else edit(path)


def look_at_journal(place: Examination) -> Iterator[Finding]:
    """Write into the journal and take it back."""
    verify_journal_writable(place.home.settings.database_url(place.folder))
    yield ok("can be written")


def look_at_keys(place: Examination) -> Iterator[Finding]:
    """Look at every file that holds a secret."""
    home = place.home
    files = [home.tls_files.key, *sorted(home.folder.glob("authors/*.key"))]
    authority = home.folder / "ca" / "authority.key"
    return look_at_secrets(home.folder, [*files, *([authority] if authority.exists() else [])])


def look_at_authority_key(place: Examination) -> Iterator[Finding]:
    """Say whether the authority's key is here, and is the authority's."""
    try:
        place.home.authority()
    except AuthorityAbsent:
        yield ok("kept elsewhere: renewals and revocation lists wait for the admin")
    except Error as error:
        path = place.folder / "ca" / "authority.key"
        yield failure(error, restrict(path) if error.code == "key_file_unsafe" else restore(path))
    else:
        yield ok("at hand: renewals and revocation lists make themselves")


def look_at_spool(place: Examination) -> Iterator[Finding]:
    """Write into the folder of uploads, and hold its disk's free space against the quota."""
    spool = place.home.settings.spool
    folder = place.folder / spool.folder
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        told = f"{spool.folder} cannot be written: {error.strerror}"
        yield fail(told, f"mkdir -p -m 700 {shlex.quote(str(folder))}", code="store_not_writable")
        return
    yield look_at_disk(folder, good=spool.quota_bytes, what="uploads")


def look_at_models(place: Examination) -> Iterator[Finding]:
    """Hash the base model of every study that is not over."""
    now, outcomes = place.now(), Outcomes(place.office.journal)
    studies = [
        s for s in desk_of(place.office, place.now).all() if state_of(s, outcomes.get(s), now) not in OVER
    ]
    for study in studies:
        wanted = study.proposal.body.base_model.hex()
        path, name = place.home.models / wanted, name_of(study)
        copy = f"cp BASE_MODEL {shlex.quote(str(path))}"
        try:
            found = _sha256(path)
        except OSError as error:
            told = f"base model {wanted[:16]} cannot be read: {error.strerror}"
            yield fail(told, copy, code="checkpoint_file_missing", subject=name)
            continue
        if found == wanted:
            yield ok(f"base model {wanted[:16]} is there, whole", subject=name)
        else:
            told = f"base model {wanted[:16]} has the hash {found[:16]}"
            yield fail(told, copy, code="checksum_mismatch", subject=name)
    if not studies:
        yield ok("no study waits or runs")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


HOME_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="settings", look=look_at_settings),
    Check(name="home_folder", look=lambda place: [look_at_folder(place.folder)]),
    Check(name="key_files", look=look_at_keys, needs=("settings",)),
    Check(name="authority_key", look=look_at_authority_key, needs=("settings",)),
    Check(name="database", look=look_at_database, needs=("settings",), limit_seconds=30.0),
    Check(
        name="journal",
        look=look_at_journal,
        needs=("database",),
        limit_seconds=30.0,
        mend=lambda place: f"df -h {shlex.quote(str(place.folder))}",
    ),
    Check(name="spool", look=look_at_spool, needs=("settings",)),
    Check(name="base_models", look=look_at_models, needs=("journal",), limit_seconds=300.0, late="warn"),
)
