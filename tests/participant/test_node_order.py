"""A participant takes steps in their order, each once, with the signed messages of its own roster and round."""

import dataclasses

import pytest

from hansa import errors
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import Package, RoundResult, open_signed, sign_message

JUNK = [b"signed"]


def refusals(house, name="bank-1"):
    """Make a check that a step of a member is refused and leaves state, ledger and uploads as they were."""
    node = house.nodes[name]

    def outside():
        return node.state.digest("00"), house.ledgers[name].exists(), len(house.wires[name].sent)

    def refused(kind, step, *values):
        before = outside()
        with pytest.raises(kind):
            getattr(node, step)(*values)
        assert outside() == before

    return refused


def test_the_steps_into_an_epoch_come_in_their_order(house):
    refused, node = refusals(house), house.nodes["bank-1"]
    for step, values in (
        ("deal", [JUNK]),
        ("vote", [JUNK, b"deal"]),
        ("enter", [JUNK]),
        ("train", [1, 0, JUNK, JUNK]),
        ("answer", [1, 0]),
        ("consents", [1, 0, JUNK]),
        ("unmask", [1, 0, JUNK]),
        ("open", [1, 0]),
        ("catch_up", [1, 0, JUNK, JUNK]),
        ("close", [1, 0, JUNK]),
    ):
        refused(errors.OutOfOrder, step, *values)
    joined = node.join(1)
    assert node.join(1) == joined
    refused(errors.OutOfOrder, "deal", JUNK)  # another member deals in epoch 1
    refused(errors.OutOfOrder, "enter", JUNK)
    votes = house.voted()
    refused(errors.OutOfOrder, "train", 1, 0, JUNK, JUNK)
    refused(errors.CohortMismatch, "enter", votes[:3])
    refused(errors.BadSignature, "enter", [votes[0], votes[1], votes[2], votes[3][:-1] + b"x"])
    house.enter()
    refused(errors.WrongEpoch, "join", 1)
    refused(errors.WrongEpoch, "join", 0)


def test_steps_come_in_their_order_and_each_once(house):
    refused = refusals(house)
    packages, shares = house.begin()
    own = shares["bank-1"]
    for wrong, kind in ((0, errors.StaleRound), (2, errors.OutOfOrder), (3, errors.OutOfOrder)):
        refused(kind, "train", wrong, 0, packages, own)
    for step, values in (("answer", []), ("consents", [JUNK]), ("unmask", [JUNK]), ("open", [])):
        refused(errors.OutOfOrder, step, 1, 0, *values)
    refused(errors.OutOfOrder, "close", 1, 0, JUNK)
    for name, node in house.nodes.items():
        node.train(1, 0, packages, shares[name])
    house.service.close()
    sent = list(house.wires["bank-1"].sent)
    house.nodes["bank-1"].train(1, 0, packages, own)  # the same bytes again, whatever the request holds
    assert house.wires["bank-1"].sent == sent + sent
    for at in ((2, 0), (1, 1), (0, 0)):
        for step, values in (("answer", []), ("consents", [JUNK]), ("unmask", [JUNK]), ("open", [])):
            refused(errors.OutOfOrder, step, *at, *values)
    refused(errors.OutOfOrder, "consents", 1, 0, JUNK)  # it has seen no roster
    refused(errors.OutOfOrder, "unmask", 1, 0, JUNK)
    refused(errors.OutOfOrder, "open", 1, 0)  # of strict mode
    releases = [node.answer(1, 0) for node in house.nodes.values()]
    assert house.nodes["bank-1"].answer(1, 0) == releases[0]
    refused(errors.OutOfOrder, "close", 1, 0, JUNK)
    refused(errors.NotEnoughShares, "unmask", 1, 0, releases[:2])
    opened = [node.unmask(1, 0, releases) for node in house.nodes.values()]
    results = [result for result, _ in opened]
    for _, made in opened:
        house.post(made)
    digests = house.digests()
    assert (
        house.nodes["bank-1"].unmask(1, 0, releases)[0] == results[0]
    )  # the same answer, whatever the request holds
    assert house.digests() == digests
    refused(errors.OutOfOrder, "unmask", 1, 1, releases)
    refused(errors.OutOfOrder, "answer", 1, 0)
    packages, shares = house.begin(2)
    refused(errors.StaleRound, "train", 1, 1, packages, shares["bank-1"])
    refused(errors.OutOfOrder, "train", 2, 0, packages, shares["bank-1"])
    refused(errors.OutOfOrder, "close", 2, 0, results)
    for node in house.nodes.values():
        node.close(1, 0, results)
    house.nodes["bank-1"].close(1, 0, results)  # the answer was lost
    refused(errors.CohortMismatch, "close", 1, 0, results[:2])
    refused(errors.StaleRound, "close", 1, 1, results)
    refused(errors.OutOfOrder, "unmask", 1, 0, releases)
    house.close(2)
    packages, shares = house.begin(3)
    refused(errors.OutOfOrder, "train", 3, 0, packages, shares["bank-1"])  # the study has two rounds
    assert len(house.digests()) == 1


def test_strict_mode_has_neither_releases_nor_certificates_and_opens_once(strict_house):
    house, refused = strict_house, refusals(strict_house)
    house.train()
    refused(errors.OutOfOrder, "answer", 1, 0)
    refused(errors.OutOfOrder, "consents", 1, 0, JUNK)
    refused(errors.OutOfOrder, "unmask", 1, 0, JUNK)
    refused(errors.OutOfOrder, "catch_up", 1, 0, house.packages, JUNK)
    results = [node.open(1, 0)[0] for node in house.nodes.values()]
    digests = house.digests()
    assert house.nodes["bank-1"].open(1, 0)[0] == results[0]  # the answer was lost
    assert house.digests() == digests
    for node in house.nodes.values():
        node.close(1, 0, results)
    assert house.nodes["bank-1"].open(1, 0)[0] == results[0]  # of a coordinator that was restarted
    refused(errors.OutOfOrder, "open", 1, 1)
    assert house.digests() == digests


def test_no_attempt_is_entered_after_a_later_one(house):
    packages, shares = house.begin(1, 4)
    node = house.nodes["bank-1"]
    node.train(1, 4, packages, shares["bank-1"])
    packages, shares = house.begin(1, 3)
    for attempt in (0, 3, 4):
        with pytest.raises(errors.StaleRound):
            node.train(1, attempt, packages, shares["bank-1"])


# -- what the coordinator relays ----------------------------------------------------------------------------


def package_cases(house, packages):
    own, second, third, fourth = packages
    body = open_signed(fourth, Package, house.roster, 1)

    def last(identity=house.identities["bank-4"], **changes):
        return [own, second, third, sign_message(identity, dataclasses.replace(body, **changes))]

    of_first = dataclasses.replace(open_signed(own, Package, house.roster, 1), package_id=bytes(16), number=1)
    return [
        (errors.CohortTooSmall, [own, second]),
        (errors.NotInCohort, [second, third, fourth]),
        (errors.DuplicateMember, [own, second, third, fourth, second]),
        (errors.BadSignature, last(Identity.generate())),
        (errors.BadSignature, [own, second, third, fourth[:-1] + bytes([fourth[-1] ^ 1])]),
        (errors.UnknownSender, last(sender="bank-5")),
        (errors.WrongSession, last(session=bytes(16))),
        (errors.WrongSession, last(study=bytes(32))),
        (errors.WrongEpoch, last(epoch=2)),
        (errors.StateRollback, last(round=2)),
        (errors.PackageReuse, last(mask_key=open_signed(third, Package, house.roster, 1).mask_key)),
        (errors.PackageHashMismatch, last(leaf_root=bytes(32))),
        (errors.MalformedMessage, last(leaf_root=b"")),
        (errors.OwnKeyMismatch, [sign_message(house.identities["bank-1"], of_first), second, third, fourth]),
        (errors.MalformedMessage, last(seed_commitment=b"")),
        (errors.MalformedMessage, [own, second, third, b"key"]),
        (errors.MalformedMessage, [own, second, third, bytes(1 << 20)]),
        (errors.MalformedMessage, [own, second, third, b""]),
    ]


def test_packages_that_are_not_the_rosters_for_this_round_are_refused_before_data(houses, tiny):
    house = houses(rows={"bank-1": tiny.Untouchable()})
    packages, shares = house.begin()
    refused, own = refusals(house), shares["bank-1"]
    cases = package_cases(house, packages)
    for kind, shown in cases:
        refused(kind, "train", 1, 0, shown, [own[min(i, 3)] for i in range(len(shown))])
    assert len({kind for kind, _ in cases}) == 12
    refused(errors.CiphertextSizeMismatch, "train", 1, 0, packages, own[:3])
    refused(errors.PackageHashMismatch, "train", 1, 0, packages, [own[0], own[2], own[1], own[3]])
    assert not house.ledgers["bank-1"].exists()
    # Nothing was used up: the right packages are taken, and only then the records are asked for.
    with pytest.raises(AssertionError, match="the records were touched"):
        house.nodes["bank-1"].train(1, 0, packages, own)
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve"]


def test_a_member_with_another_cohort_gets_no_sum_and_its_upload_is_refused(house):
    """The coordinator shows bank-4 another package under the name of a member that it controls."""
    packages, shares = house.begin()
    for name in house.names[:3]:
        house.nodes[name].train(1, 0, packages, shares[name])
    others, other_shares = house.board.take(house.names)
    shown = [packages[0], packages[1], others[2], packages[3]]
    sealed = [other_shares["bank-4"][i] if i == 2 else shares["bank-4"][i] for i in range(4)]
    with pytest.raises(errors.CohortMismatch, match="another cohort"):
        house.nodes["bank-4"].train(1, 0, shown, sealed)
    house.service.close()
    with pytest.raises(errors.OwnUploadMissing):
        house.nodes["bank-4"].answer(1, 0)
    assert all(node.state.round == 0 for node in house.nodes.values())


def test_results_that_are_not_the_rosters_for_this_round_do_not_close_it(house):
    results = house.open()
    body = open_signed(results[3], RoundResult, house.roster, 1)
    node = house.nodes["bank-1"]

    def signed(identity=house.identities["bank-4"], **changes):
        return sign_message(identity, dataclasses.replace(body, **changes))

    for kind, last in (
        (errors.ModelDivergence, signed(state_tag=bytes(32))),
        (errors.ModelDivergence, signed(roster_hash=bytes(32))),
        (errors.ModelDivergence, signed(cohort_hash=bytes(32))),
        (errors.ModelDivergence, signed(transcript=bytes(32))),
        (errors.StateRollback, signed(round=2)),
        (errors.StaleRound, signed(round=0)),
        (errors.StaleRound, signed(attempt=1)),
        (errors.WrongEpoch, signed(epoch=2)),
        (errors.WrongSession, signed(session=bytes(16))),
        (errors.BadSignature, signed(Identity.generate())),
        (errors.DuplicateMessage, results[0]),
        (errors.MalformedMessage, b"result"),
        (errors.MalformedMessage, house.service.download(1, 0)[0][3]),
    ):
        with pytest.raises(kind):
            node.close(1, 0, [*results[:3], last])
    with pytest.raises(errors.CohortMismatch):
        node.close(1, 0, results[:2])
    node.close(1, 0, results[1:3])  # and the own one: as many as the threshold
