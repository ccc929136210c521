"""Proposals: a study as its author asks participants to take part in it.

A participant decides on exactly these bytes: the whole agreement, the base model by its hash, who else is invited with the
identity keys, and who answers for it. Whatever changes makes another proposal.
"""

from datetime import datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hansa.errors import DocumentRejected, Error
from hansa.federation.authors import verify_author_certificate
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Body, Document
from hansa.federation.fields import Bytes16, Bytes32, Der, ParticipantName, UtcTime, utc_text
from hansa.secure_agg.certificates import CLOCK_SKEW, RevocationList
from hansa.study import PARTICIPANTS_MOST, Study, study_of

MODEL_BYTES_MOST = 1 << 44


class Member(BaseModel):
    """A participant with its identity key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ParticipantName = Field(description="name in the consortium")
    identity: Bytes32 = Field(description="Ed25519 key, 32 bytes")


class Proposal(Body):
    """A study, proposed by an author to some of the members."""

    SCHEMA: ClassVar[str] = "hansa/proposal/v1"
    BYTES_MOST: ClassVar[int] = 1 << 20  # it travels in one message

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    study_id: Bytes32 = Field(description="hash of the study")
    study: dict[str, Any] = Field(description="the agreement, as in study.toml")
    author: ParticipantName = Field(description="who proposes it")
    author_key: Bytes32 = Field(description="the author's Ed25519 key")
    author_certificate: Der = Field(description="the author's certificate")
    base_model: Bytes32 = Field(description="SHA-256 of the file of the base model")
    base_model_bytes: int = Field(ge=1, le=MODEL_BYTES_MOST, description="length of that file")
    invited: tuple[Member, ...] = Field(
        max_length=PARTICIPANTS_MOST, description="members that may take part"
    )
    approvals_needed: int = Field(ge=1, le=PARTICIPANTS_MOST, description="participants of the study")
    session_id: Bytes16 = Field(description="random id of this run of the study")
    created: UtcTime = Field(description="when it was made")
    expires: UtcTime = Field(description="when answers come too late")

    def agreement(self) -> Study:
        """The study, fully checked; raises as `hansa.study.load_study` does."""
        return study_of(self.study)

    def member(self, participant: str) -> Member:
        """Return an invited member, or raise DocumentRejected."""
        for member in self.invited:
            if member.name == participant:
                return member
        raise DocumentRejected(f"{participant!r} is not invited to the study")


def verify_proposal(
    document: Document[Proposal],
    *,
    consortium: Consortium,
    now: datetime,
    revoked: RevocationList | None,
    participant: str | None = None,
    identity: bytes | None = None,
) -> None:
    """Check a proposal before anybody is asked to decide on it.

    Args:
        document: The proposal, untrusted.
        consortium: The pinned consortium.
        now: The time, with its zone.
        revoked: The latest revocation list, where the consortium uses one.
        participant: Own name, for a participant.
        identity: Own identity key, for a participant.

    Raises:
        DocumentRejected: It is not signed by the author that it names, is for another consortium, has ended, does not invite this
            participant under its own key, or does not hold together: the study is not one or has another id, the members are not
            sorted and distinct, or are fewer than the study needs.
        CertificateRejected, MessageTooLarge: The author's certificate is not a valid one of the authority.

    Guarantees:
        - Every field is bound: none can be changed without the key of an author whom the pinned authority certified.
    """
    body = document.body
    consortium.verify_own(body.consortium, body.title())
    verify_author(document.body, consortium=consortium, now=now, revoked=revoked)
    document.verify_signed_by(body.author_key, f"the author {body.author!r}")
    if not body.created < body.expires:
        raise DocumentRejected("the proposal ends before it begins")
    if not body.created - CLOCK_SKEW <= now <= body.expires + CLOCK_SKEW:
        raise DocumentRejected(
            f"the proposal is for the time from {utc_text(body.created)} to {utc_text(body.expires)}, it is {utc_text(now)}"
        )
    _verify_study(body)
    names = [member.name for member in body.invited]
    if names != sorted(set(names)) or len({member.identity for member in body.invited}) != len(names):
        raise DocumentRejected(
            "the members in the proposal are not sorted by name, or one stands there twice"
        )
    if len(names) < body.approvals_needed:
        raise DocumentRejected(
            f"the proposal invites {len(names)} members, the study needs {body.approvals_needed}"
        )
    if participant is not None and body.member(participant).identity != identity:
        raise DocumentRejected(f"the proposal names {participant!r} with another identity key")


def verify_author(
    body: Proposal, *, consortium: Consortium, now: datetime, revoked: RevocationList | None
) -> None:
    """Check that the author of a proposal is one now; raises CertificateRejected or MessageTooLarge."""
    verify_author_certificate(
        body.author_certificate,
        authority=consortium.authority,
        author=body.author,
        key=body.author_key,
        now=now,
        revoked=revoked,
    )


def _verify_study(body: Proposal) -> None:
    try:
        study = body.agreement()
    except Error as error:
        raise DocumentRejected(f"the study in the proposal is not one: {error.message}") from error
    if study.id != body.study_id.hex():
        raise DocumentRejected("the id in the proposal is not that of its study")
    if study.aggregation.participants != body.approvals_needed:
        raise DocumentRejected(
            f"the study is one of {study.aggregation.participants} participants,"
            f" the proposal asks for {body.approvals_needed} approvals"
        )
