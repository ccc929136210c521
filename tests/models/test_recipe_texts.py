"""JSON lines to tokens and targets."""

import json
from pathlib import Path
from typing import Any

import pytest

from hansa import errors
from hansa.models.recipe_texts import encoder_for, read_pairs, read_texts

BYTES = encoder_for(None, 257)


def lines(tmp_path: Path, *values: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values) + "\n")
    return path


def test_a_text_is_its_bytes_and_an_end(tmp_path: Path) -> None:
    found = read_texts(lines(tmp_path, {"text": "ab"}, {"text": "é"}), BYTES, 8, ends=True)
    assert found.tokens.tolist() == [[97, 98, 256], [0xC3, 0xA9, 256]]
    assert found.targets.tolist() == found.tokens.tolist()


def test_a_prompt_is_read_and_not_learned(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "a", "text": "b"}, {"text": "abc"})
    found = read_texts(path, BYTES, 8, ends=True)
    assert found.tokens.tolist() == [[97, 98, 256, -1], [97, 98, 99, 256]]
    assert found.targets.tolist() == [[-1, 98, 256, -1], [97, 98, 99, 256]]


def test_a_long_text_is_cut_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    found = read_texts(lines(tmp_path, {"text": "abcdefg"}), BYTES, 3, ends=True)
    kept = [token for row in found.tokens.tolist() for token in row if token >= 0]
    assert kept == [*b"abcdefg", 256]
    assert found.tokens.shape[1] == 3


def test_a_pair_is_two_answers_to_one_prompt(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "p", "chosen": "xy", "rejected": "z"})
    found = read_pairs(path, BYTES, 8, ends=False)
    assert found.tokens.tolist() == [[[112, 120, 121], [112, 122, -1]]]
    assert found.targets.tolist() == [[[-1, 120, 121], [-1, 122, -1]]]


def test_a_batch_is_cut_to_its_longest(tmp_path: Path) -> None:
    found = read_texts(lines(tmp_path, {"text": "ab"}, {"text": "abcd"}), BYTES, 8, ends=False)
    import torch

    tokens, targets = found.batch(torch.tensor([0]))
    assert tokens.tolist() == targets.tolist() == [[97, 98]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2 is not JSON"),
        ({"text": 5}, "line 2: text"),
        ({}, "line 2: text is missing"),
        ({"text": "a", "label": 1}, "line 2: unknown key 'label'"),
        ([1], "line 2"),
        ({"prompt": "a long prompt", "text": "b"}, "line 2: 14 tokens are above the context of 8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(errors.RecipeDataInvalid, match=words):
        read_texts(lines(tmp_path, {"text": "good"}, line), BYTES, 8, ends=False)


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeDataInvalid, match="holds no text"):
        read_texts(lines(tmp_path, ""), BYTES, 8, ends=False)
    with pytest.raises(errors.DataFileMissing, match="no such file"):
        read_texts(tmp_path / "none.jsonl", BYTES, 8, ends=False)
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(errors.RecipeDataInvalid, match="UTF-8"):
        read_texts(tmp_path / "latin.jsonl", BYTES, 8, ends=False)
    pair = lines(tmp_path, {"prompt": "p", "chosen": "long answer", "rejected": "z"})
    with pytest.raises(errors.RecipeDataInvalid, match="above the context"):
        read_pairs(pair, BYTES, 8, ends=False)


def test_another_vocabulary_needs_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidValue, match=r"vocabulary of 13 and no tokenizer\.json"):
        encoder_for(tmp_path, 13)


def test_a_tokenizer_beside_the_model_is_used(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"sea": 0, "salt": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert encoder_for(tmp_path, 3)("salt sea sun") == [1, 0, 2]
