"""Which certificates and revocation lists are accepted: one valid one, and every way to be another."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.errors import CertificateRejected, InvalidValue, MessageTooLarge
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import (
    CLOCK_SKEW,
    MAXIMUM_CERTIFICATE_BYTES,
    RevocationList,
    authority_hash,
    verify_authority,
    verify_certificate,
)
from hansa.secure_agg.identity import Identity

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
WINDOW = {"not_before": NOW - 30 * DAY, "not_after": NOW + 30 * DAY}
LIST = {"this_update": NOW - DAY, "next_update": NOW + DAY}
NAME = "bank-000"
USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
BASIC, EXTENDED = (
    x509.BasicConstraints(ca=False, path_length=None),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
)


@pytest.fixture(scope="module")
def identity():
    return Identity.generate()


def usage(*uses):
    return x509.KeyUsage(**{use: use in uses for use in USES})


def named(*names, more=()):
    return x509.Name([*(x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names), *more])


SUBJECT, USUAL = named(NAME), ((BASIC, True), (usage("digital_signature"), True), (EXTENDED, False))


def forge(
    signer,
    identity,
    *,
    issuer="consortium",
    subject=SUBJECT,
    key=None,
    window=WINDOW,
    algorithm=None,
    extensions=USUAL,
):
    """A certificate as a member's, but for what is changed."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(named(issuer)).serial_number(77)
    key = ed25519.Ed25519PublicKey.from_public_bytes(identity.public) if key is None else key
    builder = builder.public_key(key).not_valid_before(window["not_before"])
    builder = builder.not_valid_after(window["not_after"])
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, algorithm).public_bytes(Encoding.DER)


@pytest.fixture
def certificate(authority, identity):
    request = identity.request_certificate(NAME)
    return authority.issue(request, participant=NAME, **WINDOW)


@pytest.fixture
def verify(authority, identity):
    def check(certificate, **changes):
        pinned = {"authority": authority.certificate, "participant": NAME, "identity_key": identity.public}
        return verify_certificate(certificate, **(pinned | {"now": NOW} | changes))

    return check


# -- certificates ----------------------------------------------------------------------------------------


def test_a_certificate_of_the_authority_for_this_member_and_key_passes(
    authority, identity, certificate, verify
):
    assert verify(certificate) is None
    signer = authority._private
    assert verify(forge(signer, identity)) is None
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bank")
    assert verify(forge(signer, identity, subject=named(NAME, more=[organisation]))) is None
    usual = ((BASIC, True), (usage("digital_signature"), True), (EXTENDED, True), (UNKNOWN, False))
    assert verify(forge(signer, identity, extensions=usual)) is None


def test_clocks_may_differ_by_the_skew_and_no_more(certificate, verify):
    begin, end = WINDOW["not_before"], WINDOW["not_after"]
    for now in (begin, end, begin - CLOCK_SKEW, end + CLOCK_SKEW):
        verify(certificate, now=now)
    with pytest.raises(CertificateRejected, match="valid from") as early:
        verify(certificate, now=begin - CLOCK_SKEW - SECOND)
    with pytest.raises(CertificateRejected, match="valid until") as late:
        verify(certificate, now=end + CLOCK_SKEW + SECOND)
    assert "clock" in early.value.hint
    assert "clock" in late.value.hint
    assert late.value.code == "certificate_rejected"
    # The same moment in another zone is the same moment; one without a zone is none.
    verify(certificate, now=NOW.astimezone(tz=None))
    with pytest.raises(InvalidValue):
        verify(certificate, now=NOW.replace(tzinfo=None))


def test_an_authority_that_ended_certifies_nothing(authority, identity, verify):
    outlasting = {"not_before": NOW, "not_after": NOW + 60 * DAY}
    certificate = forge(authority._private, identity, window=outlasting)
    verify(certificate)
    with pytest.raises(CertificateRejected, match="the authority was valid until"):
        verify(certificate, now=NOW + 31 * DAY)


def test_a_certificate_of_another_authority_is_rejected(authority, identity, certificate, verify):
    for name in ("consortium", "other"):  # a name is not what an authority is known by
        other = CertificateAuthority.create(name, **WINDOW)
        request = identity.request_certificate(NAME)
        with pytest.raises(CertificateRejected, match="not issued by the pinned authority"):
            verify(other.issue(request, participant=NAME, **WINDOW))
        with pytest.raises(CertificateRejected, match="not issued by the pinned authority"):
            verify(certificate, authority=other.certificate)
    # Of itself, and of a member.
    for issuer in (NAME, "consortium"):
        with pytest.raises(CertificateRejected, match="not issued"):
            verify(forge(identity._private, identity, issuer=issuer))


def test_a_certificate_of_another_member_or_key_is_rejected(authority, identity, certificate, verify):
    with pytest.raises(CertificateRejected, match="names"):
        verify(certificate, participant="bank-001")
    for subject in (
        named("bank-001"),
        named(NAME, NAME),
        named(),
        named("bank-001", NAME),
        named(NAME.upper()),
    ):
        with pytest.raises(CertificateRejected, match="names"):
            verify(forge(authority._private, identity, subject=subject))
    with pytest.raises(CertificateRejected, match="another key"):
        verify(certificate, identity_key=Identity.generate().public)
    elliptic = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CertificateRejected, match="not an Ed25519 key"):
        verify(forge(authority._private, identity, key=elliptic.public_key()))
    with pytest.raises(CertificateRejected, match="signed with Ed25519"):
        verify(forge(elliptic, identity, algorithm=SHA256()))


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        pytest.param([], "no extension", id="none"),
        pytest.param([(BASIC, True), (EXTENDED, False)], "no extension", id="no key usage"),
        pytest.param([(BASIC, True), (usage("digital_signature"), True)], "no extension", id="no extended use"),
        pytest.param(
            [(x509.BasicConstraints(ca=True, path_length=0), True), (usage("digital_signature"), True)],
            "basic constraints", id="an authority",
        ),
        pytest.param([(BASIC, True), (usage("key_cert_sign", "crl_sign"), True)], "exactly", id="signs others"),
        pytest.param(
            [(BASIC, True), (usage("digital_signature", "key_cert_sign"), True)], "exactly", id="signs others too"
        ),
        pytest.param(
            [(BASIC, True), (usage("digital_signature"), True),
             (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)],
            "not for a client", id="a server",
        ),
        pytest.param(
            [(BASIC, True), (usage("digital_signature"), True), (EXTENDED, False), (UNKNOWN, True)],
            "unknown critical extension 1.2.3.4.5", id="unknown critical extension",
        ),
    ],
)  # fmt: skip
def test_a_certificate_for_another_purpose_is_rejected(authority, identity, verify, extensions, reason):
    with pytest.raises(CertificateRejected, match=reason):
        verify(forge(authority._private, identity, extensions=extensions))


def der(content):
    """A SEQUENCE of 128 to 65535 bytes."""
    head = (
        b"\x81" + bytes([len(content)]) if len(content) < 256 else b"\x82" + len(content).to_bytes(2, "big")
    )
    return b"\x30" + head + content


def test_what_the_authority_signed_must_be_what_it_says(authority, certificate, verify):
    """Made by hand, for no builder makes such certificates: changed, and signed anew."""
    signed = x509.load_der_x509_certificate(certificate).tbs_certificate_bytes
    content = signed[signed.index(version := b"\xa0\x03\x02\x01\x02") :]
    edwards, other = b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x71"

    def made(content, algorithm):
        signature = b"\x03\x41\x00" + authority._private.sign(der(content))
        return der(der(content) + b"\x30\x05" + algorithm + signature)

    assert made(content, edwards) == certificate
    for wrong in (
        made(content.replace(version, b""), edwards),  # version 1, with the extensions of version 3
        made(content.replace(version, b"\xa0\x03\x02\x01\x01"), edwards),
        made(content, other),
        made(content.replace(edwards, other, 1), edwards),
        made(content.replace(edwards, other, 1), other),
    ):
        with pytest.raises(CertificateRejected):
            verify(wrong)


def test_the_authoritys_own_certificate_is_no_members(authority, verify):
    key = authority._private.public_key().public_bytes_raw()
    with pytest.raises(CertificateRejected, match="basic constraints"):
        verify(authority.certificate, participant="consortium", identity_key=key)


def test_without_an_authority_there_is_no_certificate_and_with_one_there_is(certificate, verify):
    assert verify(b"", authority=b"") is None
    with pytest.raises(CertificateRejected, match="pins no authority"):
        verify(certificate, authority=b"")
    with pytest.raises(CertificateRejected, match="shows no certificate"):
        verify(b"")


def test_bytes_that_are_too_long_are_not_parsed(authority, certificate, verify, monkeypatch):
    monkeypatch.setattr(x509, "load_der_x509_certificate", None)
    with pytest.raises(MessageTooLarge):
        verify_authority(certificate + bytes(MAXIMUM_CERTIFICATE_BYTES))
    monkeypatch.undo()
    for length in (MAXIMUM_CERTIFICATE_BYTES + 1, 1 << 20):
        with pytest.raises(MessageTooLarge):
            verify(bytes(length))


def test_cut_or_lengthened_bytes_are_rejected(certificate, verify):
    for wrong in (*(certificate[:end] for end in range(1, len(certificate))), certificate + b"\x00"):
        with pytest.raises(CertificateRejected):
            verify(wrong)


REUSED = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@REUSED
@given(st.data())
def test_any_change_of_a_certificate_or_a_list_ends_in_one_of_two_errors(
    authority, certificate, verify, data
):
    revocations = authority.revocation_list([certificate], number=1, **LIST)
    known = RevocationList(authority.certificate)
    original, check = data.draw(
        st.sampled_from([(certificate, verify), (revocations, lambda changed: known.update(changed, NOW))])
    )
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        changed[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if bytes(changed) != original:
        with pytest.raises((CertificateRejected, MessageTooLarge)):
            check(bytes(changed))


@REUSED
@given(st.binary(min_size=1, max_size=200))
def test_any_other_bytes_end_in_one_error(authority, verify, data):
    for prefix in (b"", b"\x30\x82"):
        with pytest.raises(CertificateRejected):
            verify(prefix + data)
        with pytest.raises(CertificateRejected):
            verify_authority(prefix + data)
        with pytest.raises(CertificateRejected):
            RevocationList(authority.certificate).update(prefix + data, NOW)


# -- the authority ---------------------------------------------------------------------------------------


def test_only_a_self_signed_authority_of_path_length_zero_can_be_pinned(authority, identity, certificate):
    verify_authority(authority.certificate)
    signer, root = authority._private, x509.BasicConstraints(ca=True, path_length=0)
    public = signer.public_key()

    def pinned(*extensions, signer=signer, **changes):
        return forge(
            signer,
            identity,
            **({"subject": named("consortium"), "key": public, "extensions": extensions} | changes),
        )

    signs = (usage("key_cert_sign", "crl_sign"), True)
    verify_authority(pinned((root, True), signs))
    elliptic = ec.generate_private_key(ec.SECP256R1())
    for wrong in (
        certificate,
        pinned((BASIC, True), signs),
        pinned((x509.BasicConstraints(ca=True, path_length=None), True), signs),
        pinned((x509.BasicConstraints(ca=True, path_length=1), True), signs),
        pinned((root, True), (usage("key_cert_sign"), True)),
        pinned((root, True), (usage("key_cert_sign", "crl_sign", "digital_signature"), True)),
        pinned((root, True), signs, (UNKNOWN, True)),
        pinned((root, True), signs, signer=identity._private),
        pinned((root, True), signs, subject=named("other")),
        pinned((root, True), signs, signer=elliptic, key=elliptic.public_key(), algorithm=SHA256()),
        pinned((root, True), signs, key=elliptic.public_key()),
        b"",
    ):
        with pytest.raises(CertificateRejected):
            verify_authority(wrong)
        with pytest.raises(CertificateRejected):
            RevocationList(wrong)


def test_the_hash_of_an_authority_is_empty_without_one_and_another_for_another(authority):
    other = CertificateAuthority.create("consortium", **WINDOW)
    assert authority_hash(b"") == b""
    assert len(authority_hash(authority.certificate)) == 32
    assert authority_hash(authority.certificate) != authority_hash(other.certificate)
