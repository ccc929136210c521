"""Checks of a participant's data sets: their description, the data against the studies approved here, policies, budgets.

Causes name data sets, columns and kinds of problems. Counts of rows, and texts that may hold some, are details for the
owner's terminal.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from hansa.errors import (
    ConfigurationError,
    DatasetFileMissing,
    DatasetSyntaxError,
    Error,
    InvalidValue,
    LedgerMismatch,
    PolicyFileMissing,
    PolicyRefusal,
    SpentFileMissing,
    StoreInUse,
    UnknownKey,
)
from hansa.federation.checks import Check, Finding, fail, failure, ok, skipped, warn
from hansa.federation.mending import edit
from hansa.participant.connectors.opening import open_source
from hansa.participant.data_problems import Problem
from hansa.participant.data_reading import check_data
from hansa.participant.dataset_file import FILE, DatasetEntry
from hansa.participant.examination import Examination
from hansa.participant.policy import Policy
from hansa.participant.registered_data import registered_names
from hansa.participant.seat import data_set_policy
from hansa.participant.study_desk import DeskStudy, policy_for, verify_allowed
from hansa.privacy.accounting import epsilon_of_all
from hansa.privacy.data_identity import ledger_path
from hansa.privacy.forecast import forecast
from hansa.privacy.spent import SpentSoFar, read_spent

READ_SECONDS = 300.0
ADD = "participant dataset add NAME --kind csv --path FILE --policy policy.toml"
_PROBLEMS_SHOWN = 5


def look_at_file(place: Examination) -> Iterator[Finding]:
    """Read datasets.toml."""
    file = place.folder / FILE
    try:
        names = [entry.name for entry in place.datasets.dataset]
    except DatasetFileMissing:
        yield warn("there is no data set yet", place.command(ADD), code=DatasetFileMissing.code)
        return
    except (DatasetSyntaxError, UnknownKey, InvalidValue) as error:
        yield fail(f"{error.message}; {error.hint}", edit(file), code=error.code)
        return
    missing = sorted({study.data_set for study in place.studies} - set(names))
    for name in missing:
        told = f"data set {name!r} serves an approved study, and is described no more"
        yield fail(told, edit(file), code="unknown_dataset", subject=name)
    if not names:
        yield warn("there is no data set yet", place.command(ADD), code=DatasetFileMissing.code)
    elif not missing:
        yield ok(f"describes {', '.join(names)}")


def _entries(place: Examination) -> tuple[DatasetEntry, ...]:
    return () if not (place.folder / FILE).exists() else place.datasets.dataset


# -- the data --------------------------------------------------------------------------------------------


def look_at_data(place: Examination) -> Iterator[Finding]:
    """Read every data set, held against each study that it serves."""
    for entry in _entries(place):
        try:
            yield from _looked_at(place, entry)
        except StoreInUse:
            yield skipped("the agent registers data at this moment", subject=entry.name)
        except Error as error:
            yield _unreadable(place, entry, error)


def _looked_at(place: Examination, entry: DatasetEntry) -> Iterator[Finding]:
    studies = place.served_by(entry.name)
    if not studies and entry.kind != "jsonl":
        columns = len(open_source(entry, place.folder).names)
        yield ok(f"opens, {columns} columns; no approved study uses it", subject=entry.name)
        return
    for study in (*studies, *(() if studies else (None,))):
        agreement = None if study is None else study.proposal.body.agreement()
        found = check_data(entry, place.folder, agreement)
        what = "its own schema" if study is None else f"study {study.name}"
        errors = [problem for problem in found.problems if problem.severity == "error"]
        rows = f"{found.rows} rows" if found.rows >= 0 else ""
        if errors:
            yield fail(
                f"does not fit {what}: {_named(errors)}", edit(place.folder / FILE), code=errors[0].code,
                subject=entry.name, detail="; ".join([rows, *(one.message for one in errors)]).lstrip("; "),
            )  # fmt: skip
        else:
            yield ok(f"fits {what}", subject=entry.name, detail=rows)


def _named(problems: list[Problem]) -> str:
    """Name problems by kind and column; their messages count rows."""
    words = [f"{one.code} {one.column!r}" if one.column else one.code for one in problems]
    more = f" and {len(words) - _PROBLEMS_SHOWN} more" if len(words) > _PROBLEMS_SHOWN else ""
    return ", ".join(words[:_PROBLEMS_SHOWN]) + more


def _unreadable(place: Examination, entry: DatasetEntry, error: Error) -> Finding:
    """Tell an error by its kind; its own words, which may count rows, are for the owner."""
    kind = (type(error).__doc__ or "").strip().splitlines()[0].rstrip(".")
    return fail(
        kind[:1].lower() + kind[1:], edit(place.folder / FILE), code=error.code, subject=entry.name,
        detail=f"{error.message}; {error.hint}",
    )  # fmt: skip


# -- policies --------------------------------------------------------------------------------------------


def look_at_policies(place: Examination) -> Iterator[Finding]:
    """Read the policy of every data set, and hold it against the studies that the data set serves."""
    for entry in _entries(place):
        file = place.folder / (entry.policy or FILE)
        try:
            policy = data_set_policy(place.folder, entry.name)
        except PolicyFileMissing as error:
            yield failure(error, edit(file), subject=entry.name)
            continue
        except ConfigurationError as error:
            yield fail(f"{error.message}; {error.hint}", edit(file), code=error.code, subject=entry.name)
            continue
        yield from _policy_findings(place, entry, policy, file)


def _policy_findings(
    place: Examination, entry: DatasetEntry, policy: Policy, file: Path
) -> Iterator[Finding]:
    if policy.data_set != entry.name:
        told = f"policy {entry.policy!r} is the one of data set {policy.data_set!r}"
        yield fail(told, edit(file), code="policy_mismatch", subject=entry.name)
        return
    refused = False
    for study in place.served_by(entry.name):
        try:
            verify_allowed(policy_for(policy, study), study)
        except PolicyRefusal as error:
            refused = True
            told = f"study {study.name}, approved here, is refused: {error.message}"
            yield fail(told, edit(file), code=error.code, subject=entry.name)
    open_doors = policy.warnings()
    if open_doors:
        yield warn("; ".join(open_doors), edit(file), code="policy_open", subject=entry.name)
    elif not refused:
        yield ok("names its data set and leaves nothing open", subject=entry.name)


# -- budgets ---------------------------------------------------------------------------------------------


def look_at_budgets(place: Examination) -> Iterator[Finding]:
    """Say what is left of every data set's epsilon, and whether the studies that it serves fit into that."""
    entries = _entries(place)
    try:
        identities = registered_names(place.folder) if entries else {}
    except StoreInUse:
        yield skipped("the agent registers data at this moment")
        return
    for entry in entries:
        try:
            policy = data_set_policy(place.folder, entry.name)
        except ConfigurationError:
            yield skipped("needs its policy", subject=entry.name)
            continue
        identity = identities.get(entry.name)
        ledger = None if identity is None else ledger_path(place.folder, identity)
        try:
            spent = SpentSoFar(reservations=(), delta=None)
            if ledger is not None and ledger.exists():
                spent = read_spent(ledger)
        except SpentFileMissing as error:
            yield failure(error, f"chmod u+r {shlex.quote(str(ledger))}", subject=entry.name)
            continue
        except PolicyRefusal as error:
            yield failure(error, f"hansa audit verify {shlex.quote(str(ledger))}", subject=entry.name)
            continue
        yield from _budget_findings(place, entry, policy, spent)


def _budget_findings(
    place: Examination, entry: DatasetEntry, policy: Policy, spent: SpentSoFar
) -> Iterator[Finding]:
    limit, file = policy.epsilon_limit, place.folder / (entry.policy or FILE)
    delta = policy.delta_limit if spent.delta is None else spent.delta
    used = epsilon_of_all([one.mechanism for one in spent.reservations], delta)
    told = f"epsilon {used:.3f} of {limit:g} is spent at delta {delta:g}"
    if not used < limit:
        yield fail(f"{told}: nothing is left", edit(file), code="budget_exhausted", subject=entry.name)
        return
    yield ok(told, subject=entry.name)
    for study in place.served_by(entry.name):
        yield _fits(study, entry, limit, spent, edit(file))


def _fits(study: DeskStudy, entry: DatasetEntry, limit: float, spent: SpentSoFar, mend: str) -> Finding:
    agreement = study.proposal.body.agreement()
    try:
        found = forecast(agreement, reservations=spent.reservations, delta=spent.delta, limit=limit)
    except LedgerMismatch as error:
        return fail(f"study {study.name}: {error.message}", mend, code=error.code, subject=entry.name)
    if found.passes_at is None:
        after = found.epsilons[-1] if found.epsilons else found.epsilon_before
        return ok(f"study {study.name} fits: epsilon {after:.3f} after it", subject=entry.name)
    told = f"study {study.name} passes the limit {limit:g} at its further round {found.passes_at}"
    level = fail if found.passes_at == 1 else warn
    return level(f"{told}, which is refused", mend, code="budget_exhausted", subject=entry.name)


DATA_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="datasets_file", look=look_at_file, needs=("authority",)),
    Check(
        name="data_sets",
        look=look_at_data,
        needs=("datasets_file",),
        limit_seconds=READ_SECONDS,
        late="warn",
        mend=lambda place: place.command("participant dataset check NAME STUDY.toml"),
    ),
    Check(name="policies", look=look_at_policies, needs=("datasets_file",)),
    Check(name="budgets", look=look_at_budgets, needs=("datasets_file",), limit_seconds=120.0),
)
