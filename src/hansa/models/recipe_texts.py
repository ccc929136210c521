"""The data of a recipe: JSON lines to tokens, one text or one pair of answers a line.

Without a tokenizer a text is its UTF-8 bytes and an end mark: 257 tokens, nothing to train and nothing to ship.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from hansa.errors import DataFileMissing, ExtraMissing, InvalidValue, RecipeDataInvalid
from hansa.models.objectives import IGNORED
from hansa.models.text import PADDING
from hansa.study_problems import lowered, problem_of

BYTE_VOCABULARY = 257  # 256 bytes and the end of a text
_END = 256
_HINT = "paths in a recipe are relative to the recipe's own folder"

Encode = Callable[[str], list[int]]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextLine(_Line):
    """A text to learn; what stands in `prompt` is read and not learned."""

    text: str = Field(min_length=1)
    prompt: str = ""


class PairLine(_Line):
    """Two answers to one prompt, of which the first is preferred."""

    prompt: str = Field(min_length=1)
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)


Line = TypeVar("Line", bound=_Line)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Tokens and targets, (n, T) of texts or (n, 2, T) of pairs; −1 for padding, and in targets for what is not learned."""

    tokens: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give some samples, cut to the longest of them."""
        tokens, targets = self.tokens[rows], self.targets[rows]
        longest = int((tokens != PADDING).sum(dim=-1).max())
        return tokens[..., :longest], targets[..., :longest]


def encoder_for(folder: Path | None, vocabulary: int) -> Encode:
    """Find how texts become tokens: by the tokenizer.json beside a model, or as bytes.

    Raises:
        ExtraMissing: There is a tokenizer.json and the package tokenizers is not installed.
        InvalidValue: There is none, and the model's vocabulary is not that of bytes.
    """
    path = None if folder is None else folder / "tokenizer.json"
    if path is not None and path.is_file():
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError:
            raise ExtraMissing("a tokenizer.json needs the package tokenizers") from None
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    if vocabulary != BYTE_VOCABULARY:
        raise InvalidValue(
            f"model.start has a vocabulary of {vocabulary} and no tokenizer.json",
            hint=f"put the model's tokenizer.json beside it; without one the vocabulary is {BYTE_VOCABULARY} bytes",
        )
    return lambda text: list(text.encode("utf-8"))


def read_texts(path: Path, encode: Encode, context: int, *, ends: bool) -> Samples:
    """Read texts; one that is longer than the context is cut into several, unless it has a prompt.

    Args:
        path: JSON lines of `TextLine`.
        encode: Gives the tokens.
        context: Longest sample, tokens.
        ends: Whether an end mark follows each text.

    Raises:
        DataFileMissing: The file cannot be read.
        RecipeDataInvalid: A line is not such an object, or a text with a prompt is longer than the context.
    """
    tokens, learned_from = [], []
    for number, line in _lines(path, TextLine):
        prompt, text = encode(line.prompt), encode(line.text) + ([_END] if ends else [])
        if prompt and len(prompt) + len(text) > context:
            raise RecipeDataInvalid(
                f"{path.name} line {number}: {len(prompt) + len(text)} tokens are above the context of {context}"
            )
        whole = prompt + text
        for start in range(0, len(whole), context):
            if len(whole) - start > 1:  # a single token has no next one
                tokens.append(whole[start : start + context])
                learned_from.append(len(prompt))
    return Samples(**_padded(tokens, learned_from, path))


def read_pairs(path: Path, encode: Encode, context: int, *, ends: bool) -> Samples:
    """Read pairs of answers; arguments and errors as of `read_texts`, no pair is cut."""
    tokens, learned_from = [], []
    for number, line in _lines(path, PairLine):
        prompt = encode(line.prompt)
        for answer in (line.chosen, line.rejected):
            whole = prompt + encode(answer) + ([_END] if ends else [])
            if len(whole) > context:
                raise RecipeDataInvalid(
                    f"{path.name} line {number}: {len(whole)} tokens are above the context of {context}"
                )
            tokens.append(whole)
            learned_from.append(len(prompt))
    flat = _padded(tokens, learned_from, path)
    return Samples(**{name: tensor.view(-1, 2, tensor.shape[1]) for name, tensor in flat.items()})


def digest_of(path: Path) -> str:
    """Hash a file, SHA-256; raises DataFileMissing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataFileMissing(
            f"{str(path)!r} cannot be read: {lowered(error.strerror)}", hint=_HINT
        ) from error


def _lines(path: Path, kind: type[Line]) -> list[tuple[int, Line]]:
    try:
        raw = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataFileMissing(
            f"{str(path)!r} cannot be read: {lowered(error.strerror)}", hint=_HINT
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeDataInvalid(f"{path.name} is not UTF-8") from error
    found = []
    for number, line in enumerate(raw.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, kind.model_validate(json.loads(line))))
        except ValidationError as error:
            problem = problem_of(error, kind)
            raise RecipeDataInvalid(f"{path.name} line {number}: {problem.message}") from None
        except (ValueError, RecursionError) as error:
            raise RecipeDataInvalid(f"{path.name} line {number} is not JSON") from error
    return found


def _padded(tokens: Sequence[Sequence[int]], learned_from: Sequence[int], path: Path) -> dict[str, Tensor]:
    if not tokens:
        raise RecipeDataInvalid(f"{path.name} holds no text")
    padded = np.full((len(tokens), max(map(len, tokens))), PADDING, dtype=np.int64)
    for row, sample in zip(padded, tokens, strict=True):
        row[: len(sample)] = sample
    targets = padded.copy()
    for row, start in zip(targets, learned_from, strict=True):
        row[:start] = IGNORED
    return {"tokens": torch.from_numpy(padded), "targets": torch.from_numpy(targets)}
