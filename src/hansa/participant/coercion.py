"""From cells as a connector reads them to numbers and texts. What a cell becomes depends on that cell alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Numbers:
    """A column as numbers.

    Attributes:
        values: (n,) float64; finite, or NaN where there is none.
        missing: (n,) bool; null, blank, NaN or infinite.
        wrong: (n,) bool; neither a number nor missing.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def numbers_of(array: pa.Array, categories: Mapping[str, int] | None = None) -> Numbers:
    """Read a column as numbers.

    Args:
        array: (n,) cells of any type.
        categories: Texts that stand for numbers; spaces around a cell do not count.

    Guarantees:
        - A text is a number where Python's float reads one and it has no underscore; true is 1 and false is 0.
        - Every cell is exactly one of a finite value, missing, wrong.
    """
    array = _plain(array)
    if _is_text(array.type):
        return _numbers_of_text(array, categories)
    kind = array.type
    null = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        values = np.full(len(array), np.nan)
    elif any(is_kind(kind) for is_kind in _NUMERIC):
        values = array.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy(zero_copy_only=False)
    else:  # dates, bytes, lists: no value of them is a number
        return Numbers(values=np.full(len(array), np.nan), missing=null, wrong=~null)
    return _of_values(np.array(values, dtype=np.float64), np.zeros(len(array), dtype=bool))


_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)


def _of_values(values: NDArray[np.float64], wrong: NDArray[np.bool_]) -> Numbers:
    finite = np.isfinite(values)
    return Numbers(values=np.where(finite, values, np.nan), missing=~finite & ~wrong, wrong=wrong)


def _numbers_of_text(array: pa.Array, categories: Mapping[str, int] | None) -> Numbers:
    array = pc.utf8_trim_whitespace(array)
    if not categories:
        blank = pc.equal(array, "")
        try:
            cast = pc.if_else(blank, None, array).cast(pa.float64())
        except pa.ArrowInvalid:
            cast = None
        # Arrow reads more as NaN than Python does, such as nan(1); those are looked at one by one.
        if cast is not None and not pc.any(pc.is_nan(cast)).as_py():
            values = cast.fill_null(math.nan).to_numpy(zero_copy_only=False)
            return _of_values(np.array(values), np.zeros(len(array), dtype=bool))
    values, wrong = np.full(len(array), np.nan), np.zeros(len(array), dtype=bool)
    known = categories or {}
    for row, text in enumerate(array.to_pylist()):
        if text is None or text == "":
            continue
        number = known[text] if text in known else _number(text)
        if number is None:
            wrong[row] = True
        else:
            values[row] = number
    return _of_values(values, wrong)


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python reads 1_000, no table writes it
    except ValueError:
        return None


def texts_of(array: pa.Array) -> list[str | None]:
    """Read a column as texts, for keys and counts.

    Guarantees:
        - A whole number gives its digits whatever its type: 7, 7.0 and "7" are one key; "07" is another.
        - A blank text is None.
    """
    array = _plain(array)
    if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        return [None if value is None else _digits(float(value)) for value in array.to_pylist()]
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if not _is_text(array.type):
        try:
            array = array.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes that are no text, lists
            array = pa.array(
                [None if value is None else repr(value) for value in array.to_pylist()], pa.string()
            )
    return [text or None for text in pc.utf8_trim_whitespace(array).to_pylist()]


def _digits(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def _plain(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
