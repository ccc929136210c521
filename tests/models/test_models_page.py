"""The example of the page about models runs as it stands."""

import re
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_example_runs(public: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public.save("deepseek-v3", tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})  # the page's own words


def test_every_family_has_a_line() -> None:
    from hansa.models.families import FAMILIES

    assert re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE) == ["model_type", *FAMILIES]
