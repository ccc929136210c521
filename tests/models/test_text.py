"""The text model: causal, deaf to padding and to the rest of the batch, equal to loops; checkpointing changes no bit."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.errors import InvalidValue
from hansa.models.config import Latent, ModelConfig, Yarn
from hansa.models.objectives import next_token_loss
from hansa.models.positions import alibi_slopes, rope_frequencies, rotate
from hansa.models.tape import Tape
from hansa.models.text import TextTransformer, use_compute_type

LATENT = Latent(kv_rank=8, query_rank=0, plain_dim=4, rope_dim=4, value_dim=6)
SHAPES: list[dict[str, Any]] = [
    {},
    {"position": "alibi"},
    {"latent": LATENT, "kv_heads": 0},
    {"score": "sigmoid", "select_bias": True, "groups": 2},
]


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_the_logits_equal_loops_over_tokens_heads_and_experts(texts: ModuleType, position: str) -> None:
    model = texts.text_model(position=position)
    text = texts.some_text(1, 9)
    same(model(text)[0], texts.loop_logits(model, text[0]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_depends_on_itself_and_those_before_it_of_its_own_text(
    texts: ModuleType, shape: dict[str, Any]
) -> None:
    model = texts.text_model(**shape)
    text = texts.some_text(4, 9)
    text[0, 5:] = 3
    changed = texts.some_text(4, 9, seed=9)
    changed[0, :5] = text[0, :5]
    same(model(text)[0, :5], model(changed)[0, :5])
    same(model(text)[0], model(text[:1])[0])
    same(model(text)[0, :5], model(text[:1, :5])[0])
    assert (model(text)[0, 5] - model(changed)[0, 5]).abs().max() > 1e-3


def test_a_window_hides_what_lies_before_it(texts: ModuleType) -> None:
    """One windowed block of width 3 sees three tokens, a full one all of them."""
    text = texts.some_text(1, 9)
    changed = text.clone()
    changed[0, 0] = (text[0, 0] + 1) % 13
    for full_every, differs in ((0, 3), (1, 9)):
        model = texts.text_model(layers=1, dense_layers=0, full_every=full_every)
        gap = (model(text) - model(changed))[0].abs().amax(dim=1)
        assert (gap[:differs] > 1e-9).all()
        assert (gap[differs:] < 1e-12).all()


def test_which_blocks_are_windowed() -> None:
    config = ModelConfig.of_text(100)
    assert [config.window_of(i) for i in range(8)] == [512, 512, 512, None] * 2
    assert (config.experts, config.top_k, config.context) == (128, 4, 32_768)
    assert ModelConfig.of_text(100, full_every=0).window_of(3) == 512
    assert ModelConfig.of_text(100, window=0).window_of(0) is None


def test_padding_changes_no_class(texts: ModuleType) -> None:
    model = texts.text_model(head="classes", classes=3)
    text = texts.some_text(3, 6)
    longer = torch.cat([text, torch.full((3, 4), -1)], dim=1)
    assert model(text).shape == (3, 3)
    same(model(text), model(longer))
    same(model(text)[2], model(text[2:][:, text[2] >= 0])[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_checkpointing_changes_no_bit(texts: ModuleType, shape: dict[str, Any]) -> None:
    tapes = []
    for again in (False, True):
        model = texts.text_model(checkpointing=again, **shape)
        texts.layout_of(model)
        tape, text = Tape(), texts.some_text()
        next_token_loss(model, text, text, tape).sum().backward()
        tapes.append(tape)
    one, other = (
        {name: record.weighted_sum(torch.ones(4)) for name, record in tape.records.items()} for tape in tapes
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_float32_and_bfloat16_agree_with_float64(texts: ModuleType) -> None:
    text = texts.some_text(8, 12)[:1]
    exact = texts.text_model()(text)
    single = texts.text_model(dtype=torch.float32)
    assert (single(text).double() - exact).abs().max() < 1e-4
    use_compute_type(single, torch.bfloat16)
    assert single(text).dtype == torch.bfloat16
    assert (single(text).double() - exact).abs().median() < 0.1
    widths = {name: parameter.dtype for name, parameter in single.named_parameters()}
    assert {widths[name] for name in widths if name.endswith(("_B", "gain", "router"))} == {torch.float32}
    assert {widths[name] for name in widths if name.endswith((".weight", "gate_up", "embedding"))} == {
        torch.bfloat16
    }


def test_what_does_not_fit_is_refused(texts: ModuleType) -> None:
    model = texts.text_model(context=8)
    with pytest.raises(InvalidValue, match="9 tokens is above the context of 8"):
        model(texts.some_text(1, 9))
    for token in (13, -2):
        with pytest.raises(InvalidValue, match="outside of the vocabulary of 13"):
            model(torch.tensor([[1, token]]))
    with pytest.raises(InvalidValue, match="has a vocabulary"):
        TextTransformer(ModelConfig())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"targets": ("attention", "all")}, "unknown target"),
        ({"top_k": 7}, "top_k 7 is above experts 6"),
        ({"groups": 4}, "not a multiple of groups 4"),
        ({"groups": 2, "top_groups": 3}, "top_groups 3 is above groups 2"),
        ({"groups": 3, "top_groups": 1, "top_k": 3}, "above the 2 experts of top_groups 1"),
        ({"dense_dim": 0}, "dense_dim is 0"),
        ({"head": "table"}, "does not fit vocabulary 13"),
        ({"vocabulary": 0, "head": "table"}, "a table has no order"),
    ],
    ids=str,
)
def test_sizes_that_contradict_each_other_are_refused(
    texts: ModuleType, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidValue, match=words):
        ModelConfig(**(texts.SIZES | change))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(shift=st.integers(1, 9), interleaved=st.booleans(), stretched=st.booleans())
def test_a_rotated_product_depends_on_the_difference_of_positions_only(
    shift: int, interleaved: bool, stretched: bool
) -> None:
    yarn = Yarn(factor=4.0, original_context=16) if stretched else None
    frequencies = rope_frequencies(8, 10_000.0, yarn)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 20, 8)
    turned_q, turned_k = (rotate(x, frequencies, 1.0, interleaved=interleaved)[0, 0] for x in (q, k))
    products = turned_q @ turned_k.t()
    same(products[shift:, shift:], products[: 20 - shift, : 20 - shift])
    same(turned_q.norm(dim=1), q[0, 0].norm(dim=1))


def test_the_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert torch.allclose(alibi_slopes(12)[8:], 2.0 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))
