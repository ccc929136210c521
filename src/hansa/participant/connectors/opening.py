"""From a description in datasets.toml to the connector that reads it. Databases are imported where one is named."""

from pathlib import Path

from hansa.errors import InvalidValue
from hansa.federation.password_file import read_password
from hansa.participant.connectors.csv_table import CsvTable
from hansa.participant.connectors.json_lines import JsonLines
from hansa.participant.connectors.parquet_table import ParquetTable
from hansa.participant.connectors.source import Source
from hansa.participant.dataset_file import DatasetEntry, read_text, verify_url


def open_source(entry: DatasetEntry, home: Path) -> Source:
    """Open a data set for reading.

    Args:
        entry: Its description.
        home: The participant's home folder, to which paths are relative.

    Raises:
        DataFileMissing, DataUnreadable, DatabaseUnreachable: The data cannot be read.
        DatasetFileMissing, PasswordFileMissing, KeyFileUnsafe: A file that the description names cannot be used.
        QueryRefused, DriverMissing, InvalidValue: The database cannot be asked in this way.
    """
    if entry.kind == "sql":
        return _database(entry, home)
    path = home / str(entry.path)
    if entry.kind == "csv":
        return CsvTable(path, delimiter=entry.delimiter, encoding=entry.encoding)
    if entry.kind == "parquet":
        return ParquetTable(path)
    fields = (entry.text, entry.label or "label", *filter(None, [entry.person]))
    return JsonLines(path, fields=fields)


def _database(entry: DatasetEntry, home: Path) -> Source:
    from hansa.participant.connectors.sql_table import SqlTable  # noqa: PLC0415 - SQLAlchemy, where it is needed

    url, query = entry.url, entry.query
    if url is None:
        url = read_text(home / str(entry.url_file)).strip()
        try:
            verify_url(url)
        except ValueError as error:
            raise InvalidValue(f"{entry.url_file}: {error}", hint="correct the file") from None
    if entry.query_file is not None:
        query = read_text(home / entry.query_file)
    password = None if entry.password_file is None else read_password(Path(entry.password_file), home)
    return SqlTable(url, home=home, password=password, query=query, table=entry.table)
