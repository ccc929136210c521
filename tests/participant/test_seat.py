"""A seat tells the register how far its data set's ledger has come."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from hansa.errors import LedgerDamaged
from hansa.participant.data_register import open_register
from hansa.participant.registered_data import SALT_FILE
from hansa.participant.seat import Seat
from hansa.privacy.budget import Spending

pytestmark = pytest.mark.enable_socket


@pytest.fixture(autouse=True)
def of_a_run(monkeypatch):
    """Flower makes no message outside of a run."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


def asked(seat):
    """Any request; its answer, an error here, is of no interest."""
    content = RecordDict({"request": ConfigRecord({"round": 1, "attempt": 0})})
    return seat(Message(content, dst_node_id=1, message_type="query.answer"), None)


def spend(seat, number):
    seat.node.budget.reserve(
        Spending(study="a" * 64, round=number, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=1)
    )


def test_a_ledger_that_is_lost_after_a_seat_has_spent_begins_no_budget(seat, small):
    home = small.members["bank-1"]
    spend(seat, 1)
    asked(seat)
    seat.close()
    seat.node.budget.path.unlink()
    folder = home.folder / "another"
    with pytest.raises(LedgerDamaged, match="is gone, and had 2 entries"):
        Seat(home, seat.study, folder=folder, base=small.base, channel=None, report=print)
    assert not folder.exists()


def test_a_register_that_is_in_use_is_told_with_the_next_request(seat, small):
    home = small.members["bank-1"].folder
    salt = (home / SALT_FILE).read_bytes()
    spend(seat, 1)
    with open_register(home, salt) as register:
        asked(seat)
        assert register.ledger_seen(seat.study.data_set) == (0, b"")
    asked(seat)
    head = seat.node.budget.head
    with open_register(home, salt) as register:
        assert register.ledger_seen(seat.study.data_set) == (head.size, head.root)
