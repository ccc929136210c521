"""The round loop is made anew on its records and results after its process died at any of its writes."""

import cbor2
import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.journal import Journal
from hansa.coordinator.loop_state import LoopState, MemoryRecords
from hansa.errors import StoreDamaged
from hansa.local_grid import from_bytes


class Killed(BaseException):
    """The process is gone."""


class DyingRecords(MemoryRecords):
    """Records of a process that dies at one of its writes, before or after it."""

    def __init__(self, dies_at, *, after):
        super().__init__()
        self.dies_at, self.after, self.writes = dies_at, after, 0

    def put(self, records):
        self.writes += 1
        dies = self.writes == self.dies_at
        if dies and not self.after:
            raise Killed
        super().put(records)
        if dies:
            raise Killed


def run_until_over(house, records, folder, **changes):
    """Run the loop as often as it dies, each time with a service and a loop of their own on the same records and results."""
    deaths = 0
    while True:
        house.service = AggregationService(house.roster, house.terms, results_folder=folder)
        for wire in house.wires.values():
            wire.service = house.service
        try:
            house.run(aggregation=house.service, records=records, **changes)
        except Killed:
            deaths += 1
            assert deaths < 4
        else:
            return deaths


def assert_ended_as_one(house, rounds):
    assert {node.state.round for node in house.nodes.values()} == {rounds}
    assert len(house.digests()) == 1


def assert_paid_once(house, tiny, rounds):
    for name in house.names:
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit"] * rounds


def writes_of(house, folder, **changes):
    records = DyingRecords(0, after=False)
    assert run_until_over(house, records, folder, **changes) == 0
    return records.writes


@pytest.fixture
def strict(tiny_study):
    aggregation = tiny_study.aggregation.model_copy(update={"mode": "strict"})
    return tiny_study.model_copy(update={"aggregation": aggregation})


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["quorum", pytest.param("strict", marks=pytest.mark.slow)])
def test_killed_at_any_write_the_study_ends_as_it_would_have(
    mode, after, houses, tiny_study, strict, tiny_bases, tiny, tmp_path
):
    study = tiny_study if mode == "quorum" else strict
    writes = writes_of(houses(study, tiny_bases(study)), tmp_path / "whole")
    assert writes > 10
    for dies_at in range(1, writes + 1):
        house = houses(study, tiny_bases(study))
        records, folder = DyingRecords(dies_at, after=after), tmp_path / f"{dies_at}"
        assert run_until_over(house, records, folder) == 1, dies_at
        assert_ended_as_one(house, 2)
        assert_paid_once(house, tiny, 2)


def without(house, name, kind):
    """Let a member's answers to one exchange of the first round get lost, for ever."""
    node = house.node_ids[name]
    original = house.grid._handlers[node]

    def handler(data):
        metadata = from_bytes(data).metadata
        if metadata.message_type == kind and metadata.group_id == "1":
            raise ConnectionError("lost")
        return original(data)

    house.grid._handlers[node] = handler


@pytest.mark.parametrize(
    "kind",
    [
        "train",
        pytest.param("query.answer", marks=pytest.mark.slow),
        "query.unmask",
        pytest.param("query.close", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_write_of_a_round_with_a_dropout_the_study_ends_as_it_would_have(
    kind, houses, tiny_study, tiny_bases, tmp_path
):
    base = tiny_bases(tiny_study)
    house = houses(tiny_study, base)
    without(house, "bank-4", kind)
    writes = writes_of(house, tmp_path / "whole")
    for dies_at in range(3, writes + 1):
        house = houses(tiny_study, base)
        without(house, "bank-4", kind)
        assert run_until_over(house, DyingRecords(dies_at, after=True), tmp_path / f"{dies_at}") == 1
        assert_ended_as_one(house, 2)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_while_keys_are_renewed_the_study_ends_as_it_would_have(
    after, houses, tiny_study, tiny_bases, tmp_path
):
    settings = tiny_study.aggregation.model_copy(update={"rounds_per_epoch": 1})
    study = tiny_study.model_copy(update={"aggregation": settings})
    base = tiny_bases(study)
    writes = writes_of(houses(study, base), tmp_path / "whole")
    for dies_at in range(7, min(writes, 12)):
        house = houses(study, base)
        assert run_until_over(house, DyingRecords(dies_at, after=after), tmp_path / f"{dies_at}") == 1
        assert_ended_as_one(house, 2)


def test_an_attempt_that_was_in_flight_before_its_roster_was_closed_is_tried_again(
    houses, tiny_study, tiny_bases, tmp_path, tiny
):
    house, summaries = houses(tiny_study, tiny_bases(tiny_study)), []
    records = DyingRecords(4, after=False)  # set-up, entered, begun, closed
    run_until_over(house, records, tmp_path, on_round=summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 1), (2, 0)]
    assert_paid_once(house, tiny, 2)


def test_an_attempt_that_members_may_have_released_for_is_completed(houses, tiny_study, tiny_bases, tmp_path):
    house, summaries = houses(tiny_study, tiny_bases(tiny_study)), []
    records = DyingRecords(5, after=False)  # the certificate
    run_until_over(house, records, tmp_path, on_round=summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 0), (2, 0)]


def test_a_loop_may_pause_between_rounds_and_goes_on_later(houses, tiny_study, tiny_bases, tmp_path):
    house, summaries, records = houses(tiny_study, tiny_bases(tiny_study)), [], MemoryRecords()
    run_until_over(house, records, tmp_path, on_round=summaries.append, may_go_on=lambda: not summaries)
    assert [summary.round for summary in summaries] == [1]
    run_until_over(house, records, tmp_path, on_round=summaries.append)
    assert [summary.round for summary in summaries] == [1, 2]
    assert {summary.epoch for summary in summaries} == {1}
    assert_ended_as_one(house, 2)


def test_a_loop_that_is_made_anew_knows_the_ledger_heads_of_before(houses, tiny_study, tiny_bases, tmp_path):
    house, summaries, records = houses(tiny_study, tiny_bases(tiny_study)), [], MemoryRecords()
    run_until_over(house, records, tmp_path, on_round=summaries.append, may_go_on=lambda: not summaries)
    before = house.service.ledger_heads()
    assert set(before) == set(house.names)
    run_until_over(house, records, tmp_path, may_go_on=lambda: False)
    assert house.service.ledger_heads() == before


def test_a_loop_whose_study_is_over_asks_for_nothing(houses, tiny_study, tiny_bases, tmp_path):
    house, records = houses(tiny_study, tiny_bases(tiny_study)), MemoryRecords()
    run_until_over(house, records, tmp_path)
    before = len(house.grid_bytes)
    run_until_over(house, records, tmp_path)
    assert len(house.grid_bytes) == before


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_its_records_may_lie_in_the_journal(kind, request, houses, tiny_study, tiny_bases, tmp_path):
    house = houses(tiny_study, tiny_bases(tiny_study))
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    with Journal(request.getfixturevalue("database") if kind == "postgresql" else url) as journal:
        records = journal.records("loop/abc")
        run_until_over(house, records, tmp_path / "results")
        assert LoopState(house.names, journal.records("loop/abc")).done == 2
        assert not journal.records("loop/other").items()


def test_records_that_are_not_whole_are_refused():
    records = MemoryRecords()
    LoopState(("a", "b", "c"), records).begin_setup(1)
    assert LoopState(("a", "b", "c"), records).epoch.tried == 1
    for spoilt in (b"\xff", cbor2.dumps({"number": 1, "unknown": 2}), cbor2.dumps([1])):
        records.put({"epoch": spoilt})
        with pytest.raises(StoreDamaged):
            LoopState(("a", "b", "c"), records)


def test_records_of_other_members_are_refused():
    records = MemoryRecords()
    LoopState(("a", "b", "c"), records).reached({"a": 1})
    with pytest.raises(StoreDamaged):
        LoopState(("a", "b", "d"), records)
