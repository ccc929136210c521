"""One pass over a data set with a study in hand: rows are checked and encoded a piece at a time, and every problem is counted.

names       columns of the study that are not there, columns that are there twice
cells       what is no number, beyond the public bounds, outside the vocabulary, missing; labels; persons
the whole   too few rows for the study's sampling, one class only
"""

import difflib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hansa.participant.coercion import Numbers, numbers_of
from hansa.participant.data_problems import Problem, error, note
from hansa.participant.dataset import Table
from hansa.participant.dataset_file import DatasetEntry
from hansa.participant.raw_units import UnitKeys
from hansa.study import ColumnSchema, DataSchema, Study

_OTHER = 0  # code of a category outside the public vocabulary, and of a missing one


class TableReading:
    """Takes the pieces of a data set in order.

    Args:
        study: The study.
        entry: The data set's description.
        names: The columns of the data.
        keep: Whether the encoded rows are kept; a check needs their problems only.

    Guarantees:
        - `problems` names columns and counts, never a value.
        - Without an error among them, the table is what `dataset.table_from_columns` makes of the same cells.
    """

    def __init__(self, study: Study, entry: DatasetEntry, names: Sequence[str], *, keep: bool = True) -> None:
        self._study, self._schema, self._entry, self._keep = study, study.data, entry, keep
        self._source = {name: source_of(entry, self._schema, name) for name in wanted(self._schema)}
        self._person = person_of(entry, study)
        self._problems = self._problems_of_names(names)
        self.readable = all(problem.severity != "error" for problem in self._problems)
        self.keys = UnitKeys(person=self._person, record=entry.record, key_space=entry.key_space)
        self.rows = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], int] = {}
        self._classes: Counter[float] = Counter()
        self._numeric: list[NDArray[np.float64]] = []
        self._codes: list[NDArray[np.int64]] = []
        self._labels: list[NDArray[np.float64]] = []

    def take(self, piece: pa.RecordBatch) -> None:
        """Check and encode a piece; only where every column is there (`readable`)."""
        start, rows = self.rows, piece.num_rows
        self.rows += rows
        cells = {name: self._cells(piece, name) for name in self._source}
        for name, numbers in cells.items():
            self._count("non_numeric_column", name, numbers.wrong, start)
        labels = self._take_labels(cells[self._schema.label], start)
        numeric = [self._clamped(column, cells[column.name], start) for column in self._schema.numeric]
        codes = [self._coded(column, cells[column.name], start) for column in self._schema.categorical]
        without_person, without_record = self.keys.take(piece)
        self._counts["missing_person", self._person or ""] += without_person
        self._counts["missing_record", self._entry.record or ""] += without_record
        if self._keep:
            self._numeric.append(np.stack(numeric, axis=1) if numeric else np.empty((rows, 0)))
            self._codes.append(np.stack(codes, axis=1) if codes else np.empty((rows, 0), dtype=np.int64))
            self._labels.append(labels)

    def table(self) -> Table:
        """Give the encoded rows; of use only where no problem is an error."""
        return Table(
            numeric=np.concatenate(self._numeric),
            categorical=np.concatenate(self._codes),
            labels=np.concatenate(self._labels),
        )

    # -- cells ---------------------------------------------------------------------------------------------------

    def _cells(self, piece: pa.RecordBatch, name: str) -> Numbers:
        return numbers_of(piece.column(self._source[name]), self._entry.categories.get(name))

    def _count(self, code: str, column: str, where: NDArray[np.bool_], start: int) -> None:
        count = int(np.count_nonzero(where))
        if count:
            self._counts[code, column] += count
            self._first.setdefault((code, column), start + int(np.argmax(where)) + 1)

    def _take_labels(self, numbers: Numbers, start: int) -> NDArray[np.float64]:
        schema = self._schema
        positive = numbers.values == schema.positive_class
        negative = numbers.values == schema.negative_class
        self._count("invalid_label", schema.label, ~positive & ~negative & ~numbers.wrong, start)
        self._classes.update({1.0: int(positive.sum()), 0.0: int(negative.sum())})
        return np.where(positive, 1.0, 0.0)

    def _clamped(self, column: ColumnSchema, numbers: Numbers, start: int) -> NDArray[np.float64]:
        self._count("missing_values", column.name, numbers.missing, start)
        clamped = np.clip(numbers.values, column.minimum, column.maximum)
        beyond = (clamped != numbers.values) & np.isfinite(clamped)
        self._count("out_of_range", column.name, beyond, start)
        return clamped

    def _coded(self, column: ColumnSchema, numbers: Numbers, start: int) -> NDArray[np.int64]:
        codes = np.full(len(numbers.values), _OTHER, dtype=np.int64)
        for code, value in enumerate(column.values, start=1):
            codes[numbers.values == value] = code
        self._count("missing_values", column.name, numbers.missing, start)
        unknown = (codes == _OTHER) & ~numbers.missing & ~numbers.wrong
        self._count("unknown_category", column.name, unknown, start)
        return codes

    # -- problems ------------------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Give every problem, errors first."""
        found = list(self._problems)
        if self.readable:
            found += [
                self._of_cells(code, column)
                for code, column in sorted(self._counts)
                if self._counts[code, column]
            ]
            found += self._of_the_whole()
        return sorted(found, key=lambda problem: problem.severity != "error")

    def _problems_of_names(self, names: Sequence[str]) -> list[Problem]:
        counts = Counter(names)
        found = []
        absent = [name for name, source in self._source.items() if source not in counts]
        # The first line of a CSV file without a header is a record, and a message must not repeat its values: a
        # name of the file is shown only where most names of the study were found.
        may_show = 2 * len(absent) < len(self._source)
        for name in absent:
            source = self._source[name]
            near = difflib.get_close_matches(source, names, n=1) if may_show else []
            guess = f"; did you mean column {near[0]!r} of the data?" if near else ""
            if len(names) == 1 and self._entry.kind == "csv":
                guess = f"; the header has one cell: is the delimiter {self._entry.delimiter!r}?"
            found.append(
                error(
                    "missing_column",
                    f"column {self._shown(name)} of the study is not in the data{guess}",
                    column=name,
                )
            )
        for role, key in (("person", self._person), ("record", self._entry.record)):
            if key is not None and key not in counts:
                found.append(error("missing_column", f"{role} column {key!r} is not in the data", column=key))
        if not absent:
            twice = [name for name, count in counts.items() if count > 1]
            words = "column {!r} appears {} times in the data"
            found += [
                error("duplicate_column", words.format(name, counts[name]), column=name) for name in twice
            ]
        unknown = sorted(
            {*self._entry.columns, *self._entry.categories} - {*self._source, self._schema.person}
        )
        words = "the data set maps column {!r}, which the study does not have"
        return found + [note("unused_mapping", words.format(name), column=name) for name in unknown]

    def _shown(self, column: str) -> str:
        """Name a column of the study, and what it is called in the data where that differs."""
        source = self._source.get(column, column)
        return repr(column) if source == column else f"{column!r} ({source!r} in the data)"

    def _of_cells(self, code: str, column: str) -> Problem:
        count = self._counts[code, column]
        of = f"{count} of {self.rows} rows"
        first = self._first.get((code, column))
        where = f", first in data row {first}" if first else ""
        schema, shown = self._schema, self._shown(column)
        if code == "non_numeric_column":
            return error(code, f"column {shown} is not a number in {of}{where}", column=column, count=count)
        if code == "invalid_label":
            classes = f"{schema.negative_class} nor {schema.positive_class}"
            return error(
                code,
                f"label {shown} is missing or neither {classes} in {of}{where}",
                column=column,
                count=count,
            )
        if code in ("missing_person", "missing_record"):
            role = code.removeprefix("missing_")
            return error(code, f"{role} column {column!r} is empty in {of}", column=column, count=count)
        words = {
            "missing_values": f"column {shown} is missing in {of}; they are encoded as missing",
            "out_of_range": f"column {shown} is beyond its public bounds in {of}; they are clamped",
            "unknown_category": f"column {shown} is outside the public vocabulary in {of}; they are encoded as other",
        }
        return note(code, words[code], column=column, count=count)

    def _of_the_whole(self) -> list[Problem]:
        privacy, found = self._study.privacy, []
        if not self.rows:
            return [error("no_rows", "the data has no rows, at least 1 is needed")]
        units = self.keys.person_count if privacy.unit != "record" else self.rows
        expected = units * privacy.sample_rate
        wished = privacy.sample_rate * privacy.nominal_records
        if expected < 1:
            words = f"{units} rows or persons at sample rate {privacy.sample_rate:g} are {expected:.2g} a step, below 1"
            found.append(error("too_few_rows", words, count=units))
        elif units < wished:
            words = f"{units} rows or persons are fewer than the study's divisor {wished:g}: noise will outweigh them"
            found.append(note("few_rows", words, count=units))
        found += self._of_persons()
        if len([count for count in self._classes.values() if count]) == 1:
            found.append(
                note(
                    "one_class", f"label {self._schema.label!r} has one class only", column=self._schema.label
                )
            )
        return found

    def _of_persons(self) -> list[Problem]:
        most, persons = self._study.privacy.records_per_person, self.keys.persons
        if most is None or persons is None:
            return []
        many = int(np.count_nonzero(np.bincount(persons[persons >= 0]) > most))
        words = f"{many} persons have more than {most} records; the first {most} of each take part"
        return [note("capped_persons", words, column=self._person or "", count=many)] if many else []


def person_of(entry: DatasetEntry, study: Study) -> str | None:
    """Give the name in the data of the column of persons: the data set's own, or else the study's where it protects persons."""
    named = study.data.person
    if entry.person is not None or named is None:
        return entry.person
    return entry.columns.get(named, named)


def wanted(schema: DataSchema) -> list[str]:
    """Give the study's names of all columns, the label first."""
    return [schema.label, *(column.name for column in schema.columns)]


def source_of(entry: DatasetEntry, schema: DataSchema, name: str) -> str:
    """Give the name in the data of a column of the study."""
    if name == schema.label and entry.label is not None:
        return entry.label
    return entry.columns.get(name, name)
