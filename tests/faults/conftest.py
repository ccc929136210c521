"""A consortium of processes for each test that asks for one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def base_file(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Any, tiny_encoder: Any, tiny_study: Any
) -> Path:
    from hansa.models.base_files import save_base

    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_base(tiny_base, tiny_encoder, tiny_study, path)
    return path


@pytest.fixture(scope="module")
def make_consortium(
    cluster_parts: ModuleType, tiny: ModuleType, base_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Make a consortium for a study of so many rounds; its processes end with the module."""
    made: list[Any] = []

    def make(rounds: int = 3, **changes: Any) -> Any:
        text = tiny.TINY_STUDY.replace("rounds = 2", f"rounds = {rounds}")
        text = text.replace("participants = 4", f"participants = {len(changes.get('names', tiny.NAMES))}")
        made.append(
            cluster_parts.Consortium(
                tmp_path_factory.mktemp("consortium"), base=base_file, table=tiny.Table, study=text, **changes
            )
        )
        return made[-1]

    yield make
    for consortium in made:
        consortium.close()
