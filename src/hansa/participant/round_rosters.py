"""Who was missing in which round, kept beside the ledger for the owner's statements. Every member of the study knows it.

One small file for each study, rewritten whole where a round lacked somebody or ended without a sum; a study in which nobody is
ever missing has none. Form: JSON, schema hansa/round-rosters/v1.
"""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.errors import StoreDamaged, StoreNotWritable

SCHEMA = "hansa/round-rosters/v1"
_BYTES_MOST = 1 << 26
_Round = Annotated[int, Field(ge=0, le=2**53 - 1)]


class _Missing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    round: _Round
    members: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal["hansa/round-rosters/v1"] = Field(alias="schema")
    study: str
    missing: tuple[_Missing, ...]
    void: tuple[_Round, ...]


class RoundRosters:
    """What one participant has seen of a study's rosters.

    Args:
        folder: Where the ledgers are.
        study: Id of the study.

    Attributes:
        missing: Rounds whose sum lacks somebody, and who, sorted.
        void: Rounds that ended without a sum.

    Raises:
        StoreDamaged: The file is not one of this study.

    Guarantees:
        - What was noted is on the disk when the call returns, and noting it again changes nothing.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self._path, self._study = folder / f"rosters-{study[:16]}.json", study
        self.missing: dict[int, tuple[str, ...]] = {}
        self.void: set[int] = set()
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                found = _File.model_validate_json(file.read(_BYTES_MOST))
        except (OSError, ValidationError) as error:
            raise StoreDamaged(f"{self._path.name} is not a record of rosters") from error
        if found.study != self._study:
            raise StoreDamaged(f"{self._path.name} is of another study")
        self.missing = {one.round: one.members for one in found.missing}
        self.void = set(found.void)

    def note_sum(self, round_index: int, members: Iterable[str], contributors: Collection[str]) -> None:
        """Note whose updates are not in the sum of a round.

        Raises:
            StoreNotWritable: The disk is full.
        """
        missing = tuple(sorted(set(members) - set(contributors)))
        if missing and self.missing.get(round_index) != missing:
            self._write({**self.missing, round_index: missing}, self.void)

    def note_void(self, round_index: int) -> None:
        """Note that a round ended without a sum; raises as `note_sum`."""
        if round_index not in self.void:
            self._write(self.missing, self.void | {round_index})

    def _write(self, missing: dict[int, tuple[str, ...]], void: set[int]) -> None:
        record = {
            "schema": SCHEMA,
            "study": self._study,
            "missing": [{"round": number, "members": list(who)} for number, who in sorted(missing.items())],
            "void": sorted(void),
        }
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(json.dumps(record).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreNotWritable(f"{self._path.name} cannot be written: {error.strerror}") from error
        self.missing, self.void = missing, void
