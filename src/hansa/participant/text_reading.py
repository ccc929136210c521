"""One pass over a data set of texts: fields, types and lengths. No study trains on texts yet; they are checked only."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from hansa.participant.coercion import texts_of
from hansa.participant.data_problems import Problem, error, note
from hansa.participant.dataset_file import DatasetEntry
from hansa.participant.raw_units import UnitKeys


class TextReading:
    """Takes the pieces of a data set of texts in order.

    Args:
        entry: The data set's description.

    Guarantees:
        - `problems` names fields and counts, never a text.
    """

    def __init__(self, entry: DatasetEntry) -> None:
        self._entry, self._label = entry, entry.label or "label"
        self.keys = UnitKeys(person=entry.person, record=None, key_space=entry.key_space)
        self.rows, self.longest = 0, 0
        self._counts: Counter[str] = Counter()

    def take(self, piece: pa.RecordBatch) -> None:
        """Check a piece."""
        entry = self._entry
        self.rows += piece.num_rows
        texts = piece.column(entry.text)
        lengths = pc.utf8_length(texts)
        self._counts["missing_text"] += texts_of(texts).count(None)
        self._counts["long_text"] += int(pc.sum(pc.greater(lengths, entry.longest_text)).as_py() or 0)
        self.longest = max(self.longest, pc.max(lengths).as_py() or 0)
        labels = texts_of(piece.column(self._label))
        self._counts["missing_label"] += labels.count(None)
        if entry.labels:
            self._counts["unknown_label"] += sum(
                label is not None and label not in entry.labels for label in labels
            )
        self._counts["missing_person"] += self.keys.take(piece)[0]

    def problems(self) -> list[Problem]:
        """Give every problem, errors first."""
        if not self.rows:
            return [error("no_rows", "the data has no rows, at least 1 is needed")]
        entry = self._entry
        words = {
            "missing_text": (entry.text, f"field {entry.text!r} is empty"),
            "long_text": (entry.text, f"field {entry.text!r} is longer than {entry.longest_text} characters"),
            "unknown_label": (
                self._label,
                f"field {self._label!r} is none of the {len(entry.labels)} labels",
            ),
            "missing_person": (entry.person or "", f"field {entry.person!r} is empty"),
        }
        found = [
            error(
                code,
                f"{text} in {self._counts[code]} of {self.rows} rows",
                column=column,
                count=self._counts[code],
            )
            for code, (column, text) in words.items()
            if self._counts[code]
        ]
        unlabelled = self._counts["missing_label"]
        if unlabelled:
            text = f"field {self._label!r} is empty in {unlabelled} of {self.rows} rows"
            make = error if entry.labels else note
            found.append(make("missing_label", text, column=self._label, count=unlabelled))
        return found
