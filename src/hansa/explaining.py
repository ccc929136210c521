"""What `hansa model explain` does: find a model and an input, ask the model for its record, put it into words or JSON.

A row of a table is read from a file on this machine and explained by the base of a study, or by a saved model. The base is made
from a twentieth of the file's rows without their labels, as the demo does; of a real consortium it comes from its public sample.
A record tells of the row that it was made from: it belongs where the row belongs.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hansa.demo.bank_data import split_table
from hansa.errors import ExtraMissing, UsageError
from hansa.models.checkpoints import load_checkpoint
from hansa.models.explain import Counterfactual, Explanation, LayerRecord, Model, counterfactual, explain
from hansa.models.features import encoder_of_public_sample
from hansa.models.pretraining import PretrainingConfig, make_base
from hansa.models.saving import SCHEMA, load_model
from hansa.models.tensor_files import CONFIG, read_json
from hansa.models.text import TextTransformer
from hansa.models.transformer import FeatureTransformer
from hansa.participant.dataset import Table, read_table
from hansa.study import DataSchema, Study

_PRETRAINING = PretrainingConfig(steps=150)
_LIKELIEST = 5


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Subject:
    """A model, an input of one sample, and what its tokens are called.

    Attributes:
        kind: "table" or "text".
        model: The model.
        names: Name of each token.
        inputs: The input, batch of one.
        changed: The input as it might be; None where no change was asked for.
        vocabulary: Names of a tokenizer's tokens by number; None without a tokenizer.
    """

    kind: str
    model: Model
    names: tuple[str, ...]
    inputs: Tensor
    changed: Tensor | None
    vocabulary: Mapping[int, str] | None


def load_any(folder: Path, experts: str | None = None) -> Model:
    """Load a model that hansa saved, or a public checkpoint; errors as of `load_model` and `load_checkpoint`."""
    if read_json(folder / CONFIG).get("schema") == SCHEMA:
        return load_model(folder)
    return load_checkpoint(folder, experts=experts)


def subject_of_table(
    study: Study, data: Path, row: int, *, base: Path | None, changes: Mapping[str, str], seed: int = 0
) -> Subject:
    """Take a row of a file.

    Raises:
        UsageError: There is no such row or column, or the model is one of texts.
        DataError: The file does not fit the study.
    """
    table = read_table(data, study.data)
    if not 0 <= row < len(table):
        raise UsageError(f"there is no row {row}, the file has rows 0 to {len(table) - 1}")
    public = split_table(table, study.data, seed=seed).public
    encoder = encoder_of_public_sample(
        study.data, public.numeric, public.categorical.shape[1], study.model.quantile_bins
    )
    if base is None:
        features = encoder.encode(public.numeric, public.categorical)
        model: Model = make_base(study, features, encoder.used(), seed=seed, pretraining=_PRETRAINING).model()
    else:
        model = load_any(base)
    if not isinstance(model, FeatureTransformer) or not torch.equal(model.used_JZ, encoder.used()):
        raise UsageError("the model does not read the columns of this study")
    one = table.rows(np.array([row]))
    changed = _changed_row(one, study.data, changes) if changes else None
    return Subject(
        kind="table",
        model=model,
        names=("class token", *encoder.tokens),
        inputs=encoder.encode(one.numeric, one.categorical),
        changed=None if changed is None else encoder.encode(changed.numeric, changed.categorical),
        vocabulary=None,
    )


def _changed_row(row: Table, schema: DataSchema, changes: Mapping[str, str]) -> Table:
    numeric, categorical = row.numeric.copy(), row.categorical.copy()
    for name, text in changes.items():
        places = {c.name: i for kind in (schema.numeric, schema.categorical) for i, c in enumerate(kind)}
        if name not in places:
            raise UsageError(f"the study has no column {name!r}", hint=f"columns: {', '.join(places)}")
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is no number for column {name!r}") from None
        (column,) = (column for column in schema.columns if column.name == name)
        if column.kind == "numeric":
            numeric[0, places[name]] = np.clip(value, column.minimum, column.maximum)
        else:
            codes = {float(known): code for code, known in enumerate(column.values, start=1)}
            categorical[0, places[name]] = codes.get(value, 0)
    return Table(numeric=numeric, categorical=categorical, labels=row.labels.copy())


def subject_of_text(
    base: Path, *, text: str | None, tokens: str | None, experts: str | None, changes: Mapping[str, str]
) -> Subject:
    """Take a text, or its token numbers.

    Raises:
        UsageError: The model is one of tables, or a token or position is none.
        ExtraMissing: A text was given and no tokenizer can be loaded.
    """
    model = load_any(base, experts)
    if not isinstance(model, TextTransformer):
        raise UsageError("the model reads tables, not texts")
    vocabulary: Mapping[int, str] | None = None
    if text is not None:
        numbers, vocabulary = _tokenized(base, text)
    else:
        numbers = [_number(part, "token") for part in (tokens or "").split(",")]
    if not numbers:
        raise UsageError("the text has no token")
    inputs = torch.tensor([numbers])
    changed = inputs.clone()
    for position, token in changes.items():
        place = _number(position, "position")
        if place >= len(numbers):
            raise UsageError(f"there is no position {place}, the text has 0 to {len(numbers) - 1}")
        changed[0, place] = _number(token, "token")
    if vocabulary is None:
        names = tuple(str(number) for number in numbers)
    else:
        names = tuple(vocabulary.get(number, str(number)) for number in numbers)
    return Subject(
        kind="text",
        model=model,
        names=names,
        inputs=inputs,
        changed=changed if changes else None,
        vocabulary=vocabulary,
    )


def _number(text: str, what: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"{text!r} is no {what}, a whole number from 0")
    return int(text)


def _tokenized(base: Path, text: str) -> tuple[list[int], Mapping[int, str]]:
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise ExtraMissing("a text needs the package tokenizers") from None
    path = base / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{base.name!r} has no tokenizer.json; give --tokens instead")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return tokenizer.encode(text).ids, {number: name for name, number in tokenizer.get_vocab().items()}


# -- in JSON and in words ------------------------------------------------------------------------------------------


def record_of(subject: Subject) -> tuple[Explanation, Counterfactual | None]:
    """Ask the model."""
    if subject.changed is None:
        return explain(subject.model, subject.inputs), None
    found = counterfactual(subject.model, subject.inputs, subject.changed)
    return found.before, found


def as_json(subject: Subject, explanation: Explanation, change: Counterfactual | None) -> dict[str, Any]:
    """Give the record as plain values."""
    return {
        "schema": "hansa/model-explanation/v1",
        "kind": subject.kind,
        "tokens": list(subject.names),
        "output": _output(subject, explanation.output[0]),
        "layers": [_layer(record) for record in explanation.layers],
        "counterfactual": None
        if change is None
        else {
            "output": _output(subject, change.after.output[0]),
            "hidden_change": float(change.hidden_change_B[0]),
            "routed_layers": list(change.routed_layers),
            "route_change": _rounded(change.route_change_LBT[:, 0]),
        },
    }


def _layer(record: LayerRecord) -> dict[str, Any]:
    return {
        "layer": record.layer,
        "experts": None if record.experts_BTK is None else record.experts_BTK[0].tolist(),
        "gates": None if record.gates_BTK is None else _rounded(record.gates_BTK[0]),
        "attention": _rounded(record.attention_BHTT[0].mean(dim=0)),
    }


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().numpy(), 6).tolist()


def _output(subject: Subject, output: Tensor) -> dict[str, Any]:
    if subject.kind == "table":
        return {"logit": float(output), "probability": float(torch.sigmoid(output))}
    probability = torch.softmax(output.float(), dim=0)
    likeliest = probability.topk(min(_LIKELIEST, len(probability)))
    names = subject.vocabulary or {}
    return {
        "likeliest": [
            {"token": number, "name": names.get(number, str(number)), "probability": round(p, 6)}
            for p, number in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        ]
    }


def as_words(subject: Subject, explanation: Explanation, change: Counterfactual | None) -> str:
    """Give the record as a table for people."""
    width = max(len(name) for name in ("TOKEN", *subject.names)) + 2
    lines = []
    for record in explanation.layers:
        lines.append(f"BLOCK {record.layer}")
        lines.append(f"{'  TOKEN':<{width + 2}}{'READ MOST':<{width + 8}}EXPERTS (gate)")
        attention_TT = record.attention_BHTT[0].mean(dim=0)
        for place, name in enumerate(subject.names):
            share, most = attention_TT[place].max(dim=0)
            read = f"{subject.names[int(most)]} {float(share):.2f}"
            lines.append(f"  {name:<{width}}{read:<{width + 8}}{_served(record, place)}")
    lines.append(_said("output", _output(subject, explanation.output[0])))
    if isinstance(subject.model, FeatureTransformer) and not subject.model.head.any():
        lines[-1] += " (the head is not trained yet)"
    if change is not None:
        lines.append(_said("after the change", _output(subject, change.after.output[0])))
        lines.append(f"stream  moved by {float(change.hidden_change_B[0]):.1%} of its length")
        for layer, row_BT in zip(change.routed_layers, change.route_change_LBT, strict=True):
            moved = sorted(zip(row_BT[0].tolist(), subject.names, strict=True), reverse=True)[:3]
            words = ", ".join(f"{name} {share:.0%}" for share, name in moved if share > 0)
            lines.append(f"routes  block {layer}: {words or 'none moved'}")
    return "\n".join(lines) + "\n"


def _served(record: LayerRecord, place: int) -> str:
    if record.experts_BTK is None or record.gates_BTK is None:
        return "one dense network"
    pairs: Sequence[tuple[int, float]] = list(
        zip(record.experts_BTK[0, place].tolist(), record.gates_BTK[0, place].tolist(), strict=True)
    )
    return "  ".join(f"{expert} ({gate:.2f})" for expert, gate in pairs)


def _said(what: str, output: dict[str, Any]) -> str:
    if "logit" in output:
        return f"{what}  logit {output['logit']:.4f}, probability {output['probability']:.4f}"
    words = ", ".join(f"{entry['name']!r} {entry['probability']:.3f}" for entry in output["likeliest"])
    return f"{what}  next {words}"
