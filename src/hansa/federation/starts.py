"""Starts and commands: with them an author begins a study, pauses it, lets it go on and ends it.

A start fixes the roster: exactly the participants of the study, each with its approval. Whoever takes part checks all approvals, so
neither the author nor the coordinator can put somebody into a roster who did not agree to this very proposal.
"""

import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from hansa.errors import CommandStale, DocumentRejected
from hansa.federation.answers import Approval, verify_answer
from hansa.federation.authors import verify_author_certificate
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Body, Document
from hansa.federation.fields import Bytes16, Bytes32, Der, UtcTime, utc_text
from hansa.federation.proposals import Member, Proposal
from hansa.secure_agg.certificates import CLOCK_SKEW, RevocationList
from hansa.study import PARTICIPANTS_MOST

Action = Literal["pause", "resume", "stop"]


class Start(Body):
    """The author begins a study with a final roster."""

    SCHEMA: ClassVar[str] = "hansa/start/v1"
    BYTES_MOST: ClassVar[int] = 1 << 18

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    proposal: Bytes32 = Field(description="digest of the proposal")
    session_id: Bytes16 = Field(description="the proposal's")
    roster: tuple[Member, ...] = Field(max_length=PARTICIPANTS_MOST, description="who takes part, sorted")
    approvals: tuple[Bytes32, ...] = Field(
        max_length=PARTICIPANTS_MOST, description="digests of their approvals, in the same order"
    )
    author_certificate: Der = Field(description="the author's present certificate")
    created: UtcTime = Field(description="when it was made")


class Command(Body):
    """The author pauses, resumes or stops a study that was started."""

    SCHEMA: ClassVar[str] = "hansa/command/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    proposal: Bytes32 = Field(description="digest of the proposal")
    session_id: Bytes16 = Field(description="the proposal's")
    counter: int = Field(ge=1, le=2**31, description="above that of every earlier command of this session")
    action: Action = Field(description="what to do")
    author_certificate: Der = Field(description="the author's present certificate")
    created: UtcTime = Field(description="when it was made")


def make_start(
    proposal: Document[Proposal],
    approvals: Sequence[Document[Approval]],
    *,
    author_certificate: bytes,
    created: datetime,
) -> Start:
    """Put a start together from the approvals of all who are to take part; they are sorted here."""
    chosen = sorted(approvals, key=lambda approval: approval.body.participant)
    return Start(
        consortium=proposal.body.consortium,
        proposal=proposal.digest,
        session_id=proposal.body.session_id,
        roster=tuple(proposal.body.member(approval.body.participant) for approval in chosen),
        approvals=tuple(approval.digest for approval in chosen),
        author_certificate=author_certificate,
        created=created,
    )


def verify_start(
    document: Document[Start],
    *,
    proposal: Document[Proposal],
    approvals: Sequence[Document[Approval]],
    consortium: Consortium,
    now: datetime,
    revoked: RevocationList | None,
) -> None:
    """Check a start before a participant takes part in the study.

    Args:
        document: The start, untrusted.
        proposal: The proposal that the participant verified and approved.
        approvals: The approvals that the start names, in its order, untrusted.
        consortium: The pinned consortium.
        now: The time, with its zone.
        revoked: The latest revocation list, where the consortium uses one.

    Raises:
        DocumentRejected: It is for another proposal, of the future or later than the proposal's end, not signed by the proposal's
            author, or its roster is not exactly as many invited members as the study has participants, each with its own approval
            of this proposal.
        CertificateRejected, MessageTooLarge: The author is none any more.

    Guarantees:
        - Every field is bound: none can be changed without the key of the proposal's author.
        - No member is in the roster whose own key did not sign an approval of this proposal.
        - An approval serves no start that was made after the time for answers.
    """
    body, asked = document.body, proposal.body
    _verify_from_author(document, proposal, consortium=consortium, now=now, revoked=revoked)
    if body.created > asked.expires + CLOCK_SKEW:  # nobody's approval is kept in stock for years
        raise DocumentRejected(
            f"the start is of {utc_text(body.created)}, the proposal ended at {utc_text(asked.expires)}"
        )
    names = [member.name for member in body.roster]
    if len(names) != asked.approvals_needed or names != sorted(set(names)):
        raise DocumentRejected(
            f"the roster of the start has {len(names)} members, sorted or not; it must be {asked.approvals_needed}, sorted"
        )
    if [asked.member(name) for name in names] != list(body.roster):
        raise DocumentRejected("the roster of the start has another key than the proposal")
    if [approval.digest for approval in approvals] != list(body.approvals):
        raise DocumentRejected("the approvals shown are not those that the start names")
    if [approval.body.participant for approval in approvals] != names:
        raise DocumentRejected("the approvals of the start are not those of its roster")
    for approval in approvals:
        verify_answer(approval, proposal)


def verify_command(
    document: Document[Command],
    *,
    proposal: Document[Proposal],
    last_counter: int,
    consortium: Consortium,
    now: datetime,
    revoked: RevocationList | None,
) -> None:
    """Check a command before it is carried out.

    Args:
        document: The command, untrusted.
        proposal: The proposal of the study that runs.
        last_counter: Counter of the last command of this session that was carried out, 0 before the first.
        consortium: The pinned consortium.
        now: The time, with its zone.
        revoked: The latest revocation list, where the consortium uses one.

    Raises:
        CommandStale: Its counter is not above the last one.
        DocumentRejected: It is for another study or session, of the future, or not signed by the proposal's author.
        CertificateRejected, MessageTooLarge: The author is none any more.

    Guarantees:
        - Every field is bound: none can be changed without the key of the proposal's author.
        - A command is carried out once, and never after a later one.
    """
    _verify_from_author(document, proposal, consortium=consortium, now=now, revoked=revoked)
    if document.body.counter <= last_counter:
        raise CommandStale(
            f"the command {document.body.action} has the counter {document.body.counter}, {last_counter} was carried out"
        )


def _verify_from_author(
    document: Document[Start] | Document[Command],
    proposal: Document[Proposal],
    *,
    consortium: Consortium,
    now: datetime,
    revoked: RevocationList | None,
) -> None:
    body, asked, title = document.body, proposal.body, document.body.title()
    consortium.verify_own(body.consortium, title)
    if not hmac.compare_digest(body.proposal, proposal.digest) or body.session_id != asked.session_id:
        raise DocumentRejected(f"the {title} is for another proposal or session")
    if not asked.created - CLOCK_SKEW <= body.created <= now + CLOCK_SKEW:
        raise DocumentRejected(f"the {title} is of {utc_text(body.created)}, it is {utc_text(now)}")
    verify_author_certificate(
        body.author_certificate,
        authority=consortium.authority,
        author=asked.author,
        key=asked.author_key,
        now=now,
        revoked=revoked,
    )
    document.verify_signed_by(asked.author_key, f"the author {asked.author!r}")
