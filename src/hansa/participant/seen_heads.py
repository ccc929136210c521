"""What a participant keeps of the others' ledgers: for each member the signed upload header with its longest ledger head.

The headers of a roster are shown to all its members. Whoever keeps them can hold a member to what it had spent by then: an auditor
gives them to `hansa audit verify --head`, beside the member's own ledger files.

    node/heads        signed header of each member with the longest ledger head seen
    node/heads-apart  of a member whose head went back: the header before it and the one that contradicts it, the first such pair
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa import labels
from hansa.errors import LedgerRewound, ProofInvalid, ProtocolError
from hansa.privacy.ledger_head import TreeHead
from hansa.secure_agg.ledger_heads import LedgerHeads, decode_head
from hansa.secure_agg.messages import Envelope, UploadHeader
from hansa.secure_agg.store import Store

SEEN_HEAD_SCHEMA = "hansa/audit-seen-head/v1"
_HEADS, _APART = "node/heads", "node/heads-apart"


def keep_heads(store: Store, headers: Iterable[bytes]) -> None:
    """Take the headers of a roster.

    Args:
        store: The participant's own store.
        headers: Signed upload headers whose signatures were checked.

    Guarantees:
        - Of every member the longest head stays, whatever comes later.
        - A member whose head goes back leaves both headers behind, as evidence. Nothing else happens to it here: its ledger counts
          what was spent on its own data.
    """
    kept, apart = _load(store, _HEADS), _load(store, _APART)
    before = dict(kept), dict(apart)
    for signed in headers:
        body = _body(signed)
        known = kept.get(body.sender)
        try:
            earlier = {} if known is None else {body.sender: _body(known).ledger_head}
            LedgerHeads(earlier).verify(body)
        except LedgerRewound:
            apart.setdefault(body.sender, [known, signed])
        else:
            if known is None or _body(known).ledger_head != body.ledger_head:
                kept[body.sender] = signed
    if kept != before[0]:
        store.put(_HEADS, cbor2.dumps(kept))
    if apart != before[1]:
        store.put(_APART, cbor2.dumps(apart))


def kept_heads(store: Store) -> Mapping[str, bytes]:
    """Give the signed header with the longest head of each member."""
    return _load(store, _HEADS)


def heads_apart(store: Store) -> Mapping[str, tuple[bytes, bytes]]:
    """Give, of each member whose head went back, two headers of its own that contradict each other."""
    return {name: (first, second) for name, (first, second) in _load(store, _APART).items()}


def head_of_header(signed: bytes) -> tuple[int, bytes]:
    """Give size and root of the ledger head in a header that `kept_heads` gave; size 0 where it shows no ledger."""
    return decode_head(_body(signed).ledger_head)


def seen_head_as_json(signed: bytes, public_key: bytes) -> dict[str, Any]:
    """Give a signed header for a file that `hansa audit verify --head` reads.

    Args:
        signed: The header.
        public_key: Identity key of its sender, as the roster pins it.
    """
    body = _body(signed)
    size, root = decode_head(body.ledger_head)
    return {
        "schema": SEEN_HEAD_SCHEMA,
        "participant": body.sender,
        "public_key": public_key.hex(),
        "size": size,
        "root": root.hex(),
        "header": signed.hex(),
    }


def seen_head_of_json(found: Mapping[str, Any]) -> TreeHead:
    """Read a file that `seen_head_as_json` gave, and check the signature of its header.

    Returns:
        The head. A header does not name the data set: `data` is empty, and the head is one of any of the member's ledgers.

    Raises:
        ProofInvalid: It is not one, or the header was signed by another key.
    """
    try:
        signed, public_key = bytes.fromhex(found["header"]), bytes.fromhex(found["public_key"])
        envelope = Envelope.decode(signed)
        hashed = hashlib.sha256(envelope.body).digest()
        labelled = labels.SIGNATURE + UploadHeader.TYPE.encode() + b"\x00" + hashed
        Ed25519PublicKey.from_public_bytes(public_key).verify(envelope.signature, labelled)
        body = UploadHeader.decode(envelope.body)
    except (ProtocolError, InvalidSignature, KeyError, TypeError, ValueError) as error:
        raise ProofInvalid(
            "a head that was seen is no upload header, or not signed by the key it names"
        ) from error
    size, root = decode_head(body.ledger_head)
    if size == 0:
        raise ProofInvalid(f"the upload header of {body.sender!r} shows no ledger")
    return TreeHead(participant=body.sender, public_key=public_key, data=b"", size=size, root=root)


def _load(store: Store, key: str) -> dict[str, Any]:
    data = store.get(key)
    found: dict[str, Any] = {} if data is None else cbor2.loads(data)
    return found


def _body(signed: bytes) -> UploadHeader:
    return UploadHeader.decode(Envelope.decode(signed).body)
