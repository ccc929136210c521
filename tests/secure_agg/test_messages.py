from dataclasses import replace

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import (
    BadSignature,
    CohortTooSmall,
    DuplicateMember,
    MalformedMessage,
    MessageTooLarge,
    UnknownSender,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg import messages
from hansa.secure_agg.identity import Identity, Roster, verify_signature
from hansa.secure_agg.messages import (
    Consent,
    Deal,
    Envelope,
    Join,
    Package,
    Release,
    RoundResult,
    UploadHeader,
    Void,
    Vote,
    open_signed,
    sign_message,
)

BODY = {
    "session": st.binary(min_size=16, max_size=16),
    "study": st.binary(min_size=32, max_size=32),
    "epoch": st.integers(0, 2**32 - 1),
    "sender": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
}
HEAD = BODY | {"round": st.integers(0, 2**32 - 1), "attempt": st.integers(0, 2**16 - 1)}
HASH = st.binary(min_size=32, max_size=32)


def _repeated(length, most=5):
    """Bytes of 0 to `most` items of a length; long ones are not drawn byte by byte."""
    return st.builds(
        lambda byte, items: byte * length * items, st.binary(min_size=1, max_size=1), st.integers(0, most)
    )


def _long(length):
    return st.binary(min_size=1, max_size=1).map(lambda byte: byte * length)


ANY_RECORD = st.one_of(
    st.builds(Join, **BODY, kem_key=_long(1216), channel_key=HASH, certificate=st.binary(max_size=600)),
    st.builds(
        Deal,
        **BODY,
        he_key_id=HASH,
        group_commitment=HASH,
        envelopes=_repeated(1168),
        sealed_he_key=_long(61456),
    ),
    st.builds(Vote, **BODY, manifest_hash=HASH),
    st.builds(
        Package,
        **BODY,
        round=HEAD["round"],
        number=st.integers(1, 2**32 - 1),
        package_id=st.binary(min_size=16, max_size=16),
        mask_key=HASH,
        seed_commitment=st.one_of(st.just(b""), HASH),
        leaf_root=st.one_of(st.just(b""), HASH),
    ),
    st.builds(
        UploadHeader,
        **HEAD,
        cohort_hash=HASH,
        he_key_id=HASH,
        state_tag=HASH,
        previous_transcript=HASH,
        ciphertext_count=st.integers(1, 2**16),
        ciphertext_list_hash=HASH,
        ledger_head=st.binary(min_size=40, max_size=40),
    ),
    st.builds(Consent, **HEAD, cohort_hash=HASH, roster_hash=HASH),
    st.builds(
        Release,
        **HEAD,
        cohort_hash=HASH,
        roster_hash=HASH,
        sealed_shares=st.binary(min_size=17, max_size=200),
    ),
    st.builds(RoundResult, **HEAD, cohort_hash=HASH, roster_hash=HASH, state_tag=HASH, transcript=HASH),
    st.builds(Void, **HEAD, cohort_hash=HASH, roster_hash=HASH, transcript=HASH),
    st.builds(
        Envelope,
        type=st.just("vote"),
        sender=HEAD["sender"],
        body=st.binary(max_size=1024),
        signature=st.binary(min_size=64, max_size=64),
    ),
)
KINDS = [Join, Deal, Vote, Package, UploadHeader, Consent, Release, RoundResult, Void]
GOLDEN_SIGNATURE = (
    "034c1eb59bc9475663a33777c620de83e9e797668ed44fdc12b7547f6ffe99f8"
    "49357c6043a0004fdb961bb96b5e1908d6972e3586e95d6a0ae152b3dcdf060b"
)
KEY = Vote(session=b"S" * 16, study=b"T" * 32, epoch=1, sender="bank-000", manifest_hash=b"k" * 32)


@given(ANY_RECORD)
def test_decode_of_encode_is_the_message(record):
    assert type(record).decode(record.encode()) == record


@given(ANY_RECORD, st.data())
def test_changed_bytes_decode_only_where_they_are_the_encoding_of_what_comes_out(record, data):
    encoded = bytearray(record.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = type(record).decode(bytes(encoded))
    except MalformedMessage:
        return
    assert decoded.encode() == bytes(encoded)


@settings(max_examples=300)
@given(st.binary(max_size=64), st.sampled_from([Envelope, *KINDS]))
def test_other_bytes_raise_malformed_message_and_nothing_else(data, kind):
    for prefix in (b"", b"\xa6", b"\xa4"):
        with pytest.raises(MalformedMessage):
            kind.decode(prefix + data)


def _map(**changes):
    values = {name: getattr(KEY, name) for name in ("session", "study", "epoch", "sender", "manifest_hash")}
    return {name: value for name, value in (values | changes).items() if value is not ...}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(KEY.encode() + b"\x00", id="trailing byte"),
        pytest.param(KEY.encode()[:-1], id="truncated"),
        pytest.param(b"\xbf" + KEY.encode()[1:] + b"\xff", id="indefinite map"),
        pytest.param(cbor2.dumps(dict(reversed(_map().items()))), id="keys out of order"),
        pytest.param(KEY.encode().replace(b"eepoch\x01", b"eepoch\x18\x01"), id="long integer"),
        pytest.param(b"\xa6" + KEY.encode()[1:] + b"eepoch\x01", id="duplicate key"),
        pytest.param(cbor2.dumps(_map(extra=1), canonical=True), id="extra key"),
        pytest.param(cbor2.dumps(_map(epoch=...), canonical=True), id="missing key"),
        pytest.param(cbor2.dumps(_map(epoch=True), canonical=True), id="bool for integer"),
        pytest.param(cbor2.dumps(_map(epoch=1.0), canonical=True), id="float for integer"),
        pytest.param(cbor2.dumps(_map(epoch=-1), canonical=True), id="negative"),
        pytest.param(cbor2.dumps(_map(epoch=2**32), canonical=True), id="too large"),
        pytest.param(cbor2.dumps(_map(epoch=2**70), canonical=True), id="big integer"),
        pytest.param(cbor2.dumps(_map(epoch=None), canonical=True), id="null"),
        pytest.param(cbor2.dumps(_map(sender=b"bank-000"), canonical=True), id="bytes for text"),
        pytest.param(cbor2.dumps(_map(sender="bank 000"), canonical=True), id="space in id"),
        pytest.param(cbor2.dumps(_map(sender="bank-000\n"), canonical=True), id="newline in id"),
        pytest.param(cbor2.dumps(_map(sender="b" * 65), canonical=True), id="long id"),
        pytest.param(cbor2.dumps(_map(study="T" * 32), canonical=True), id="text for bytes"),
        pytest.param(cbor2.dumps(_map(study=b"T" * 31), canonical=True), id="short bytes"),
        pytest.param(cbor2.dumps(_map(study=[1]), canonical=True), id="nested"),
        pytest.param(cbor2.dumps(_map(study=cbor2.CBORTag(999, b"T" * 32))), id="tag"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(55799, _map())), id="tagged map"),
        pytest.param(cbor2.dumps([1, 2]), id="list"),
        pytest.param(b"\xd8\x23\x63a*a", id="regular expression"),
        pytest.param(b"\xa1" * 500, id="deep nesting"),
        pytest.param(b"\xa1\x61a\x5b\x7f" + b"\xff" * 7, id="huge length"),
        pytest.param(b"\xa0" + bytes(2048), id="longer than any vote"),
    ],
)
def test_anything_but_the_deterministic_encoding_is_refused(data):
    with pytest.raises(MalformedMessage):
        Vote.decode(data)


def test_a_record_cannot_be_made_with_a_wrong_field():
    with pytest.raises(MalformedMessage, match="body"):
        Envelope(type="vote", sender="a", body=bytes(messages.MAXIMUM_DEAL_BYTES + 1), signature=bytes(64))
    with pytest.raises(MalformedMessage, match="manifest_hash"):
        replace(KEY, manifest_hash=b"")
    head = {"session": b"S" * 16, "study": b"T" * 32, "epoch": 1, "sender": "a"}
    for certificate in (bytes(2049), "c"):
        with pytest.raises(MalformedMessage, match="certificate"):
            Join(**head, kem_key=bytes(1216), channel_key=bytes(32), certificate=certificate)
    header = head | {"round": 1, "attempt": 0}
    hashes = {"cohort_hash": bytes(32), "roster_hash": bytes(32)}
    for shares in (bytes(16), bytes(16 + 32 * 258 + 1), "x" * 32):
        with pytest.raises(MalformedMessage, match="sealed_shares"):
            Release(**header, **hashes, sealed_shares=shares)
    commitments = {"seed_commitment": bytes(32), "leaf_root": bytes(32)}
    package = header | {"number": 1, "package_id": bytes(16), "mask_key": bytes(32)} | commitments
    del package["attempt"]
    Package(**package)
    for name in commitments:
        Package(**package | {name: b""})  # strict mode
        for length in (1, 16, 31, 33, 64):
            with pytest.raises(MalformedMessage, match=name):
                Package(**package | {name: bytes(length)})


def test_keys_are_short_enough_that_both_orders_of_map_keys_agree():
    names = [name for kind in (Envelope, *KINDS) for name in kind.__dataclass_fields__]
    assert max(len(name) for name in names) < 24
    encoded = [cbor2.dumps(name) for name in names]
    assert sorted(encoded) == sorted(encoded, key=lambda data: (len(data), data))


def test_the_bytes_of_a_vote_are_frozen():
    assert KEY.encode().hex() == (
        "a56565706f63680165737475647958205454545454545454545454545454545454545454545454545454545454545454"
        "6673656e6465726862616e6b2d3030306773657373696f6e5053535353535353535353535353535353"
        "6d6d616e69666573745f6861736858206b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
    )


# -- identities and signed messages -----------------------------------------------------------------------


def _identity(members, name="bank-000"):
    return members.identities[name]


def test_a_signed_message_opens_to_its_body(house):
    members = house(4)
    assert open_signed(sign_message(_identity(members), KEY), Vote, members.roster, 1) == KEY


def test_a_forged_message_is_refused(house):
    members = house(4)
    identity = _identity(members)
    envelope = Envelope.decode(sign_message(identity, KEY))

    def changed(**changes):
        values = {name: getattr(envelope, name) for name in ("type", "sender", "body", "signature")}
        return Envelope(**(values | changes)).encode()

    other = KEY.encode().replace(b"k" * 32, b"j" * 32)
    with pytest.raises(BadSignature):
        open_signed(changed(body=other), Vote, members.roster, 1)
    with pytest.raises(BadSignature):
        open_signed(changed(sender="bank-001"), Vote, members.roster, 1)
    with pytest.raises(BadSignature):
        open_signed(changed(signature=bytes(64)), Vote, members.roster, 1)
    with pytest.raises(UnknownSender):
        open_signed(changed(sender="bank-999"), Vote, members.roster, 1)
    with pytest.raises(MalformedMessage, match="where"):
        open_signed(changed(), UploadHeader, members.roster, 1)
    # A signature over one type is not one over another, even over the same body.
    with pytest.raises(BadSignature):
        open_signed(changed(type="round-result"), RoundResult, members.roster, 1)
    body = KEY.encode().replace(b"bank-000", b"bank-001")
    signature = identity.sign("vote", body)
    with pytest.raises(MalformedMessage, match="names"):
        open_signed(changed(body=body, signature=signature), Vote, members.roster, 1)


def test_a_body_is_not_decoded_before_its_signature_is_verified(house):
    members = house(4)
    garbage = Envelope(type="vote", sender="bank-000", body=b"\xff", signature=bytes(64)).encode()
    with pytest.raises(BadSignature):
        open_signed(garbage, Vote, members.roster, 1)


@pytest.mark.parametrize("field", ["session", "study"])
def test_a_message_of_another_session_or_study_is_refused(house, field):
    members = house(4)
    encoded = KEY.encode().replace(b"S" * 16, b"X" * 16) if field == "session" else None
    other = Vote.decode(encoded or KEY.encode().replace(b"T" * 32, b"X" * 32))
    with pytest.raises(WrongSession):
        open_signed(sign_message(_identity(members), other), Vote, members.roster, 1)


def test_a_message_of_another_epoch_or_too_long_is_refused(house):
    members = house(4)
    signed = sign_message(_identity(members), KEY)
    with pytest.raises(WrongEpoch):
        open_signed(signed, Vote, members.roster, 2)
    with pytest.raises(MessageTooLarge):
        open_signed(signed + bytes(2000), Vote, members.roster, 1)
    with pytest.raises(MessageTooLarge):
        messages.message_type(bytes(messages.MAXIMUM_DEAL_BYTES + 300))


def test_an_identity_shows_no_secret_and_survives_export(seeded_bytes):
    identity = Identity.generate(seeded_bytes("identity"))
    secret = identity.export()
    assert len(secret) == 32
    for text in (repr(identity), str(identity)):
        assert secret.hex()[:8] not in text
        assert identity.public.hex()[:16] in text
    assert Identity.load(secret).public == identity.public
    with pytest.raises(MalformedMessage):
        Identity.load(secret[:31])
    assert len(identity.sign("round-key", b"body")) == 64
    assert identity.sign("round-key", b"body") != identity.sign("round-result", b"body")


def test_signatures_are_frozen():
    # The key pair of RFC 8032 section 7.1, test 1.
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity.load(secret)
    assert identity.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.sign("round-key", b"body").hex() == (
        "034c1eb59bc9475663a33777c620de83e9e797668ed44fdc12b7547f6ffe99f8"
        "49357c6043a0004fdb961bb96b5e1908d6972e3586e95d6a0ae152b3dcdf060b"
    )


def test_a_roster_is_sorted_unique_and_large_enough(house):
    members = house(4)
    entries = members.roster.members
    ids = {"session_id": b"S" * 16, "study_id": b"T" * 32}
    with pytest.raises(CohortTooSmall):
        Roster(**ids, members=entries[:2])
    with pytest.raises(DuplicateMember):
        Roster(**ids, members=(*entries[:3], entries[2]))
    with pytest.raises(DuplicateMember):
        Roster(**ids, members=(*entries[:3], ("bank-009", entries[0][1])))
    with pytest.raises(MalformedMessage, match="sorted"):
        Roster(**ids, members=entries[::-1])
    with pytest.raises(MalformedMessage):
        Roster(**ids, members=(*entries[:3], ("bank 9", bytes(32))))
    with pytest.raises(MalformedMessage):
        Roster(**ids, members=(*entries[:3], ("bank-009", bytes(31))))
    with pytest.raises(MalformedMessage):
        Roster(session_id=b"", study_id=b"T" * 32, members=entries)
    with pytest.raises(UnknownSender):
        verify_signature(members.roster, "bank-999", "round-key", b"", bytes(64))


def test_the_largest_messages_fit_their_bounds(house):
    head = {"session": b"S" * 16, "study": b"T" * 32, "epoch": 2**32 - 1, "sender": "b" * 64}
    place = {"round": 2**32 - 1, "attempt": 2**16 - 1}
    hashes = {"cohort_hash": bytes(32), "roster_hash": bytes(32)}
    largest = [
        Join(**head, kem_key=bytes(1216), channel_key=bytes(32), certificate=bytes(2048)),
        Deal(
            **head,
            he_key_id=bytes(32),
            group_commitment=bytes(32),
            envelopes=bytes(1168 * 258),
            sealed_he_key=bytes(61456),
        ),
        Vote(**head, manifest_hash=bytes(32)),
        Package(
            **head,
            round=2**32 - 1,
            number=2**32 - 1,
            package_id=bytes(16),
            mask_key=bytes(32),
            seed_commitment=bytes(32),
            leaf_root=bytes(32),
        ),
        UploadHeader(
            **head,
            **place,
            cohort_hash=bytes(32),
            he_key_id=bytes(32),
            state_tag=bytes(32),
            previous_transcript=bytes(32),
            ciphertext_count=2**16,
            ciphertext_list_hash=bytes(32),
            ledger_head=bytes(40),
        ),
        Release(**head, **place, **hashes, sealed_shares=bytes(16 + 32 * 258)),
        RoundResult(**head, **place, **hashes, state_tag=bytes(32), transcript=bytes(32)),
    ]
    for body in largest:
        assert len(body.encode()) <= body.MAXIMUM_BYTES
        assert type(body).decode(body.encode()) == body
        assert len(sign_message(_identity(house(4)), body)) <= messages.ENVELOPE_BYTES + body.MAXIMUM_BYTES
