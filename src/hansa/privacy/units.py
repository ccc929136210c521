"""Units of privacy that own several records: a patient with many visits, a customer with many loans.

A step samples units, and a sampled unit takes part with its first k records in the order of the table, k public. Which records
those are follows from the unit's own records alone, so one unit more or less changes nothing for the others. The gradients of its
records are added up and then clipped together (`per_sample.clipped_sum`): the unit moves the sum by no more than a record would.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hansa.errors import DataError


class UnitRecords:
    """Which records each unit takes part with.

    Args:
        unit_of_record: (n,) int64, unit of each record, 0 to m - 1, in any order.
        most: Public cap k on the records of a unit.

    Attributes:
        count: Number of units m; stays with the participant.

    Raises:
        DataError: A number is negative; no number is repeated in the message.

    Guarantees:
        - A unit's records are its first `most` in the order of the table, whatever stands between them.
    """

    def __init__(self, unit_of_record: NDArray[np.int64], most: int) -> None:
        if unit_of_record.ndim != 1 or (len(unit_of_record) and unit_of_record.min() < 0):
            raise DataError("the persons of the records are not numbers from 0")
        self._order = np.argsort(unit_of_record, kind="stable")
        self.count = int(unit_of_record.max()) + 1 if len(unit_of_record) else 0
        sizes = np.bincount(unit_of_record, minlength=self.count)
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._sizes = np.minimum(sizes, most)

    def __repr__(self) -> str:
        return "UnitRecords(...)"

    def of(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the records of some units.

        Args:
            units: (U,) distinct units.

        Returns:
            (B,) records, those of one unit beside each other, and (B,) the place in `units` of the owner of each, ascending.
        """
        sizes = self._sizes[units]
        place = np.repeat(np.arange(len(units)), sizes)
        inside = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._order[self._starts[units][place] + inside], place


def parts(unit_of_record: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Cut a batch into parts that never divide a unit.

    Args:
        unit_of_record: (B,) unit of each record, those of one unit beside each other.
        most: Records of a part; more where a single unit has more.

    Guarantees:
        - The parts are the batch, in order, and every unit is whole in one of them.
    """
    ends = np.append(np.flatnonzero(np.diff(unit_of_record)) + 1, len(unit_of_record))
    start = previous = 0
    for end in ends.tolist():
        if end - start > most and previous > start:
            yield slice(start, previous)
            start = previous
        previous = end
    if previous > start:
        yield slice(start, previous)
