"""A participant's signed statement about one data set, format hansa/privacy-statement/v1: what it vouches for beside its ledger.

    {"signature":"<128 hex>","statement":{...}}

The ledger lets anybody recompute ε; the statement adds what no ledger holds: the owner's limits, what the studies were, which
protections were on, who was missing in which round, which program ran, who approved. It is canonical JSON (RFC 8785), so that one
statement has one spelling. The identity that signed the ledger signs it, as a message of a type of its own (Ed25519, RFC 8032).
It names the ledger's tree head, so a ledger that was cut or rewritten since does not go with it.

Not in it, by its form: records, numbers of records, losses, gradients, model states. The data set is a commitment and a name.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hansa import labels
from hansa.errors import LedgerFileMissing, OutputNotWritable, StatementInvalid
from hansa.privacy.ledger import Sign
from hansa.study_problems import problem_of

SIGNED_AS = "privacy-statement"
STATEMENTS = "statement-*.json"
STATEMENT_BYTES_MOST = 1 << 22
_INTEGER_MOST = 2**53 - 1

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Member = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Layer = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Count = Annotated[int, Field(ge=0, le=_INTEGER_MOST)]
Limit = Annotated[float, Field(gt=0, le=1e12)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[int, Field(ge=-_INTEGER_MOST, le=_INTEGER_MOST)]


class _Part(BaseModel):
    """A part: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limits(_Part):
    """The owner's own limits for the data set; None where there is no limit of that kind."""

    epsilon: Limit | None = Field(description="for ever")
    epsilon_per_study: Limit | None = Field(description="of any one study")
    epsilon_per_month: Limit | None = Field(description="of all studies in a calendar month, UTC")
    delta: Probability = Field(description="largest delta of a study")
    smallest_cohort: Count = Field(description="fewest participants of a study")
    most_rounds: Count | None = Field(description="most rounds that a study may plan")


class Dropout(_Part):
    """A round whose sum lacks somebody."""

    round: Count
    missing: Annotated[tuple[Member, ...], Field(min_length=1, max_length=1000)]


class StudyRecord(_Part):
    """What the participant says of a study that used the data set."""

    id: Hash = Field(description="hash of the agreement")
    name: Name
    mode: Literal["local", "distributed"] = Field(description="whose noise suffices")
    noise_contributors: Count | None = Field(
        description="distributed: fewest members whose noise is in a sum"
    )
    colluders: Count | None = Field(description="distributed: members whose noise does not count")
    noise_multipliers: Annotated[tuple[float, ...], Field(max_length=1000)] = Field(
        description="every noise multiplier that was used"
    )
    sample_rate: Rate = Field(description="Poisson probability of a unit in a step")
    clip_norm: Limit = Field(description="l2 bound of one unit's gradient")
    steps_per_round: Count
    rounds_planned: Count
    rounds_reserved: Count = Field(description="rounds that were paid for, repeated attempts once")
    rounds_committed: Count = Field(description="rounds whose update is known to have left")
    cohort: Count = Field(description="participants of the study")
    protections: dict[Layer, bool] = Field(description="layers of protection, on or off")
    base_model: Hash | None = Field(description="hash of the public base model")
    dropouts: Annotated[tuple[Dropout, ...], Field(max_length=100_000)]
    void_rounds: Annotated[tuple[Count, ...], Field(max_length=100_000)]


class Code(_Part):
    """The program that ran."""

    version: Name
    sha256: Hash
    files: Count


class Head(_Part):
    """The ledger's tree head."""

    size: Annotated[int, Field(ge=1, le=_INTEGER_MOST)]
    root: Hash


class Approval(_Part):
    """Who agreed that a study may use the data set."""

    study: Hash
    approved_by: Name
    role: Name | None = None
    time: Time


class EmpiricalBound(_Part):
    """What an attack on the mechanism showed at least."""

    name: Name = Field(description="which audit")
    study: Hash | None = Field(default=None, description="study whose mechanism it was")
    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)]
    sample_rate: Rate
    steps: Annotated[int, Field(ge=1, le=10**7)]
    delta: Probability
    epsilon_at_least: Annotated[float, Field(ge=0, le=1e6)]
    confidence: Probability
    canaries: Count | None = None


class Inversion(_Part):
    """What an attack recovered from a gradient of the study's own clipping and noise."""

    name: Name = Field(description="which audit")
    study: Hash | None = Field(default=None, description="study whose mechanism it was")
    tokens: Annotated[int, Field(ge=1, le=_INTEGER_MOST)]
    recovered_without_noise: Share
    recovered: Share
    chance: Share = Field(description="share that guessing recovers")
    passed: bool = Field(description="whether the attack did no better than guessing")


class Statement(_Part):
    """What a participant states about one data set.

    Guarantees:
        - Two statements that say the same have the same bytes; see `encode`.
    """

    format: Literal["hansa/privacy-statement/v1"] = "hansa/privacy-statement/v1"
    participant: Member
    public_key: Hash
    data: Hash = Field(description="commitment to the data set")
    data_set: Name = Field(description="what the participant calls it")
    unit: Literal["record", "person"]
    relation: Literal["add-or-remove-one"] = "add-or-remove-one"
    delta: Probability = Field(description="delta at which the ledger states epsilon")
    limits: Limits
    studies: Annotated[tuple[StudyRecord, ...], Field(max_length=1000)]
    code: Code
    ledger: Head
    approvals: Annotated[tuple[Approval, ...], Field(max_length=1000)] = ()
    empirical: Annotated[tuple[EmpiricalBound, ...], Field(max_length=100)] = ()
    inversions: Annotated[tuple[Inversion, ...], Field(max_length=100)] = ()
    time: Time = Field(description="what the participant's clock said")

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        ids = [study.id for study in self.studies]
        if len(set(ids)) != len(ids):
            raise ValueError("a study stands twice in it")
        return self

    def encode(self) -> bytes:
        """Spell the statement canonically; this is the body that is signed as `privacy-statement`."""
        return rfc8785.dumps(self.model_dump(mode="json"))


def sign_statement(statement: Statement, sign: Sign) -> bytes:
    """Sign a statement.

    Returns:
        The bytes of its file.

    Raises:
        StatementInvalid: The signer does not hold the key that the statement names.
    """
    body = statement.encode()
    signature = sign(SIGNED_AS, body)
    verify_signature(statement, body, signature)
    return rfc8785.dumps({"signature": signature.hex(), "statement": json.loads(body)}) + b"\n"


def verify_signature(statement: Statement, body: bytes, signature: bytes) -> None:
    """Check the signature of a statement under the key that it names.

    Raises:
        StatementInvalid: It is not one.
    """
    signed = labels.SIGNATURE + SIGNED_AS.encode() + b"\x00" + hashlib.sha256(body).digest()
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(statement.public_key)).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise StatementInvalid(
            f"the statement of {statement.participant!r} is not signed by its key"
        ) from error


def parse_statement(data: bytes) -> Statement:
    """Read a statement's file and check its signature.

    Args:
        data: Its bytes; untrusted.

    Raises:
        StatementInvalid: It is too long, not the canonical spelling of a statement, or not signed by the key that it names.

    Guarantees:
        - A bit flipped anywhere is found.
        - Nothing is accepted that has a key which the format does not know.
    """
    if len(data) > STATEMENT_BYTES_MOST:
        raise StatementInvalid(f"it is longer than {STATEMENT_BYTES_MOST} bytes")
    try:
        found = json.loads(data)
        canonical = rfc8785.dumps(found) + b"\n"
    except (ValueError, RecursionError, TypeError) as error:
        raise StatementInvalid("it is not JSON") from error
    if canonical != data or not isinstance(found, dict) or found.keys() != {"signature", "statement"}:
        raise StatementInvalid("it is not the canonical spelling of a statement and its signature")
    body = rfc8785.dumps(found["statement"])
    statement = _statement_of(body)
    signature = found["signature"]
    if not isinstance(signature, str) or len(signature) != 128 or signature != signature.lower():
        raise StatementInvalid("its signature is not 128 hexadecimal digits")
    try:
        verify_signature(statement, body, bytes.fromhex(signature))
    except ValueError as error:
        raise StatementInvalid("its signature is not 128 hexadecimal digits") from error
    return statement


def _statement_of(body: bytes) -> Statement:
    problem = None
    try:
        statement = Statement.model_validate_json(body)
    except ValidationError as error:
        problem = StatementInvalid(problem_of(error, Statement).message)
    if problem is not None:
        raise problem  # outside the handler, so that pydantic's report does not travel along
    if statement.encode() != body:  # such as a default that was left out
        raise StatementInvalid("it is not the canonical spelling of a statement and its signature")
    return statement


def read_statement(path: Path) -> Statement:
    """Read a statement from a file; raises as `parse_statement`, and LedgerFileMissing where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(STATEMENT_BYTES_MOST + 1)
    except OSError as error:
        raise LedgerFileMissing(f"statement {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        return parse_statement(data)
    except StatementInvalid as error:
        raise StatementInvalid(f"{path.name} does not hold: {error.message}") from error


def write_statement(path: Path, data: bytes) -> None:
    """Write a signed statement, whole or not at all.

    Raises:
        OutputNotWritable: It cannot be written; an older file there is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputNotWritable(f"statement {str(path)!r} cannot be written: {error.strerror}") from error


def as_plain(statement: Statement) -> dict[str, Any]:
    """Give a statement as plain JSON types."""
    plain: dict[str, Any] = statement.model_dump(mode="json")
    return plain
