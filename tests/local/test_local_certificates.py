"""The embedded consortium runs with certificates on."""

from hansa.local import LocalConsortium
from hansa.local_grid import from_bytes, to_bytes
from hansa.local_seats import Member
from hansa.participant.policy import Policy
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.messages import Join, open_signed


def test_members_join_with_certificates_of_an_authority_whose_key_is_nowhere_also_after_a_restart(
    tiny, tiny_study, tiny_base, tiny_tables
):
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=tiny_study.privacy.epsilon)
    members = [Member(name=name, rows=tiny_tables[name].rows, policy=policy) for name in tiny.NAMES]
    crossed = []
    with LocalConsortium(
        tiny_study,
        members,
        make_model=tiny_base.model,
        layout=tiny_base.layout,
        workers=2,
        tap=lambda direction, data: crossed.append((direction, from_bytes(data))),
    ) as consortium:
        consortium.run(lambda _: None)
        roster = consortium._service._roster
        assert all(not isinstance(value, CertificateAuthority) for value in vars(consortium).values())
        consortium._restart("bank-1")
        asked = next(message for _, message in crossed if message.metadata.message_type == "query.join")
        asked.content["request"]["round"] = 2
        again = from_bytes(consortium._host("bank-1").call("message", "bank-1", to_bytes(asked)))
    replies = [message.content["reply"] for direction, message in crossed if direction == "from node"]
    joins = [open_signed(reply["join"], Join, roster, 1) for reply in replies if "join" in reply]
    for join in joins:
        roster.verify_certificate(join.sender, join.certificate, utc_now(), None)
    certificates = {join.sender: join.certificate for join in joins}
    assert (tuple(sorted(certificates)), len(set(certificates.values()))) == (tiny.NAMES, 4)
    later = open_signed(again.content["reply"]["join"], Join, roster, 2)
    assert later.certificate == certificates["bank-1"]
