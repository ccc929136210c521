"""Checks of a side's own set-up: what `hansa coordinator doctor` and `hansa participant doctor` run and how they tell it.

A check looks at one thing and gives findings: a level, the cause in one line, and the command that mends it. All checks run,
whatever one of them finds, so that everything that is wrong is known after one call. What a check looks at it leaves as it was.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from hansa.errors import CheckTimedOut, Error, InternalFailure

SCHEMA = "hansa/doctor/v1"
Level = Literal["ok", "warn", "fail", "skipped"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "fail", "skipped")
Place = TypeVar("Place")
_MOST_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        level: How bad it is: `warn` will be bad or may be meant, `fail` keeps this side from working, `skipped` was not looked at.
        cause: One line.
        mend: Command that mends it; empty where nothing is to be done.
        code: Code of the error that it would end in, or of the kind of finding; empty for none.
        subject: Which one of several things that the check looks at, such as a data set's name; empty for the only one.
        detail: More for the owner's own terminal, such as counts of rows; it stands in no JSON.
    """

    level: Level
    cause: str
    mend: str = ""
    code: str = ""
    subject: str = ""
    detail: str = ""


def ok(cause: str, *, subject: str = "", detail: str = "") -> Finding:
    """Make a finding that all is well."""
    return Finding(level="ok", cause=cause, subject=subject, detail=detail)


def skipped(cause: str, *, subject: str = "") -> Finding:
    """Make a finding that something was not looked at, and why."""
    return Finding(level="skipped", cause=cause, subject=subject)


def warn(cause: str, mend: str, *, code: str = "", subject: str = "", detail: str = "") -> Finding:
    """Make a finding of something that works, and should be looked after."""
    return Finding(level="warn", cause=cause, mend=mend, code=code, subject=subject, detail=detail)


def fail(cause: str, mend: str, *, code: str = "", subject: str = "", detail: str = "") -> Finding:
    """Make a finding of something that does not work."""
    return Finding(level="fail", cause=cause, mend=mend, code=code, subject=subject, detail=detail)


def failure(error: Error, mend: str = "", *, subject: str = "") -> Finding:
    """Make the finding of an error; without a command that mends it, the error's own hint stands there."""
    return fail(error.message, mend or error.hint, code=error.code, subject=subject)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check(Generic[Place]):
    """One check.

    Attributes:
        name: Stable name in snake_case.
        look: Gives the findings; may raise.
        needs: Checks without whose success this one says nothing new: it is skipped when one of them fails or is skipped.
        limit_seconds: Longest time that it may take.
        late: Level of the finding that it took longer.
        mend: Makes the command that mends an error which `look` raises; the error's hint where there is none.
    """

    name: str
    look: Callable[[Place], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    limit_seconds: float = 15.0
    late: Level = "fail"
    mend: Callable[[Place], str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finding, and the check that found it."""

    name: str
    finding: Finding


def run_checks(checks: Sequence[Check[Place]], place: Place) -> list[Result]:
    """Run all checks, one after another.

    Args:
        checks: Each after those that it needs.
        place: What they look at.

    Returns:
        All findings, in the order of the checks; at least one of each.

    Guarantees:
        - A check that raises ends in a finding with the error's code, and the others run; of an error that nobody foresaw only the
          kind is told, for its text may hold anything.
        - A check that takes longer than its limit is left behind: no check keeps the others from running.
        - Every warning and failure has something that mends it, and every cause is one printable line.
    """
    results: list[Result] = []
    lost: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in lost]
        found = [skipped(f"needs {missing[0]}")] if missing else _looked(check, place)
        if all(one.level == "skipped" for one in found) or any(one.level == "fail" for one in found):
            lost.add(check.name)
        results += [Result(name=check.name, finding=_in_one_line(one)) for one in found]
    return results


def is_healthy(results: Iterable[Result]) -> bool:
    """Whether nothing fails."""
    return all(result.finding.level != "fail" for result in results)


def as_json(side: str, home: str, results: Sequence[Result]) -> dict[str, Any]:
    """Put findings into their JSON form, without what is for the owner's terminal only."""
    return {
        "schema": SCHEMA,
        "side": side,
        "home": home,
        "healthy": is_healthy(results),
        "counts": _counts(results),
        "checks": [
            {
                "name": result.name,
                "subject": result.finding.subject,
                "level": result.finding.level,
                "cause": result.finding.cause,
                "mend": result.finding.mend,
                "code": result.finding.code,
            }
            for result in results
        ],
    }


def as_lines(results: Sequence[Result], *, for_owner: bool) -> list[str]:
    """Put findings into lines: one a finding, what mends it below, the counts at the end.

    Args:
        results: The findings.
        for_owner: Whether the owner reads them on a terminal; details are shown to nobody else.
    """
    width = max((len(_title(result)) for result in results), default=0)
    lines = []
    for result in results:
        finding, detail = result.finding, result.finding.detail if for_owner else ""
        code = f" [{finding.code}]" if finding.code else ""
        lines.append(f"{finding.level:8}{_title(result):{width}}  {finding.cause}{code}")
        if detail:
            lines.append(f"{'':{8 + width}}  {detail}")
        if finding.mend:
            lines.append(f"{'':{8 + width}}  -> {finding.mend}")
    counted = ", ".join(f"{count} {level}" for level, count in _counts(results).items())
    return [*lines, "", counted]


def _counts(results: Iterable[Result]) -> dict[Level, int]:
    levels = [result.finding.level for result in results]
    return {level: levels.count(level) for level in LEVELS}


def _title(result: Result) -> str:
    return f"{result.name}:{result.finding.subject}" if result.finding.subject else result.name


def _looked(check: Check[Place], place: Place) -> list[Finding]:
    """Look in a thread of its own, which is left alone when its time is over."""
    found: list[Finding] = []

    def look() -> None:
        try:
            for one in check.look(place):
                found.append(one)  # noqa: PERF402 - what was found before it raises counts
        except Error as error:
            found.append(failure(error, check.mend(place) if check.mend else ""))
        except Exception as error:
            unforeseen = InternalFailure(f"the check was ended by {type(error).__name__}")
            found.append(failure(unforeseen))

    thread = threading.Thread(target=look, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(check.limit_seconds)
    if thread.is_alive():
        late = CheckTimedOut(f"the check did not end within {check.limit_seconds:g} s")
        return [*found, replace(failure(late, check.mend(place) if check.mend else ""), level=check.late)]
    return found or [skipped("there is nothing to look at")]


def _in_one_line(finding: Finding) -> Finding:
    def line(text: str) -> str:
        printable = "".join(letter if letter.isprintable() else " " for letter in text)
        return printable if len(printable) <= _MOST_CHARACTERS else printable[: _MOST_CHARACTERS - 3] + "..."

    return replace(finding, cause=line(finding.cause), detail=line(finding.detail))
