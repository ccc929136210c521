"""Feature tokens: the columns of a table become the tokens of a sequence.

Each numeric column is encoded piecewise-linearly over public quantile bins, with its standardised value and a flag for
"missing"; each categorical column one-hot over its public vocabulary, with a slot for anything else. Columns that share a token
are laid side by side, and every token ends with a constant 1, so that the embedding's bias is a row of its weight.
Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", section 3.2 (piecewise-linear).

Bins, means and deviations come from the public sample only: nothing of the encoding depends on private rows.

Shape suffixes: B samples, J feature tokens, Z width of the widest token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.study import DataSchema

_STANDARD_CLIP = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NumericEncoding:
    """Public statistics of a numeric column: ascending bin edges, mean and standard deviation."""

    edges: NDArray[np.float64]
    mean: float
    deviation: float

    @property
    def width(self) -> int:
        """Number of encoded values: one a bin, the standardised value, the missing flag."""
        return len(self.edges) - 1 + 2

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Encode a column, (B,) -> (B, width); NaN becomes zeros and the flag."""
        missing = ~np.isfinite(values)
        filled = np.where(missing, self.mean, values)[:, None]
        # A bin around a huge constant may have width 0 in float64, and a quotient may overflow: both end at a clip bound.
        widths = np.maximum(np.diff(self.edges), np.finfo(np.float64).tiny)
        with np.errstate(over="ignore"):
            linear = np.clip((filled - self.edges[:-1]) / widths, 0.0, 1.0)
            standard = np.clip((filled - self.mean) / self.deviation, -_STANDARD_CLIP, _STANDARD_CLIP)
        encoded = np.hstack([linear, standard, np.zeros_like(standard)])
        encoded[missing] = 0.0
        encoded[missing, -1] = 1.0
        return encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnPlan:
    """Where a column goes: its index among the columns of its kind, its token, its encoding or its vocabulary size."""

    token: str
    index: int
    numeric: NumericEncoding | None
    vocabulary: int

    @property
    def width(self) -> int:
        """Number of encoded values."""
        return self.vocabulary if self.numeric is None else self.numeric.width


class FeatureEncoder:
    """Turns tables into feature tokens with public statistics only.

    Args:
        columns: Plan of every column, in schema order.

    Guarantees:
        - The encoding of a row depends on that row and public statistics only.
        - Every encoded value is finite and in [-4, 4], whatever the input.
    """

    def __init__(self, columns: Sequence[ColumnPlan]) -> None:
        self.columns = tuple(columns)
        self.tokens = tuple(dict.fromkeys(column.token for column in columns))
        widths = dict.fromkeys(self.tokens, 1)
        for column in columns:
            widths[column.token] += column.width
        self.widths = tuple(widths.values())
        self.width = -(-max(self.widths) // 4) * 4

    def used(self) -> Tensor:
        """Say which of the padded values of each token are used, bool (J, Z)."""
        return torch.arange(self.width) < torch.tensor(self.widths).unsqueeze(1)

    def encode(self, numeric: NDArray[np.float64], categorical: NDArray[np.int64]) -> Tensor:
        """Encode rows.

        Args:
            numeric: (B, numeric columns), NaN where missing.
            categorical: (B, categorical columns), codes in [0, vocabulary); 0 and all other codes are "anything else".

        Returns:
            (B, J, Z) float32; each token is its columns' encodings, then 1, then zeros.
        """
        encoded = np.zeros((len(numeric), len(self.tokens), self.width), dtype=np.float32)
        used = dict.fromkeys(self.tokens, 0)
        for column in self.columns:
            start = used[column.token]
            used[column.token] = stop = start + column.width
            token = self.tokens.index(column.token)
            if column.numeric is not None:
                encoded[:, token, start:stop] = column.numeric.encode(numeric[:, column.index])
            else:
                codes = categorical[:, column.index]
                codes = np.where((codes >= 0) & (codes < column.vocabulary), codes, 0)
                encoded[np.arange(len(codes)), token, start + codes] = 1.0
        for token, name in enumerate(self.tokens):
            encoded[:, token, used[name]] = 1.0
        return torch.from_numpy(encoded)

    def flat(self, numeric: NDArray[np.float64], categorical: NDArray[np.int64]) -> NDArray[np.float64]:
        """Encode rows as one flat vector each, without the constant: the features of a linear model."""
        tokens = self.encode(numeric, categorical).numpy()
        parts = [tokens[:, j, : width - 1] for j, width in enumerate(self.widths)]
        return np.hstack(parts).astype(np.float64)


def encoder_of_public_sample(
    schema: DataSchema, numeric: NDArray[np.float64], categorical_columns: int, bins: int
) -> FeatureEncoder:
    """Make the encoder of a study from its public sample.

    Args:
        schema: The study's columns.
        numeric: (n, numeric columns) public values in schema order, NaN where missing.
        categorical_columns: Number of categorical columns of the sample, checked against the schema.
        bins: Most bins of a numeric column.
    """
    if numeric.shape[1] != len(schema.numeric) or categorical_columns != len(schema.categorical):
        raise ValueError(
            f"a sample of {numeric.shape[1]} + {categorical_columns} columns does not fit the schema"
        )
    places = {
        column.name: i for kind in (schema.numeric, schema.categorical) for i, column in enumerate(kind)
    }
    return FeatureEncoder(
        [
            ColumnPlan(
                token=column.token,
                index=places[column.name],
                numeric=fit_numeric(numeric[:, places[column.name]], bins)
                if column.kind == "numeric"
                else None,
                vocabulary=len(column.values) + 1,
            )
            for column in schema.columns
        ]
    )


def fit_numeric(values: NDArray[np.float64], bins: int) -> NumericEncoding:
    """Take bin edges, mean and deviation from a public column.

    Args:
        values: (n,) public values; NaN is left out.
        bins: Most bins; fewer where quantiles coincide.

    Returns:
        The encoding; a constant or empty column gets one bin of width 1.
    """
    known = values[np.isfinite(values)]
    if known.size == 0:
        known = np.zeros(1)
    edges = np.unique(np.quantile(known, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) < 2:
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    deviation = float(known.std())
    return NumericEncoding(
        edges=edges, mean=float(known.mean()), deviation=deviation if deviation > 0 else 1.0
    )
