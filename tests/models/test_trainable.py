"""The trained part as a vector: one order everywhere, read and written without loss, and the positions of its tensors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hansa.errors import InvalidValue
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer

EXTRA = ("head", "class_token", "embedding")
Maker = Callable[..., FeatureTransformer]


def test_the_layout_depends_on_names_and_shapes_only(small_model: Maker) -> None:
    first, second = TrainableLayout(small_model(0), EXTRA), TrainableLayout(small_model(1), EXTRA[::-1])
    assert first.slots == second.slots
    assert [(slot.name, slot.shape) for slot in first.slots] == [
        ("blocks.0.attention.key.factor_B", (4, 8)),
        ("blocks.0.attention.output.factor_B", (4, 8)),
        ("blocks.0.attention.query.factor_B", (4, 8)),
        ("blocks.0.attention.value.factor_B", (4, 8)),
        ("blocks.0.experts.down_B", (8, 4, 8)),
        ("blocks.0.experts.gate_up_B", (8, 4, 8)),
        ("blocks.1.attention.key.factor_B", (4, 8)),
        ("blocks.1.attention.output.factor_B", (4, 8)),
        ("blocks.1.attention.query.factor_B", (4, 8)),
        ("blocks.1.attention.value.factor_B", (4, 8)),
        ("blocks.1.experts.down_B", (8, 4, 8)),
        ("blocks.1.experts.gate_up_B", (8, 4, 8)),
        ("class_token", (1, 8)),
        ("embedding", (8, 8)),
        ("head", (9, 1)),
    ]
    assert first.size == 8 * 4 * 8 + 4 * 8 * 4 * 8 + 8 + 64 + 9
    # without a gap: each tensor starts where the one before it stops
    assert [slot.start for slot in first.slots] == [0, *(slot.stop for slot in first.slots[:-1])]


def test_the_layout_does_not_depend_on_the_order_of_construction() -> None:
    class Part(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                self.register_parameter(f"{name}_down_B", nn.Parameter(torch.zeros(2, ord(name) - 96)))

    assert TrainableLayout(Part("abc"), ()).slots == TrainableLayout(Part("cab"), ()).slots


def test_gather_and_load_round_trip(small_model: Maker) -> None:
    model = small_model()
    layout = TrainableLayout(model, EXTRA)
    vector = np.random.default_rng(0).normal(size=layout.size)
    layout.load(model, vector)
    np.testing.assert_array_equal(layout.gather(model), vector)  # float64 parameters keep every bit
    tensors = dict(model.named_parameters())
    for slot in layout.slots:  # C order
        np.testing.assert_array_equal(
            tensors[slot.name].detach().numpy().ravel(), vector[slot.start : slot.stop]
        )


def test_load_rounds_to_the_parameters_type_and_changes_nothing_else(small_model: Maker) -> None:
    model = small_model(dtype=torch.float32)
    layout = TrainableLayout(model, ("head",))
    others = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("_B") and k != "head"}
    vector = np.random.default_rng(0).normal(size=layout.size)
    kept = vector.copy()
    layout.load(model, vector)
    np.testing.assert_array_equal(layout.gather(model), vector.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(vector, kept)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())


def test_what_was_gathered_does_not_follow_the_model(small_model: Maker) -> None:
    model = small_model()
    layout = TrainableLayout(model, EXTRA)
    gathered = layout.gather(model)
    kept = gathered.copy()
    layout.load(model, np.zeros(layout.size))
    np.testing.assert_array_equal(gathered, kept)


def test_freeze_rest_trains_exactly_the_layout(small_model: Maker) -> None:
    model = small_model()
    layout = TrainableLayout(model, ("head",))
    for flag in (True, False):
        for parameter in model.parameters():
            parameter.requires_grad_(flag)
        layout.freeze_rest(model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {slot.name for slot in layout.slots}
    assert "embedding" not in trained


def test_masks_are_one_at_the_positions_and_zero_elsewhere(small_model: Maker) -> None:
    layout = TrainableLayout(small_model(), EXTRA)
    positions = np.flatnonzero(np.random.default_rng(0).random(layout.size) < 0.3)
    masks = layout.masks(positions)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        s.name: s.shape for s in layout.slots
    }
    flat = np.concatenate([masks[slot.name].flatten().numpy() for slot in layout.slots])
    np.testing.assert_array_equal(np.flatnonzero(flat), positions)
    assert set(np.unique(flat)) == {0.0, 1.0}


def test_positions_of_tensors_by_name_or_by_a_part_between_dots(small_model: Maker) -> None:
    layout = TrainableLayout(small_model(), EXTRA)
    spans = {slot.name: set(range(slot.start, slot.stop)) for slot in layout.slots}
    assert set(layout.positions(["head"])) == spans["head"]
    attention = set().union(*(span for name, span in spans.items() if ".attention." in name))
    assert set(layout.positions(["attention"])) == attention
    both = layout.positions(["class_token", "attention", "class_token"])
    assert both.tolist() == sorted(attention | spans["class_token"])
    assert layout.positions([]).tolist() == []


@pytest.mark.parametrize("name", ["embedding", "tail", "hea", "", "experts.down"])
def test_a_name_that_fits_no_trained_tensor_is_refused(small_model: Maker, name: str) -> None:
    layout = TrainableLayout(small_model(), ("head",))
    if name == "experts.down":
        layout = TrainableLayout(small_model(targets=("attention",)), ("head",))
    with pytest.raises(InvalidValue, match=f"no trained tensor is called '{name}'"):
        layout.positions([name])
