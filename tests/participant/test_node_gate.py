"""A participant refuses before it reads a record or spends anything."""

import pytest

from hansa import errors
from hansa.participant import local_update
from hansa.participant.node_state import load_update
from hansa.participant.policy import REQUIRED_LAYERS, Policy
from hansa.privacy.accounting import epsilon_of


class Watched:
    """Private rows that call back before every look at them."""

    def __init__(self, rows, looked_at):
        self._rows, self._looked_at = rows, looked_at

    def __getattr__(self, name):
        self._looked_at()
        return getattr(self._rows, name)


def cost(node, study, steps=1):
    return epsilon_of(
        noise_multiplier=node.noise_multiplier,
        sample_rate=study.privacy.sample_rate,
        steps=steps,
        delta=study.privacy.delta,
    )


def test_the_reservation_of_a_round_is_on_the_disk_before_a_record_is_read(
    houses, tiny, tiny_tables, tiny_study
):
    looks = []

    def looked_at():
        found = tiny.entries(house.ledgers["bank-2"])
        assert found[-1]["kind"] == "reserve"
        looks.append(found[-1]["round"])

    house = houses(rows={"bank-2": Watched(tiny_tables["bank-2"].rows, looked_at)})
    node = house.nodes["bank-2"]
    house.run()
    assert set(looks) == {1, 2}
    for name in tiny.NAMES:
        found = tiny.entries(house.ledgers[name])
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


def untouched(house, name):
    """Nothing was read, spent or sent."""
    assert not house.ledgers[name].exists()
    assert house.nodes[name].budget.epsilon() == 0
    assert not house.wires[name].sent


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"delta_limit": 1e-6}, errors.BudgetExhausted),
        ({"studies": frozenset({"0" * 64})}, errors.UnknownStudy),
        ({"required_layers": REQUIRED_LAYERS | {"evaluation"}}, errors.LayerMissing),
        ({"required_layers": REQUIRED_LAYERS | {"no such layer"}}, errors.LayerMissing),
        ({"smallest_cohort": 5}, errors.CohortBelowPolicy),
        ({"models": frozenset({"ab" * 32})}, errors.ModelNotAllowed),
        ({"submitters": frozenset({"ministry"})}, errors.SubmitterNotAllowed),
    ],
)
def test_a_refusal_reads_nothing_spends_nothing_and_leaves_as_its_code(
    houses, tiny_study, changes, kind, tiny
):
    house = houses(rows={"bank-1": tiny.Untouchable()}, policies={"bank-1": refusing(tiny_study, **changes)})
    with pytest.raises(errors.ParticipantLost, match=f"^bank-1 refused: {kind.code}$"):
        house.run()
    assert [type(error) for error in house.errors["bank-1"]] == [kind]
    untouched(house, "bank-1")
    assert house.stores["bank-1"].keys("") == []


def test_a_policy_that_changes_after_the_epoch_was_entered_refuses_the_next_round(house, tiny, tiny_study):
    house.begin()
    node = house.nodes["bank-1"]
    node._policy = refusing(tiny_study, studies=frozenset())
    node.updates._trainer = tiny.Untouchable()
    with pytest.raises(errors.UnknownStudy):
        node.train(1, 0, house.packages, house.shares["bank-1"])
    untouched(house, "bank-1")
    assert node.membership.entered[1].entered == (0, -1)


def test_a_round_that_the_budget_does_not_allow_reads_and_spends_nothing_and_the_others_go_on(
    houses, tiny_study, tiny
):
    policies = {"bank-1": refusing(tiny_study, epsilon_limit=0.5)}
    house, contributors = houses(rows={"bank-1": tiny.Untouchable()}, policies=policies), []
    house.run(lambda summary: contributors.append(summary.contributors))
    assert [type(error) for error in house.errors["bank-1"]] == [errors.BudgetExhausted] * 2
    untouched(house, "bank-1")
    assert contributors == [("bank-2", "bank-3", "bank-4")] * 2
    assert len(house.digests()) == 1  # what the others made of the rounds reached it all the same
    assert house.nodes["bank-1"].state.round == 2


@pytest.mark.parametrize("limit", ["epsilon_per_study", "epsilon_per_month"])
def test_a_round_that_a_limit_of_the_study_or_the_month_does_not_allow_reads_and_spends_nothing(
    houses, tiny_study, tiny_tables, limit
):
    """The first round fits, the second does not: one whole study may spend more than its limit of a month."""
    node = houses().nodes["bank-1"]
    once, whole = cost(node, tiny_study), cost(node, tiny_study, steps=2)
    looks = []
    rows = Watched(tiny_tables["bank-1"].rows, lambda: looks.append(house.nodes["bank-1"].state.round))
    policy = refusing(tiny_study)
    house = houses(rows={"bank-1": rows}, policies={"bank-1": policy})
    house.begin()
    late = refusing(tiny_study, **{limit: (once + whole) / 2})
    house.nodes["bank-1"]._policy = late
    if limit == "epsilon_per_study":  # such a study is not agreed to; the round is looked at all the same
        house.nodes["bank-1"]._verify_study = lambda: None
    house.close(1, 0)
    before = house.ledgers["bank-1"].read_bytes()
    house.begin(2)
    with pytest.raises(errors.BudgetExhausted, match=r"of one study|of the month"):
        house.nodes["bank-1"].train(2, 0, house.packages, house.shares["bank-1"])
    assert house.ledgers["bank-1"].read_bytes() == before
    assert set(looks) == {0}


def test_model_and_submitter_that_the_node_was_given_reach_the_policy(houses, tiny_study):
    rules = {"models": frozenset({"ab" * 32}), "submitters": frozenset({"ministry"})}
    house = houses(policies={"bank-1": refusing(tiny_study, **rules)})
    node = house.nodes["bank-1"]
    node._base_model, node._submitter = "ab" * 32, "ministry"
    house.run()
    assert not house.errors["bank-1"]
    assert node.state.round == 2


def test_in_strict_mode_the_round_that_the_budget_does_not_allow_ends_the_study(
    houses, strict_study, tiny_bases, tiny
):
    house = houses(
        strict_study,
        tiny_bases(strict_study),
        rows={"bank-1": tiny.Untouchable()},
        policies={"bank-1": refusing(strict_study, epsilon_limit=0.5)},
    )
    with pytest.raises(errors.ParticipantLost, match=r"threshold 4: bank-1 refused: budget_exhausted$"):
        house.run()
    untouched(house, "bank-1")
    assert all(node.state.round == 0 for node in house.nodes.values())


@pytest.mark.parametrize("layer", sorted(REQUIRED_LAYERS))
def test_a_study_that_switches_a_required_layer_off_is_refused(house, monkeypatch, layer):
    """No study file can say so at present; the participant looks all the same."""
    protections = type(house.study).protections
    monkeypatch.setattr(type(house.study), "protections", lambda study: protections(study) | {layer: False})
    with pytest.raises(errors.ParticipantLost, match="layer_missing"):
        house.run()
    assert layer in house.errors["bank-1"][0].message
    assert not any(ledger.exists() for ledger in house.ledgers.values())


@pytest.mark.parametrize("participants", [3, 5])
def test_a_roster_of_another_size_than_the_study_is_refused(
    houses, tiny_study, tiny_bases, tiny, participants
):
    study = tiny_study.with_changes(participants=participants)
    house = houses(study, tiny_bases(study), rows=dict.fromkeys(tiny.NAMES, tiny.Untouchable()))
    with pytest.raises(errors.ParticipantLost, match="aborted"):
        house.run()
    assert {type(error) for found in house.errors.values() for error in found} == {errors.CohortMismatch}
    assert not any(ledger.exists() for ledger in house.ledgers.values())


def test_the_round_that_would_pass_the_limit_is_refused_and_the_one_before_it_is_not(
    houses, tiny_study, tiny_tables
):
    looks = []
    rows = Watched(tiny_tables["bank-4"].rows, lambda: looks.append(house.nodes["bank-4"].state.round))
    whole = cost(houses().nodes["bank-4"], tiny_study, steps=2)
    policy = refusing(tiny_study, epsilon_limit=whole * 0.999)
    house = houses(rows={"bank-4": rows}, policies={"bank-4": policy})
    kept, contributors = [], []

    def after_round(summary):
        contributors.append(summary.contributors)
        kept.append((house.ledgers["bank-4"].read_bytes(), len(house.wires["bank-4"].sent)))

    house.run(after_round)
    assert contributors == [house.names, house.names[:3]]
    assert [type(error) for error in house.errors["bank-4"]] == [errors.BudgetExhausted]
    assert set(looks) == {0}
    node = house.nodes["bank-4"]
    assert kept[0] == kept[1] == (house.ledgers["bank-4"].read_bytes(), len(house.wires["bank-4"].sent))
    assert node.budget.epsilon() == cost(node, tiny_study)


def test_another_attempt_sends_the_same_update_and_spends_nothing(house, tiny_study, tiny):
    house.train(1, 0)
    node, sent = house.nodes["bank-1"], list(house.wires["bank-1"].sent)
    kept = load_update(house.stores["bank-1"])
    node.updates._trainer = tiny.Untouchable()
    house.close(1, 1)
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve", "commit"]
    assert node.budget.epsilon() == cost(node, tiny_study, steps=1)
    assert kept is not None
    assert load_update(house.stores["bank-1"]) is None  # its round is over
    again = house.wires["bank-1"].sent[len(sent) :]
    assert len(again) == len(sent)
    assert not set(again) & set(sent)  # other masks, other bytes


def test_an_update_that_was_not_kept_stays_spent(house, tiny_study, tiny, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(local_update, "save_update", fail)
        with pytest.raises(OSError, match="no space"):
            house.train(1, 0)
    assert not house.wires["bank-1"].sent
    house.close(1, 1)
    node = house.nodes["bank-1"]
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve", "reserve", "commit"]
    assert node.budget.epsilon() == cost(node, tiny_study, steps=2)
    assert house.restart("bank-1").budget.epsilon() == cost(node, tiny_study, steps=2)
