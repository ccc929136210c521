"""The study file: what it accepts, what it refuses and with which error, and what its id depends on."""

import hashlib
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import rfc8785
from pydantic import BaseModel, ValidationError

from hansa import errors, labels, study
from hansa.errors import CohortTooLarge, CohortTooSmall, InvalidValue, StudySyntaxError, UnknownKey
from hansa.study import Study, load_study, parse_study

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank" / "study.toml"
MINIMAL = """
schema = "hansa/study/v1"
name = "minimal"
purpose = "test"
[data]
label = "y"
columns = [
  { name = "a", kind = "numeric", minimum = 0, maximum = 1 },
  { name = "b", kind = "categorical", values = [1, 2] },
]
[privacy]
epsilon = 8
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.2
nominal_records = 1000
[training]
rounds = 3
[training.server_optimizer]
learning_rate = 0.01
[aggregation]
participants = 3
"""

# Every key that the refusals below change. Not the example: its values may be tuned.
FULL = """
schema = "hansa/study/v1"
name = "bank-credit-default"
purpose = "test"
[data]
label = "DEFAULT_NEXT_MONTH"
positive_class = 1
negative_class = 0
columns = [
  { name = "LIMIT_BAL", kind = "numeric", token = "limit", minimum = 0, maximum = 2_000_000 },
  { name = "SEX", kind = "categorical", token = "person", values = [1, 2] },
  { name = "EDUCATION", kind = "categorical", token = "person", values = [1, 2, 3, 4] },
  { name = "PAY_2", kind = "numeric", minimum = -2, maximum = 9 },
  { name = "AGE", kind = "numeric", minimum = 18, maximum = 100 },
  { name = "PAY_3", kind = "numeric", minimum = -2, maximum = 9 },
]
[model]
dim = 32
heads = 4
experts = 128
top_k = 4
expert_dim = 8
[adapters]
rank = 4
targets = ["attention", "experts"]
[privacy]
unit = "record"
mode = "local"
epsilon = 8.0
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.2
nominal_records = 1400
[training]
rounds = 30
[training.server_optimizer]
learning_rate = 1e-2
beta1 = 0.9
[compression]
kept_share = 0.3
bits = 8
[aggregation]
mode = "strict"
masks = true
encryption = "bfv"
participants = 15
[evaluation]
release = "nothing"
"""


def changed(old: str, new: str, text: str = FULL) -> str:
    assert text.count(old) == 1, f"{old!r} is not once in the study"
    return text.replace(old, new)


def test_the_example_is_complete_and_states_the_agreed_values() -> None:
    example = load_study(EXAMPLE)
    assert (example.privacy.epsilon, example.privacy.delta, example.aggregation.participants) == (
        8.0,
        1e-5,
        15,
    )
    assert len(example.data.numeric) == 20
    assert [column.name for column in example.data.categorical] == ["SEX", "EDUCATION", "MARRIAGE"]
    # every key of the format is written down in the example, so that its reader sees all of them; two are for persons only
    by_person = {"data": {"person"}, "privacy": {"records_per_person"}}
    written = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for name, field in Study.model_fields.items():
        section = field.annotation
        assert (field.alias or name) in written
        if isinstance(section, type) and issubclass(section, BaseModel):
            # but for keys of another mode, which cannot be written down in this one
            other = {"noise_contributors", "colluders"} | by_person.get(name, set())
            assert set(written[name]) == set(section.model_fields) - other


def test_defaults_fill_a_minimal_study() -> None:
    minimal = parse_study(MINIMAL)
    assert (minimal.model.experts, minimal.model.top_k, minimal.compression.bits) == (128, 4, 8)
    assert [column.token for column in minimal.data.columns] == ["a", "b"]
    assert minimal.aggregation.masks
    assert minimal.aggregation.encryption == "bfv"


@pytest.mark.parametrize("bits", [4, 8, 16, 17, 20])
def test_an_entry_has_4_to_20_bits(bits: int) -> None:
    assert parse_study(changed("bits = 8", f"bits = {bits}")).compression.bits == bits


def test_every_field_has_a_description() -> None:
    sections: list[type[BaseModel]] = [Study]
    seen = 0
    while sections:
        section = sections.pop()
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            seen += 1
            parts = [field.annotation, *get_args(field.annotation)]
            sections += [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    assert seen > 50


# -- the id ----------------------------------------------------------------------------------------------


def test_id_is_the_hash_of_label_and_canonical_json() -> None:
    example = load_study(EXAMPLE)
    agreement = example.model_dump(by_alias=True)
    assert agreement["aggregation"].pop("rounds_per_epoch") == 0  # left out: older than these keys
    assert agreement["data"].pop("person") is None
    assert agreement["privacy"].pop("records_per_person") is None
    assert agreement["privacy"].pop("noise_contributors") is None
    assert agreement["privacy"].pop("colluders") is None
    assert agreement["training"].pop("result_share") == 1.0
    canonical = rfc8785.dumps(agreement)
    assert b'"schema":"hansa/study/v1"' in canonical
    assert b'"delta":0.00001' in canonical
    assert example.id == hashlib.sha256(labels.STUDY_ID + canonical).hexdigest()


def test_a_limit_of_rounds_an_epoch_is_part_of_the_id() -> None:
    limited = MINIMAL.replace("[aggregation]", "[aggregation]\nrounds_per_epoch = 5")
    assert parse_study(limited).aggregation.rounds_per_epoch == 5
    assert parse_study(limited).id != parse_study(MINIMAL).id
    assert parse_study(limited.replace("= 5", "= 0")).id == parse_study(MINIMAL).id


def test_a_result_of_less_than_the_whole_way_is_part_of_the_id() -> None:
    shared = MINIMAL.replace("[training]", "[training]\nresult_share = 0.75")
    assert parse_study(shared).training.result_share == 0.75
    assert parse_study(shared).id != parse_study(MINIMAL).id
    assert parse_study(shared.replace("0.75", "1.0")).id == parse_study(MINIMAL).id
    for wrong in ("0.0", "1.01"):
        with pytest.raises(errors.InvalidValue):
            parse_study(shared.replace("0.75", wrong))


BY_PERSON = MINIMAL.replace("[data]", '[data]\nperson = "customer"').replace(
    "[privacy]", '[privacy]\nunit = "person"\nrecords_per_person = 4'
)


def test_a_study_by_persons_says_column_and_cap() -> None:
    study = parse_study(BY_PERSON)
    assert (study.privacy.unit, study.data.person, study.privacy.records_per_person) == (
        "person",
        "customer",
        4,
    )
    ids = {parse_study(text).id for text in (MINIMAL, BY_PERSON, BY_PERSON.replace("= 4", "= 5"))}
    assert len(ids) == 3
    assert study.with_changes(rounds=9).data.person == "customer"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('person = "customer"\n', ""),
        ("records_per_person = 4", ""),
        ('unit = "person"\n', ""),
        ('unit = "person"', 'unit = "household"'),
        ('person = "customer"', 'person = "a"'),
        ('person = "customer"', 'person = "y"'),
        ("records_per_person = 4", "records_per_person = 0"),
        ("records_per_person = 4", "records_per_person = 1001"),
    ],
)
def test_a_study_by_persons_that_does_not_fit_together_is_refused(old: str, new: str) -> None:
    assert old in BY_PERSON
    with pytest.raises(errors.InvalidValue):
        parse_study(BY_PERSON.replace(old, new))


def test_id_is_golden() -> None:
    # A change here means that agreed studies are no longer the same study: raise the schema version instead.
    assert parse_study(MINIMAL).id == "d6149f99f15a942323accb7f2676484ae14595ca5e14bd00ca34ef679fbb7bf8"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "minimal"\npurpose = "test"', 'purpose = "test"\n# a comment\nname   = "minimal"'),
        ("epsilon = 8", "epsilon = 8.0"),
        ("delta = 1e-5", "delta = 0.00001"),
        ("rounds = 3", "rounds = 3\nlocal_steps = 1"),
        ('name = "a",', 'name = "a", token = "a",'),
        ("participants = 3", "participants = 3\nmasks = true"),
    ],
)
def test_id_is_the_same_for_another_way_of_writing(old: str, new: str) -> None:
    assert parse_study(changed(old, new, MINIMAL)).id == parse_study(MINIMAL).id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "minimal"', 'name = "minimal2"'),
        ("epsilon = 8", "epsilon = 8.000000000000002"),
        ("values = [1, 2]", "values = [2, 1]"),
        ("maximum = 1", "maximum = 2"),
        ('name = "a",', 'name = "a", token = "b",'),
        ("participants = 3", "participants = 4"),
        ("rounds = 3", "rounds = 4"),
    ],
)
def test_id_differs_for_another_agreement(old: str, new: str) -> None:
    assert parse_study(changed(old, new, MINIMAL)).id != parse_study(MINIMAL).id


# -- bad input -------------------------------------------------------------------------------------------

# change of the example -> error class, part of the message, part of the hint; codes and exit statuses below
BAD = [
    ("rounds = 30", "round = 30", UnknownKey, "'training.round'", "did you mean 'rounds'?"),
    ("clip_norm = 0.5", "clipnorm = 0.5", UnknownKey, "'privacy.clipnorm'", "'clip_norm'"),
    ("beta1 = 0.9", "betta1 = 0.9", UnknownKey, "optimizer.betta1'", "'beta1'"),
    ('name = "AGE", kind', 'nam = "AGE", kind', UnknownKey, "'data.columns[4].nam'", "'name'"),
    ("[evaluation]", "[evaluations]", UnknownKey, "'evaluations'", "'evaluation'"),
    ("masks = true", "zzz = 1", UnknownKey, "'aggregation.zzz'", "keys allowed here: mode,"),
    ('schema = "hansa/study/v1"', 'schema = "x"', InvalidValue, "schema = 'x'", ""),
    ('name = "bank-credit-default"', 'name = "A B"', InvalidValue, "name = 'A B'", ""),
    ("rounds = 30", 'rounds = "30"', InvalidValue, "training.rounds = '30'", ""),
    ("rounds = 30", "rounds = 30.0", InvalidValue, "training.rounds = 30.0", ""),
    ("rounds = 30", "rounds = 0", InvalidValue, "greater than or equal to 1", ""),
    ("rounds = 30", "rounds = 100001", InvalidValue, "equal to 100000", ""),
    ("rounds = 30", "", InvalidValue, "training.rounds is missing", ""),
    ("masks = true", "masks = 1", InvalidValue, "aggregation.masks = 1", ""),
    ("epsilon = 8.0", "epsilon = 0", InvalidValue, "privacy.epsilon = 0", ""),
    ("epsilon = 8.0", "epsilon = 100.1", InvalidValue, "less than or equal to 100", ""),
    ("epsilon = 8.0", "epsilon = nan", InvalidValue, "privacy.epsilon = nan", ""),
    ("epsilon = 8.0", "epsilon = true", InvalidValue, "privacy.epsilon = True", ""),
    ("epsilon = 8.0", "epsilon = 1979-05-27", InvalidValue, "privacy.epsilon:", ""),
    ("delta = 1e-5", "delta = 0.01", InvalidValue, "privacy.delta = 0.01", ""),
    ("delta = 1e-5", "delta = 1e-3", InvalidValue, "below 1 / nominal_records", ""),
    ("clip_norm = 0.5", "clip_norm = inf", InvalidValue, "privacy.clip_norm = inf", ""),
    ("sample_rate = 0.2", "sample_rate = 1.01", InvalidValue, "sample_rate = 1.01", ""),
    ("sample_rate = 0.2", "sample_rate = 1e-4", InvalidValue, "below 1 record", ""),
    ('mode = "local"', 'mode = "central"', InvalidValue, "privacy.mode = 'central'", ""),
    ('unit = "record"', 'unit = "household"', InvalidValue, "privacy.unit = 'household'", ""),
    ("dim = 32", "dim = 30", InvalidValue, "model.dim = 30", ""),
    ("heads = 4", "heads = 5", InvalidValue, "dim 32 is not a multiple of heads 5", ""),
    ("experts = 128", "experts = 3", InvalidValue, "top_k 4 is above experts 3", ""),
    ("rank = 4", "rank = 12", InvalidValue, "rank 12 is above the adapted width 8", ""),
    ('"attention", "experts"', '"router"', InvalidValue, "adapters.targets[0]", ""),
    ('"attention", "experts"', '"experts", "experts"', InvalidValue, "twice", ""),
    ("kept_share = 0.3", "kept_share = 0.0", InvalidValue, "kept_share = 0.0", ""),
    ("bits = 8", "bits = 32", InvalidValue, "compression.bits = 32", ""),
    ("bits = 8", "bits = 21", InvalidValue, "compression.bits = 21", ""),
    ("bits = 8", "bits = 3", InvalidValue, "compression.bits = 3", ""),
    ('encryption = "bfv"', 'encryption = "ckks"', InvalidValue, "= 'ckks'", ""),
    ('encryption = "bfv"', 'encryption = "none"', InvalidValue, "= 'none'", ""),
    ("masks = true", "masks = false", InvalidValue, "aggregation.masks", ""),
    ('release = "nothing"', 'release = "auc"', InvalidValue, "release = 'auc'", ""),
    ('name = "PAY_3"', 'name = "PAY_2"', InvalidValue, "'PAY_2' is declared twice", ""),
    ('name = "PAY_3"', 'name = "DEFAULT_NEXT_MONTH"', InvalidValue, "also a feature", ""),
    ("negative_class = 0", "negative_class = 1", InvalidValue, "are both 1", ""),
    ("values = [1, 2] }", "values = [1, 1] }", InvalidValue, "a category twice", ""),
    ("values = [1, 2] }", "values = [] }", InvalidValue, "data.columns[1]: ", ""),
    ("values = [1, 2] }", "values = 3 }", InvalidValue, "must be a list", ""),
    ("minimum = 18, maximum = 100", "minimum = 18", InvalidValue, "data.columns[4]: ", ""),
    ("minimum = 18", "minimum = 100", InvalidValue, "100.0 is not below", ""),
    ("[evaluation]\nrelease", "evaluation = 3\n[x]\nrelease", UnknownKey, "'aggregation.ev", ""),
    ("participants = 15", "participants = 1", CohortTooSmall, "is 1, below 3", "three"),
    ("participants = 15", "participants = 2", CohortTooSmall, "is 2, below 3", "three"),
    ("participants = 15", "participants = 259", CohortTooLarge, "above 258", "lower"),
    ("rounds = 30", "rounds = = 30", StudySyntaxError, "at line 35", ""),
    ("rounds = 30", "rounds = 30\nrounds = 31", StudySyntaxError, "at line 36", ""),
    ("rounds = 30", "rounds = " + "9" * 5000, StudySyntaxError, "not TOML", ""),
    ("rounds = 30", "rounds = " + "[" * 5000, StudySyntaxError, "nested too deeply", ""),
]  # fmt: skip

CODES = {
    UnknownKey: "unknown_key",
    InvalidValue: "invalid_value",
    CohortTooSmall: "cohort_too_small",
    CohortTooLarge: "cohort_too_large",
    StudySyntaxError: "study_syntax",
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[2].__name__}-{case[1][:30]}")
def test_bad_study_has_its_error(case: tuple[str, str, type[errors.Error], str, str]) -> None:
    old, new, kind, message, hint = case
    with pytest.raises(errors.ConfigurationError) as caught:
        parse_study(changed(old, new))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.exit_status) == (CODES[kind], 78)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint
    assert caught.value.message[0].islower()
    assert not caught.value.message.endswith(".")
    # pydantic's report repeats the whole input; it does not travel along
    assert not isinstance(caught.value.__context__, ValidationError)


def test_a_section_of_the_wrong_kind_is_named() -> None:
    text = changed('purpose = "test"', 'purpose = "test"\nmodel = 3', MINIMAL)
    with pytest.raises(errors.InvalidValue, match=r"^model = 3: must be a table$"):
        parse_study(text)


def test_a_study_that_trains_nothing_is_refused() -> None:
    nothing = "\n[adapters]\ntargets = []\ntrain_embeddings = false\ntrain_head = false\n"
    with pytest.raises(errors.InvalidValue, match="adapters: nothing is trained"):
        parse_study(MINIMAL + nothing)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(errors.InvalidValue, match=r"^data is missing$"):
        parse_study('schema = "hansa/study/v1"\nname = "x"\npurpose = "x"')


def test_the_last_line_is_named_at_the_end_of_the_document() -> None:
    with pytest.raises(errors.StudySyntaxError, match="at line 2, end of document"):
        parse_study("a = 1\nb = [\n")


def test_long_values_are_shortened() -> None:
    with pytest.raises(errors.InvalidValue) as caught:
        parse_study(changed('mode = "local"', f'mode = "{"x" * 10_000}"'))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("target", ["missing.toml", "."])
def test_unreadable_file(tmp_path: Path, target: str) -> None:
    with pytest.raises(errors.StudyFileMissing, match="cannot be read") as caught:
        load_study(tmp_path / target)
    assert (caught.value.code, caught.value.exit_status) == ("study_file_missing", 78)


def test_file_that_is_not_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(errors.StudySyntaxError, match=r"not UTF-8 \(at line 2\)"):
        load_study(path)


def test_file_beyond_the_size_limit_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"#" * (study.STUDY_BYTES_MOST + 1))
    with pytest.raises(errors.StudySyntaxError, match="longer than"):
        load_study(path)


# -- changes and protections -----------------------------------------------------------------------------


def test_with_changes_makes_a_checked_new_study() -> None:
    example = load_study(EXAMPLE)
    other = example.with_changes(participants=4, epsilon=3.5, rounds=2)
    assert (other.aggregation.participants, other.privacy.epsilon, other.training.rounds) == (4, 3.5, 2)
    assert example.aggregation.participants == 15
    assert other.id != example.id
    assert example.with_changes() == example
    assert other.with_changes(participants=15, epsilon=8.0, rounds=30).id == example.id


def test_three_participants_are_in_strict_mode_for_none_of_them_may_vanish() -> None:
    example = load_study(EXAMPLE)
    assert example.aggregation.mode == "quorum"
    assert example.with_changes(participants=3).aggregation.mode == "strict"
    assert example.with_changes(participants=4).aggregation.mode == "quorum"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"participants": 2}, errors.CohortTooSmall),
        ({"participants": 1}, errors.CohortTooSmall),
        ({"participants": 259}, errors.CohortTooLarge),
        ({"epsilon": 0.0}, errors.InvalidValue),
        ({"epsilon": float("nan")}, errors.InvalidValue),
        ({"rounds": 0}, errors.InvalidValue),
    ],
)
def test_with_changes_refuses_what_a_file_may_not_say(
    changes: dict[str, float], kind: type[errors.Error]
) -> None:
    with pytest.raises(kind):
        load_study(EXAMPLE).with_changes(**changes)  # type: ignore[arg-type]


def test_an_instance_never_changes() -> None:
    example = load_study(EXAMPLE)
    with pytest.raises(ValidationError, match="frozen"):
        example.privacy.epsilon = 100.0  # type: ignore[misc]
    assert hash(example) == hash(load_study(EXAMPLE))  # tuples all the way down


def test_protections_tell_what_is_on() -> None:
    assert load_study(EXAMPLE).protections() == {
        "differential_privacy": True,
        "own_noise_suffices": True,
        "secure_aggregation_masks": True,
        "homomorphic_encryption": True,
        "compression": True,
        "signatures": True,
        "in_slot_tag": True,
        "dropout_recovery": True,
        "crash_recovery": True,
        "coordinator_equivocation_check": True,
    }


@pytest.mark.parametrize(
    ("old", "new", "layer"),
    [
        ("kept_share = 0.3", "kept_share = 1.0", None),
        ("kept_share = 0.3\nbits = 8", "kept_share = 1.0\nbits = 16", "compression"),
        ("kept_share = 0.3\nbits = 8", "kept_share = 1.0\nbits = 20", "compression"),
    ],
)
def test_protections_show_a_layer_that_is_switched_off(old: str, new: str, layer: str | None) -> None:
    full, other = parse_study(FULL).protections(), parse_study(changed(old, new)).protections()
    assert {name for name in full if full[name] != other[name]} == ({layer} if layer else set())
