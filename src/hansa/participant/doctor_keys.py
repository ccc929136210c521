"""Checks of who a participant is: settings, the pinned consortium, keys, certificates, revocations."""

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from hansa.errors import ConfigurationError, Error, InvalidValue, SettingsMissing
from hansa.federation.checks import Check, Finding, fail, failure, ok, warn
from hansa.federation.enrolments import Enrolment, verify_enrolment
from hansa.federation.fields import utc_text
from hansa.federation.files import read_private_file
from hansa.federation.machine_checks import look_at_folder, look_at_secrets, look_at_window
from hansa.federation.mending import SET_CLOCK, edit, restore
from hansa.federation.requests import MemberKeys
from hansa.federation.tls_files import read_tls
from hansa.participant.dataset_file import load_datasets
from hansa.participant.examination import Examination
from hansa.participant.registered_data import SALT_FILE
from hansa.participant.settings import FILE_NAME, load_participant_settings
from hansa.secure_agg.certificates import CLOCK_SKEW

JOIN = "participant join INVITATION.json"


def look_at_settings(place: Examination) -> Iterator[Finding]:
    """Read participant.toml."""
    try:
        settings = load_participant_settings(place.folder)
    except SettingsMissing as error:
        yield failure(error, place.command(JOIN))
        return
    except ConfigurationError as error:
        told = f"{error.message}; {error.hint}"
        yield fail(told, edit(place.folder / FILE_NAME), code=error.code)
        return
    yield ok(f"participant {settings.name} of {settings.consortium.name}")


def look_at_authority(place: Examination) -> Iterator[Finding]:
    """Hold authority.crt against the pinned fingerprint, and look at its time."""
    try:
        consortium = place.home.consortium
    except Error as error:
        yield failure(error, restore(place.folder / "authority.crt"))
        return
    yield ok(f"fits the pinned fingerprint of {consortium.name}")
    found = x509.load_der_x509_certificate(consortium.authority)
    yield look_at_window(
        "the authority", found.not_valid_before_utc, found.not_valid_after_utc, place.now(),
        mend="hansa consortium init NAME --address HOST", subject="time",
    )  # fmt: skip


def look_at_keys(place: Examination) -> Iterator[Finding]:
    """Look at every file that holds a secret."""
    home = place.home
    needed = [home.folder / "identity.key", home.folder / "identity.store", home.flower_key_file]
    others = [path for path in home.key_files() if path not in needed]
    salt = home.folder / SALT_FILE
    others += [salt] if salt.exists() else []
    others += sorted(home.folder.glob("studies/*/node.key"))
    return look_at_secrets(home.folder, [*needed, *others, *_password_files(home.folder)])


def _password_files(folder: Path) -> list[Path]:
    try:
        entries = load_datasets(folder).dataset
    except ConfigurationError:
        return []  # the check of the data sets says so
    return [folder / entry.password_file for entry in entries if entry.password_file is not None]


def look_at_enrolment(place: Examination) -> Iterator[Finding]:
    """Verify enrolment, chain and keys at a moment of their validity; `certificate_days` looks at the time."""
    home = place.home
    if not home.is_enrolled:
        resume = place.command("participant join --resume")
        yield fail(f"{home.name!r} is not enrolled yet", resume, code="not_a_member")
        return
    document = home.enrolment()
    body = document.body
    verify_enrolment(
        document,
        consortium=home.consortium,
        participant=home.name,
        keys=_own_keys(place),
        number=body.number,
        now=min(max(place.now(), body.not_before), body.not_after),
    )
    read_tls(home.tls_files)
    yield ok(f"enrolment {body.number}: both certificates are the authority's, for the keys of this home")


def _own_keys(place: Examination) -> MemberKeys:
    home = place.home
    tls = load_pem_private_key(read_private_file(home.tls_files.key), None).public_key()
    try:
        flower = load_ssh_private_key(read_private_file(home.flower_key_file), None).public_key()
    except ValueError as error:
        raise InvalidValue("flower.key holds no key", hint=restore(home.flower_key_file)) from error
    return MemberKeys(
        identity=home.identity().public,
        tls=tls.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        flower=flower.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    )


def look_at_days(place: Examination) -> Iterator[Finding]:
    """Look at the time that the certificates have left; the agent asks for new ones when a third of it is."""
    body: Enrolment = place.home.enrolment().body
    run = place.command("participant run")
    yield look_at_window("the enrolment", body.not_before, body.not_after, place.now(), mend=run)


def look_at_revocations(place: Examination) -> Iterator[Finding]:
    """Look at the revocation list that was seen last: its age, and whether the own certificates stand on it."""
    home, now = place.home, place.now()
    run = place.command("participant run")
    try:
        known = home.revocations()
    except Error as error:
        yield failure(error, restore(home.folder / "revocations.crl"))
        return
    if not known.encoded:
        yield warn("no revocation list was seen yet; the agent fetches it", run, code="no_revocation_list")
        return
    found = x509.load_der_x509_crl(known.encoded)
    begin, end = found.last_update_utc, found.next_update_utc
    if now < begin - CLOCK_SKEW:
        told = f"the list is of {utc_text(begin)}, and this clock says {utc_text(now)}"
        yield fail(told, SET_CLOCK, code="certificate_rejected")
    elif end is None or now > end + CLOCK_SKEW:
        told = f"the list ended at {utc_text(end) if end else 'no time'}: no certificate passes"
        yield fail(told, run, code="certificate_rejected")
    else:
        yield ok(f"list {known.number} is {(now - begin).days} days old, and ends at {utc_text(end)}")
    if home.is_enrolled:
        yield from _own_standing(place)


def _own_standing(place: Examination) -> Iterator[Finding]:
    listed = x509.load_der_x509_crl(place.home.revocations().encoded)
    body = place.home.enrolment().body
    for what, serial in (("identity", body.identity_serial), ("TLS", body.tls_serial)):
        if listed.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None:
            told = f"the own {what} certificate is revoked: the admin has to invite this participant again"
            yield fail(
                told, "hansa participant join INVITATION.json --home NEW_HOME", code="participant_revoked",
                subject="own",
            )  # fmt: skip
            return


def mend_enrolment(place: Examination) -> str:
    """What helps when the enrolment is not what it must be."""
    return restore(place.folder / "enrolments")


KEY_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="settings", look=look_at_settings),
    Check(name="authority", look=look_at_authority, needs=("settings",)),
    Check(name="home_folder", look=lambda place: [look_at_folder(place.folder)]),
    Check(name="key_files", look=look_at_keys, needs=("authority",)),
    Check(name="enrolment", look=look_at_enrolment, needs=("key_files",), mend=mend_enrolment),
    Check(name="certificate_days", look=look_at_days, needs=("enrolment",), mend=mend_enrolment),
    Check(name="revocation_list", look=look_at_revocations, needs=("authority",)),
)
