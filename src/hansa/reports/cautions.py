"""What holds in a privacy report and must not be overlooked, in words."""

from collections.abc import Sequence

from hansa.reports.data_set_report import DataSet
from hansa.reports.privacy_report import Overall, StudyReport
from hansa.reports.wording import epsilon_text, layer_of

_HARMLESS = {"compression", "dropout_recovery"}  # off, they cost traffic or availability, not privacy


def cautions_of(
    data_sets: Sequence[DataSet], studies: Sequence[StudyReport], overall: Overall
) -> tuple[str, ...]:
    """Put the cautions of a report into words, the gravest first."""
    found = [
        f"{layer_of(layer.layer).name} was OFF in {', '.join(layer.off_in)}. {layer_of(layer.layer).off}"
        for layer in overall.layers
        if not layer.on and layer.layer not in _HARMLESS
    ]
    silent = sorted({one.participant for one in data_sets if not one.statement})
    if silent:
        found.append(
            f"No statement that holds is beside a ledger of {', '.join(silent)}: limits, protections, who was missing and who "
            "approved are not known there."
        )
    found += [
        f"No statement that holds describes study {one.study[:16]}: its protections are not known."
        for one in studies
        if not one.name
    ]
    found += _of_studies(studies)
    found += [
        f"{one.participant} states no limit of epsilon for data set {one.name}."
        for one in data_sets
        if one.statement and one.spent.limit is None
    ]
    codes = sorted({one.code_sha256 for one in data_sets if one.code_sha256})
    if len(codes) > 1:
        found.append(
            f"The participants state {len(codes)} different programs; their code hashes are in the table."
        )
    found += _of_persons(data_sets, overall)
    return tuple(found)


def _of_studies(studies: Sequence[StudyReport]) -> list[str]:
    found = []
    for one in studies:
        if one.mode == "distributed":
            found.append(
                f"In {one.name} the noise is shared (distributed mode): its epsilon holds if at most {one.colluders} of the"
                " participants whose noise is counted leave theirs out or tell it."
            )
        if one.cohort is not None and one.stated_by and len(one.seen_in) < one.cohort:
            found.append(
                f"{one.name} has {one.cohort} participants, and ledgers of {len(one.seen_in)} of them are here."
            )
    return found


def _of_persons(data_sets: Sequence[DataSet], overall: Overall) -> list[str]:
    found: list[str] = []
    owners = [one.public_key for one in data_sets]
    several = sorted({one.participant for one in data_sets if owners.count(one.public_key) > 1})
    keys = {(one.participant, one.public_key) for one in data_sets}
    names = [name for name, _ in keys]
    found += [
        f"{name} appears under {names.count(name)} keys: only one of them can be its own."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    found += [
        f"{name} has several data sets here. Their spending is composed in its total, as if each unit were in all of them: "
        "a table that was registered again after a change is such a case."
        for name in several
    ]
    if overall.participants > 1:
        found.append(
            "The largest epsilon of a participant bounds what is learned about somebody whose records lie at one participant. "
            f"For a person with records at all {overall.participants} of them it is {epsilon_text(overall.epsilon_everywhere)}."
        )
    if any(one.unit == "record" for one in data_sets):
        found.append(
            "Where the unit is one record, a person with several records in one data set is protected less than its epsilon says."
        )
    return found
