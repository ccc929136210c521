"""Who was missing in which round, beside the ledger: noted once, read back, refused where it is not one."""

from pathlib import Path
from typing import Any

import pytest

from hansa.errors import StoreDamaged, StoreNotWritable
from hansa.participant.policy import Policy
from hansa.participant.round_rosters import RoundRosters
from hansa.secure_agg.participant import RoundMachine

STUDY = "a" * 64
MEMBERS = ("bank-1", "bank-2", "bank-3")


def test_what_was_noted_is_read_back_and_noting_it_again_changes_nothing(tmp_path: Path) -> None:
    rosters = RoundRosters(tmp_path, STUDY)
    rosters.note_sum(1, MEMBERS, MEMBERS)
    assert list(tmp_path.iterdir()) == []  # nobody was missing: there is no file
    rosters.note_sum(3, MEMBERS, ("bank-2",))
    rosters.note_void(4)
    before = next(tmp_path.iterdir()).stat()
    rosters.note_sum(3, MEMBERS, ("bank-2",))
    rosters.note_void(4)
    assert next(tmp_path.iterdir()).stat().st_ino == before.st_ino
    again = RoundRosters(tmp_path, STUDY)
    assert (again.missing, again.void) == ({3: ("bank-1", "bank-3")}, {4})
    assert RoundRosters(tmp_path, "b" * 64).missing == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema":"hansa/round-rosters/v1"}', '{"schema":"x","study":"","missing":[],"void":[]}'],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    RoundRosters(tmp_path, STUDY).note_void(1)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    with pytest.raises(StoreDamaged):
        RoundRosters(tmp_path, STUDY)


def test_the_file_of_another_study_is_refused(tmp_path: Path) -> None:
    RoundRosters(tmp_path, STUDY).note_void(1)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(STUDY, STUDY[:-1] + "b"))
    with pytest.raises(StoreDamaged, match="another study"):
        RoundRosters(tmp_path, STUDY)


def test_a_folder_that_is_gone_is_told_and_nothing_is_noted(tmp_path: Path) -> None:
    rosters = RoundRosters(tmp_path / "gone", STUDY)
    with pytest.raises(StoreNotWritable):
        rosters.note_void(1)
    assert rosters.void == set()


def test_nodes_note_who_is_not_in_a_sum(houses: Any, tiny_study: Any) -> None:
    """Also the one that was missing, once it has caught up."""
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=0.25)
    house = houses(policies={"bank-1": policy})
    house.run()
    assert [node.rosters.missing for node in house.nodes.values()] == [{1: ("bank-1",), 2: ("bank-1",)}] * 4


def test_nodes_note_a_round_without_a_sum(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = RoundMachine._mask_seeds

    def wrong(self: Any, attempt: Any, own: Any) -> Any:
        """Let bank-2 leave a mask out in the first round: its sum fails its tag at everybody."""
        found = seeds(self, attempt, own)
        return found[1:] if attempt.round == 1 and self._epoch.participant == "bank-2" else found

    monkeypatch.setattr(RoundMachine, "_mask_seeds", wrong)
    house.run()
    assert [node.rosters.void for node in house.nodes.values()] == [{1}] * 4
    assert [node.rosters.missing for node in house.nodes.values()] == [{}] * 4
