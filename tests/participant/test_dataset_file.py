"""datasets.toml is read strictly, and changed without touching what its owner wrote besides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa import errors
from hansa.participant.dataset_edit import add_dataset, block_of, remove_dataset
from hansa.participant.dataset_file import DatasetEntry, load_datasets, parse_datasets

GOOD = """schema = "hansa/datasets/v1"

[[dataset]]
name = "cards"
kind = "csv"
path = "cards.csv"
delimiter = ";"
label = "late"
person = "client"
columns = { AGE = "age in years" }
categories = { SEX = { male = 1, female = 2 } }

[[dataset]]
name = "loans"
kind = "sql"
url = "postgresql+psycopg://hansa@db/bank"
password_file = "db-password"
table = "loans"
"""
SECRET = "hunter2"


def test_a_good_file() -> None:
    cards, loans = parse_datasets(GOOD).dataset
    assert (cards.name, cards.delimiter, cards.encoding, cards.person) == ("cards", ";", "utf-8", "client")
    assert (cards.columns, cards.categories) == ({"AGE": "age in years"}, {"SEX": {"male": 1, "female": 2}})
    assert (loans.kind, loans.password_file, loans.policy) == ("sql", "db-password", None)
    with pytest.raises(errors.UnknownDataset, match="'lones'") as caught:
        parse_datasets(GOOD).named("lones")
    assert caught.value.exit_status == 66


BAD = [
    ('kind = "csv"', 'kind = "cvs"', errors.InvalidValue, "'csv', 'parquet', 'sql' or 'jsonl'", ""),
    ('person = "client"', 'persn = "client"', errors.UnknownKey, r"dataset\[0\]\.persn", "did you mean 'person'"),
    ('name = "loans"', 'name = "cards"', errors.InvalidValue, "'cards' is described twice", ""),
    ('name = "cards"', 'name = "Cards"', errors.InvalidValue, "'Cards'", "docs/data.md"),
    ('path = "cards.csv"', "", errors.InvalidValue, "exactly one of `path`, got 0", ""),
    ('path = "cards.csv"', 'path = "cards.csv"\ntable = "x"', errors.InvalidValue, "`table` is not a key of kind 'csv'", ""),
    ('table = "loans"', "", errors.InvalidValue, "exactly one of `query` or `query_file` or `table`, got 0", ""),
    ('table = "loans"', 'table = "l"\nquery = "SELECT 1"', errors.InvalidValue, "got 2", ""),
    ("hansa@db", f"hansa:{SECRET}@db", errors.InvalidValue, "holds a password", ""),
    ("db/bank", f"db/bank?password={SECRET}", errors.InvalidValue, "holds a password", ""),
    ("postgresql+psycopg://", f"{SECRET} ", errors.InvalidValue, "url is not dialect", ""),
    ('delimiter = ";"', 'delimiter = ";;"', errors.InvalidValue, "delimiter", ""),
    ('delimiter = ";"', "delimiter = '\"'", errors.InvalidValue, "is no quote", ""),
    ('delimiter = ";"', 'encoding = "utf-9"', errors.InvalidValue, "encoding is none", ""),
    ('delimiter = ";"', 'encoding = "hex"', errors.InvalidValue, "encoding is none", ""),
    ('person = "client"', 'person = "late"', errors.InvalidValue, "'late' of the data is given two meanings", ""),
    ("male = 1", "male = 1.5", errors.InvalidValue, "male", ""),
    ('schema = "hansa/datasets/v1"', 'schema = "hansa/datasets/v2"', errors.InvalidValue, "schema", ""),
    ('kind = "sql"', 'kind = "sql"\nkind = "sql"', errors.DatasetSyntaxError, "not TOML", ""),
    ('kind = "sql"', "kind = sql", errors.DatasetSyntaxError, "line 15", ""),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[1][:30])
def test_a_bad_file_gives_no_data_set_at_all(case: tuple[str, str, type[errors.Error], str, str]) -> None:
    old, new, kind, message, hint = case
    assert GOOD.count(old) == 1
    with pytest.raises(kind, match=message) as caught:
        parse_datasets(GOOD.replace(old, new))
    assert type(caught.value) is kind
    assert caught.value.exit_status == 78
    assert hint in caught.value.hint
    assert SECRET not in caught.value.message + caught.value.hint
    assert caught.value.__cause__ is None or kind is errors.DatasetSyntaxError


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(errors.DatasetFileMissing) as caught:
        load_datasets(tmp_path)
    assert caught.value.exit_status == 66
    (tmp_path / "datasets.toml").write_bytes(b'schema = "\xff"')
    with pytest.raises(errors.DatasetSyntaxError, match=r"not UTF-8 \(at line 1\)"):
        load_datasets(tmp_path)
    (tmp_path / "datasets.toml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(errors.DatasetSyntaxError, match="longer than"):
        load_datasets(tmp_path)


# -- changes ---------------------------------------------------------------------------------------------------

NEW = DatasetEntry(
    name="new", kind="jsonl", path='no"tes\\.jsonl', labels=("a", "b"), longest_text=5, person="Å"
)

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(columns=st.dictionaries(names, names.map(lambda name: f"s{name}"), max_size=3), person=names)
def test_a_block_says_what_was_meant(columns: dict[str, str], person: str) -> None:
    if len({*columns.values(), f"p{person}"}) < len(columns) + 1:
        return
    entry = DatasetEntry(name="a", kind="csv", path="p", person=f"p{person}", columns=columns)
    assert parse_datasets('schema = "hansa/datasets/v1"\n' + block_of(entry)).dataset == (entry,)


def test_adding_and_removing_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "datasets.toml"
    entry = DatasetEntry(name="first", kind="parquet", path="a.parquet")
    block = add_dataset(tmp_path / "home", entry)
    assert (tmp_path / "home" / "datasets.toml").read_text() == f'schema = "hansa/datasets/v1"\n\n{block}'
    written = GOOD.replace(
        '[[dataset]]\nname = "loans"', '# our loans\n[[dataset]] # since 2020\nname = "loans"'
    )
    written = "# the owner's words\n" + written
    file.write_text(written)
    file.chmod(0o644)
    block = add_dataset(tmp_path, NEW.model_copy(update={"person": None}))
    assert file.read_text() == f"{written}\n{block}"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in load_datasets(tmp_path).dataset] == ["cards", "loans", "new"]
    taken = remove_dataset(tmp_path, "loans")
    assert taken.startswith("# our loans\n[[dataset]] # since 2020\nname")
    assert "our loans" not in file.read_text()
    assert "# the owner's words" in file.read_text()
    remove_dataset(tmp_path, "new")
    remove_dataset(tmp_path, "cards")
    assert load_datasets(tmp_path).dataset == ()
    assert file.read_text() == '# the owner\'s words\nschema = "hansa/datasets/v1"\n\n'


def test_a_dry_run_writes_nothing_and_a_refusal_neither(tmp_path: Path) -> None:
    assert "[[dataset]]" in add_dataset(
        tmp_path / "home", NEW.model_copy(update={"person": None}), dry_run=True
    )
    assert not (tmp_path / "home").exists()
    file = tmp_path / "datasets.toml"
    file.write_text(GOOD)
    remove_dataset(tmp_path, "cards", dry_run=True)
    with pytest.raises(errors.DatasetExists, match="'cards'"):
        add_dataset(tmp_path, DatasetEntry(name="cards", kind="csv", path="x"))
    with pytest.raises(errors.DatasetExists):
        add_dataset(tmp_path, DatasetEntry(name="cards", kind="csv", path="x"), dry_run=True)
    with pytest.raises(errors.UnknownDataset):
        remove_dataset(tmp_path, "other")
    assert file.read_text() == GOOD
    file.write_text(GOOD + "nonsense = 1\n")
    with pytest.raises(errors.UnknownKey):
        add_dataset(tmp_path, DatasetEntry(name="x", kind="csv", path="x"))
    assert file.read_text() == GOOD + "nonsense = 1\n"


@pytest.mark.parametrize(
    "text",
    [
        'schema = "hansa/datasets/v1"\ndataset = [{ name = "cards", kind = "csv", path = "x" }]\n',
        GOOD.replace('label = "late"', 'label = """\n[[dataset]]\n"""'),
    ],
)
def test_a_file_that_cannot_be_cut_safely_stays_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "datasets.toml"
    file.write_text(text)
    with pytest.raises((errors.DatasetSyntaxError, errors.InvalidValue)):
        remove_dataset(tmp_path, "cards")
    assert file.read_text() == text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(errors.StoreNotWritable) as caught:
        add_dataset(tmp_path / "home", DatasetEntry(name="x", kind="csv", path="x"))
    assert caught.value.exit_status == 73


_ADD = """
import sys
from pathlib import Path
from hansa.participant.dataset_edit import add_dataset
from hansa.participant.dataset_file import DatasetEntry
for k in range(10):
    add_dataset(Path(sys.argv[1]), DatasetEntry(name=f"{sys.argv[2]}-{k}", kind="csv", path="x"))
"""


def test_two_that_add_at_once_both_succeed(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", _ADD, str(tmp_path), name], env=dict(os.environ))
        for name in ("a", "b")
    ]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert len(load_datasets(tmp_path).dataset) == 20
