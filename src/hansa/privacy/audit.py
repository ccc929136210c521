"""What an auditor recomputes from ledger files alone: that they hold, and ε at the stated δ. Needs no key, clock or network.

1 read      form, order, chain, tree and signatures of every line (`ledger_history`)
2 key       the ledger is signed under the key that the auditor knows the participant by, where one is given
3 heads     it begins with every earlier tree head that the auditor kept, or that others saw in upload headers
4 ε         recomputed per round, per study and for the data set, with the noise that arrived where it is distributed
5 limit     at no entry was ε above the limit stated there (`limit_check`)
6 forks     of one data set there is one history; a second file of it is the same or an older copy

The limit is the one that the participant wrote down when it reserved; whether it was the right one is not in the file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hansa.errors import AuditError, HistoryForked, LedgerDamaged, LedgerFileMissing, LedgerNotVerified
from hansa.privacy.ledger import LedgerFile, read_ledger
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.ledger_history import Opening, Reservation
from hansa.privacy.limit_check import verify_limits
from hansa.privacy.merkle import root_of_leaves
from hansa.privacy.spending import Mechanism, total_epsilon

LEDGERS = "ledger-*.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerAudit:
    """A ledger that holds.

    Attributes:
        path: The file.
        opening: Whose it is.
        head: Its tree head.
        signature: The signature of that head.
        leaves: Leaf hash of every entry.
        roots: Merkle root after every entry.
        times: What the clock said at every entry, seconds since 1970; nobody vouches for it.
        reservations: Every round, in order; line, steps, limit, committed.
        round_epsilon: ε of each of them by itself.
        study_epsilon: ε of each study by itself.
        epsilon: ε of the data set.
        notes: What a reader should know and what is no fault: torn lines, a clock that went backwards.
    """

    path: Path
    opening: Opening
    head: TreeHead
    signature: bytes
    leaves: Sequence[bytes]
    roots: Sequence[bytes]
    times: Sequence[int]
    reservations: Sequence[Reservation]
    round_epsilon: Sequence[float]
    study_epsilon: Mapping[str, float]
    epsilon: float
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One ledger of an audit: the audit where it holds, the error where it does not."""

    path: Path
    audit: LedgerAudit | None
    error: AuditError | None


def ledger_files(place: Path) -> list[Path]:
    """Give the ledgers in a folder and the folders below it, or the one file that is named.

    Raises:
        LedgerFileMissing: There is none.
    """
    found = [place] if place.is_file() else sorted(path for path in place.rglob(LEDGERS) if path.is_file())
    if not found:
        raise LedgerFileMissing(f"there is no ledger at {str(place)!r}")
    return found


def read(path: Path, *, every_signature: bool = True) -> LedgerFile:
    """Step 1: read a ledger.

    Raises:
        LedgerFileMissing: It cannot be read.
        LedgerNotVerified: A line does not hold, or there is no line.
    """
    try:
        found = read_ledger(path, every_signature=every_signature)
    except OSError as error:
        raise LedgerFileMissing(f"ledger {str(path)!r} cannot be read: {error.strerror}") from error
    except LedgerDamaged as error:
        raise LedgerNotVerified(error.message) from error
    if found.history.opening is None:
        raise LedgerNotVerified(f"line 1 of {path.name} is not a whole entry")
    return found


def audit_ledger(
    path: Path,
    *,
    keys: Mapping[str, bytes] | None = None,
    heads: Sequence[TreeHead] = (),
    every_signature: bool = True,
) -> LedgerAudit:
    """Audit one ledger.

    Args:
        path: The file.
        keys: Keys that the auditor knows, by participant; others are taken from the ledger's first line.
        heads: Earlier tree heads, their signatures checked; those of other data sets are passed over, and so are those that name
            none, which `audit_folder` looks at.
        every_signature: As for `ledger.read_ledger`.

    Raises:
        LedgerFileMissing: The file cannot be read.
        LedgerNotVerified: A line does not hold; the message names file, line and reason.
        HistoryForked: The ledger does not begin with an earlier tree head.

    Guarantees:
        - ε is that of `Budget` for the same entries.
        - What `ledger.read_ledger` finds is found; lines cut off at the end are found where a tree head of them was kept.
    """
    # 1
    found = read(path, every_signature=every_signature)
    history, opening = found.history, found.history.opening
    assert opening is not None  # noqa: S101
    # 2
    if (keys or {}).get(opening.participant, opening.public_key) != opening.public_key:
        raise LedgerNotVerified(
            f"line 1 of {path.name} names another key for {opening.participant!r} than the one that was given"
        )
    # 3
    for head in heads:
        if (head.public_key, head.data) == (opening.public_key, opening.data):
            _verify_continues(path, found, head)
    # 4, 5
    verify_limits(path.name, opening.delta, history.reservations)
    rounds = [epsilon_of_reservations([reservation], opening.delta) for reservation in history.reservations]
    by_study: dict[str, list[Reservation]] = {}
    for reservation in history.reservations:
        by_study.setdefault(reservation.spending.study, []).append(reservation)
    return LedgerAudit(
        path=path,
        opening=opening,
        head=history.head(),
        signature=history.signature,
        leaves=history.leaves,
        roots=history.roots,
        times=[json.loads(entry)["time"] for entry in history.encoded],
        reservations=history.reservations,
        round_epsilon=rounds,
        study_epsilon={
            study: epsilon_of_reservations(spent, opening.delta) for study, spent in by_study.items()
        },
        epsilon=epsilon_of_reservations(history.reservations, opening.delta),
        notes=_notes(path, found),
    )


def audit_folder(
    place: Path,
    *,
    keys: Mapping[str, bytes] | None = None,
    heads: Sequence[TreeHead] = (),
    every_signature: bool = True,
) -> list[Finding]:
    """Audit every ledger in a folder; step 6 compares those of one data set. See `audit_ledger` for the arguments.

    Raises:
        LedgerFileMissing: There is no ledger.

    Guarantees:
        - There is a finding for every ledger, and one for every tree head whose data set has no ledger here; where all ledgers
          hold, that is.
    """
    findings: list[Finding] = []
    longest: dict[tuple[bytes, bytes], LedgerAudit] = {}
    for path in ledger_files(place):
        try:
            audit = audit_ledger(path, keys=keys, heads=heads, every_signature=every_signature)
            # 6
            data = (audit.opening.public_key, audit.opening.data)
            other = longest.setdefault(data, audit)
            _verify_same_history(audit, other)
            longest[data] = max(audit, other, key=lambda one: len(one.leaves))
            findings.append(Finding(path=path, audit=audit, error=None))
        except AuditError as error:
            findings.append(Finding(path=path, audit=None, error=error))
    if all(finding.error is None for finding in findings):
        for head in heads:
            if not _is_continued(head, longest):
                missing = HistoryForked(
                    f"no ledger here continues the tree head of {head.participant!r} with {head.size} entries"
                )
                findings.append(Finding(path=place, audit=None, error=missing))
    return findings


def _is_continued(head: TreeHead, longest: Mapping[tuple[bytes, bytes], LedgerAudit]) -> bool:
    """Tell whether there is the ledger of a tree head; one that names no data set is of any ledger of its key."""
    if head.data:
        return (head.public_key, head.data) in longest
    return any(
        key == head.public_key
        and head.size <= len(audit.leaves)
        and root_of_leaves(audit.leaves[: head.size]) == head.root
        for (key, _), audit in longest.items()
    )


def _verify_continues(path: Path, found: LedgerFile, head: TreeHead) -> None:
    history = found.history
    if head.size > history.size:
        raise HistoryForked(
            f"{path.name} ends after line {history.size}, and had {head.size} at an earlier tree head"
        )
    if history.roots[head.size - 1] != head.root:
        raise HistoryForked(
            f"the first {head.size} lines of {path.name} are not those of an earlier tree head"
        )


def _verify_same_history(one: LedgerAudit, other: LedgerAudit) -> None:
    for number, (mine, theirs) in enumerate(zip(one.leaves, other.leaves, strict=False), start=1):
        if mine != theirs:
            raise HistoryForked(
                f"{one.path.name} and {other.path.name} are two histories of one data set: "
                f"they part at line {number}"
            )


def epsilon_of_reservations(reservations: Iterable[Reservation], delta: float) -> float:
    """Compute ε of reserved rounds together, as they count now."""
    steps: Counter[Mechanism] = Counter()
    for reservation in reservations:
        steps[reservation.counted.mechanism] += reservation.counted.steps
    return total_epsilon(steps, delta)


def _notes(path: Path, found: LedgerFile) -> list[str]:
    history = found.history
    notes = [f"line {line} of {path.name} notes a line that a crash cut short" for line in history.torn]
    notes += [f"the clock was set back before line {line} of {path.name}" for line in history.clock_backwards]
    if found.torn:
        notes.append(f"line {history.size + 1} of {path.name} is cut short and counts for nothing")
    if found.feed_missing:
        notes.append(f"line {history.size} of {path.name} lacks its line feed and counts")
    return notes
