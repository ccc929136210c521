import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import (
    BadSignature,
    CohortTooSmall,
    DuplicateMember,
    MalformedMessage,
    UnknownSender,
    WrongSession,
)
from hansa.secure_agg import messages
from hansa.secure_agg.identity import Identity, Roster, verify_signature
from hansa.secure_agg.messages import (
    Envelope,
    RoundKey,
    RoundResult,
    UploadHeader,
    open_signed,
    sign_message,
)

HEAD = {
    "session": st.binary(min_size=16, max_size=16),
    "study": st.binary(min_size=32, max_size=32),
    "round": st.integers(0, 2**32 - 1),
    "attempt": st.integers(0, 2**16 - 1),
    "sender": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
}
HASH = st.binary(min_size=32, max_size=32)
ANY_RECORD = st.one_of(
    st.builds(RoundKey, **HEAD, public_key=HASH),
    st.builds(
        UploadHeader,
        **HEAD,
        cohort_hash=HASH,
        he_key_id=HASH,
        state_tag=HASH,
        previous_transcript=HASH,
        ciphertext_count=st.integers(1, 2**16),
        ciphertext_list_hash=HASH,
    ),
    st.builds(RoundResult, **HEAD, cohort_hash=HASH, roster_hash=HASH, state_tag=HASH),
    st.builds(
        Envelope,
        type=st.just("round-key"),
        sender=HEAD["sender"],
        body=st.binary(max_size=1024),
        signature=st.binary(min_size=64, max_size=64),
    ),
)
GOLDEN_SIGNATURE = (
    "034c1eb59bc9475663a33777c620de83e9e797668ed44fdc12b7547f6ffe99f8"
    "49357c6043a0004fdb961bb96b5e1908d6972e3586e95d6a0ae152b3dcdf060b"
)
KEY = RoundKey(
    session=b"S" * 16, study=b"T" * 32, round=1, attempt=0, sender="bank-000", public_key=b"k" * 32
)


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
@given(st.binary(max_size=64), st.sampled_from([Envelope, RoundKey, UploadHeader, RoundResult]))
def test_other_bytes_raise_malformed_message_and_nothing_else(data, kind):
    for prefix in (b"", b"\xa6", b"\xa4"):
        with pytest.raises(MalformedMessage):
            kind.decode(prefix + data)


def _map(**changes):
    values = {
        name: getattr(KEY, name) for name in ("session", "study", "round", "attempt", "sender", "public_key")
    }
    return {name: value for name, value in (values | changes).items() if value is not ...}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(KEY.encode() + b"\x00", id="trailing byte"),
        pytest.param(KEY.encode()[:-1], id="truncated"),
        pytest.param(b"\xbf" + KEY.encode()[1:] + b"\xff", id="indefinite map"),
        pytest.param(cbor2.dumps(dict(reversed(_map().items()))), id="keys out of order"),
        pytest.param(KEY.encode().replace(b"eround\x01", b"eround\x18\x01"), id="long integer"),
        pytest.param(b"\xa7" + KEY.encode()[1:] + b"eround\x01", id="duplicate key"),
        pytest.param(cbor2.dumps(_map(extra=1), canonical=True), id="extra key"),
        pytest.param(cbor2.dumps(_map(attempt=...), canonical=True), id="missing key"),
        pytest.param(cbor2.dumps(_map(round=True), canonical=True), id="bool for integer"),
        pytest.param(cbor2.dumps(_map(round=1.0), canonical=True), id="float for integer"),
        pytest.param(cbor2.dumps(_map(round=-1), canonical=True), id="negative"),
        pytest.param(cbor2.dumps(_map(round=2**32), canonical=True), id="too large"),
        pytest.param(cbor2.dumps(_map(round=2**70), canonical=True), id="big integer"),
        pytest.param(cbor2.dumps(_map(round=None), canonical=True), id="null"),
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
        pytest.param(b"\xa0" + bytes(2048), id="too long"),
    ],
)
def test_anything_but_the_deterministic_encoding_is_refused(data):
    with pytest.raises(MalformedMessage):
        RoundKey.decode(data)


def test_a_record_cannot_be_made_with_a_wrong_field():
    with pytest.raises(MalformedMessage, match="body"):
        Envelope(type="round-key", sender="a", body=bytes(1025), signature=bytes(64))
    with pytest.raises(MalformedMessage, match="public_key"):
        RoundKey(session=b"S" * 16, study=b"T" * 32, round=1, attempt=0, sender="a", public_key=b"")


def test_keys_are_short_enough_that_both_orders_of_map_keys_agree():
    names = [
        name for kind in (Envelope, RoundKey, UploadHeader, RoundResult) for name in kind.__dataclass_fields__
    ]
    assert max(len(name) for name in names) < 24
    encoded = [cbor2.dumps(name) for name in names]
    assert sorted(encoded) == sorted(encoded, key=lambda data: (len(data), data))


def test_the_bytes_of_a_round_key_are_frozen():
    assert KEY.encode().hex() == (
        "a665726f756e640165737475647958205454545454545454545454545454545454545454545454545454545454545454"
        "6673656e6465726862616e6b2d30303067617474656d7074006773657373696f6e5053535353535353535353535353535353"
        "6a7075626c69635f6b657958206b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
    )


# -- identities and signed messages -----------------------------------------------------------------------


def _identity(consortium, name="bank-000"):
    return consortium.identities[name]


def test_a_signed_message_opens_to_its_body(consortium):
    house = consortium()
    assert open_signed(sign_message(_identity(house), KEY), RoundKey, house.roster) == KEY


def test_a_forged_message_is_refused(consortium):
    house = consortium()
    identity = _identity(house)
    envelope = Envelope.decode(sign_message(identity, KEY))

    def changed(**changes):
        values = {name: getattr(envelope, name) for name in ("type", "sender", "body", "signature")}
        return Envelope(**(values | changes)).encode()

    other = KEY.encode().replace(b"k" * 32, b"j" * 32)
    with pytest.raises(BadSignature):
        open_signed(changed(body=other), RoundKey, house.roster)
    with pytest.raises(BadSignature):
        open_signed(changed(sender="bank-001"), RoundKey, house.roster)
    with pytest.raises(BadSignature):
        open_signed(changed(signature=bytes(64)), RoundKey, house.roster)
    with pytest.raises(UnknownSender):
        open_signed(changed(sender="bank-999"), RoundKey, house.roster)
    with pytest.raises(MalformedMessage, match="where"):
        open_signed(changed(), UploadHeader, house.roster)
    # A signature over one type is not one over another, even over the same body.
    with pytest.raises(BadSignature):
        open_signed(changed(type="round-result"), RoundResult, house.roster)
    body = KEY.encode().replace(b"bank-000", b"bank-001")
    signature = identity.sign("round-key", body)
    with pytest.raises(MalformedMessage, match="names"):
        open_signed(changed(body=body, signature=signature), RoundKey, house.roster)


def test_a_body_is_not_decoded_before_its_signature_is_verified(consortium):
    house = consortium()
    garbage = Envelope(type="round-key", sender="bank-000", body=b"\xff", signature=bytes(64)).encode()
    with pytest.raises(BadSignature):
        open_signed(garbage, RoundKey, house.roster)


@pytest.mark.parametrize("field", ["session", "study"])
def test_a_message_of_another_session_or_study_is_refused(consortium, field):
    house = consortium()
    encoded = KEY.encode().replace(b"S" * 16, b"X" * 16) if field == "session" else None
    other = RoundKey.decode(encoded or KEY.encode().replace(b"T" * 32, b"X" * 32))
    with pytest.raises(WrongSession):
        open_signed(sign_message(_identity(house), other), RoundKey, house.roster)


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
    assert identity.sign("round-key", b"body").hex() == GOLDEN_SIGNATURE


def test_a_roster_is_sorted_unique_and_large_enough(consortium):
    house = consortium(4)
    members = house.roster.members
    ids = {"session_id": b"S" * 16, "study_id": b"T" * 32}
    with pytest.raises(CohortTooSmall):
        Roster(**ids, members=members[:2])
    with pytest.raises(DuplicateMember):
        Roster(**ids, members=(*members[:3], members[2]))
    with pytest.raises(DuplicateMember):
        Roster(**ids, members=(*members[:3], ("bank-009", members[0][1])))
    with pytest.raises(MalformedMessage, match="sorted"):
        Roster(**ids, members=members[::-1])
    with pytest.raises(MalformedMessage):
        Roster(**ids, members=(*members[:3], ("bank 9", bytes(32))))
    with pytest.raises(MalformedMessage):
        Roster(**ids, members=(*members[:3], ("bank-009", bytes(31))))
    with pytest.raises(MalformedMessage):
        Roster(session_id=b"", study_id=b"T" * 32, members=members)
    with pytest.raises(UnknownSender):
        verify_signature(house.roster, "bank-999", "round-key", b"", bytes(64))


def test_a_message_fits_the_bounds(consortium):
    house = consortium()
    name = "b" * 64
    header = UploadHeader(
        session=b"S" * 16,
        study=b"T" * 32,
        round=2**32 - 1,
        attempt=2**16 - 1,
        sender=name,
        cohort_hash=bytes(32),
        he_key_id=bytes(32),
        state_tag=bytes(32),
        previous_transcript=bytes(32),
        ciphertext_count=2**16,
        ciphertext_list_hash=bytes(32),
    )
    assert len(header.encode()) < messages.MAXIMUM_BODY_BYTES
    assert len(sign_message(_identity(house), header)) < messages.MAXIMUM_MESSAGE_BYTES
