"""A participant's privacy budget for one data set: written to its ledger before data is read.

    1 reserve  the steps of a round, fsynced and signed, before the first record is read
    2 commit   after the update has left

What is reserved counts as spent, committed or not: after a crash nothing is under-counted. The ledger is bound to the identity
of the data (`data_identity`), so that a new study continues it. Not protected against: an owner who keeps two ledgers, or goes
back to an older copy of its file; whoever kept a tree head of the longer one can tell (`hansa audit verify --head`).
"""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from hansa.errors import BudgetExhausted
from hansa.privacy.ledger import Ledger, LedgerOwner
from hansa.privacy.ledger_format import spending_problem
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.ledger_history import entry_fields
from hansa.privacy.spending import Mechanism, Spending, total_epsilon

__all__ = ["Budget", "Spending"]

_LIMIT_MOST = 1e12  # a limit above this is none


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
        - A reservation that another writer of the same file has overtaken is refused.
    """

    def __init__(self, path: Path, *, epsilon_limit: float, delta: float, owner: LedgerOwner) -> None:
        self.path, self.epsilon_limit = path, epsilon_limit
        self._ledger = Ledger(path, owner=owner, delta=delta)
        self.delta = self._ledger.delta

    @property
    def head(self) -> TreeHead | None:
        """The tree head after the last entry; None before the first."""
        history = self._ledger.history
        return history.head() if history.size else None

    def epsilon(self, further: Spending | None = None) -> float:
        """Compute ε spent, and with a further round on top where one is given."""
        steps: Counter[Mechanism] = Counter()
        for reservation in self._ledger.history.reservations:
            steps[reservation.counted.mechanism] += reservation.counted.steps
        if further is not None:
            steps[further.mechanism] += further.steps
        return total_epsilon(steps, self.delta)

    def reserve(self, spending: Spending) -> float:
        """Step 1: reserve a round.

        Returns:
            ε after it.

        Raises:
            BudgetExhausted: The round would pass the limit, or asks for steps that cannot be accounted.
            StoreNotWritable: The disk is full.
            LedgerDamaged: Somebody else has written to the ledger since it was read.
        """
        after = self.epsilon(spending)
        if not after <= self.epsilon_limit:  # a limit that is NaN allows nothing
            raise BudgetExhausted(
                f"round {spending.round} would spend epsilon {after:.3f}, above the limit {self.epsilon_limit:g}"
            )
        problem = spending_problem(asdict(spending))
        if problem:
            raise BudgetExhausted(f"round {spending.round} asks for what no ledger can hold: {problem}")
        limit = self.epsilon_limit if self.epsilon_limit <= _LIMIT_MOST else None
        self._ledger.append("reserve", {**entry_fields(spending), "epsilon_limit": limit})
        return after

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
        history.verify_reserved(spending)
        self._ledger.append("commit", entry_fields(spending))
