"""What is found in a data set when it is held against a study: every problem at once, by columns and counts, without a value."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hansa.errors import SchemaMismatch

Severity = Literal["error", "note"]
_SHOWN_MOST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        code: Stable name for scripts.
        severity: An error keeps the data set out of the study; a note says what the encoding does with some rows.
        column: Name of the column in the study, or of the column in the data where the study has none; "" for the whole.
        count: Rows that it concerns; 0 where it is not about rows.
        message: In words, lower case, without a value.
    """

    code: str
    severity: Severity
    column: str
    count: int
    message: str

    def as_json(self) -> dict[str, str | int]:
        """Give the finding for a JSON report."""
        return {
            "code": self.code,
            "severity": self.severity,
            "column": self.column,
            "count": self.count,
            "message": self.message,
        }


def error(code: str, message: str, *, column: str = "", count: int = 0) -> Problem:
    """Make a finding that keeps the data set out of the study."""
    return Problem(code=code, severity="error", column=column, count=count, message=message)


def note(code: str, message: str, *, column: str = "", count: int = 0) -> Problem:
    """Make a finding that the encoding has an answer to."""
    return Problem(code=code, severity="note", column=column, count=count, message=message)


def verify_no_errors(name: str, problems: Iterable[Problem]) -> None:
    """Raise SchemaMismatch if a finding is an error; the message holds the first five and says how many there are."""
    wrong = [problem.message for problem in problems if problem.severity == "error"]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN_MOST} more" if len(wrong) > _SHOWN_MOST else ""
        counted = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise SchemaMismatch(f"data set {name!r} has {counted}: {'; '.join(wrong[:_SHOWN_MOST])}{more}")
