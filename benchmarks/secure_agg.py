"""Secure aggregation side by side: hansa, Flower's SecAgg+, CKKS as NVIDIA FLARE uses it, no protection.

    python benchmarks/secure_agg.py [--quick] [--json FILE]

Every system adds up the same vectors in one run. Times are processor seconds of one process and one thread, bytes are
those of the messages. The floor of a time is what Microsoft SEAL alone needs to encode, encrypt, decrypt and decode;
the floor of a byte count is the information in a masked sum.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import numpy as np
from peers import plain_fp32
from peers.hansa_quorum import MEASURED_MEMBERS, coordinator_memory_bytes, isolated_seconds, run_ours
from peers.measured import Measured, mean_sd

from hansa.secure_agg.parameters import layout_for

if TYPE_CHECKING:
    from peers.seal_floor import Floor

MILLION = 1_000_000
QUICK = [(16, MILLION, 0), (16, MILLION, 3)]
FULL = [
    (participants, entries, dropouts)
    for entries in (MILLION, 10 * MILLION)
    for participants in (8, 16, 64, 100)
    for dropouts in (0, participants // 5)
]
PEERS_UP_TO = 200 * MILLION  # participants times entries; above, one run of SecAgg+ takes many minutes
Case = tuple[int, int, int]
Row = dict[str, object]


def peers_of() -> dict[str, Callable[[int, int, int], Measured]]:
    """The other systems; imported here so that a child process of the memory measurement does not."""
    from peers import flower_secagg, tenseal_ckks

    return {
        flower_secagg.NAME: flower_secagg.run_flower,
        tenseal_ckks.NAME: tenseal_ckks.run_tenseal_ckks,
        plain_fp32.NAME: plain_fp32.run_plain_fp32,
    }


def small(participants: int, few: float, many: float) -> float:
    """A goal that depends on how many entries share a slot: four up to 16 members, three above."""
    return few if participants <= 16 else many


def rows_of_case(case: Case, ours: Measured, peers: dict[str, Measured], seal: "Floor") -> list[Row]:
    """The six numbers of one case."""
    participants, entries, dropouts = case
    per_million = entries / MILLION
    information = math.log2(layout_for(participants).radix) / 8
    conditions: dict[str, object] = {"participants": participants, "entries": entries, "dropouts": dropouts}
    if not peers:
        conditions["peers left out"] = f"above {PEERS_UP_TO:.0e} entries of all participants together"

    def row(
        metric: str,
        unit: str,
        number: Callable[[Measured], list[float]],
        floor: float | None,
        goal: float | None,
    ) -> Row:
        return {
            "metric": metric,
            "unit": unit,
            "better": "lower",
            "hansa": mean_sd(number(ours)),
            "peers": {name: mean_sd(number(found)) for name, found in peers.items() if number(found)},
            "floor": floor,
            "goal": goal,
            "conditions": conditions,
        }

    return [
        row(
            "uplink",
            "B/entry",
            lambda m: [m.up_bytes / entries],
            information,
            small(participants, 2.05, 2.75),
        ),
        row("downlink", "B/entry", lambda m: [m.down_bytes / entries], None, small(participants, 4.1, 5.5)),
        row(
            "participant",
            "CPU s/1e6 entries",
            lambda m: [seconds / per_million for seconds in m.participant_seconds],
            seal.participant / per_million,
            small(participants, 0.12, 0.20) if not dropouts else None,
        ),
        row(
            "participant over the floor of SEAL",
            "ratio",
            lambda m: [seconds / seal.participant for seconds in m.participant_seconds],
            1.0,
            None,
        ),
        row(
            "coordinator, for each participant",
            "CPU s/1e6 entries",
            lambda m: [m.coordinator_seconds / per_million],
            seal.coordinator / per_million,
            0.012,
        ),
        row(
            "largest error of the sum",
            "levels of 8 bits",
            lambda m: [] if m.largest_error is None else [m.largest_error],
            0.0,
            0.0,
        ),
    ]


def measure_case(case: Case) -> tuple[list[Row], dict[str, float]]:
    """Run all systems on one case."""
    from peers.seal_floor import floor_seconds

    print(f"{case[0]} participants, {case[1]:.0e} entries, {case[2]} dropouts", file=sys.stderr)
    ours = run_ours(*case)
    with_peers = case[0] * case[1] <= PEERS_UP_TO
    peers = {name: run(*case) for name, run in peers_of().items()} if with_peers else {}
    return rows_of_case(case, ours, peers, floor_seconds(case[0], case[1])), ours.steps


def alone(metric: str, unit: str, value: float, goal: float | None, **conditions: object) -> Row:
    """A row that no other system has."""
    return {
        "metric": metric,
        "unit": unit,
        "better": "lower",
        "hansa": mean_sd([value]),
        "peers": {},
        "floor": None,
        "goal": goal,
        "conditions": conditions,
    }


def rows_of_coordinator() -> list[Row]:
    """Memory that does not grow with the cohort, and the price of parsing in a process of its own."""
    few, many = (coordinator_memory_bytes(participants, MILLION) for participants in (8, 64))
    case = {"entries": MILLION, "dropouts": 0}
    return [
        alone("coordinator memory of a round", "MB", few / 1e6, None, participants=8, **case),
        alone("coordinator memory of a round", "MB", many / 1e6, 1.5 * few / 1e6, participants=64, **case),
        alone(
            "coordinator with a worker process, for each participant",
            "CPU s/1e6 entries",
            isolated_seconds(16, MILLION),
            None,
            participants=16,
            **case,
        ),
    ]


def rows_of_support() -> list[Row]:
    """The traffic of the usual update: 30 % of the parameters move, rounded up to whole ciphertexts."""
    layout = layout_for(16)
    kept = layout.capacity(layout.ciphertexts_for(3 * MILLION))
    support = run_ours(16, kept, 0)
    case = {"participants": 16, "entries": kept, "dropouts": 0}
    what = "of 30 % of 10M parameters"
    return [
        alone(f"uplink {what}", "MB", support.up_bytes / 1e6, 6.2, **case),
        alone(f"downlink {what}", "MB", support.down_bytes / 1e6, None, **case),
    ]


def rows_of_dropouts() -> list[Row]:
    """As many dropouts as the threshold allows among the most participants of the table."""
    lost = run_ours(100, MILLION, 33)
    return [
        alone(
            "largest error of the sum",
            "levels of 8 bits",
            lost.largest_error or 0.0,
            0.0,
            participants=100,
            entries=MILLION,
            dropouts=33,
        ),
    ]


def machine() -> dict[str, object]:
    """What a time depends on."""
    with open("/proc/cpuinfo") as info:
        found = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {
        "processor": found[0] if found else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "counted": "processor seconds of one thread; set-up of the epoch and the transport are not counted",
        "measured members": f"hansa {MEASURED_MEMBERS} with their store on disk, of n that all take part;"
        " SecAgg+ all, or 4 above 17e6 entries in sum while the others mask one entry; CKKS 2; plain 4",
        "vectors": "whole levels of 8 bits; SecAgg+ quantises to 22 bits, hansa is given levels",
    }


def show(table: list[Row], steps: dict[Case, dict[str, float]], conditions: dict[str, object]) -> None:
    """Print the table."""
    names = list(dict.fromkeys(name for row in table for name in dict(row["peers"])))  # type: ignore[call-overload]

    def text(value: object) -> str:
        number = value.get("mean") if isinstance(value, dict) else value
        return "-" if number is None else f"{number:.4g}"

    last = None
    for row in table:
        case = dict(row["conditions"])  # type: ignore[call-overload]
        here = (case["participants"], case["entries"], case["dropouts"])
        if here != last:
            last = here
            print(f"\nn = {here[0]}, {here[1]:,} entries, {here[2]} dropouts")
            heads = "".join(f"{name[:22]:>24}" for name in names)
            print(f"{'':44} {'UNIT':18} {'HANSA':>9} {'FLOOR':>9} {'GOAL':>9}        {heads}")
        ours, goal = dict(row["hansa"])["mean"], row["goal"]  # type: ignore[call-overload]
        verdict = "" if goal is None else "met" if ours <= goal else "MISSED"
        others = "".join(f"{text(dict(row['peers']).get(name)):>24}" for name in names)  # type: ignore[call-overload]
        print(
            f"{row['metric']!s:44} {row['unit']!s:18} {text(ours):>9} {text(row['floor']):>9} {text(goal):>9} {verdict:7}{others}"
        )
    for case, found in steps.items():
        parts = ", ".join(f"{what} {seconds / case[1] * MILLION:.4f}" for what, seconds in found.items())
        print(f"\nsteps of a participant, CPU s/1e6 entries, n = {case[0]}, {case[2]} dropouts: {parts}")
    print()
    for name, value in conditions.items():
        print(f"{name}: {value}")


def write(path: Path, table: list[Row], conditions: dict[str, object]) -> None:
    """Write the rows, each with everything that its numbers depend on."""
    rows = [row | {"conditions": conditions | dict(row["conditions"])} for row in table]  # type: ignore[call-overload]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="16 participants, 1e6 entries, in under 50 s")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    started, conditions = time.monotonic(), machine()
    table: list[Row] = []
    steps: dict[Case, dict[str, float]] = {}

    def take(rows: list[Row]) -> None:
        """Keep rows, on disk as well: a whole run takes long."""
        table.extend(rows)
        conditions["seconds"] = round(time.monotonic() - started, 1)
        if options.json:
            write(options.json, table, conditions)

    take(rows_of_coordinator() + rows_of_support())
    if not options.quick:
        take(rows_of_dropouts())
    for case in QUICK if options.quick else FULL:
        rows, steps[case] = measure_case(case)
        take(rows)
    show(table, steps, conditions)


if __name__ == "__main__":
    main()
