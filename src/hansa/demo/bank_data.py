"""The bank example's table, and how it is dealt out to banks.

The table is split once into a consortium-wide test set, a public sample that belongs to no bank, and private
rows; the private rows are dealt to banks in one of two ways. All draws come from the public seed (PCG64), so
anybody can repeat them with the same numpy. Nothing here is secret, and only the demo uses it.

Both partitions keep a floor of rows and of either class at every bank, because the demo compares with models
that each bank trains alone. What was redrawn or moved for it stands in the partition's notes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hansa import errors, labels
from hansa.participant.dataset import Table, read_table
from hansa.study import PARTICIPANTS_LEAST, DataSchema, Study

CREDIT_DEFAULT_SHA256 = "c5fecd68229b7a381956e905fac7ef28793be0888e0293b0690d1d9f08ed3e82"
TEST_SHARE = 0.25
PUBLIC_SHARE = 0.05
BANKS = (
    15  # a smaller consortium is the first of these banks, so that more participants means that members join
)
ROWS_LEAST = 60
CLASS_ROWS_LEAST = 10
DRAWS_MOST = 200
_CONCENTRATION = 0.3
_LIMIT_BANDS, _AGE_BANDS = 5, 3
_FLOOR = f"{ROWS_LEAST} rows and {CLASS_ROWS_LEAST} of either class"

PartitionKind = Literal["dirichlet", "segments"]
Index = NDArray[np.int64]
_Pools = list[list[list[int]]]  # [class][bank]: private rows


@dataclass(frozen=True, kw_only=True, slots=True)
class BankData:
    """The split table.

    Attributes:
        schema: Columns, as the study declares them.
        test: Consortium-wide test rows, a quarter of the table, stratified by label.
        public: A twentieth of the table, drawn without looking at labels, labels removed (NaN).
        private: All other rows.
    """

    schema: DataSchema
    test: Table
    public: Table
    private: Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Who holds what.

    Attributes:
        kind: How the rows were dealt.
        indices: For each bank, its ascending rows of `BankData.private`; no row has two banks.
        own_test: For each bank, ascending rows of `BankData.test` that are like its own customers.
        notes: What was redrawn or moved to keep the floor; empty if nothing.
    """

    kind: PartitionKind
    indices: tuple[Index, ...]
    own_test: tuple[Index, ...]
    notes: tuple[str, ...]


def load_bank(parquet: Path, study: Study, *, seed: int) -> BankData:
    """Read the example's table, check that it is the published one, and split it.

    Raises:
        DataFileMissing: There is no such file; the demo needs a checkout of the repository.
        ChecksumMismatch: It is another file, or damaged.
        DataError: The study asks for other columns than the table has.
    """
    if not parquet.is_file():
        hint = "the demo's data is part of the repository: run it in a checkout, where examples/bank/data is"
        raise errors.DataFileMissing(f"data file {str(parquet)!r} does not exist", hint=hint)
    table = read_table(parquet, study.data, sha256=CREDIT_DEFAULT_SHA256)
    return split_table(table, study.data, seed=seed)


def split_table(table: Table, schema: DataSchema, *, seed: int) -> BankData:
    """Split rows into test, public and private ones.

    Guarantees:
        - Every row is in exactly one of the three, and the same seed gives the same split.
        - The test set has a quarter of either class, rounded.
        - Public rows have no labels, and no label has a part in which rows these are.
    """
    random = _generator("split", seed)
    # The public sample first: were it drawn from what a stratified draw leaves, it would depend on labels.
    shuffled = random.permutation(len(table))
    public, rest = np.split(shuffled, [round(PUBLIC_SHARE * len(table))])
    sizes = [round(TEST_SHARE * len(rows)) for rows in _by_class(table.labels)]
    classes = [rest[table.labels[rest] == label] for label in (0, 1)]
    test = np.concatenate([rows[:size] for rows, size in zip(classes, sizes, strict=True)])
    private = np.setdiff1d(rest, test)
    return BankData(
        schema=schema,
        test=table.rows(np.sort(test)),
        public=table.rows(np.sort(public)).without_labels(),
        private=table.rows(private),
    )


def partition(data: BankData, *, kind: str, participants: int, seed: int) -> Partition:
    """Deal the private rows to banks.

    Args:
        data: The split table.
        kind: "dirichlet": label skew; each class is dealt in proportions from Dir(0.3) (Yurochkin et al.
            2019, arXiv:1905.12022, section 4). "segments": 5 bands of LIMIT_BAL times 3 of AGE, with edges
            from the public sample.
        participants: Banks in the consortium: the first of 15, or that many for "dirichlet" beyond 15.
        seed: Public seed of the draws.

    Raises:
        UsageError: Unknown kind.
        CohortTooSmall, CohortTooLarge: Fewer than 3 participants; more than 15 segments.
        PartitionImpossible: There are not enough rows for the floor.
        MissingColumn: "segments" without the columns LIMIT_BAL and AGE.

    Guarantees:
        - No private row has two banks; every bank has at least 60 rows and 10 of either class.
        - The same data, kind and seed give a bank the same rows for all participants in 3..15.
    """
    if kind not in get_args(PartitionKind):
        raise errors.UsageError(f"unknown partition {kind!r}, known are {', '.join(get_args(PartitionKind))}")
    if participants < PARTICIPANTS_LEAST:
        raise errors.CohortTooSmall(f"{participants} participants, at least {PARTICIPANTS_LEAST} are needed")
    banks = max(BANKS, participants)
    if kind == "segments" and banks > BANKS:
        raise errors.CohortTooLarge(f"{participants} participants, there are {BANKS} segments")
    _check_floor(data.private.labels, banks)
    deal = _dirichlet if kind == "dirichlet" else _segments
    return deal(data, banks, participants, _generator(f"partition/{kind}", seed))


def _dirichlet(data: BankData, banks: int, participants: int, random: np.random.Generator) -> Partition:
    shuffled = [random.permutation(rows) for rows in _by_class(data.private.labels)]
    best = _deal(shuffled, banks, random)
    draws, best_draw = 1, 1
    while _rows_short(best) and draws < DRAWS_MOST:
        draws += 1
        pools = _deal(shuffled, banks, random)
        if _rows_short(pools) < _rows_short(best):
            best, best_draw = pools, draws
    notes = []
    if draws > 1 and not _rows_short(best):
        notes.append(f"redrew {draws - 1} times until every bank had {_FLOOR}")
    elif _rows_short(best):
        moved = _keep_floor(best, lambda _bank, donor: (-len(best[0][donor]) - len(best[1][donor]),))
        receivers = ", ".join(f"bank {bank + 1}" for bank in sorted(moved))
        notes.append(
            f"no draw of {draws} gave every bank {_FLOOR}; took draw {best_draw}, which came closest,"
            f" and moved {_rows(sum(moved.values()))} from the largest banks to {receivers}"
        )
    indices = _indices(best)[:participants]
    own = [_like(rows, data, random) for rows in indices]
    return Partition(kind="dirichlet", indices=indices, own_test=tuple(own), notes=tuple(notes))


def _segments(data: BankData, banks: int, participants: int, random: np.random.Generator) -> Partition:
    private, test = _segment_numbers(data, data.private), _segment_numbers(data, data.test)
    pools = [
        [random.permutation(rows[private[rows] == bank]).tolist() for bank in range(banks)]
        for rows in _by_class(data.private.labels)
    ]

    def distance(bank: int, donor: int) -> tuple[int, ...]:
        limits, ages = bank // _AGE_BANDS - donor // _AGE_BANDS, bank % _AGE_BANDS - donor % _AGE_BANDS
        return abs(limits) + abs(ages), -len(pools[0][donor]) - len(pools[1][donor])

    moved = _keep_floor(pools, distance)
    notes = [
        f"moved {_rows(rows)} from the nearest segments to bank {bank + 1}, which had not {_FLOOR}"
        for bank, rows in sorted(moved.items())
    ]
    own = [np.flatnonzero(test == bank) for bank in range(participants)]
    indices = _indices(pools)[:participants]
    return Partition(kind="segments", indices=indices, own_test=tuple(own), notes=tuple(notes))


def _segment_numbers(data: BankData, table: Table) -> Index:
    """Number the segment of each row: limit band times 3, plus age band."""
    bands = []
    for name, count in (("LIMIT_BAL", _LIMIT_BANDS), ("AGE", _AGE_BANDS)):
        names = [column.name for column in data.schema.numeric]
        if name not in names:
            raise errors.MissingColumn(f"partition by segments needs the numeric column {name!r}")
        column = names.index(name)
        edges = np.nanquantile(data.public.numeric[:, column], np.arange(1, count) / count)
        bands.append(np.searchsorted(edges, table.numeric[:, column], side="right"))
    return bands[0] * _AGE_BANDS + bands[1]


def _deal(shuffled: list[Index], banks: int, random: np.random.Generator) -> _Pools:
    pools = []
    for rows in shuffled:
        shares = random.dirichlet(np.full(banks, _CONCENTRATION))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        pools.append([part.tolist() for part in np.split(rows, cuts)])
    return pools


def _rows_short(pools: _Pools) -> int:
    """Count the rows that are missing at banks below the floor."""
    short = 0
    for negatives, positives in zip(*pools, strict=True):
        by_class = sum(max(0, CLASS_ROWS_LEAST - len(rows)) for rows in (negatives, positives))
        short += max(by_class, ROWS_LEAST - len(negatives) - len(positives))
    return short


def _keep_floor(pools: _Pools, rank: Callable[[int, int], tuple[int, ...]]) -> dict[int, int]:
    """Move the fewest rows to banks below the floor, from the donor with the least `rank(bank, donor)`.

    First every bank gets enough of either class, then enough rows. A donor keeps the floor of the class that
    it gives, and in the second step the floor of rows. Both steps end: `_check_floor` has counted the rows.

    Returns:
        Rows moved to each bank that got some.
    """
    banks = range(len(pools[0]))
    moved: dict[int, int] = {}

    def give(bank: int, donors: list[tuple[int, list[list[int]]]]) -> None:
        donor, pool = min(donors, key=lambda choice: rank(bank, choice[0]))
        pool[bank].append(pool[donor].pop())
        moved[bank] = moved.get(bank, 0) + 1

    for pool in pools:
        for bank in banks:
            while len(pool[bank]) < CLASS_ROWS_LEAST:
                give(bank, [(donor, pool) for donor in banks if len(pool[donor]) > CLASS_ROWS_LEAST])
    for bank in banks:
        while _size(pools, bank) < ROWS_LEAST:
            give(
                bank, [(donor, _larger(pools, donor)) for donor in banks if _size(pools, donor) > ROWS_LEAST]
            )
    return moved


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _size(pools: _Pools, bank: int) -> int:
    return sum(len(pool[bank]) for pool in pools)


def _larger(pools: _Pools, bank: int) -> list[list[int]]:
    return max(pools, key=lambda pool: len(pool[bank]))


def _check_floor(private_labels: NDArray[np.float64], banks: int) -> None:
    rarer = min(len(rows) for rows in _by_class(private_labels))
    if len(private_labels) < banks * ROWS_LEAST or rarer < banks * CLASS_ROWS_LEAST:
        raise errors.PartitionImpossible(
            f"{banks} banks with {_FLOOR} need {banks * ROWS_LEAST} rows and"
            f" {banks * CLASS_ROWS_LEAST} of either class, there are {len(private_labels)} and {rarer}"
        )


def _like(rows: Index, data: BankData, random: np.random.Generator) -> Index:
    """Draw as many test rows as there are with a bank's mix of classes; a row may serve several banks."""
    held = [np.count_nonzero(data.private.labels[rows] == label) for label in (0, 1)]
    there = _by_class(data.test.labels)
    scale = min(len(test) / count for test, count in zip(there, held, strict=True))
    sizes = [max(1, int(scale * count)) for count in held]
    drawn = [random.permutation(test)[:size] for test, size in zip(there, sizes, strict=True)]
    return np.sort(np.concatenate(drawn))


def _indices(pools: _Pools) -> tuple[Index, ...]:
    banks = range(len(pools[0]))
    return tuple(np.sort(np.array([row for pool in pools for row in pool[bank]])) for bank in banks)


def _by_class(values: NDArray[np.float64]) -> tuple[Index, Index]:
    return np.flatnonzero(values == 0), np.flatnonzero(values == 1)


def _generator(purpose: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(labels.DEMO_DRAW + f"{purpose}/{seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
