"""Reading coordinator.toml and participant.toml: strict, so that a misspelt key is an error and not a default."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hansa.errors import ConfigurationError, InvalidValue, SettingsMissing, SettingsSyntaxError
from hansa.study_problems import lowered, problem_of

SETTINGS_BYTES_MOST = 1 << 20


class Settings(BaseModel):
    """A section: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SettingsType = TypeVar("SettingsType", bound=Settings)


def load_settings(path: Path, kind: type[SettingsType]) -> SettingsType:
    """Read a settings file.

    Args:
        path: The file, TOML in UTF-8.
        kind: Its keys.

    Raises:
        SettingsMissing: The file cannot be read.
        SettingsSyntaxError: It is not TOML, or says a key twice; the message names the line.
        UnknownKey: A key is not known; the hint names the nearest one.
        InvalidValue: A value is missing, has the wrong type or is out of its bounds.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(SETTINGS_BYTES_MOST + 1)
    except OSError as error:
        raise SettingsMissing(f"{str(path)!r} cannot be read: {lowered(error.strerror)}") from error
    if len(raw) > SETTINGS_BYTES_MOST:
        raise SettingsSyntaxError(f"{path.name} is longer than {SETTINGS_BYTES_MOST} bytes")
    try:
        tables = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsSyntaxError(f"{path.name} is not UTF-8 (at line {line})") from error
    except (ValueError, RecursionError) as error:
        raise SettingsSyntaxError(f"{path.name} is not TOML: {lowered(str(error))}") from error
    problem: ConfigurationError
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        problem = problem_of(error, kind)
    if isinstance(problem, InvalidValue):
        problem = InvalidValue(f"{path.name}: {problem.message}", hint=SettingsSyntaxError.default_hint)
    raise problem  # outside the handler, so that pydantic's report does not travel along
