"""The admin's side of membership: invite, approve, revoke. What changes is durable before anything is handed out."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta

from hansa.coordinator.issuing import Issuer, public_keys, verify_name
from hansa.coordinator.journal import Journal
from hansa.coordinator.members import MemberRecord, Members, not_ended, with_enrolment
from hansa.coordinator.settings import CoordinatorSettings
from hansa.errors import (
    AlreadyApproved,
    DocumentRejected,
    EnrolmentPending,
    InvitationExhausted,
    InvitationExpired,
    InvitationUnknown,
    InvitationUsed,
    NothingRequested,
    ParticipantExists,
    ParticipantRevoked,
    ParticipantUnknown,
    RequestForeign,
)
from hansa.federation.consortium import Consortium, verify_fingerprint
from hansa.federation.documents import Document
from hansa.federation.enrolments import Enrolment
from hansa.federation.fields import utc_text, whole_seconds
from hansa.federation.invitations import Invitation, new_code, proof_identity
from hansa.federation.requests import (
    CollectRequest,
    EnrolmentRequest,
    MemberKeys,
    keys_of_request,
    verify_enrolment_request,
)
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import CLOCK_SKEW, utc_now
from hansa.secure_agg.identity import Identity, RandomBytes

ATTEMPTS_MOST = 20
_NOBODY = (
    Identity.generate().public
)  # signs nothing, so that it takes the same steps to refuse an unknown name


class Registry:
    """Who is a member of the consortium.

    Args:
        journal: Where the records are.
        consortium: The consortium.
        settings: How long certificates and invitations last, and where participants reach the coordinator.
        now: Clock.
        random_bytes: Source of invitation codes.

    Guarantees:
        - An invitation serves one set of keys, before its end, and after `ATTEMPTS_MOST` wrong requests none.
        - Nobody is enrolled whose keys' fingerprint was not given to `approve`.
        - Of two approvals of one request, one issues certificates.
        - Who holds neither an invitation nor an identity key learns no name and no state from `submit` and `collect`.
        - The journal holds neither the code of an invitation nor anything from which a request under it can be made.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        consortium: Consortium,
        settings: CoordinatorSettings,
        now: Callable[[], datetime] = utc_now,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self.members, self._journal = Members(journal), journal
        self._consortium, self._settings = consortium, settings
        self._now, self._random_bytes = now, random_bytes
        self._issuer = Issuer(consortium, settings.lifetimes.member_days, now)

    def invite(self, name: str, authority: CertificateAuthority) -> Document[Invitation]:
        """Invite a participant; an earlier invitation that was not used ends.

        Args:
            name: Its name, for ever.
            authority: Signs the invitation.

        Raises:
            ParticipantExists: Somebody of this name has asked for membership or has it.
            InvalidValue: The name is none.
        """
        verify_name(name)
        now = whole_seconds(self._now())
        expires = now + timedelta(days=self._settings.lifetimes.invitation_days)
        code = new_code(self._random_bytes)
        body = Invitation(
            name=self._consortium.name,
            fingerprint=self._consortium.fingerprint,
            authority=self._consortium.authority,
            addresses=self._settings.addresses,
            participant=name,
            code=code,
            expires=expires,
        )
        proof = proof_identity(code, consortium=self._consortium.fingerprint, participant=name)

        def decide(found: MemberRecord | None) -> MemberRecord:
            _verify_invitable(name, found)
            revoked = found.revoked_certificates if found else ()
            return MemberRecord(
                name=name,
                state="invited",
                proof_key=proof.public,
                invited=now,
                expires=expires,
                revoked_certificates=revoked,
            )

        self.members.change(name, decide)
        self._journal.event("participant_invited", participant=name, expires=utc_text(expires))
        return Document.sign(body, authority.sign)

    def verify_invitable(self, name: str) -> None:
        """Raise ParticipantExists if somebody of this name has asked for membership or has it."""
        _verify_invitable(name, self.members.find(name))

    def verify_request(self, document: Document[EnrolmentRequest]) -> MemberRecord:
        """Check a request for enrolment and change nothing; raises as `submit` does.

        Returns:
            The record of the participant, which holds this very request if it came before.
        """
        name = document.body.participant
        record = self.members.find(name)
        # Who does not hold the invitation learns nothing: neither whether the name is known, nor what became of it.
        if record is None:
            verify_enrolment_request(
                document, consortium=self._consortium, participant=name, proof_key=_NOBODY
            )
            raise InvitationUnknown(f"nobody has invited {name!r}")
        verify_enrolment_request(
            document, consortium=self._consortium, participant=name, proof_key=record.proof_key
        )
        if record.state == "revoked":
            raise ParticipantRevoked(f"the participant {name!r} is revoked")
        if record.state in ("requested", "enrolled"):
            if record.request == document.encode().decode():
                return record
            raise InvitationUsed(f"the invitation of {name!r} was used before")
        if self._now() > record.expires + CLOCK_SKEW:
            raise InvitationExpired(f"the invitation of {name!r} ended at {utc_text(record.expires)}")
        if record.attempts >= ATTEMPTS_MOST:
            raise InvitationExhausted(
                f"{record.attempts} wrong requests came under the invitation of {name!r}"
            )
        self._verify_unshared(record, keys_of_request(document))
        return record

    def submit(self, document: Document[EnrolmentRequest]) -> MemberRecord:
        """Take a request for enrolment; the same one may come again.

        Raises:
            InvitationUnknown: Nobody of this name is invited, or the sender does not hold the invitation.
            InvitationExpired, InvitationUsed, InvitationExhausted: The invitation serves no more.
            ParticipantRevoked: The participant is revoked and was not invited again.
            RequestForeign, DocumentRejected: See `verify_enrolment_request`; or a key is another one's, or was revoked.
        """
        name, encoded = document.body.participant, document.encode().decode()
        try:
            record = self.verify_request(document)
        except (InvitationUnknown, RequestForeign, DocumentRejected):
            self._count_attempt(name)
            raise
        if record.state != "invited":
            return record

        def decide(found: MemberRecord | None) -> MemberRecord:
            if found is None or found.proof_key != record.proof_key or found.state != "invited":
                raise InvitationUsed(f"the invitation of {name!r} was used before")
            return found.changed(state="requested", request=encoded)

        written = self.members.change(name, decide)
        self._journal.event("enrolment_requested", participant=name)
        return written

    def fingerprint(self, record: MemberRecord) -> bytes | None:
        """Fingerprint of the keys that a participant asked for, 32 bytes; None before it has asked."""
        keys = record.keys
        return None if keys is None else keys.fingerprint(self._consortium.fingerprint, record.name)

    def verify_approvable(self, name: str, fingerprint: bytes) -> MemberRecord:
        """Check that a request can be approved under a fingerprint, and change nothing; raises as `approve` does."""
        record = self.members.get(name)
        found = self.fingerprint(record)
        if record.state == "enrolled":
            raise AlreadyApproved(f"the participant {name!r} is approved already")
        if record.state == "revoked":
            raise ParticipantRevoked(f"the participant {name!r} is revoked")
        if found is None:
            raise NothingRequested(f"the participant {name!r} has not sent its request")
        verify_fingerprint(fingerprint, found, what=f"the participant {name!r}")
        return record

    def approve(
        self, name: str, *, fingerprint: bytes, authority: CertificateAuthority
    ) -> Document[Enrolment]:
        """Make a participant a member.

        Args:
            name: Its name.
            fingerprint: What it read out as the fingerprint of its keys, 32 bytes.
            authority: Issues the certificates.

        Raises:
            ParticipantUnknown: Nobody has this name.
            NothingRequested: It has not sent its request.
            AlreadyApproved: It is a member already.
            ParticipantRevoked: It is revoked.
            FingerprintMismatch: Its request holds other keys than those of the fingerprint.
        """
        record = self.verify_approvable(name, fingerprint)
        request = record.request_document.body
        issued = self._issuer.issue(
            authority,
            name=name,
            number=1,
            identity_request=request.identity_request,
            tls_request=request.tls_request,
            flower_key=request.flower_key,
        )

        def decide(found: MemberRecord | None) -> MemberRecord:
            if found is None or found.state != "requested" or found.request != record.request:
                raise AlreadyApproved(f"the participant {name!r} was approved or changed in the meantime")
            return with_enrolment(found, issued, self._now())

        self.members.change(name, decide)
        self._journal.event("participant_approved", participant=name, ends=utc_text(issued.body.not_after))
        return issued

    def collect(self, document: Document[CollectRequest]) -> Document[Enrolment]:
        """Give the enrolment to whoever asked for it.

        Raises:
            InvitationUnknown: Nobody of this name has asked with this identity key.
            DocumentRejected: It is for another consortium, or not of now.
            EnrolmentPending: The admin has not decided yet.
            ParticipantRevoked: It was revoked, or its request was turned down.
        """
        body, now = document.body, self._now()
        record = self.members.find(body.participant)
        keys = record.keys if record else None
        self._consortium.verify_own(body.consortium, body.title())
        try:
            document.verify_signed_by(keys.identity if keys else _NOBODY, repr(body.participant))
        except DocumentRejected as error:
            raise InvitationUnknown(
                f"no request of {body.participant!r} is here that was signed by this key"
            ) from error
        if record is None:
            raise InvitationUnknown(f"{body.participant!r} has sent no request")
        if abs(now - body.created) > CLOCK_SKEW:
            raise DocumentRejected(f"the request is of {utc_text(body.created)}, it is {utc_text(now)}")
        if record.state == "revoked":
            raise ParticipantRevoked(f"the participant {record.name!r} is revoked")
        if not record.enrolment:
            raise EnrolmentPending(f"the request of {record.name!r} waits for the admin's approval")
        return record.enrolment_document

    def verify_revocable(self, name: str) -> None:
        """Check that somebody can be revoked, and change nothing; raises as `revoke` does."""
        _revocable(name, self.members.find(name))

    def revoke(self, name: str, reason: str) -> MemberRecord:
        """End a membership, an application or an invitation. `revocations.publish` then tells everybody.

        Raises:
            ParticipantUnknown: Nobody has this name.
            ParticipantRevoked: It is revoked already.

        Guarantees:
            - All certificates that were ever issued under the name and have not ended are on the next revocation list.
        """
        now = self._now()

        def decide(found: MemberRecord | None) -> MemberRecord:
            found = _revocable(name, found)
            gone = not_ended((*found.revoked_certificates, *found.certificates), now - 2 * CLOCK_SKEW)
            return found.changed(
                state="revoked", revoked=now, reason=reason, certificates=(), revoked_certificates=gone
            )

        written = self.members.change(name, decide)
        self._journal.event("participant_revoked", participant=name, reason=reason)
        return written

    # -- inside ------------------------------------------------------------------------------------------

    def _count_attempt(self, name: str) -> None:
        def decide(found: MemberRecord | None) -> MemberRecord:
            if found is None:
                raise ParticipantUnknown(f"there is no participant {name[:80]!r}")
            return found.changed(attempts=min(found.attempts + 1, ATTEMPTS_MOST))

        record = self.members.find(name)
        if record is not None and record.state == "invited":
            self.members.change(name, decide)

    def _verify_unshared(self, record: MemberRecord, keys: MemberKeys) -> None:
        if {keys.identity, keys.tls} & public_keys(record.revoked_certificates):
            raise DocumentRejected(f"the request of {record.name!r} holds a key that was revoked")
        for other in self.members.all():
            theirs = other.keys if other.name != record.name else None
            if theirs and (theirs.identity == keys.identity or theirs.flower == keys.flower):
                raise DocumentRejected(f"the request of {record.name!r} holds a key of another participant")


def _verify_invitable(name: str, found: MemberRecord | None) -> None:
    if found is not None and found.state not in ("invited", "revoked"):
        raise ParticipantExists(f"the participant {name!r} is {found.state} already")


def _revocable(name: str, found: MemberRecord | None) -> MemberRecord:
    if found is None:
        raise ParticipantUnknown(f"there is no participant {name[:80]!r}")
    if found.state == "revoked":
        raise ParticipantRevoked(f"the participant {name!r} is revoked already")
    return found
