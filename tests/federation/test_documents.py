"""The form of signed documents: one spelling, exact types, a bound on the length, and nothing else is ever raised."""

import json

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import DocumentMalformed, DocumentRejected
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment
from hansa.federation.fields import host_and_port
from hansa.federation.invitations import Invitation
from hansa.federation.proposals import Proposal
from hansa.federation.requests import EnrolmentRequest
from hansa.federation.starts import Command, Start

KINDS = {
    "invitation": Invitation,
    "request": EnrolmentRequest,
    "enrolment": Enrolment,
    "proposal": Proposal,
}


def all_documents(house):
    proposal = house.proposal()
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    made = [getattr(house, name)() for name in KINDS]
    return [*made, proposal, *approvals, house.start(proposal, approvals), house.command(proposal)]


def test_every_document_is_read_as_it_was_written(house):
    for document in all_documents(house):
        encoded = document.encode()
        found = read_document(encoded, type(document.body))
        assert found == document
        assert found.encode() == encoded
        assert read_document(encoded + b"\n", type(document.body)) == document
        assert rfc8785.dumps(json.loads(encoded)) == encoded


def test_a_document_of_one_kind_is_none_of_another(house):
    documents = all_documents(house)
    for document in documents:
        for other in {type(found.body) for found in documents} - {type(document.body)}:
            with pytest.raises(DocumentMalformed):
                read_document(document.encode(), other)


def test_the_digest_names_kind_and_body_and_not_the_signature(house):
    proposal = house.proposal()
    other = Document.sign(proposal.body, house.identities["bank-1"].sign)
    assert other.signature != proposal.signature
    assert other.digest == proposal.digest
    assert house.proposal(base_model_bytes=1001).digest != proposal.digest
    assert len({document.digest for document in all_documents(house)[4:]}) == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"{}",
        lambda raw: b"[]",
        lambda raw: b"null",
        lambda raw: b"\xff\xfe" + raw,
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw[:-1],
        lambda raw: raw + b"\n\n",
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b'","', b'", "', 1),
        lambda raw: raw.replace(b'"counter":1', b'"counter":1,"counter":1'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":1.0'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":"1"'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":true'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":NaN'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":0'),
        lambda raw: raw.replace(b'"counter":1', b'"counter":' + b"9" * 5000),
        lambda raw: raw.replace(b'"counter":1,', b""),
        lambda raw: raw.replace(b'"counter":1', b'"counter":1,"counters":1'),
        lambda raw: raw.replace(b'"pause"', b'"erase"'),
        lambda raw: raw.replace(b'"pause"', b'"\\u0070ause"'),
        lambda raw: raw.replace(b'"pause"', b'"\\ud800"'),
        lambda raw: raw.replace(b"hansa/command/v1", b"hansa/command/v2"),
        lambda raw: raw.replace(b',"signature"', b',"signatures":[],"signature"'),
        lambda raw: raw.replace(b'"signature":"', b'"signature":"00'),
        lambda raw: raw[:-10] + b"G" * 8 + raw[-2:],
        lambda raw: raw[:-10] + b"A" * 8 + raw[-2:],
        lambda raw: b'{"body":' + b"[" * 8000 + b"]" * 8000 + b"}",
        lambda raw: raw.replace(b'"pause"', b'"' + b"x" * 20000 + b'"'),
    ],
)
def test_whatever_the_bytes_are_only_a_named_error_is_raised(house, spoil):
    raw = house.command(house.proposal()).encode()
    assert spoil(raw) != raw
    with pytest.raises(DocumentMalformed):
        read_document(spoil(raw), Command)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_malformed_or_breaks_the_signature(house, data):
    raw = bytearray(house.command(house.proposal()).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_document(bytes(raw), Command)
    except DocumentMalformed:
        return
    with pytest.raises(DocumentRejected):
        found.verify_signed_by(house.author.public, "the author")


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300))
def test_noise_is_malformed(raw):
    with pytest.raises(DocumentMalformed):
        read_document(raw, Start)


def test_a_signature_over_one_kind_is_none_over_another(house):
    proposal = house.proposal()
    command = house.command(proposal)
    moved = Document(
        body=command.body,
        canonical=command.canonical,
        signature=house.author.sign("hansa/start/v1", command.canonical),
    )
    with pytest.raises(DocumentRejected):
        moved.verify_signed_by(house.author.public, "the author")


def test_neither_a_repr_nor_an_error_shows_the_code_of_an_invitation(house):
    invitation = house.invitation()
    assert house.code not in repr(invitation)
    raw = invitation.encode().replace(house.code.encode(), house.code[:-1].lower().encode() + b"!")
    with pytest.raises(DocumentMalformed) as caught:
        read_document(raw, Invitation)
    assert house.code[:20].lower() not in caught.value.message.lower()
    assert (
        caught.value.__context__ is None
        or house.code[:20].lower() not in str(caught.value.__context__).lower()
    )


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:01", "a b:1", "-a:1", "a..b:1", "[::1:1", "[x]:1",
     "http://host:1", "host:1/", "user@host:1", "h" * 64 + ":1", "ho\nst:1", "::1:1", "host:\uff11"],
)  # fmt: skip
def test_an_address_is_host_and_port(address):
    with pytest.raises(ValueError, match="is not"):
        host_and_port(address)


def test_addresses_that_are_good():
    assert host_and_port("hansa.example:9443") == ("hansa.example", 9443)
    assert host_and_port("127.0.0.1:1") == ("127.0.0.1", 1)
    assert host_and_port("[::1]:65535") == ("::1", 65535)
