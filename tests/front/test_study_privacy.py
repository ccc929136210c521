"""Whose noise makes a study private: what a study may say of it, what it is warned of, and that older studies keep their ids."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.cli import app
from hansa.errors import InvalidValue
from hansa.secure_agg.parameters import Terms
from hansa.study import Study, load_study, parse_study
from hansa.study_privacy import threshold_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank" / "study.toml"
EXAMPLE_ID = "f58608a5666ee45e5777356756f936a17dc998751d26c2fa07cba69732727a5b"
DISTRIBUTED = """
schema = "hansa/study/v1"
name = "shared-noise"
purpose = "test"
[data]
label = "y"
columns = [{ name = "a", kind = "numeric", minimum = 0, maximum = 1 }]
[privacy]
mode = "distributed"
noise_contributors = 11
colluders = 1
epsilon = 3.0
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.05
nominal_records = 2000
[training]
rounds = 100
local_steps = 1
[training.server_optimizer]
learning_rate = 0.01
[compression]
bits = 16
[aggregation]
mode = "quorum"
participants = 15
"""


def changed(old: str, new: str) -> Study:
    assert DISTRIBUTED.count(old) == 1
    return parse_study(DISTRIBUTED.replace(old, new))


def test_a_study_from_before_keeps_its_id_and_a_distributed_one_is_another() -> None:
    assert load_study(EXAMPLE).id == EXAMPLE_ID
    found = parse_study(DISTRIBUTED)
    ids = {
        found.id,
        changed("colluders = 1", "colluders = 0").id,
        changed("colluders = 1", "colluders = 2").id,
        changed("noise_contributors = 11", "noise_contributors = 12").id,
    }
    assert len(ids) == 4
    assert changed('mode = "distributed"\nnoise_contributors = 11\ncolluders = 1', 'mode = "local"').id == (
        changed('mode = "distributed"\nnoise_contributors = 11\ncolluders = 1\n', "").id
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("noise_contributors = 11\n", "", "needs noise_contributors and colluders, said outright"),
        ("colluders = 1\n", "", "needs noise_contributors and colluders, said outright"),
        ('mode = "distributed"', 'mode = "local"', "belong to privacy.mode = 'distributed'"),
        ("= 11", "= 10", "noise_contributors is 10, not from the threshold 11 to the participants 15"),
        ("= 11", "= 16", "noise_contributors is 16, not from the threshold 11 to the participants 15"),
        ("colluders = 1", "colluders = 10", "noise_contributors 11 less colluders 10 is below 2"),
        ("colluders = 1", "colluders = -1", "privacy.colluders = -1"),
        ("local_steps = 1", "local_steps = 2", "local_steps is 2: with distributed noise it is 1"),
        ("bits = 16", "bits = 15", "bits is 15: with distributed noise it is 16 to 20"),
        ("bits = 16", "bits = 21", "compression.bits = 21"),
        ("= 11", "= 11.0", "noise_contributors = 11.0"),
        ('mode = "distributed"', 'mode = "central"', "privacy.mode = 'central'"),
        ('mode = "quorum"', 'mode = "strict"', "not from the threshold 15 to the participants 15"),
    ],
)
def test_what_would_not_be_private_is_refused_with_its_reason(old: str, new: str, words: str) -> None:
    with pytest.raises(InvalidValue) as error:
        changed(old, new)
    assert words in error.value.message


@pytest.mark.parametrize(("contributors", "colluders"), [(11, 0), (11, 9), (15, 13)])
def test_every_number_within_the_bounds_is_allowed(contributors: int, colluders: int) -> None:
    text = DISTRIBUTED.replace("= 11", f"= {contributors}").replace(
        "colluders = 1", f"colluders = {colluders}"
    )
    found = parse_study(text).privacy
    assert (found.noise_contributors, found.colluders) == (contributors, colluders)


@pytest.mark.parametrize("participants", [4, 5, 15, 16, 100, 258])
def test_the_threshold_is_that_of_the_protocol(participants: int) -> None:
    for mode in ("quorum", "strict"):
        terms = Terms(participants=participants, mode=mode)
        assert threshold_of(participants, strict=mode == "strict") == terms.threshold


def test_terms_take_the_least_roster_and_keep_their_hash_without_it() -> None:
    plain = Terms(participants=15, mode="quorum", bits=16)
    shared = Terms(participants=15, mode="quorum", bits=16, noise_contributors=13)
    assert (plain.least_roster, shared.least_roster) == (11, 13)
    hashes = {plain.hash, shared.hash, Terms(participants=15, bits=16, noise_contributors=12).hash}
    assert len(hashes) == 3
    for wrong in (10, 16):
        with pytest.raises(InvalidValue, match="noise_contributors"):
            Terms(participants=15, mode="quorum", noise_contributors=wrong)


def test_a_study_tells_on_whom_its_guarantee_rests() -> None:
    assert load_study(EXAMPLE).warnings() == ()
    assert load_study(EXAMPLE).protections()["own_noise_suffices"] is True
    found = parse_study(DISTRIBUTED)
    assert found.protections()["own_noise_suffices"] is False
    (words,) = found.warnings()
    assert "rests on 10 honest members among every 11 that take part" in words
    rests, curious = changed("colluders = 1", "colluders = 0").warnings()
    assert "rests on 11 honest members" in rests
    assert "no colluder is assumed" in curious


def test_validate_shows_the_warning_and_the_missing_protection(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(DISTRIBUTED, encoding="utf-8")
    shown = CliRunner().invoke(app, ["study", "validate", str(path)])
    assert shown.exit_code == 0
    assert "OFF   own noise suffices" in shown.stdout
    assert "hansa: warning: no participant's own noise suffices" in shown.stderr
    found = json.loads(CliRunner().invoke(app, ["study", "validate", str(path), "--json"]).stdout)
    assert found["warnings"] == list(parse_study(DISTRIBUTED).warnings())
    assert found["protections"]["own_noise_suffices"] is False
