"""Whatever is written is read as it was, and whatever is done to a ledger or a proof ends in a named error or changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.errors import Error, LedgerDamaged, ProofInvalid
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner, read_ledger
from hansa.privacy.ledger_format import decode_entry, decode_line, encode_entry, encode_line
from hansa.privacy.ledger_head import proof_as_json, verify_proof
from hansa.privacy.merkle import inclusion_proof

HEX32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
COMMON = {
    "previous": HEX32,
    "sequence": st.integers(0, 2**53 - 1),
    "time": st.integers(-(2**53) + 1, 2**53 - 1),
}
STEPS = {
    "study": NAMES,
    "round": st.integers(0, 2**53 - 1),
    "attempt": st.integers(0, 2**53 - 1),
    "noise_multiplier": st.floats(0.05, 1e6),
    "sample_rate": st.floats(1e-9, 1.0),
    "steps": st.integers(0, 10**7),
}
LIMITS = st.one_of(st.none(), st.floats(0, 1e12, exclude_min=True))
ENTRIES = st.one_of(
    st.fixed_dictionaries({"kind": st.just("reserve"), "epsilon_limit": LIMITS, **COMMON, **STEPS}),
    st.fixed_dictionaries({"kind": st.just("commit"), **COMMON, **STEPS}),
    st.fixed_dictionaries(
        {
            "kind": st.just("charge"),
            "purpose": st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True),
            "epsilon_limit": LIMITS,
            **COMMON,
            **{name: values for name, values in STEPS.items() if name not in ("round", "attempt")},
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("torn"), "bytes": st.integers(1, 2**53 - 1), "sha256": HEX32, **COMMON}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("open"),
            "format": st.just("hansa/ledger/v1"),
            "participant": NAMES,
            "public_key": HEX32,
            "data": HEX32,
            "delta": st.floats(0, 0.5, exclude_min=True),
            "unit": st.sampled_from(["record", "person"]),
            "relation": st.just("add-or-remove-one"),
            "accountant": st.just("pld"),
            **COMMON,
        }
    ),
)
SHARED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SHARED
@given(
    entry=ENTRIES,
    root=st.binary(min_size=32, max_size=32),
    signature=st.binary(min_size=64, max_size=64),
)
def test_what_is_spelled_is_read_as_it_was(entry: dict[str, object], root: bytes, signature: bytes) -> None:
    encoded = encode_entry(entry)
    assert decode_entry(encoded) == entry
    line = decode_line(encode_line(encoded, root, signature))
    assert (line.entry, line.encoded, line.root, line.signature) == (entry, encoded, root, signature)


@SHARED
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_what_is_no_line_ends_in_a_named_error(data: bytes) -> None:
    with pytest.raises(LedgerDamaged):
        decode_line(data)
    with pytest.raises(LedgerDamaged):
        decode_entry(data)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@SHARED
@given(entry=ENTRIES, data=st.data())
def test_an_entry_with_another_value_is_an_entry_or_a_named_error(
    entry: dict[str, object], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(entry)))
    changed = {**entry, name: data.draw(JSON)}
    try:
        encoded = encode_entry(changed)
    except LedgerDamaged:
        return
    assert decode_entry(encoded) == changed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, ledger_owner: Callable[..., LedgerOwner]) -> bytes:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    budget = Budget(path, epsilon_limit=100.0, delta=1e-5, owner=ledger_owner())
    for number in (1, 2, 3):
        spending = Spending(
            study="a" * 64, round=number, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2
        )
        budget.reserve(spending)
        budget.commit(spending)
    return path.read_bytes()


@SHARED
@given(data=st.data())
def test_any_mutation_ends_in_a_named_error_or_leaves_a_beginning_of_the_ledger(
    written: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    mutated = bytearray(written)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(len(mutated) - 1, 0)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if how == "flip" and mutated:
            mutated[place] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del mutated[place : place + data.draw(st.integers(1, 2000))]
        elif how == "insert":
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            mutated[place:place] = mutated[place : place + data.draw(st.integers(1, 1500))]
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(bytes(mutated))
    try:
        found = read_ledger(path)
    except LedgerDamaged:
        return
    whole = bytes(mutated[: found.whole_bytes])
    assert written.startswith(
        whole
    )  # nothing but lines at the end can go, and that only unseen without a head
    assert found.history.size == written[: found.whole_bytes + found.feed_missing].count(b"\n")


@SHARED
@given(data=st.data())
def test_any_change_of_a_proof_ends_in_a_named_error(
    written: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(written)
    history = read_ledger(path).history
    index = data.draw(st.integers(0, history.size - 1))
    proof = proof_as_json(
        history.head(),
        history.signature,
        index,
        history.encoded[index],
        inclusion_proof(history.leaves, index),
    )
    assert verify_proof(json.loads(json.dumps(proof))) == history.head()
    name = data.draw(st.sampled_from(sorted(set(proof) - {"schema"})))
    changed = {**proof, name: data.draw(JSON)}
    if name == "entry" and isinstance(proof["entry"], dict):
        field = data.draw(st.sampled_from(sorted(proof["entry"])))
        changed = {**proof, "entry": {**proof["entry"], field: data.draw(JSON)}}
    # True is 1 and 1.0 is 1 to a comparison, not to a proof; the same value is no change.
    if json.dumps(changed, sort_keys=True) != json.dumps(proof, sort_keys=True) and changed != proof:
        with pytest.raises(ProofInvalid):
            verify_proof(changed)


def test_every_error_of_these_is_one_of_hansa() -> None:
    assert issubclass(LedgerDamaged, Error)
    assert issubclass(ProofInvalid, Error)
