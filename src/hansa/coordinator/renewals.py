"""Renewals: new certificates for a member that shows its identity key, before the old ones end."""

from collections.abc import Callable
from datetime import datetime

from hansa.coordinator.issuing import Issuer
from hansa.coordinator.journal import Journal
from hansa.coordinator.members import MemberRecord, Members, with_enrolment
from hansa.errors import DocumentRejected, EnrolmentPending, NotAMember, NothingRequested
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document
from hansa.federation.enrolments import Enrolment
from hansa.federation.fields import utc_text
from hansa.federation.requests import RenewalRequest, verify_renewal_request
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now


class Renewals:
    """Issues the certificates that follow those of an enrolment.

    Args:
        journal: Where the records are.
        consortium: The consortium.
        days: How long certificates last.
        now: Clock.

    Guarantees:
        - A request is answered once; the same one again gets the same answer.
        - The identity key stays; a revoked participant gets nothing.
        - Who does not hold a member's identity key learns not whether the name is a member's.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        consortium: Consortium,
        days: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._members, self._journal, self._now = Members(journal), journal, now
        self._consortium, self._issuer = consortium, Issuer(consortium, days, now)

    def ask(
        self, document: Document[RenewalRequest], authority: CertificateAuthority | None
    ) -> Document[Enrolment]:
        """Take a member's request for new certificates, and issue them where the authority's key is at hand.

        Args:
            document: The request; the same one may come again.
            authority: The authority, or None where only the admin has its key.

        Raises:
            NotAMember: Nobody of this name is a member now, or its identity key has not signed the request.
            RequestForeign, DocumentRejected: See `verify_renewal_request`.
            EnrolmentPending: The admin has to renew it.
        """
        name, encoded = document.body.participant, document.encode().decode()
        try:
            record = self._member(name)
            document.verify_signed_by(record.keys.identity if record.keys else b"", repr(name))
        except (NotAMember, DocumentRejected) as error:  # alike: whoever asks may be anybody
            raise NotAMember(f"no present member {name[:80]!r} has signed this renewal") from error
        if record.renewal == encoded and not record.renewal_is_pending:
            return record.enrolment_document  # its answer was lost on the way
        self._verify_renewal(record, document)
        self._members.change(name, lambda found: self._still(found, record).changed(renewal=encoded))
        if authority is None:
            raise EnrolmentPending(
                f"the renewal of {name!r} waits for the admin",
                hint="the admin runs `hansa participant renew NAME --authority DIR` with the authority's key",
            )
        return self.renew(name, authority)

    def verify_renewable(self, name: str) -> MemberRecord:
        """Check that a member has asked for new certificates, and change nothing; raises as `renew` does."""
        self._members.get(name)
        record = self._member(name)
        if not record.renewal_is_pending:
            raise NothingRequested(
                f"the participant {name!r} has asked for no new certificates",
                hint="its agent asks when a third of their validity is left",
            )
        self._verify_renewal(record, record.renewal_document)
        return record

    def renew(self, name: str, authority: CertificateAuthority) -> Document[Enrolment]:
        """Issue new certificates for a member that asked for them.

        Raises:
            ParticipantUnknown: Nobody has this name.
            NotAMember: It is no member now.
            NothingRequested: It has not asked for new certificates.
        """
        record = self.verify_renewable(name)
        request, last = record.renewal_document, record.enrolment_document.body
        issued = self._issuer.issue(
            authority,
            name=name,
            number=last.number + 1,
            identity_request=request.body.identity_request,
            tls_request=request.body.tls_request,
            flower_key=last.flower_key,
        )
        self._members.change(
            name, lambda found: with_enrolment(self._still(found, record), issued, self._now())
        )
        self._journal.event("participant_renewed", participant=name, ends=utc_text(issued.body.not_after))
        return issued

    def _member(self, name: str) -> MemberRecord:
        record = self._members.find(name)
        if record is None or record.state != "enrolled":
            raise NotAMember(f"{name[:80]!r} is no member of the consortium now")
        return record

    def _still(self, found: MemberRecord | None, seen: MemberRecord) -> MemberRecord:
        if found is None or found.state != "enrolled" or found.enrolment != seen.enrolment:
            raise NotAMember(f"the membership of {seen.name!r} has changed in the meantime")
        return found

    def _verify_renewal(self, record: MemberRecord, document: Document[RenewalRequest]) -> None:
        keys, last = record.keys, record.enrolment_document.body
        verify_renewal_request(
            document,
            consortium=self._consortium,
            participant=record.name,
            identity=keys.identity if keys else b"",
            number=last.number,
        )
