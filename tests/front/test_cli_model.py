"""`hansa model explain`, in this process: a row, a text, what would change, and what it refuses."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hansa import errors
from hansa.cli import app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "bank"


def run(*arguments: str) -> str:
    """Give stdout of a command that succeeds; errors are raised as they are."""
    found = CliRunner().invoke(app, ["model", "explain", *arguments], catch_exceptions=False)
    if found.exit_code:
        raise found.exception or AssertionError(found.output)
    assert found.stderr == ""
    return found.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the bank example, barely pretrained, with a head that says something."""
    from hansa.demo.bank_data import load_bank
    from hansa.models.features import encoder_of_public_sample
    from hansa.models.pretraining import PretrainingConfig, make_base
    from hansa.models.saving import save_model
    from hansa.study import load_study

    study = load_study(EXAMPLE / "study.toml")
    public = load_bank(EXAMPLE / "data" / "credit_default.parquet", study, seed=0).public
    encoder = encoder_of_public_sample(
        study.data, public.numeric, public.categorical.shape[1], study.model.quantile_bins
    )
    features = encoder.encode(public.numeric, public.categorical)
    pretraining = PretrainingConfig(steps=1, batch_size=8)
    model = make_base(study, features, encoder.used(), seed=0, pretraining=pretraining).model()
    torch.nn.init.normal_(model.head, std=0.3, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("base")
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def text_base(texts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hansa.models.saving import save_model

    folder = tmp_path_factory.mktemp("text")
    save_model(texts.text_model(), folder)
    return folder


def test_a_row_in_json(base: Path) -> None:
    found = json.loads(run("--row", "17", "--base", str(base), "--json"))
    assert found["schema"] == "hansa/model-explanation/v1"
    assert found["tokens"][0] == "class token"
    assert len(found["tokens"]) == 8
    assert 0 < found["output"]["probability"] < 1
    assert found["counterfactual"] is None
    for layer in found["layers"]:
        assert all(abs(sum(gates) - 1) < 1e-5 for gates in layer["gates"])
        assert all(abs(sum(shares) - 1) < 1e-5 for shares in layer["attention"])
        assert all(len(set(experts)) == 4 and max(experts) < 128 for experts in layer["experts"])


def test_what_would_change(base: Path) -> None:
    common = ("--row", "17", "--base", str(base), "--json")
    found = json.loads(run(*common, "--change", "PAY_0=5", "--change", "SEX=1"))
    same = json.loads(run(*common, "--change", "PAY_0=-1e9", "--change", "SEX=77"))["counterfactual"]
    change = found["counterfactual"]
    assert change["output"] != found["output"]
    assert change["routed_layers"] == [0, 1]
    moved = dict(zip(found["tokens"], change["route_change"][0], strict=True))
    assert moved["status_recent"] == max(moved.values()) > 0
    assert same["output"] != change["output"]  # clamped to the public bound, and code "other"


def test_words_name_every_token_and_block(base: Path) -> None:
    text = run("--row", "17", "--base", str(base), "--change", "AGE=80")
    for word in (
        "BLOCK 0",
        "BLOCK 1",
        "class token",
        "status_recent",
        "output  logit",
        "after the change",
        "routes  block 1",
    ):
        assert word in text
    assert "not trained" not in text


def test_a_text_by_its_tokens(text_base: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    common = ("--base", str(text_base), "--tokens", "1,2,3,4")
    found = json.loads(run(*common, "--change", "3=9", "--plot", str(plot), "--json"))
    assert found["tokens"] == ["1", "2", "3", "4"]
    assert found["layers"][0]["experts"] is None
    assert len(found["output"]["likeliest"]) == 5
    assert (
        max(found["counterfactual"]["route_change"][0][:3])
        < 1e-5
        < found["counterfactual"]["route_change"][0][3]
    )
    assert "<svg" in plot.read_text()
    assert "one dense network" in run(*common)


def test_a_public_checkpoint_with_its_tokenizer(public: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = public.save("qwen3", tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"one": 1, "two": 2, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    found = json.loads(run("--base", str(folder), "--text", "two one what", "--experts", "0-3", "--json"))
    assert found["tokens"] == ["two", "one", "?"]
    assert max(max(experts) for layer in found["layers"] for experts in layer["experts"]) < 4


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((), errors.UsageError, "exactly one"),
        (("--row", "1", "--tokens", "1"), errors.UsageError, "exactly one"),
        (("--tokens", "1"), errors.UsageError, "--base"),
        (("--row", "30000", "--base", "BASE"), errors.UsageError, "rows 0 to 29999"),
        (("--row", "-1", "--base", "BASE"), errors.UsageError, "no row -1"),
        (("--row", "1", "--base", "BASE", "--change", "PAYMENT=1"), errors.UsageError, "no column 'PAYMENT'"),
        (("--row", "1", "--base", "BASE", "--change", "AGE=old"), errors.UsageError, "no number"),
        (("--row", "1", "--base", "BASE", "--change", "AGE"), errors.UsageError, "NAME=VALUE"),
        (("--row", "1", "--base", "TEXT"), errors.UsageError, "does not read the columns"),
        (("--row", "1", "--base", "NOWHERE"), errors.CheckpointFileMissing, "config.json"),
        (("--row", "1", "--study", "no.toml"), errors.StudyFileMissing, "no.toml"),
        (("--tokens", "1", "--base", "BASE"), errors.UsageError, "reads tables"),
        (("--tokens", "1,x", "--base", "TEXT"), errors.UsageError, "no token"),
        (("--tokens", "1,99", "--base", "TEXT"), errors.InvalidValue, "vocabulary"),
        (("--tokens", "1", "--base", "TEXT", "--change", "1=2"), errors.UsageError, "no position 1"),
        (("--text", "hello", "--base", "TEXT"), errors.UsageError, "no tokenizer.json"),
    ],
    ids=str,
)
def test_what_it_refuses(
    base: Path,
    text_base: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    error: type[errors.Error],
    words: str,
) -> None:
    places = {"BASE": str(base), "TEXT": str(text_base), "NOWHERE": str(tmp_path / "nowhere")}
    with pytest.raises(error) as caught:
        run(*(places.get(argument, argument) for argument in arguments))
    assert words in caught.value.message


def test_the_command_line_stays_light() -> None:
    import subprocess
    import sys

    script = "import hansa.cli, sys; sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
