"""Feature tokens: the right values at the right places, within bounds for any input, from public statistics only."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hansa.models.features import (
    ColumnPlan,
    FeatureEncoder,
    NumericEncoding,
    encoder_of_public_sample,
    fit_numeric,
)
from hansa.study import ColumnSchema, DataSchema

PROPERTY = settings(deadline=None, max_examples=100, derandomize=True)
HALVES = NumericEncoding(edges=np.array([0.0, 1.0, 3.0]), mean=1.0, deviation=2.0)  # bins [0, 1] and [1, 3]
PLAN = (
    ColumnPlan(token="pair", index=0, numeric=HALVES, vocabulary=0),
    ColumnPlan(token="alone", index=0, numeric=None, vocabulary=3),
    ColumnPlan(token="pair", index=1, numeric=None, vocabulary=2),
)
NAN = float("nan")
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)
ANY_CODE = st.integers(-(2**63), 2**63 - 1)
PUBLIC = st.floats(-1e100, 1e100) | st.just(NAN)

SCHEMA = DataSchema(
    label="y",
    columns=(
        ColumnSchema(name="b", kind="categorical", values=(5, 7)),
        ColumnSchema(name="a", kind="numeric", minimum=0, maximum=9, token="both"),
        ColumnSchema(name="c", kind="numeric", minimum=0, maximum=9, token="both"),
    ),
)


def encode(numeric: list[float], codes: list[list[int]]) -> np.ndarray:
    table = np.array(codes, dtype=np.int64)
    return FeatureEncoder(PLAN).encode(np.array(numeric)[:, None], table).numpy()


def test_each_token_is_its_columns_encodings_then_1_then_zeros() -> None:
    encoder = FeatureEncoder(PLAN)
    assert encoder.tokens == ("pair", "alone")
    assert encoder.widths == (7, 4)  # 2 bins, standardised, missing, 2 categories, 1; and 3 categories, 1
    assert encoder.width == 8  # a multiple of 4, for the kernels
    assert encoder.used().tolist() == [[True] * 7 + [False], [True] * 4 + [False] * 4]
    tokens = encode([2.0, -5.0], [[2, 1], [0, 0]])
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens[0, 0], [1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(tokens[0, 1], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(tokens[1, 0], [0.0, 0.0, -3.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(tokens[1, 1], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])


def test_flat_leaves_out_the_constants_and_the_padding() -> None:
    flat = FeatureEncoder(PLAN).flat(np.array([[2.0]]), np.array([[2, 1]]))
    np.testing.assert_array_equal(flat, [[1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]])
    assert flat.dtype == np.float64


@pytest.mark.parametrize("missing", [NAN, float("inf"), -float("inf")])
def test_a_missing_value_becomes_zeros_and_the_flag(missing: float) -> None:
    np.testing.assert_array_equal(encode([missing], [[0, 0]])[0, 0, :4], [0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("code", [3, 4, -1, 2**62, -(2**63)])
def test_an_unseen_category_counts_as_anything_else_and_reaches_no_other_column(code: int) -> None:
    np.testing.assert_array_equal(encode([2.0], [[code, code]]), encode([2.0], [[0, 0]]))


@PROPERTY
@given(
    public=npst.arrays(np.float64, st.integers(0, 20), elements=PUBLIC),
    private=npst.arrays(np.float64, (4, 1), elements=ANY_FLOAT),
    codes=npst.arrays(np.int64, (4, 1), elements=ANY_CODE),
    bins=st.integers(1, 8),
)
def test_every_encoded_value_is_finite_and_in_bounds_whatever_the_input(
    public: np.ndarray, private: np.ndarray, codes: np.ndarray, bins: int
) -> None:
    plan = (
        ColumnPlan(token="t", index=0, numeric=fit_numeric(public, bins), vocabulary=0),
        ColumnPlan(token="t", index=0, numeric=None, vocabulary=3),
    )
    encoder = FeatureEncoder(plan)
    tokens = encoder.encode(private, codes)
    assert torch.isfinite(tokens).all()
    assert tokens.abs().max() <= 4.0
    assert not tokens[:, ~encoder.used()].any()
    assert (tokens[:, 0, encoder.widths[0] - 1] == 1.0).all()
    one_hot = tokens[:, 0, encoder.widths[0] - 4 : encoder.widths[0] - 1]
    assert (one_hot.sum(dim=1) == 1.0).all()


@PROPERTY
@given(
    numeric=npst.arrays(np.float64, (5, 1), elements=ANY_FLOAT),
    codes=npst.arrays(np.int64, (5, 2), elements=st.integers(-1, 4)),
    data=st.data(),
)
def test_the_encoding_of_a_row_depends_on_that_row_and_public_statistics_only(
    numeric: np.ndarray, codes: np.ndarray, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, 4))
    encoder = FeatureEncoder(PLAN)
    together = encoder.encode(numeric, codes)[row]
    alone = FeatureEncoder(PLAN).encode(numeric[[row]], codes[[row]])[0]
    assert torch.equal(together, alone)
    assert torch.equal(
        encoder.encode(numeric[[row]], codes[[row]])[0], alone
    )  # nothing was learned from the rows


def test_an_empty_table_encodes_to_no_rows() -> None:
    assert FeatureEncoder(PLAN).encode(np.zeros((0, 1)), np.zeros((0, 2), dtype=np.int64)).shape == (0, 2, 8)


def test_bins_are_the_quantiles_of_the_public_column() -> None:
    encoding = fit_numeric(np.array([NAN, *range(101)]), 4)
    np.testing.assert_allclose(encoding.edges, [0, 25, 50, 75, 100])
    assert encoding.mean == 50.0
    assert encoding.deviation == pytest.approx(np.std(np.arange(101)))


@pytest.mark.parametrize(
    ("values", "edges", "mean"),
    [([], [-0.5, 0.5], 0.0), ([NAN, float("inf")], [-0.5, 0.5], 0.0), ([7.0, 7.0, NAN], [6.5, 7.5], 7.0)],
)
def test_a_constant_or_empty_public_column_gets_one_bin_of_width_1(
    values: list[float], edges: list[float], mean: float
) -> None:
    encoding = fit_numeric(np.array(values), 3)
    np.testing.assert_array_equal(encoding.edges, edges)
    assert (encoding.mean, encoding.deviation) == (mean, 1.0)


def test_there_are_fewer_bins_where_quantiles_coincide() -> None:
    encoding = fit_numeric(np.array([0.0] * 9 + [1.0]), 3)
    np.testing.assert_array_equal(encoding.edges, [0.0, 1.0])
    assert encoding.width == 3


def test_a_huge_constant_column_stays_within_bounds() -> None:
    encoding = fit_numeric(np.full(5, 1e17), 4)  # 1e17 ± 0.5 is 1e17 in float64
    encoded = encoding.encode(np.array([0.0, 1e17, 2e17]))
    assert np.isfinite(encoded).all()
    np.testing.assert_array_equal(encoded[:, 0], [0.0, 0.0, 1.0])


def test_the_encoder_of_a_public_sample_follows_the_schema() -> None:
    public: Any = np.column_stack([np.arange(11.0), np.arange(11.0) * 10])
    encoder = encoder_of_public_sample(SCHEMA, public, 1, bins=2)
    assert encoder.tokens == ("b", "both")
    assert [column.vocabulary for column in encoder.columns] == [3, 1, 1]
    assert [column.index for column in encoder.columns] == [0, 0, 1]
    tokens = encoder.encode(np.array([[7.5, 25.0]]), np.array([[2]])).numpy()
    np.testing.assert_array_equal(tokens[0, 0, :4], [0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(tokens[0, 1, [0, 1, 4, 5]], [1.0, 0.5, 0.5, 0.0])


@pytest.mark.parametrize(("numeric", "categorical"), [(1, 1), (3, 1), (2, 0), (2, 2)])
def test_a_sample_with_other_columns_than_the_schema_is_refused(numeric: int, categorical: int) -> None:
    with pytest.raises(ValueError, match=f"{numeric} \\+ {categorical} columns does not fit"):
        encoder_of_public_sample(SCHEMA, np.zeros((4, numeric)), categorical, bins=2)
