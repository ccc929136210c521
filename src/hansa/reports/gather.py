"""From a folder of ledgers and statements to a privacy report: everything is verified and recomputed here, once.

1 ledgers      `privacy.audit`: form, chain, signatures, limits, forks
2 statements   `privacy.statement_audit`: form, signature, against the ledger
3 each other   `privacy.contradictions`
4 ε            by PLD for every data set, study, month and round; by PRV and RDP beside it
5 evidence     measured lower bounds against the ε of the same steps
6 cautions     what holds and should not be overlooked

A file that does not hold is named and gives no number.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from hansa.errors import Error
from hansa.privacy.audit import Finding, LedgerAudit, audit_folder
from hansa.privacy.contradictions import contradictions
from hansa.privacy.statement import Statement
from hansa.privacy.statement_audit import StatementFinding, audit_statements
from hansa.reports.cautions import cautions_of
from hansa.reports.curves import Curves
from hansa.reports.data_set_report import DataSet
from hansa.reports.gather_data_sets import DataSets, date_of
from hansa.reports.gather_studies import layers_of, studies_of
from hansa.reports.privacy_report import Overall, PrivacyReport, Problem, Reviewed

Key = tuple[str, str]  # public key and commitment of a data set


def gather(place: Path, *, keys: Mapping[str, bytes] | None = None) -> PrivacyReport:
    """Verify and recompute everything in a folder.

    Args:
        place: Folder with `ledger-*.jsonl` and `statement-*.json` files, also in folders below it.
        keys: Keys that the auditor knows, by participant; others are taken from the files.

    Raises:
        LedgerFileMissing: There is no ledger.

    Guarantees:
        - What does not hold is among `problems`, and `verified` is false.
        - The same files give the same report, whenever and wherever it is made.
    """
    return Gathering(place, keys or {}).report()


class Gathering:
    """One folder on its way into a report."""

    def __init__(self, place: Path, keys: Mapping[str, bytes]) -> None:
        self._place = place
        self._problems: list[Problem] = []
        # 1, 2, 3
        self._ledgers = audit_folder(place, keys=keys)
        self._statements = audit_statements(place, self._ledgers, keys=keys)
        findings: list[Finding | StatementFinding] = [*self._ledgers, *self._statements]
        for finding in findings:
            if finding.error is not None:
                self._problem(finding.path, finding.error)
        for error in contradictions(self._ledgers, self._statements):
            self._problem(None, error)
        self._audits = _longest(self._ledgers)
        self._stated = _newest(self._statements)
        self._curves = Curves(list(self._audits.values()))

    def report(self) -> PrivacyReport:
        """Compute the report."""
        described = DataSets(curves=self._curves, name_of=self._name, problem=self._problem)
        data_sets = tuple(
            described.of(audit, *self._stated.get(key, (None, None)))
            for key, audit in sorted(self._audits.items(), key=_order)
        )
        studies = studies_of(list(self._audits.values()), [found for found, _ in self._stated.values()])
        overall = self._overall(data_sets, len(studies), [found for found, _ in self._stated.values()])
        files = tuple(self._reviewed())
        newest = max((max(audit.times) for audit in self._audits.values()), default=None)
        return PrivacyReport(
            verified=not self._problems,
            date="" if newest is None else date_of(newest),
            time=newest or 0,
            made_with=version("hansa"),
            problems=tuple(self._problems),
            cautions=cautions_of(data_sets, studies, overall),
            overall=overall,
            data_sets=data_sets,
            studies=studies,
            files=files,
        )

    def _problem(self, path: Path | None, error: Error) -> None:
        name = "" if path is None else self._name(path)
        self._problems.append(Problem(file=name, code=error.code, message=error.message))

    def _name(self, path: Path) -> str:
        return (
            path.relative_to(self._place).as_posix()
            if path.is_relative_to(self._place) and path != self._place
            else path.name
        )

    # -- the whole ---------------------------------------------------------------------------------------

    def _overall(
        self, data_sets: Sequence[DataSet], studies: int, statements: Sequence[Statement]
    ) -> Overall:
        by_participant: dict[str, list[LedgerAudit]] = {}
        for audit in self._audits.values():
            by_participant.setdefault(audit.opening.public_key.hex(), []).append(audit)
        audits = list(self._audits.values())
        spent = [
            (self._curves.composed(own), own[0].opening.participant)
            for _, own in sorted(by_participant.items())
        ]
        most, where = max(spent, default=(0.0, ""))
        layers = layers_of(statements)
        return Overall(
            participants=len(by_participant),
            data_sets=len(data_sets),
            studies=studies,
            epsilon_max=most,
            epsilon_max_at=where,
            epsilon_everywhere=self._curves.composed(audits),
            everywhere_delta=min((audit.opening.delta for audit in audits), default=None),
            layers=layers,
            layers_off=sum(not layer.on for layer in layers),
        )

    def _reviewed(self) -> list[Reviewed]:
        found = []
        for finding in self._ledgers:
            who = finding.audit.opening.participant if finding.audit else ""
            found.append(self._file(finding.path, "ledger", who, finding.error))
        for one in self._statements:
            who = one.statement.participant if one.statement else ""
            found.append(self._file(one.path, "statement", who, one.error))
        return found

    def _file(self, path: Path, kind: str, participant: str, error: Error | None) -> Reviewed:
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # it was named as missing already
            digest = ""
        return Reviewed(
            file=self._name(path),
            kind=kind,
            participant=participant,
            sha256=digest,
            verified=error is None,
            problem=error.message if error else "",
        )


def _longest(ledgers: Sequence[Finding]) -> dict[Key, LedgerAudit]:
    """Of each data set the longest ledger that holds; others are older copies of it."""
    found: dict[Key, LedgerAudit] = {}
    for finding in ledgers:
        if finding.audit is not None:
            key = (finding.audit.opening.public_key.hex(), finding.audit.opening.data.hex())
            other = found.setdefault(key, finding.audit)
            found[key] = max(other, finding.audit, key=lambda one: len(one.leaves))
    return found


def _newest(statements: Sequence[StatementFinding]) -> dict[Key, tuple[Statement, Path]]:
    """Of each data set the newest statement that holds."""
    found: dict[Key, tuple[Statement, Path]] = {}
    for one in statements:
        if one.statement is not None and one.error is None:
            key = (one.statement.public_key, one.statement.data)
            other = found.setdefault(key, (one.statement, one.path))
            found[key] = max(
                other, (one.statement, one.path), key=lambda pair: (pair[0].ledger.size, pair[0].time)
            )
    return found


def _order(item: tuple[Key, LedgerAudit]) -> tuple[list[tuple[int, str]], Key]:
    """By name, as people sort: bank-9 before bank-10."""
    parts = re.findall(r"\d+|\D+", item[1].opening.participant)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], item[0]
