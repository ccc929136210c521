"""The published vectors: what another implementation must compute from the same inputs."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa import labels
from hansa.secure_agg import dealing, packages
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import RevocationList, authority_hash
from hansa.secure_agg.ciphertext_format import pack_coefficients
from hansa.secure_agg.cohort import (
    ciphertext_list_hash,
    cohort_hash,
    roster_hash,
    state_tag,
    transcript_link,
    void_link,
)
from hansa.secure_agg.dealing import group_commitment
from hansa.secure_agg.epoch import manifest_hash
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.leaves import leaf_of, leaf_tree
from hansa.secure_agg.masks import mask_stream, pair_seed, self_seed
from hansa.secure_agg.messages import (
    Consent,
    Deal,
    Join,
    Package,
    Release,
    RoundResult,
    UploadHeader,
    Void,
    Vote,
    sign_message,
)
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.sealing import pair_key, release_key, seal, share_key
from hansa.secure_agg.shamir import split
from hansa.secure_agg.tag import SumTag

VECTORS = Path(__file__).parent.parent / "vectors"


def _bytes(name, count=32):
    return hashlib.shake_256(name.encode()).digest(count)


def _identity(name):
    return Identity.load(_bytes(f"identity {name}"))


def _private(name):
    return X25519PrivateKey.from_private_bytes(_bytes(name))


def _public(name):
    return _private(name).public_key().public_bytes_raw()


def _bodies():
    body = {"session": _bytes("session", 16), "study": _bytes("study"), "epoch": 2, "sender": "a"}
    head = body | {"round": 7, "attempt": 1}
    hashes = {"cohort_hash": _bytes("cohort"), "roster_hash": _bytes("roster")}
    joins = {
        name: Join(
            **body | {"sender": name},
            kem_key=_bytes(f"kem {name}", 1216),
            channel_key=_public(name),
            certificate=b"",
        )
        for name in ("a", "b", "c")
    }
    return joins, {
        "join": joins["a"],
        "join with a certificate": replace(joins["a"], certificate=_bytes("certificate", 400)),
        "deal": Deal(
            **body,
            he_key_id=_bytes("he"),
            group_commitment=_bytes("gc"),
            envelopes=_bytes("envelopes", 1168 * 3),
            sealed_he_key=_bytes("sealed", 61456),
        ),
        "vote": Vote(**body, manifest_hash=_bytes("manifest")),
        "package": Package(
            **body,
            round=6,
            number=3,
            package_id=_bytes("package", 16),
            mask_key=_public("mask a"),
            seed_commitment=_bytes("bc"),
            leaf_root=_bytes("root"),
        ),
        "upload-header": UploadHeader(
            **head,
            cohort_hash=_bytes("cohort"),
            he_key_id=_bytes("he"),
            state_tag=_bytes("tag"),
            previous_transcript=_bytes("transcript"),
            ciphertext_count=62,
            ciphertext_list_hash=_bytes("list"),
            ledger_head=(9).to_bytes(8, "big") + _bytes("ledger root"),
        ),
        "consent": Consent(**head, **hashes),
        "release": Release(**head, **hashes, sealed_shares=_bytes("shares", 112)),
        "round-result": RoundResult(
            **head, **hashes, state_tag=_bytes("tag"), transcript=_bytes("transcript")
        ),
        "void": Void(**head, **hashes, transcript=_bytes("transcript")),
    }


def _roster(authority=b""):
    return Roster(
        session_id=_bytes("session", 16),
        study_id=_bytes("study"),
        members=tuple((name, _identity(name).public) for name in ("a", "b", "c")),
        authority=authority,
    )


def compute_messages():
    """SHA-256 of each signed message, and its bytes where they are short."""
    _, bodies = _bodies()
    found = {}
    for name, body in bodies.items():
        signed = sign_message(_identity("a"), body)
        found[name] = {"bytes": len(signed), "sha256": hashlib.sha256(signed).hexdigest()}
        if len(signed) < 1000:
            found[name]["message"] = signed.hex()
    return found


def compute_derivations():
    """Every hash, key and mask of the protocol from inputs that SHAKE-256 gives for their names."""
    joins, bodies = _bodies()
    roster = _roster()
    cohort, group_key, roster_bytes = _bytes("cohort"), _bytes("group key"), _bytes("roster")
    at = {"round_index": 7, "attempt": 1}
    pair = pair_seed(_private("mask a"), _public("mask b"), cohort, participant="a", peer="b", **at)
    channel = pair_key(_private("a"), joins["b"].channel_key, group_key, _bytes("manifest"), "b")
    signed = {name: _bytes(f"signed {name}", 100) for name in ("a", "b", "c")}
    sealing_key = share_key(channel, _bytes("package", 16), "a", "b")
    leaves = [_bytes(f"leaf {index}", 48) for index in range(8)]
    numbers = iter(range(100))
    shares = split(
        bytes(31) + b"\x01",
        threshold=3,
        shares=4,
        random_bytes=lambda count: _bytes(f"c{next(numbers)}", count),
    )
    levels = (np.arange(-60, 61) * 2).astype(np.int64)
    tagged = SumTag(group_key, cohort).append(pack(levels, Terms(participants=4).layout))
    total = np.arange(-5, 6).astype(np.int64)
    return {
        "terms quorum 4": Terms(participants=4).hash.hex(),
        "terms strict 3": Terms(participants=3).hash.hex(),
        "group commitment": group_commitment(group_key).hex(),
        # The form of a key: every coefficient below its prime. That one has been drawn well nobody can see.
        "he key id of 0 to 8191": HeKey.load(
            pack_coefficients(np.arange(8192, dtype=np.uint64))
        ).key_id.hex(),
        "he key seal": dealing._he_seal_key(group_key, _bytes("he")).hex(),
        "deal info for b": dealing._deal_info(roster, 2, _bytes("he"), _bytes("gc"), "b").hex(),
        "manifest": manifest_hash(roster, 2, Terms(participants=3), joins, bodies["deal"]).hex(),
        "pair channel a b": channel.hex(),
        "share key a to b": sealing_key.hex(),
        "share blob a to b": seal(sealing_key, _bytes("two shares", 64), _bytes("manifest")).hex(),
        "share leaf": leaf_of(_bytes("package", 16), 1, *(_bytes("share"),) * 3).hex(),
        "leaf roots of 1 to 8": [
            leaf_tree(_bytes("package", 16), leaves[:size])[0].hex() for size in range(1, 9)
        ],
        "leaf paths of 5": [path.hex() for path in leaf_tree(_bytes("package", 16), leaves[:5])[1]],
        "seed commitment": packages.seed_commitment(_bytes("package", 16), _bytes("seed")).hex(),
        "shares 3 of 4": [share.hex() for share in shares],
        "cohort": cohort_hash(_bytes("manifest"), 7, 1, signed, _bytes("transcript")).hex(),
        "pair seed a b": pair.hex(),
        "self seed a": self_seed(_bytes("seed"), cohort, participant="a", **at).hex(),
        "mask of pair seed": [int(value) for value in mask_stream(pair, 8)],
        "mask of pair seed, modulus 2^47 + 5": [int(value) for value in mask_stream(pair, 8, 2**47 + 5)],
        "packed and tagged, sha256": hashlib.sha256(tagged.astype("<u8").tobytes()).hexdigest(),
        "tags": [int(value) for value in tagged[-8:]],
        "ciphertext list": ciphertext_list_hash([_bytes("c0", 30784), _bytes("c1", 30784)]).hex(),
        "roster": roster_hash(cohort, signed, _bytes("aggregate")).hex(),
        "release key a": release_key(group_key, roster_bytes, "a").hex(),
        "state tag": state_tag(group_key, _bytes("model")).hex(),
        "transcript": transcript_link(
            group_key, _bytes("transcript"), roster_bytes, _bytes("aggregate"), total
        ).hex(),
        "void link": void_link(group_key, _bytes("transcript"), roster_bytes).hex(),
    }


def compute_certificates():
    """An authority, a member's certificate and a list that revokes it, all valid through 2026, and the manifest then."""
    joins, bodies = _bodies()
    numbers = iter(range(100))
    year = {"not_before": datetime(2026, 1, 1, tzinfo=UTC), "not_after": datetime(2027, 1, 1, tzinfo=UTC)}
    authority = CertificateAuthority.create(
        "consortium", **year, random_bytes=lambda count: _bytes(f"authority {next(numbers)}", count)
    )
    request = _identity("a").request_certificate("a")
    certificate = authority.issue(request, participant="a", **year)
    window = {"this_update": year["not_before"], "next_update": year["not_after"]}
    revoked = authority.revocation_list([certificate], number=7, **window)
    middle, roster = datetime(2026, 7, 1, tzinfo=UTC), _roster(authority.certificate)
    roster.verify_certificate("a", certificate, middle, None)
    RevocationList(authority.certificate).update(revoked, middle)
    return {
        "authority": authority.certificate.hex(),
        "request of a": request.hex(),
        "certificate of a": certificate.hex(),
        "revocation list": revoked.hex(),
        "authority hash": authority_hash(authority.certificate).hex(),
        "manifest": manifest_hash(roster, 2, Terms(participants=3), joins, bodies["deal"]).hex(),
    }


@pytest.mark.parametrize(
    ("file", "compute"),
    [
        ("messages.json", compute_messages),
        ("derivations.json", compute_derivations),
        ("certificates.json", compute_certificates),
    ],
)
def test_the_published_vectors_are_what_is_computed(file, compute):
    published = json.loads((VECTORS / file).read_text())
    found = compute()
    assert found.keys() == published.keys()
    for name, value in found.items():
        assert value == published[name], name


PROTOCOL_LABELS = [
    name
    for name, label in vars(labels).items()
    if isinstance(label, bytes) and (b"/secure-agg/" in label or name in ("SIGNATURE", "STATE_TAG"))
]


@pytest.mark.parametrize("name", PROTOCOL_LABELS)
def test_every_label_of_the_protocol_stands_behind_a_published_value(name, monkeypatch):
    """Another label, another value: so there is a vector for every derivation, and no two share a label."""
    published = [json.loads((VECTORS / file).read_text()) for file in ("messages.json", "derivations.json")]
    certificates = json.loads((VECTORS / "certificates.json").read_text())
    assert list(vars(labels).values()).count(getattr(labels, name)) == 1
    monkeypatch.setattr(labels, name, getattr(labels, name) + b"x")
    assert [compute_messages(), compute_derivations()] != published or compute_certificates() != certificates
