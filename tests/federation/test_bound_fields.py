"""Every field of every document is bound: whoever changes one without the key of its signer is refused, and so is a document that
its signer made for something else."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hansa.errors import (
    CertificateRejected,
    CommandStale,
    DocumentRejected,
    InvitationExpired,
    InvitationUnknown,
    RequestForeign,
)
from hansa.federation.answers import Approval, Denial, deny, verify_answer
from hansa.federation.authors import issue_author_certificate, verify_author_certificate
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment, verify_enrolment
from hansa.federation.invitations import Addresses, Invitation, new_code, proof_identity, verify_invitation
from hansa.federation.proposals import Member, Proposal, verify_proposal
from hansa.federation.requests import (
    EnrolmentRequest,
    RenewalRequest,
    verify_enrolment_request,
    verify_renewal_request,
)
from hansa.federation.starts import verify_command, verify_start
from hansa.federation.tls_authority import (
    load_tls_key,
    new_tls_key,
    request_tls_certificate,
    verify_client_certificate,
)
from hansa.secure_agg.certificates import RevocationList, verify_certificate
from hansa.secure_agg.identity import Identity

SECOND = timedelta(seconds=1)
REFUSED = (DocumentRejected, CertificateRejected, InvitationUnknown, RequestForeign)


def changed(document, **changes):
    """Change fields, and keep the signature."""
    body = document.body.model_copy(update=changes)
    found = replace(document, body=body, canonical=body.canonical())
    assert found.canonical != document.canonical
    return read_document(found.encode(), type(body))


def others(house, other, kind):
    """Another good value for every field of a kind of document."""
    identity, tls = house.certificates()
    request, enrolment, proposal = other.request().body, other.enrolment().body, other.proposal().body
    later = house.now + SECOND
    addresses = house.invitation().body.addresses
    values = {
        Invitation: {
            "name": "other",
            "fingerprint": other.fingerprint,
            "authority": other.authority.certificate,
            "addresses": [
                addresses.model_copy(update={name: "evil.example:1"}) for name in Addresses.model_fields
            ],
            "participant": "bank-2",
            "code": new_code(),
            "expires": later,
        },
        EnrolmentRequest: {
            "consortium": other.fingerprint,
            "participant": "bank-2",
            "identity_request": request.identity_request,
            "tls_request": request.tls_request,
            "flower_key": request.flower_key,
            "created": later,
            "proof": b"p" * 64,
        },
        Enrolment: {
            "consortium": other.fingerprint,
            "participant": "bank-2",
            "number": 2,
            "identity_certificate": identity,
            "identity_serial": enrolment.identity_serial,
            "tls_certificate": tls,
            "tls_serial": enrolment.tls_serial,
            "flower_key": enrolment.flower_key,
            "not_before": later,
            "not_after": later,
        },
        Proposal: {
            "consortium": other.fingerprint,
            "study_id": b"i" * 32,
            "study": {**proposal.study, "purpose": "another one"},
            "author": "eve",
            "author_key": proposal.author_key,
            "author_certificate": proposal.author_certificate,
            "base_model": b"e" * 32,
            "base_model_bytes": 999,
            "invited": proposal.invited,
            "approvals_needed": 4,
            "session_id": b"t" * 16,
            "created": later,
            "expires": later,
        },
    }[kind]
    assert set(values) == set(kind.model_fields)
    return [
        (k, one) for k, value in values.items() for one in (value if isinstance(value, list) else [value])
    ]


def check(house, document):
    """Verify a document of any kind as whoever receives it does."""
    if isinstance(document.body, Invitation):
        verify_invitation(document, house.now)
    elif isinstance(document.body, EnrolmentRequest):
        proof = house.invitation().body.proof_identity().public
        verify_enrolment_request(document, consortium=house.consortium, participant="bank-1", proof_key=proof)
    elif isinstance(document.body, Enrolment):
        own = {"participant": "bank-1", "keys": house.keys(), "number": 1}
        verify_enrolment(document, consortium=house.consortium, now=house.now, **own)
    else:
        own = {"participant": "bank-1", "identity": house.identities["bank-1"].public}
        verify_proposal(document, consortium=house.consortium, now=house.now, revoked=None, **own)


@pytest.mark.parametrize("kind", ["invitation", "request", "enrolment", "proposal"])
def test_no_field_can_be_changed_without_the_key(house, other_house, kind):
    document = getattr(house, kind)()
    check(house, document)
    for name, value in others(house, other_house, type(document.body)):
        with pytest.raises(REFUSED):
            check(house, changed(document, **{name: value}))
    with pytest.raises(REFUSED):
        check(house, replace(document, signature=bytes(64)))


def test_an_invitation_ends_and_is_for_the_fingerprint_in_it(house, other_house):
    good = house.invitation()
    verify_invitation(good, house.now + house.day)
    with pytest.raises(InvitationExpired, match="ended at 2026-11-27T12:00:00Z"):
        verify_invitation(good, house.now + 2 * house.day)
    with pytest.raises(
        DocumentRejected
    ):  # the authority's own signature over a fingerprint that is not its own
        verify_invitation(house.invitation(fingerprint=other_house.fingerprint), house.now)


def test_the_proof_of_an_invitation_is_bound_to_consortium_name_and_code(house, other_house):
    code, other = new_code(), new_code()
    keys = {
        proof_identity(a, consortium=b, participant=c).public
        for a in (code, other)
        for b in (house.fingerprint, other_house.fingerprint)
        for c in ("bank-1", "bank-2")
    }
    assert len(keys) == 8
    assert len(code) == 26


def test_a_request_of_somebody_without_the_code_is_refused(house):
    stranger = Identity.generate()
    body = house.request(identity_request=stranger.request_certificate("bank-1")).body
    signed = Document.sign(body.with_proof(stranger.sign), stranger.sign)
    with pytest.raises(InvitationUnknown):
        check(house, signed)


@pytest.mark.parametrize(
    "case", ["not the identity", "tls of another name", "identity of another name", "no csr"]
)
def test_a_request_whose_parts_do_not_fit_is_refused(house, case):
    identity = house.identities["bank-1"]
    changes = {
        "not the identity": {},
        "tls of another name": {"tls_request": request_tls_certificate(new_tls_key(), "bank-2")},
        "identity of another name": {"identity_request": identity.request_certificate("bank-2")},
        "no csr": {"tls_request": b"0" * 100},
    }[case]
    document = house.request(**changes)
    if case == "not the identity":
        document = Document.sign(document.body, house.identities["bank-2"].sign)
    with pytest.raises(DocumentRejected):
        check(house, document)


def test_the_fingerprint_of_a_member_covers_all_its_keys(house, other_house):
    keys, other = house.keys(), other_house.keys()
    found = {
        keys.fingerprint(house.fingerprint, "bank-1"),
        keys.fingerprint(other_house.fingerprint, "bank-1"),
        keys.fingerprint(house.fingerprint, "bank-2"),
        *(
            replace(keys, **{name: getattr(other, name)}).fingerprint(house.fingerprint, "bank-1")
            for name in ("identity", "tls", "flower")
        ),
    }
    assert len(found) == 6


def test_an_enrolment_that_the_authority_made_for_something_else_is_refused(house):
    good = house.enrolment().body
    for changes in (
        {"identity_serial": "1"},
        {"tls_serial": "1"},
        {"not_before": good.not_before + SECOND},
        {"not_after": good.not_after + SECOND},
        {"number": 2},
        {"participant": "bank-2"},
        {"tls_certificate": house.certificates("bank-2")[1]},
        {"identity_certificate": house.certificates("bank-2")[0]},
    ):
        with pytest.raises(REFUSED):
            check(house, house.enrolment(**changes))


def test_an_enrolment_for_other_keys_is_refused(house, other_house):
    other = other_house.keys()
    for name in ("identity", "tls", "flower"):
        keys = replace(house.keys(), **{name: getattr(other, name)})
        with pytest.raises(REFUSED):
            verify_enrolment(
                house.enrolment(),
                consortium=house.consortium,
                participant="bank-1",
                keys=keys,
                number=1,
                now=house.now,
            )


def renewal(house, **changes):
    identity = house.identities["bank-1"]
    usual = {
        "consortium": house.fingerprint,
        "participant": "bank-1",
        "number": 3,
        "identity_request": identity.request_certificate("bank-1"),
        "tls_request": request_tls_certificate(new_tls_key(), "bank-1"),
        "created": house.now,
    }
    return Document.sign(RenewalRequest(**{**usual, **changes}), identity.sign)


def test_a_renewal_is_bound_to_identity_number_and_consortium(house, other_house):
    def verify(document):
        identity = house.identities["bank-1"].public
        verify_renewal_request(
            document, consortium=house.consortium, participant="bank-1", identity=identity, number=3
        )

    good = renewal(house)
    verify(good)
    other = house.identities["bank-2"]
    values = {
        "consortium": other_house.fingerprint,
        "participant": "bank-2",
        "number": 2,
        "identity_request": other.request_certificate("bank-1"),
        "tls_request": request_tls_certificate(new_tls_key(), "bank-1"),
        "created": house.now + SECOND,
    }
    assert set(values) == set(RenewalRequest.model_fields)
    for name, value in values.items():
        with pytest.raises(REFUSED):
            verify(changed(good, **{name: value}))
        if name not in ("tls_request", "created"):
            with pytest.raises(REFUSED):
                verify(renewal(house, **{name: value}))
    with pytest.raises(REFUSED):
        verify(Document.sign(good.body, other.sign))


# -- authors -------------------------------------------------------------------------------------------------


def test_a_certificate_of_an_author_is_one_of_nobody_else_and_the_reverse(house):
    author = {"author": "admin", "key": house.author.public, "now": house.now, "revoked": None}
    authority = house.authority.certificate
    verify_author_certificate(house.author_certificate, authority=authority, **author)
    identity, tls = house.certificates()
    own = {"authority": authority, "now": house.now, "revoked": None}
    with pytest.raises(CertificateRejected):
        verify_client_certificate(house.author_certificate, **own)
    with pytest.raises(CertificateRejected):
        verify_certificate(
            house.author_certificate, participant="admin", identity_key=house.author.public, **own
        )
    member = {"author": "bank-1", "key": house.identities["bank-1"].public}
    for certificate in (identity, tls):
        with pytest.raises(CertificateRejected):
            verify_author_certificate(certificate, **own, **member)
    for wrong in ({"author": "eve"}, {"key": b"k" * 32}, {"now": house.now + 91 * house.day}):
        with pytest.raises(CertificateRejected):
            verify_author_certificate(house.author_certificate, authority=authority, **{**author, **wrong})


def revocations(house, *certificates):
    found = RevocationList(house.authority.certificate)
    window = {"this_update": house.now - house.day, "next_update": house.now + house.day}
    found.update(house.authority.revocation_list(certificates, number=1, **window), house.now)
    return found


def test_a_revoked_author_proposes_starts_and_commands_nothing(house):
    revoked = revocations(house, house.author_certificate)
    proposal = house.proposal()
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    seen = {"consortium": house.consortium, "now": house.now}
    for one in (revocations(house), None):
        verify_proposal(proposal, **seen, revoked=one)
    with pytest.raises(CertificateRejected, match="revoked"):
        verify_proposal(proposal, **seen, revoked=revoked)
    with pytest.raises(CertificateRejected, match="revoked"):
        verify_start(
            house.start(proposal, approvals), proposal=proposal, approvals=approvals, **seen, revoked=revoked
        )
    with pytest.raises(CertificateRejected, match="revoked"):
        verify_command(house.command(proposal), proposal=proposal, last_counter=0, **seen, revoked=revoked)


def test_an_enrolment_that_was_revoked_is_refused(house):
    document = house.enrolment()
    own = {"participant": "bank-1", "keys": house.keys(), "number": 1, "now": house.now}
    verify_enrolment(document, consortium=house.consortium, **own, revoked=revocations(house))
    for certificate in (document.body.identity_certificate, document.body.tls_certificate):
        with pytest.raises(CertificateRejected, match="revoked"):
            verify_enrolment(
                document, consortium=house.consortium, **own, revoked=revocations(house, certificate)
            )


# -- studies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        "study",
        "id",
        "needed",
        "unsorted",
        "twice",
        "same key",
        "too few",
        "not invited",
        "other key",
        "ended",
        "window",
    ],
)
def test_a_proposal_that_does_not_hold_together_is_refused(house, case):
    good = house.proposal().body
    members = list(good.invited)
    changes = {
        "study": {"study": {**good.study, "epsilon": 1}},
        "id": {"study_id": b"i" * 32},
        "needed": {"approvals_needed": 4},
        "unsorted": {"invited": tuple(reversed(members))},
        "twice": {"invited": (members[0], *members)},
        "same key": {"invited": (*members, Member(name="bank-9", identity=members[0].identity))},
        "too few": {"invited": tuple(members[:2])},
        "not invited": {"invited": tuple(members[1:])},
        "other key": {"invited": (Member(name="bank-1", identity=b"k" * 32), *members[1:])},
        "ended": {"created": house.now - 9 * house.day, "expires": house.now - house.day},
        "window": {"expires": good.created},
    }[case]
    with pytest.raises(DocumentRejected):
        check(house, house.proposal(**changes))


def test_an_answer_is_bound_to_the_proposal_and_to_who_gives_it(house, other_house):
    proposal, other = house.proposal(), house.proposal(session_id=b"o" * 16)
    good = house.approval(proposal, "bank-1")
    verify_answer(good, proposal)
    no = Document.sign(
        deny(proposal, "bank-1", by="policy", at=house.now, reason="budget_exhausted"),
        house.identities["bank-1"].sign,
    )
    verify_answer(no, proposal)
    values = {
        "consortium": other_house.fingerprint,
        "proposal": other.digest,
        "participant": "bank-2",
        "by": "policy",
        "at": house.now + SECOND,
    }
    assert set(values) == set(Approval.model_fields)
    for name, value in values.items():
        with pytest.raises(DocumentRejected):
            verify_answer(changed(good, **{name: value}), proposal)
    assert set(Denial.model_fields) == {*values, "reason"}
    for name, value in {**values, "by": "hand", "reason": "layer_missing"}.items():
        with pytest.raises(DocumentRejected):
            verify_answer(changed(no, **{name: value}), proposal)
    with pytest.raises(DocumentRejected):
        verify_answer(good, other)
    for wrong in ({"consortium": other_house.fingerprint}, {"at": house.now + 30 * house.day}):
        with pytest.raises(DocumentRejected):
            verify_answer(house.approval(proposal, "bank-1", **wrong), proposal)
    stranger = Document.sign(good.body.model_copy(update={"participant": "eve"}), house.author.sign)
    with pytest.raises(DocumentRejected, match="not invited"):
        verify_answer(stranger, proposal)


def test_a_denial_is_no_approval(house):
    proposal = house.proposal()
    no = deny(proposal, "bank-1", by="hand", at=house.now)
    signed = Document.sign(no, house.identities["bank-1"].sign)
    body = Approval(**{name: getattr(no, name) for name in Approval.model_fields})
    moved = Document(body=body, canonical=body.canonical(), signature=signed.signature)
    with pytest.raises(DocumentRejected):
        verify_answer(moved, proposal)


def test_a_start_is_bound_to_proposal_roster_and_approvals(house, other_house):
    proposal, other = house.proposal(), house.proposal(session_id=b"o" * 16)
    names = ("bank-1", "bank-2", "bank-3")
    approvals = [house.approval(proposal, name) for name in names]
    fourth = house.approval(proposal, "bank-4")
    good = house.start(proposal, list(reversed(approvals)))

    def verify(document, shown=approvals, asked=proposal):
        seen = {"consortium": house.consortium, "now": house.now, "revoked": None}
        verify_start(document, proposal=asked, approvals=shown, **seen)

    verify(good)
    another = issue_author_certificate(
        house.authority,
        house.author.request_certificate("admin"),
        author="admin",
        not_before=house.now,
        not_after=house.now + house.day,
    )
    values = {
        "consortium": other_house.fingerprint,
        "proposal": other.digest,
        "session_id": b"o" * 16,
        "roster": (*good.body.roster[:2], proposal.body.member("bank-4")),
        "approvals": (*good.body.approvals[:2], fourth.digest),
        "author_certificate": another,
        "created": house.now + SECOND,
    }
    assert set(values) == set(type(good.body).model_fields)
    for name, value in values.items():
        with pytest.raises(REFUSED):
            verify(changed(good, **{name: value}))
    verify(house.start(proposal, approvals, author_certificate=another))  # the author's renewed certificate
    seen = {"consortium": house.consortium, "revoked": None, "now": house.now + 30 * house.day}
    late = house.start(proposal, approvals, created=proposal.body.expires + house.day)
    with pytest.raises(DocumentRejected, match="the proposal ended"):  # an approval is not kept in stock
        verify_start(late, proposal=proposal, approvals=approvals, **seen)
    stranger = Member(name="bank-3", identity=other_house.author.public)
    forged = Document.sign(approvals[2].body, other_house.author.sign)
    for document, shown in (
        (house.start(proposal, approvals[:2]), approvals[:2]),
        (house.start(proposal, [*approvals, fourth]), [*approvals, fourth]),
        (good, approvals[:2]),
        (good, [approvals[1], approvals[0], approvals[2]]),
        (house.start(proposal, approvals, roster=(*good.body.roster[:2], stranger)), approvals),
        (house.start(proposal, [*approvals[:2], forged]), [*approvals[:2], forged]),
        (
            house.start(proposal, [approvals[0], approvals[1], approvals[1]]),
            [approvals[0], approvals[1], approvals[1]],
        ),
        (house.start(proposal, approvals, created=house.now + house.day), approvals),
        (Document.sign(good.body, house.identities["bank-1"].sign), approvals),
    ):
        with pytest.raises(REFUSED):
            verify(document, shown)
    elsewhere = [house.approval(other, name) for name in names]
    with pytest.raises(DocumentRejected):  # approvals of another run of the same study
        verify(house.start(proposal, elsewhere), elsewhere)
    with pytest.raises(DocumentRejected):
        verify(good, asked=other)


def test_a_command_is_bound_to_session_action_and_counter(house, other_house):
    proposal = house.proposal()
    good = house.command(proposal)

    def verify(document, last=0):
        seen = {"consortium": house.consortium, "now": house.now, "revoked": None}
        verify_command(document, proposal=proposal, last_counter=last, **seen)

    verify(good)
    values = {
        "consortium": other_house.fingerprint,
        "proposal": b"p" * 32,
        "session_id": b"o" * 16,
        "counter": 2,
        "action": "stop",
        "author_certificate": other_house.author_certificate,
        "created": house.now + SECOND,
    }
    assert set(values) == set(type(good.body).model_fields)
    for name, value in values.items():
        with pytest.raises(REFUSED):
            verify(changed(good, **{name: value}))
        if name not in ("counter", "action", "created"):
            with pytest.raises(REFUSED):
                verify(house.command(proposal, {name: value}))
    for last in (1, 2):
        with pytest.raises(CommandStale):
            verify(good, last)
    verify(house.command(proposal, {"counter": 9}), 8)
    with pytest.raises(DocumentRejected):
        verify(house.command(proposal, {"created": house.now + house.day}))
    with pytest.raises(REFUSED):
        verify(Document.sign(good.body, other_house.author.sign))


def test_a_consortium_is_its_name_and_its_authority(house, other_house):
    same = Consortium(name=house.name, authority=house.authority.certificate)
    assert same.fingerprint == house.fingerprint
    renamed = Consortium(name="northern-bank", authority=house.authority.certificate)
    taken = Consortium(name=house.name, authority=other_house.authority.certificate)
    assert len({house.fingerprint, renamed.fingerprint, taken.fingerprint}) == 3
    public = load_tls_key(house.tls_key).public_key()
    assert house.keys().tls == public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
