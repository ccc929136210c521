"""A participant inside the whole path: exact sums, equal states, refusals before data, steps in their order."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

import hansa.participant.node as node_module
from hansa import errors
from hansa.participant.policy import REQUIRED_LAYERS, Policy
from hansa.participant.shared_state import SharedState
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.budget import Budget
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import RoundKey, RoundResult, open_signed, sign_message
from hansa.secure_agg.parameters import layout_for
from hansa.study import parse_study


class Untouchable:
    """Private rows that no code may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"the records were touched: {name}")

    def __len__(self):
        raise AssertionError("the records were counted")


class Watched:
    """Private rows that call back before every look at them."""

    def __init__(self, rows, looked_at):
        self._rows, self._looked_at = rows, looked_at

    def __getattr__(self, name):
        self._looked_at()
        return getattr(self._rows, name)


def entries(ledger):
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [json.loads(json.loads(line)["body"]) for line in lines]


def kinds(ledger):
    return [entry["kind"] for entry in entries(ledger)]


def cost(node, study, steps=1):
    return epsilon_of(
        noise_multiplier=node.noise_multiplier,
        sample_rate=study.privacy.sample_rate,
        steps=steps,
        delta=study.privacy.delta,
    )


# -- the sum ---------------------------------------------------------------------------------------------------


def test_the_decrypted_sum_is_the_sum_of_the_quantised_updates_integer_for_integer(house, tiny, monkeypatch):
    levels, sums = [], []
    quantise, dequantise = node_module.quantise, node_module.dequantise_sum

    def quantise_and_note(*values):
        levels.append(quantise(*values))
        return levels[-1].copy()

    def note_and_dequantise(total, *values):
        sums.append(total.copy())
        return dequantise(total, *values)

    monkeypatch.setattr(node_module, "quantise", quantise_and_note)
    monkeypatch.setattr(node_module, "dequantise_sum", note_and_dequantise)
    house.run()
    people = len(tiny.NAMES)
    assert len(levels) == len(sums) == people * house.study.training.rounds
    for start in range(0, len(levels), people):
        plain = np.sum(levels[start : start + people], axis=0)
        assert plain.dtype == np.int64
        assert np.count_nonzero(plain) > plain.size // 2
        for total in sums[start : start + people]:
            np.testing.assert_array_equal(total, plain)
        # Unlike updates went in: the sum is not a multiple of one of them.
        assert len({one.tobytes() for one in levels[start : start + people]}) == people


def test_all_states_are_bit_identical_after_every_round_and_every_round_moves_them(house):
    seen = [house.digests()]
    house.run(lambda _: seen.append(house.digests()))
    assert [len(digests) for digests in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3
    assert len({node.state.values.tobytes() for node in house.nodes.values()}) == 1
    assert len({node.state.transcript for node in house.nodes.values()}) == 1


def test_a_round_moves_its_support_only_and_the_support_fills_whole_ciphertexts(houses, tiny, tiny_bases):
    text = tiny.TINY_STUDY.replace("dim = 8", "dim = 16", 1).replace("experts = 8", "experts = 128")
    study = parse_study(text.replace("expert_dim = 4\nshared", "expert_dim = 8\nshared", 1))
    house = houses(study, tiny_bases(study))
    before = house.base.layout.gather(house.base.model())
    entries_per_ciphertext = layout_for(len(tiny.NAMES)).entries_per_ciphertext
    assert 0.3 * before.size < entries_per_ciphertext < before.size
    house.close()
    moved = np.flatnonzero(house.nodes["bank-1"].state.values != before)
    # 0.3 of the entries was agreed on; one ciphertext has room for more. (A few sums of levels are zero.)
    assert entries_per_ciphertext * 0.95 < moved.size <= entries_per_ciphertext
    support = {node._support.tobytes() for node in house.nodes.values()}
    assert len(support) == 1
    chosen = np.frombuffer(support.pop(), dtype=np.int64)
    assert chosen.size == entries_per_ciphertext
    assert set(moved) <= set(chosen)
    assert set(house.base.layout.positions(study.compression.always)) <= set(chosen)
    for wire in house.wires.values():
        assert [len(part) for part in wire.sent[1:]] == [SEEDED_BYTES]


# -- divergence ------------------------------------------------------------------------------------------------


def disturb(monkeypatch, state, round_index, part):
    """Let the last bit of one entry of a state come out otherwise in a round."""
    apply = SharedState.apply

    def apply_wrongly(self, *values):
        apply(self, *values)
        if self is state and self.round == round_index:
            vector = getattr(self, part)
            vector[5] = np.nextafter(vector[5], np.inf)

    monkeypatch.setattr(SharedState, "apply", apply_wrongly)


@pytest.mark.parametrize("part", ["values", "first", "second", "decay_first", "decay_second"])
@pytest.mark.parametrize("round_index", [1, 2])
def test_a_state_that_comes_out_otherwise_is_found_by_the_coordinator_in_the_same_round(
    house, monkeypatch, part, round_index
):
    finished = []
    disturb(monkeypatch, house.nodes["bank-3"].state, round_index, part)
    with pytest.raises(errors.ModelDivergence, match=f"results of round {round_index}$"):
        house.run(lambda summary: finished.append(summary.round))
    assert finished == list(range(1, round_index))


def test_a_state_that_comes_out_otherwise_is_found_by_every_member_and_nobody_goes_on(house, monkeypatch):
    disturb(monkeypatch, house.nodes["bank-3"].state, 1, "values")
    results = house.open()
    for node in house.nodes.values():
        with pytest.raises(errors.ModelDivergence):
            node.close(1, 0, results)
        with pytest.raises(errors.OutOfOrder, match="before round 1 was closed"):
            node.advertise(2, 0)


def test_a_state_that_changes_between_rounds_is_found_at_the_headers_before_the_sum_is_opened(
    house, tiny, monkeypatch
):
    house.close(1)
    house.nodes["bank-3"].state.values[5] += 1e-9
    house.train(2)
    monkeypatch.setattr(type(house.he_key), "decrypt", None)  # a call of it would be a TypeError
    for name in tiny.NAMES:
        with pytest.raises(errors.ModelDivergence, match="belongs to another model state"):
            house.nodes[name].open(2, 0)
        assert house.nodes[name].state.round == 1
        assert kinds(house.ledgers[name]) == ["reserve", "commit", "reserve"]


def test_the_coordinator_stops_when_a_state_changed_between_rounds(house):
    def change(summary):
        house.nodes["bank-3"].state.transcript = bytes([summary.round] * 32)

    with pytest.raises(errors.ParticipantLost, match=r"^bank-1 refused: model_divergence$"):
        house.run(change)


# -- the gate: before data, before spending --------------------------------------------------------------------


def test_the_reservation_of_a_round_is_on_the_disk_before_a_record_is_read(
    houses, tiny, tiny_tables, tiny_study
):
    looks = []

    def looked_at():
        found = entries(house.ledgers["bank-2"])
        assert found[-1]["kind"] == "reserve"
        looks.append(found[-1]["round"])

    house = houses(rows={"bank-2": Watched(tiny_tables["bank-2"].rows, looked_at)})
    node = house.nodes["bank-2"]
    house.run()
    assert set(looks) == {1, 2}
    for name in tiny.NAMES:
        found = entries(house.ledgers[name])
        assert [(entry["kind"], entry["round"]) for entry in found] == [
            ("reserve", 1),
            ("commit", 1),
            ("reserve", 2),
            ("commit", 2),
        ]
        assert all(
            entry["noise_multiplier"] == node.noise_multiplier
            and (entry["sample_rate"], entry["steps"]) == (0.5, 1)
            and entry["study"] == tiny_study.id
            for entry in found
        )
    assert node.budget.epsilon() == cost(node, tiny_study, steps=2) <= tiny_study.privacy.epsilon


def refusing(study, **changes):
    return Policy(**({"studies": frozenset({study.id}), "epsilon_limit": 8.0} | changes))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"epsilon_limit": 0.5}, errors.BudgetExhausted),
        ({"delta_limit": 1e-6}, errors.BudgetExhausted),
        ({"studies": frozenset({"0" * 64})}, errors.UnknownStudy),
        ({"required_layers": REQUIRED_LAYERS | {"in_slot_tag"}}, errors.LayerMissing),
        ({"required_layers": REQUIRED_LAYERS | {"no such layer"}}, errors.LayerMissing),
        ({"smallest_cohort": 5}, errors.CohortTooSmall),
    ],
)
def test_a_refusal_reads_nothing_spends_nothing_and_leaves_as_its_code(houses, tiny_study, changes, kind):
    house = houses(rows={"bank-1": Untouchable()}, policies={"bank-1": refusing(tiny_study, **changes)})
    with pytest.raises(errors.ParticipantLost, match=f"^bank-1 refused: {kind.code}$"):
        house.run()
    assert [type(error) for error in house.errors["bank-1"]] == [kind]
    assert not house.ledgers["bank-1"].exists()
    assert house.nodes["bank-1"].budget.epsilon() == 0
    assert not house.wires["bank-1"].sent


@pytest.mark.parametrize("line", ["masks = false", 'encryption = "none"'])
def test_a_study_that_switches_a_required_layer_off_is_refused(houses, tiny, tiny_bases, line):
    study = parse_study(f"{tiny.TINY_STUDY}\n{line}")
    house = houses(study, tiny_bases(study), rows=dict.fromkeys(tiny.NAMES, Untouchable()))
    with pytest.raises(errors.ParticipantLost, match="layer_missing"):
        house.run()
    assert not any(ledger.exists() for ledger in house.ledgers.values())


@pytest.mark.parametrize("participants", [3, 5])
def test_a_roster_of_another_size_than_the_study_is_refused(
    houses, tiny_study, tiny_bases, tiny, participants
):
    study = tiny_study.with_changes(participants=participants)
    house = houses(study, tiny_bases(study), rows=dict.fromkeys(tiny.NAMES, Untouchable()))
    with pytest.raises(errors.ParticipantLost, match="cohort_mismatch"):
        house.run()
    assert not any(ledger.exists() for ledger in house.ledgers.values())


def test_the_round_that_would_pass_the_limit_is_refused_and_the_one_before_it_is_not(
    houses, tiny_study, tiny_tables
):
    looks = []
    rows = Watched(tiny_tables["bank-4"].rows, lambda: looks.append(house.nodes["bank-4"].state.round))
    whole = cost(houses().nodes["bank-4"], tiny_study, steps=2)
    policy = refusing(tiny_study, epsilon_limit=whole * 0.999)
    house = houses(rows={"bank-4": rows}, policies={"bank-4": policy})
    kept = []

    def after_first(_):
        wire, ledger = house.wires["bank-4"], house.ledgers["bank-4"]
        kept.extend([house.nodes["bank-4"].state.digest(tiny_study.id), ledger.read_bytes(), len(wire.sent)])

    with pytest.raises(errors.ParticipantLost, match="bank-4 refused: budget_exhausted"):
        house.run(after_first)
    assert set(looks) == {0}
    node = house.nodes["bank-4"]
    ledger, sent = house.ledgers["bank-4"].read_bytes(), len(house.wires["bank-4"].sent)
    assert kept == [node.state.digest(tiny_study.id), ledger, sent]
    assert node.budget.epsilon() == cost(node, tiny_study)


def test_an_abandoned_attempt_stays_spent(house, tiny_study):
    house.train(1, 0)
    house.close(1, 1)
    node = house.nodes["bank-1"]
    assert kinds(house.ledgers["bank-1"]) == ["reserve", "reserve", "commit"]
    assert node.budget.epsilon() == cost(node, tiny_study, steps=2)
    again = Budget(house.ledgers["bank-1"], epsilon_limit=8.0, delta=tiny_study.privacy.delta)
    assert again.epsilon() == node.budget.epsilon()


# -- order -----------------------------------------------------------------------------------------------------


def test_steps_come_in_their_order_and_each_once(house):
    node = house.nodes["bank-1"]

    def refused(kind, step, *values):
        state, ledger, sent = (
            node.state.digest("00"),
            kinds(house.ledgers["bank-1"]),
            len(house.wires["bank-1"].sent),
        )
        with pytest.raises(kind):
            getattr(node, step)(*values)
        assert (state, ledger) == (node.state.digest("00"), kinds(house.ledgers["bank-1"]))
        assert sent == len(house.wires["bank-1"].sent)

    for step, values in (("train", [[b"key"]]), ("open", []), ("close", [[b"result"]])):
        refused(errors.OutOfOrder, step, 1, 0, *values)
    for wrong, kind in ((0, errors.StaleRound), (2, errors.OutOfOrder), (3, errors.OutOfOrder)):
        refused(kind, "advertise", wrong, 0)
    keys = house.advertise()
    refused(errors.PackageReuse, "advertise", 1, 0)
    refused(errors.OutOfOrder, "open", 1, 0)
    refused(errors.OutOfOrder, "close", 1, 0, [b"result"])
    for at in ((2, 0), (1, 1), (0, 0)):
        refused(errors.OutOfOrder, "train", *at, keys)
    for other in house.nodes.values():
        other.train(1, 0, keys)
    refused(errors.PackageReuse, "train", 1, 0, keys)
    refused(errors.PackageReuse, "advertise", 1, 0)
    refused(errors.OutOfOrder, "open", 2, 0)
    refused(errors.OutOfOrder, "close", 1, 0, [b"result"])
    results = [other.open(1, 0) for other in house.nodes.values()]
    refused(errors.OutOfOrder, "open", 1, 0)
    refused(errors.PackageReuse, "train", 1, 0, keys)
    refused(errors.StaleRound, "advertise", 1, 0)
    refused(errors.StaleRound, "advertise", 1, 1)
    refused(errors.OutOfOrder, "advertise", 2, 0)
    refused(errors.OutOfOrder, "close", 2, 0, results)
    for other in house.nodes.values():
        other.close(1, 0, results)
    refused(errors.OutOfOrder, "close", 1, 0, results)
    house.close(2)
    refused(errors.OutOfOrder, "advertise", 3, 0)  # the study has two rounds
    assert len(house.digests()) == 1


def test_no_attempt_is_entered_after_a_later_one(house):
    house.advertise(1, 4)
    for attempt in (0, 3):
        with pytest.raises(errors.StaleRound):
            house.nodes["bank-1"].advertise(1, attempt)


# -- what the coordinator relays -------------------------------------------------------------------------------


def key_of(house, name, identity=None, **changes):
    values = {
        "session": house.roster.session_id,
        "study": house.roster.study_id,
        "round": 1,
        "attempt": 0,
        "sender": name,
        "public_key": bytes(range(32)),
    }
    return sign_message(identity or house.identities[name], RoundKey(**(values | changes)))


def key_cases(house, keys):
    own, second, third, fourth = keys
    return [
        (errors.CohortMismatch, [own, second, third]),
        (errors.CohortMismatch, [own]),
        (errors.DuplicateMember, [own, second, third, fourth, second]),
        (errors.BadSignature, [own, second, third, key_of(house, "bank-4", Identity.generate())]),
        (errors.BadSignature, [own, second, third, fourth[:-1] + bytes([fourth[-1] ^ 1])]),
        (errors.UnknownSender, [*keys, key_of(house, "bank-5", house.identities["bank-4"])]),
        (errors.WrongSession, [own, second, third, key_of(house, "bank-4", session=bytes(16))]),
        (errors.WrongSession, [own, second, third, key_of(house, "bank-4", study=bytes(32))]),
        (errors.StaleRound, [own, second, third, key_of(house, "bank-4", round=2)]),
        (errors.StaleRound, [own, second, third, key_of(house, "bank-4", attempt=1)]),
        (errors.OwnKeyMismatch, [key_of(house, "bank-1"), second, third, fourth]),
        (errors.PackageReuse, [own, second, key_of(house, "bank-3"), key_of(house, "bank-4")]),
        (errors.MalformedMessage, [own, second, third, b"key"]),
        (errors.MalformedMessage, [own, second, third, bytes(1 << 20)]),
        (errors.MalformedMessage, [own, second, third, b""]),
    ]


def test_round_keys_that_are_not_the_rosters_for_this_round_are_refused_before_data(houses, tiny_tables):
    house = houses(rows={"bank-1": Untouchable()})
    node, keys = house.nodes["bank-1"], house.advertise()
    cases = key_cases(house, keys)
    for kind, shown in cases:
        with pytest.raises(kind):
            node.train(1, 0, shown)
    assert len({kind for kind, _ in cases}) == 9
    assert not house.ledgers["bank-1"].exists()
    assert not house.wires["bank-1"].sent
    # Nothing was used up: the right keys are taken, and only then the records are asked for.
    with pytest.raises(AssertionError, match="the records were touched"):
        node.train(1, 0, keys)
    assert kinds(house.ledgers["bank-1"]) == ["reserve"]


def test_a_member_with_a_substituted_key_gets_no_sum_and_its_upload_is_refused(house, tiny):
    """The coordinator shows bank-4 another key under the name of a member that it controls."""
    keys = house.advertise()
    shown = [*keys[:2], key_of(house, "bank-3"), keys[3]]
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, keys)
    with pytest.raises(errors.CohortMismatch, match="another cohort"):
        house.nodes["bank-4"].train(1, 0, shown)
    for node in house.nodes.values():
        with pytest.raises(errors.OutOfOrder):
            node.open(1, 0)
    assert all(node.state.round == 0 for node in house.nodes.values())


def test_results_that_are_not_the_rosters_for_this_round_do_not_close_it(house):
    results = house.open()
    body = open_signed(results[3], RoundResult, house.roster)
    node = house.nodes["bank-1"]

    def signed(identity=house.identities["bank-4"], **changes):
        return sign_message(identity, dataclasses.replace(body, **changes))

    for kind, last in (
        (errors.ModelDivergence, signed(state_tag=bytes(32))),
        (errors.ModelDivergence, signed(roster_hash=bytes(32))),
        (errors.ModelDivergence, signed(cohort_hash=bytes(32))),
        (errors.StaleRound, signed(round=2)),
        (errors.WrongSession, signed(session=bytes(16))),
        (errors.BadSignature, signed(Identity.generate())),
        (errors.DuplicateMember, results[0]),
        (errors.MalformedMessage, b"result"),
        (errors.MalformedMessage, house.service.download(1, 0)[0][3]),
    ):
        with pytest.raises(kind):
            node.close(1, 0, [*results[:3], last])
    with pytest.raises(errors.CohortMismatch):
        node.close(1, 0, results[:3])
    node.close(1, 0, results)


# -- randomness ------------------------------------------------------------------------------------------------


def test_public_seeds_move_neither_noise_nor_sampling_nor_keys(houses, tiny_study, tiny_bases):
    outcomes, keys, starts = [], [], []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        house = houses(base=tiny_bases(tiny_study, seed=3))
        starts.append(house.nodes["bank-1"].state.values.copy())
        house.run()
        outcomes.append(house.nodes["bank-1"].state.values)
        keys.append(house.nodes["bank-1"]._round._own_key)
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.count_nonzero(outcomes[0] == outcomes[1]) < 10
    assert keys[0] != keys[1]


def test_a_node_takes_its_secret_randomness_from_the_argument_that_only_tests_give(houses, tiny):
    """The counterpart of the test above: with injected streams two runs end in the same vector."""
    outcomes = []
    for _ in range(2):
        streams = {name: SecretRandom(name.encode().ljust(32)) for name in tiny.NAMES}
        house = houses(random=streams)
        house.run()
        outcomes.append(house.nodes["bank-1"].state.values)
    np.testing.assert_array_equal(outcomes[0], outcomes[1])


# -- what a node shows -----------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr(house):
    shown = repr(house.membership) + repr(house.nodes["bank-1"]) + str(house.nodes["bank-1"].__dict__)
    secrets = [house.group_key, house.identities["bank-1"].export(), house.he_key.export()]
    for secret in secrets:
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert repr(house.membership) == "Membership(4 members)"


def test_step_times_are_kept_for_every_step(house):
    house.run()
    seconds = house.nodes["bank-1"].step_seconds()
    assert {
        "reserve the budget",
        "train",
        "mask and encrypt",
        "upload",
        "download",
        "decrypt",
        "apply",
    } <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
