"""Stock Opacus with our model: the same gradients and the same clipped step as our own engine."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hansa.models.objectives import class_loss, next_token_loss
from hansa.models.opacus_samplers import register_with_opacus
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.privacy.per_sample import binary_loss, clipped_sum

# Opacus hooks inputs that need no gradient themselves; torch warns of it, and the first adapter sees such inputs.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_with_opacus()
    register_with_opacus()


def table_case(make: Callable[..., FeatureTransformer], rows: Callable[..., Tensor]) -> tuple[Any, ...]:
    model = make(targets=("attention", "router", "experts", "shared"))
    layout = TrainableLayout(model, ["embedding", "class_token", "head"])
    layout.freeze_rest(model)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    return model, layout, rows(5), labels, binary_loss


def text_case(texts: ModuleType, head: str) -> tuple[Any, ...]:
    model = texts.text_model(head=head, classes=3)
    layout = texts.layout_of(model, "head")
    text = texts.some_text(5)
    if head == "classes":
        return model, layout, text, torch.tensor([0, 2, 1, 1, 0]), class_loss
    return model, layout, text, text, next_token_loss


@pytest.fixture(params=["table", "causal_lm", "classes"])
def case(
    request: pytest.FixtureRequest,
    small_model: Callable[..., FeatureTransformer],
    small_rows: Callable[..., Tensor],
    texts: ModuleType,
) -> tuple[Any, ...]:
    return (
        table_case(small_model, small_rows) if request.param == "table" else text_case(texts, request.param)
    )


def losses(model: Any, x: Tensor, y: Tensor, loss: Any) -> Tensor:
    result: Tensor = loss(lambda inputs, _tape: model(inputs), x, y, None)
    return result


def test_opacus_gradients_are_those_of_our_engine(case: tuple[Any, ...]) -> None:
    model, layout, x, y, loss = case
    expected = clipped_sum(model, layout, x, y, support_K=None, clip_norm=None, loss=loss)
    wrapped = GradSampleModule(model.train(), strict=False, loss_reduction="sum")
    losses(wrapped, x, y, loss).sum().backward()
    parameters = dict(model.named_parameters())
    gradients = np.hstack([parameters[s.name].grad_sample.flatten(1).numpy() for s in layout.slots])
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), expected.norms_B, rtol=1e-11)
    np.testing.assert_allclose(gradients.sum(0), expected.sum_K, rtol=1e-9, atol=1e-12)


def test_ghost_norms_are_those_of_our_engine(case: tuple[Any, ...]) -> None:
    model, _, x, y, loss = case
    layout = TrainableLayout(model, ())
    layout.freeze_rest(model)
    expected = clipped_sum(model, layout, x, y, support_K=None, clip_norm=None, loss=loss)
    wrapped = GradSampleModuleFastGradientClipping(
        model.train(), strict=False, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    losses(wrapped, x, y, loss).sum().backward()
    np.testing.assert_allclose(wrapped.get_norm_sample().numpy(), expected.norms_B, rtol=1e-11)


def test_a_whole_step_of_stock_opacus_is_our_clipped_sum(case: tuple[Any, ...]) -> None:
    model, layout, x, y, loss = case
    norms = clipped_sum(model, layout, x, y, support_K=None, clip_norm=None, loss=loss).norms_B
    clip_norm = float(np.median(norms))
    expected = clipped_sum(model, layout, x, y, support_K=None, clip_norm=clip_norm, loss=loss).sum_K
    before = layout.gather(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped, optimizer, _ = PrivacyEngine().make_private(
        module=GradSampleModule(model.train(), strict=False, loss_reduction="sum"),
        optimizer=torch.optim.SGD(trained, lr=1.0),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=len(x)),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        loss_reduction="sum",
        poisson_sampling=False,
    )
    losses(wrapped, x, y, loss).sum().backward()
    optimizer.step()
    moved = before - layout.gather(model)
    # Opacus adds 1e-6 to a norm where we multiply it by 1 + 1e-6
    assert np.linalg.norm(moved - expected) <= 1e-5 * np.linalg.norm(expected)


def test_padding_counts_in_no_norm(
    small_model: Callable[..., FeatureTransformer], small_rows: Callable[..., Tensor]
) -> None:
    model, layout, x, y, loss = table_case(small_model, small_rows)
    padded = torch.where(model.used_JZ, x, torch.full_like(x, 1e3))
    found = [clipped_sum(model, layout, z, y, support_K=None, clip_norm=1.0, loss=loss) for z in (x, padded)]
    np.testing.assert_allclose(found[0].norms_B, found[1].norms_B, rtol=1e-12)
    np.testing.assert_allclose(found[0].sum_K, found[1].sum_K, rtol=1e-9, atol=1e-15)
