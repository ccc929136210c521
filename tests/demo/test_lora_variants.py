"""The benchmark of LoRA variants: what it does between rounds changes no output, and "full" trains the weights themselves."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hansa.models.merging import adapters_of
from hansa.models.pretraining import Base, PretrainingConfig, make_base
from hansa.participant.trainer import Rows
from hansa.study import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lora_variants", ROOT / "benchmarks" / "lora_variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = dict(os.environ)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    return module


@pytest.fixture(scope="module")
def small() -> tuple[Any, Base, Rows]:
    study = load_study(ROOT / "examples" / "bank" / "study.toml").with_changes(rounds=3)
    sizes = study.model.model_copy(update={"dim": 16, "experts": 8, "top_k": 2})
    study = study.model_copy(update={"model": sizes})
    used = torch.ones(3, 4, dtype=torch.bool)
    features = torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(0))
    base = make_base(study, features, used, seed=0, pretraining=PretrainingConfig(steps=2, batch_size=8))
    return study, base, Rows(features=features, labels=(features[:, 0, 0] > 0).float())


def outputs(training: Any, rows: Rows) -> torch.Tensor:
    training.layout.load(training.model, training.state.values)
    with torch.no_grad():
        return training.model(rows.features)


@pytest.mark.parametrize("between", ["refresh", "rotate"])
def test_between_rounds_the_model_stays_and_its_factors_change(
    bench: ModuleType, small: tuple[Any, Base, Rows], between: str
) -> None:
    study, base, rows = small
    training = bench.Training(study, base, bench.FFA, 1.0)
    training.run(rows, 3)
    before = outputs(training, rows)
    factors = [adapter.factor_A.clone() for adapter in adapters_of(training.model)]
    getattr(training, between)()
    torch.testing.assert_close(outputs(training, rows), before, atol=1e-4, rtol=1e-4)
    for adapter, old in zip(adapters_of(training.model), factors, strict=True):
        gram = adapter.factor_A.transpose(-1, -2) @ adapter.factor_A
        torch.testing.assert_close(gram, torch.eye(4).expand_as(gram), atol=1e-5, rtol=1e-5)
        assert not torch.equal(adapter.factor_A, old)


def test_rounds_of_alternate_factors(bench: ModuleType, small: tuple[Any, Base, Rows]) -> None:
    study, base, _ = small
    training = bench.Training(study, base, bench.Variant(name="alternate", first="alternate"), 1.0)
    names = [
        {slot.name for slot in training.layout.slots if np.isin(slot.start, training.support(applied))}
        for applied in (0, 1)
    ]
    assert any(name.endswith("_B") for name in names[0])
    assert not any("factor_A" in name for name in names[0])
    assert any("factor_A" in name for name in names[1])
    assert not any(name.endswith("_B") for name in names[1])
    assert {"head", "embedding", "class_token"} <= names[0] & names[1]


def test_a_full_adapter_starts_as_the_base_and_gets_the_gradient_of_the_weight(
    bench: ModuleType, small: tuple[Any, Base, Rows]
) -> None:
    study, base, rows = small
    training = bench.Training(study, base, bench.Variant(name="full", full=True), 1.0)
    torch.testing.assert_close(outputs(training, rows), base.model()(rows.features).detach())
    model = training.model
    model.requires_grad_(True)
    with torch.no_grad():
        model.head.fill_(0.1)
    model(rows.features).square().sum().backward()
    for adapter in adapters_of(model):
        weight, factor = adapter.weight, adapter.factor_B
        torch.testing.assert_close(factor.grad, weight.grad, atol=1e-4, rtol=1e-4)
