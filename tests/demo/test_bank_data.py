"""The bank example's table, its split and its partitions."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hansa import errors
from hansa.demo import bank_data
from hansa.demo.bank_data import BankData, Partition, load_bank, partition, split_table
from hansa.participant.dataset import Table, read_table
from hansa.study import ColumnSchema, DataSchema, Study, load_study

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank"
PARQUET = EXAMPLE / "data" / "credit_default.parquet"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(EXAMPLE / "study.toml")


@pytest.fixture(scope="module")
def bank(study: Study) -> BankData:
    return load_bank(PARQUET, study, seed=0)


def made(limits: np.ndarray, ages: np.ndarray, labels: np.ndarray) -> BankData:
    """Private rows as given, public and test rows like them."""
    schema = DataSchema(
        label="y",
        columns=(
            ColumnSchema(name="LIMIT_BAL", kind="numeric", minimum=0, maximum=1000),
            ColumnSchema(name="AGE", kind="numeric", minimum=0, maximum=1000),
        ),
    )
    table = Table(
        numeric=np.stack([limits, ages], axis=1).astype(float),
        categorical=np.empty((len(labels), 0), dtype=np.int64),
        labels=labels.astype(float),
    )
    grid = np.array([(limit, age) for limit in range(5) for age in range(3)], dtype=float)
    public = Table(numeric=grid, categorical=np.empty((15, 0), dtype=np.int64), labels=np.full(15, np.nan))
    return BankData(schema=schema, test=table, public=public, private=table)


def assert_floor(data: BankData, dealt: Partition) -> None:
    rows = np.concatenate(dealt.indices)
    assert len(np.unique(rows)) == len(rows)  # no private row has two banks
    for index in dealt.indices:
        assert len(index) >= 60
        positives = int(data.private.labels[index].sum())
        assert positives >= 10
        assert len(index) - positives >= 10
        assert (np.diff(index) > 0).all()


# -- the file --------------------------------------------------------------------------------------------


def test_file_holds_the_published_table(study: Study) -> None:
    table = read_table(PARQUET, study.data)
    assert (len(table), table.labels.sum()) == (30_000, 6_636)
    assert PARQUET.stat().st_size < 1_500_000
    raw = parquet.read_table(PARQUET)
    assert raw.column_names == [*(column.name for column in study.data.columns), study.data.label]
    assert set(raw.schema.types) == {pa.int8(), pa.int32()}
    # UCI's own codes: 18,112 women, education 0-6, marriage 0-3
    assert np.count_nonzero(raw["SEX"].to_numpy() == 2) == 18_112
    assert np.bincount(raw["EDUCATION"].to_numpy()).tolist() == [14, 10_585, 14_030, 4_917, 123, 280, 51]
    assert np.bincount(raw["MARRIAGE"].to_numpy()).tolist() == [54, 13_659, 15_964, 323]


def test_public_bounds_clamp_no_row_of_the_example(study: Study) -> None:
    raw = parquet.read_table(PARQUET)
    for column in study.data.numeric:
        values = raw[column.name].to_numpy()
        assert column.minimum is not None
        assert column.maximum is not None
        assert values.min() >= column.minimum
        assert values.max() <= column.maximum


def test_attribution_names_source_licence_and_file() -> None:
    text = (EXAMPLE / "data" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for part in ("I-Cheng Yeh", "10.24432/C55S3H", "CC BY 4.0", bank_data.CREDIT_DEFAULT_SHA256):
        assert part in text


def test_damaged_file_is_refused(tmp_path: Path, study: Study) -> None:
    path = tmp_path / "credit_default.parquet"
    shutil.copy(PARQUET, path)
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(errors.ChecksumMismatch) as caught:
        load_bank(path, study, seed=0)
    assert (caught.value.code, caught.value.exit_status) == ("checksum_mismatch", 65)


def test_absent_file_hints_at_the_checkout(tmp_path: Path, study: Study) -> None:
    with pytest.raises(errors.DataFileMissing, match="does not exist") as caught:
        load_bank(tmp_path / "credit_default.parquet", study, seed=0)
    assert (caught.value.code, caught.value.exit_status) == ("data_file_missing", 66)
    assert "checkout" in caught.value.hint


# -- the split -------------------------------------------------------------------------------------------


def test_split_sizes_and_classes(bank: BankData) -> None:
    assert (len(bank.test), len(bank.public), len(bank.private)) == (7_500, 1_500, 21_000)
    assert bank.test.labels.sum() == 1_659  # a quarter of 6,636
    assert np.isnan(bank.public.labels).all()


def numbered(count: int, labels: np.ndarray) -> tuple[Table, DataSchema]:
    schema = DataSchema(
        label="y", columns=(ColumnSchema(name="n", kind="numeric", minimum=0, maximum=count),)
    )
    numeric = np.arange(count, dtype=float)[:, None]
    return Table(numeric=numeric, categorical=np.empty((count, 0), dtype=np.int64), labels=labels), schema


def test_every_row_is_in_exactly_one_part_and_the_seed_decides_which() -> None:
    labels = (np.arange(1000) % 5 == 0).astype(float)
    table, schema = numbered(1000, labels)
    first, again, other = (split_table(table, schema, seed=seed) for seed in (1, 1, 2))
    rows = np.concatenate([part.numeric[:, 0] for part in (first.test, first.public, first.private)])
    assert sorted(rows) == list(range(1000))
    assert (len(first.test), first.test.labels.sum(), len(first.public)) == (250, 50, 50)
    np.testing.assert_array_equal(first.test.numeric, again.test.numeric)
    np.testing.assert_array_equal(first.private.numeric, again.private.numeric)
    assert not np.array_equal(first.test.numeric, other.test.numeric)


def test_no_label_has_a_part_in_the_public_sample() -> None:
    random = np.random.default_rng(0)
    public = []
    for share in (0.2, 0.5):
        table, schema = numbered(1000, (random.random(1000) < share).astype(float))
        public.append(split_table(table, schema, seed=1).public.numeric)
    np.testing.assert_array_equal(public[0], public[1])


def test_split_is_golden(bank: BankData) -> None:
    # the published figures depend on these rows: a numpy that draws others must not go unnoticed
    dealt = partition(bank, kind="dirichlet", participants=15, seed=0)
    assert [len(rows) for rows in dealt.indices] == [
        4084, 1085, 309, 231, 170, 4051, 1195, 645, 1274, 200, 285, 66, 392, 3902, 3111
    ]  # fmt: skip


# -- partitions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["dirichlet", "segments"])
def test_fifteen_banks_keep_the_floor_and_share_out_all_rows(bank: BankData, kind: str, seed: int) -> None:
    dealt = partition(bank, kind=kind, participants=15, seed=seed)
    assert_floor(bank, dealt)
    assert sum(map(len, dealt.indices)) == 21_000
    assert len(dealt.own_test) == 15


@pytest.mark.parametrize("kind", ["dirichlet", "segments"])
def test_smaller_consortium_is_the_first_banks(bank: BankData, kind: str) -> None:
    all_banks = partition(bank, kind=kind, participants=15, seed=3)
    for participants in (3, 7):
        fewer = partition(bank, kind=kind, participants=participants, seed=3)
        assert len(fewer.indices) == len(fewer.own_test) == participants
        for mine, theirs in zip(fewer.indices, all_banks.indices[:participants], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_dirichlet_is_skewed_and_depends_on_the_seed(bank: BankData) -> None:
    first, again, other = (
        partition(bank, kind="dirichlet", participants=15, seed=seed) for seed in (0, 0, 1)
    )
    shares = [bank.private.labels[rows].mean() for rows in first.indices]
    assert max(shares) > 0.6
    assert min(shares) < 0.1
    for mine, same in zip(first.indices, again.indices, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert [len(rows) for rows in first.indices] != [len(rows) for rows in other.indices]


def test_more_than_fifteen_dirichlet_banks(bank: BankData) -> None:
    dealt = partition(bank, kind="dirichlet", participants=40, seed=0)
    assert len(dealt.indices) == 40
    assert_floor(bank, dealt)
    assert "no draw of 200" in dealt.notes[0]


def test_notes_say_what_was_redrawn_and_moved() -> None:
    random = np.random.default_rng(0)
    redrawn = moved = 0
    for seed in range(6):
        # half the labels positive, plenty of rows: some seed needs redraws only, some needs moves
        labels = random.integers(0, 2, 40_000 if seed % 2 else 2_000)
        data = made(random.integers(0, 5, len(labels)), random.integers(0, 3, len(labels)), labels)
        dealt = partition(data, kind="dirichlet", participants=15, seed=seed)
        assert_floor(data, dealt)
        redrawn += any("redrew" in note for note in dealt.notes)
        moved += any("moved" in note and "from the largest banks" in note for note in dealt.notes)
    assert redrawn > 0
    assert moved > 0


def test_segments_are_bands_of_limit_and_age(bank: BankData, study: Study) -> None:
    dealt = partition(bank, kind="segments", participants=15, seed=0)
    assert dealt.notes == ()
    assert sum(map(len, dealt.own_test)) == 7_500  # every test row is some bank's own customer
    names = [column.name for column in study.data.numeric]
    for name, bands in (
        ("LIMIT_BAL", [range(3 * band, 3 * band + 3) for band in range(5)]),
        ("AGE", [range(band, 15, 3) for band in range(3)]),
    ):
        column = names.index(name)
        values = [  # of a band: of its private rows and of the test rows that are like them
            np.concatenate(
                [bank.private.numeric[dealt.indices[number], column] for number in band]
                + [bank.test.numeric[dealt.own_test[number], column] for number in band]
            )
            for band in bands
        ]
        for lower, upper in itertools.pairwise(values):
            assert lower.max() < upper.min()


def test_small_segment_is_filled_from_its_neighbours() -> None:
    limits, ages = np.divmod(np.repeat(np.arange(15), 200), 3)
    labels = np.tile([0, 1], 1500)
    keep = np.ones(3000, dtype=bool)
    keep[5:200] = False  # bank 1 keeps 5 rows
    keep[401:600:2] = False  # bank 3 keeps no positives
    data = made(limits[keep], ages[keep], labels[keep])
    dealt = partition(data, kind="segments", participants=15, seed=0)
    assert_floor(data, dealt)
    assert [note.split(" from ")[0] for note in dealt.notes] == ["moved 55 rows", "moved 10 rows"]
    neighbours = {tuple(row) for row in data.private.numeric[dealt.indices[0]]} - {(0.0, 0.0)}
    assert neighbours == {(0.0, 1.0), (1.0, 0.0)}  # next age, next limit, never further


def test_own_test_rows_have_the_banks_mix_of_classes(bank: BankData) -> None:
    dealt = partition(bank, kind="dirichlet", participants=15, seed=0)
    for private, test in zip(dealt.indices, dealt.own_test, strict=True):
        assert len(np.unique(test)) == len(test)
        assert len(np.unique(bank.test.labels[test])) == 2
        mix = bank.private.labels[private].mean()
        assert bank.test.labels[test].mean() == pytest.approx(mix, abs=0.001)


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "participants", "error", "code", "exit_status"),
    [
        ("dirichlet", 1, errors.CohortTooSmall, "cohort_too_small", 78),
        ("dirichlet", 2, errors.CohortTooSmall, "cohort_too_small", 78),
        ("segments", 2, errors.CohortTooSmall, "cohort_too_small", 78),
        ("segments", 16, errors.CohortTooLarge, "cohort_too_large", 78),
        ("dirichlet", 351, errors.PartitionImpossible, "partition_impossible", 65),
        ("iid", 15, errors.UsageError, "usage", 2),
    ],
)
def test_refusals(
    bank: BankData, *, kind: str, participants: int, error: type[errors.Error], code: str, exit_status: int
) -> None:
    with pytest.raises(error) as caught:
        partition(bank, kind=kind, participants=participants, seed=0)
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.exit_status) == (code, exit_status)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["dirichlet", "segments"])
def test_too_few_rows_of_a_class(kind: str) -> None:
    limits, ages = np.divmod(np.repeat(np.arange(15), 100), 3)
    labels = np.zeros(1500)
    labels[:149] = 1
    with pytest.raises(errors.PartitionImpossible, match="150 of either class, there are 1500 and 149"):
        partition(made(limits, ages, labels), kind=kind, participants=3, seed=0)


def test_segments_need_their_columns() -> None:
    table, schema = numbered(2000, np.tile([0.0, 1.0], 1000))
    data = split_table(table, schema, seed=0)
    with pytest.raises(errors.MissingColumn, match="'LIMIT_BAL'"):
        partition(data, kind="segments", participants=15, seed=0)
