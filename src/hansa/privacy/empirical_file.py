"""The file of an empirical audit, schema hansa/empirical-audit/v1, as a statement takes it up: bounds and attacks, nothing else."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hansa.errors import LedgerFileMissing, StatementInvalid
from hansa.privacy.statement import EmpiricalBound, Inversion

SCHEMA = "hansa/empirical-audit/v1"
_BYTES_MOST = 1 << 20


def read_empirical(path: Path) -> tuple[list[EmpiricalBound], list[Inversion]]:
    """Read what an audit measured. Whether a bound is above its claim is judged by whoever reads the statement.

    Args:
        path: What `hansa audit empirical --output` wrote.

    Returns:
        Lower bounds of ε, and attacks on gradients.

    Raises:
        LedgerFileMissing: The file cannot be read.
        StatementInvalid: It is no such file, or a number in it is not one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MOST + 1)
    except OSError as error:
        raise LedgerFileMissing(f"{str(path)!r} cannot be read: {error.strerror}") from error
    wrong = StatementInvalid(
        f"{path.name} is no file of an empirical audit", hint="make it with `hansa audit empirical --output`"
    )
    try:
        found = json.loads(data) if len(data) <= _BYTES_MOST else None
        if not isinstance(found, dict) or found["schema"] != SCHEMA or not isinstance(found["checks"], list):
            raise wrong
        checks = [(check, _READERS[check["kind"]](found, check)) for check in found["checks"]]
    except (ValueError, RecursionError, KeyError, TypeError, ValidationError) as error:
        raise wrong from error
    bounds = [one for _, one in checks if isinstance(one, EmpiricalBound)]
    return bounds, [one for _, one in checks if isinstance(one, Inversion)]


def _bound(found: Mapping[str, Any], check: Mapping[str, Any]) -> EmpiricalBound:
    return EmpiricalBound(
        name=check["name"],
        study=found["study"],
        noise_multiplier=float(check["noise_multiplier"]),
        sample_rate=float(check["sample_rate"]),
        steps=check["steps"],
        delta=float(check["delta"]),
        epsilon_at_least=float(check["lower_bound"]),
        confidence=float(check["confidence"]),
        canaries=check["canaries"],
    )


def _inversion(found: Mapping[str, Any], check: Mapping[str, Any]) -> Inversion:
    return Inversion(
        name=check["name"],
        study=found["study"],
        tokens=check["tokens"],
        recovered_without_noise=float(check["recovered_without_noise"]),
        recovered=float(check["recovered"]),
        chance=float(check["chance"]),
        passed=check["passed"],
    )


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], EmpiricalBound | Inversion]] = {
    "canaries": _bound,
    "one_run": _bound,
    "inversion": _inversion,
}
