"""What one backward pass leaves behind for per-sample gradients.

A trainable factor is the last matrix of a linear map y += z W. Its gradient from sample b is the sum over the rows of b of zᵀ g,
with z the input of W and g the gradient of the loss at the output. During a recorded backward pass each map leaves (z, g) on the
tape; from them the per-sample norms and the clipped sum follow without a second pass ("book-keeping", Bu et al. 2023,
"Differentially Private Optimization on Large Model at Small Cost", section 3).

Half-precision records are multiplied in float32, so that norms and sums see the same numbers. Where a sample is several sequences
(a preferred text and a rejected one), `Tape.fold` makes its records those of samples. Where a person owns several samples,
`Record.grouped` makes them those of persons: the gradient of a person is the sum over its samples, formed before any norm.

Shape suffixes: B samples, T tokens, Z and N widths of z and g, R expert-sorted rows, E experts, J feature tokens.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from hansa.kernels.segments import (
    Segments,
    clipped_weight_gradient,
    find_segments,
    ordered_sum,
    sample_square_norms,
)
from hansa.models.norms import widened


class Record(Protocol):
    """What one trainable factor left on the tape."""

    @property
    def name(self) -> str:
        """Name of the factor in the model."""

    def square_norms(self, mask: Tensor | None) -> Tensor:
        """Squared ℓ₂ norm of each sample's gradient on the mask, (B,) float64."""

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Sum of the samples' gradients, each times its weight; shape of the factor, at least float32."""

    def folded(self, sequences: int) -> Self:
        """Give the record in which every `sequences` neighbouring sequences are one sample."""

    def grouped(self, groups: "Groups") -> Self:
        """Give the record in which the samples of a person are one; its weights are those of persons."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Groups:
    """Whose the samples of a batch are.

    Attributes:
        unit_B: Person of each sample, int64, 0 to U - 1, ascending.
        units: Number of persons U.
    """

    unit_B: Tensor
    units: int


@dataclass(frozen=True, kw_only=True, repr=False)
class DenseRecord:
    """A map that every token of a sample passes: gradient[b] = Σ_t z[b,t]ᵀ g[b,t], (Z, N)."""

    name: str
    z_BTZ: Tensor
    g_BTN: Tensor
    groups: Groups | None = None

    def square_norms(self, mask: Tensor | None) -> Tensor:  # noqa: D102
        squares = self._outer_BZN.square()
        if mask is not None:
            squares = squares * mask
        return squares.flatten(1).sum(dim=1, dtype=torch.float64)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:  # noqa: D102
        if "_outer_BZN" in self.__dict__:
            kept: Tensor = torch.tensordot(weights_B.to(self._outer_BZN.dtype), self._outer_BZN, dims=1)
            return kept
        g_BTN = widened(self.g_BTN)
        weights_B = weights_B if self.groups is None else weights_B[self.groups.unit_B]
        weighted = g_BTN * weights_B.to(g_BTN.dtype).view(-1, 1, 1)
        return widened(self.z_BTZ).flatten(0, 1).t() @ weighted.flatten(0, 1)

    @cached_property
    def _outer_BZN(self) -> Tensor:
        """Gradient of each sample or person: kept once the norms have asked for it, since the rank is small."""
        outer_BZN = torch.bmm(widened(self.z_BTZ).transpose(1, 2), widened(self.g_BTN))
        if self.groups is None:
            return outer_BZN
        return ordered_sum(outer_BZN, self.groups.unit_B, self.groups.units)

    def grouped(self, groups: Groups) -> Self:  # noqa: D102
        return replace(self, groups=groups)

    def folded(self, sequences: int) -> Self:  # noqa: D102
        samples, tokens = len(self.z_BTZ) // sequences, sequences * self.z_BTZ.shape[1]
        z_BTZ, g_BTN = (x.reshape(samples, tokens, x.shape[2]) for x in (self.z_BTZ, self.g_BTN))
        return replace(self, z_BTZ=z_BTZ, g_BTN=g_BTN)


@dataclass(frozen=True, kw_only=True, repr=False)
class Rows:
    """Whose the rows of an expert layer are, sorted by expert and inside an expert by sample.

    Attributes:
        expert_R: Expert of each row.
        ends_E: End offset of each expert's rows, int32.
        sample_R: Sample of each row.
        samples: Number of samples B.
    """

    expert_R: Tensor
    ends_E: Tensor
    sample_R: Tensor
    samples: int

    @cached_property
    def segments(self) -> Segments:
        """The runs of one expert and sample: found once for all records of a layer, and only where norms are asked for."""
        return find_segments(self.expert_R, self.sample_R)

    def folded(self, sequences: int) -> "Rows":
        """Give the rows where every `sequences` neighbouring sequences are one sample."""
        return replace(self, sample_R=self.sample_R // sequences, samples=self.samples // sequences)

    def grouped(self, groups: Groups) -> "Rows":
        """Give the rows where the samples of a person are one; persons ascend as their samples do, so runs stay runs."""
        return replace(self, sample_R=groups.unit_B[self.sample_R], samples=groups.units)


@dataclass(frozen=True, kw_only=True, repr=False)
class ExpertRecord:
    """A map with one factor an expert: gradient[b][e] = Σ over rows of (e, b) of zᵀ g, (E, Z, N)."""

    name: str
    z_RZ: Tensor
    g_RN: Tensor
    rows: Rows

    def square_norms(self, mask: Tensor | None) -> Tensor:  # noqa: D102
        z_RZ, g_RN = widened(self.z_RZ), widened(self.g_RN)
        return sample_square_norms(z_RZ, g_RN, self.rows.segments, self.rows.samples, mask)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:  # noqa: D102
        weights_R = weights_B[self.rows.sample_R]
        return clipped_weight_gradient(widened(self.z_RZ), widened(self.g_RN), weights_R, self.rows.ends_E)

    def folded(self, sequences: int) -> Self:  # noqa: D102
        return replace(self, rows=self.rows.folded(sequences))

    def grouped(self, groups: Groups) -> Self:  # noqa: D102
        return replace(self, rows=self.rows.grouped(groups))


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureRecord:
    """One row a sample and feature token: gradient[b][j] = z[b,j]ᵀ g[b,j]. Rank one, so norms of samples are products.

    The factor keeps the used rows of all tokens below each other, (U, N); `used_JZ` says which of the padded rows they are.
    """

    name: str
    z_BJZ: Tensor
    g_BJN: Tensor
    used_JZ: Tensor
    groups: Groups | None = None

    def square_norms(self, mask: Tensor | None) -> Tensor:  # noqa: D102
        if self.groups is not None:
            return self._group_square_norms(self.groups, mask)
        z2, g2 = self.z_BJZ.double().square() * self.used_JZ, self.g_BJN.double().square()
        if mask is None:
            return (z2.sum(2) * g2.sum(2)).sum(1)
        mask_JZN = spread_rows(mask.double(), self.used_JZ)
        return (torch.bmm(z2.transpose(0, 1), mask_JZN).transpose(0, 1) * g2).sum((1, 2))

    def _group_square_norms(self, groups: Groups, mask: Tensor | None) -> Tensor:
        """The sum over a person's samples is not of rank one: its runs of rows are those of an expert layer, a token an expert."""
        tokens, samples = len(self.used_JZ), len(self.z_BJZ)
        token_R = torch.arange(tokens, device=self.z_BJZ.device).repeat_interleave(samples)
        z_RZ = (self.z_BJZ.double() * self.used_JZ).transpose(0, 1).flatten(0, 1)
        g_RN = self.g_BJN.double().transpose(0, 1).flatten(0, 1)
        segments = find_segments(token_R, groups.unit_B.repeat(tokens))
        mask_JZN = None if mask is None else spread_rows(mask.double(), self.used_JZ)
        return sample_square_norms(z_RZ, g_RN, segments, groups.units, mask_JZN)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:  # noqa: D102
        weights_B = weights_B if self.groups is None else weights_B[self.groups.unit_B]
        weighted = self.g_BJN * weights_B.to(self.g_BJN.dtype).view(-1, 1, 1)
        sum_JZN = torch.bmm(self.z_BJZ.permute(1, 2, 0), weighted.transpose(0, 1))
        return sum_JZN[self.used_JZ]

    def folded(self, sequences: int) -> Self:  # noqa: D102
        raise NotImplementedError("a sample of a table is one row")

    def grouped(self, groups: Groups) -> Self:  # noqa: D102
        return replace(self, groups=groups)


def spread_rows(rows_UN: Tensor, used_JZ: Tensor) -> Tensor:
    """Put the used rows at their padded places, (U, N) -> (J, Z, N), zero elsewhere."""
    spread = rows_UN.new_zeros(*used_JZ.shape, rows_UN.shape[-1])
    spread[used_JZ] = rows_UN
    return spread


class Tape:
    """The records of one backward pass, by the names of their factors.

    Guarantees:
        - A factor that is used twice in one pass is refused: the norm of a sum is not the sum of two norms.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._sequences = 1

    def fold(self, sequences: int) -> None:
        """Say, before the forward pass, that every `sequences` neighbouring sequences of the batch are one sample."""
        self._sequences = sequences

    def add(self, record: Record) -> None:
        """Keep a record.

        Raises:
            ValueError: The factor has left a record already.
        """
        if record.name in self.records:
            raise ValueError(f"factor {record.name} was used twice in one pass")
        self.records[record.name] = record if self._sequences == 1 else record.folded(self._sequences)
