"""A data set that is registered again continues its budget, grown or shrunk; whatever is lost begins none."""

import subprocess
import sys
from pathlib import Path

import pytest

from hansa import errors
from hansa.participant.data_register import FILE as REGISTER_FILE
from hansa.participant.data_register import open_register
from hansa.participant.registered_data import (
    SALT_FILE,
    note_ledger,
    register_data,
    register_named_data,
    registered_names,
    verify_registrable,
)
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.data_identity import data_commitment, ledger_path, unit_marks

ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
UNITS = [b"anna", b"bela"]


def budget_of(folder: Path, units: list[bytes], ledger_owner) -> Budget:
    data = register_data(folder, units)
    return Budget(ledger_path(folder, data), epsilon_limit=9.0, delta=1e-5, owner=ledger_owner(data=data))


def test_a_copy_of_the_data_and_another_study_continue_the_ledger(tmp_path, ledger_owner):
    first = budget_of(tmp_path, UNITS, ledger_owner)
    spent = first.reserve(ROUND)
    again = budget_of(tmp_path, UNITS[::-1], ledger_owner)
    assert again.path == first.path
    assert again.epsilon() == spent
    other = Spending(study="b" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
    assert again.reserve(other) > spent


def test_other_data_has_its_own_ledger(tmp_path, ledger_owner):
    budget_of(tmp_path, UNITS, ledger_owner).reserve(ROUND)
    other = budget_of(tmp_path, [b"cora"], ledger_owner)
    assert other.epsilon() == 0.0
    other.reserve(ROUND)
    assert len(list(tmp_path.glob("ledger-*.jsonl"))) == 2


def test_a_ledger_of_other_data_is_refused(tmp_path, ledger_owner):
    budget = budget_of(tmp_path, UNITS, ledger_owner)
    budget.reserve(ROUND)
    other = register_data(tmp_path, [b"cora"])
    budget.path.rename(ledger_path(tmp_path, other))
    with pytest.raises(errors.LedgerMismatch, match="another data set"):
        budget_of(tmp_path, [b"cora"], ledger_owner)


def test_a_lost_salt_begins_no_budget(tmp_path, ledger_owner):
    budget_of(tmp_path, UNITS, ledger_owner).reserve(ROUND)
    salt = tmp_path / SALT_FILE
    assert salt.stat().st_mode & 0o077 == 0
    salt.unlink()
    with pytest.raises(errors.LedgerMismatch, match=r"ledger\.salt is gone"):
        register_data(tmp_path, UNITS)
    assert not salt.exists()


def test_two_participants_have_different_commitments_to_the_same_data(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert len({register_data(folder, UNITS) for folder in folders}) == 2


# -- by name ---------------------------------------------------------------------------------------------------


def named(
    folder: Path, name: str, *units: bytes, marks: list[bytes] | None = None, time: float = 0.0
) -> bytes:
    return register_named_data(folder, name, units=list(units), marks=marks or list(units), time=time)


def spend(folder: Path, data: bytes, ledger_owner) -> Budget:
    budget = Budget(ledger_path(folder, data), epsilon_limit=9.0, delta=1e-5, owner=ledger_owner(data=data))
    budget.reserve(ROUND)
    return budget


def test_a_table_that_grows_or_shrinks_keeps_its_ledger(tmp_path, ledger_owner):
    first = named(tmp_path, "cards", b"anna", b"bela")
    spent = spend(tmp_path, first, ledger_owner).epsilon()
    forms = [(b"anna", b"bela", b"cora"), (b"cora",), (b"dora", b"emil"), (b"anna", b"bela")]
    for units in forms:
        data = named(tmp_path, "cards", *units)
        assert data == first
        again = Budget(
            ledger_path(tmp_path, data), epsilon_limit=9.0, delta=1e-5, owner=ledger_owner(data=data)
        )
        assert again.epsilon() == spent
    assert len(list(tmp_path.glob("ledger-*.jsonl"))) == 1


@pytest.mark.parametrize(
    "units", [(b"anna", b"bela"), (b"bela", b"cora"), (b"cora", b"dora"), (b"later", b"zeno")]
)
def test_a_unit_that_another_name_has_or_had_is_refused(tmp_path, units):
    named(tmp_path, "cards", b"anna", b"bela")
    named(tmp_path, "cards", b"cora", b"later")  # anna and bela left; what was spent on them stays spent
    with pytest.raises(
        errors.DataAlreadyRegistered, match=r"'loans' shares \d keys .* with 'cards'"
    ) as caught:
        named(tmp_path, "loans", *units)
    assert (caught.value.code, caught.value.exit_status) == ("data_already_registered", 3)
    assert "use it as 'cards'" in caught.value.hint
    assert set(registered_names(tmp_path)) == {"cards"}


def test_two_names_cannot_grow_into_each_other(tmp_path):
    names = {name: named(tmp_path, name, *units) for name, units in (("a", [b"anna"]), ("b", [b"bela"]))}
    with pytest.raises(errors.DataAlreadyRegistered, match="with 'b'"):
        named(tmp_path, "a", b"anna", b"bela")
    assert registered_names(tmp_path) == names
    assert named(tmp_path, "b", b"bela", b"cora") == names["b"]  # the refusal left nothing behind


def test_a_row_is_known_again_by_any_of_its_keys(tmp_path):
    named(tmp_path, "cards", b"person:anna", marks=[b"row:1", b"row:2"])
    with pytest.raises(errors.DataAlreadyRegistered):
        named(tmp_path, "rows", b"row:2", b"row:3")
    with pytest.raises(errors.DataAlreadyRegistered):
        named(tmp_path, "persons", b"person:anna")


def test_verifying_registers_nothing_and_says_what_registering_would(tmp_path):
    assert verify_registrable(tmp_path, "cards", [b"anna"]) is False
    assert list(tmp_path.iterdir()) == []
    named(tmp_path, "cards", b"anna")
    assert verify_registrable(tmp_path, "cards", [b"anna", b"bela"]) is True
    assert verify_registrable(tmp_path, "loans", [b"bela"]) is False
    with pytest.raises(errors.DataAlreadyRegistered):
        verify_registrable(tmp_path, "loans", [b"anna"])
    assert set(registered_names(tmp_path)) == {"cards"}


def test_a_lost_register_begins_no_budget(tmp_path, ledger_owner):
    first = named(tmp_path, "cards", b"anna")
    spend(tmp_path, first, ledger_owner)
    kept = (tmp_path / REGISTER_FILE).read_bytes()
    (tmp_path / REGISTER_FILE).unlink()
    for call in (
        lambda: named(tmp_path, "cards", b"anna"),
        lambda: named(tmp_path, "loans", b"anna"),
        lambda: verify_registrable(tmp_path, "cards", [b"anna"]),
    ):
        with pytest.raises(errors.LedgerMismatch, match=r"data-sets\.db is gone, or older") as caught:
            call()
        assert caught.value.exit_status == 3
    assert not (tmp_path / REGISTER_FILE).exists()
    (tmp_path / REGISTER_FILE).write_bytes(kept)
    assert named(tmp_path, "cards", b"anna") == first


def test_an_older_register_begins_no_budget(tmp_path, ledger_owner):
    named(tmp_path, "cards", b"anna")
    older = (tmp_path / REGISTER_FILE).read_bytes()
    spend(tmp_path, named(tmp_path, "loans", b"bela"), ledger_owner)
    (tmp_path / REGISTER_FILE).write_bytes(older)
    with pytest.raises(errors.LedgerMismatch, match="belongs to no registered data set"):
        named(tmp_path, "other", b"bela")


def lose(ledger: Path, _: bytes) -> None:
    ledger.unlink()


def empty(ledger: Path, _: bytes) -> None:
    ledger.write_bytes(b"")


def put_back(ledger: Path, older: bytes) -> None:
    ledger.write_bytes(older)


@pytest.mark.parametrize("change", [lose, empty, put_back])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "seen-at-a-start"])
def test_a_lost_or_older_ledger_begins_no_budget(tmp_path, ledger_owner, change, noted):
    first = named(tmp_path, "cards", b"anna")
    budget = spend(tmp_path, first, ledger_owner)
    older = budget.path.read_bytes()
    budget.reserve(
        Spending(study="a" * 64, round=2, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
    )
    whole = budget.path.read_bytes()
    if noted:
        note_ledger(tmp_path, "cards", budget.head)
    else:
        named(tmp_path, "cards", b"anna")
    change(budget.path, older)
    for call in (
        lambda: named(tmp_path, "cards", b"anna", b"bela"),
        lambda: verify_registrable(tmp_path, "cards", [b"anna"]),
    ):
        with pytest.raises(errors.LedgerDamaged, match=r"is gone, and had 3|does not continue the 3 entries"):
            call()
    named(tmp_path, "loans", b"cora")  # another data set is none of its business
    budget.path.write_bytes(whole)
    assert named(tmp_path, "cards", b"anna", b"bela") == first


def test_another_ledger_of_the_same_length_is_not_the_one_that_was_seen(tmp_path, ledger_owner):
    data = named(tmp_path, "cards", b"anna")
    note_ledger(tmp_path, "cards", spend(tmp_path, data, ledger_owner).head)
    ledger_path(tmp_path, data).unlink()
    other = Budget(ledger_path(tmp_path, data), epsilon_limit=9.0, delta=1e-5, owner=ledger_owner(data=data))
    other.reserve(
        Spending(study="b" * 64, round=1, attempt=0, noise_multiplier=9.0, sample_rate=0.2, steps=1)
    )
    with pytest.raises(errors.LedgerDamaged, match="does not continue the 2 entries"):
        named(tmp_path, "cards", b"anna")


def test_the_register_never_forgets_how_far_a_ledger_had_come(tmp_path, ledger_owner):
    data = named(tmp_path, "cards", b"anna")
    budget = spend(tmp_path, data, ledger_owner)
    early = budget.head
    budget.reserve(ROUND)
    note_ledger(tmp_path, "cards", budget.head)
    note_ledger(tmp_path, "cards", early)  # of a process that was slower
    with open_register(tmp_path, (tmp_path / SALT_FILE).read_bytes()) as register:
        assert register.ledger_seen("cards") == (budget.head.size, budget.head.root)


def test_a_lost_salt_begins_no_named_budget_either(tmp_path):
    named(tmp_path, "cards", b"anna")
    (tmp_path / SALT_FILE).unlink()
    for call in (lambda: named(tmp_path, "cards", b"anna"), lambda: registered_names(tmp_path)):
        with pytest.raises(errors.LedgerMismatch, match=r"ledger\.salt is gone"):
            call()
    assert not (tmp_path / SALT_FILE).exists()


def test_data_without_a_name_has_no_place_beside_named_data(tmp_path, ledger_owner):
    named(tmp_path, "cards", b"anna")
    with pytest.raises(errors.LedgerMismatch, match="keeps data sets by name"):
        register_data(tmp_path, [b"anna"])
    other = tmp_path / "other"
    other.mkdir()
    spend(other, register_data(other, [b"anna"]), ledger_owner)
    with pytest.raises(errors.LedgerMismatch, match="belongs to no registered data set"):
        named(other, "cards", b"anna")


def test_the_register_is_sealed_private_and_holds_no_unit(tmp_path):
    named(tmp_path, "cards", b"anna-the-client", time=1_800_000_000.7)
    file = tmp_path / REGISTER_FILE
    assert file.stat().st_mode & 0o077 == 0
    content = b"".join(path.read_bytes() for path in tmp_path.glob(f"{REGISTER_FILE}*"))
    for secret in (b"anna", b"cards", (tmp_path / SALT_FILE).read_bytes()):
        assert secret not in content
    file.write_bytes(content[::-1])
    with pytest.raises(errors.StoreDamaged):
        named(tmp_path, "loans", b"bela")


def test_the_history_of_a_name_is_kept(tmp_path):
    for time, units in enumerate([(b"anna",), (b"anna",), (b"anna", b"bela"), (b"anna",)]):
        named(tmp_path, "cards", *units, time=time + 0.9)
    salt = (tmp_path / SALT_FILE).read_bytes()
    with open_register(tmp_path, salt) as register:
        data = register.data_sets["cards"]
    assert [(each.time, each.units) for each in data.commitments] == [(0, 1), (2, 2), (3, 1)]
    assert data.identity == data.commitments[0].data == data_commitment(salt, [b"anna"])
    assert data.marks.tolist() == unit_marks(salt, [b"anna", b"bela"]).tolist()


_REGISTER = """
import sys
from pathlib import Path
from hansa.participant.registered_data import register_named_data
print("ready", flush=True)
for k in range(10**6):
    register_named_data(Path(sys.argv[1]), "cards", units=[b"first"], marks=[b"first", b"%d" % k], time=k)
    print(k, flush=True)
"""


def test_what_was_registered_is_there_after_a_kill(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _REGISTER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(6)]
    process.kill()
    last = [line for line in [*lines, *process.stdout.read().split()] if line.isdigit()][-1]
    process.wait()
    process.stdout.close()
    with pytest.raises(errors.DataAlreadyRegistered):
        named(tmp_path, "loans", last.encode())
