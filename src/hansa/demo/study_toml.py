"""A study as the text of a study.toml."""

import json
from typing import Any

from hansa.study import Study


def toml_of(study: Study) -> str:
    """Write a study as TOML; read again it has the same id."""
    agreement = study.model_dump(by_alias=True, mode="json", exclude_none=True)
    plain = {key: value for key, value in agreement.items() if not isinstance(value, dict)}
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in plain.items())
    return text + "".join(_table(key, agreement[key]) for key in agreement if key not in plain)


def _table(name: str, table: dict[str, Any]) -> str:
    plain = [(key, value) for key, value in table.items() if not isinstance(value, dict)]
    text = f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in plain)
    for key, value in table.items():
        if isinstance(value, dict):
            text += _table(f"{name}.{key}", value)
    return text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
