"""Answers: what an invited participant says to a proposal, by its administrator's hand or by its policy. An answer stands."""

import hmac
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hansa.errors import DocumentRejected
from hansa.federation.documents import Body, Document
from hansa.federation.fields import Bytes32, ParticipantName, UtcTime, utc_text
from hansa.federation.proposals import Proposal
from hansa.secure_agg.certificates import CLOCK_SKEW

Decider = Literal["hand", "policy"]
Reason = Annotated[str, Field(pattern=r"^([a-z][a-z_]{0,62}[a-z])?$")]


class Approval(Body):
    """A participant agrees to take part in a study."""

    SCHEMA: ClassVar[str] = "hansa/approval/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    proposal: Bytes32 = Field(description="digest of the proposal")
    participant: ParticipantName = Field(description="who agrees")
    by: Decider = Field(description="the administrator's hand, or the policy")
    at: UtcTime = Field(description="when")


class Denial(Body):
    """A participant refuses to take part in a study."""

    SCHEMA: ClassVar[str] = "hansa/denial/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    proposal: Bytes32 = Field(description="digest of the proposal")
    participant: ParticipantName = Field(description="who refuses")
    by: Decider = Field(description="the administrator's hand, or the policy")
    reason: Reason = Field(description="code of the refusal by policy; may be empty")
    at: UtcTime = Field(description="when")


def verify_answer(document: Document[Approval] | Document[Denial], proposal: Document[Proposal]) -> None:
    """Check an answer against the proposal that it is one to.

    Args:
        document: The answer, untrusted.
        proposal: The proposal, verified before.

    Raises:
        DocumentRejected: It answers another proposal or one of another consortium, came before or after the proposal's time, or is
            not signed by the identity key under which the proposal names the participant.

    Guarantees:
        - Every field is bound: none can be changed without that identity key.
    """
    body, asked = document.body, proposal.body
    same = hmac.compare_digest(body.proposal, proposal.digest)
    if not same or not hmac.compare_digest(body.consortium, asked.consortium):
        raise DocumentRejected(f"the {body.title()} of {body.participant!r} is for another proposal")
    if not asked.created - CLOCK_SKEW <= body.at <= asked.expires + CLOCK_SKEW:
        raise DocumentRejected(
            f"the {body.title()} of {body.participant!r} is of {utc_text(body.at)}, outside the time"
        )
    identity = asked.member(body.participant).identity
    document.verify_signed_by(identity, f"the identity key of {body.participant!r}")


def approve(proposal: Document[Proposal], participant: str, *, by: Decider, at: datetime) -> Approval:
    """Make an approval, to be signed with the participant's identity key."""
    return Approval(
        consortium=proposal.body.consortium, proposal=proposal.digest, participant=participant, by=by, at=at
    )


def deny(
    proposal: Document[Proposal], participant: str, *, by: Decider, at: datetime, reason: str = ""
) -> Denial:
    """Make a denial, to be signed with the participant's identity key."""
    return Denial(
        consortium=proposal.body.consortium,
        proposal=proposal.digest,
        participant=participant,
        by=by,
        reason=reason,
        at=at,
    )
