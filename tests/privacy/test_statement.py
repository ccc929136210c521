"""A participant's statement: one spelling, one signer, and nothing in it that the format does not name."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rfc8785

from hansa import labels
from hansa.errors import (
    LedgerFileMissing,
    LedgerMismatch,
    LedgerNotVerified,
    OutputNotWritable,
    StatementIncomplete,
    StatementInvalid,
)
from hansa.privacy.code_identity import code_identity
from hansa.privacy.statement import (
    STATEMENT_BYTES_MOST,
    Statement,
    parse_statement,
    read_statement,
    sign_statement,
    write_statement,
)
from hansa.privacy.stating import make_statement
from hansa.secure_agg.identity import Identity

Make = Callable[..., Any]


@pytest.fixture
def bank(institution: Make, audits: ModuleType) -> Any:
    one = institution()
    one.spend(audits.study_of(), 3, missing={2: ("bank-3",)})
    return one


@pytest.fixture
def data(bank: Any) -> bytes:
    bank.state()
    return bank.statement.read_bytes()


def resigned(data: bytes, change: Callable[[dict], None], seed: int = 1) -> bytes:
    """Change a statement and sign it again, as its owner could."""
    body = json.loads(data)["statement"]
    change(body)
    signature = Identity.load(bytes([seed]) * 32).sign("privacy-statement", rfc8785.dumps(body))
    return rfc8785.dumps({"signature": signature.hex(), "statement": body}) + b"\n"


def test_what_was_stated_is_read_back(bank: Any) -> None:
    stated = bank.state()
    assert read_statement(bank.statement) == stated
    assert parse_statement(sign_statement(stated, bank.identity.sign)) == stated
    assert stated.studies[0].dropouts[0].missing == ("bank-3",)


def test_a_statement_says_nothing_that_the_format_does_not_name(data: bytes) -> None:
    """The allow-list of what a statement may give away; no count of records, loss, gradient or state is on it."""
    body = json.loads(data)["statement"]
    assert set(body) == {
        "format", "participant", "public_key", "data", "data_set", "unit", "relation", "delta", "limits", "studies",
        "code", "ledger", "approvals", "empirical", "inversions", "time",
    }  # fmt: skip
    assert set(body["studies"][0]) == {
        "id", "name", "mode", "noise_contributors", "colluders", "noise_multipliers", "sample_rate", "clip_norm",
        "steps_per_round", "rounds_planned",
        "rounds_reserved", "rounds_committed", "cohort", "protections", "base_model", "dropouts", "void_rounds",
    }  # fmt: skip
    assert set(body["limits"]) == {
        "epsilon", "epsilon_per_study", "epsilon_per_month", "delta", "smallest_cohort", "most_rounds",
    }  # fmt: skip
    assert set(body["code"]) == {"version", "sha256", "files"}
    assert set(body["ledger"]) == {"size", "root"}


def test_a_bit_that_is_flipped_anywhere_is_found(data: bytes) -> None:
    for place in range(0, len(data), 5):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(StatementInvalid):
            parse_statement(changed)


def test_the_signature_is_one_of_the_key_that_the_statement_names(data: bytes, bank: Any) -> None:
    with pytest.raises(StatementInvalid, match="not signed by its key"):
        parse_statement(resigned(data, lambda body: None, seed=2))
    with pytest.raises(StatementInvalid, match="not signed by its key"):
        sign_statement(bank.state(), Identity.load(b"\x02" * 32).sign)
    # Signed as another kind of message.
    body = json.loads(data)["statement"]
    signature = bank.identity.sign("ledger-head", rfc8785.dumps(body))
    with pytest.raises(StatementInvalid, match="not signed by its key"):
        parse_statement(rfc8785.dumps({"signature": signature.hex(), "statement": body}) + b"\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body.update(records=3000), "unknown key 'records'"),
        (lambda body: body["studies"][0].update(loss=0.4), r"unknown key 'studies\[0\].loss'"),
        (lambda body: body["code"].pop("files"), "code.files is missing"),
        (lambda body: body.update(delta="1e-5"), "delta"),
        (lambda body: body.update(unit="household"), "unit"),
        (lambda body: body.update(time=True), "time"),
        (lambda body: body["ledger"].update(size=0), "ledger.size"),
        (lambda body: body.pop("approvals"), "canonical"),  # a default that was left out
        (lambda body: body["studies"].append(body["studies"][0]), "a study stands twice"),
        (lambda body: body.update(public_key="00" * 31), "public_key"),
    ],
)
def test_a_signed_statement_of_another_form_is_refused(
    data: bytes, change: Callable[[dict], None], reason: str
) -> None:
    with pytest.raises(StatementInvalid, match=reason):
        parse_statement(resigned(data, change))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.rstrip(),
        lambda data: data.replace(b'":', b'": ', 1),
        lambda data: data[:-2] + b',"more":1}\n',
        lambda data: data.replace(b'"statement":{', b'"statement":{"unit":"record",', 1),
        lambda data: b"[" * 100_000,
        lambda data: b"[]\n",
        lambda data: b"",
        lambda data: b"\xff",
        lambda data: b" " * (STATEMENT_BYTES_MOST + 1),
    ],
)
def test_other_spellings_of_a_statement_are_refused(data: bytes, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StatementInvalid):
        parse_statement(spoil(data))


def test_a_statement_needs_every_study_of_a_ledger_that_holds(
    bank: Any, audits: ModuleType, institution: Make
) -> None:
    def make(**changes: Any) -> Statement:
        usual = {
            "data_set": "cards", "limits": audits.LIMITS, "studies": list(bank.facts.values()),
        }  # fmt: skip
        return make_statement(bank.ledger, bank.owner, **{**usual, **changes})

    assert make().studies[0].rounds_reserved == 3
    with pytest.raises(StatementIncomplete, match=r"names study [0-9a-f]{16}, which is not described"):
        make(studies=[])
    stranger = institution("bank-1", seed=9)
    with pytest.raises(LedgerMismatch):
        make_statement(bank.ledger, stranger.owner, data_set="x", limits=audits.LIMITS, studies=[])
    with pytest.raises(LedgerFileMissing):
        make_statement(
            bank.ledger.with_name("none"), bank.owner, data_set="x", limits=audits.LIMITS, studies=[]
        )
    lines = bank.ledger.read_bytes().splitlines(keepends=True)
    bank.ledger.write_bytes(lines[0] + lines[2])
    with pytest.raises(LedgerNotVerified):
        make()


def test_what_can_be_read_off_the_ledger_is_read_off_it(bank: Any, audits: ModuleType) -> None:
    bank.spend(audits.study_of("second"), 4, sigma=2.0, open_rounds=(4,))
    found = {study.name: study for study in bank.state().studies}
    assert found["second"].noise_multipliers == (2.0,)
    assert (found["second"].rounds_reserved, found["second"].rounds_committed) == (4, 3)
    assert bank.state().ledger.size == 1 + 6 + 7


def test_a_statement_is_written_whole_or_not_at_all(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "statement-1.json"
    write_statement(path, data)
    assert path.read_bytes() == data
    with pytest.raises(OutputNotWritable):
        write_statement(tmp_path / "none" / "statement.json", data)
    with pytest.raises(LedgerFileMissing):
        read_statement(tmp_path / "none.json")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_code_identity_changes_with_every_byte_name_and_place(tmp_path: Path) -> None:
    def identity(**files: str) -> bytes:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            path = folder / name.replace("__", "/").replace("_py", ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return code_identity(folder).sha256

    usual = identity(a_py="x", b__c_py="y")
    assert identity(a_py="x", b__c_py="y") == usual
    others = [
        identity(a_py="x", b__c_py="z"),
        identity(a_py="x", c_py="y"),
        identity(a_py="y", b__c_py="x"),
        identity(a_py="x"),
        identity(a_py="x", b__c_py="y", d_py=""),
    ]
    assert len({usual, *others}) == 6
    (tmp_path / "0" / "a.pyc").write_text("compiled")
    assert code_identity(tmp_path / "0").sha256 == usual
    assert code_identity().files > 100
    assert labels.CODE
