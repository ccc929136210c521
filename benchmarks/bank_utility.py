"""Utility of the bank example under privacy: joint against every way of going alone, and what each protection costs.

    python benchmarks/bank_utility.py [--quick] [--seeds N] [--json FILE]

One run trains every arm on the same split, partition and base; figures are means over seeds, with sample deviations. The floor of
a score is the ceiling of what is possible: the same network on everybody's rows without protection.
"""

import argparse
import json
import math
import os
import statistics
import sys
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from hansa.demo.arena import prepare
from hansa.demo.bank import BankDemo, DemoOptions, workers_here
from hansa.demo.baselines import LabelledRows, local_logistic_auc
from hansa.demo.display import make_display
from hansa.demo.result import DemoResult
from hansa.secure_agg.parameters import layout_for
from hansa.study import Study, load_study

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bank"
PARQUET = EXAMPLE / "data" / "credit_default.parquet"
ARMS = (
    "local_only",
    "local_only_logistic_regression",
    "local_only_same_network",
    "local_only_dp",
    "federated_no_dp",
    "federated_no_compression",
    "pooled",
    "base",
)


def untuned_logistic(study: Study, seed: int) -> float:
    """Mean test AUC of local logistic regression with penalty 1, which nobody tuned."""
    ground = prepare(study, PARQUET, kind="dirichlet", seed=seed)
    test = ground.flat_test
    own = [LabelledRows(features=test.features[rows], labels=test.labels[rows]) for rows in ground.own_test]
    found = local_logistic_auc(
        ground.flat_banks, public_features=ground.flat_public, test=test, own=own, seed=seed, penalty=1.0
    )
    return found.mean_test


def mean(values: list[float | None]) -> float | None:
    """Mean of what was measured."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def deviation(values: list[float | None]) -> float:
    """Sample deviation of what was measured; 0 for one value."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else 0.0


def gain(joint: list[float], others: list[float | None]) -> list[float | None]:
    """Relative gain in percent, paired by seed."""
    return [
        None if other is None else 100 * (mine / other - 1) for mine, other in zip(joint, others, strict=True)
    ]


def rows_of(results: list[DemoResult], untuned: list[float], study: Study) -> list[dict[str, object]]:
    """Put the table together."""
    joint = [result.auc.joint for result in results]
    scores = {arm: [result.auc.get(arm) for result in results] for arm in ARMS}
    first = results[0]
    conditions = (
        f"{first.participants} banks, Dirichlet(0.3), epsilon {first.epsilon.limit:g} at delta {first.epsilon.delta:g}, "
        f"{first.rounds} rounds, seeds {[result.seed for result in results]}, 2 cores, consortium-wide test set"
    )
    packing = layout_for(first.participants, study.compression.bits)
    least_up = first.traffic.kept_entries * math.log2(packing.radix) / 8 / first.traffic.trainable_parameters

    def row(
        metric: str, unit: str, better: str, values: list[float | None], **more: object
    ) -> dict[str, object]:
        return {
            "metric": metric,
            "unit": unit,
            "better": better,
            "hansa": mean(values),
            "deviation": deviation(values),
            "peers": more.get("peers", {}),
            "floor": more.get("floor"),
            "goal": more.get("goal"),
            "conditions": conditions,
        }

    peers = {arm: mean(values) for arm, values in scores.items()}
    peers["local_only_logistic_regression_untuned"] = mean(list(untuned))
    versus = [
        ("gain over the better local-only model", "local_only", 9.0),
        ("gain over the same network alone", "local_only_same_network", 15.0),
        ("gain over the same network alone with the same DP", "local_only_dp", None),
        ("DP against federated without DP", "federated_no_dp", -2.0),
        ("compression against none", "federated_no_compression", None),
        ("distance to pooled", "pooled", None),
    ]
    ceiling = scores["pooled"]
    table = [row("AUC joint", "AUC", "higher", list(joint), peers=peers, floor=mean(ceiling))]
    for metric, arm, goal in versus:
        most = gain([value or 0.0 for value in ceiling], scores[arm]) if all(ceiling) else [None]
        table.append(row(metric, "%", "higher", gain(joint, scores[arm]), goal=goal, floor=mean(most)))
    table.append(
        row(
            "gain over untuned local logistic regression",
            "%",
            "higher",
            gain(joint, list(untuned)),
            goal=None,
        )
    )
    table += [
        row("epsilon", "epsilon", "lower", [r.epsilon.max for r in results], goal=first.epsilon.limit),
        row(
            "uplink per trainable parameter",
            "B",
            "lower",
            [r.traffic.uplink_bytes_per_parameter for r in results],
            peers={"fp32": 4.0},
            floor=least_up,
            goal=0.75,
        ),
        row(
            "peak memory of all processes",
            "MiB",
            "lower",
            [r.peak_memory_bytes / 2**20 for r in results],
            goal=2048,
        ),
        row("seconds a round", "s", "lower", [r.seconds.per_round for r in results]),
    ]
    return table


def show(table: list[dict[str, object]]) -> None:
    """Print the table."""

    def text(value: object) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    print(f"{'METRIC':52} {'UNIT':8} {'HANSA':>9} {'+-':>7} {'FLOOR':>9} {'GOAL':>9}")
    for row in table:
        cells = [text(row[key]) for key in ("hansa", "deviation", "floor", "goal")]
        print(
            f"{row['metric']!s:52} {row['unit']!s:8} {cells[0]:>9} {cells[1]:>7} {cells[2]:>9} {cells[3]:>9}"
        )
        for name, value in dict(row["peers"]).items():  # type: ignore[call-overload]
            print(f"    {name:48} {'':8} {text(value):>9}")
    print(f"conditions: {table[0]['conditions']}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed, 3 rounds, 4 banks, in under 50 s")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    study = load_study(EXAMPLE / "study.toml")
    if options.quick:
        study = study.with_changes(participants=4, rounds=3)
    results, untuned = [], []
    for seed in range(1 if options.quick else options.seeds):
        print(f"seed {seed}", file=sys.stderr)
        chosen = DemoOptions(
            partition="dirichlet", seed=seed, compare=not options.quick, workers=workers_here()
        )
        results.append(BankDemo(study, PARQUET, chosen, make_display("plain")).run())
        untuned.append(untuned_logistic(study, seed))
    table = rows_of(results, untuned, study)
    show(table)
    if options.json:
        options.json.write_text(json.dumps({"rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
