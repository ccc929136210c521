"""Revocation lists, and what the authority makes and refuses to make."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hansa.errors import CertificateRejected, InvalidValue, MalformedMessage, MessageTooLarge
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import (
    CLOCK_SKEW,
    MAXIMUM_CERTIFICATE_BYTES,
    MAXIMUM_REVOCATION_LIST_BYTES,
    RevocationList,
    verify_certificate,
)
from hansa.secure_agg.identity import Identity

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
WINDOW = {"not_before": NOW - 30 * DAY, "not_after": NOW + 30 * DAY}
LIST = {"this_update": NOW - DAY, "next_update": NOW + DAY}
NAME = "bank-000"


@pytest.fixture
def identity():
    return Identity.generate()


@pytest.fixture
def certificate(authority, identity):
    return authority.issue(identity.request_certificate(NAME), participant=NAME, **WINDOW)


@pytest.fixture
def verify(authority, identity, certificate):
    def check(revoked, now=NOW):
        verify_certificate(
            certificate,
            authority=authority.certificate,
            participant=NAME,
            identity_key=identity.public,
            now=now,
            revoked=revoked,
        )

    return check


def listed(authority, *updates):
    found = RevocationList(authority.certificate)
    for encoded in updates:
        found.update(encoded, NOW)
    return found


def raw_list(authority, *, signer=None, issuer="consortium", extensions=(), entries=(), algorithm=None):
    """A list as the authority's, but for what is changed."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateRevocationListBuilder().issuer_name(name)
    builder = builder.last_update(NOW - DAY).next_update(NOW + DAY)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer or authority._private, algorithm).public_bytes(Encoding.DER)


# -- revocation ------------------------------------------------------------------------------------------


def test_a_revoked_certificate_is_rejected_and_others_are_not(authority, identity, certificate, verify):
    other = authority.issue(identity.request_certificate(NAME), participant=NAME, **WINDOW)
    verify(None)
    verify(listed(authority, authority.revocation_list([], number=1, **LIST)))
    verify(listed(authority, authority.revocation_list([other], number=1, **LIST)))
    for revoked in ([certificate], [other, certificate]):
        with pytest.raises(CertificateRejected, match="is revoked"):
            verify(listed(authority, authority.revocation_list(revoked, number=1, **LIST)))


def test_a_list_that_is_missing_or_ended_lets_nobody_pass(authority, verify):
    found = listed(authority)
    with pytest.raises(CertificateRejected, match="no revocation list") as missing:
        verify(found)
    assert "fetch" in missing.value.hint
    found.update(authority.revocation_list([], number=0, **LIST), NOW)
    for now in (NOW + DAY + CLOCK_SKEW, NOW - DAY - CLOCK_SKEW):
        verify(found, now)
    for now in (NOW + DAY + CLOCK_SKEW + SECOND, NOW - DAY - CLOCK_SKEW - SECOND):
        with pytest.raises(CertificateRejected, match="the revocation list"):
            verify(found, now)


def test_a_list_of_another_authority_is_rejected(authority, verify):
    other = CertificateAuthority.create("consortium", **WINDOW)
    with pytest.raises(CertificateRejected, match="not signed by the pinned authority"):
        listed(authority, other.revocation_list([], number=1, **LIST))
    number = [(x509.CRLNumber(1), False)]
    listed(authority, raw_list(authority, extensions=number))
    with pytest.raises(CertificateRejected, match="not signed by the pinned authority"):
        listed(authority, raw_list(authority, issuer="other", extensions=number))
    elliptic = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CertificateRejected, match="not signed by the pinned authority"):
        listed(authority, raw_list(authority, signer=elliptic, extensions=number, algorithm=SHA256()))
    with pytest.raises(InvalidValue, match="another authority"):
        verify(listed(other, other.revocation_list([], number=1, **LIST)))


def test_a_list_that_is_out_of_date_or_of_the_future_is_not_taken(authority):
    for window in (
        {"this_update": NOW - 2 * DAY, "next_update": NOW - DAY},
        {"this_update": NOW + DAY, "next_update": NOW + 2 * DAY},
    ):
        with pytest.raises(CertificateRejected, match="revocation list"):
            listed(authority, authority.revocation_list([], number=1, **window))
    with pytest.raises(InvalidValue):
        RevocationList(authority.certificate).update(
            authority.revocation_list([], number=1, **LIST), NOW.replace(tzinfo=None)
        )


def test_a_list_never_goes_back(authority, certificate, verify):
    first = authority.revocation_list([], number=3, **LIST)
    second = authority.revocation_list([certificate], number=4, **LIST)
    found = listed(authority, first, first, second)
    for older in (first, authority.revocation_list([], number=4, **LIST)):
        with pytest.raises(CertificateRejected, match="not later"):
            found.update(older, NOW)
        assert (found.number, found.encoded) == (4, second)
        with pytest.raises(CertificateRejected, match="is revoked"):
            verify(found)


def test_a_party_remembers_its_list_and_number_over_a_restart_even_after_its_end(authority, certificate):
    known = listed(authority, authority.revocation_list([certificate], number=4, **LIST)).encoded
    later = NOW + 10 * DAY
    found = RevocationList(authority.certificate, known)
    assert found.number == 4
    window = {"this_update": later, "next_update": later + DAY}
    with pytest.raises(CertificateRejected, match="not later"):
        found.update(authority.revocation_list([], number=3, **window), later)
    with pytest.raises(CertificateRejected, match="was valid until"):
        found.verify_not_revoked(1, later)
    found.update(authority.revocation_list([certificate], number=5, **window), later)
    found.verify_not_revoked(1, later)
    other = CertificateAuthority.create("consortium", **WINDOW)
    with pytest.raises(CertificateRejected, match="not signed"):
        RevocationList(other.certificate, known)


def test_a_list_of_another_form_is_rejected(authority):
    number, unknown = (
        (x509.CRLNumber(1), False),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
    )
    entry = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(NOW)
    listed(authority, raw_list(authority, extensions=[number, (unknown, False)], entries=[entry.build()]))
    critical = entry.add_extension(unknown, critical=True).build()
    for wrong in (
        raw_list(authority),  # no number
        raw_list(authority, extensions=[number, (unknown, True)]),
        raw_list(authority, extensions=[number, (x509.DeltaCRLIndicator(1), True)]),
        raw_list(authority, extensions=[number], entries=[critical]),
    ):
        with pytest.raises(CertificateRejected):
            listed(authority, wrong)
    with pytest.raises(MessageTooLarge):
        listed(authority, bytes(MAXIMUM_REVOCATION_LIST_BYTES + 1))


def test_a_list_of_a_thousand_certificates_fits(authority):
    entry = x509.RevokedCertificateBuilder().revocation_date(NOW)
    entries = [entry.serial_number((1 << 158) + place).build() for place in range(1000)]
    encoded = raw_list(authority, extensions=[(x509.CRLNumber(1), False)], entries=entries)
    with pytest.raises(CertificateRejected, match="is revoked"):
        listed(authority, encoded).verify_not_revoked((1 << 158) + 999, NOW)


# -- what the authority makes ----------------------------------------------------------------------------


def test_an_authority_survives_export_and_shows_no_secret(authority, certificate):
    again = CertificateAuthority.load(authority.export(), authority.certificate)
    assert again.export() == authority.export()
    identity = Identity.generate()
    issued = again.issue(identity.request_certificate(NAME), participant=NAME, **WINDOW)
    verify_certificate(
        issued, authority=authority.certificate, participant=NAME, identity_key=identity.public, now=NOW
    )
    assert authority.export().hex()[:8] not in repr(authority) + str(authority)
    with pytest.raises(CertificateRejected, match="another key"):
        CertificateAuthority.load(bytes(32), authority.certificate)
    with pytest.raises(CertificateRejected):
        CertificateAuthority.load(authority.export(), certificate)


def test_serial_numbers_are_random_and_positive(authority, identity):
    request = identity.request_certificate(NAME)
    issued = [authority.issue(request, participant=NAME, **WINDOW) for _ in range(20)]
    serials = {x509.load_der_x509_certificate(certificate).serial_number for certificate in issued}
    assert len(serials) == 20
    assert all(0 < serial < 1 << 159 for serial in serials)


def test_a_request_that_is_not_the_participants_own_is_refused(authority, identity):
    request = identity.request_certificate(NAME)
    signed = bytearray(request)
    signed[-1] ^= 1
    elliptic = ec.generate_private_key(ec.SECP256R1())

    def asked(names, signer, algorithm=None):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(signer, algorithm).public_bytes(Encoding.DER)

    for wrong, reason in (
        (bytes(signed), "not signed"),
        (asked([NAME], elliptic, SHA256()), "not signed by an Ed25519 key"),
        (identity.request_certificate("bank-001"), "names"),
        (asked([], identity._private), "names"),
        (asked([NAME, NAME], identity._private), "names"),
        (b"", "not well-formed"),
        (request[:-1], "not well-formed"),
        (authority.certificate, "not well-formed"),
    ):
        with pytest.raises(CertificateRejected, match=reason):
            authority.issue(wrong, participant=NAME, **WINDOW)
    with pytest.raises(MessageTooLarge):
        authority.issue(bytes(MAXIMUM_CERTIFICATE_BYTES + 1), participant=NAME, **WINDOW)
    for name in ("bank 0", "", "b" * 65):
        with pytest.raises(MalformedMessage):
            authority.issue(request, participant=name, **WINDOW)
        with pytest.raises(MalformedMessage):
            identity.request_certificate(name)


def test_what_a_request_asks_for_beside_name_and_key_is_not_certified(authority, identity):
    subject = x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, NAME), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "All Banks")
    ])  # fmt: skip
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
    request = builder.sign(identity._private, None).public_bytes(Encoding.DER)
    issued = authority.issue(request, participant=NAME, **WINDOW)
    found = x509.load_der_x509_certificate(issued)
    assert found.subject.rfc4514_string() == f"CN={NAME}"
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_parts_of_a_second_do_not_count(identity):
    window = {"not_before": NOW.replace(microsecond=7), "not_after": NOW + DAY + timedelta(microseconds=7)}
    made = CertificateAuthority.create("consortium", **window)
    issued = made.issue(identity.request_certificate(NAME), participant=NAME, **window)
    assert x509.load_der_x509_certificate(issued).not_valid_after_utc == NOW + DAY


def test_validities_that_are_none_are_refused(authority, identity, certificate):
    request = identity.request_certificate(NAME)
    naive = {"not_before": NOW.replace(tzinfo=None), "not_after": NOW + DAY}
    for window in (
        {"not_before": NOW, "not_after": NOW},
        {"not_before": NOW + DAY, "not_after": NOW},
        {"not_before": NOW, "not_after": NOW + 31 * DAY},  # outlasts the authority
        naive,
        {"not_before": NOW, "not_after": NOW.replace(tzinfo=None)},
    ):
        with pytest.raises(InvalidValue):
            authority.issue(request, participant=NAME, **window)
    with pytest.raises(InvalidValue):
        CertificateAuthority.create("consortium", **naive)
    for name in ("", "x" * 65):
        with pytest.raises(InvalidValue):
            CertificateAuthority.create(name, **WINDOW)
    with pytest.raises(InvalidValue):
        authority.revocation_list([], number=1, this_update=NOW, next_update=NOW)
    with pytest.raises(InvalidValue):
        authority.revocation_list([], number=-1, **LIST)
    other = CertificateAuthority.create("consortium", **WINDOW)
    for wrong in (b"", other.certificate, other.issue(request, participant=NAME, **WINDOW)):
        with pytest.raises(CertificateRejected, match="to revoke"):
            authority.revocation_list([certificate, wrong], number=1, **LIST)


def test_a_list_without_an_end_is_rejected(authority):
    """No builder makes one, so a list's nextUpdate is cut out of it and the rest is signed anew."""
    whole = authority.revocation_list([], number=1, **LIST)
    signed = x509.load_der_x509_crl(whole).tbs_certlist_bytes
    time = signed.rindex(b"\x17\x0d")  # UTCTime of 13 characters; the last one is nextUpdate
    content = signed[2:time] + signed[time + 15 :]
    assert signed[1] == len(signed) - 2 < 128
    shorter = b"\x30" + bytes([len(content)]) + content
    signature = b"\x03\x41\x00" + authority._private.sign(shorter)
    content = shorter + b"\x30\x05\x06\x03\x2b\x65\x70" + signature
    endless = b"\x30\x81" + bytes([len(content)]) + content
    assert x509.load_der_x509_crl(endless).next_update_utc is None
    with pytest.raises(CertificateRejected, match="has no end"):
        listed(authority, endless)
