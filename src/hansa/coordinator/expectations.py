"""What the coordinator can know of the next round's upload headers, from messages that it relays.

The manifest is in the members' votes, the key in the deal, the packages are its own choice; history and state tag are in
the confirmations of the last round. A value counts where T members say the same. What is not known is left to the T
headers of the round itself (`secure_agg/expected.py`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from hansa.errors import ProtocolError
from hansa.secure_agg.cohort import cohort_hash, open_each
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import Deal, Package, RoundResult, Void, Vote, open_signed
from hansa.secure_agg.parameters import Terms

_FIRST_TRANSCRIPT = bytes(32)
T = TypeVar("T")


class Expectations:
    """Follows one study from epoch to epoch and round to round.

    Args:
        roster: Members.
        terms: Mode and threshold.
        ciphertext_count: Ciphertexts of an upload, where whoever starts the coordinator knows.

    Guarantees:
        - Fewer than T members cannot make it expect anything.
        - History and state are expected of the round after the one that was confirmed, and of no other.
        - It knows no secret: all of it stands in the clear in signed messages.
    """

    def __init__(self, roster: Roster, terms: Terms, *, ciphertext_count: int | None = None) -> None:
        self._roster, self._terms = roster, terms
        self._epoch, self._manifest_hash, self._next_round = 0, b"", 1
        self._known = ExpectedHeader(previous_transcript=_FIRST_TRANSCRIPT, ciphertext_count=ciphertext_count)

    def epoch_entered(self, epoch: int, deal: bytes, votes: Iterable[bytes]) -> None:
        """Take manifest and key of a new epoch; another group key tags the same state otherwise.

        Raises:
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            DuplicateMember: Two votes of one member.
        """
        self._epoch = epoch
        found = open_each(votes, Vote, self._roster, epoch)
        self._manifest_hash = self._agreed(vote.manifest_hash for vote, _ in found.values()) or b""
        key_id = open_signed(deal, Deal, self._roster, epoch).he_key_id
        self._known = replace(self._known, he_key_id=key_id, state_tag=None)

    def round_confirmed(self, results: Sequence[bytes]) -> None:
        """Take history and state from the members' signed results of a round; forget both where T do not agree."""
        try:
            found = open_each(results, RoundResult, self._roster, self._epoch)
        except ProtocolError:
            found = {}
        agreed = self._agreed((body.round, body.transcript, body.state_tag) for body, _ in found.values())
        self.history_unknown()
        if agreed is not None:
            last_round, transcript, state_tag = agreed
            self._next_round = last_round + 1
            self._known = replace(self._known, previous_transcript=transcript, state_tag=state_tag)

    def round_void(self, voids: Sequence[bytes]) -> None:
        """Take the history from T signed voids of a round; they say nothing of the state's tag."""
        bodies = [body for body, _ in open_each(voids, Void, self._roster, self._epoch).values()]
        agreed = self._agreed((body.round, body.transcript) for body in bodies)
        self.history_unknown()
        if agreed is not None:
            last_round, transcript = agreed
            self._next_round = last_round + 1
            self._known = replace(self._known, previous_transcript=transcript)

    def history_unknown(self) -> None:
        """Forget history and state: the members went on in a way that their confirmations do not show."""
        self._known = replace(self._known, previous_transcript=None, state_tag=None)

    def of(self, round_index: int, attempt: int, packages: Iterable[bytes]) -> ExpectedHeader:
        """Return what the headers of an attempt must say.

        Args:
            round_index: Round number.
            attempt: Attempt number.
            packages: Signed package of each member of the cohort.
        """
        if round_index != self._next_round:
            self.history_unknown()  # the members went on without a confirmation
        transcript = self._known.previous_transcript
        if not self._manifest_hash or transcript is None:
            return self._known
        named = {
            name: signed
            for name, (_, signed) in open_each(packages, Package, self._roster, self._epoch).items()
        }
        return replace(
            self._known,
            cohort_hash=cohort_hash(self._manifest_hash, round_index, attempt, named, transcript),
        )

    def _agreed(self, said: Iterable[T]) -> T | None:
        """Return what T members say, None where no T say the same."""
        most = Counter(said).most_common(1)
        return most[0][0] if most and most[0][1] >= self._terms.threshold else None
