"""What the header of an upload must say, known beforehand or decided by the members, never by whoever comes first.

The coordinator knows most of it: the cohort hash from the votes of the epoch, the packages that it chose and the last
round's results; the key from the deal. What it does not know is decided by T headers that agree, which fewer than T
members of bad faith cannot bring about: one that differs costs itself alone.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from hansa.errors import (
    CiphertextSizeMismatch,
    CohortMismatch,
    Error,
    HeParameterMismatch,
    ModelDivergence,
    TranscriptDivergence,
)
from hansa.secure_agg.messages import UploadHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedHeader:
    """The fields in which all headers of an attempt agree; None where it is not known yet.

    Attributes:
        cohort_hash: 32 bytes, see `cohort.cohort_hash`.
        he_key_id: 32 bytes, of the epoch's deal.
        previous_transcript: 32 bytes, last link of the transcript.
        state_tag: 32 bytes, tag of the model state before the round.
        ciphertext_count: Ciphertexts of an upload.
    """

    cohort_hash: bytes | None = None
    he_key_id: bytes | None = None
    previous_transcript: bytes | None = None
    state_tag: bytes | None = None
    ciphertext_count: int | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be decided."""
        return all(getattr(self, item.name) is not None for item in fields(self))

    def verify(self, header: UploadHeader) -> None:
        """Check a header against what is known.

        Raises:
            TranscriptDivergence: It continues another history.
            CohortMismatch: It is for another cohort.
            HeParameterMismatch: It is under another key.
            ModelDivergence: It belongs to another model state.
            CiphertextSizeMismatch: It has another number of ciphertexts.
        """
        error = self._difference(header)
        if error is not None:
            raise error

    def differs(self, header: UploadHeader) -> bool:
        """Whether `verify` would refuse a header."""
        return self._difference(header) is not None

    def _difference(self, header: UploadHeader) -> Error | None:
        who = f"the upload of {header.sender!r}"
        # The history first: it is part of the cohort hash, and says more.
        if self.previous_transcript not in (None, header.previous_transcript):
            return TranscriptDivergence(f"{who} continues another history")
        if self.cohort_hash not in (None, header.cohort_hash):
            return CohortMismatch(f"{who} is for another cohort")
        if self.he_key_id not in (None, header.he_key_id):
            return HeParameterMismatch(f"{who} is under another key")
        if self.state_tag not in (None, header.state_tag):
            return ModelDivergence(f"{who} belongs to another model state")
        if self.ciphertext_count not in (None, header.ciphertext_count):
            return CiphertextSizeMismatch(
                f"{who} has {header.ciphertext_count} ciphertexts, not {self.ciphertext_count}"
            )
        return None

    def leading(self, headers: Iterable[UploadHeader]) -> tuple[Self, int]:
        """Return what most of some headers say, complete, and how many say it; none say nothing."""
        counted = Counter(tuple(getattr(header, item.name) for item in fields(self)) for header in headers)
        if not counted:
            return self, 0
        values, votes = counted.most_common(1)[0]
        return type(self)(**dict(zip((item.name for item in fields(self)), values, strict=True))), votes
