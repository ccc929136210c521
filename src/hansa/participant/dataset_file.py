"""The data sets of a participant, read from datasets.toml in its home folder: strict, as every file of its owner.

    schema = "hansa/datasets/v1"

    [[dataset]]
    name = "credit-cards"
    kind = "csv"
    path = "clients.csv"
    label = "defaulted"

docs/data.md lists the keys. Paths are relative to the home folder. There is no key for a password, only for its file.
"""

import codecs
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import sqlalchemy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hansa.errors import (
    ConfigurationError,
    DatasetFileMissing,
    DatasetSyntaxError,
    InvalidValue,
    UnknownDataset,
)
from hansa.study import Integer, Name, Slug
from hansa.study_problems import lowered, problem_of

FILE = "datasets.toml"
SCHEMA = "hansa/datasets/v1"
FILE_BYTES_MOST = 1 << 20
LOCATIONS = {"csv": ("path",), "parquet": ("path",), "jsonl": ("path",), "sql": ("url", "url_file")}
_OF_KIND = {
    "csv": {"path", "delimiter", "encoding", "columns", "categories", "record"},
    "parquet": {"path", "columns", "categories", "record"},
    "jsonl": {"path", "text", "labels", "longest_text"},
    "sql": {
        "url",
        "url_file",
        "password_file",
        "query",
        "query_file",
        "table",
        "columns",
        "categories",
        "record",
    },
}
_COMMON = {"name", "kind", "label", "person", "key_space", "policy"}
_HINT = "correct datasets.toml; docs/data.md lists its keys"

PathText = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Settings(BaseModel):
    """A section: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetEntry(_Settings):
    """One data set: where it is, how it is read, what its columns are called there."""

    name: Slug = Field(description="short name for ever: a-z, 0-9 and -; the ledger belongs to it")
    kind: Literal["csv", "parquet", "sql", "jsonl"] = Field(description="connector")
    path: PathText | None = Field(default=None, description="file, for csv, parquet and jsonl")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        default=",", description="csv: one character between cells"
    )
    encoding: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        default="utf-8", description="csv: encoding of the file"
    )
    url: str | None = Field(default=None, description="sql: SQLAlchemy's URL, without a password")
    url_file: PathText | None = Field(default=None, description="sql: file that holds such a URL")
    password_file: PathText | None = Field(
        default=None, description="sql: file that holds the password alone"
    )
    query: str | None = Field(default=None, description="sql: one SELECT")
    query_file: PathText | None = Field(default=None, description="sql: file that holds it")
    table: Name | None = Field(default=None, description="sql: table or view, in place of a query")
    label: Name | None = Field(
        default=None, description="column of the label in the data; default: the study's name"
    )
    person: Name | None = Field(default=None, description="column that says whose record it is")
    record: Name | None = Field(default=None, description="column that names a record for ever")
    key_space: Name = Field(
        default="",
        description="numbering that the keys of persons and records belong to; default: one for all data sets",
    )
    columns: dict[Name, Name] = Field(default_factory=dict, description="study's column = column of the data")
    categories: dict[Name, dict[str, Integer]] = Field(
        default_factory=dict, description="study's column = { text in the data = number of the study }"
    )
    text: Name = Field(default="text", description="jsonl: field of the text")
    labels: Annotated[tuple[str, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="jsonl: labels that there are; empty: any"
    )
    longest_text: int = Field(
        default=100_000, ge=1, le=4_000_000, description="jsonl: most characters of a text"
    )
    policy: PathText | None = Field(default=None, description="policy.toml of the data set")

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            known = codecs.lookup(value)
        except LookupError:
            known = None
        if known is None or not known._is_text_encoding:
            raise ValueError("encoding is none that this machine knows")
        return value

    @field_validator("delimiter")
    @classmethod
    def _separates(cls, value: str) -> str:
        if not value.isascii() or value in '"\r\n\0' or value.isalnum():
            raise ValueError("delimiter is one ASCII character that is no quote, letter, digit or line end")
        return value

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None:
            verify_url(value)
        return value

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for key in sorted(self.model_fields_set - _COMMON - _OF_KIND[self.kind]):
            raise ValueError(f"`{key}` is not a key of kind {self.kind!r}")
        _exactly_one(self, LOCATIONS[self.kind])
        if self.kind == "sql":
            _exactly_one(self, ("query", "query_file", "table"))
        sources = [*self.columns.values(), *filter(None, (self.label, self.person, self.record))]
        for source in sources:
            if sources.count(source) > 1:
                raise ValueError(f"column {source!r} of the data is given two meanings")
        return self


class DatasetsFile(_Settings):
    """The keys of datasets.toml."""

    schema_version: Literal["hansa/datasets/v1"] = Field(alias="schema", description="version of the format")
    dataset: Annotated[tuple[DatasetEntry, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="data sets, one [[dataset]] each"
    )

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [entry.name for entry in self.dataset]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"data set {name!r} is described twice")
        return self

    def named(self, name: str) -> DatasetEntry:
        """Give the data set of a name; UnknownDataset if there is none."""
        for entry in self.dataset:
            if entry.name == name:
                return entry
        raise UnknownDataset(f"there is no data set {name!r} in {FILE}")


def verify_url(url: str) -> None:
    """Raise ValueError if a database URL is none, or holds a password; the message does not repeat it."""
    try:
        found = sqlalchemy.make_url(url)
    except Exception:
        found = None
    if found is None:
        raise ValueError("url is not dialect+driver://user@host:port/database")
    if found.password is not None or any("pass" in key.lower() for key in found.query):
        raise ValueError("url holds a password; put it alone into a file and name that as `password_file`")


def _exactly_one(entry: DatasetEntry, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if getattr(entry, key) is not None]
    if len(given) != 1:
        wanted = " or ".join(f"`{key}`" for key in keys)
        raise ValueError(f"kind {entry.kind!r} needs exactly one of {wanted}, got {len(given)}")


def load_datasets(home: Path) -> DatasetsFile:
    """Read the datasets.toml of a home folder.

    Args:
        home: The participant's home folder.

    Raises:
        DatasetFileMissing: The file cannot be read.
        DatasetSyntaxError: The file is not TOML in UTF-8, or says a key twice; the message names the line.
        UnknownKey: A key is not known; the hint names the nearest one.
        InvalidValue: A value is missing, has the wrong type, is out of its bounds, or does not belong to the kind.

    Guarantees:
        - A file that is not understood in every key gives no data set at all.
        - A password in a URL is refused, and no message repeats it.
    """
    return parse_datasets(read_text(home / FILE))


def read_text(path: Path) -> str:
    """Read a small file of the owner's, UTF-8; raises as `load_datasets` does."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MOST + 1)
    except OSError as error:
        raise DatasetFileMissing(f"file {str(path)!r} cannot be read: {lowered(error.strerror)}") from error
    if len(raw) > FILE_BYTES_MOST:
        raise DatasetSyntaxError(f"file {str(path)!r} is longer than {FILE_BYTES_MOST} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DatasetSyntaxError(f"file {str(path)!r} is not UTF-8 (at line {line})") from error


def parse_datasets(text: str) -> DatasetsFile:
    """Read data sets from the text of a datasets.toml; raises as `load_datasets` does."""
    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer with thousands of digits
        raise DatasetSyntaxError(f"{FILE} is not TOML: {lowered(str(error))}") from error
    except RecursionError as error:
        raise DatasetSyntaxError(f"{FILE} is not TOML: values are nested too deeply") from error
    return validated(tables)


def validated(tables: dict[str, Any]) -> DatasetsFile:
    """Check what stands in a datasets.toml; raises UnknownKey or InvalidValue."""
    problem: ConfigurationError
    try:
        return DatasetsFile.model_validate(tables)
    except ValidationError as error:
        problem = problem_of(error, DatasetsFile)
    if isinstance(problem, InvalidValue):
        problem = InvalidValue(problem.message, hint=_HINT)
    raise problem  # outside the handler, so that pydantic's report does not travel along
