"""One line of a ledger, format hansa/ledger/v1: what is in it, its only spelling, and what it is signed as.

    {"entry":{...},"root":"<64 hex>","signature":"<128 hex>"}

The entry is canonical JSON (RFC 8785), so that one entry has one spelling and one hash. `root` is the Merkle root (RFC 6962)
over all entries up to and with this one; the signature (Ed25519, RFC 8032) is over the tree head of that root. So the
signature of a line covers its entry, its place, and every entry before it.

    open      line 1: whose ledger, under which key, of which data, at which δ, in which unit, by which accountant
    reserve   a round's steps, before the first record is read; what counts as spent
    commit    the round's update has left
              Either may hold `distributed`, where several members' noise adds up: then the noise multiplier follows from it. A
              reservation names the members that are counted on, a commit those that took part. Readers from before it
              refuse such entries.
    charge    steps of anything else that looked at the data, such as an audit by canaries; spent by this line alone
    torn      the last line was cut short by a crash; its bytes are set aside, their hash stands here
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from hansa import labels
from hansa.errors import LedgerDamaged
from hansa.privacy.discrete_gaussian import VARIANCE_MOST
from hansa.privacy.distributed import VARIANCE_LEAST
from hansa.privacy.merkle import leaf_hash

FORMAT = "hansa/ledger/v1"
DISTRIBUTED_FORMAT = "hansa/distributed-noise/v1"
HEAD_FORMAT = "hansa/ledger-head/v1"
SIGNED_AS = "ledger-head"
UNITS = ("record", "person")
RELATION = "add-or-remove-one"
ACCOUNTANT = "pld"
LINE_BYTES_MOST = 4096
FIRST_PREVIOUS = bytes(32).hex()

_PREFIX = b'{"entry":'
_TAIL = re.compile(rb',"root":"([0-9a-f]{64})","signature":"([0-9a-f]{128})"\}\n')
_TAIL_BYTES = 9 + 64 + 15 + 128 + 3
_HEX32 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PURPOSE = re.compile(r"[a-z][a-z0-9-]{0,62}")
_INTEGER_MOST = 2**53 - 1
# Beyond these a privacy loss distribution is not computed with, and a file could make its reader compute for ever.
NOISE_LEAST, NOISE_MOST = 0.05, 1e6
RATE_LEAST = 1e-9
STEPS_MOST = 10**7

Check = Callable[[Any], bool]


def _integer(least: int, most: int = _INTEGER_MOST) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Check:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _text(pattern: re.Pattern[str]) -> Check:
    return lambda value: type(value) is str and pattern.fullmatch(value) is not None


def _one_of(*values: str) -> Check:
    return lambda value: value in values


def _limit(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= 1e12)


_COMMON: dict[str, Check] = {
    "kind": _one_of("open", "reserve", "commit", "charge", "torn"),
    "previous": _text(_HEX32),
    "sequence": _integer(0),
    "time": _integer(-_INTEGER_MOST),
}
_MECHANISM: dict[str, Check] = {
    "study": _text(_NAME),
    "noise_multiplier": _number(NOISE_LEAST, NOISE_MOST),
    "sample_rate": _number(RATE_LEAST, 1.0),
    "steps": _integer(0, STEPS_MOST),
}
_DISTRIBUTED: dict[str, Check] = {
    "format": _one_of(DISTRIBUTED_FORMAT),
    "contributors": _integer(2, 10**6),
    "colluders": _integer(0, 10**6),
    "variance": _integer(VARIANCE_LEAST, VARIANCE_MOST),
    "clip_levels": _integer(1, 2**32),
    "entries": _integer(1, 10**12),
}
_STEPS: dict[str, Check] = _MECHANISM | {"round": _integer(0), "attempt": _integer(0)}
_KINDS: dict[str, dict[str, Check]] = {
    "open": _COMMON
    | {
        "format": _one_of(FORMAT),
        "participant": _text(_NAME),
        "public_key": _text(_HEX32),
        "data": _text(_HEX32),
        "delta": _number(math.ulp(0.0), 0.5),
        "unit": _one_of(*UNITS),
        "relation": _one_of(RELATION),
        "accountant": _one_of(ACCOUNTANT),
    },
    "reserve": _COMMON | _STEPS | {"epsilon_limit": _limit},
    "commit": _COMMON | _STEPS,
    "charge": _COMMON | _MECHANISM | {"purpose": _text(_PURPOSE), "epsilon_limit": _limit},
    "torn": _COMMON | {"bytes": _integer(1), "sha256": _text(_HEX32)},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line whose form is right; signature, root and place are still to be checked.

    Attributes:
        entry: The values.
        encoded: The entry's canonical bytes.
        leaf: Their RFC 6962 leaf hash, under the ledger's label.
        root: Merkle root that the line states.
        signature: Signature that the line states.
    """

    entry: Mapping[str, Any]
    encoded: bytes
    leaf: bytes
    root: bytes
    signature: bytes


def encode_entry(entry: Mapping[str, Any]) -> bytes:
    """Spell an entry canonically.

    Raises:
        LedgerDamaged: It is no entry: a field is missing, too much, of the wrong type or out of its bounds.

    Guarantees:
        - Nothing is spelled that `decode_entry` would refuse.
    """
    _verify_fields(entry)
    try:
        return rfc8785.dumps(dict(entry))
    except ValueError as error:  # floats and integers that JSON does not have
        raise LedgerDamaged("an entry has a value that JSON does not have") from error


def decode_entry(encoded: bytes) -> dict[str, Any]:
    """Read an entry.

    Raises:
        LedgerDamaged: The bytes are not the canonical spelling of an entry.

    Guarantees:
        - Two different byte strings are never read as the same entry.
    """
    try:
        entry = json.loads(encoded)
        canonical = rfc8785.dumps(entry)
    except (ValueError, RecursionError, TypeError) as error:
        raise LedgerDamaged("it is not JSON") from error
    if canonical != encoded or not isinstance(entry, dict):
        raise LedgerDamaged("it is not the canonical spelling of an entry")
    _verify_fields(entry)
    return entry


def leaf_of(encoded: bytes) -> bytes:
    """Return the RFC 6962 leaf hash of an entry's canonical bytes."""
    return leaf_hash(labels.LEDGER_ENTRY + encoded)


def encode_line(encoded: bytes, root: bytes, signature: bytes) -> bytes:
    """Put an entry, the root over it and the signature of that root into a line; RFC 8785 again, with a line feed."""
    return b'%s%s,"root":"%s","signature":"%s"}\n' % (
        _PREFIX,
        encoded,
        root.hex().encode(),
        signature.hex().encode(),
    )


def decode_line(data: bytes) -> Line:
    """Read a line with its line feed.

    Raises:
        LedgerDamaged: It has not the form of a line.

    Guarantees:
        - `encode_line` of what was read gives the same bytes.
    """
    tail = _TAIL.fullmatch(data, max(len(data) - _TAIL_BYTES, 0))
    if len(data) > LINE_BYTES_MOST or not data.startswith(_PREFIX) or tail is None:
        raise LedgerDamaged("it has not the form of an entry, a root and a signature")
    encoded = data[len(_PREFIX) : -_TAIL_BYTES]
    return Line(
        entry=decode_entry(encoded),
        encoded=encoded,
        leaf=leaf_of(encoded),
        root=bytes.fromhex(tail[1].decode()),
        signature=bytes.fromhex(tail[2].decode()),
    )


def spending_problem(steps: Mapping[str, Any]) -> str:
    """Say what is out of its bounds in the steps of a reservation, or in a charge; empty if nothing is."""
    fields = _KINDS["charge" if "purpose" in steps else "reserve"] | {"distributed": _is_distributed}
    wrong = [name for name in steps if not fields[name](steps[name])]
    return ", ".join(f"{name} {steps[name]!r}" for name in wrong)


def _is_distributed(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _DISTRIBUTED.keys()
        and all(right(value[name]) for name, right in _DISTRIBUTED.items())
    )


def _verify_fields(entry: Mapping[str, Any]) -> None:
    kind = entry.get("kind")
    fields = _KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise LedgerDamaged("it is of no known kind")
    if kind in ("reserve", "commit") and "distributed" in entry:
        fields = fields | {"distributed": _is_distributed}
    if entry.keys() != fields.keys():
        raise LedgerDamaged(f"a {kind} entry has not exactly the fields of one")
    for name, right in fields.items():
        if not right(entry[name]):
            raise LedgerDamaged(f"{name} of a {kind} entry has the wrong type or is out of its bounds")
