"""The participant's steps, and the ways in which others can cheat it."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    AggregateHashMismatch,
    AggregateRangeViolation,
    BadSignature,
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMember,
    HeParameterMismatch,
    MalformedCiphertext,
    MalformedMessage,
    ModelDivergence,
    OutOfOrder,
    OwnKeyMismatch,
    PackageReuse,
    StaleRound,
    UnknownSender,
    UpdateOutOfRange,
    UpdateShapeMismatch,
    UploadReuse,
    WrongSession,
)
from hansa.secure_agg import bfv
from hansa.secure_agg.agreement import verify_results
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.ciphertext_format import pack_coefficients, unpack_coefficients
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.masks import RoundSecret
from hansa.secure_agg.messages import Envelope, RoundKey, UploadHeader, open_signed, sign_message
from hansa.secure_agg.parameters import PLAIN_MODULUS, layout_for
from hansa.secure_agg.participant import UsedKeys

STATE_TAG, PREVIOUS = b"s" * 32, b"p" * 32


def test_steps_out_of_order_are_refused(consortium):
    house = consortium()
    member = house.member("bank-000")
    levels = np.zeros(5, np.int64)
    with pytest.raises(OutOfOrder):
        member.start([])
    with pytest.raises(OutOfOrder):
        member.protect(levels, STATE_TAG, PREVIOUS)
    with pytest.raises(OutOfOrder):
        member.open([], [])
    member.advertise()
    with pytest.raises(OutOfOrder):
        member.advertise()
    for early in (lambda: member.transcript(levels), lambda: member.confirm(STATE_TAG)):
        with pytest.raises(OutOfOrder):
            early()
    with pytest.raises(OutOfOrder):
        member.protect(levels, STATE_TAG, PREVIOUS)


def test_a_member_needs_its_own_roster_and_layout(consortium, seeded_bytes):
    house = consortium()
    with pytest.raises(UnknownSender):
        house.member("bank-999", identity=house.identities["bank-000"], used_keys=UsedKeys())
    with pytest.raises(OwnKeyMismatch):
        house.member("bank-000", identity=Identity.generate(seeded_bytes("other")))
    with pytest.raises(CohortMismatch):
        house.member("bank-000", layout=layout_for(4))


def test_an_attempt_is_entered_once_and_never_after_a_later_one(consortium):
    house = consortium()
    house.member("bank-000", 3, 1).advertise()
    with pytest.raises(PackageReuse):
        house.member("bank-000", 3, 1).advertise()
    for older in ((3, 0), (2, 9), (0, 0)):
        with pytest.raises(StaleRound):
            house.member("bank-000", *older).advertise()
    house.member("bank-000", 3, 2).advertise()
    house.member("bank-000", 4, 0).advertise()


def _keys(house, round_index=1, attempt=0):
    members = {name: house.member(name, round_index, attempt) for name in house.ids}
    return members, {name: member.advertise() for name, member in members.items()}


def test_a_cohort_is_refused_unless_it_is_exactly_the_roster(consortium, seeded_bytes):
    house = consortium(4)
    members, keys = _keys(house)
    victim, signed = members["bank-000"], list(keys.values())
    body = open_signed(keys["bank-001"], RoundKey, house.roster)
    stranger = Identity.generate(seeded_bytes("stranger"))

    def resigned(identity, **changes):
        return sign_message(identity, replace(body, **changes))

    mallory = house.identities["bank-001"]
    envelope = Envelope.decode(keys["bank-001"])
    swapped = replace(envelope, body=replace(body, public_key=RoundSecret().public).encode())
    cases = {
        CohortMismatch: signed[:3],
        DuplicateMember: [*signed, signed[1]],
        BadSignature: [signed[0], swapped.encode(), *signed[2:]],
        UnknownSender: [*signed, resigned(stranger, sender="bank-999")],
        WrongSession: [signed[0], resigned(mallory, session=b"X" * 16), *signed[2:]],
        StaleRound: [signed[0], resigned(mallory, round=0), *signed[2:]],
        MalformedMessage: [signed[0], signed[1] + b"\x00", *signed[2:]],
        OwnKeyMismatch: [
            sign_message(
                house.identities["bank-000"],
                replace(body, sender="bank-000", public_key=RoundSecret().public),
            ),
            *signed[1:],
        ],
        PackageReuse: [
            signed[0],
            resigned(mallory, public_key=open_signed(signed[0], RoundKey, house.roster).public_key),
            *signed[2:],
        ],
    }
    for error, wrong in cases.items():
        with pytest.raises(error):
            victim.start(wrong)
    with pytest.raises(BadSignature):  # a sybil under a member's name
        victim.start([signed[0], resigned(stranger), *signed[2:]])
    with pytest.raises(StaleRound):
        victim.start([signed[0], resigned(mallory, attempt=1), *signed[2:]])
    victim.start(signed)  # none of the refused cohorts has used the key up
    with pytest.raises(PackageReuse):
        victim.start(signed)


def test_masks_cover_one_upload_and_the_round_key_is_gone(consortium):
    house = consortium()
    members = house.started()
    member = members["bank-000"]
    with pytest.raises(UpdateOutOfRange):
        member.protect(np.array([128]), STATE_TAG, PREVIOUS)
    with pytest.raises(UpdateShapeMismatch):
        member.protect(np.array([1.0]), STATE_TAG, PREVIOUS)
    assert member._secret._private is not None
    member.protect(np.array([5]), STATE_TAG, PREVIOUS)
    assert member._secret._private is None
    with pytest.raises(UploadReuse):
        member.protect(np.array([5]), STATE_TAG, PREVIOUS)
    # An upload that fails after the masks were drawn is not tried again under the same masks either.
    other = members["bank-001"]
    with pytest.raises(MalformedMessage):
        other.protect(np.array([5]), b"short", PREVIOUS)
    with pytest.raises(UploadReuse):
        other.protect(np.array([5]), STATE_TAG, PREVIOUS)


def test_a_peer_with_a_low_order_key_gets_no_upload(consortium):
    house = consortium()
    members, keys = _keys(house)
    body = open_signed(keys["bank-001"], RoundKey, house.roster)
    keys["bank-001"] = sign_message(house.identities["bank-001"], replace(body, public_key=bytes(32)))
    members["bank-000"].start(list(keys.values()))
    with pytest.raises(MalformedMessage, match="bank-001"):
        members["bank-000"].protect(np.array([5]), STATE_TAG, PREVIOUS)
    assert members["bank-000"]._secret._private is None


def test_a_round_shows_no_secret(consortium):
    house = consortium()
    member = house.started()["bank-000"]
    text = repr(member) + repr(member._secret) + repr(house.he_key) + repr(house.identities["bank-000"])
    for secret in (
        member._secret._private.private_bytes_raw(),
        house.identities["bank-000"].export(),
        house.he_key.export()[40:72],
    ):
        assert secret.hex()[:8] not in text
    assert "bank-000" in text
    assert "started" in text


# -- opening -----------------------------------------------------------------------------------------------


@pytest.fixture
def closed_round(consortium):
    """A finished round of three: (house, members, headers by id, aggregate)."""
    house = consortium()
    members, uploads = house.protected(house.levels(100))
    aggregate = house.aggregator(uploads).aggregate()
    return house, members, {name: header for name, (header, _) in uploads.items()}, aggregate


def _refused(error, member, headers, aggregate):
    with pytest.raises(error):
        member.open(headers, aggregate)
    with pytest.raises(OutOfOrder):  # a round is opened once, so a failed opening answers no second question
        member.open(headers, aggregate)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (CohortMismatch, {"cohort_hash": bytes(32)}),
        (HeParameterMismatch, {"he_key_id": bytes(32)}),
        (ModelDivergence, {"state_tag": bytes(32)}),
        (ModelDivergence, {"previous_transcript": bytes(32)}),
        (CiphertextSizeMismatch, {"ciphertext_count": 2}),
        (StaleRound, {"round": 2}),
        (StaleRound, {"attempt": 1}),
        (WrongSession, {"session": bytes(16)}),
        (WrongSession, {"study": bytes(32)}),
    ],
)
def test_a_member_that_disagrees_is_found_before_decryption(closed_round, monkeypatch, error, changes):
    house, members, headers, aggregate = closed_round
    body = open_signed(headers["bank-001"], UploadHeader, house.roster)
    headers["bank-001"] = sign_message(house.identities["bank-001"], replace(body, **changes))
    monkeypatch.setattr(HeKey, "decrypt", lambda *_: pytest.fail("decrypted before the headers were checked"))
    _refused(error, members["bank-000"], list(headers.values()), aggregate)


@pytest.mark.parametrize("case", ["missing", "twice", "altered", "own", "forged", "short", "long", "cut"])
def test_a_wrong_set_of_headers_or_ciphertexts_is_refused(closed_round, case):
    house, members, headers, aggregate = closed_round
    signed = list(headers.values())
    body = open_signed(signed[0], UploadHeader, house.roster)
    own = sign_message(house.identities["bank-000"], replace(body, ciphertext_list_hash=bytes(32)))
    envelope = Envelope.decode(signed[1])
    forged = replace(envelope, body=envelope.body.replace(STATE_TAG, bytes(32))).encode()
    error, wrong, ciphertexts = {
        "missing": (CohortMismatch, signed[:2], aggregate),
        "twice": (DuplicateMember, [*signed, signed[2]], aggregate),
        "altered": (MalformedMessage, [signed[0], signed[1][:-1], signed[2]], aggregate),
        "own": (AggregateHashMismatch, [own, *signed[1:]], aggregate),
        "forged": (BadSignature, [signed[0], forged, signed[2]], aggregate),
        "short": (CiphertextSizeMismatch, signed, []),
        "long": (CiphertextSizeMismatch, signed, aggregate * 2),
        "cut": (CiphertextSizeMismatch, signed, [aggregate[0][:-1]]),
    }[case]
    _refused(error, members["bank-000"], wrong, ciphertexts)


def test_an_aggregate_that_is_not_the_sum_is_refused(consortium, he_key):
    house = consortium()
    for attempt, case in enumerate(("omit", "twice", "fresh", "other key", "probe", "noise", "transparent")):
        members, uploads = house.protected(house.levels(100), 1, attempt)
        parts = [ciphertexts[0] for _, ciphertexts in uploads.values()]
        zeros = np.zeros(4096, dtype=np.uint64)
        probe = zeros.copy()
        probe[0] = bfv._scheme().ring.data_prime // PLAIN_MODULUS  # decrypts to the secret key itself
        noise = np.random.default_rng(0).integers(0, 2**59, (2, 4096)).astype(np.uint64)
        error, aggregate = {
            "omit": (AggregateRangeViolation, _add(parts[:2])),
            "twice": (AggregateRangeViolation, _add([*parts, parts[1]])),
            "fresh": (AggregateRangeViolation, _add([he_key.encrypt(zeros)])),
            "other key": (AggregateRangeViolation, _add([HeKey.generate().encrypt(zeros)])),
            "probe": (AggregateRangeViolation, pack_coefficients(np.concatenate([zeros, probe]))),
            "noise": (AggregateRangeViolation, pack_coefficients(noise.reshape(-1))),
            "transparent": (MalformedCiphertext, pack_coefficients(np.concatenate([probe, zeros]))),
        }[case]
        headers = [header for header, _ in uploads.values()]
        _refused(error, members["bank-000"], headers, [aggregate])


def _add(ciphertexts):
    total = CiphertextSum()
    for ciphertext in ciphertexts:
        total.add(ciphertext)
    return total.serialise()


def test_flipped_high_bits_of_an_aggregate_are_never_accepted(consortium):
    house = consortium()
    generator = np.random.default_rng(5)
    for attempt in range(20):
        members, uploads = house.protected(house.levels(100), 1, attempt)
        (aggregate,) = house.aggregator(uploads, 1, attempt).aggregate()
        headers = [header for header, _ in uploads.values()]
        coefficients = unpack_coefficients(aggregate)
        coefficients[generator.integers(8192)] ^= np.uint64(1) << np.uint64(generator.integers(20, 59))
        _refused(
            (AggregateRangeViolation, MalformedCiphertext),
            members["bank-000"],
            headers,
            [pack_coefficients(coefficients)],
        )


def test_results_that_differ_are_found(closed_round):
    house, members, headers, aggregate = closed_round
    for member in members.values():
        member.open(list(headers.values()), aggregate)
    results = [member.confirm(b"n" * 32) for member in members.values()]
    verify_results(results, house.roster, 1, 0)
    with pytest.raises(ModelDivergence, match="bank-002"):
        verify_results([*results[:2], members["bank-002"].confirm(b"m" * 32)], house.roster, 1, 0)
    with pytest.raises(CohortMismatch):
        verify_results(results[:2], house.roster, 1, 0)
    with pytest.raises(DuplicateMember):
        verify_results([*results, results[0]], house.roster, 1, 0)
    with pytest.raises(StaleRound):
        verify_results(results, house.roster, 2, 0)
