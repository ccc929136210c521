"""A PostgreSQL table is read through a transaction that cannot write, its password from a file. Needs a server and a driver."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hansa import errors
from hansa.participant.connectors.opening import open_source
from hansa.participant.connectors.sql_table import SqlTable
from hansa.participant.dataset_file import DatasetEntry

PASSWORD = "a pass:word/with@signs"


@pytest.fixture(scope="module")
def server(postgresql: Any) -> str:
    """A database with a table of clients."""
    url = postgresql.new_database()
    with postgresql.owner(url) as connection:
        connection.exec_driver_sql("CREATE SEQUENCE numbers")
        connection.exec_driver_sql(
            "CREATE TABLE clients (id bigint, age numeric, city text, y int, born date)"
        )
        connection.exec_driver_sql(
            "INSERT INTO clients SELECT i, i + 0.5, NULLIF('city ' || mod(i, 7), 'city 0'), mod(i, 2), DATE '2000-01-01'"
            " FROM generate_series(1, 20000) i"
        )
        connection.exec_driver_sql(
            "CREATE FUNCTION spoil() RETURNS int LANGUAGE sql AS 'DELETE FROM clients RETURNING 1'"
        )
    return url


def count(postgresql: Any, url: str) -> int:
    with postgresql.owner(url) as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM clients").scalar_one())


def test_a_table_is_read_in_pieces_with_the_password_of_a_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    (tmp_path / "secret").chmod(0o600)
    entry = DatasetEntry(
        name="clients", kind="sql", url=server, password_file="secret", table="public.clients"
    )
    source = open_source(entry, tmp_path)
    assert list(source.names) == ["id", "age", "city", "y", "born"]
    pieces = list(source.pieces())
    assert [piece.num_rows for piece in pieces] == [8192, 8192, 3616]
    assert pieces[0].slice(0, 1).to_pylist() == [
        {"id": 1, "age": 1.5, "city": "city 1", "y": 1, "born": "2000-01-01"}
    ]
    assert PASSWORD not in repr(source)


@pytest.mark.parametrize(
    "query", ["SELECT spoil() AS y", "SELECT nextval('numbers') AS y, set_config('a.b', 'c', false)"]
)
def test_a_function_that_writes_is_refused_by_the_database(
    postgresql: Any, server: str, tmp_path: Path, query: str
) -> None:
    before = count(postgresql, server)
    with pytest.raises(errors.DataUnreadable, match="the query fails"):
        SqlTable(server, home=tmp_path, password=PASSWORD, query=query)
    assert count(postgresql, server) == before == 20000


def test_a_per_cent_sign_and_a_colon_are_no_parameters(server: str, tmp_path: Path) -> None:
    query = "SELECT id::text AS id, 5 % 3 AS y, ':a %s' AS t FROM clients WHERE city LIKE 'city%' LIMIT 1"
    found = [
        piece.to_pylist()
        for piece in SqlTable(server, home=tmp_path, password=PASSWORD, query=query).pieces()
    ]
    assert found == [[{"id": "1", "y": 2, "t": ":a %s"}]]


def test_a_wrong_password_is_unreachable_and_is_not_shown(server: str, tmp_path: Path) -> None:
    with pytest.raises(errors.DatabaseUnreachable) as caught:
        SqlTable(server, home=tmp_path, password="another secret", table="clients")
    assert caught.value.exit_status == 69
    assert "secret" not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None


_PEAK = """
import resource, sys
from pathlib import Path
from hansa.participant.connectors.sql_table import SqlTable
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
query = "SELECT i, repeat('x', 200) AS t FROM generate_series(1, 200000) AS i"
source = SqlTable(sys.argv[1], home=Path("."), password=sys.stdin.read(), query=query)
next(source.pieces())
before = peak()
print(sum(piece.num_rows for piece in source.pieces()), peak() - before)
"""


def test_a_long_answer_is_fetched_a_piece_at_a_time(server: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, server],
        input=PASSWORD,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows, grown_kib = map(int, found.stdout.split())
    assert rows == 200_000
    assert grown_kib < 16 << 10  # the answer has 40 MB
