"""Connectors: what they read, every refusal, and that neither a value nor a password is in a message."""

import contextlib
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from hansa import errors
from hansa.participant.connectors.csv_table import CsvTable
from hansa.participant.connectors.json_lines import LINE_BYTES_MOST, JsonLines
from hansa.participant.connectors.opening import open_source
from hansa.participant.connectors.parquet_table import ParquetTable
from hansa.participant.connectors.select_only import verify_select_only
from hansa.participant.connectors.source import PIECE_BYTES, PIECE_ROWS, Source
from hansa.participant.connectors.sql_table import SqlTable
from hansa.participant.dataset_file import DatasetEntry

SECRET = "8675309"  # a value that must never be seen in a message


def rows(source: Source) -> list[dict[str, Any]]:
    return [row for piece in source.pieces() for row in piece.to_pylist()]


def assert_shows_no_value(error: BaseException | None) -> None:
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in getattr(error, "hint", "")
        error = error.__cause__ or error.__context__


# -- CSV -------------------------------------------------------------------------------------------------------


def test_csv_with_a_declared_delimiter_and_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('Größe;ort;leer\n1,5;"Köln;\nAltstadt";\n2;Ulm;NA\n'.encode("latin-1"))
    source = CsvTable(path, delimiter=";", encoding="latin-1")
    assert source.names == ("Größe", "ort", "leer")
    assert rows(source) == [
        {"Größe": "1,5", "ort": "Köln;\nAltstadt", "leer": None},
        {"Größe": "2", "ort": "Ulm", "leer": None},
    ]
    assert rows(source) == rows(source)  # each call begins anew


def test_csv_types_do_not_depend_on_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * (PIECE_BYTES // 3) + "x,y\n")
    pieces = list(CsvTable(path).pieces())
    assert len(pieces) > 1
    assert pieces[-1].slice(pieces[-1].num_rows - 1).to_pylist() == [{"a": "x", "b": "y"}]


def test_csv_columns_that_stand_there_twice_are_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    source = CsvTable(tmp_path / "t.csv")
    assert list(source.names) == ["a", "b", "a"]
    assert rows(source) == [{"b": "2"}]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (f"a,b\n1,2\n{SECRET}\n".encode(), "utf-8"),  # a short line
        (f"a,b\n1,{SECRET}\xff\n".encode("latin-1"), "utf-8"),
        (b"", "utf-8"),
        (b"\xff\xfe\xff", "utf-8"),
        (f"a,b\n1,{SECRET}\x81\n".encode("latin-1"), "cp1252"),
    ],
)
def test_csv_that_is_not_what_was_declared(tmp_path: Path, content: bytes, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(errors.DataUnreadable, match=r"t\.csv") as caught:
        rows(CsvTable(tmp_path / "t.csv", encoding=encoding))
    assert (caught.value.code, caught.value.exit_status) == ("data_unreadable", 65)
    assert_shows_no_value(caught.value)


def test_csv_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    source = CsvTable(path)
    path.write_text("a,c\n1,2\n")
    with pytest.raises(errors.DataUnreadable, match="changed while it was read"):
        rows(source)


_PEAK = """
import resource, sys
from pathlib import Path
from hansa.participant.connectors.csv_table import CsvTable
source = CsvTable(Path(sys.argv[1]))
next(source.pieces())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(piece.num_rows for piece in source.pieces())
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_csv_streams_in_bounded_memory(tmp_path: Path) -> None:
    path, count = tmp_path / "t.csv", 100_000
    line = ",".join(["123456.789"] * 40) + "\n"
    path.write_text(",".join(f"c{k}" for k in range(40)) + "\n" + line * count)
    assert path.stat().st_size > 40 << 20
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    read, grown_kib = map(int, found.stdout.split())
    assert read == count
    assert grown_kib < 16 << 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > grown_kib  # the unit is KiB on Linux


# -- Parquet ---------------------------------------------------------------------------------------------------


def test_parquet_in_pieces_with_any_names(tmp_path: Path) -> None:
    table = pa.table(
        {"a.b": range(PIECE_ROWS + 1), "c": pa.array(["x"] * (PIECE_ROWS + 1)).dictionary_encode()}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    source = ParquetTable(tmp_path / "t.parquet")
    assert source.names == ("a.b", "c")
    assert [piece.num_rows for piece in source.pieces()] == [PIECE_ROWS, 1]
    assert rows(source)[-1] == {"a.b": PIECE_ROWS, "c": "x"}


@pytest.mark.parametrize("content", [b"", SECRET.encode(), b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_parquet_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(errors.DataUnreadable, match="not a well-formed Parquet") as caught:
        ParquetTable(tmp_path / "t.parquet")
    assert_shows_no_value(caught.value)


def test_parquet_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": range(1000)}), path)
    source = ParquetTable(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(errors.DataUnreadable, match="changed while it was read"):
        rows(source)


# -- files -----------------------------------------------------------------------------------------------------

FILES: list[Callable[[Path], Source]] = [
    CsvTable,
    ParquetTable,
    lambda path: JsonLines(path, fields=("text",)),
]


@pytest.mark.parametrize("make", FILES)
def test_a_file_that_is_missing_or_no_file(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    (tmp_path / "folder").mkdir()
    subprocess.run(["mkfifo", str(tmp_path / "pipe")], check=True)
    for name in ("none", "folder", "pipe"):
        with pytest.raises(errors.DataFileMissing, match="cannot be read") as caught:
            make(tmp_path / name)
        assert caught.value.exit_status == 66


# -- databases -------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(tmp_path / "bank 100%.db")) as connection, connection:
        connection.execute('CREATE TABLE clients (id INTEGER, "in come" REAL, city TEXT, y INT)')
        connection.executemany(
            "INSERT INTO clients VALUES (?, ?, ?, ?)",
            [(2**53 + 1, 1.5, "Ulm", 0), (2, None, None, 1), (3, "none", "100 %", True)],
        )
        connection.execute("CREATE VIEW shown AS SELECT id, y FROM clients")
    return tmp_path


def sqlite_table(home: Path, **arguments: Any) -> SqlTable:
    return SqlTable("sqlite:///bank 100%.db", home=home, **arguments)


def test_sql_rows_of_a_query_and_of_a_table(database: Path) -> None:
    query = "SELECT id, \"in come\" AS income, city FROM clients WHERE city LIKE '%' OR city IS NULL ORDER BY id -- :x %s"
    assert rows(sqlite_table(database, query=query)) == [
        {"id": 2, "income": None, "city": None},
        {"id": 3, "income": "none", "city": "100 %"},  # SQLite keeps text in a column of numbers
        {"id": 2**53 + 1, "income": "1.5", "city": "Ulm"},
    ]
    assert sqlite_table(database, table="clients").names == ("id", "in come", "city", "y")
    assert rows(sqlite_table(database, table="shown"))[0] == {"id": 2**53 + 1, "y": 0}


def test_sql_keys_stay_exact_and_numbers_stay_numbers(database: Path) -> None:
    query = "SELECT {} AS a UNION ALL SELECT {} UNION ALL SELECT NULL"
    for values in [("9007199254740993", "1"), ("1.5", "2"), ("9007199254740993", "0.5"), ("x'ff'", "1")]:
        quoted = query.format(*values)
        found = [row["a"] for row in rows(sqlite_table(database, query=quoted))]
        expected = {
            "1.5": [1.5, 2.0],
            "9007199254740993": [9007199254740993, 1] if values[1] == "1" else ["9007199254740993", "0.5"],
        }.get(values[0], ["b'\\xff'", "1"])
        assert found == [*expected, None]


def test_sql_in_pieces(database: Path) -> None:
    count = PIECE_ROWS + 5
    query = (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n;"
    )
    assert [piece.num_rows for piece in sqlite_table(database, query=query).pieces()] == [PIECE_ROWS, 5]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("DELETE FROM clients", "begins with 'DELETE'"),
        ("SELECT 1; DROP TABLE clients", "more than one statement"),
        ("SELECT 1;;", "more than one statement"),
        ("WITH x AS (SELECT 1) DELETE FROM clients", "'delete'"),
        ("with x as (insert into clients values (1) returning 1) select * from x", "'insert'"),
        ("SELECT * INTO other FROM clients", "'into'"),
        ("SELECT * FROM clients FOR UPDATE", "'update'"),
        ("PRAGMA query_only = OFF", "begins with 'PRAGMA'"),
        ("-- SELECT\nATTACH 'x.db' AS x", "begins with 'ATTACH'"),
        ("SELECT 'open", "does not end"),
        ("SELECT 1 /* open", "does not end"),
        ("/* nothing */ ;", "is empty"),
        ("", "is empty"),
        ("SELECT '" + "x" * 70_000 + "'", "more than 65536 bytes"),
    ],
)
def test_a_query_that_is_not_one_select_never_reaches_the_database(
    database: Path, query: str, said: str
) -> None:
    before = (database / "bank 100%.db").read_bytes()
    with pytest.raises(errors.QueryRefused, match=said) as caught:
        sqlite_table(database, query=query)
    assert (caught.value.code, caught.value.exit_status) == ("query_refused", 78)
    assert (database / "bank 100%.db").read_bytes() == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'delete; insert' AS a",
        'SELECT "update" FROM t',
        "SELECT a -- drop; delete\nFROM t;",
        "/* ; */ WITH x AS (SELECT 1) SELECT * FROM x ;",
        "SELECT $tag$ ; delete $tag$",
        "SELECT 'it''s; into'",
        "SELECT replace(a, 'x', 'y'), updated_at FROM t",
    ],
)
def test_text_comments_and_quoted_names_are_no_statements(query: str) -> None:
    verify_select_only(query)


def test_sqlite_itself_refuses_to_write(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.participant.connectors.sql_table.verify_select_only", lambda query: None)
    before = (database / "bank 100%.db").read_bytes()
    for query in (
        "DELETE FROM clients RETURNING 1",
        "CREATE TABLE x (a)",
        "INSERT INTO clients VALUES (1, 1, 1, 1)",
    ):
        with pytest.raises(errors.DataUnreadable, match="SQLITE_READONLY"):
            sqlite_table(database, query=query)
    assert (database / "bank 100%.db").read_bytes() == before
    assert [path.name for path in database.iterdir()] == ["bank 100%.db"]


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("mysql://bank@host/db", errors.QueryRefused, "'mysql' cannot be held to reading"),
        ("sqlite://", errors.QueryRefused, "names a file and nothing else"),
        ("sqlite:///:memory:", errors.QueryRefused, "names a file and nothing else"),
        ("sqlite:///bank 100%.db?mode=rwc", errors.QueryRefused, "names a file and nothing else"),
        ("sqlite:///none.db", errors.DataFileMissing, "no such file"),
        (f"no url {SECRET}", errors.QueryRefused, "is not one"),
        ("postgresql+nosuchdriver://bank@host/db", errors.DriverMissing, "'nosuchdriver' is not installed"),
        ("postgresql+pg8000://bank@host/db", errors.DriverMissing, "'pg8000' is not installed"),
    ],
)
def test_a_url_that_cannot_be_asked(database: Path, url: str, kind: type[errors.Error], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        SqlTable(url, home=database, table="clients")
    assert type(caught.value) is kind
    assert_shows_no_value(caught.value)
    assert not (database / "none.db").exists()


def test_a_query_that_fails_shows_no_value(database: Path) -> None:
    for query in ("SELECT nothing FROM clients", f"SELECT json('{SECRET}x') FROM clients"):
        with pytest.raises(errors.DataUnreadable, match="the query fails") as caught:
            sqlite_table(database, query=query)
        assert_shows_no_value(caught.value)
    (database / "text.db").write_text("not a database at all" * 100)
    with pytest.raises(errors.DataUnreadable):
        SqlTable("sqlite:///text.db", home=database, table="clients")


def test_url_and_query_of_files_and_no_password_in_them(database: Path) -> None:
    (database / "url").write_text("sqlite:///bank 100%.db\n")
    (database / "query.sql").write_text("SELECT id FROM clients ORDER BY id LIMIT 1;\n")
    entry = DatasetEntry(name="a", kind="sql", url_file="url", query_file="query.sql")
    assert rows(open_source(entry, database)) == [{"id": 2}]
    (database / "url").write_text(f"postgresql://bank:{SECRET}@host/db")
    with pytest.raises(errors.InvalidValue, match="holds a password") as caught:
        open_source(entry, database)
    assert_shows_no_value(caught.value)
    (database / "url").unlink()
    with pytest.raises(errors.DatasetFileMissing, match="cannot be read"):
        open_source(entry, database)


# -- JSON lines ------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"text": "a\\nb", "label": 3}\n\n{"label": "x", "text": null}\n{"text": "c"}'
    )
    source = JsonLines(tmp_path / "t.jsonl", fields=("text", "label"))
    assert rows(source) == [
        {"text": "a\nb", "label": "3"},
        {"text": None, "label": "x"},
        {"text": "c", "label": None},
    ]


def test_json_lines_in_pieces_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"text": "{"x" * 200_000}"}}\n' * 20)
    pieces = [piece.num_rows for piece in JsonLines(tmp_path / "t.jsonl", fields=("text",)).pieces()]
    assert pieces == [6, 6, 6, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f'{{"text": "{SECRET}"', "is not a JSON object"),
        (f'["{SECRET}"]', "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        (f'{{"text": "a", "{SECRET}": 1}}', "has another field than text, label"),
        (f'{{"text": "a", "text": "{SECRET}"}}', "has a field twice"),
        (f'{{"text": {{"text": "{SECRET}"}}}}', "'text' that is neither text nor integer"),
        (f'{{"text": {SECRET}.5}}', "'text' that is neither text nor integer"),
        ('{"text": "\\ud800"}', "not Unicode text"),
        ('{"text": "' + "x" * LINE_BYTES_MOST + '"}', "has more than"),
    ],
)
def test_a_line_that_is_no_text(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(errors.DataUnreadable, match=said) as caught:
        rows(JsonLines(tmp_path / "t.jsonl", fields=("text", "label")))
    assert "line 2 of" in caught.value.message
    assert_shows_no_value(caught.value)


def test_a_line_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(errors.DataUnreadable, match="line 1"):
        rows(JsonLines(tmp_path / "t.jsonl", fields=("text",)))


# -- all of them -----------------------------------------------------------------------------------------------


def test_every_connector_leaves_its_data_as_it_was(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "y": [0, 1]})
    csv.write_csv(table, tmp_path / "t.csv")
    parquet.write_table(table, tmp_path / "t.parquet")
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as connection, connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS id, 0 AS y UNION SELECT 2, 1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    entries = [
        DatasetEntry(name="a", kind="csv", path="t.csv"),
        DatasetEntry(name="b", kind="parquet", path="t.parquet"),
        DatasetEntry(name="c", kind="sql", url="sqlite:///t.db", table="t"),
    ]
    found = [
        [{k: int(v) for k, v in row.items()} for row in rows(open_source(entry, tmp_path))]
        for entry in entries
    ]
    assert found == [[{"id": 1, "y": 0}, {"id": 2, "y": 1}]] * 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
