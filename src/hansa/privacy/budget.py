"""A participant's privacy budget for one data set: written to its ledger before data is read.

    1 reserve  the steps of a round, fsynced and signed, before the first record is read
    2 commit   after the update has left
    charge     steps of anything else that looks at the data and leaves something: in one line, before it looks

What is reserved counts as spent, committed or not: after a crash nothing is under-counted. The ledger is bound to the identity
of the data (`data_identity`), so that a new study continues it, and several studies may use it at once: whoever reserves sees
what the others have reserved. Not protected against: an owner who keeps two ledgers, or goes back to an older copy of its file;
whoever kept a tree head of the longer one can tell (`hansa audit verify --head`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hansa.errors import BudgetExhausted, LedgerDamaged
from hansa.privacy import accounting
from hansa.privacy.ledger import Ledger, LedgerOwner
from hansa.privacy.ledger_format import spending_problem
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.ledger_history import entry_fields
from hansa.privacy.spending import Mechanism, Spending, month_of, total_epsilon
from hansa.privacy.spent import Spent

__all__ = ["Budget", "Gate", "Spending"]

_LIMIT_MOST = 1e12  # a limit above this is none


class Gate(Protocol):
    """The owner's own rules, such as `Policy.verify_round`."""

    def __call__(
        self, study: str, mechanism: accounting.Mechanism, *, delta: float, spent: Spent, month: str
    ) -> None:
        """Raise a `PolicyRefusal` where these steps must not be spent."""
        ...


class Budget:
    """The budget of one data set.

    Args:
        path: The ledger file; made by the first reservation.
        epsilon_limit: ε that this data set may ever spend.
        delta: δ at which ε is stated. A ledger that was opened at a smaller one keeps that, which states a larger ε.
        owner: Whose ledger it is, of which data, and who signs it.

    Raises:
        LedgerDamaged: A line does not hold.
        LedgerMismatch: The ledger is of another participant, key, data set or unit, or was opened at a larger δ.

    Guarantees:
        - A reservation is on the disk before `reserve` returns.
        - A refused reservation leaves the file as it was, and so does one for which the disk has no room.
        - ε counts every reservation, committed or not; where noise is distributed, with the noise that was counted on until a
          commit says how much arrived.
        - A reservation counts what other objects and processes have reserved in the same file: together they pass no limit.
        - An entry counts in the month of the clock or in the latest month of the ledger, whichever is later: a clock that is set
          back renews nothing. It is the month that the gate was asked with.
    """

    def __init__(self, path: Path, *, epsilon_limit: float, delta: float, owner: LedgerOwner) -> None:
        self.path, self.epsilon_limit = path, epsilon_limit
        self._ledger = Ledger(path, owner=owner, delta=delta)

    @property
    def delta(self) -> float:
        """The δ at which ε is stated."""
        return self._ledger.delta

    @property
    def head(self) -> TreeHead | None:
        """The tree head after the last entry that this object has seen; None before the first."""
        history = self._ledger.history
        return history.head() if history.size else None

    def verify_continues(self, size: int, root: bytes) -> None:
        """Check that the ledger begins with what is known of it from elsewhere.

        Args:
            size: Entries that it had; 0 for none.
            root: Merkle root over them.

        Raises:
            LedgerDamaged: It has fewer entries, or others.
        """
        history = self._ledger.history
        if size > history.size or (size and history.roots[size - 1] != root):
            raise LedgerDamaged(
                f"{self.path.name} is an older copy or another ledger: it does not continue the {size} entries that it had"
            )

    def spent(self, *, study: str | None = None, month: str | None = None) -> Sequence[accounting.Mechanism]:
        """Give what was reserved, of one study or in one month or both; see `spent.Spent`."""
        return [accounting.Mechanism(*one, count) for one, count in sorted(self._sum(study, month).items())]

    def epsilon(self, further: Spending | None = None, *, study: str | None = None) -> float:
        """Compute ε spent, by all studies or by one, and with a further round on top where one is given."""
        steps = self._sum(study, None)
        if further is not None:
            steps[further.mechanism] += further.steps
        return total_epsilon(steps, self.delta)

    def _sum(self, study: str | None, month: str | None) -> Counter[Mechanism]:
        # Anew each time, for a commit may change what an earlier reservation costs.
        total: Counter[Mechanism] = Counter()
        for one in self._ledger.history.reservations:
            if study in (None, one.spending.study) and month in (None, one.month):
                total[one.counted.mechanism] += one.counted.steps
        return total

    def reserve(self, spending: Spending, *, gate: Gate | None = None) -> float:
        """Step 1: reserve a round.

        Args:
            spending: What it asks for.
            gate: The owner's rules beside the limit for ever.

        Returns:
            ε after it.

        Raises:
            BudgetExhausted: The round would pass a limit, or asks for steps that cannot be accounted.
            PolicyRefusal: The gate refuses.
            StoreNotWritable: The disk is full.
            LedgerDamaged: What somebody else has written to the ledger does not hold.
        """
        limit = self.epsilon_limit if self.epsilon_limit <= _LIMIT_MOST else None
        fields = {**entry_fields(spending), "epsilon_limit": limit}
        self._ledger.append("reserve", fields, verify=lambda now: self._verify(fields, spending, gate, now))
        return self.epsilon()

    def charge(
        self, purpose: str, mechanism: accounting.Mechanism, *, study: str, gate: Gate | None = None
    ) -> float:
        """Spend for what is no update of a round: an empirical audit on the data, an evaluation that is released.

        Args:
            purpose: Short name of what it is: a-z, 0-9 and -.
            mechanism: Its steps.
            study: Id of the study that it is for.
            gate: As for `reserve`.

        Returns:
            ε after it.

        Raises:
            As `reserve`.

        Guarantees:
            - The charge is on the disk, whole, before this returns: it is spent at once, and there is nothing to commit.
            - It counts like a round: for ever, in its study and in its month.
        """
        spending = Spending(study=study, round=0, attempt=0, **mechanism._asdict())
        limit = self.epsilon_limit if self.epsilon_limit <= _LIMIT_MOST else None
        fields = {"purpose": purpose, "study": study, **mechanism._asdict(), "epsilon_limit": limit}
        self._ledger.append("charge", fields, verify=lambda now: self._verify(fields, spending, gate, now))
        return self.epsilon()

    def _verify(self, fields: Mapping[str, Any], spending: Spending, gate: Gate | None, now: int) -> None:
        what = fields.get("purpose", f"round {spending.round}")
        if gate is not None:
            gate(
                spending.study,
                accounting.Mechanism(*spending.mechanism, spending.steps),
                delta=self.delta,
                spent=self.spent,
                month=max(month_of(now), self._ledger.history.month),
            )
        after = self.epsilon(spending)
        if not after <= self.epsilon_limit:  # a limit that is NaN allows nothing
            raise BudgetExhausted(
                f"{what} would spend epsilon {after:.3f}, above the limit {self.epsilon_limit:g}"
            )
        problem = spending_problem(fields)
        if problem:
            raise BudgetExhausted(f"{what} asks for what no ledger can hold: {problem}")

    def commit(self, spending: Spending, *, contributors: int = 0) -> None:
        """Step 2: note that the round's update has left; once, however often it is called.

        Args:
            spending: What was reserved.
            contributors: Where noise is distributed, members whose updates are in the sum that was opened; 0 where it is not known
                that this one's is. From then on the round costs what the noise that arrived makes it cost.

        Raises:
            LedgerDamaged: The round is not reserved: an older copy of the ledger stands in its place.
        """
        history = self._ledger.history
        if history.is_committed(spending.place):
            return
        if spending.distributed is not None and contributors > spending.distributed.contributors:
            spending = spending.arrived(contributors)
        fields = entry_fields(spending)
        self._ledger.append("commit", fields, verify=lambda _: history.verify_reserved(spending))
