"""Which factor of LoRA should move under DP? Federated DP-SGD of the bank example, without masks and encryption, for each way.

    python benchmarks/lora_variants.py [--quick] [--json FILE] [--only NAME ...]
    python benchmarks/lora_variants.py --candidates --study STUDY --data TABLE --seeds 100     # how the settings were chosen

Every variant starts from the same base and gets the same rounds, clip norm, sample rate and noise on each entry that moves. Nothing
is compressed: a support would favour variants with few entries. The sum over banks of Poisson samples and of noise has the
distribution of one sample of all rows with sqrt(n) times the noise, and is drawn like that.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.demo.arena import Ground, encode, logits
from hansa.demo.arms import pooled_rows
from hansa.demo.bank import PRETRAINING
from hansa.demo.bank_data import partition, split_table
from hansa.demo.metrics import auc
from hansa.models.adapters import orthonormal_factor
from hansa.models.merging import Adapter, adapters_of
from hansa.models.pretraining import Base, make_base
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.dataset import read_table
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows, summed_gradient
from hansa.privacy.accounting import calibrate
from hansa.privacy.noise import SecretRandom
from hansa.privacy.sampling import poisson_sample
from hansa.study import Study, load_study

SAMPLE_RATE = 0.2  # half of the example's, which halves the time; σ is calibrated to it
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bank"
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to train.

    Attributes:
        name: Its name.
        first: What the factors A do: "frozen", "alternate" (A in odd rounds, B in even ones) or "both" in every round.
        first_rate: Learning rate of A over that of B.
        refresh_every: Rounds after which A B goes into the base and a new A is drawn; 0: never.
        svd_every: Rounds after which A and B take the singular vectors of A B; 0: never.
        full: Whether every weight is trained, as an adapter with A = 1.
        rate: Learning rate over the study's.
    """

    name: str
    first: str = "frozen"
    first_rate: float = 1.0
    refresh_every: int = 0
    svd_every: int = 0
    full: bool = False
    rate: float = 1.0


FFA = Variant(name="FFA, A frozen (hansa)")
# The choice in each: see docs/adr/0007-which-lora-factor-moves.md.
VARIANTS = (
    FFA,
    Variant(name="FFA, refresh_every = 5", refresh_every=5),
    Variant(name="RoLoRA", first="alternate", first_rate=0.1),
    Variant(name="FedSVD", svd_every=1),
    Variant(name="A and B together", first="both", first_rate=0.1),
    Variant(name="full training", full=True),
)
CANDIDATES = (
    FFA,
    *(Variant(name=f"refresh_every {k}", refresh_every=k) for k in (5, 10)),
    *(Variant(name=f"RoLoRA, rate of A {r:g}", first="alternate", first_rate=r) for r in (0.03, 0.1, 0.3)),
    *(Variant(name=f"full, rate {r:g}", full=True, rate=r) for r in (0.3, 1.0)),
)


class Training:
    """One variant's model, layout and state."""

    def __init__(self, study: Study, base: Base, variant: Variant, noise_multiplier: float) -> None:
        self._variant, self._refreshed, self._noise_multiplier = variant, 0, noise_multiplier
        optimizer = study.training.server_optimizer
        optimizer = optimizer.model_copy(update={"learning_rate": optimizer.learning_rate * variant.rate})
        training = study.training.model_copy(update={"server_optimizer": optimizer})
        self._study = study.model_copy(update={"training": training})
        self.model = model_of(base, variant)
        extra = ("embedding", "class_token", "head")
        self.layout = TrainableLayout(self.model, extra, both_factors=variant.first != "frozen")
        self.layout.freeze_rest(self.model)
        self.state = SharedState(values=self.layout.gather(self.model))
        everything = np.arange(self.layout.size)
        self._slots = {slot.name: slice(slot.start, slot.stop) for slot in self.layout.slots}
        chosen = [everything[s] for name, s in self._slots.items() if ".factor_A" in name]
        self._first = np.concatenate([np.zeros(0, dtype=np.int64), *chosen])
        second = [everything[s] for name, s in self._slots.items() if name.endswith("_B")]
        self._second = np.concatenate(second)

    def support(self, applied: int) -> NDArray[np.int64]:
        """Positions that move in the round after `applied` ones."""
        everything = np.arange(self.layout.size)
        if self._variant.first != "alternate":
            return everything
        return np.setdiff1d(everything, self._second if applied % 2 else self._first)

    def run(self, rows: Rows, banks: int) -> None:
        """Train all rounds."""
        privacy, rounds = self._study.privacy, self._study.training.rounds
        random = SecretRandom()
        deviation = self._noise_multiplier * privacy.clip_norm * math.sqrt(banks)
        divisor = privacy.sample_rate * privacy.nominal_records * banks
        for applied in range(rounds):
            support = self.support(applied)
            self.layout.load(self.model, self.state.values)
            batch = poisson_sample(len(rows.labels), privacy.sample_rate, random.bytes)
            masked = None if len(support) == self.layout.size else support  # masks take time
            total = summed_gradient(
                self.model, self.layout, rows, batch, support=masked, clip_norm=privacy.clip_norm
            )
            total += random.normal(len(support)) * deviation
            before = self.state.values[self._first]
            self.state.apply(support, total / divisor, self._study, bytes(32))
            step = self.state.values[self._first] - before
            self.state.values[self._first] = before + self._variant.first_rate * step
            self._between(applied + 1, rounds)

    def _between(self, applied: int, rounds: int) -> None:
        refresh, rotate = self._variant.refresh_every, self._variant.svd_every
        if refresh and applied % refresh == 0 and applied < rounds:
            self.refresh()
        if rotate and applied % rotate == 0 and applied < rounds:
            self.rotate()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold A B into the base and draw a new A; B and its first moment start again at zero."""
        self._refreshed += 1
        self.layout.load(self.model, self.state.values)
        for adapter in adapters_of(self.model):
            adapter.weight.add_(adapter.module.scale * adapter.factor_A @ adapter.factor_B)
            label = f"{adapter.name}/{self._refreshed}"
            shape = tuple(adapter.factor_A.shape)
            adapter.factor_A.copy_(orthonormal_factor(label, shape, self._refreshed))
        self.state.values[self._second] = 0.0
        self.state.first[self._second] = 0.0

    @torch.no_grad()
    def rotate(self) -> None:
        """Turn A and B to the singular vectors of A B, which stays the same; the moments of B turn along.

        With A orthonormal, B = U S Vᵀ gives A' = A U and B' = S Vᵀ: a rotation within the space of A's columns.
        """
        self.layout.load(self.model, self.state.values)
        for adapter in adapters_of(self.model):
            place = self._slots[adapter.name]
            factor_B = torch.from_numpy(self.state.values[place]).view_as(adapter.factor_B)
            if not factor_B.any():
                continue
            u, s, v = torch.linalg.svd(factor_B, full_matrices=False)
            turn = u.transpose(-1, -2)
            adapter.factor_A.copy_(adapter.factor_A.double() @ u)
            self.state.values[place] = (s.unsqueeze(-1) * v).flatten().numpy()
            for vector, by in ((self.state.first, turn), (self.state.second, turn.square())):
                moment = torch.from_numpy(vector[place]).view_as(factor_B)
                vector[place] = (by @ moment).flatten().numpy()


def model_of(base: Base, variant: Variant) -> FeatureTransformer:
    """Give the base with the variant's adapters."""
    config = replace(base.config, train_factor_A=variant.first != "frozen")
    if variant.full:
        config = replace(config, targets=("attention", "router", "experts", "shared"))
    model = FeatureTransformer(config, base.used_JZ)
    model.load_state_dict(dict(base.weights), strict=False)  # factors that the base has not start at B = 0
    for adapter in adapters_of(model) if variant.full else ():
        widen(adapter)
    return model.eval()


def widen(adapter: Adapter) -> None:
    """Make an adapter of A = 1 and a B of the weight's shape: training B is training the weight."""
    *leading, width_in, _ = adapter.weight.shape
    one = torch.eye(width_in).expand(*leading, width_in, width_in).clone()
    setattr(adapter.module, adapter.site.factor_A, one)
    setattr(adapter.module, adapter.site.factor_B, torch.nn.Parameter(torch.zeros_like(adapter.weight)))
    adapter.module.scale = 1.0


def ground_of(study: Study, data: Path, seed: int) -> Ground:
    """Split, deal out and encode a table as the demo does."""
    split = split_table(read_table(data, study.data), study.data, seed=seed)
    dealt = partition(split, kind="dirichlet", participants=study.aggregation.participants, seed=seed)
    return encode(study, split, dealt)


def measure(
    study: Study, data: Path, seed: int, variants: tuple[Variant, ...], *, quick: bool
) -> dict[str, tuple[float, int, float]]:
    """Give AUC on the test rows, entries sent a round, and seconds of every variant."""
    ground = ground_of(study, data, seed)
    pretraining = replace(PRETRAINING, steps=20) if quick else PRETRAINING
    base = make_base(study, ground.public, ground.used_JZ, seed=seed, pretraining=pretraining)
    rows = pooled_rows(ground)
    if quick:
        rows = Rows(features=rows.features[::4], labels=rows.labels[::4])
    noise_multiplier = calibrate(
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        sample_rate=study.privacy.sample_rate,
        steps=study.training.rounds,
    )
    found = {}
    for variant in variants:
        started = time.monotonic()
        training = Training(study, base, variant, noise_multiplier)
        training.run(rows, study.aggregation.participants)
        training.layout.load(training.model, training.state.values)
        score = auc(
            logits(training.model, ground.test.features), ground.test.labels.numpy().astype(np.float64)
        )
        entries = max(len(training.support(applied)) for applied in (0, 1))
        found[variant.name] = (score, entries, time.monotonic() - started)
        print(f"seed {seed}, {variant.name}: {score:.4f}, {found[variant.name][2]:.0f} s", file=sys.stderr)
    return found


def rows_of(
    found: list[dict[str, tuple[float, int, float]]], conditions: str, against: str
) -> list[dict[str, object]]:
    """Put the table together: AUC of each variant, and its difference to FFA, paired by seed."""
    table: list[dict[str, object]] = []
    for name in found[0]:
        scores = [one[name][0] for one in found]
        differences = [one[name][0] - one[against][0] for one in found]
        for metric, values in (("AUC", scores), ("AUC over FFA", differences)):
            if metric == "AUC over FFA" and name == against:
                continue
            table.append(
                {
                    "metric": f"{metric}: {name}",
                    "unit": "AUC",
                    "better": "higher",
                    "hansa": statistics.fmean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
                    "peers": {},
                    "floor": None,
                    "goal": None,
                    "conditions": f"{found[0][name][1]} entries a round; {conditions}",
                }
            )
    return table


def show(table: list[dict[str, object]]) -> None:
    """Print the table."""
    print(f"{'METRIC':44} {'HANSA':>9} {'+-':>7}  ENTRIES A ROUND")
    for row in table:
        entries = str(row["conditions"]).split(" ", 1)[0]
        print(f"{row['metric']!s:44} {row['hansa']:9.4f} {row['deviation']:7.4f}  {entries:>9}")
    print(f"conditions: {str(table[0]['conditions']).split('; ', 1)[1]}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed, 3 rounds, a quarter of the rows")
    parser.add_argument("--candidates", action="store_true", help="every setting that was tried")
    parser.add_argument("--study", type=Path, default=EXAMPLE / "study.toml", help="another study")
    parser.add_argument("--data", type=Path, default=EXAMPLE / "data" / "credit_default.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds, fixed before the run")
    parser.add_argument("--only", nargs="+", help="only variants whose names hold one of these words")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(options.study)
    privacy = study.privacy.model_copy(update={"sample_rate": SAMPLE_RATE})
    study = study.model_copy(update={"privacy": privacy})
    if options.quick:
        study = study.with_changes(rounds=3)
    variants = CANDIDATES if options.candidates else VARIANTS
    if options.only:
        variants = tuple(v for v in variants if v is FFA or any(word in v.name for word in options.only))
    seeds = options.seeds[:1] if options.quick else options.seeds
    conditions = (
        f"{study.aggregation.participants} parties, Dirichlet(0.3), epsilon {study.privacy.epsilon:g} at delta"
        f" {study.privacy.delta:g}, {study.training.rounds} rounds, sample rate {SAMPLE_RATE:g}, no compression,"
        " seeds {seeds}, one thread, consortium-wide test set, "
        + options.data.name
        + (", a quarter of the rows" if options.quick else "")
    )
    found, table = [], []
    for seed in seeds:
        found.append(measure(study, options.data, seed, variants, quick=options.quick))
        table = rows_of(found, conditions.format(seeds=seeds[: len(found)]), FFA.name)
        if options.json:  # after each seed: a run that is stopped has something to show
            options.json.write_text(json.dumps({"rows": table}, indent=2) + "\n")
    show(table)


if __name__ == "__main__":
    main()
