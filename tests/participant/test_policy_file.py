"""policy.toml: every key reaches its rule, and a file with any mistake gives no policy."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from hansa.errors import (
    ConfigurationError,
    InvalidValue,
    PolicyFileMissing,
    PolicySyntaxError,
    UnknownKey,
)
from hansa.participant.policy import REQUIRED_LAYERS, Policy
from hansa.participant.policy_file import Layer, load_policy, parse_policy
from hansa.study import Study

WHOLE = """
schema = "hansa/policy/v1"
data_set = "cards"
studies = ["{a}"]
delta_limit = 1e-6
smallest_cohort = 5
most_rounds = 70
noise_contributors_least = 11
colluders_least = 2
required_layers = ["signatures", "in_slot_tag"]
[epsilon]
for_ever = 8
per_study = 3.5
per_month = 1.5
[allow]
models = ["{b}", "{c}"]
submitters = ["ministry"]
""".format(a="a" * 64, b="b" * 64, c="c" * 64)
LEAST = 'schema = "hansa/policy/v1"\ndata_set = "cards"\ndelta_limit = 1e-5\n[epsilon]\nfor_ever = 8.0\n'


def test_every_key_reaches_its_rule() -> None:
    assert parse_policy(WHOLE) == Policy(
        data_set="cards",
        studies=frozenset({"a" * 64}),
        delta_limit=1e-6,
        smallest_cohort=5,
        most_rounds=70,
        noise_contributors_least=11,
        colluders_least=2,
        required_layers=frozenset({"signatures", "in_slot_tag"}),
        epsilon_limit=8.0,
        epsilon_per_study=3.5,
        epsilon_per_month=1.5,
        models=frozenset({"b" * 64, "c" * 64}),
        submitters=frozenset({"ministry"}),
    )


def test_what_is_left_out_is_no_limit_of_its_own_and_no_study() -> None:
    assert parse_policy(LEAST) == Policy(
        data_set="cards", studies=frozenset(), epsilon_limit=8.0, required_layers=REQUIRED_LAYERS
    )


def test_the_layers_are_those_that_a_study_tells_of(study_with: Callable[..., Study]) -> None:
    assert set(get_args(Layer)) == set(study_with().protections())


@pytest.mark.parametrize(
    ("old", "new", "kind", "message", "hint"),
    [
        (
            "contributors_least = 11",
            "contributors_least = 1",
            InvalidValue,
            "contributors_least = 1",
            "policy",
        ),
        ("contributors_least = 11", "contributors_least = 259", InvalidValue, "_least = 259", "policy"),
        ("most_rounds", "most_round", UnknownKey, "'most_round'", "did you mean 'most_rounds'"),
        ("per_month", "per_moth", UnknownKey, "'epsilon.per_moth'", "did you mean 'per_month'"),
        ("submitters", "zzz", UnknownKey, "'allow.zzz'", "keys allowed here: models, submitters"),
        ("for_ever = 8", "forever = 8", UnknownKey, "'epsilon.forever'", "for_ever"),
        ("per_study = 3.5", "per_study = -3.5", InvalidValue, "epsilon.per_study = -3.5", "policy"),
        ("per_study = 3.5", "per_study = 0", InvalidValue, "epsilon.per_study = 0", "policy"),
        ("per_study = 3.5", "per_study = nan", InvalidValue, "epsilon.per_study = nan", "policy"),
        ("per_study = 3.5", "per_study = inf", InvalidValue, "epsilon.per_study = inf", "policy"),
        ("for_ever = 8", "for_ever = +inf", InvalidValue, "epsilon.for_ever = inf", "policy"),
        ("per_study = 3.5", 'per_study = "3.5"', InvalidValue, "epsilon.per_study = '3.5'", "policy"),
        ("per_study = 3.5", "per_study = true", InvalidValue, "epsilon.per_study = True", "policy"),
        ("for_ever = 8\n", "", InvalidValue, "epsilon.for_ever is missing", "policy"),
        ("delta_limit = 1e-6\n", "", InvalidValue, "delta_limit is missing", "policy"),
        ("delta_limit = 1e-6", "delta_limit = 0.5", InvalidValue, "delta_limit = 0.5", "policy"),
        ("delta_limit = 1e-6", "delta_limit = nan", InvalidValue, "delta_limit = nan", "policy"),
        ("smallest_cohort = 5", "smallest_cohort = 2", InvalidValue, "smallest_cohort = 2", "policy"),
        ("smallest_cohort = 5", "smallest_cohort = 5.0", InvalidValue, "smallest_cohort = 5.0", "policy"),
        ("most_rounds = 70", "most_rounds = -70", InvalidValue, "most_rounds = -70", "policy"),
        ("policy/v1", "policy/v2", InvalidValue, "schema", "policy"),
        ('"in_slot_tag"', '"in_slot_tags"', InvalidValue, "required_layers[1] = 'in_slot_tags'", "policy"),
        ('"in_slot_tag"', '"signatures"', InvalidValue, "names 'signatures' twice", "policy"),
        ("c" * 64, "b" * 64, InvalidValue, "allow.models names", "policy"),
        ("a" * 64, "A" * 64, InvalidValue, "studies[0]", "policy"),
        ("a" * 64, "a" * 63, InvalidValue, "studies[0]", "policy"),
        ('["ministry"]', '"ministry"', InvalidValue, "allow.submitters", "policy"),
        ("[epsilon]", "[[epsilon]]", InvalidValue, "epsilon", "policy"),
        ("most_rounds = 70", "most_rounds = 70\nmost_rounds = 7", PolicySyntaxError, "line 8", "policy"),
        ("[allow]", "[epsilon]", PolicySyntaxError, "epsilon", "policy"),
        ("most_rounds = 70", "most_rounds = = 70", PolicySyntaxError, "line 7", "policy"),
    ],
)
def test_a_mistake_is_named_with_a_hint_and_gives_no_policy(
    old: str, new: str, kind: type[ConfigurationError], message: str, hint: str
) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(kind) as caught:
        parse_policy(WHOLE.replace(old, new))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_status == 78


def test_unreadable_files(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    with pytest.raises(PolicyFileMissing, match=r"cannot be read: no such file"):
        load_policy(file)
    with pytest.raises(PolicyFileMissing):
        load_policy(tmp_path)
    file.write_bytes(LEAST.encode() + b"# \xff")
    with pytest.raises(PolicySyntaxError, match=r"not UTF-8 \(at line 6\)"):
        load_policy(file)
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(PolicySyntaxError, match="longer than"):
        load_policy(file)
    file.write_text(f"a = {'[' * 5000}")
    with pytest.raises(PolicySyntaxError, match="nested too deeply"):
        load_policy(file)
    file.write_text(LEAST)
    assert load_policy(file) == parse_policy(LEAST)
