"""Utility of the bank example under privacy: joint against every bank alone, by ε, consortium, partition and kind of noise.

    python benchmarks/utility.py [--quick] [--runs FILE] [--json FILE] [--figures FOLDER] [--check]

Settings of every study come from the public recipe (`hansa study recipe`), which saw no row of this table. The joint model is
simulated at the level of its engine (`hansa.demo.engine`): training, clipping, noise, rounding and optimizer are those that
members run; masks and encryption carry exact sums, so results have the protocol's distribution. `--check` runs one setting
through the embedded consortium as well, every layer on.

Each run is written to the file of runs when it ends; a run that is there already is not repeated, so a stopped benchmark goes on.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import torch
from utility_figures import draw

from hansa.demo import arms
from hansa.demo.arena import Evaluator, prepare
from hansa.demo.bank import PRETRAINING, workers_here
from hansa.demo.baselines import LabelledRows, local_logistic_auc
from hansa.demo.engine import simulate, simulate_without_privacy
from hansa.local import LocalConsortium
from hansa.local_seats import Member
from hansa.models.pretraining import PretrainingConfig, make_base
from hansa.participant.policy import Policy
from hansa.privacy_recipe import ROUNDS, recipe_for
from hansa.study import Study, load_study

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "bank"
PARQUET = EXAMPLE / "data" / "credit_default.parquet"
RUNS = HERE / "utility_runs.json"
PARTITIONS = ("dirichlet", "segments")
EPSILONS = (1.0, 3.0, 8.0)
MODES = ("local", "distributed")
COLLUDERS = 1
SHARED = 3.0  # limit at which distributed noise is held against local noise at the largest one
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What is run.

    Attributes:
        partitions: Ways to deal out the rows.
        banks: Sizes of the consortium, ascending.
        epsilons: Limits; without privacy is always run too.
        seeds: Seeds, fixed before the run.
        rounds: Rounds in place of the recipe's; None for the recipe's.
        pretraining: How the base is made.
    """

    partitions: tuple[str, ...] = PARTITIONS
    banks: tuple[int, ...] = (3, 15)
    epsilons: tuple[float, ...] = EPSILONS
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int | None = None
    pretraining: PretrainingConfig = PRETRAINING

    def grounds(self) -> Iterator[tuple[str, int]]:
        """Partitions and seeds."""
        return ((partition, seed) for seed in self.seeds for partition in self.partitions)

    def settings(self) -> Iterator[tuple[float, str]]:
        """Limits and kinds of noise; the last is without privacy."""
        yield from ((epsilon, mode) for epsilon in self.epsilons for mode in MODES)
        yield math.inf, ""

    def settings_of_goals(self) -> tuple[tuple[float, str], ...]:
        """The settings that a goal was set for."""
        return (max(self.epsilons), "local"), (SHARED, "distributed"), (math.inf, "")


QUICK = Matrix(
    partitions=("dirichlet",),
    banks=(3, 4),
    epsilons=(3.0, 8.0),
    seeds=(0,),
    rounds=4,
    pretraining=PretrainingConfig(steps=20),
)


class Runs:
    """Results by name, on disk after each of them.

    Args:
        path: A JSON file; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path and path.is_file() else {}

    def once(self, key: str, run: Callable[[], Any]) -> Any:
        """Give a result, and make it if it is not there."""
        if key not in self.found:
            started = time.process_time()
            self.found[key] = run()
            print(
                f"{key}: {self.found[key]!s:.60}, {time.process_time() - started:.0f} CPU s", file=sys.stderr
            )
            if self._path is not None:
                partial = self._path.with_suffix(".partial")
                partial.write_text(json.dumps(self.found, indent=1, sort_keys=True) + "\n")
                partial.replace(self._path)
        return self.found[key]


class Bench:
    """Runs what a matrix asks for and lacks."""

    def __init__(self, matrix: Matrix, runs: Runs) -> None:
        self._matrix, self._runs = matrix, runs
        self._example = load_study(EXAMPLE / "study.toml")

    def run(self) -> None:
        """Run everything, the settings of the goals first."""
        every = list(self._matrix.settings())
        first = [setting for setting in every if setting in self._matrix.settings_of_goals()]
        for settings in (first, [setting for setting in every if setting not in first]):
            self._run(settings)

    def _run(self, settings: list[tuple[float, str]]) -> None:
        for partition, seed in self._matrix.grounds():
            most = self._matrix.banks[-1]
            whole = self._example.with_changes(participants=most)
            place = LazyPlace(whole, partition, seed, self._matrix.pretraining)
            self._runs.once(alone_key(partition, seed), partial(self._alone, place))
            for banks in self._matrix.banks:
                for epsilon, mode in settings:
                    key = joint_key(partition, seed, banks, epsilon, mode)
                    self._runs.once(key, partial(self._joint, place, banks, epsilon, mode))

    def _alone(self, place: "LazyPlace") -> dict[str, list[float]]:
        return place.made.alone()

    def _joint(self, place: "LazyPlace", banks: int, epsilon: float, mode: str) -> float:
        study = self.study(banks, epsilon, mode, place.made.base.layout.size)
        return place.made.joint(study, private=math.isfinite(epsilon))

    def study(self, banks: int, epsilon: float, mode: str, trained_entries: int) -> Study:
        """Give the study of a setting; without privacy it is the recipe's for the largest limit."""
        example = self._example.with_changes(participants=banks)
        recipe = recipe_for(
            epsilon=min(epsilon, EPSILONS[-1]),
            delta=example.privacy.delta,
            participants=banks,
            nominal_records=example.privacy.nominal_records,
            trained_entries=trained_entries,
            mode=mode or "local",
            colluders=COLLUDERS if mode == "distributed" else None,
        )
        return recipe.applied_to(example).with_changes(rounds=self._matrix.rounds)


class Place:
    """One split, one partition, one base."""

    def __init__(self, study: Study, partition: str, seed: int, pretraining: PretrainingConfig) -> None:
        self._seed = seed
        self.ground = prepare(study, PARQUET, kind=partition, seed=seed)
        self.base = make_base(
            study, self.ground.public, self.ground.used_JZ, seed=seed, pretraining=pretraining
        )
        self.evaluator = Evaluator(self.ground, self.base)

    def joint(self, study: Study, *, private: bool) -> float:
        """Train together, and score on the consortium-wide test rows."""
        parties = self.ground.banks[: study.aggregation.participants]
        run = simulate if private else simulate_without_privacy
        return self.evaluator.score(run(study, self.base, parties).values).test

    def alone(self) -> dict[str, list[float]]:
        """Train each bank alone without privacy, in two ways; AUC of each bank's model on the same test rows."""
        ground, test = self.ground, self.ground.flat_test
        own = [
            LabelledRows(features=test.features[rows], labels=test.labels[rows]) for rows in ground.own_test
        ]
        logistic = local_logistic_auc(
            ground.flat_banks, public_features=ground.flat_public, test=test, own=own, seed=self._seed
        )
        network = [
            self.evaluator.score(arms.train_plainly(self.base, rows, seed=self._seed)).test
            for rows in ground.banks
        ]
        return {"logistic regression": list(logistic.test), "same network": network}


class LazyPlace:
    """A place that is made when it is needed first: reading and pretraining take longer than looking up results."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    @cached_property
    def made(self) -> Place:
        """The place."""
        return Place(*self._arguments)


def name_of(epsilon: float, mode: str) -> str:
    """Name a setting."""
    return f"epsilon {epsilon:g}, {mode} noise" if mode else "without privacy"


def joint_key(partition: str, seed: int, banks: int, epsilon: float, mode: str) -> str:
    """Name a joint run."""
    return f"{partition}, seed {seed}, {banks} banks, {name_of(epsilon, mode)}"


def alone_key(partition: str, seed: int) -> str:
    """Name the runs of the banks alone."""
    return f"{partition}, seed {seed}, alone"


class Results:
    """What the runs say.

    Args:
        matrix: What was run.
        found: Results by name.
    """

    def __init__(self, matrix: Matrix, found: dict[str, Any]) -> None:
        self.matrix, self._found = matrix, found

    def joint(self, partition: str, banks: int, epsilon: float, mode: str) -> list[float]:
        """AUC of the joint model, one a seed."""
        keys = [joint_key(partition, seed, banks, epsilon, mode) for seed in self.matrix.seeds]
        return [float(self._found[key]) for key in keys]

    def alone(self, partition: str, banks: int) -> dict[str, list[float]]:
        """Mean AUC over the banks of each way to train alone, one a seed; the banks are the first of fifteen."""
        found = [self._found[alone_key(partition, seed)] for seed in self.matrix.seeds]
        return {model: [statistics.fmean(one[model][:banks]) for one in found] for model in found[0]}

    def best_alone(self, partition: str, banks: int) -> tuple[str, list[float]]:
        """The way to train alone with the better mean, by name."""
        ways = self.alone(partition, banks)
        best = max(ways, key=lambda model: statistics.fmean(ways[model]))
        return best, ways[best]


def gains(ours: list[float], others: list[float]) -> list[float]:
    """Relative gain in percent, paired by seed."""
    return [100 * (mine / other - 1) for mine, other in zip(ours, others, strict=True)]


def row(
    metric: str,
    unit: str,
    values: list[float],
    conditions: str,
    *,
    peers: dict[str, float] | None = None,
    floor: float | None = None,
    goal: float | None = None,
) -> Row:
    """Make a row of the table."""
    return {
        "metric": metric,
        "unit": unit,
        "better": "higher",
        "hansa": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "peers": peers or {},
        "floor": floor,
        "goal": goal,
        "conditions": conditions,
    }


def rows_of(results: Results, conditions: str) -> list[Row]:
    """Put the table together: the goals, then every score."""
    matrix, table = results.matrix, list[Row]()
    few, most, top = matrix.banks[0], matrix.banks[-1], max(matrix.epsilons)
    for partition in matrix.partitions:
        for banks in matrix.banks:
            place = f"{partition}, {banks} banks"
            local = results.joint(partition, banks, top, "local")
            free = results.joint(partition, banks, math.inf, "")
            shared = results.joint(partition, banks, SHARED, "distributed")
            model, alone = results.best_alone(partition, banks)
            goal = banks == most
            table += [
                row(
                    f"{place}: epsilon {top:g}, local noise, against none",
                    "%", gains(local, free), conditions, goal=-2.0 if goal else None,
                ),
                row(
                    f"{place}: distributed at epsilon {SHARED:g} against local at {top:g}",
                    "%", gains(shared, local), conditions, goal=0.0 if goal else None,
                ),
                row(
                    f"{place}: epsilon {top:g}, local noise, against {model} alone",
                    "%", gains(local, alone), conditions, floor=statistics.fmean(gains(free, alone)),
                ),
            ]  # fmt: skip
        for epsilon, mode in matrix.settings_of_goals():
            wide, narrow = (results.joint(partition, banks, epsilon, mode) for banks in (most, few))
            name = name_of(epsilon, mode)
            table.append(
                row(
                    f"{partition}: {most} banks against {few}, {name}",
                    "%",
                    gains(wide, narrow),
                    conditions,
                    goal=15.0,
                )
            )
    return table + list(_scores(results, conditions))


def _scores(results: Results, conditions: str) -> Iterator[Row]:
    matrix = results.matrix
    for partition in matrix.partitions:
        for banks in matrix.banks:
            ways = results.alone(partition, banks)
            peers = {f"{model}, alone": statistics.fmean(values) for model, values in ways.items()}
            free = statistics.fmean(results.joint(partition, banks, math.inf, ""))
            for epsilon, mode in matrix.settings():
                scores = results.joint(partition, banks, epsilon, mode)
                metric = f"{partition}, {banks} banks: AUC, {name_of(epsilon, mode)}"
                yield row(metric, "AUC", scores, conditions, peers=peers, floor=free)


def show(table: list[Row]) -> None:
    """Print the table."""
    print(f"{'METRIC':72} {'UNIT':5} {'HANSA':>9} {'+-':>7} {'CEILING':>9} {'GOAL':>7}")
    for line in table:
        floor, goal = ("-" if line[key] is None else f"{line[key]:.3f}" for key in ("floor", "goal"))
        met = "" if line["goal"] is None else "  met" if line["hansa"] >= line["goal"] else "  MISSED"
        numbers = f"{line['hansa']:9.3f} {line['deviation']:7.3f} {floor:>9} {goal:>7}{met}"
        print(f"{line['metric']:72} {line['unit']:5} {numbers}")
        for name, value in line["peers"].items():
            print(f"    {name:68} {'':5} {value:9.3f}")
    print(f"conditions: {table[0]['conditions']}")


def check(matrix: Matrix) -> tuple[float, float]:
    """Run one setting through the embedded consortium, every layer on, and as simulated; give both scores."""
    bench = Bench(matrix, Runs(None))
    banks = matrix.banks[-1]
    whole = load_study(EXAMPLE / "study.toml").with_changes(participants=banks)
    place = Place(whole, matrix.partitions[0], matrix.seeds[0], matrix.pretraining)
    study = bench.study(banks, max(matrix.epsilons), "local", place.base.layout.size)
    policy = Policy(studies=frozenset({study.id}), epsilon_limit=study.privacy.epsilon)
    parties = zip(place.ground.names, place.ground.banks, strict=True)
    members = [Member(name=name, rows=rows, policy=policy) for name, rows in parties]
    with LocalConsortium(
        study, members, make_model=place.base.model, layout=place.base.layout, workers=workers_here()
    ) as consortium:
        consortium.run(lambda _: None)
        values = consortium.inspect_all()[place.ground.names[0]].values
    return place.evaluator.score(values).test, place.joint(study, private=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed, 3 and 4 banks, 4 rounds, under 60 s")
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of runs; the benchmark goes on from it")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--figures", type=Path, help="also draw the figures into this folder")
    parser.add_argument(
        "--check", action="store_true", help="one setting through every layer, and as simulated"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    matrix = QUICK if options.quick else Matrix()
    if options.check:
        whole, simulated = check(matrix)
        print(f"embedded consortium {whole:.4f}, simulated {simulated:.4f}")
        return
    runs = Runs(None if options.quick else options.runs)
    Bench(matrix, runs).run()
    results = Results(matrix, runs.found)
    conditions = (
        f"UCI credit default, delta 1e-5, {matrix.rounds or ROUNDS} rounds, settings of the recipe (UCI Adult, SUPPORT2),"
        " engine simulated,"
        f" seeds {list(matrix.seeds)}, consortium-wide test set, distributed: {COLLUDERS} colluder"
    )
    table = rows_of(results, conditions)
    show(table)
    if options.json:
        options.json.write_text(json.dumps({"rows": table}, indent=2) + "\n")
    if options.figures:
        draw(results, options.figures)


if __name__ == "__main__":
    main()
