"""TLS certificates: whose they are, what they are for, and what is none."""

import ipaddress
import random
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from hansa.errors import CertificateRejected, Error, InvalidValue, MalformedMessage, MessageTooLarge
from hansa.federation.tls_authority import (
    from_pem,
    issue_client_certificate,
    issue_server_certificate,
    load_tls_key,
    new_tls_key,
    request_tls_certificate,
    to_pem,
    verify_client_certificate,
    verify_server_certificate,
)
from hansa.secure_agg.certificates import CLOCK_SKEW
from hansa.secure_agg.identity import Identity

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def pki(network, tmp_path_factory):
    return network.Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def client(pki):
    return pki.source("bank-1").material().certificate_der


@pytest.fixture(scope="module")
def server(pki):
    return pki.source("coordinator", hosts=["coordinator.example", "127.0.0.1"]).material().certificate_der


def check(pki, certificate, *, now=None, revoked=None):
    return verify_client_certificate(
        certificate, authority=pki.authority.certificate, now=now or pki.now, revoked=revoked
    )


def window(pki):
    return {"not_before": pki.now - DAY, "not_after": pki.now + DAY}


def test_a_clients_certificate_names_its_participant_and_no_host(pki, client):
    assert check(pki, client) == "bank-1"
    found = x509.load_der_x509_certificate(client)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["urn:hansa:participant:bank-1"]


def test_a_servers_certificate_names_its_hosts(pki, server):
    verify_server_certificate(server, authority=pki.authority.certificate, now=pki.now, revoked=None)
    found = x509.load_der_x509_certificate(server)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_a_certificate_for_another_purpose_does_not_pass(pki, client, server):
    with pytest.raises(CertificateRejected, match="not for a client"):
        check(pki, server)
    with pytest.raises(CertificateRejected, match="not for a server"):
        verify_server_certificate(client, authority=pki.authority.certificate, now=pki.now, revoked=None)
    identity = Identity.generate()
    own = pki.authority.issue(identity.request_certificate("bank-1"), participant="bank-1", **window(pki))
    with pytest.raises(CertificateRejected, match="no P-256 key"):
        check(pki, own)
    with pytest.raises(CertificateRejected):
        check(pki, pki.authority.certificate)


def test_names_that_differ_or_are_none_do_not_pass(pki):
    key = load_tls_key(new_tls_key()).public_key()
    uri = x509.UniformResourceIdentifier
    for name, names in (
        ("bank-1", []),
        ("bank-1", [uri("urn:hansa:participant:bank-2")]),
        ("bank-1", [uri("urn:hansa:participant:bank-1"), uri("urn:hansa:participant:bank-2")]),
        ("bank-1", [uri("urn:hansa:participant:bank-1"), x509.DNSName("coordinator.example")]),
        ("bank 1", [uri("urn:hansa:participant:bank 1")]),
    ):
        made = pki.authority.certify(
            key,
            name=name,
            purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
            alternative_names=names,
            **window(pki),
        )
        with pytest.raises((CertificateRejected, MalformedMessage)):
            check(pki, made)


def test_a_certificate_passes_within_its_validity_and_the_skew(pki, client):
    for now in (pki.now - DAY - CLOCK_SKEW + DAY / 1440, pki.now + DAY + CLOCK_SKEW - DAY / 1440):
        assert check(pki, client, now=now) == "bank-1"
    for now in (pki.now - DAY - 2 * CLOCK_SKEW, pki.now + DAY + 2 * CLOCK_SKEW):
        with pytest.raises(CertificateRejected, match="valid"):
            check(pki, client, now=now)


def test_a_foreign_certificate_does_not_pass(network, tmp_path, pki):
    foreign = network.Pki(tmp_path, "consortium").source("bank-1").material().certificate_der
    with pytest.raises(CertificateRejected, match="not issued"):
        check(pki, foreign)


def test_a_revoked_certificate_does_not_pass_and_one_list_serves_both_kinds(pki, client, server):
    pki.certificates |= {"bank-1": client, "coordinator": server}
    assert check(pki, client, revoked=pki.revoked("coordinator")) == "bank-1"
    with pytest.raises(CertificateRejected, match="revoked"):
        check(pki, client, revoked=pki.revoked("bank-1"))
    with pytest.raises(CertificateRejected, match="revoked"):
        verify_server_certificate(
            server, authority=pki.authority.certificate, now=pki.now, revoked=pki.revoked("coordinator")
        )


def test_only_a_p256_key_that_its_owner_holds_is_certified_under_the_name_asked_for(pki):
    request = request_tls_certificate(new_tls_key(), "bank-1")
    spoilt = request[:-4] + bytes(4)
    other_curve = generate_private_key(SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bank-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for bad in (
        spoilt,
        request_tls_certificate(new_tls_key(), "bank-2"),
        Identity.generate().request_certificate("bank-1"),
        builder.sign(other_curve, SHA256()).public_bytes(Encoding.DER),
        b"",
        b"\x30\x03\x02\x01\x00",
    ):
        with pytest.raises(CertificateRejected):
            issue_client_certificate(pki.authority, bad, participant="bank-1", **window(pki))
    with pytest.raises(MessageTooLarge):
        issue_client_certificate(pki.authority, bytes(9999), participant="bank-1", **window(pki))
    with pytest.raises(MalformedMessage):
        issue_client_certificate(pki.authority, request, participant="bank 1", **window(pki))
    with pytest.raises(InvalidValue):
        issue_client_certificate(
            pki.authority, request, participant="bank-1", not_before=pki.now, not_after=pki.now + 999 * DAY
        )


@pytest.mark.parametrize(
    "host", ["", "*.example", "Example", "a b", "a_b", "-a", "a..b", "x" * 254, "1.2.3.4/8"]
)
def test_what_is_no_host_is_not_certified(pki, host):
    request = request_tls_certificate(new_tls_key(), "coordinator")
    with pytest.raises(InvalidValue):
        issue_server_certificate(pki.authority, request, name="coordinator", hosts=[host], **window(pki))


def test_a_server_without_a_host_is_not_certified(pki):
    request = request_tls_certificate(new_tls_key(), "coordinator")
    with pytest.raises(InvalidValue):
        issue_server_certificate(pki.authority, request, name="coordinator", hosts=[], **window(pki))


def test_what_is_no_tls_key_is_refused():
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for bad in (b"", b"no key", generate_private_key(SECP384R1()).private_bytes(*pem)):
        with pytest.raises(InvalidValue):
            load_tls_key(bad)
    with pytest.raises(InvalidValue):
        request_tls_certificate(new_tls_key(), "")


def test_a_pem_text_holds_one_certificate(client, server):
    assert from_pem(to_pem(client)) == client
    for bad in (b"", b"text", to_pem(client) + to_pem(server), to_pem(client)[:-40]):
        with pytest.raises(CertificateRejected):
            from_pem(bad)


def test_any_change_of_a_certificate_is_refused(pki, client):
    draws = random.Random(5)
    for _ in range(200):
        changed = bytearray(client)
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
        with pytest.raises(Error):
            check(pki, bytes(changed))
