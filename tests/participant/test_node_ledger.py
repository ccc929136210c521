"""What nodes write while a study runs is what an auditor finds, under the keys of the roster."""

import json

import pytest

from hansa.errors import LedgerMismatch
from hansa.participant.registered_data import register_data
from hansa.privacy.audit import audit_folder


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
