"""The revocation list: made from the records of members, authors and services, numbered, and put where everybody fetches it.

The records decide; the list follows them. A coordinator that ended between the two makes the list when it is back, for `publish`
compares what is on the list with what must be.
"""

import base64
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import rfc8785
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.coordinator.author_register import AuthorRegister
from hansa.coordinator.journal import Journal
from hansa.coordinator.members import Members, not_ended
from hansa.coordinator.service_certificates import ServiceCertificates
from hansa.errors import InternalFailure, StoreDamaged
from hansa.federation.fields import utc_text, whole_seconds
from hansa.federation.files import write_file
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import CLOCK_SKEW, utc_now

SCOPE, NAME = "consortium", "revocation_list"
_TRIES = 20


class _Published(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    number: int = Field(ge=0)
    list: str


class Revocations:
    """Makes and keeps the consortium's revocation list.

    Args:
        journal: Where records and list are.
        file: Where the list lies for those who read files; replaced whole.
        authors: The authors.
        days: How long a list lasts.
        now: Clock.

    Guarantees:
        - Every list has a higher number than all before it, whoever makes it.
        - A list names every revoked certificate that has not ended, of members, of authors and of the services.
        - The file is replaced at once: a reader finds the old list or the new one.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        file: Path,
        authors: AuthorRegister,
        days: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._journal, self._file, self._authors = journal, file, authors
        self._days, self._now = days, now

    def current(self) -> bytes:
        """Return the latest list, DER; empty before the first."""
        found = self._read(self._journal.get(SCOPE, NAME))
        return base64.b64decode(found.list) if found else b""

    def ends(self) -> datetime | None:
        """When the latest list ends; members then accept no certificate by it any more."""
        found = self.current()
        return x509.load_der_x509_crl(found).next_update_utc if found else None

    def number(self) -> int | None:
        """Number of the latest list."""
        found = self._read(self._journal.get(SCOPE, NAME))
        return found.number if found else None

    def is_due(self) -> bool:
        """Whether another list must be made: somebody was revoked since, or half of the time of the latest is over."""
        found = self.current()
        if not found:
            return True
        known = x509.load_der_x509_crl(found)
        until, now = known.next_update_utc, self._now()
        listed = {entry.serial_number for entry in known}
        missing = {x509.load_der_x509_certificate(one).serial_number for one in self._revoked()} - listed
        return (
            bool(missing)
            or until is None
            or now > known.last_update_utc + (until - known.last_update_utc) / 2
        )

    def publish(self, authority: CertificateAuthority) -> bytes:
        """Make another list where one is due, and put the latest one into the file.

        Returns:
            The latest list, DER.

        Raises:
            InvalidValue: The authority has ended.
            JournalNotWritable, StoreNotWritable: A disk is full.
        """
        for _ in range(_TRIES):
            if not self.is_due():
                break
            raw = self._journal.get(SCOPE, NAME)
            known = self._read(raw)
            number, now = known.number + 1 if known else 1, whole_seconds(self._now())
            encoded = authority.revocation_list(
                self._revoked(),
                number=number,
                this_update=now - CLOCK_SKEW,
                next_update=now + timedelta(days=self._days),
            )
            published = _Published(number=number, list=base64.b64encode(encoded).decode())
            if self._journal.compare_and_put(SCOPE, NAME, raw, rfc8785.dumps(published.model_dump())):
                self._journal.event(
                    "revocation_list", number=number, ends=utc_text(now + timedelta(self._days))
                )
        else:
            raise InternalFailure(f"the revocation list changed {_TRIES} times while it was to be made")
        return self.put_into_file()

    def put_into_file(self) -> bytes:
        """Put the latest list into its file, where it is not there already, and return it."""
        found = self.current()
        if found and (not self._file.exists() or self._file.read_bytes() != found):
            write_file(self._file, found)
        return found

    def _revoked(self) -> list[bytes]:
        members = [one for record in Members(self._journal).all() for one in record.revoked_certificates]
        gone = [record for record in self._authors.all() if record.revoked is not None]
        authors = [one for record in gone for one in record.certificates]
        services = ServiceCertificates(self._journal).revoked()
        return list(not_ended((*members, *authors, *services), self._now() - 2 * CLOCK_SKEW))

    @staticmethod
    def _read(raw: bytes | None) -> _Published | None:
        if raw is None:
            return None
        try:
            return _Published.model_validate_json(raw)
        except ValidationError:
            problem = StoreDamaged("the revocation list in the journal is damaged")
        raise problem
