"""Times as ratios to a floor of the same round, the rows they give, and the table."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

Row = dict[str, object]
Call = Callable[[], object]


def seconds_of(call: Call) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def ratios(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call over those of "floor", round by round; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        seconds = {name: seconds_of(call) for name, call in calls.items()}
        for name in calls if turn else ():
            found[name].append(seconds[name] / seconds["floor"])
    return found


def row(metric: str, unit: str, values: list[float], conditions: str, **others: object) -> Row:
    """One row in the form of README.md."""
    return {
        "metric": metric,
        "unit": unit,
        "better": "lower",
        "hansa": statistics.median(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "peers": {},
        "floor": None,
        "goal": None,
        "conditions": conditions,
    } | others


def machine(*packages: str) -> str:
    """What a time depends on: processor, load, versions."""
    with open("/proc/cpuinfo") as info:
        found = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    load = round(os.getloadavg()[0], 1)
    return f"{found[0] if found else platform.machine()}, one thread, load {load}, {versions}, python {platform.python_version()}"


def show(table: list[Row]) -> None:
    """Print the table."""
    names = list(dict.fromkeys(name for found in table for name in dict(found["peers"])))  # type: ignore[call-overload]

    def text(value: object) -> str:
        return "-" if value is None else f"{value:.3g}"

    heads = "".join(f"{name[:20]:>22}" for name in names)
    print(f"{'':78} {'UNIT':6} {'HANSA':>7} {'+-':>6} {'FLOOR':>6} {'GOAL':>6}       {heads}")
    for found in table:
        ours, goal = float(found["hansa"]), found["goal"]  # type: ignore[arg-type]
        met = goal is None or (ours >= goal if found["better"] == "higher" else ours <= goal)  # type: ignore[operator]
        verdict = "" if goal is None else "met" if met else "MISSED"
        others = "".join(f"{text(dict(found['peers']).get(name)):>22}" for name in names)  # type: ignore[call-overload]
        print(
            f"{found['metric']!s:78} {found['unit']!s:6} {text(ours):>7} {text(found['deviation']):>6} "
            f"{text(found['floor']):>6} {text(goal):>6} {verdict:6}{others}"
        )


def write(table: list[Row], here: str, file: Path | None) -> None:
    """Write the rows as JSON, each with the place and time's conditions."""
    print(f"\n{here}")
    if file:
        for found in table:
            found["conditions"] = f"{found['conditions']}; {here}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"rows": table}, indent=2) + "\n")
