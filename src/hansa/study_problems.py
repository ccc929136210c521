"""From pydantic's report on a study file to one error of hansa's own, which names the place and what is allowed there."""

import difflib
import reprlib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hansa import errors

_REASONS = {"model_type": "must be a table", "tuple_type": "must be a list"}


def problem_of(error: ValidationError, root: type[BaseModel]) -> errors.ConfigurationError:
    """Choose the one problem to name.

    Args:
        error: What pydantic found.
        root: The model that was validated.

    Returns:
        UnknownKey before InvalidValue: a misspelt key also leaves its right spelling missing, and the misspelling is the cause.
    """
    details = error.errors(include_url=False)
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    return _unknown_key(unknown[0]["loc"], root) if unknown else _invalid_value(dict(details[0]))


def _unknown_key(place: tuple[int | str, ...], root: type[BaseModel]) -> errors.UnknownKey:
    allowed = _keys_allowed(place[:-1], root)
    near = difflib.get_close_matches(str(place[-1]), allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "keys allowed here: " + ", ".join(allowed)
    return errors.UnknownKey(f"unknown key {_dotted(place)!r}", hint=hint)


def _keys_allowed(place: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for part in place:
        if isinstance(part, str):
            section = _section(section.model_fields[part].annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _section(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return _section(get_args(annotation)[0])


def _invalid_value(detail: dict[str, Any]) -> errors.InvalidValue:
    path, value = _dotted(detail["loc"]), detail["input"]
    reason = _REASONS.get(detail["type"], lowered(detail["msg"]))
    if detail["type"] == "missing":
        return errors.InvalidValue(f"{path} is missing")
    if detail["type"] == "value_error":  # from a check of this module, which names the values itself
        return errors.InvalidValue(": ".join(filter(None, [path, str(detail["ctx"]["error"])])))
    scalar = isinstance(value, str | int | float)
    return errors.InvalidValue(f"{path} = {reprlib.repr(value)}: {reason}" if scalar else f"{path}: {reason}")


def _dotted(place: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def lowered(message: str | None) -> str:
    """Begin a message of a library with a small letter."""
    return message[:1].lower() + message[1:] if message else "unknown reason"
