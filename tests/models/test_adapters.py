"""Adapters: public orthonormal factors, no effect at the start, exact averages."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hansa.models import adapters
from hansa.models.adapters import orthonormal_factor
from hansa.models.tape import Tape
from hansa.models.transformer import FeatureTransformer


@pytest.mark.parametrize("shape", [(8, 4), (4, 4), (33, 5), (6, 8, 4), (2, 3, 7, 1)], ids=str)
def test_the_columns_of_a_factor_are_orthonormal(shape: tuple[int, ...]) -> None:
    factor = orthonormal_factor("blocks.0.experts.gate_up", shape, 3)
    assert (factor.shape, factor.dtype) == (shape, torch.float32)
    gram = factor.double().transpose(-1, -2) @ factor.double()
    torch.testing.assert_close(gram, torch.eye(shape[-1]).double().expand_as(gram), rtol=0, atol=1e-6)


def test_a_factor_is_a_function_of_name_and_seed() -> None:
    again = [orthonormal_factor("query", (16, 4), 7) for _ in range(2)]
    assert torch.equal(*again)
    # drawn once and kept: another machine must find the same factor
    expected = [-0.1267201006412506, -0.17139682173728943, 0.016373571008443832, 0.11125192791223526]
    np.testing.assert_allclose(again[0][0].tolist(), expected, rtol=1e-5)


def test_different_names_seeds_and_experts_give_independent_factors() -> None:
    names, seeds = ("query", "key", "query1"), (0, 1, -1, 2**53 - 1)
    factors = [
        orthonormal_factor(name, (2, 64, 4), seed)[expert]
        for name, seed, expert in itertools.product(names, seeds, range(2))
    ]
    for one, other in itertools.combinations(factors, 2):
        # columns of independent factors are nearly orthogonal: the cosine has a deviation of 1/8
        assert (one.t() @ other).abs().max() < 0.6


def test_drawing_a_factor_leaves_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    orthonormal_factor("query", (8, 4), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def zero_adapters(model: FeatureTransformer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_B"):
                parameter.zero_()


def test_with_b_at_zero_the_output_is_the_bases(
    small_model: Callable[..., FeatureTransformer], small_rows: Callable[..., Tensor]
) -> None:
    adapted, base = small_model(), small_model(targets=())
    base.load_state_dict(
        {name: adapted.state_dict()[name] for name in base.state_dict()}  # the base has no other weights
    )
    rows = small_rows(5)
    assert (adapted(rows) - base(rows)).abs().max() > 1e-3
    zero_adapters(adapted)
    torch.testing.assert_close(adapted(rows), base(rows), rtol=1e-12, atol=1e-12)


def test_a_fresh_model_starts_with_b_at_zero(small_config: Callable[..., object]) -> None:
    model = FeatureTransformer(small_config(), torch.ones(2, 4, dtype=torch.bool))  # type: ignore[arg-type]
    adapters = [parameter for name, parameter in model.named_parameters() if name.endswith("_B")]
    assert len(adapters) == 2 * (4 + 2)
    assert not any(adapter.any() for adapter in adapters)


@pytest.mark.parametrize("frozen", ["head", "factor_B", "gate_up_B", "embedding"])
def test_a_frozen_factor_leaves_no_record(
    small_model: Callable[..., FeatureTransformer], small_rows: Callable[..., Tensor], frozen: str
) -> None:
    model = small_model()
    for name, parameter in model.named_parameters():
        trained = name.endswith("_B") or name in {"embedding", "class_token", "head"}
        parameter.requires_grad_(trained and not name.endswith(frozen))
    tape = Tape()
    model(small_rows(3), tape).sum().backward()
    assert set(tape.records) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_repr_of_a_record_shows_no_gradient(
    small_model: Callable[..., FeatureTransformer], small_rows: Callable[..., Tensor]
) -> None:
    model, tape = small_model(), Tape()
    model(small_rows(3), tape).sum().backward()
    kinds = {type(record).__name__ for record in tape.records.values()}
    assert kinds == {"DenseRecord", "ExpertRecord", "FeatureRecord"}
    assert not any("tensor" in repr(record) for record in tape.records.values())


@pytest.mark.parametrize("part", ["query", "output"])
def test_an_adapter_adds_its_scaled_product(
    small_model: Callable[..., FeatureTransformer], part: str
) -> None:
    linear = small_model(alpha=12.0).blocks[0].attention.get_submodule(part)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    merged = linear.weight + 12.0 / 4 * linear.factor_A @ linear.factor_B
    torch.testing.assert_close(linear(x, None), x @ merged, rtol=1e-12, atol=1e-12)


def test_the_mean_of_updates_is_the_update_of_the_mean(
    small_model: Callable[..., FeatureTransformer],
) -> None:
    """Why only one factor moves: A mean(B) = mean(A B), which no pair of trained factors gives."""
    linear = small_model().blocks[0].attention.get_submodule("query")
    factors = [torch.randn(4, 8, dtype=torch.float64) for _ in range(5)]
    mean_of_products = torch.stack([linear.factor_A @ factor for factor in factors]).mean(0)
    torch.testing.assert_close(linear.factor_A @ torch.stack(factors).mean(0), mean_of_products)


@pytest.mark.parametrize("train_factor_A", [False, True])
def test_wide_experts_keep_their_adapters_apart_and_give_the_same(
    small_model: Callable[..., FeatureTransformer],
    small_rows: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    train_factor_A: bool,
) -> None:
    model, weights_B = small_model(train_factor_A=train_factor_A), torch.rand(5, dtype=torch.float64)
    found = []
    for small in (1 << 20, 0):
        monkeypatch.setattr(adapters, "_SMALL_WEIGHT", small)
        tape, rows = Tape(), small_rows(5)
        output = model(rows, tape)
        output.sum().backward()
        records = [tape.records[name] for name in sorted(tape.records)]
        sums = [record.weighted_sum(weights_B) for record in records]
        found.append([output, *(record.square_norms(None) for record in records), *sums])
    assert len(found[0]) > 12
    for merged, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, merged, rtol=1e-12, atol=1e-12)
