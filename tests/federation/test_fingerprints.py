"""Fingerprints as people read, type and compare them."""

import pytest

from hansa.errors import CertificateRejected, FingerprintMismatch, InvalidValue, UsageError
from hansa.federation.consortium import Consortium, fingerprint_text, read_fingerprint, verify_fingerprint

FINGERPRINT = bytes(range(32))
TEXT = "0001-0203-0405-0607-0809-0a0b-0c0d-0e0f-1011-1213-1415-1617-1819-1a1b-1c1d-1e1f"


def test_what_is_shown_can_be_typed():
    assert fingerprint_text(FINGERPRINT) == TEXT
    for typed in (
        TEXT,
        TEXT.upper(),
        TEXT.replace("-", ""),
        TEXT.replace("-", " "),
        f" {TEXT.replace('-', ':')}\n",
    ):
        assert read_fingerprint(typed) == FINGERPRINT


@pytest.mark.parametrize(
    "typed", ["", TEXT[:-1], TEXT + "0", TEXT.replace("0", "g"), TEXT[:9], "\uff11" * 64, "x" * 10**6]
)
def test_a_part_of_a_fingerprint_is_none(typed):
    with pytest.raises(UsageError):
        read_fingerprint(typed)


def test_another_fingerprint_is_refused_and_the_right_one_is_not_shown():
    verify_fingerprint(FINGERPRINT, FINGERPRINT, what="bank-1")
    for at in range(32):
        other = bytearray(FINGERPRINT)
        other[at] ^= 1
        with pytest.raises(FingerprintMismatch, match="bank-1") as caught:
            verify_fingerprint(bytes(other), FINGERPRINT, what="bank-1")
        assert TEXT not in caught.value.message
        assert fingerprint_text(bytes(other)) in caught.value.message


@pytest.mark.parametrize("name", ["", "Northern", "-a", "a" * 64, "a b", "ä", "a\n"])
def test_the_name_of_a_consortium_is_short_and_plain(house, name):
    with pytest.raises(InvalidValue):
        Consortium(name=name, authority=house.authority.certificate)


def test_only_an_authority_makes_a_consortium(house):
    for certificate in (house.author_certificate, b"", b"0" * 50):
        with pytest.raises(CertificateRejected):
            Consortium(name="banks", authority=certificate)
