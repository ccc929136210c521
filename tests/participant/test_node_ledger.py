"""What nodes write while a study runs is what an auditor finds, under the keys of the roster."""

import json

import pytest
import torch

from hansa.errors import LedgerMismatch
from hansa.participant.registered_data import register_data
from hansa.participant.trainer import Rows
from hansa.privacy.audit import audit_folder, audit_ledger
from hansa.study import parse_study


def test_the_ledgers_of_a_study_are_audited_from_their_files(house, tiny_study):
    house.run()
    folder = next(iter(house.directories.values())).parent
    findings = audit_folder(folder, keys=dict(house.roster.members))
    assert [finding.error for finding in findings] == [None] * len(house.names)
    for finding, name in zip(findings, house.names, strict=True):
        audit, node = finding.audit, house.nodes[name]
        assert audit.opening.participant == name
        assert audit.opening.public_key == house.roster.public_key(name)
        assert audit.opening.delta == tiny_study.privacy.delta
        assert audit.epsilon == node.budget.epsilon() <= tiny_study.privacy.epsilon
        assert audit.study_epsilon == {tiny_study.id: audit.epsilon}
        assert [reservation.committed for reservation in audit.reservations] == [True, True]
        assert audit.head == node.budget.head
        assert audit.notes == []


def test_a_new_identity_does_not_continue_the_ledger_of_the_old_one(house, tiny):
    house.run()
    house.identities["bank-1"] = house.identities["bank-2"]
    with pytest.raises(LedgerMismatch, match="another key"):
        house.restart("bank-1")


def test_a_ledger_holds_the_names_and_numbers_of_the_study_and_nothing_else(house, tiny, tiny_study):
    house.run()
    for name in house.names:
        for entry in tiny.entries(house.ledgers[name]):
            values = {value for value in entry.values() if isinstance(value, str)}
            assert values == {entry["kind"], entry["previous"], tiny_study.id}
        (opening, *_) = house.ledgers[name].read_text().splitlines()
        assert (
            json.loads(opening)["entry"]["data"]
            == register_data(house.directories[name], [name.encode()]).hex()
        )


@pytest.fixture
def by_person(houses, tiny, tiny_bases, tiny_tables):
    """A house whose unit is a person with sixteen records; bank-1 may lack some of the five."""
    text = tiny.TINY_STUDY.replace("[data]", '[data]\nperson = "customer"')
    text = text.replace("[privacy]", '[privacy]\nunit = "person"\nrecords_per_person = 4')
    study = parse_study(text)

    def make(without=()):
        rows = {}
        for name in tiny.NAMES:
            persons = torch.arange(tiny.RECORDS) % 5
            kept = torch.ones(tiny.RECORDS, dtype=torch.bool)
            for person in without if name == "bank-1" else ():
                kept &= persons != person
            table = tiny_tables[name].rows
            rows[name] = Rows(features=table.features[kept], labels=table.labels[kept], persons=persons[kept])
        return houses(study, tiny_bases(study), rows=rows)

    return make


def test_a_ledger_names_the_unit_of_the_study(by_person):
    house = by_person()
    house.run()
    assert not any(house.errors.values())
    for name in house.names:
        assert audit_ledger(house.ledgers[name]).opening.unit == "person"


def test_a_ledger_by_records_is_not_continued_by_persons(by_person, tiny, tiny_study):
    house = by_person()
    house.run()
    house.study = tiny_study
    with pytest.raises(LedgerMismatch, match="unit of privacy"):
        house.restart("bank-1")


def test_every_message_has_the_same_length_without_a_person(by_person):
    lengths = []
    for without in ((), (0,), (0, 1, 2, 3, 4)):
        house = by_person(without)
        house.run()
        assert not any(house.errors.values())
        lengths.append(
            (
                [len(part) for part in house.wires["bank-1"].sent],
                [len(data) for direction, data in house.grid_bytes if direction == "from node"],
            )
        )
    assert lengths[0][0] == lengths[1][0] == lengths[2][0]
    assert len(lengths[0][1]) == len(lengths[1][1]) == len(lengths[2][1])
