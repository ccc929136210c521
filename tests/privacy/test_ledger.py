"""The ledger file: closed to whoever changes it, whole after a crash, and of one owner and one data set."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785

from hansa.errors import BudgetExhausted, LedgerDamaged, LedgerMismatch, ProofInvalid
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner, read_ledger
from hansa.privacy.ledger_format import encode_line, leaf_of
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.merkle import root_of_leaves
from hansa.secure_agg.identity import Identity

DELTA = 1e-5
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
Opener = Callable[..., Budget]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def opened(ledger: Path, ledger_owner: Callable[..., LedgerOwner]) -> Opener:
    def make(**changes: object) -> Budget:
        return Budget(ledger, epsilon_limit=100.0, delta=DELTA, owner=ledger_owner(**changes))

    return make


@pytest.fixture
def lines(ledger: Path, opened: Opener) -> list[bytes]:
    """A ledger with its opening, two rounds and their commits."""
    budget = opened()
    for number in (1, 2):
        budget.reserve(replace(ROUND, round=number))
        budget.commit(replace(ROUND, round=number))
    return ledger.read_bytes().splitlines(keepends=True)


def entry_of(line: bytes) -> dict[str, object]:
    return json.loads(line)["entry"]


def changed(line: bytes, **changes: object) -> bytes:
    """A line whose entry is changed, canonical still, with its old root and signature."""
    found = json.loads(line)
    return rfc8785.dumps({**found, "entry": {**found["entry"], **changes}}) + b"\n"


def signed_again(entries: list[dict[str, object]], identity: Identity, owner: LedgerOwner) -> bytes:
    """The entries as somebody with a key would write them: a chain, roots and signatures of their own."""
    leaves: list[bytes] = []
    written = b""
    for number, entry in enumerate(entries):
        previous = leaves[-1].hex() if leaves else "0" * 64
        encoded = rfc8785.dumps({**entry, "previous": previous, "sequence": number})
        leaves.append(leaf_of(encoded))
        head = TreeHead(
            participant=owner.participant,
            public_key=owner.public_key,
            data=owner.data,
            size=len(leaves),
            root=root_of_leaves(leaves),
        )
        written += encode_line(encoded, head.root, identity.sign("ledger-head", head.encode()))
    return written


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "first line removed": lambda lines: lines[1:],
    "middle line removed": lambda lines: [*lines[:2], *lines[3:]],
    "two lines swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "line repeated": lambda lines: [*lines[:2], *lines[1:]],
    "last line repeated": lambda lines: [*lines, lines[-1]],
    "fewer steps": lambda lines: [lines[0], changed(lines[1], steps=1), *lines[2:]],
    "more noise": lambda lines: [*lines[:3], changed(lines[3], noise_multiplier=9), lines[4]],
    "another time": lambda lines: [*lines[:3], changed(lines[3], time=0), lines[4]],
    "another data set": lambda lines: [changed(lines[0], data="0" * 64), *lines[1:]],
    "a larger delta": lambda lines: [changed(lines[0], delta=0.1), *lines[1:]],
    "a signature of another line": lambda lines: [*lines[:2], lines[2][:-132] + lines[1][-132:], *lines[3:]],
    "a root of another line": lambda lines: [*lines[:2], lines[2][:-210] + lines[1][-210:], *lines[3:]],
    "empty line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "empty line at the end": lambda lines: [*lines, b"\n"],
    "carriage returns": lambda lines: [line[:-1] + b"\r\n" for line in lines],
    "spaces": lambda lines: [lines[0].replace(b":", b": "), *lines[1:]],
    "capital digits": lambda lines: [*lines[:2], lines[2][:-132] + lines[2][-132:-3].upper() + lines[2][-3:]],
    "not JSON": lambda lines: [*lines, b"garbage\n"],
    "not UTF-8": lambda lines: [*lines, b"\xff\xfe\xfa\n"],
    "a list": lambda lines: [*lines, b"[1]\n"],
    "nothing inside": lambda lines: [*lines, b"{}\n"],
    "nested too deeply": lambda lines: [*lines, b"[" * 100_000 + b"\n"],
    "nested in an entry": lambda lines: [*lines, b'{"entry":' + b"[" * 3000 + lines[1][-219:]],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_ledger_is_refused(
    ledger: Path, lines: list[bytes], opened: Opener, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    damaged = b"".join(damage(lines))
    assert damaged != ledger.read_bytes()
    ledger.write_bytes(damaged)
    with pytest.raises(LedgerDamaged, match=r"line \d of ledger\.jsonl"):
        opened()
    assert ledger.read_bytes() == damaged  # left as evidence


def test_a_flipped_bit_in_any_byte_of_any_line_is_found(ledger: Path, lines: list[bytes]) -> None:
    whole = b"".join(lines[:3])
    first_of_line = [0, len(lines[0]), len(lines[0]) + len(lines[1])]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        ledger.write_bytes(bytes(flipped))
        number = sum(place >= first for first in first_of_line)
        with pytest.raises(LedgerDamaged, match=rf"line {number} of ledger\.jsonl"):
            read_ledger(ledger)


def test_the_last_signature_covers_every_entry_and_no_signature_before_it(
    ledger: Path, lines: list[bytes]
) -> None:
    signature_bytes = 128
    for number, line in enumerate(lines):
        for place in range(0, len(line), 5):
            flipped = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
            ledger.write_bytes(b"".join([*lines[:number], flipped, *lines[number + 1 :]]))
            with pytest.raises(LedgerDamaged):
                read_ledger(ledger)
            if len(line) - 3 - signature_bytes <= place < len(line) - 3 and number < len(lines) - 1:
                continue
            with pytest.raises(LedgerDamaged):
                read_ledger(ledger, every_signature=False)
    other = b"".join([*lines[:2], lines[2][:-131] + lines[1][-131:], *lines[3:]])
    ledger.write_bytes(other)
    assert read_ledger(ledger, every_signature=False).history.size == 5


@pytest.mark.parametrize("every_signature", [True, False])
def test_a_ledger_signed_again_with_another_key_is_refused(
    ledger: Path, lines: list[bytes], ledger_owner: Callable[..., LedgerOwner], every_signature: bool
) -> None:
    entries = [entry_of(line) for line in lines]
    ledger.write_bytes(signed_again(entries, Identity.generate(), ledger_owner()))
    with pytest.raises(LedgerDamaged, match="not signed by the key of 'bank-1'"):
        read_ledger(ledger, every_signature=every_signature)


def test_a_line_signed_again_with_another_key_is_refused(
    ledger: Path, lines: list[bytes], ledger_owner: Callable[..., LedgerOwner]
) -> None:
    entries = [entry_of(line) for line in lines]
    foreign = signed_again(entries, Identity.generate(), ledger_owner()).splitlines(keepends=True)
    assert foreign[2][:-132] == lines[2][:-132]
    ledger.write_bytes(b"".join([*lines[:2], foreign[2], *lines[3:]]))
    with pytest.raises(LedgerDamaged, match=r"line 3 of ledger\.jsonl .*not signed"):
        read_ledger(ledger)


SENSELESS: dict[str, Callable[[list[dict[str, object]]], list[dict[str, object]]]] = {
    "a refund": lambda entries: [*entries, {**entries[1], "kind": "refund"}],
    "negative steps": lambda entries: [*entries, {**entries[1], "steps": -2}],
    "steps in words": lambda entries: [*entries, {**entries[1], "steps": "two"}],
    "steps that are true": lambda entries: [*entries, {**entries[1], "steps": True}],
    "half a step": lambda entries: [*entries, {**entries[1], "steps": 0.5}],
    "no rate": lambda entries: [*entries, {**entries[1], "sample_rate": None}],
    "a rate above one": lambda entries: [*entries, {**entries[1], "sample_rate": 1.5}],
    "no noise": lambda entries: [*entries, {**entries[1], "noise_multiplier": 0}],
    "one field more": lambda entries: [*entries, {**entries[1], "refund": 1}],
    "one field less": lambda entries: [*entries, {k: v for k, v in entries[1].items() if k != "study"}],
    "opened twice": lambda entries: [*entries, entries[0]],
    "never opened": lambda entries: entries[1:],
    "another format": lambda entries: [{**entries[0], "format": "hansa/ledger/v2"}, *entries[1:]],
    "another relation": lambda entries: [{**entries[0], "relation": "none"}, *entries[1:]],
    "committed twice": lambda entries: [*entries, entries[2]],
    "committed before it was reserved": lambda entries: [entries[0], entries[2], entries[1]],
    "committed with other steps": lambda entries: [*entries[:2], {**entries[2], "steps": 1}],
}


@pytest.mark.parametrize("change", SENSELESS.values(), ids=SENSELESS)
def test_entries_that_make_no_sense_are_refused_even_with_right_signatures(
    ledger: Path,
    lines: list[bytes],
    ledger_owner: Callable[..., LedgerOwner],
    change: Callable[[list[dict[str, object]]], list[dict[str, object]]],
) -> None:
    entries, identity = [entry_of(line) for line in lines[:3]], Identity.load(bytes([1]) * 32)
    ledger.write_bytes(signed_again(entries, identity, ledger_owner()))
    assert read_ledger(ledger).history.size == 3
    ledger.write_bytes(signed_again(change(entries), identity, ledger_owner()))
    with pytest.raises(LedgerDamaged, match=r"line \d of ledger\.jsonl"):
        read_ledger(ledger)


# -- a crash while a line was written ------------------------------------------------------------------------


def test_a_torn_last_line_takes_nothing_from_the_lines_before_it_and_is_noted(
    ledger: Path, lines: list[bytes], opened: Opener
) -> None:
    spent = opened().epsilon()
    for cut in [*range(1, len(lines[4]) - 1, 37), len(lines[4]) - 2]:
        ledger.write_bytes(b"".join(lines[:4]) + lines[4][:cut])
        found = read_ledger(ledger)
        assert (found.torn, found.history.size, found.feed_missing) == (lines[4][:cut], 4, False)
        budget = opened()
        assert ledger.read_bytes().endswith(lines[4][:cut])  # to open it changes nothing
        assert budget.epsilon() == spent  # the fourth line reserved
        budget.commit(replace(ROUND, round=2))
        kinds = [entry_of(line)["kind"] for line in ledger.read_bytes().splitlines()]
        assert kinds == ["open", "reserve", "commit", "reserve", "torn", "commit"]
        assert read_ledger(ledger).history.torn == [5]
        opened()


def test_a_torn_first_line_is_no_ledger_yet(ledger: Path, lines: list[bytes], opened: Opener) -> None:
    for start in (b"", lines[0][:50], bytes(4000)):
        ledger.write_bytes(start)
        budget = opened()
        assert budget.epsilon() == 0.0
        budget.reserve(ROUND)
        kinds = [entry_of(line)["kind"] for line in ledger.read_bytes().splitlines()]
        assert kinds == (["open", "torn", "reserve"] if start else ["open", "reserve"])


def test_a_whole_last_line_without_its_line_feed_counts(
    ledger: Path, lines: list[bytes], opened: Opener
) -> None:
    ledger.write_bytes(b"".join(lines[:3]) + lines[3][:-1])
    budget = opened()
    assert len(budget._ledger.history.reservations) == 2
    budget.commit(replace(ROUND, round=2))
    assert ledger.read_bytes() == b"".join(lines)


# -- whose ledger it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data": b"e" * 32}, "data set"),
        ({"participant": "bank-2"}, "participant"),
        ({"seed": 2}, "key"),
        ({"unit": "person"}, "unit of privacy"),
    ],
)
def test_the_ledger_of_somebody_or_something_else_is_refused(
    lines: list[bytes], opened: Opener, changes: dict[str, object], word: str
) -> None:
    with pytest.raises(LedgerMismatch, match=f"another {word}"):
        opened(**changes)


def test_a_signer_of_another_key_does_not_spoil_the_file(
    ledger: Path, lines: list[bytes], opened: Opener
) -> None:
    budget = opened(sign=Identity.generate().sign)
    with pytest.raises(LedgerMismatch, match="not signed by the key of"):
        budget.reserve(replace(ROUND, round=3))
    assert ledger.read_bytes() == b"".join(lines)


def test_the_file_is_readable_by_its_owner_only(ledger: Path, lines: list[bytes]) -> None:
    assert ledger.stat().st_mode & 0o077 == 0


def test_a_clock_that_goes_backwards_is_noted_and_changes_nothing(ledger: Path, opened: Opener) -> None:
    times = iter([1000.5, 900.0, 950.0, -5.0])  # the opening has that of the entry it is written with
    budget = opened(now=lambda: next(times))
    for number in range(1, 5):
        budget.reserve(replace(ROUND, round=number))
    history = read_ledger(ledger).history
    assert [json.loads(entry)["time"] for entry in history.encoded] == [1000, 1000, 900, 950, -5]
    assert [json.loads(entry)["sequence"] for entry in history.encoded] == [0, 1, 2, 3, 4]
    assert history.clock_backwards == [3, 5]
    assert opened().epsilon() == budget.epsilon()


def test_every_line_is_the_signed_tree_head_of_the_lines_so_far(ledger: Path, lines: list[bytes]) -> None:
    history = read_ledger(ledger).history
    for size in range(1, 6):
        line = json.loads(lines[size - 1])
        head = history.head(size)
        assert head.root == root_of_leaves(history.leaves[:size]) == bytes.fromhex(line["root"])
        head.verify_signature(bytes.fromhex(line["signature"]))
        with pytest.raises(ProofInvalid):
            replace(head, size=size + 1).verify_signature(bytes.fromhex(line["signature"]))


def test_the_budget_gives_its_tree_head(ledger: Path, opened: Opener) -> None:
    budget = opened()
    assert budget.head is None
    budget.reserve(ROUND)
    assert budget.head == read_ledger(ledger).history.head()


def test_a_line_is_canonical_json(lines: list[bytes]) -> None:
    for line in lines:
        assert rfc8785.dumps(json.loads(line)) + b"\n" == line


def test_no_secret_is_shown(ledger_owner: Callable[..., LedgerOwner]) -> None:
    assert "sign" not in repr(ledger_owner())


def test_an_infinite_limit_is_written_as_none(ledger: Path, ledger_owner: Callable[..., LedgerOwner]) -> None:
    budget = Budget(ledger, epsilon_limit=float("inf"), delta=DELTA, owner=ledger_owner())
    budget.reserve(ROUND)
    assert read_ledger(ledger).history.reservations[0].epsilon_limit is None
    with pytest.raises(BudgetExhausted):
        Budget(ledger, epsilon_limit=0.1, delta=DELTA, owner=ledger_owner()).reserve(ROUND)


def test_a_tree_head_is_spelled_canonically(ledger_owner: Callable[..., LedgerOwner]) -> None:
    for participant in ("bank-1", 'a "b" \\ é'):
        head = TreeHead(
            participant=participant, public_key=b"k" * 32, data=b"d" * 32, size=12, root=b"r" * 32
        )
        fields = {
            name: value for name, value in head.as_json(b"").items() if name not in ("schema", "signature")
        }
        assert head.encode() == rfc8785.dumps({"format": "hansa/ledger-head/v1", **fields})
